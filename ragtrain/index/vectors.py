"""Vectors on their way to the disk: looked over, rounded to what is stored, written in their place."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ragtrain.records import Passage

Metric = Literal["inner_product", "cosine"]
Storage = Literal["float16", "float32"]


class VectorFile:
    """``vectors.npy`` by plain reads and writes: pages of a memory map would count as memory of this process."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shape: tuple[int, int] = mapped.shape
        self.dtype = mapped.dtype
        self._offset, self._row = int(mapped.offset), mapped.shape[1] * mapped.dtype.itemsize
        self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)

    def __enter__(self) -> VectorFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, start: int, rows: np.ndarray) -> str:
        """Put (m, dim) rows in their place, on the disk, and return the SHA-256 of their bytes."""
        data = np.ascontiguousarray(rows, dtype=self.dtype).data.cast("B")
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], self._offset + start * self._row + done)
        os.fsync(self._descriptor)
        return hashlib.sha256(data).hexdigest()

    def digest(self, start: int, stop: int) -> str:
        """Return the SHA-256 of the bytes of some rows."""
        digest, place, end = hashlib.sha256(), self._offset + start * self._row, self._offset + stop * self._row
        while place < end:
            block = os.pread(self._descriptor, min(1 << 20, end - place), place)
            if not block:
                break
            digest.update(block)
            place += len(block)
        return digest.hexdigest()


def storable(
    rows: np.ndarray, passages: Sequence[Passage], first: int, *, storage: Storage, metric: Metric
) -> np.ndarray:
    """Return (m, dim) float32 vectors in the form in which they are stored.

    Raises:
        DataError: a vector is not finite, or zero, or does not fit the storage; the passage is named.
    """
    _refuse(~np.isfinite(rows).all(axis=1), passages, first, "is not finite (NaN or infinity)",
            "the encoder is broken or its arithmetic overflowed: try it in float32, or another encoder")  # fmt: skip
    if metric == "cosine":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1)
    with np.errstate(over="ignore"):
        stored = rows.astype(storage)
    _refuse(~np.isfinite(stored).all(axis=1), passages, first, f"has a component too large for {storage}",
            "store the vectors with --storage float32")  # fmt: skip
    _refuse(~(stored != 0).any(axis=1), passages, first, f"is zero in {storage}",
            "look at the passage's text; if all vectors are tiny, store them with --storage float32")  # fmt: skip
    return stored


def _refuse(bad: np.ndarray, passages: Sequence[Passage], first: int, what: str, hint: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        passage = passages[int(rows[0])]
        more = f" (and {len(rows) - 1} more of {len(passages)})" if len(rows) > 1 else ""
        message = f"the vector of passage {passage.id!r} (number {first + int(rows[0])}){more} {what}"
        raise DataError(f"{message}; its title is {passage.title!r}, its text begins {passage.text[:80]!r}", hint=hint)
