"""Filtered ranks of true tails among all entities, and the usual numbers about them.

rank = 1 + the number of entities that are no known tail of the query and score at least as high as the true one: a tie counts
against the model (Bordes et al. 2013 for the filter; Sun et al. 2020, arXiv:1911.03903, for ties).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from ragtrain.errors import ConfigError, NumericsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

#: Numbers about ranks that are given where none are asked for.
METRICS = ("mr", "mrr", "hits@1", "hits@3", "hits@10")
# Scores compared at a time: 16 M, so that a comparison never holds more than 80 MB.
_CELLS = 1 << 24


def filtered(scores: Tensor, targets: Tensor, known: tuple[Tensor, Tensor], rows: Tensor | None = None) -> Tensor:
    """Return the rank of each target among the entities that are not known, ties against it: (n,) int64.

    Args:
        scores: (Q, N) of every entity for each query.
        targets: (n,) true tails.
        known: query and tail of every known true tail (``KnownTails.pairs``), without repetition; a target may be among
            them.
        rows: (n,) query of each target; without it target i belongs to query i.

    Raises:
        NumericsError: a score is not a number; any rank would be as wrong.
    """
    if bool(scores.isnan().any()):
        raise NumericsError("a score of an entity is not a number", hint="the model's weights are not finite")
    rows = torch.arange(len(targets), device=scores.device) if rows is None else rows
    own = scores[rows, targets]
    size = max(1, _CELLS // max(1, scores.shape[1]))
    better = torch.zeros_like(targets)
    for begin in range(0, len(targets), size):
        part = slice(begin, begin + size)
        better[part] = (scores[rows[part]] >= own[part, None]).sum(dim=1)
    queries, tails = known
    # Every target of a query meets every known tail of it, itself left out: it is counted once, below.
    counts = torch.bincount(queries, minlength=scores.shape[0])[rows]
    starts = torch.searchsorted(queries.contiguous(), rows)
    target = torch.arange(len(rows), device=scores.device).repeat_interleave(counts)
    within = torch.arange(len(target), device=scores.device) - (counts.cumsum(0) - counts)[target]
    other = tails[starts[target] + within]
    ahead = (scores[rows[target], other] >= own[target]) & (other != targets[target])
    return better - torch.zeros_like(better).index_add_(0, target, ahead.long())


def metrics(
    ranks: Sequence[int] | NDArray[np.int64], negatives: Sequence[int] | NDArray[np.int64] | None = None,
    names: Sequence[str] = METRICS,
) -> dict[str, float]:  # fmt: skip
    """Return mean rank, mean reciprocal rank and hits of ranks, by name; nan where there are none.

    Args:
        ranks: counted from 1.
        negatives: how many entities each was ranked against, for ``hits@k_n``.
        names: ``mr``, ``mrr``, ``hits@k`` or ``hits@k_n``.

    Raises:
        ConfigError: a name is none of these.
    """
    return {
        name: float(values.mean()) if len(values) else math.nan
        for name, values in per_query(ranks, negatives, names).items()
    }


def per_query(
    ranks: Sequence[int] | NDArray[np.int64], negatives: Sequence[int] | NDArray[np.int64] | None, names: Sequence[str]
) -> Mapping[str, NDArray[np.float64]]:
    """Return what each query gives to the means of ``metrics``: (n,) each.

    ``hits@k_n`` is the probability that a rank is at most k when the true tail is ranked against n - 1 entities drawn from
    those that it was ranked against: with p = (rank - 1) / negatives, ``sum_{i<k} C(n-1, i) p^i (1-p)^(n-1-i)``
    (ULTRA, ``script/run.py``, after GraIL's hits@10 of 50).
    """
    found = np.asarray(ranks, dtype=np.float64)
    values: dict[str, NDArray[np.float64]] = {}
    for name in names:
        if name == "mr":
            values[name] = found
        elif name == "mrr":
            values[name] = 1 / found
        else:
            k, n = _hits(name)
            values[name] = (found <= k).astype(np.float64) if n is None else _unbiased(found, negatives, k, n)
    return values


def _hits(name: str) -> tuple[int, int | None]:
    text = name.removeprefix("hits@")
    k, _, n = text.partition("_")
    if text == name or not k.isdecimal() or int(k) < 1 or ("_" in text and (not n.isdecimal() or int(n) < 1)):
        raise ConfigError(f"no metric of ranks {name!r}", hint="known are mr, mrr, hits@k and hits@k_n")
    return int(k), int(n) if n else None


def _unbiased(
    ranks: NDArray[np.float64], negatives: Sequence[int] | NDArray[np.int64] | None, k: int, n: int
) -> NDArray[np.float64]:
    if negatives is None:
        raise ConfigError(f"hits@{k}_{n} needs the number of entities that each was ranked against")
    against = np.asarray(negatives, dtype=np.float64)
    false = np.where(against > 0, (ranks - 1) / np.maximum(against, 1), 0.0)
    return np.asarray(sum(math.comb(n - 1, i) * false**i * (1 - false) ** (n - 1 - i) for i in range(min(k, n))))
