"""Vectors in fewer bits, what that costs them, and files of them."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors.numpy

from ragtrain.errors import NumericsError
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Storage = Literal["float16", "int8"]
_HIGHEST = 127


@dataclasses.dataclass(frozen=True)
class Coded:
    """Vectors as they are stored.

    Attributes:
        vectors: (vectors, width) float16 or int8.
        scales: (vectors,) float32, of int8; None else.
    """

    vectors: np.ndarray
    scales: np.ndarray | None = None

    def decoded(self) -> np.ndarray:
        """Return the (vectors, width) float32 that a reader gets."""
        decoded: np.ndarray = self.vectors.astype(np.float32)
        return decoded if self.scales is None else decoded * self.scales[:, None]


def coded(vectors: np.ndarray, storage: Storage) -> Coded:
    """Return vectors as they are stored: rounded to 16 bits, or to 255 steps of their own largest number.

    Args:
        vectors: (vectors, width) float32.
        storage: how.

    Raises:
        NumericsError: a number is not finite, or too large for float16.
    """
    if not np.isfinite(vectors).all():
        raise NumericsError("the compressor gave a vector that is not finite", hint="--mixed-precision no")
    if storage == "float16":
        with np.errstate(over="ignore"):
            half = vectors.astype(np.float16)
        if not np.isfinite(half).all():
            raise NumericsError(f"a number of {np.abs(vectors).max():.3g} does not fit into float16",
                                hint="--storage int8 has a scale for each vector")  # fmt: skip
        return Coded(half)
    scales = (np.abs(vectors).max(axis=1, initial=0.0) / _HIGHEST).astype(np.float32)
    steps = np.divide(vectors, scales[:, None], out=np.zeros_like(vectors), where=scales[:, None] > 0)
    return Coded(np.clip(np.rint(steps), -_HIGHEST, _HIGHEST).astype(np.int8), scales)


@dataclasses.dataclass(frozen=True)
class Error:
    """How far stored vectors are from computed ones.

    Attributes:
        vectors: compared.
        relative: sum over vectors of ``|stored - computed| / |computed|``.
        worst: the largest of these.
        cosine: sum of the cosines between stored and computed.
    """

    vectors: int = 0
    relative: float = 0.0
    worst: float = 0.0
    cosine: float = 0.0

    @classmethod
    def of(cls, computed: np.ndarray, stored: np.ndarray) -> Error:
        """Return the error of some vectors, (vectors, width) each; those of zeros alone have none."""
        a, b = computed.astype(np.float64), stored.astype(np.float64)
        norms = np.linalg.norm(a, axis=1)
        there = norms > 0
        relative = np.linalg.norm(a - b, axis=1)[there] / norms[there]
        products = np.maximum(norms * np.linalg.norm(b, axis=1), 1e-300)
        cosines = np.where(there, (a * b).sum(1) / products, 1.0)
        return cls(len(a), float(relative.sum()), float(relative.max(initial=0.0)), float(cosines.sum()))

    def __add__(self, other: Error) -> Error:
        return Error(self.vectors + other.vectors, self.relative + other.relative, max(self.worst, other.worst),
                     self.cosine + other.cosine)  # fmt: skip

    def to_json(self) -> dict[str, float]:
        """Return means over vectors, and the worst."""
        n = max(1, self.vectors)
        return {"mean_relative": self.relative / n, "worst_relative": self.worst, "mean_cosine": self.cosine / n}


def write_shard(path: Path, stored: Coded, counts: Sequence[int], tokens: Sequence[int]) -> dict[str, Any]:
    """Write a shard aside and then rename, and return its size and hash.

    Args:
        path: the file.
        stored: vectors, passage by passage.
        counts: vectors of each passage.
        tokens: of each passage, that the compressor read.
    """
    tensors = {
        "vectors": np.ascontiguousarray(stored.vectors),
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "tokens": np.asarray(tokens, dtype=np.int32),
    }
    if stored.scales is not None:
        tensors["scales"] = stored.scales
    return write_tensors(path, tensors)


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write arrays into one file aside, rename it once it is on the disk, and return its size and hash."""
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        safetensors.numpy.save_file(tensors, aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}
