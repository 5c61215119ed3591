"""Search through ``index.faiss``, whatever its type: our own, or that of another tool.

faiss proposes candidates and they are scored again from the stored vectors, as in the exact search. What it leaves out
differs by type: a flat index nothing, once near ties are settled; a graph or inverted lists what their effort
(``efSearch``, ``nprobe``) does not reach. Rows for which they bring fewer passages than asked are searched again with
more effort and, if that does not help, exactly: a place is empty only where the index holds no more passages.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ragtrain.errors import ConfigError, DataError, IndexMismatchError
from ragtrain.index.exact import MARGIN, Searcher, exact_scores, first

if TYPE_CHECKING:
    from pathlib import Path

FAISS_FILE = "index.faiss"
HINT = "write it again with `ragtrain index prepare --index-type faiss-flat` (or hnsw, ivf, ivfpq)"
#: Numbers of vectors read at a time.
BLOCK = 2**26
#: Lengths that differ by less are equal: then the nearest vectors are those with the largest products.
EQUAL_LENGTHS = 1e-3
#: Candidates of a compressed index for each passage asked for: its own order is too rough to stop at k.
COMPRESSED = 4


class FaissSearcher(Searcher):
    """Search through ``index.faiss`` on the CPU; candidates are scored again as in the exact search."""

    def __init__(
        self,
        path: Path,
        vectors: np.ndarray,
        device: torch.device | str = "cpu",
        *,
        metric: Literal["inner_product", "cosine"] = "inner_product",
        max_norm: float | None = None,
        hint: str = HINT,
    ) -> None:
        """Read the faiss file.

        Args:
            path: the faiss file.
            vectors: (count, dim) stored vectors, in the same order; the other arguments are those of ``Searcher``.
            device: where hits are returned.
            metric: with ``cosine``, questions are scaled to unit length.
            max_norm: length of the longest vector.
            hint: what to do where the file is missing or does not fit.

        Raises:
            ConfigError: faiss is not installed.
            DataError: the file is missing or does not fit the index.
        """
        faiss = import_faiss()
        if not path.is_file():
            raise DataError("this index has no faiss file", path=path, hint=hint)
        try:
            # Mapped where faiss can: vectors are read as they are needed and shared with other processes.
            self._file = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        except RuntimeError as error:
            raise DataError(f"faiss cannot read it: {error}", path=path, hint=hint) from error
        # With ids of its own, positions are those of the index within.
        mapped = hasattr(self._file, "id_map")
        self._faiss = faiss.downcast_index(self._file.index) if mapped else self._file
        self._distance = self._faiss.metric_type == faiss.METRIC_L2
        self._check(path, vectors, hint)
        self._exhaustive = isinstance(self._faiss, faiss.IndexFlat)
        self._compressed = not stores_whole_vectors(self._faiss)
        self._effort = effort_of(self._faiss)
        # By default faiss reads the whole matrix again for every question of a small batch (since 1.15: below
        # questions × dimensions = 128,000).
        faiss.cvar.distance_compute_blas_threshold = 1
        super().__init__(vectors, device, metric=metric, max_norm=max_norm)

    def _check(self, path: Path, vectors: np.ndarray, hint: str) -> None:
        """Refuse a file of other vectors, or one that would rank them otherwise.

        Raises:
            IndexMismatchError: it is one.
        """
        faiss = import_faiss()
        count, dim = vectors.shape
        found = (self._faiss.ntotal, self._faiss.d, self._faiss.metric_type)
        # DPR ranks by inner product through distances of vectors with one more number.
        self._extra = 1 if self._distance and found[1] == dim + 1 else 0
        known = self._distance or found[2] == faiss.METRIC_INNER_PRODUCT
        if found[:2] != (count, dim + self._extra) or not known:
            raise IndexMismatchError(
                f"holds {found[0]} vectors of {found[1]} dimensions, metric {found[2]}, where the index has "
                f"{count} of {dim}, metric {faiss.METRIC_INNER_PRODUCT} (inner product)",
                path=path,
                hint=hint,
            )
        if self._distance and not self._extra:
            shortest, longest = lengths(vectors)
            if longest - shortest > EQUAL_LENGTHS * longest:
                raise IndexMismatchError(
                    f"ranks by distance (metric {found[2]}, L2), which is not the order of inner products: the vectors' "
                    f"lengths go from {shortest:.3g} to {longest:.3g}",
                    path=path,
                    hint=hint,
                )

    def _load(self, memory_bytes: int | None) -> None:
        """Leave the vectors in their file: faiss holds its own."""

    def replace(self, vectors: np.ndarray | Tensor) -> None:
        """Refuse: a faiss file cannot follow new vectors.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{FAISS_FILE} holds the vectors it was made from and cannot take new ones",
            hint="search exactly (--search-index flat) where the encoder of passages is trained",
        )

    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        width = min(max(k + MARGIN, COMPRESSED * k if self._compressed else 0), self.count)
        values, ids = self._propose(queries, width)
        if not self._exhaustive:
            self._search_further(queries, k, ids)
        scores, ids = first(*self._scored(queries, ids), k)
        if not self._exhaustive:
            left = torch.nonzero(ids[:, -1] < 0).flatten()
        elif width < self.count:
            left = torch.nonzero(~(values[:, k - 1] - values[:, -1] > self._rounding(queries))).flatten()
        else:
            return scores, ids
        if len(left):
            scores[left], ids[left] = self._by_product(queries[left], k)
        return scores, ids

    def _scored(self, queries: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return exact scores and ids by rising id, which is the order of equal scores; -inf where there is none."""
        ids = ids.sort(dim=1).values
        return exact_scores(queries, self._rows, ids.clamp(min=0)).masked_fill_(ids < 0, -math.inf), ids

    def _propose(self, queries: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return (batch, width) what faiss found: values, the larger the better, and positions or -1."""
        numbers = queries.cpu().numpy()
        if self._extra:
            numbers = np.pad(numbers, ((0, 0), (0, 1)))
        found, positions = self._faiss.search(np.ascontiguousarray(numbers), width)
        values = torch.from_numpy(found).to(queries.device)
        return -values / 2 if self._distance else values, torch.from_numpy(positions).to(queries.device)

    def _search_further(self, queries: Tensor, k: int, ids: Tensor) -> None:
        """Search with more and more effort for the rows of ``ids`` that hold fewer than k passages."""
        if self._effort is None:
            return
        owner, name, most = self._effort
        before = getattr(owner, name)
        effort = before
        try:
            while effort < most:
                short = torch.nonzero((ids >= 0).sum(1) < k).flatten()
                if not len(short):
                    return
                effort = min(4 * effort, most)
                setattr(owner, name, effort)
                ids[short] = self._propose(queries[short], ids.shape[1])[1]
        finally:
            setattr(owner, name, before)

    def _rounding(self, queries: Tensor) -> Tensor:
        """Return (batch,) differences of faiss's values below which it cannot tell two passages apart."""
        if not self._distance:
            return self._slack(queries)
        reach: Tensor = torch.linalg.vector_norm(queries, dim=1) + self._max_norm
        return reach**2 * (8 * math.sqrt(self.dim) * 2**-24)


def effort_of(index: Any) -> tuple[Any, str, int] | None:  # noqa: ANN401 - faiss has no types
    """Return what sets the effort of a search (object, attribute, largest value), None where there is no such thing."""
    faiss = import_faiss()
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        return lists, "nprobe", int(lists.nlist)
    while hasattr(index, "index"):
        index = faiss.downcast_index(index.index)
    return (index.hnsw, "efSearch", int(index.ntotal)) if hasattr(index, "hnsw") else None


def stores_whole_vectors(index: Any) -> bool:  # noqa: ANN401 - faiss has no types
    """Return whether an index ranks by the vectors themselves, not by compressed ones."""
    faiss = import_faiss()
    return isinstance(index, faiss.IndexFlat | faiss.IndexHNSWFlat | faiss.IndexIVFFlat)


def lengths(vectors: np.ndarray) -> tuple[float, float]:
    """Return the lengths of the shortest and the longest of (count, dim) vectors."""
    shortest, longest = math.inf, 0.0
    rows = max(1, BLOCK // vectors.shape[1])
    for start in range(0, len(vectors), rows):
        norms = np.linalg.norm(np.asarray(vectors[start : start + rows], dtype=np.float32), axis=1)
        shortest, longest = min(shortest, float(norms.min())), max(longest, float(norms.max()))
    return shortest, longest


def write_faiss(vectors_path: Path, path: Path) -> None:
    """Write the vectors of a ``.npy`` file as a faiss ``IndexFlatIP`` (float32).

    Raises:
        ConfigError: faiss is not installed.
    """
    faiss = import_faiss()
    vectors = np.load(vectors_path, mmap_mode="r", allow_pickle=False)
    index = faiss.IndexFlatIP(vectors.shape[1])
    rows = max(1, BLOCK // vectors.shape[1])
    for start in range(0, len(vectors), rows):
        index.add(np.ascontiguousarray(vectors[start : start + rows], dtype=np.float32))
    faiss.write_index(index, str(path))


def import_faiss() -> Any:  # noqa: ANN401 - the module has no types
    """Return the faiss module.

    Raises:
        ConfigError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "faiss is not installed",
            hint="pip install 'ragtrain[cpu]' (or 'ragtrain[gpu]'), or use index type flat, which needs no faiss",
        ) from error
    return faiss
