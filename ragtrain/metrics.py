"""Numbers about answers and retrieval: exact match, F1, answer-recall, and intervals for all of them.

Nothing here imports torch, and numpy is imported by the bootstrap only, so that a command's help stays quick. All rates
are fractions between 0 and 1; tables turn them into percent.
"""

from __future__ import annotations

import collections
import functools
import math
import re
import statistics
import string
import unicodedata
from typing import TYPE_CHECKING, Any

import regex

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
# Cells of one chunk of resampled counts: 4 M of 8 bytes, so that a bootstrap never holds more than some 32 MB.
_CHUNK_CELLS = 1 << 22
# Distinct values beyond which drawing each value itself is quicker than drawing how often each comes.
_MANY_DISTINCT = 256


def normalize_answer(text: str) -> str:
    """Return an answer as SQuAD compares it: lower case, no ASCII punctuation, no English articles, single spaces.

    Source: the official ``evaluate-v2.0.py`` of SQuAD, function ``normalize_answer``; the order of the four steps is
    part of the rule ("a.n" becomes the article "an" and vanishes).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _references(answers: Iterable[str]) -> list[str]:
    """Return the normalised references; where none has any content, the empty one, which asks for no answer."""
    return [reference for reference in map(normalize_answer, answers) if reference] or [""]


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """Return 1.0 if the prediction equals any reference after normalisation, else 0.0.

    References that normalise to nothing are left out; if none remains, the question has no answer and the empty
    prediction is the right one. Source: ``compute_exact`` and ``get_raw_scores`` of SQuAD's ``evaluate-v2.0.py``.
    """
    return float(normalize_answer(prediction) in _references(answers))


def _token_f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    shared = sum((collections.Counter(prediction) & collections.Counter(reference)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def f1(prediction: str, answers: Iterable[str]) -> float:
    """Return the greatest token F1 of the prediction with any reference, between 0 and 1.

    ``F1 = 2PR / (P + R)`` over the multisets of normalised tokens. If either side has no token, it is 1 when both have
    none and else 0. Source: ``compute_f1`` and ``get_raw_scores`` of SQuAD's ``evaluate-v2.0.py``.
    """
    tokens = normalize_answer(prediction).split()
    return max(_token_f1(tokens, reference.split()) for reference in _references(answers))


class _Words:
    """Words as ROUGE counts them, in any script: lower-cased runs of letters, digits and marks."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return [str(word) for word in regex.findall(r"[\p{L}\p{N}\p{M}]+", text.lower())]


@functools.cache
def _rouge() -> Any:  # noqa: ANN401 - the library has no types
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk along, which takes a second

    return RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(prediction: str, answers: Iterable[str]) -> float:
    """Return the greatest ROUGE-L of the prediction with any reference: F of their longest common subsequence, 0 to 1.

    Words are not stemmed. If either side has no word, it is 1 when both have none and else 0, as with ``f1``; references
    without a word are left out where others have one. Source: C.-Y. Lin, ACL workshop 2004; computed by rouge-score, with
    letters of every script where that library knows a to z only.
    """
    references = [answer for answer in answers if _Words.tokenize(answer)]
    if not references or not _Words.tokenize(prediction):
        return float(not references and not _Words.tokenize(prediction))
    return max(float(_rouge().score(reference, prediction)["rougeL"].fmeasure) for reference in references)


@functools.lru_cache(maxsize=1 << 14)  # neighbouring questions are asked about the same passages
def _token_line(text: str) -> str:
    """Return the uncased tokens between single spaces, spaces at both ends: token runs become substrings of it."""
    tokens = _TOKENS.findall(unicodedata.normalize("NFD", text))
    return " " + "".join(token.lower() + " " for token in tokens)


def has_answer(answers: Iterable[str], text: str) -> bool:
    """Return whether any answer occurs in the text as a run of whole tokens, whatever the case.

    A token is a run of letters, digits and marks, or any other single character that is neither a separator nor a
    control character, after Unicode decomposition (NFD). Source: ``has_answer`` with ``SimpleTokenizer`` of DPR's
    retrieval evaluation (match type "string"). What differs: an answer without any token is found nowhere, where DPR's
    loop finds it everywhere.
    """
    line = _token_line(text)
    return any(len(answer) > 1 and answer in line for answer in map(_token_line, answers))


def first_hit(answers: Sequence[str], texts: Iterable[str]) -> int | None:
    """Return the rank of the first text that holds an answer, counted from 1, or None if no text does."""
    wanted = [line for line in map(_token_line, answers) if len(line) > 1]
    for rank, text in enumerate(texts, 1):
        line = _token_line(text)
        if any(answer in line for answer in wanted):
            return rank
    return None


def answer_matrix(answers: Sequence[Sequence[str]], texts: Sequence[str]) -> list[list[bool]]:
    """Return for each question (outer list) which texts hold one of its answers, as ``has_answer`` says."""
    lines = [_token_line(text) for text in texts]
    wanted = [[line for line in map(_token_line, references) if len(line) > 1] for references in answers]
    return [[any(answer in line for answer in own) for line in lines] for own in wanted]


