"""A small index on disk, and a way to make others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ragtrain.index.encode import IndexWriter
from ragtrain.index.search import DenseIndex
from ragtrain.records import Passage

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

MakeIndex = Callable[..., DenseIndex]


@pytest.fixture
def make_index(tmp_path: Path) -> MakeIndex:
    """Write vectors (count, dim) as an index called ``name`` and open it."""

    def make(vectors: np.ndarray, name: str = "index", faiss: bool = False, **settings: Any) -> DenseIndex:
        done = 0

        def encode(pairs: object) -> np.ndarray:
            nonlocal done
            done += len(pairs)
            return vectors[done - len(pairs) : done]

        with IndexWriter(tmp_path / name) as writer:
            writer.write_passages(Passage(f"p{i}", f"title {i}", f"text {i}") for i in range(len(vectors)))
            writer.write_vectors(encode, dim=vectors.shape[1], **{"chunk": 97, **settings})
            writer.commit(encoder={"name": None}, faiss=faiss)
        return DenseIndex.open(tmp_path / name)

    return make
