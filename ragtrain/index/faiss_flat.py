"""The flat inner-product index of faiss: written from our vectors, read and searched where it is asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ragtrain.errors import ConfigError, DataError, IndexMismatchError
from ragtrain.index.exact import MARGIN, Searcher, first

if TYPE_CHECKING:
    from pathlib import Path

FAISS_FILE = "index.faiss"
HINT = "write it again with `ragtrain index prepare --index-type faiss-flat`"


class FaissSearcher(Searcher):
    """Search through ``index.faiss`` on the CPU; candidates are scored again as in the flat search."""

    def __init__(
        self,
        path: Path,
        vectors: np.ndarray,
        device: torch.device | str = "cpu",
        *,
        metric: Literal["inner_product", "cosine"] = "inner_product",
        max_norm: float | None = None,
    ) -> None:
        """Read ``index.faiss``.

        Args:
            path: the faiss file.
            vectors: (count, dim) stored vectors, in the same order; the other arguments are those of ``Searcher``.
            device: where hits are returned.
            metric: with ``cosine``, questions are scaled to unit length.
            max_norm: length of the longest vector.

        Raises:
            ConfigError: faiss is not installed.
            DataError: the file is missing or does not fit the index.
        """
        faiss = import_faiss()
        if not path.is_file():
            raise DataError("this index has no faiss file", path=path, hint=HINT)
        try:
            self._faiss = faiss.read_index(str(path))
        except RuntimeError as error:
            raise DataError(f"faiss cannot read it: {error}", path=path, hint=HINT) from error
        found = (self._faiss.ntotal, self._faiss.d, self._faiss.metric_type)
        if found != (*vectors.shape, faiss.METRIC_INNER_PRODUCT):
            raise IndexMismatchError(
                f"holds {found[0]} vectors of {found[1]} dimensions, metric {found[2]}, where the index has "
                f"{vectors.shape[0]} of {vectors.shape[1]}, metric {faiss.METRIC_INNER_PRODUCT} (inner product)",
                path=path,
                hint=HINT,
            )
        # By default faiss >= 1.15 multiplies row by row however large the batch is.
        faiss.cvar.distance_compute_blas_threshold = 1
        super().__init__(vectors, device, metric=metric, max_norm=max_norm)

    def _load(self, memory_bytes: int | None) -> None:
        """Leave the vectors in their file: faiss holds its own."""

    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        width = min(k + MARGIN, self.count)
        found, positions = self._faiss.search(queries.cpu().numpy(), width)
        values = torch.from_numpy(found).to(queries.device)
        ids = torch.from_numpy(positions).to(queries.device).sort(dim=1).values
        stored = self.vectors(ids).to(queries.device)
        product = (stored.double() * queries.double().unsqueeze(1)).sum(-1)
        scores, ids = first(product.float(), ids, k)
        if width < self.count:
            unsure = torch.nonzero(values[:, k - 1] - values[:, -1] <= self._slack(queries)).flatten()
            if len(unsure):
                scores[unsure], ids[unsure] = super()._best(queries[unsure], k)
        return scores, ids


def write_faiss(vectors_path: Path, path: Path) -> None:
    """Write the vectors of a ``.npy`` file as a faiss ``IndexFlatIP`` (float32).

    Raises:
        ConfigError: faiss is not installed.
    """
    faiss = import_faiss()
    vectors = np.load(vectors_path, mmap_mode="r", allow_pickle=False)
    index = faiss.IndexFlatIP(vectors.shape[1])
    rows = max(1, math.floor(2**26 / vectors.shape[1]))
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
