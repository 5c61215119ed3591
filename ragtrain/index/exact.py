"""Exact search: a matrix product and a top-k, block by block.

The product only proposes candidates: their scores are computed again in float64 from the stored vectors and rounded
to float32, so that neither the batch a question stands in, nor the block size, nor the device, nor half precision
changes a result. Equal scores are ordered by position. On CPUs with eight-bit units the product is one of whole
numbers (``ragtrain.index.coarse``), elsewhere one in float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ragtrain.errors import IndexMismatchError, NumericsError
from ragtrain.index import coarse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("ragtrain")

#: Candidates beyond n_docs whose scores are computed again; ties that reach past them are settled row by row.
MARGIN = 16
#: Scores held at a time (256 MiB), and numbers of stored vectors computed with in float64 at a time.
SCORES = 2**26
RESCORED = 2**24
QUERIES = 1024


@dataclasses.dataclass(frozen=True)
class Hits:
    """What a search found, best first.

    Attributes:
        ids: (batch, n_docs) int64 positions of passages, -1 where the index holds fewer than n_docs.
        scores: (batch, n_docs) float32, -inf where there is no passage.
        mask: (batch, n_docs) bool, False where there is no passage.
    """

    ids: Tensor
    scores: Tensor
    mask: Tensor


class Searcher:
    """Exact search over a matrix of vectors, by inner product (``cosine``: of unit vectors).

    The matrix is held in its stored precision, or in float32 on a CPU without eight-bit units; where it does not fit,
    blocks of it are read from the file for every search. A searcher keeps no state between searches.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        device: torch.device | str = "cpu",
        *,
        metric: Literal["inner_product", "cosine"] = "inner_product",
        max_norm: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Load the vectors.

        Args:
            vectors: (count, dim) float16 or float32, in memory or mapped from a file; of unit length with ``cosine``.
            device: where hits are returned and, if it is the CPU or a CUDA device, where the search runs.
            metric: with ``cosine``, questions are scaled to unit length.
            max_norm: length of the longest vector; computed where it is not known.
            memory_bytes: what the matrix may take; without it a share of the memory that is free now.
        """
        self.count, self.dim = vectors.shape
        self.metric = metric
        self.device = torch.device(device)
        self._place = self.device if self.device.type == "cuda" else torch.device("cpu")
        self._stored = vectors
        self._max_norm = longest(vectors) if max_norm is None else max_norm
        half = vectors.dtype == np.float16
        self._wide = half and self._place.type == "cuda" and _has_wide_product(self._place)
        self._eight_bits = self._place.type == "cpu" and self.count >= coarse.FROM and coarse.available()
        self._dtype = torch.float16 if half and (self._place.type == "cuda" or self._eight_bits) else torch.float32
        self._resident: Tensor | None = None
        self._coarse: coarse.Coarse | None = None
        self._load(memory_bytes)

    def _load(self, memory_bytes: int | None) -> None:
        copy = self.count * self.dim if self._eight_bits else 0
        needed = self.count * self.dim * self._dtype.itemsize + copy
        budget = _free_bytes(self._place) if memory_bytes is None else memory_bytes
        if needed <= budget:
            resident = torch.empty((self.count, self.dim), dtype=self._dtype, device=self._place)
            for start, rows in self._read_blocks(max(1, SCORES // self.dim)):
                resident[start : start + len(rows)] = rows
            self._resident = resident
        else:
            held = ", in which an eight-bit copy finds the candidates" if 0 < copy <= budget else ""
            log.warning(
                "the vectors take %.1f GiB on %s where %.1f GiB may be used: every search reads them from the file%s",
                needed / 2**30, self._place, budget / 2**30, held,
            )  # fmt: skip
        if 0 < copy <= budget:
            self._round()

    def _round(self) -> None:
        step = max(1, self.count // coarse.MEAN_OF)
        mean = torch.from_numpy(np.array(self._stored[::step], dtype=np.float32)).mean(0)
        blocks = (rows.float() for _, rows in self._blocks(coarse.ROUNDED))
        rounded = coarse.Coarse(blocks, mean, self.count)
        self._coarse = rounded if rounded.usable else None

    def replace(self, vectors: np.ndarray | Tensor) -> None:
        """Put new vectors in place of the ones held, in their precision; those in the file stay what they are.

        Args:
            vectors: (count, dim) of the same passages, in any floating type; with ``cosine`` of any length.

        Raises:
            IndexMismatchError: their shape is another.
            NumericsError: one of them is not finite in the precision in which they are held.
        """
        if tuple(vectors.shape) != (self.count, self.dim):
            raise IndexMismatchError(
                f"new vectors have shape {tuple(vectors.shape)} where {(self.count, self.dim)} are held",
                hint="encode every passage of the index again, with an encoder of the same dimension",
            )
        stored = np.float16 if self._stored.dtype == np.float16 else np.float32
        # Aside first: a vector that cannot be held leaves everything as it was.
        fresh = np.empty((self.count, self.dim), dtype=stored)
        self._max_norm, before = 0.0, self._max_norm
        rows = max(1, SCORES // self.dim)
        for start in range(0, self.count, rows):
            part = vectors[start : start + rows]  # of a file that is mapped for reading, it must be copied
            block = torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part.detach().cpu()
            block = block.float()
            if self.metric == "cosine":
                block = torch.nn.functional.normalize(block, dim=1)
            with np.errstate(over="ignore"):
                fresh[start : start + rows] = block.numpy().astype(stored)
            bad = np.flatnonzero(~np.isfinite(fresh[start : start + rows]).all(axis=1))
            if len(bad):
                self._max_norm = before
                raise NumericsError(
                    f"the new vector of passage number {start + int(bad[0])} is not finite in {stored.__name__}"
                )
        self._max_norm = longest(fresh)
        self._stored = fresh
        if self._resident is not None:
            fits = self._place.type == "cpu" and self._dtype == torch.from_numpy(fresh[:0]).dtype
            if fits:
                self._resident = torch.from_numpy(fresh)
            else:
                for start, block in self._read_blocks(rows):
                    self._resident[start : start + rows] = block
        if self._coarse is not None:
            self._round()

    def _read_blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        numbers = np.float16 if self._dtype == torch.float16 else np.float32
        for start in range(0, self.count, rows):
            yield start, torch.from_numpy(np.array(self._stored[start : start + rows], dtype=numbers)).to(self._place)

    def _blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        if self._resident is None:
            yield from self._read_blocks(min(rows, max(1, SCORES // self.dim)))
            return
        if self._dtype == torch.float16 and not self._wide:  # multiplied in float32, a part at a time
            rows = min(rows, max(1, SCORES // self.dim))
        for start in range(0, self.count, rows):
            yield start, self._resident[start : start + rows]

    @torch.no_grad()
    def search(self, queries: Tensor, n_docs: int) -> Hits:
        """Return the ``n_docs`` passages with the highest scores for each question.

        Args:
            queries: (batch, dim) question vectors on any device; the search computes in float32 from here.
            n_docs: passages for each question.

        Raises:
            IndexMismatchError: the questions have another dimension than the index.
            NumericsError: a question vector is not finite.
        """
        queries = self._checked(queries)
        batch, k = len(queries), min(n_docs, self.count)
        ids = torch.full((batch, n_docs), -1, dtype=torch.int64, device=self._place)
        scores = torch.full((batch, n_docs), -math.inf, device=self._place)
        with torch.autocast(self._place.type, enabled=False), _full_precision():
            for start in range(0, batch, QUERIES):
                part = slice(start, min(start + QUERIES, batch))
                scores[part, :k], ids[part, :k] = self._best(queries[part], k)
        return Hits(ids.to(self.device), scores.to(self.device), (ids >= 0).to(self.device))

    def _checked(self, queries: Tensor) -> Tensor:
        """Return question vectors as they are searched with: finite float32, of unit length with ``cosine``."""
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise IndexMismatchError(
                f"question vectors have shape {tuple(queries.shape)} where the index holds {self.dim} dimensions",
                hint="search with the encoder the index was made for, or prepare the index again with this one",
            )
        queries = queries.detach().to(self._place, torch.float32)
        finite = torch.isfinite(queries).all(dim=1)
        if not bool(finite.all()):
            rows = torch.nonzero(~finite).flatten().tolist()
            raise NumericsError(f"the question vectors in rows {rows[:10]} of the batch are not finite")
        if self.metric == "cosine":
            queries = torch.nn.functional.normalize(queries, dim=1)
        return queries

    def vectors(self, ids: Tensor) -> Tensor:
        """Return (…, dim) float32 stored vectors of the passages at ``ids`` (…), zero where an id is negative."""
        wanted = ids.to(self._place)
        rows = self._rows(wanted.clamp(min=0)).float()
        return rows.masked_fill((wanted < 0).unsqueeze(-1), 0.0).to(self.device)

    def _rows(self, ids: Tensor) -> Tensor:
        """Return (…, dim) vectors at ids (…), none negative, in the precision in which they are at hand."""
        if self._resident is not None:
            return self._resident[ids]
        # Sorted, so that a large file is read forwards and each row once.
        unique, inverse = np.unique(ids.cpu().numpy(), return_inverse=True)
        gathered = np.array(self._stored[unique], dtype=np.float32)
        return torch.from_numpy(gathered[inverse.reshape(ids.shape)]).to(self._place)

    @torch.no_grad()
    def score(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Return (batch, width) float32 scores of the passages at ``ids``, -inf where an id is negative.

        They are what ``search`` gives the same passages, to the bit.

        Args:
            queries: (batch, dim) question vectors, on any device.
            ids: (batch, width) int64 positions of passages.
        """
        queries = self._checked(queries)
        wanted = ids.to(self._place)
        scores = exact_scores(queries, self._rows, wanted.clamp(min=0))
        return scores.masked_fill(wanted < 0, -math.inf).to(self.device)

    def _slack(self, queries: Tensor) -> Tensor:
        """Return (batch,) differences below which a product in float32 cannot tell two scores apart."""
        # Twice a generous rounding error: 4 sqrt(d) eps |q| |v|.
        lengths: Tensor = torch.linalg.vector_norm(queries, dim=1)
        return lengths * (8 * math.sqrt(self.dim) * 2**-24 * self._max_norm)

    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return (batch, k) scores and ids, by falling score, then rising id."""
        if self._coarse is None or not self._coarse.takes(k):
            return self._by_product(queries, k)
        scores, ids, left = self._coarse.best(
            queries, k, self._slack(queries), lambda rows, near: exact_scores(rows, self._rows, near)
        )
        if bool(left.any()):
            scores[left], ids[left] = self._by_product(queries[left], k)
        return scores, ids

    def _by_product(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        rows = max(k + MARGIN, SCORES // len(queries))
        slack = self._slack(queries)
        best: tuple[Tensor, Tensor] | None = None
        for start, block in self._blocks(rows):
            scores, ids = self._best_of_block(queries, block, k, slack)
            ids = ids + start
            if best is not None:
                # Earlier blocks hold smaller ids: a stable sort leaves equal scores in order of id.
                scores, ids = torch.cat([best[0], scores], dim=1), torch.cat([best[1], ids], dim=1)
            best = first(scores, ids, k)
        if best is None:
            raise IndexMismatchError("the index holds no passage")
        return best

    def _best_of_block(self, queries: Tensor, block: Tensor, k: int, slack: Tensor) -> tuple[Tensor, Tensor]:
        product = self._product(queries, block)
        width, k = min(k + MARGIN, len(block)), min(k, len(block))
        values, ids = product.topk(width, dim=1)
        ids = ids.sort(dim=1).values
        scores, ids = first(exact_scores(queries, block.__getitem__, ids), ids, k)
        if width < len(block):
            unsure = values[:, k - 1] - values[:, -1] <= slack
            for row in torch.nonzero(unsure).flatten().tolist():
                near = torch.nonzero(product[row] >= values[row, k - 1] - slack[row]).T
                again = exact_scores(queries[row : row + 1], block.__getitem__, near)
                scores[row], ids[row] = (x[0] for x in first(again, near, k))
        return scores, ids

    def _product(self, queries: Tensor, block: Tensor) -> Tensor:
        """Return (batch, rows) float32 scores, accurate to float32 rounding whatever the block's precision."""
        if not self._wide:
            # This way round, a handful of questions costs the CPU a third of the other way round.
            return (block.float() @ queries.T).T.contiguous()
        # A question is the sum of two half-precision vectors to 22 bits, once scaled into their range by a power of
        # two; twice the rows cost nothing in a product that waits for memory.
        scale = torch.ldexp(torch.ones_like(queries[:, :1]), -torch.frexp(queries.abs().amax(1, keepdim=True)).exponent)
        scaled = queries * scale
        high = scaled.half()
        low = (scaled - high.float()).half()
        both: Tensor = _wide_product(torch.cat([high, low]), block.T)
        product: Tensor = (both[: len(queries)] + both[len(queries) :]) / scale
        return product


