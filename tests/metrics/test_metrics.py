"""The metrics against slow loops written from the rules, closed forms and exact enumeration."""

from __future__ import annotations

import itertools
import math
import random
import re
import statistics
import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain import metrics

# Words that meet every rule: articles inside and outside words, punctuation of all kinds, marks, other scripts, nothing.
# fmt: off
WORDS = st.sampled_from([
    "a", "An", "THE", "A", "theatre", "anthem", "a.n", "the-end", "“the”", "Oslo", "oslo.", "U.S.A.", "don't", "1,234",
    "3.14", "½", "\u00e9", "e\u0301", "É", "İ", "ß", "ﬁ", "R&B", "--", "東京", "नमस्ते", "👍", "\u200b", "\u00a0", "\n", " ", "",
])
# fmt: on
# Assigned characters only: Python and the regex package may know different versions of Unicode.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
TEXTS = st.one_of(
    st.lists(WORDS, max_size=6).map(" ".join),
    st.lists(WORDS, max_size=6).map("".join),
    st.text(CHARACTERS, max_size=12),
)


def slow_normalize(text: str) -> str:
    """SQuAD's four steps, one character and one word at a time."""
    kept = ""
    for character in text.lower():
        if character not in string.punctuation:
            kept += character
    # An article is bounded by word boundaries, not by spaces.
    words, spaced = re.split(r"(\W+)", kept), ""
    for word in words:
        spaced += " " if word in ("a", "an", "the") else word
    return " ".join(spaced.split())


def slow_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """EM and F1 as get_raw_scores of evaluate-v2.0.py has them, with nested loops in place of counters."""
    references = [answer for answer in answers if slow_normalize(answer)]
    if not references:
        references = [""]
    best_exact, best_f1 = 0.0, 0.0
    for reference in references:
        best_exact = max(best_exact, float(slow_normalize(prediction) == slow_normalize(reference)))
        guess, gold = slow_normalize(prediction).split(), slow_normalize(reference).split()
        if len(guess) == 0 or len(gold) == 0:
            best_f1 = max(best_f1, float(guess == gold))
            continue
        left, shared = list(gold), 0
        for token in guess:
            if token in left:
                left.remove(token)
                shared += 1
        if shared:
            precision, recall = shared / len(guess), shared / len(gold)
            best_f1 = max(best_f1, 2 * precision * recall / (precision + recall))
    return best_exact, best_f1


def slow_tokens(text: str) -> list[str]:
    """DPR's SimpleTokenizer, one character at a time by its Unicode category."""
    tokens: list[str] = []
    inside = False
    for character in unicodedata.normalize("NFD", text):
        category = unicodedata.category(character)[0]
        if category in "LNM":
            tokens = [*tokens[:-1], tokens[-1] + character] if inside else [*tokens, character]
            inside = True
        else:
            inside = False
            if category not in "ZC":
                tokens.append(character)
    return [token.lower() for token in tokens]


def slow_has_answer(answers: list[str], text: str) -> bool:
    """DPR's has_answer: every offset compared, less the answers without tokens."""
    passage = slow_tokens(text)
    for answer in answers:
        wanted = slow_tokens(answer)
        for start in range(len(passage) - len(wanted) + 1):
            if wanted and passage[start : start + len(wanted)] == wanted:
                return True
    return False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a.n", ""),
        ("U.S.A.", "usa"),
        ("theatre of the absurd", "theatre of absurd"),
        ("“the”", "“ ”"),
        ("An", ""),
        ("\u00a0Oslo\n", "oslo"),
    ],
)
def test_normalize_answer_follows_the_four_steps_in_order(text: str, expected: str) -> None:
    assert metrics.normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("the Eiffel tower", ["Eiffel Tower."], 1.0, 1.0),
        ("tower of Eiffel", ["Eiffel Tower"], 0.0, 0.8),
        ("Paris", ["London", "Paris, France", "Rome"], 0.0, 2 / 3),
        ("b b c", ["b c c"], 0.0, 2 / 3),
        ("", [], 1.0, 1.0),
        ("the", ["a"], 1.0, 1.0),
        ("Oslo", [], 0.0, 0.0),
        ("", ["Oslo"], 0.0, 0.0),
        ("", ["the", "Oslo"], 0.0, 0.0),
        ("...", ["!"], 1.0, 1.0),
    ],
)
def test_exact_match_and_f1_known_values(prediction: str, answers: list[str], exact: float, overlap: float) -> None:
    assert metrics.exact_match(prediction, answers) == exact
    assert metrics.f1(prediction, answers) == pytest.approx(overlap, abs=1e-12)


