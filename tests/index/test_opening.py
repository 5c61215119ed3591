"""Opening an index folder: every file is checked against the manifest and the others."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ragtrain.errors import DataError, IndexMismatchError
from ragtrain.index.search import DenseIndex

if TYPE_CHECKING:
    from pathlib import Path

DIM = 24


def vectors_of(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def test_open(make_index) -> None:
    vectors = vectors_of(12)
    index = make_index(vectors)
    assert (index.count, len(index), index.dim, index.metric) == (12, 12, DIM, "inner_product")
    assert (np.asarray(index.vectors) == vectors.astype(np.float16)).all()
    assert index.passages[3].text == "text 3"
    assert index.question_encoder is None
    assert index.encoder_config.encoder is None


def test_question_encoder_of_a_dpr_index(make_index) -> None:
    index = make_index(vectors_of(5))
    index.manifest["encoder"] = {
        "name": "facebook/dpr-ctx_encoder-single-nq-base", "spec": {"model_class": "DPRContextEncoder"},
        "config": {"passage_max_tokens": 256},
    }  # fmt: skip
    assert index.question_encoder == "facebook/dpr-question_encoder-single-nq-base"
    assert index.encoder_config.passage_max_tokens == 256


@pytest.mark.parametrize("name", ["vectors.npy", "passages.jsonl", "passages.idx.npy"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [("cut", r"was cut: [\d,]+ bytes where"), ("grown", "was changed"), ("gone", "is missing")],
)
def test_a_damaged_file_is_named(make_index, name: str, damage: str, message: str) -> None:
    index = make_index(vectors_of(30))
    path = index.path / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "grown":
        path.write_bytes(path.read_bytes() + b"\n")
    else:
        path.unlink()
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        DenseIndex.open(index.path)


def test_files_of_another_index(make_index) -> None:
    one, other = make_index(vectors_of(30)), make_index(vectors_of(30, dim=8), name="other")
    shutil.copy(other.path / "vectors.npy", one.path / "vectors.npy")
    manifest = one.manifest
    manifest["files"]["vectors.npy"] = other.manifest["files"]["vectors.npy"]
    (one.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexMismatchError, match=r"holds float16 \(30, 8\) where the manifest says float16 \(30, 24\)"):
        DenseIndex.open(one.path)


def test_vectors_and_passages_must_be_as_many(make_index) -> None:
    one, other = make_index(vectors_of(30)), make_index(vectors_of(29), name="other")
    for name in ("passages.jsonl", "passages.idx.npy"):
        shutil.copy(other.path / name, one.path / name)
        one.manifest["files"][name] = other.manifest["files"][name]
    (one.path / "manifest.json").write_text(json.dumps(one.manifest))
    with pytest.raises(IndexMismatchError, match="has 29 passages for 30 vectors"):
        DenseIndex.open(one.path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no manifest.json"),
        ("{", "no JSON"),
        ("[]", "no manifest of an index"),
        ('{"format": "other"}', "no manifest of an index"),
        ('{"format": "ragtrain-index", "version": 99}', "version 99 where 1 is read"),
        ('{"format": "ragtrain-index", "version": 1}', "field 'count': is missing"),
    ],
)
def test_not_an_index(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        DenseIndex.open(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        DenseIndex.open(tmp_path / "nothing")
