"""All scores of one prediction, by SQuAD's rules or by those of another benchmark: ``--compat squad|kilt|ragfit``.

squad    what the functions of this package do: EM and F1 of SQuAD's ``evaluate-v2.0.py``, the rest as described there
kilt     EM, F1 and ROUGE-L of KILT's ``eval_downstream.py``; R-precision and recall@k of its ``eval_retrieval.py``
ragfit   EM, F1, StringEM and RecallEM of RAG-FiT's ``evaluation/metrics.py``, ROUGE-L as it takes it from ``evaluate``

What a benchmark has no rule for is scored as under ``squad``: questions without an answer too, over which the scripts of the
other two would stop. KILT's refuses empty predictions as well; they are wrong here.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Literal

from ragtrain.metrics import answers as by_squad
from ragtrain.metrics import grounding, overlap, rankings
from ragtrain.metrics.words import has_answer, has_token, normalize_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence

Compat = Literal["squad", "kilt", "ragfit"]
Score = Literal["em", "f1", "contains", "rouge_l", "bleu", "chrf"]


def score(name: Score, prediction: str, answers: Sequence[str], compat: Compat = "squad") -> float:
    """Return one score of a prediction against right answers, each of which will do, 0 to 1.

    Args:
        name: of the score.
        prediction: the answer given.
        answers: right answers; none means that no answer is right.
        compat: whose rules count.
    """
    if not (any(map(str.strip, answers)) if compat == "kilt" else answers):
        return _SQUAD[name](prediction, answers)
    return _RULES[compat].get(name, _SQUAD[name])(prediction, answers)


def answer_scores(
    prediction: str, answers: Sequence[str], groups: Sequence[Sequence[str]] = (), compat: Compat = "squad"
) -> dict[str, float]:
    """Return all scores of a prediction against right answers: those of ``score``, and those of groups.

    Of groups, which ASQA has, ``recall_em`` is the share that the prediction gives; under ``ragfit`` ``recall_em`` is that
    program's RecallEM, which knows no groups, and its StringEM comes as ``string_em``. What is not defined is left out.

    Args:
        prediction: the answer given.
        answers: right answers, each of which will do; without groups, they are one.
        groups: answers of which one of each group has to be given.
        compat: whose rules count.
    """
    scores: dict[str, float] = {name: score(name, prediction, answers, compat) for name in _SQUAD}
    if compat == "ragfit":
        recalls = {"recall_em": ragfit_recall_em(prediction, answers)}
        return {**scores, **recalls, **({"string_em": _ragfit_string_em(prediction, groups)} if groups else {})}
    return _defined({**scores, "recall_em": by_squad.recall_em(prediction, groups or (answers,))})


def grounding_scores(prediction: str, texts: Sequence[str]) -> dict[str, float]:
    """Return what a prediction takes from its passages: ``k_precision``, ``answer_in_context``, ``quoted_support``.

    What is not defined for it is left out: the first two of an empty prediction, the third where nothing is quoted.

    Args:
        prediction: the answer given.
        texts: the passages it was written from, with titles where the model read titles; all are left out without any.
    """
    if not texts:
        return {}
    rules = (grounding.k_precision, grounding.answer_in_context, grounding.quoted_support)
    return _defined({rule.__name__: rule(prediction, texts) for rule in rules})


def ranking_scores(ranking: Sequence[Hashable], gold: Collection[Hashable], depths: Sequence[int]) -> dict[str, float]:
    """Return the scores of a ranking against the documents that support the answer; nothing without such documents.

    ``supporting_recall@k``, ``hits@k`` (any of them), ``ndcg@k``, and ``mrr`` of the first of them in the whole ranking.

    Args:
        ranking: what was found, best first, each item once.
        gold: the supporting documents, those included that could not be found.
        depths: every k.
    """
    wanted = set(gold)
    if not wanted:
        return {}
    ranks = [rank for rank, item in enumerate(ranking, 1) if item in wanted]
    scores = {"mrr": rankings.reciprocal_rank(ranks[:1], 1)}
    for k in depths:
        scores[f"supporting_recall@{k}"] = rankings.recall_at(ranks, len(wanted), k)
        scores[f"hits@{k}"] = rankings.any_hit_at(ranks, len(wanted), k)
        scores[f"ndcg@{k}"] = rankings.ndcg_at(ranks, len(wanted), k)
    return scores


def _defined(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: score for name, score in scores.items() if not math.isnan(score)}


# --- KILT -------------------------------------------------------------------------------------------------------------


def _best_of(rule: Callable[[str, str], float], prediction: str, answers: Iterable[str]) -> float:
    return max(rule(prediction, answer) for answer in answers)


def _plain_em(prediction: str, answer: str) -> float:
    return float(normalize_answer(prediction) == normalize_answer(answer))


def _plain_f1(prediction: str, answer: str) -> float:
    """Return the token F1 as SQuAD v1.1, KILT and RAG-FiT have it: 0 where no word is shared, be both sides empty."""
    words = normalize_answer(prediction).split()
    return by_squad.token_f1(words, normalize_answer(answer).split()) if words else 0.0


def _kilt(rule: Callable[[str, str], float], prediction: str, answers: Iterable[str]) -> float:
    """Apply KILT's rule: blank answers do not count, all texts are stripped, and the best answer counts."""
    prediction = prediction.strip()
    left = [stripped for answer in answers if (stripped := answer.strip())]
    # The script refuses files with empty predictions.
    return _best_of(rule, prediction, left) if prediction else 0.0