def exact_scores(queries: Tensor, rows_at: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Return (batch, width) inner products of each query with the vectors at ``ids``, summed in float64.

    Args:
        queries: (batch, dim) float32.
        rows_at: vectors (…, dim) at ids (…).
        ids: (batch, width).
    """
    batch, width = ids.shape
    scores = torch.empty((batch, width), device=queries.device)
    columns = max(1, min(width, RESCORED // queries.shape[1]))
    lines = max(1, RESCORED // (queries.shape[1] * columns))
    for row in range(0, batch, lines):
        wide = queries[row : row + lines].double().unsqueeze(1)
        for column in range(0, width, columns):
            chosen = rows_at(ids[row : row + lines, column : column + columns]).double()
            scores[row : row + lines, column : column + columns] = (chosen * wide).sum(-1).float()
    return scores


def first(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores (batch, k) and their ids; equal scores stay in the order in which they stand."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], ids.gather(1, order[:, :k])


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32, whatever the training loop has allowed (TF32, bf16)."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the float32 product of two half-precision matrices."""
    return torch.mm(a, b, out_dtype=torch.float32)


def _has_wide_product(device: torch.device) -> bool:
    ones = torch.ones((8, 8), dtype=torch.float16, device=device)
    try:
        _wide_product(ones, ones)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True


def longest(vectors: np.ndarray) -> float:
    """Return the length of the longest of (count, dim) vectors."""
    rows = max(1, SCORES // vectors.shape[1])
    blocks = (np.asarray(vectors[i : i + rows], dtype=np.float32) for i in range(0, len(vectors), rows))
    return max(float(np.linalg.norm(block, axis=1).max()) for block in blocks)


def _free_bytes(device: torch.device) -> int:
    """Return the bytes that the matrix may take: half of the free memory, or 80 % of a GPU's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.8)
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 2
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
