"""Documents beside those of a question: what a model that is to choose has to choose from."""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from typing import TYPE_CHECKING

from ragtrain.data.splits import group_of
from ragtrain.metrics import has_answer
from ragtrain.records import Document, Question, content_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Documents of other groups that are looked at for each one wanted, and in any case.
_TRIES, _LEAST_TRIES = 8, 32


class Beside:
    """The documents of one split of a set, by the groups of their questions.

    A document that is added to a question is none of its own, holds none of its answers, and comes from a question of the
    same group (article) if there is one, since those are the hardest to tell from the right one.
    """

    def __init__(self, questions: Iterable[Question], seed: int) -> None:
        """Take the questions whose documents are drawn from, and the seed of the draws."""
        self._seed = seed
        self._groups: dict[str, dict[str, Document]] = defaultdict(dict)
        everything: dict[str, Document] = {}
        for question in questions:
            for document in question.documents:
                key = content_id(document.title, document.text)
                self._groups[group_of(question)].setdefault(key, document)
                everything.setdefault(key, document)
        self._all = list(everything.items())

    def fill(self, question: Question, count: int) -> Question:
        """Return a question with documents added until it has ``count``; one without any stays so."""
        missing = count - len(question.documents)
        if not question.documents or missing <= 0:
            return question
        rng = random.Random(f"beside/{self._seed}/{question.id}")
        near = list(self._groups[group_of(question)].items())
        far = rng.sample(self._all, min(len(self._all), max(_LEAST_TRIES, _TRIES * missing)))
        candidates = [*rng.sample(near, len(near)), *far]
        added = _chosen(question, candidates, missing)
        return dataclasses.replace(question, documents=(*question.documents, *added))


def filled(questions: Sequence[Question], pool: Iterable[Question], count: int, seed: int) -> list[Question]:
    """Return questions with ``count`` documents at least, as far as they have any.

    Args:
        questions: to be filled.
        pool: questions of the same split; each is filled from those of its own set.
        count: documents that are wanted.
        seed: of the draws.
    """
    members: dict[str, list[Question]] = defaultdict(list)
    for question in pool:
        members[question.dataset].append(question)
    beside = {name: Beside(member, seed) for name, member in members.items()}
    return [beside[question.dataset].fill(question, count) for question in questions]


def _chosen(question: Question, candidates: Sequence[tuple[str, Document]], count: int) -> list[Document]:
    """Return the first ``count`` candidates that answer nothing and differ from each other and the question's documents."""
    taken = {content_id(document.title, document.text) for document in question.documents}
    ids = {document.id for document in question.documents}
    added: list[Document] = []
    for key, document in candidates:
        if len(added) == count:
            break
        if key in taken or has_answer(question.answers, document.text):
            continue
        taken.add(key)
        # What another question calls its document 3 is not what this one calls so.
        own = key if document.id in ids else document.id
        ids.add(own)
        added.append(dataclasses.replace(document, id=own, is_gold=False, score=None))
    return added
