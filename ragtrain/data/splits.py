"""Cutting, drawing, and keeping evaluation apart from training: functions of questions and a seed, nothing else.

Every choice is a rank by a hash of (seed, name), so it depends neither on the order of a file nor on the version of a
random generator, and a question added to a set moves no other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from ragtrain.errors import DataError
from ragtrain.records import Document, Passage, Question, content_id, normalize_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
    """What evaluation shared with training, and what became of it.

    Attributes:
        split: the evaluation split.
        checked: its questions before the check.
        same_question: questions that training asks too, apart from case, spacing and punctuation.
        same_context: questions for which one training question is answered from the same documents.
        shared_contexts: different documents of these.
        dropped: questions of either kind, taken out of the evaluation split.
        kept_with_shared_context: questions kept although some of their gold documents (not all) serve in training.
        kept_with_shared_group: questions kept although training has questions of their group.
    """

    split: str
    checked: int
    same_question: int
    same_context: int
    shared_contexts: int
    dropped: int
    kept_with_shared_context: int
    kept_with_shared_group: int


def rank(*parts: object) -> bytes:
    """Return the place of a name in a seeded order."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()


def group_of(question: Question) -> str:
    """Return what a split must not cut: the question's group, or the question where it stands alone."""
    return question.group or content_id(question.question)


def cut(questions: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Set a share of the groups aside, whole, and return training and evaluation questions in their order.

    Raises:
        DataError: there is one group only.
    """
    groups = sorted({group_of(question) for question in questions}, key=lambda group: rank("cut", seed, group))
    if len(groups) < 2:
        raise DataError(
            f"{len(questions)} questions of one group ({groups[0] if groups else 'none'}) cannot be cut in two",
            hint="give a second file with the evaluation questions: --source TRAIN --source EVALUATION",
        )
    aside = set(groups[: min(max(1, round(len(groups) * fraction)), len(groups) - 1)])
    train = [question for question in questions if group_of(question) not in aside]
    return train, [question for question in questions if group_of(question) in aside]


def draw(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """Return at most ``count`` questions in their order, drawn from every group in turn."""
    if count >= len(questions):
        return list(questions)
    groups: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        groups[group_of(question)].append(place)
    turns: list[tuple[int, bytes, int]] = []
    for group, places in groups.items():
        places.sort(key=lambda place: rank("draw", seed, questions[place].id))
        turns.extend((turn, rank("draw", seed, group), place) for turn, place in enumerate(places))
    turns.sort()
    return [questions[place] for place in sorted(place for _, _, place in turns[:count])]


def balance(members: Sequence[Sequence[Question]], count: int | None, seed: int) -> list[Question]:
    """Return equally many questions of every member, one after the other in turns; ``count`` in all.

    Without ``count`` the smallest member decides. A member that has fewer than its share leaves the rest to others.
    """
    quotas = [0] * len(members)
    left = count if count is not None else min(map(len, members)) * len(members)
    while left > 0 and (open_ := [i for i, member in enumerate(members) if quotas[i] < len(member)]):
        share = max(1, left // len(open_))
        for i in open_:
            taken = min(share, len(members[i]) - quotas[i], left)
            quotas[i] += taken
            left -= taken
    drawn = [draw(member, quota, seed) for member, quota in zip(members, quotas, strict=True)]
    longest = max(map(len, drawn), default=0)
    return [part[turn] for turn in range(longest) for part in drawn if turn < len(part)]


def keep_apart(train: Sequence[Question], evaluation: Sequence[Question], split: str) -> tuple[list[Question], Overlap]:
    """Drop from evaluation what stands in training: the same question, or a question answered from the same documents.

    Two questions are answered from the same documents if the gold documents of the evaluation question are all gold
    for one training question. For one paragraph a question (SQuAD) that is the shared context; where two documents
    are put together (HotpotQA), meeting one of them elsewhere in training is common and is counted, not dropped.
    """
    asked = {question_words(question.question) for question in train}
    groups = {group_of(question) for question in train}
    gold_sets: dict[str, list[frozenset[str]]] = defaultdict(list)
    for gold in {_gold(question) for question in train}:
        for key in gold:
            gold_sets[key].append(gold)
    kept: list[Question] = []
    contexts: set[str] = set()
    counts: Counter[str] = Counter()
    for question in evaluation:
        gold = _gold(question)
        same_question = question_words(question.question) in asked
        same_context = bool(gold) and any(gold <= other for other in gold_sets.get(min(gold), ()))
        counts["question"] += same_question
        counts["context"] += same_context
        if same_context:
            contexts |= gold
        if not same_question and not same_context:
            kept.append(question)
            counts["kept_context"] += any(key in gold_sets for key in gold)
            counts["kept_group"] += group_of(question) in groups
    overlap = Overlap(
        split,
        checked=len(evaluation),
        same_question=counts["question"],
        same_context=counts["context"],
        shared_contexts=len(contexts),
        dropped=len(evaluation) - len(kept),
        kept_with_shared_context=counts["kept_context"],
        kept_with_shared_group=counts["kept_group"],
    )
    return kept, overlap


def question_words(question: str) -> str:
    """Return a question's words: what a tokenised and an untokenised copy have in common."""
    return " ".join(re.findall(r"\w+", normalize_text(question)))


def _gold(question: Question) -> frozenset[str]:
    return frozenset(content_id(d.title, d.text) for d in question.documents if d.is_gold)


def collect_passages(
    splits: dict[str, list[Question]], passages: Iterable[Passage] = ()
) -> tuple[dict[str, list[Question]], list[Passage]]:
    """Return questions whose documents are passages of one list, in which each title and text stands once.

    A passage keeps its id; where two different ones have the same, the later gets the hash of its content.
    """
    by_content: dict[str, Passage] = {}
    taken: set[str] = set()

    def canonical(passage: Passage) -> Passage:
        key = content_id(passage.title, passage.text)
        if key not in by_content:
            identifier = passage.id if passage.id and passage.id not in taken else key
            by_content[key] = dataclasses.replace(passage, id=identifier)
            taken.add(identifier)
        return by_content[key]

    for passage in passages:
        canonical(passage)
    changed: dict[str, list[Question]] = {}
    for split, questions in splits.items():
        changed[split] = []
        for question in questions:
            documents: dict[str, Document] = {}
            for each in question.documents:
                same = canonical(Passage(each.id, each.title, each.text))
                found = dataclasses.replace(each, id=same.id, title=same.title, text=same.text)
                if same.id not in documents or (each.is_gold and not documents[same.id].is_gold):
                    documents[same.id] = found
            changed[split].append(dataclasses.replace(question, documents=tuple(documents.values())))
    return changed, list(by_content.values())
