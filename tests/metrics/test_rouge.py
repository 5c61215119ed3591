"""ROUGE-L against a slow loop, and against the library's own tokens where these are enough."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from ragtrain import metrics

WORDS = st.lists(st.sampled_from(["the", "Cat", "sat", "on-a", "mat.", "3.5", "--", "_", ""]), max_size=7).map(" ".join)


def longest_common(a: list[str], b: list[str]) -> int:
    @functools.cache
    def length(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return 1 + length(i + 1, j + 1) if a[i] == b[j] else max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_rouge_l_against_the_definition_and_the_library(prediction: str, answers: list[str]) -> None:
    written = tokenize(prediction, None)
    references = [words for words in (tokenize(answer, None) for answer in answers) if words]
    expected = float(not references and not written)
    for words in references:
        shared = longest_common(written, words)
        if shared:
            precision, recall = shared / len(written), shared / len(words)
            expected = max(expected, 2 * precision * recall / (precision + recall))
    found = metrics.rouge_l(prediction, answers)
    assert found == pytest.approx(expected)
    if references and written:
        assert found == pytest.approx(
            RougeScorer(["rougeL"])
            .score_multi([a for a in answers if tokenize(a, None)], prediction)["rougeL"]
            .fmeasure
        )


def test_letters_of_every_script_count() -> None:
    assert metrics.rouge_l("столица Москва", ["Москва"]) == pytest.approx(2 / 3)
    assert metrics.rouge_l("", [""]) == 1.0
    assert metrics.rouge_l("Oslo", [""]) == 0.0