@settings(max_examples=400, deadline=None)
@given(prediction=TEXTS, answers=st.lists(TEXTS, max_size=4))
def test_exact_match_and_f1_equal_the_slow_rules(prediction: str, answers: list[str]) -> None:
    exact, overlap = slow_scores(prediction, answers)
    assert metrics.exact_match(prediction, answers) == exact
    assert metrics.f1(prediction, answers) == pytest.approx(overlap, abs=1e-12)


@settings(max_examples=400, deadline=None)
@given(answers=st.lists(TEXTS, max_size=3), text=TEXTS, more=TEXTS)
def test_has_answer_equals_the_slow_rules(answers: list[str], text: str, more: str) -> None:
    assert metrics.has_answer(answers, text) == slow_has_answer(answers, text)
    # A passage made around an answer, so that hits are common too.
    for answer in answers:
        around = f"{text} {answer} {more}"
        assert metrics.has_answer([answer], around) == slow_has_answer([answer], around)


@pytest.mark.parametrize(
    ("answers", "text", "expected"),
    [
        (["New York"], "in NEW YORK, 1900", True),
        (["York"], "a Yorkshire man", False),
        (["1,234"], "some 1,234 men", True),
        (["1234"], "some 1,234 men", False),
        (["café"], "the cafe\u0301 there", True),
        (["cafe"], "the café there", False),
        (["U.S."], "the U.S. army", True),
        (["", "  "], "anything", False),
        ([], "anything", False),
        (["Oslo"], "", False),
        (["b c"], "a b\u200b c", True),
    ],
)
def test_has_answer_known_values(answers: list[str], text: str, expected: bool) -> None:
    assert metrics.has_answer(answers, text) is expected
    assert slow_has_answer(answers, text) is expected


@settings(max_examples=200, deadline=None)
@given(answers=st.lists(TEXTS, max_size=2), texts=st.lists(TEXTS, max_size=5))
def test_first_hit_is_the_first_rank_of_has_answer(answers: list[str], texts: list[str]) -> None:
    hits = [rank for rank, text in enumerate(texts, 1) if slow_has_answer(answers, text)]
    assert metrics.first_hit(answers, texts) == (hits[0] if hits else None)


def test_answer_recall_counts_ranks_up_to_k() -> None:
    ranks = [1, None, 3, 5, 20]
    assert [metrics.answer_recall(ranks, k) for k in (1, 2, 3, 5, 19, 20)] == [0.2, 0.2, 0.4, 0.6, 0.6, 0.8]
    assert math.isnan(metrics.answer_recall([], 1))


