"""Passages of the demo set with their honest vectors, and folders as other tools leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ragtrain.data import demo
from ragtrain.models.encoder import TextEncoder, load_encoder
from ragtrain.records import Passage

COUNT = 200
Foreign = Callable[..., Path]


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    return load_encoder(demo.ENCODER)


@pytest.fixture(scope="session")
def passages() -> list[Passage]:
    return demo.build().passages[:COUNT]


@pytest.fixture(scope="session")
def vectors(encoder: TextEncoder, passages: list[Passage]) -> np.ndarray:
    return encoder.encode_passages([(passage.title, passage.text) for passage in passages])


@pytest.fixture
def foreign(tmp_path: Path, passages: list[Passage], vectors: np.ndarray) -> Foreign:
    """Write ``index.faiss`` + ``passages.jsonl`` into a folder and return it."""
    faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")

    def make(name: str = "theirs", *, rows: np.ndarray | None = None, metric: int = 0, index: object = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if index is None:
            stored = vectors if rows is None else np.ascontiguousarray(rows, dtype=np.float32)
            index = faiss.IndexFlat(stored.shape[1], metric)
            index.add(stored)
        faiss.write_index(index, str(folder / "index.faiss"))
        lines = (json.dumps(passage.to_json()) + "\n" for passage in passages)
        (folder / "passages.jsonl").write_text("".join(lines))
        return folder

    return make
