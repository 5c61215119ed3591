"""Is a difference more than chance? Tests for two runs on the same questions, and what a number of questions can show.

Beside the interval of ``metrics.paired_bootstrap`` there are p-values that assume nothing of how scores are distributed, a
correction for looking at several metrics, effect sizes, and the smallest difference that would have been found. numpy is
imported where it is used, so that a command's help stays quick.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

#: Differences other than 0 up to which every assignment of signs is tried instead of drawn ones.
EXACT_UP_TO = 16
# Cells of one chunk of drawn signs.
_CHUNK_CELLS = 1 << 23
# Sums of the same numbers in another order differ by rounding: such a draw is as extreme as what was seen.
_ROUNDING = 1e-9


def differences(a: Sequence[float], b: Sequence[float]) -> NDArray[np.float64]:
    """Return ``b - a`` over the same questions: (n,).

    Raises:
        ValueError: the two are not of one length.
    """
    import numpy as np

    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired")
    return np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)


def permutation_p(a: Sequence[float], b: Sequence[float], samples: int = 10000, seed: int = 0) -> float:
    """Return the two-sided p of the paired permutation test of equal means; 1 where no question changed.

    Under the hypothesis that runs make no difference, each question's two scores might as well stand the other way round: the
    share of assignments of signs whose mean difference is at least as far from 0 as the one seen. All of them are counted
    for up to ``EXACT_UP_TO`` changed questions; else ``(1 + extreme draws) / (1 + samples)``, which is never 0 and never
    too small (Phipson and Smyth, 2010). Where all changes are of one size, as of rates, it is McNemar's exact test, in
    closed form. Source: Fisher's randomisation test; Noreen, Computer-Intensive Methods (1989), section 2.4.

    Raises:
        ValueError: the two are not of one length.
    """
    import numpy as np

    changed = differences(a, b)
    changed = changed[changed != 0]
    if not len(changed):
        return 1.0
    sizes = np.abs(changed)
    if np.ptp(sizes) <= _ROUNDING * sizes[0]:
        return mcnemar_p(int((changed < 0).sum()), int((changed > 0).sum()))
    seen = abs(float(changed.sum())) - _ROUNDING * float(sizes.sum())
    if len(changed) <= EXACT_UP_TO:
        every = np.arange(1 << len(changed))[:, None] >> np.arange(len(changed)) & 1
        return float((np.abs((2.0 * every - 1.0) @ changed) >= seen).mean())
    generator = np.random.default_rng(seed)
    chunk, extreme = max(1, _CHUNK_CELLS // len(changed)), 0
    for start in range(0, samples, chunk):
        rows = min(chunk, samples - start)
        bits = np.unpackbits(np.frombuffer(generator.bytes(rows * len(changed) // 8 + 1), dtype=np.uint8))
        signs = bits[: rows * len(changed)].reshape(rows, len(changed)).astype(np.float32)
        sums = 2.0 * (signs @ changed.astype(np.float32)).astype(np.float64) - float(changed.sum())
        extreme += int((np.abs(sums) >= seen - 1e-5 * float(sizes.sum()) / math.sqrt(len(sizes))).sum())
    return (1 + extreme) / (1 + samples)


def mcnemar_p(losses: int, wins: int) -> float:
    """Return the two-sided p of McNemar's exact test: of questions that changed, as many should have been won as lost.

    ``min(1, 2 P(X <= min(losses, wins)))`` with X binomial(losses + wins, 1/2); 1 where none changed. Source: McNemar,
    Psychometrika 12 (1947); the exact form as in statsmodels' ``mcnemar(exact=True)``.

    Raises:
        ValueError: a count is negative.
    """
    if losses < 0 or wins < 0:
        raise ValueError(f"{losses} losses and {wins} wins")
    n = losses + wins
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        for k in range(min(losses, wins) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for there being several: below alpha, the whole family errs with at most alpha.

    In rising order ``max over j <= i of min(1, (m - j + 1) p_j)``. Source: Holm, Scand. J. Statistics 6 (1979).
    """
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected, largest = dict[str, float](), 0.0
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def cohens_dz(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the mean difference in standard deviations of the differences (n - 1); nan where these are all equal.

    Source: Cohen, Statistical Power Analysis (1988), section 2.3.5; Lakens, Frontiers in Psychology 4 (2013).
    """
    import numpy as np

    found = differences(a, b)
    spread = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
    return float(found.mean()) / spread if spread else math.nan


def cohens_h(rate_a: float, rate_b: float) -> float:
    """Return ``2 asin sqrt(b) - 2 asin sqrt(a)``: 0.2 is called small, 0.5 medium, 0.8 large. Source: Cohen (1988), 6.2."""
    return 2 * math.asin(math.sqrt(rate_b)) - 2 * math.asin(math.sqrt(rate_a))


def smallest_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95, power: float = 0.8) -> float:
    """Return the true difference that a two-sided test of this many questions finds with probability ``power``.

    ``(z_(1 + confidence)/2 + z_power) sd / sqrt(n)`` with sd of the differences seen (n - 1); nan below two questions. A
    difference below it that is "not significant" says little. Source: Cohen (1988), section 2.4, by the normal approximation.
    """
    import numpy as np

    found = differences(a, b)
    if len(found) < 2:
        return math.nan
    normal = statistics.NormalDist()
    factor = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)
    return factor * float(np.std(found, ddof=1)) / math.sqrt(len(found))


def seeds_bootstrap(
    a: NDArray[np.float64], b: NDArray[np.float64], samples: int = 10000, seed: int = 0, confidence: float = 0.95
) -> dict[str, Any]:
    """Return the difference of two methods that were each trained with several seeds, and where its uncertainty comes from.

    Seeds and questions are two sources of chance, not one: a resample draws seeds of each method and questions (the same for
    all) with replacement. The interval of questions alone holds for these very models; that of both, for the method.

    Args:
        a: (seeds of a, n) scores, the same questions in the same order.
        b: (seeds of b, n).
        samples: resamples.
        seed: of the draws.
        confidence: level of the intervals.

    Returns:
        ``delta`` of the means, ``low`` and ``high`` with both resampled, ``questions_low`` and ``questions_high`` with the
        models as they are, ``seed_sd_a`` and ``seed_sd_b`` of each method's means (nan of one seed), ``seeds_a``, ``seeds_b``.

    Raises:
        ValueError: the two are not over the same number of questions, or there are none.
    """
    import numpy as np

    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.size or not b.size:
        raise ValueError(f"scores of shape {a.shape} and {b.shape} cannot be paired")
    generator, n = np.random.default_rng(seed), a.shape[1]
    both, questions = np.empty(samples), np.empty(samples)
    chunk = max(1, _CHUNK_CELLS // n)
    fixed = b.mean(0) - a.mean(0)
    for start in range(0, samples, chunk):
        stop = min(start + chunk, samples)
        weights = generator.multinomial(n, np.full(n, 1 / n), size=stop - start) / n
        questions[start:stop] = weights @ fixed
        means = [weights @ each.T for each in (a, b)]  # (rows, seeds)
        drawn = [
            np.take_along_axis(mean, generator.integers(0, mean.shape[1], mean.shape), 1).mean(1) for mean in means
        ]
        both[start:stop] = drawn[1] - drawn[0]
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(both, ends)
    questions_low, questions_high = np.quantile(questions, ends)
    spreads = [float(np.std(each.mean(1), ddof=1)) if len(each) > 1 else math.nan for each in (a, b)]
    return {
        "delta": float(fixed.mean()), "low": float(low), "high": float(high),
        "questions_low": float(questions_low), "questions_high": float(questions_high),
        "seed_sd_a": spreads[0], "seed_sd_b": spreads[1], "seeds_a": len(a), "seeds_b": len(b),
    }  # fmt: skip
