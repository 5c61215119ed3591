"""Intervals: Wilson's of a rate, and the bootstrap's of a mean and of a difference of the same questions."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

# Cells of one chunk of resampled counts: 4 M of 8 bytes, so that a bootstrap never holds more than some 32 MB.
_CHUNK_CELLS = 1 << 22
# Distinct values beyond which drawing each value itself is quicker than drawing how often each comes.
_MANY_DISTINCT = 256


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
