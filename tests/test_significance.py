import math

import numpy as np
import pytest

from ragtrain import metrics, significance

N = 40


def scores(seed: int, n: int = N, shift: float = 0.05) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(seed)
    a = generator.random(n)
    return a.tolist(), np.clip(a + generator.normal(shift, 0.2, n), 0, 1).tolist()


@pytest.mark.reference
@pytest.mark.parametrize("counts", [(0, 0), (0, 5), (3, 3), (10, 25), (300, 340), (1200, 1000)])
def test_mcnemar_is_statsmodels(counts: tuple[int, int]) -> None:
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables", reason="a reference")
    losses, wins = counts
    expected = contingency.mcnemar([[7, losses], [wins, 9]], exact=True).pvalue if losses + wins else 1.0
    assert significance.mcnemar_p(losses, wins) == pytest.approx(expected, abs=1e-9)


@pytest.mark.reference
def test_holm_is_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="a reference")
    values = {"em": 0.01, "f1": 0.04, "recall": 0.03, "mrr": 0.005, "rouge": 0.9}
    expected = multitest.multipletests(list(values.values()), method="holm")[1]
    assert list(significance.holm(values).values()) == pytest.approx(expected.tolist(), abs=1e-12)
    assert significance.holm({}) == {}


@pytest.mark.reference
@pytest.mark.parametrize("seed", range(3))
def test_few_changes_are_tried_in_all_ways_as_in_scipy(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="a reference")
    a, b = scores(seed, 12)
    expected = stats.permutation_test(
        (np.array(b), np.array(a)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    ).pvalue  # fmt: skip
    assert significance.permutation_p(a, b) == pytest.approx(expected, abs=1e-6)


@pytest.mark.reference
def test_drawn_signs_are_near_the_exact_share() -> None:
    stats = pytest.importorskip("scipy.stats", reason="a reference")
    a, b = scores(5, 200, 0.02)
    expected = stats.permutation_test(
        (np.array(b), np.array(a)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20000, rng=0,
    ).pvalue  # fmt: skip
    assert significance.permutation_p(a, b, samples=20000) == pytest.approx(expected, abs=0.012)


def test_changes_of_one_size_are_mcnemars_test() -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 2, 300).astype(float).tolist() for _ in range(2))
    losses = sum(y < x for x, y in zip(a, b, strict=True))
    wins = sum(y > x for x, y in zip(a, b, strict=True))
    assert significance.permutation_p(a, b) == significance.mcnemar_p(losses, wins)


def test_no_change_is_no_evidence() -> None:
    assert significance.permutation_p([0.5] * 5, [0.5] * 5) == 1.0
    assert significance.mcnemar_p(0, 0) == 1.0
    assert math.isnan(significance.cohens_dz([1, 1, 1], [1, 1, 1]))


def test_the_test_errs_as_often_as_it_says() -> None:
    # Under the null hypothesis p < 0.05 comes in one of twenty comparisons: 200 of them, six standard deviations of room.
    generator = np.random.default_rng(1)
    below = 0
    for _ in range(200):
        base = generator.random(60)
        a, b = base + generator.normal(0, 0.1, 60), base + generator.normal(0, 0.1, 60)
        below += significance.permutation_p(a.tolist(), b.tolist(), samples=999) < 0.05
    assert 1 <= below <= 28


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator, inside = np.random.default_rng(2), 0
    for draw in range(400):
        a, b = generator.random(120) < 0.4, generator.random(120) < 0.5
        _, low, high = metrics.paired_bootstrap(a.astype(float).tolist(), b.astype(float).tolist(), 1000, draw)
        inside += low <= 0.1 <= high
    assert 0.91 <= inside / 400 <= 0.98


def test_the_smallest_difference_is_found_as_often_as_it_says() -> None:
    generator, n, found = np.random.default_rng(3), 100, 0
    a = np.zeros(n)
    size = significance.smallest_difference(a.tolist(), generator.normal(0, 1, n).tolist())
    for _ in range(400):
        b = generator.normal(size, 1, n)
        t = b.mean() / (b.std(ddof=1) / math.sqrt(n))
        found += abs(t) > 1.96
    assert 0.68 <= found / 400 <= 0.9
    assert math.isnan(significance.smallest_difference([1.0], [2.0]))


@pytest.mark.reference
def test_effect_sizes_are_the_textbook_ones() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion", reason="a reference")
    assert significance.cohens_h(0.3, 0.45) == pytest.approx(proportion.proportion_effectsize(0.45, 0.3), abs=1e-12)
    a, b = scores(0)
    found = np.array(b) - np.array(a)
    assert significance.cohens_dz(a, b) == pytest.approx(found.mean() / found.std(ddof=1))


@pytest.mark.reference
def test_the_permutation_test_agrees_with_the_t_test_where_that_holds() -> None:
    stats = pytest.importorskip("scipy.stats", reason="a reference")
    generator = np.random.default_rng(4)
    a = generator.normal(0, 1, 400)
    b = a + generator.normal(0.04, 0.5, 400)
    expected = stats.ttest_rel(b, a).pvalue
    assert significance.permutation_p(a.tolist(), b.tolist(), samples=20000) == pytest.approx(expected, abs=0.02)


def test_seeds_add_to_the_uncertainty_of_questions() -> None:
    generator = np.random.default_rng(6)
    questions = generator.random(300)
    a = np.stack([questions + generator.normal(0, 0.05) + generator.normal(0, 0.1, 300) for _ in range(3)])
    b = np.stack([questions + 0.1 + generator.normal(0, 0.05) + generator.normal(0, 0.1, 300) for _ in range(3)])
    found = significance.seeds_bootstrap(a, b, 2000)
    assert found["low"] < found["questions_low"] < found["delta"] < found["questions_high"] < found["high"]
    assert found["delta"] == pytest.approx(b.mean() - a.mean())
    one = significance.seeds_bootstrap(a[:1], b[:1], 2000)
    _, low, high = metrics.paired_bootstrap(a[0].tolist(), b[0].tolist(), 2000)
    assert (one["low"], one["high"]) == pytest.approx((low, high), abs=0.005)
    assert math.isnan(one["seed_sd_a"])


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (1, 3)), ((3,), (3,))])
def test_scores_that_cannot_be_paired_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="paired"):
        significance.seeds_bootstrap(np.zeros(shapes[0]), np.zeros(shapes[1]))
    with pytest.raises(ValueError, match="paired"):
        significance.permutation_p([1.0], [1.0, 2.0])
