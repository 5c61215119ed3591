"""Eight-bit copies of vectors that propose candidates, with a proof that none of the best is missing.

A vector v is kept as s·c + μ with c in {-127 … 127}^d: μ is (about) the mean of all vectors, which changes no ranking,
and s the largest component of v - μ divided by 127. A question q is rounded to t·a the same way. By Cauchy and Schwarz

    |q·(v - μ) - t·s·(a·c)|  <=  |q - t·a|·|s·c| + |q|·|v - μ - s·c|  <=  slack

where the lengths of what rounding took away are measured, not assumed. Once k passages are known with scores of at
least x, no passage with t·s·(a·c) + q·μ < x - slack can be among the k best; all others are scored exactly. The integer
products run on the CPU's eight-bit units (VNNI) and read a quarter of the memory that float32 takes.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    #: Scores (batch, width) of questions (batch, dim) with the passages at ids (batch, width), exact.
    Score = Callable[[Tensor, Tensor], Tensor]

log = logging.getLogger("ragtrain")

#: Passages whose maximum is looked at first.
GROUP = 64
#: Questions multiplied at a time, and passages packed together: their scores take 32 MiB.
QUESTIONS = 32
PACKED = 2**18
#: Rows rounded at a time: they stay in the cache.
ROUNDED = 2**13
#: Fewer vectors than this are as fast in float32.
FROM = 2**13
#: Vectors looked at for the mean.
MEAN_OF = 4096
#: Largest component in eight bits, and what makes a question's unsigned.
TOP = 127
SHIFT = 128


class Coarse:
    """Vectors in eight bits, packed for the CPU's integer units.

    Attributes:
        lost: length of the longest vector of what rounding took away.
        longest: length of the longest rounded vector, its mean taken off.
    """

    def __init__(self, blocks: Iterable[Tensor], mean: Tensor, count: int) -> None:
        """Round and pack.

        Args:
            blocks: (rows, dim) float32 vectors in order, ``ROUNDED`` rows each but for the last.
            mean: (dim,) float32, what is taken off every vector.
            count: number of vectors.
        """
        self.mean = mean
        self.lost = self.longest = 0.0
        self._lots: list[tuple[int, int, Tensor, Tensor]] = []
        waiting: list[tuple[Tensor, Tensor]] = []
        start = rows = 0
        for block in blocks:
            waiting.append(self._rounded(block))
            rows += len(block)
            if rows >= PACKED or start + rows == count:
                self._lots.append((start, rows, *_packed(waiting)))
                start, rows, waiting = start + rows, 0, []

    def _rounded(self, block: Tensor) -> tuple[Tensor, Tensor]:
        rest = block - self.mean
        scales = rest.abs().amax(1, keepdim=True).clamp(min=1e-30) / TOP
        whole = (rest / scales).round_()
        kept = whole * scales
        self.longest = max(self.longest, _longest(kept))
        self.lost = max(self.lost, _longest(rest.sub_(kept)))
        return whole.to(torch.int8), scales.flatten()

    @property
    def usable(self) -> bool:
        """Whether the bound is a number: lengths of huge vectors overflow."""
        return math.isfinite(self.lost) and math.isfinite(self.longest)

    def takes(self, k: int) -> bool:
        """Return whether ``k`` is small enough for candidates to be few."""
        return 4 * k * GROUP <= self._lots[0][1]

    def best(self, queries: Tensor, k: int, slack: Tensor, score: Score) -> tuple[Tensor, Tensor, Tensor]:
        """Return (batch, k) exact scores and ids, by falling score, then rising id, and for whom they are not known.

        Args:
            queries: (batch, dim) finite float32.
            k: passages wanted, as many as ``takes`` allows.
            slack: (batch,) differences below which float32 rounding may order two scores otherwise.
            score: exact scores, rounded to float32.

        Returns:
            Scores, ids, and (batch,) bool: True where eight bits tell too little, so that the row means nothing.
        """
        parts = [
            self._best(queries[start : start + QUESTIONS], k, slack[start : start + QUESTIONS], score)
            for start in range(0, len(queries), QUESTIONS)
        ]
        scores, ids, left = (torch.cat(part) for part in zip(*parts, strict=True))
        return scores, ids, left

    def _best(self, queries: Tensor, k: int, slack: Tensor, score: Score) -> tuple[Tensor, Tensor, Tensor]:
        scale = queries.abs().amax(1, keepdim=True).clamp(min=1e-30) / TOP
        whole = (queries / scale).round_()
        codes = (whole + SHIFT).to(torch.uint8)
        lengths = torch.linalg.vector_norm(queries, dim=1)
        lost = torch.linalg.vector_norm(queries - whole * scale, dim=1)
        # Lengths are sums in float32: a thousandth is far beyond their rounding, and the last term is beyond that of
        # the product's conversion from whole numbers.
        rounding = lengths * self.longest * (8 * math.sqrt(queries.shape[1]) * 2**-24)
        slack = slack + 1.001 * (lost * self.longest + lengths * self.lost) + rounding
        offset = (queries.double() @ self.mean.double()).float()
        scores = ids = torch.empty((len(queries), 0))
        left = ~torch.isfinite(slack)
        for start, rows, packed, scales in self._lots:
            coarse = _integer_product(codes, packed, scales)
            coarse[:, rows:] = -math.inf
            maxima = coarse.view(len(coarse), -1, GROUP).amax(-1)
            if start == 0:
                first = _likely(coarse, maxima, k)
                known = score(queries, first).amin(1)
            else:
                known = scores[:, -1]
            least = (known - offset - slack).unsqueeze(1) / scale
            near, crowded = _above(coarse, maxima, least, rows // 8)
            left |= crowded
            near = [part + start for part in near]
            found = [score(queries[row : row + 1], part[None])[0] for row, part in enumerate(near)]
            if start:
                near = [torch.cat([ids[row], part]) for row, part in enumerate(near)]
                found = [torch.cat([scores[row], part]) for row, part in enumerate(found)]
            scores, ids = _first(found, near, k)
        return scores, ids, left


def _packed(waiting: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return packed codes and scales of blocks, filled up to whole groups."""
    codes, scales = (torch.cat(parts) for parts in zip(*waiting, strict=True))
    filled = -len(codes) % GROUP
    codes = torch.nn.functional.pad(codes, (0, 0, 0, filled))
    return torch.ops.onednn.qlinear_prepack(codes, None), torch.nn.functional.pad(scales, (0, filled), value=1.0)