def answer_recall(first_hits: Sequence[int | None], k: int) -> float:
    """Return the share of questions with an answer among the first ``k`` passages, from the ranks of ``first_hit``."""
    if not first_hits:
        return math.nan
    return sum(rank is not None and rank <= k for rank in first_hits) / len(first_hits)


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a rate of ``successes`` out of ``n``.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` with ``p = successes/n`` and z the normal quantile of
    ``(1 + confidence)/2``; (0, 1) when n is 0. Source: E. B. Wilson, JASA 22 (1927), p. 209.

    Raises:
        ValueError: if ``successes`` is not between 0 and n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n}")
    if n == 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends are exact at 0 and n; elsewhere rounding must not carry them out of [0, 1].
    low = 0.0 if successes == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + spread) / scale)
    return low, high


def _resampled_means(values: NDArray[np.float64], samples: int, seed: int) -> NDArray[np.float64]:
    """Return the means of ``samples`` resamples of the values: (samples,).

    Drawing n values with replacement is drawing how often each *distinct* value comes, which is multinomial: the same
    distribution for far fewer random numbers where values repeat (0/1 scores, and their differences).
    """
    import numpy as np

    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    if len(distinct) > _MANY_DISTINCT:
        chunk = max(1, _CHUNK_CELLS // len(values))
        for start in range(0, samples, chunk):
            rows = min(chunk, samples - start)
            places = generator.integers(0, len(values), (rows, len(values)), dtype=np.int32)
            means[start : start + rows] = values[places].mean(1)
        return means
    chunk = max(1, _CHUNK_CELLS // len(distinct))
    for start in range(0, samples, chunk):
        stop = min(start + chunk, samples)
        drawn = generator.multinomial(len(values), counts / len(values), size=stop - start)
        means[start:stop] = drawn @ distinct / len(values)
    return means


def bootstrap_mean(
    values: Sequence[float], samples: int = 10000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``values``; (nan, nan) when there are none.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    import numpy as np

    if len(values) == 0:
        return math.nan, math.nan
    means = _resampled_means(np.asarray(values, dtype=np.float64), samples, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], samples: int = 10000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of ``b - a`` over the same questions, and its percentile bootstrap interval: (delta, low, high).

    Questions are resampled, each with both its scores, so that what makes a question hard for both runs cancels.
    Source: Efron and Tibshirani (1993), section 13.3, on the differences; Koehn, EMNLP 2004, section 4.

    Raises:
        ValueError: if the two are not of one length.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired")
    differences = [right - left for left, right in zip(a, b, strict=True)]
    if not differences:
        return math.nan, math.nan, math.nan
    low, high = bootstrap_mean(differences, samples, seed, confidence)
    return math.fsum(differences) / len(differences), low, high


def gold_ranks(ranking: Iterable[int], gold: Collection[int]) -> list[int]:
    """Return the ranks, counted from 1 and rising, of the gold items that a ranking holds.

    What the ranking does not hold has no rank here; the functions below take it in by the number of gold items.
    """
    wanted = set(gold)
    return [rank for rank, item in enumerate(ranking, 1) if item in wanted]


def recall_at(ranks: Iterable[int], n_gold: int, k: int) -> float:
    """Return the share of a question's gold items among the first ``k``: true recall of the set; nan without gold.

    ``|gold and first k| / n_gold``, as HippoRAG and GFM-RAG's retrieval evaluation count it. ``n_gold`` counts items that
    are in no ranking too, such as documents that the graph does not have.

    Args:
        ranks: of ``gold_ranks``.
        n_gold: gold items of the question.
        k: how many places count.
    """
    return sum(rank <= k for rank in ranks) / n_gold if n_gold else math.nan


def filtered_ranks(ranks: Iterable[int]) -> list[int]:
    """Return the rank of each gold item among the items that are not gold: those above it that are gold do not count.

    Source: ranking of GFM-RAG's training (``utils.evaluate``) and of link prediction (Bordes et al. 2013). Gold items at
    1 and 3 have the filtered ranks 1 and 2, so that hits@2 is 1 where recall@2 is 0.5.
    """
    return [rank - above for above, rank in enumerate(sorted(ranks))]


def hits_at(ranks: Iterable[int], n_gold: int, k: int) -> float:
    """Return the share of gold items with a (filtered) rank of at most ``k``; nan without gold."""
    return recall_at(ranks, n_gold, k)


def reciprocal_rank(ranks: Iterable[int], n_gold: int) -> float:
    """Return the mean of ``1 / rank`` over gold items, 0 for those without a rank; nan without gold.

    With ``filtered_ranks`` this is the MRR that link prediction and GFM-RAG report; with ``ranks[:1]`` and ``n_gold`` 1 it is
    the one of question answering, of the first gold item.
    """
    return math.fsum(1 / rank for rank in ranks) / n_gold if n_gold else math.nan
