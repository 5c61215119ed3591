"""Names as unit vectors of a sentence encoder, and exact search among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ragtrain.errors import NumericsError
from ragtrain.index.exact import QUERIES, Searcher
from ragtrain.prepare.encoders import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.models.encoder import TextEncoder


class NameVectors:
    """Vectors of names, made when they are first needed.

    Attributes:
        encoder: makes them; a name is encoded as a passage without title, both sides alike.
    """

    def __init__(
        self, names: Sequence[str], encoder: TextEncoder, *, batch_size: int = 64, device: torch.device | None = None
    ) -> None:
        self.encoder, self._names = encoder, names
        self._batch_size, self._device = batch_size, device or encoder.device
        self._vectors: np.ndarray | None = None
        self._searcher: Searcher | None = None

    @property
    def vectors(self) -> np.ndarray:
        """(names, dim) float32 of unit length."""
        if self._vectors is None:
            self._vectors = self.encode(self._names)
        return self._vectors

    def encode(self, names: Sequence[str]) -> np.ndarray:
        """Return (names, dim) float32 vectors of unit length.

        Raises:
            NumericsError: the encoder gives a name no direction.
        """
        vectors = encode(self.encoder, [("", name) for name in names], self._batch_size, self._device)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
        if len(bad):
            raise NumericsError(
                f"the encoder's vector of {names[int(bad[0])]!r} has no direction", hint="use another encoder"
            )
        return np.asarray(vectors / lengths, dtype=np.float32)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (queries, k) places of the nearest names, best first, and their cosines; -1 where there are fewer.

        Args:
            queries: (queries, dim) unit vectors.
            k: how many.
        """
        if self._searcher is None:
            self._searcher = Searcher(self.vectors, self._device, metric="cosine")
        places, scores = [np.empty((0, k), np.int64)], [np.empty((0, k), np.float32)]
        for start in range(0, len(queries), QUERIES):
            hits = self._searcher.search(torch.from_numpy(queries[start : start + QUERIES]), k)
            places.append(hits.ids.cpu().numpy())
            scores.append(hits.scores.cpu().numpy())
        return np.concatenate(places), np.concatenate(scores)
