"""What predictions contain, what they take from passages, and where gold items stand: against slow rules and known values."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain import metrics

WORDS = st.sampled_from(["the", "A", "cat", "cat.", "CAT", "red", "re-d", "us", "house", "--", "東京", "é", "", "\n"])
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


def words_of(text: str) -> list[str]:
    return metrics.normalize_answer(text).split()


def slow_run(wanted: list[str], words: list[str]) -> bool:
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1))


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_contains_is_a_run_of_words(prediction: str, answers: list[str]) -> None:
    left = [words for words in map(words_of, answers) if words]
    expected = any(slow_run(words, words_of(prediction)) for words in left) if left else not words_of(prediction)
    assert metrics.contains(prediction, answers) == expected
    assert metrics.contains(prediction, answers) >= metrics.exact_match(prediction, answers)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("It is the Eiffel Tower, in Paris.", ["eiffel tower"], 1.0),
        ("a house", ["us"], 0.0),
        ("the U.S.", ["us"], 1.0),  # what the normal form cannot tell apart
        ("not Paris", ["Paris"], 1.0),  # nor does it read
        ("東京都", ["東京"], 0.0),
        ("", ["Oslo"], 0.0),
        ("", [], 1.0),
        ("Oslo", [], 0.0),
        ("Oslo", ["the", "oslo"], 1.0),
    ],
)
def test_contains_known_values(prediction: str, answers: list[str], expected: float) -> None:
    assert metrics.contains(prediction, answers) == expected


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.lists(TEXTS, max_size=3), max_size=3))
def test_recall_em_is_the_share_of_groups(prediction: str, groups: list[list[str]]) -> None:
    asked = [group for group in groups if any(map(words_of, group))]
    found = [metrics.contains(prediction, group) for group in asked]
    assert metrics.recall_em(prediction, groups) == pytest.approx(
        sum(found) / len(found) if found else math.nan, nan_ok=True
    )


def test_all_scores_of_an_answer() -> None:
    alone = metrics.answer_scores("the red cat", ["red cat", "dog"])
    assert {name: alone[name] for name in ("em", "f1", "contains", "recall_em")} == dict.fromkeys(
        ("em", "f1", "contains", "recall_em"), 1.0
    )
    assert set(alone) == {"em", "f1", "contains", "recall_em", "rouge_l", "bleu", "chrf"}
    assert metrics.answer_scores("the red cat", ["red cat", "dog"], [["red cat"], ["dog"]])["recall_em"] == 0.5
    assert "recall_em" not in metrics.answer_scores("", [])
    assert all(score == 1 for score in metrics.answer_scores("", []).values())


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_grounding_against_slow_rules(prediction: str, texts: list[str]) -> None:
    words, left = words_of(prediction), [word for text in texts for word in words_of(text)]
    if not words:
        assert math.isnan(metrics.k_precision(prediction, texts))
        assert math.isnan(metrics.answer_in_context(prediction, texts))
        return
    held = 0
    for word in words:
        if word in left:
            left.remove(word)
            held += 1
    assert metrics.k_precision(prediction, texts) == pytest.approx(held / len(words))
    whole = any(slow_run(words, words_of(text)) for text in texts)
    assert metrics.answer_in_context(prediction, texts) == whole
    if whole:
        assert metrics.k_precision(prediction, texts) == 1


def test_answer_in_context_does_not_cross_passages() -> None:
    assert metrics.answer_in_context("red cat", ["a red", "cat sat"]) == 0
    assert metrics.k_precision("red cat", ["a red", "cat sat"]) == 1


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ('It says "the red cat" and “Oslo”.', ["the red cat", "Oslo"]),
        ("„so“ und „so”, «ainsi», 「東京」", ["so", "so", "ainsi", "東京"]),
        ("##begin_quote##one\ntwo##end_quote## so", ["one\ntwo"]),
        ('a 12" pipe and a 6" pipe', []),
        ("the dog's and the cats' food", []),
        ('"open and\nnot closed"', []),
        ('""', []),
        ("", []),
    ],
)
def test_quoted_spans(text: str, spans: list[str]) -> None:
    assert metrics.quoted_spans(text) == spans


def test_quoted_support_known_values() -> None:
    texts = ["The red cat sat on the mat.", "Oslo is a city."]
    assert metrics.quoted_support('"the Red Cat" and "Oslo"', texts) == 1
    assert metrics.quoted_support('"the red cat" and "the dog"', texts) == 0.5
    assert metrics.quoted_support('"red cat ... on the mat"', texts) == 1
    assert metrics.quoted_support('"red cat […] is a city"', texts) == 0
    assert metrics.quoted_support('"mat Oslo"', texts) == 0
    assert math.isnan(metrics.quoted_support('nothing, or "...", or "the"', texts))
    assert metrics.quoted_support('"the red cat"', []) == 0


def test_grounding_scores_leave_out_what_is_not_defined() -> None:
    assert metrics.grounding_scores("cat", []) == {}
    assert metrics.grounding_scores("", ["cat"]) == {}
    assert metrics.grounding_scores("cat", ["a cat"]) == {"k_precision": 1.0, "answer_in_context": 1.0}
    assert set(metrics.grounding_scores('"cat"', ["a cat"])) == {"k_precision", "answer_in_context", "quoted_support"}


@given(st.permutations(range(6)), st.sets(st.integers(0, 7), max_size=5), st.integers(1, 8))
def test_ranking_scores_against_the_definitions(ranking: list[int], gold: set[int], k: int) -> None:
    """Items 6 and 7 are in no ranking. The ideal gain is the greatest of all orders of gold items and the rest."""
    scores = metrics.ranking_scores(ranking, gold, (k,))
    if not gold:
        assert scores == {}
        assert math.isnan(metrics.ndcg_at([], 0, k))
        assert math.isnan(metrics.any_hit_at([], 0, k))
        return

    def gain(order: list[int]) -> float:
        return sum((item in gold) / math.log2(place + 2) for place, item in enumerate(order[:k]))

    held = len(gold & set(ranking[:k]))
    assert scores[f"supporting_recall@{k}"] == pytest.approx(held / len(gold))
    assert scores[f"hits@{k}"] == (held > 0)
    everything = sorted(gold) + [item for item in range(8) if item not in gold]
    assert scores[f"ndcg@{k}"] == pytest.approx(gain(ranking) / gain(everything))
    first = next((place for place, item in enumerate(ranking, 1) if item in gold), None)
    assert scores["mrr"] == pytest.approx(1 / first if first else 0)


def test_no_order_gains_more_than_gold_first() -> None:
    gold, items = {1, 4}, range(5)
    best = max(metrics.ndcg_at(metrics.gold_ranks(order, gold), 2, 3) for order in itertools.permutations(items))
    assert best == 1
    assert metrics.ndcg_at([1, 2], 2, 3) == 1
    assert metrics.ndcg_at([3], 1, 3) == pytest.approx(0.5)
    assert metrics.ndcg_at([1], 2, 1) == 1
