"""Where the vectors of another tool lie: rows in a file that are read as they are, or a source to be copied from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Numbers read at a time (64 MiB of float32).
BLOCK = 2**24
AGAIN = "copy the file again from where it was made, or encode the passages again (ragtrain index prepare --passages)"


@dataclasses.dataclass(frozen=True)
class Place:
    """Rows of a file, one after the other from ``offset`` on, that are vectors as they stand.

    Attributes:
        dtype: ``float32`` or ``float16``, little-endian.
        offset: byte of the first number.
        width: numbers of a row.
        dim: how many of them, from the first on, are the vector; DPR's last one is not.
    """

    dtype: str
    offset: int
    width: int
    dim: int

    def to_json(self) -> dict[str, Any]:
        """Return the form in which a manifest has it."""
        return dataclasses.asdict(self)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.width * np.dtype(self.dtype).itemsize

    def open(self, path: Path, count: int) -> np.ndarray:
        """Return (count, dim) vectors, mapped from the file.

        Raises:
            DataError: the file is too short.
        """
        needed, found = self.offset + count * self.row_bytes, path.stat().st_size
        if found < needed:
            raise DataError(
                f"truncated file: {found:,} bytes where {count:,} vectors of {self.width} numbers end at {needed:,}",
                path=path,
                hint=AGAIN,
            )
        dtype = np.dtype(self.dtype).newbyteorder("<")
        mapped = np.memmap(path, dtype=dtype, mode="r", offset=self.offset, shape=(count, self.width))
        return mapped if self.dim == self.width else mapped[:, : self.dim]


@dataclasses.dataclass(frozen=True)
class ForeignVectors:
    """Vectors of another tool, not yet looked at.

    Attributes:
        path: file or folder they are in.
        kind: what that is, in words.
        count: number of vectors.
        width: numbers of a vector as stored.
        dtype: precision in which they are stored.
        metric: what the index ranks by, where it says.
        place: where they can be read as they are; None where they must be copied out.
        blocks: yields all of them in order, (m, width) at a time; for what has no place.
        ids: the index's own ids of the vectors, where it has any.
        loss: what was lost when they were stored; None where they are whole.
        searchable: faiss can search the file with positions as ids.
        owner: what the blocks are read from, and would be gone without.
    """

    path: Path
    kind: str
    count: int
    width: int
    dtype: Literal["float16", "float32"] = "float32"
    metric: Literal["inner_product", "l2"] | None = None
    place: Place | None = None
    blocks: Callable[[], Iterator[np.ndarray]] | None = None
    ids: np.ndarray | list[str] | None = None
    loss: str | None = None
    searchable: bool = False
    owner: Any = None


def iter_blocks(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of the first row and (m, dim) float32 rows, a copy, until all were read."""
    rows = max(1, BLOCK // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        yield start, np.array(vectors[start : start + rows], dtype=np.float32, order="C")