def _kilt_rouge(prediction: str, answer: str) -> float:
    """Return ROUGE-L of the package ``rouge`` 1.0.1, which KILT calls: of *sets* of words, sentence by sentence.

    Sentences end at every full stop, words at white space; nothing is normalised. For each sentence of the answer, the words
    of its longest common subsequences with all sentences of the prediction are put together, and each distinct word counts
    once, over the distinct words of either side. 0 where a side has no sentence (the package raises an error).
    """
    written, wanted = _sentences(prediction), _sentences(answer)
    if not written or not wanted:
        return 0.0
    common: set[str] = set()
    for right in wanted:
        for left in written:
            common |= _common_words(right, left)
    recall = len(common) / len({word for sentence in wanted for word in sentence})
    precision = len(common) / len({word for sentence in written for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    # A sentence of white space has one word, the empty one: so the package splits it.
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _common_words(right: Sequence[str], left: Sequence[str]) -> set[str]:
    """Return the words of one longest common subsequence: where there are several, the one that the package finds."""
    lengths = [[0] * (len(left) + 1) for _ in range(len(right) + 1)]
    for i, word in enumerate(right, 1):
        for j, other in enumerate(left, 1):
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if word == other else max(lengths[i - 1][j], lengths[i][j - 1])
    i, j, words = len(right), len(left), set()
    while i and j:
        if right[i - 1] == left[j - 1]:
            words.add(right[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def kilt_r_precision(ranking: Iterable[str], evidence: Sequence[Collection[str]]) -> float:
    """Return KILT's R-precision: of a set of R gold pages, the share among the first R pages found; the best set counts.

    Args:
        ranking: ids of pages, best first; a page found again does not count.
        evidence: sets of ids of pages, any one of which proves the answer; nan without any page.
    """
    found = list(dict.fromkeys(map(str.strip, ranking)))
    sets = [{page.strip() for page in pages} for pages in evidence if pages]
    return max((len(pages & set(found[: len(pages)])) / len(pages) for pages in sets), default=math.nan)


def kilt_recall_at(ranking: Iterable[str], evidence: Sequence[Collection[str]], k: int) -> float:
    """Return KILT's recall@k: the share of evidence sets of which the last page stands among the first k places.

    A set takes one place, that of its last page; what was found of an unfinished set takes one place, that of the latest.
    KILT's script demands rankings long enough for k places; a shorter one simply finds less here.

    Args:
        ranking: ids of pages, best first; a page found again does not count.
        evidence: sets of ids of pages, any one of which proves the answer; the same set twice is one, and sets without
            pages do not count. nan without any.
        k: places that count.
    """
    distinct = dict.fromkeys(frozenset(page.strip() for page in pages) for pages in evidence if pages)
    if not distinct:
        return math.nan
    left = {pages: set(pages) for pages in distinct}
    places: list[object] = []
    for page in dict.fromkeys(map(str.strip, ranking)):
        own = [pages for pages in left if page in left[pages]]
        for pages in own:
            if pages in places:
                places.remove(pages)
            left[pages].discard(page)
            places.append(pages if left[pages] else True)
        if not own:
            places.append(False)
    return places[:k].count(True) / len(distinct)


# --- RAG-FiT ----------------------------------------------------------------------------------------------------------


def ragfit_recall_em(prediction: str, answers: Sequence[str]) -> float:
    """Return RAG-FiT's RecallEM: DPR's rule on the prediction, by which an answer without a token is everywhere."""
    return float(not all(map(has_token, answers)) or has_answer(answers, prediction))


def _ragfit_string_em(prediction: str, groups: Sequence[Sequence[str]]) -> float:
    """Return RAG-FiT's StringEM: answers *as they are* are looked for in the normalised prediction, as characters."""
    text = normalize_answer(prediction)
    return sum(any(answer in text for answer in group) for group in groups) / len(groups)


@functools.cache
def _ragfit_scorer() -> Any:  # noqa: ANN401 - the library has no types
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # Named, because a scorer that takes its default says so in the log, and gives the root logger a handler to say it.
    return RougeScorer(["rougeL"], tokenizer=DefaultTokenizer())


def _ragfit_rouge(prediction: str, answer: str) -> float:
    """Return rouge-score's ROUGE-L with its own tokens: runs of a to z and digits."""
    return float(_ragfit_scorer().score(answer, prediction)["rougeL"].fmeasure)


_SQUAD: Mapping[Score, Callable[[str, Sequence[str]], float]] = {
    "em": by_squad.exact_match,
    "f1": by_squad.f1,
    "contains": by_squad.contains,
    "rouge_l": overlap.rouge_l,
    "bleu": overlap.bleu,
    "chrf": overlap.chrf,
}
_RULES: Mapping[Compat, Mapping[Score, Callable[[str, Sequence[str]], float]]] = {
    "squad": {},
    "kilt": {
        "em": functools.partial(_kilt, _plain_em),
        "f1": functools.partial(_kilt, _plain_f1),
        "rouge_l": functools.partial(_kilt, _kilt_rouge),
    },
    "ragfit": {
        "em": functools.partial(_best_of, _plain_em),
        "f1": functools.partial(_best_of, _plain_f1),
        "rouge_l": functools.partial(_best_of, _ragfit_rouge),
    },
}
