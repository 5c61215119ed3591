"""Adding faiss files and BM25 to a finished folder: measured, written into the manifest, replaced, never over others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from ragtrain.config.commands import PrepareConfig
from ragtrain.errors import ConfigError
from ragtrain.index.search import DenseIndex
from ragtrain.prepare import beside
from ragtrain.prepare.beside import complete

if TYPE_CHECKING:
    from pathlib import Path

faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")

VECTORS = np.random.default_rng(0).normal(size=(700, 16)).astype(np.float32)


def asked(index_type: str, **settings: int) -> PrepareConfig:
    return PrepareConfig(index_type=index_type, ann={"recall_samples": 30, "pq_bytes": 4, **settings})


def test_a_type_is_added_measured_and_replaced(make_index, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_index(VECTORS).path
    before = (path / "vectors.npy").stat().st_mtime_ns
    for kind, name in [("hnsw", "IndexHNSWFlat"), ("ivf", "IndexIVFFlat"), ("ivfpq", "IndexIVFPQ")]:
        complete(asked(kind), path)
        index = DenseIndex.open(path)
        assert type(faiss.read_index(str(path / "index.faiss"))).__name__ == name
        about = index.manifest["ann"]
        assert about["type"] == kind
        assert about["settings"] == beside.ann.settings_for(kind, asked(kind).ann, 700, 16)
        assert list(about["recall"]) == ["1", "5", "20", "100"]
        assert about["bytes"] == (path / "index.faiss").stat().st_size == index.manifest["files"]["index.faiss"]["size"]
        assert about["queries"]["count"] == 30
        printed = capsys.readouterr().err
        assert f"{kind} against exact search: 30 queries (vectors of passages with noise" in printed
        assert f"{about['recall']['5']:.1%}" in printed
        assert index.searcher(backend="faiss").search(torch.randn(3, 16), 9).mask.all()
    complete(asked("faiss-flat"), path)
    flat = DenseIndex.open(path)
    assert flat.manifest["ann"]["type"] == "faiss-flat"
    queries = torch.randn(5, 16)
    assert torch.equal(flat.searcher(backend="faiss").search(queries, 4).ids, flat.searcher().search(queries, 4).ids)
    assert (path / "vectors.npy").stat().st_mtime_ns == before
    assert not [file for file in path.iterdir() if file.name.startswith(".")]


def test_the_same_again_does_nothing_and_other_settings_do(make_index) -> None:
    path = make_index(VECTORS).path
    complete(asked("ivf", n_probe=2), path)
    first = (path / "index.faiss").stat().st_mtime_ns
    complete(asked("ivf", n_probe=2), path)
    complete(PrepareConfig(), path)
    assert (path / "index.faiss").stat().st_mtime_ns == first
    complete(asked("ivf", n_probe=3), path)
    assert DenseIndex.open(path).manifest["ann"]["settings"]["n_probe"] == 3
    assert (path / "index.faiss").stat().st_mtime_ns != first


def test_a_plain_faiss_file_of_earlier_is_known(make_index, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_index(VECTORS, faiss=True).path
    monkeypatch.setattr(beside.ann, "build", None)
    complete(asked("faiss-flat"), path)
    assert "ann" not in DenseIndex.open(path).manifest


def test_words_are_added_once(make_index) -> None:
    path = make_index(VECTORS).path
    complete(PrepareConfig(bm25=True), path)
    index = DenseIndex.open(path)
    assert index.words().search(["text 650"], 1).tolist() == [[650]]
    written = (path / "manifest.json").stat().st_mtime_ns
    complete(PrepareConfig(bm25=True), path)
    assert (path / "manifest.json").stat().st_mtime_ns == written
    complete(asked("hnsw"), path)
    assert DenseIndex.open(path).words().count == 700, "one addition keeps the other"


def adopted(index: DenseIndex, file: Path) -> None:
    """Make an index look adopted: its vectors are those in another tool's flat faiss file."""
    flat = faiss.IndexFlatIP(16)
    flat.add(VECTORS)
    faiss.write_index(flat, str(file))
    manifest = json.loads((index.path / "manifest.json").read_text())
    (index.path / "vectors.npy").unlink()
    del manifest["files"]["vectors.npy"]
    manifest["files"]["index.faiss"] = {"path": str(file), "size": file.stat().st_size, "sha256": ""}
    offset = file.stat().st_size - VECTORS.nbytes
    place = {"dtype": "float32", "offset": offset, "width": 16, "dim": 16}
    manifest |= {"storage": "float32", "vectors": {"file": "index.faiss", "place": place}}
    (index.path / "manifest.json").write_text(json.dumps(manifest))


def test_an_adopted_file_is_kept_and_still_holds_the_vectors(make_index, tmp_path: Path) -> None:
    index, theirs = make_index(VECTORS), tmp_path / "their.faiss"
    adopted(index, theirs)
    content = theirs.read_bytes()
    complete(asked("hnsw"), index.path)
    again = DenseIndex.open(index.path)
    assert theirs.read_bytes() == content
    np.testing.assert_array_equal(np.asarray(again.vectors), VECTORS)
    assert again.file("index.faiss") == index.path / "index.faiss"
    assert again.searcher(backend="faiss").search(torch.randn(2, 16), 5).mask.all()
    complete(asked("ivf"), index.path)
    np.testing.assert_array_equal(np.asarray(DenseIndex.open(index.path).vectors), VECTORS)


def test_an_adopted_file_in_the_folder_itself_is_not_written_over(make_index) -> None:
    index = make_index(VECTORS)
    adopted(index, index.path / "index.faiss")
    content = (index.path / "index.faiss").read_bytes()
    with pytest.raises(ConfigError, match="would replace it") as caught:
        complete(asked("hnsw"), index.path)
    assert "--output-dir" in str(caught.value.hint)
    assert (index.path / "index.faiss").read_bytes() == content


def test_libraries_are_asked_for_before_anything_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    beside.check_libraries(PrepareConfig())
    with pytest.raises(ConfigError, match="faiss is not installed"):
        beside.check_libraries(asked("ivf"))
    with pytest.raises(ConfigError, match="bm25s is not installed"):
        beside.check_libraries(PrepareConfig(bm25=True))


def test_a_compression_that_cannot_be_is_refused_before_vectors_are_made() -> None:
    beside.check_dimensions(asked("ivfpq"), 16)
    beside.check_dimensions(asked("hnsw"), 15)
    with pytest.raises(ConfigError, match="pq_bytes is 4, which does not divide the 15 dimensions"):
        beside.check_dimensions(asked("ivfpq"), 15)