@pytest.mark.parametrize(
    ("successes", "n", "confidence", "low", "high"),
    [
        # Closed forms at the ends: 0 and z^2 / (n + z^2) with z = 1.959964.
        (0, 10, 0.95, 0.0, 0.2775328),
        (10, 10, 0.95, 0.7224672, 1.0),
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.95, 0.2553, 0.3662),
        (15, 148, 0.95, 0.0624, 0.1605),
        (1, 29, 0.95, 0.0061, 0.1718),
    ],
)
def test_wilson_known_values(successes: int, n: int, confidence: float, low: float, high: float) -> None:
    assert metrics.wilson(successes, n, confidence) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_ends_solve_the_score_equation(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    low, high = metrics.wilson(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    for end in {low, high} - {0.0, 1.0}:
        # Wilson's interval is where |p - end| = z sqrt(end (1 - end) / n).
        assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9)


def test_wilson_without_trials_says_nothing_and_refuses_nonsense() -> None:
    assert metrics.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 successes out of 3"):
        metrics.wilson(5, 3)


def quantile(ordered: list[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def test_bootstrap_mean_agrees_with_all_resamples_enumerated() -> None:
    values = [0.0, 0.1, 0.4, 0.45, 1.0]
    means = sorted(sum(drawn) / 5 for drawn in itertools.product(values, repeat=5))
    low, high = metrics.bootstrap_mean(values, samples=200_000, seed=3, confidence=0.9)
    assert low == pytest.approx(quantile(means, 0.05), abs=0.01)
    assert high == pytest.approx(quantile(means, 0.95), abs=0.01)


def test_bootstrap_mean_is_seeded_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(1)
    values = [generator.random() for _ in range(200)]
    whole = metrics.bootstrap_mean(values, samples=999, seed=5)
    assert whole == metrics.bootstrap_mean(values, samples=999, seed=5)
    assert whole != metrics.bootstrap_mean(values, samples=999, seed=6)
    monkeypatch.setattr(metrics.intervals, "_CHUNK_CELLS", 2000)
    assert metrics.bootstrap_mean(values, samples=999, seed=5) == whole
    assert all(math.isnan(end) for end in metrics.bootstrap_mean([]))
    assert metrics.bootstrap_mean([0.5, 0.5, 0.5]) == pytest.approx((0.5, 0.5))


def test_paired_bootstrap_agrees_with_a_slow_loop() -> None:
    generator = random.Random(7)
    a = [generator.random() for _ in range(60)]
    b = [min(1.0, left + generator.choice([0.0, 0.0, 0.3, -0.1])) for left in a]
    deltas = []
    for _ in range(4000):
        rows = [generator.randrange(60) for _ in range(60)]
        deltas.append(sum(b[row] for row in rows) / 60 - sum(a[row] for row in rows) / 60)
    deltas.sort()
    delta, low, high = metrics.paired_bootstrap(a, b, samples=20_000, seed=0)
    assert delta == pytest.approx(sum(b) / 60 - sum(a) / 60, abs=1e-12)
    # Standard error of a 2.5 % quantile over 4,000 resamples is near 2 % of the interval's width.
    width = high - low
    assert low == pytest.approx(quantile(deltas, 0.025), abs=0.1 * width)
    assert high == pytest.approx(quantile(deltas, 0.975), abs=0.1 * width)


def test_paired_bootstrap_uses_the_pairing() -> None:
    # The two runs differ wildly between questions and by exactly 0.1 within each: paired, the interval has no width.
    a = [index / 100 for index in range(80)]
    b = [value + 0.1 for value in a]
    assert metrics.paired_bootstrap(a, b, samples=500) == pytest.approx((0.1, 0.1, 0.1))


def test_paired_bootstrap_covers_the_truth() -> None:
    # B answers 60 % and A 50 % with shared difficulty: the true difference is 0.1.
    generator = random.Random(11)
    covered = 0
    for trial in range(300):
        ease = [generator.random() for _ in range(120)]
        a = [float(value < 0.5) for value in ease]
        b = [float(value < 0.5) if generator.random() < 0.5 else float(generator.random() < 0.7) for value in ease]
        _, low, high = metrics.paired_bootstrap(a, b, samples=600, seed=trial)
        covered += low <= 0.1 <= high
    # 95 % of 300 is 285 with a standard deviation of 3.8; the percentile interval is a little short at n = 120.
    assert 270 <= covered <= 297


def test_paired_bootstrap_refuses_unpaired_values_and_has_no_opinion_on_nothing() -> None:
    with pytest.raises(ValueError, match="2 and 1 values"):
        metrics.paired_bootstrap([1.0, 0.0], [1.0])
    assert all(math.isnan(value) for value in metrics.paired_bootstrap([], []))


@given(
    st.permutations(range(9)),
    st.sets(st.integers(0, 11), min_size=1, max_size=6),
    st.integers(1, 12),
)
def test_rankings_against_the_definitions(ranking: list[int], gold: set[int], k: int) -> None:
    """Gold items 9 to 11 are in no ranking: they count in every denominator."""
    ranks = metrics.gold_ranks(ranking, gold)
    assert metrics.recall_at(ranks, len(gold), k) == pytest.approx(len(gold & set(ranking[:k])) / len(gold))
    hits, reciprocal = [], []
    for item in gold:
        without_others = [other for other in ranking if other == item or other not in gold]
        found = item in without_others
        hits.append(found and without_others.index(item) + 1 <= k)
        reciprocal.append(1 / (without_others.index(item) + 1) if found else 0.0)
    filtered = metrics.filtered_ranks(ranks)
    assert metrics.hits_at(filtered, len(gold), k) == pytest.approx(statistics.fmean(hits))
    assert metrics.reciprocal_rank(filtered, len(gold)) == pytest.approx(statistics.fmean(reciprocal))


def test_filtered_ranks_are_kinder_than_true_ones() -> None:
    """The example measured with GFM-RAG's own evaluation: gold at true ranks 1 and 3."""
    ranks = metrics.gold_ranks([7, 5, 8, 6], {7, 8})
    assert ranks == [1, 3]
    assert metrics.recall_at(ranks, 2, 2) == 0.5
    assert metrics.hits_at(metrics.filtered_ranks(ranks), 2, 2) == 1.0
    assert metrics.reciprocal_rank(metrics.filtered_ranks(ranks), 2) == 0.75
    assert math.isnan(metrics.recall_at([], 0, 5))
    assert math.isnan(metrics.reciprocal_rank([], 0))
