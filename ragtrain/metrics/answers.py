"""A predicted answer against the right ones, by SQuAD's normal form: equal, overlapping, or containing one."""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING

from ragtrain.metrics.words import normalize_answer

if TYPE_CHECKING:
    from collections.abc import Iterable


def _references(answers: Iterable[str]) -> list[str]:
    """Return the normalised references; where none has any content, the empty one, which asks for no answer."""
    return [reference for reference in map(normalize_answer, answers) if reference] or [""]


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """Return 1.0 if the prediction equals any reference after normalisation, else 0.0.

    References that normalise to nothing are left out; if none remains, the question has no answer and the empty
    prediction is the right one. Source: ``compute_exact`` and ``get_raw_scores`` of SQuAD's ``evaluate-v2.0.py``.
    """
    return float(normalize_answer(prediction) in _references(answers))


def token_f1(prediction: list[str], reference: list[str]) -> float:
    """Return ``2PR / (P + R)`` over two multisets of words; if either has none, 1 when both have none and else 0."""
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
    return max(token_f1(tokens, reference.split()) for reference in _references(answers))


def contains(prediction: str, answers: Iterable[str]) -> float:
    """Return 1.0 if any reference stands in the prediction as a run of whole words, both in SQuAD's normal form, else 0.0.

    What exact match calls right contains an answer as well. References that normalise to nothing are left out; if none
    remains, only the empty prediction is right. A predicted list of many candidates contains an answer easily: read it
    beside F1. In scripts without spaces between words a run of words is rarely a word.
    """
    words = normalize_answer(prediction)
    return float(any(_stands_in(reference, words) for reference in _references(answers)))


def _stands_in(reference: str, words: str) -> bool:
    # An empty reference is the one of a question without an answer: only an empty prediction gives it.
    return f" {reference} " in f" {words} " if reference else not words


def recall_em(prediction: str, groups: Iterable[Iterable[str]]) -> float:
    """Return the share of groups of answers of which the prediction contains one: the recall of a long answer.

    A group is what ASQA calls the short answers of one reading of an ambiguous question: aliases of one thing that the
    prediction has to say. Groups in which nothing is left after normalisation are left out; nan where no group is left.
    Source: the STR-EM of Stelmakh et al., EMNLP 2022, which looks for characters; here it is whole words, so that
    "us" is not found in "house".
    """
    words = normalize_answer(prediction)
    left = [some for group in groups if (some := [text for text in map(normalize_answer, group) if text])]
    if not left:
        return math.nan
    return sum(any(_stands_in(text, words) for text in group) for group in left) / len(left)