def _likely(coarse: Tensor, maxima: Tensor, k: int) -> Tensor:
    """Return (batch, k) ids of high scores: the best in the groups with the highest maxima."""
    groups = maxima.topk(k, dim=1).indices
    places = (groups.unsqueeze(-1) * GROUP + torch.arange(GROUP)).flatten(1)
    return places.gather(1, coarse.gather(1, places).topk(k, dim=1).indices)


def _above(coarse: Tensor, maxima: Tensor, least: Tensor, most: int) -> tuple[list[Tensor], Tensor]:
    """Return for each row the positions, rising, of scores of at least ``least``, and (batch,) where far too many are."""
    counts = (maxima >= least).sum(1)
    crowded = ~(counts <= most // 4)
    least = least.masked_fill(crowded.unsqueeze(1), math.inf)
    rows, groups = torch.nonzero(maxima >= least, as_tuple=True)
    pairs, places = torch.nonzero(coarse.view(len(coarse), -1, GROUP)[rows, groups] >= least[rows], as_tuple=True)
    counts = torch.bincount(rows[pairs], minlength=len(coarse))
    return list(torch.split(groups[pairs] * GROUP + places, counts.tolist())), crowded


def _first(scores: list[Tensor], ids: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row and their ids (rows, k), filled up with -inf and -1."""
    best = torch.full((len(scores), k), -math.inf)
    chosen = torch.full((len(scores), k), -1, dtype=torch.int64)
    for row, (values, places) in enumerate(zip(scores, ids, strict=True)):
        order = values.sort(descending=True, stable=True).indices[:k]
        best[row, : len(order)], chosen[row, : len(order)] = values[order], places[order]
    return best, chosen


def _longest(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows, dim=1).max())


def _integer_product(codes: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """Return (batch, rows) float32: scales · ((codes - 128) · rows), the product in whole numbers."""
    none = torch.zeros(1, dtype=torch.int32)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, SHIFT, packed, scales, none, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@functools.cache
def available() -> bool:
    """Return whether this CPU and this torch multiply eight-bit numbers quickly and without saturation."""
    if not getattr(torch.cpu, "_is_vnni_supported", bool)():
        return False
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-TOP, TOP + 1, (3, 200), generator=generator, dtype=torch.int8)
    right = torch.randint(-TOP, TOP + 1, (GROUP, 200), generator=generator, dtype=torch.int8)
    # The largest numbers: units without VNNI add pairs in sixteen bits, which saturate.
    left[0], right[0], right[1] = TOP, TOP, -TOP
    scales = torch.linspace(0.5, 2.0, GROUP)
    expected = (left.double() @ right.double().T) * scales.double()
    try:
        packed = torch.ops.onednn.qlinear_prepack(right, None)
        found = _integer_product((left.int() + SHIFT).to(torch.uint8), packed, scales)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
        log.debug("no eight-bit products here: %s", error)
        return False
    return bool(torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-3))
