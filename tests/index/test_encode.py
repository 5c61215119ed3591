from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ragtrain.errors import ConfigError, DataError, RagtrainError
from ragtrain.index import faiss_search
from ragtrain.index.encode import IndexWriter, add_faiss
from ragtrain.index.passages import PassageStore
from ragtrain.index.search import DenseIndex
from ragtrain.index.vectors import VectorFile
from ragtrain.records import Passage, sha256_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PASSAGES = [Passage(f"p{i}", f"t{i}", f"text {i}") for i in range(10)]


def encode(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return vectors that tell which passage they belong to."""
    return np.array([[int(text.split()[1]) + 1, 0.5, -2.0] for _, text in pairs], dtype=np.float32)


def write(path: Path, encode_with: object = encode, *, overwrite: bool = False, **settings: object) -> dict:
    with IndexWriter(path, overwrite=overwrite) as writer:
        writer.write_passages(iter(PASSAGES))
        writer.write_vectors(encode_with, dim=3, chunk=4, **settings)
        return writer.commit(encoder={"name": "e"}, source={"path": "x"}, splitting={"passage_words": 5})


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_what_is_written(tmp_path: Path, storage: str) -> None:
    done: list[int] = []
    manifest = write(tmp_path / "index", storage=storage, progress=done.append)
    assert done == [4, 4, 2]
    vectors = np.load(tmp_path / "index" / "vectors.npy")
    assert vectors.dtype == storage
    assert (vectors == encode([(p.title, p.text) for p in PASSAGES])).all()
    assert list(PassageStore(tmp_path / "index")) == PASSAGES
    assert manifest == json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (manifest["count"], manifest["dim"], manifest["metric"]) == (10, 3, "inner_product")
    assert manifest["max_norm"] == pytest.approx(np.linalg.norm(vectors[-1].astype(float)))
    for name, entry in manifest["files"].items():
        path = tmp_path / "index" / name
        assert entry == {"size": path.stat().st_size, "sha256": sha256_file(path)}
    assert set(manifest["files"]) == {"vectors.npy", "passages.jsonl", "passages.idx.npy"}
    assert manifest["passages_sha256"] == manifest["files"]["passages.jsonl"]["sha256"]
    assert [p.name for p in tmp_path.iterdir()] == ["index"], "nothing is left aside"


def test_cosine_stores_unit_vectors(tmp_path: Path) -> None:
    write(tmp_path / "index", metric="cosine", storage="float32")
    vectors = np.load(tmp_path / "index" / "vectors.npy")
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("value", "storage", "message"),
    [
        (np.nan, "float32", "is not finite"),
        (np.inf, "float16", "is not finite"),
        (0.0, "float32", "is zero in float32"),
        (1e-9, "float16", "is zero in float16"),
        (1e6, "float16", "has a component too large for float16"),
    ],
)
def test_unusable_vectors_name_the_passage(tmp_path: Path, value: float, storage: str, message: str) -> None:
    def broken(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        vectors = encode(pairs)
        vectors[[text == "text 6" for _, text in pairs]] = value
        return vectors

    with pytest.raises(DataError, match=rf"passage 'p6' \(number 6\) {message}.*'t6'.*'text 6'"):
        write(tmp_path / "index", broken, storage=storage)
    assert list(tmp_path.iterdir()) == [], "a failed index leaves nothing"


def test_fine_where_the_storage_is_wide_enough(tmp_path: Path) -> None:
    write(tmp_path / "index", lambda pairs: encode(pairs) * 1e6, storage="float32")
    assert DenseIndex.open(tmp_path / "index").count == 10


def test_wrong_shape_from_the_encoder(tmp_path: Path) -> None:
    with pytest.raises(RagtrainError, match=r"returned \(4, 2\) where \(4, 3\) was expected"):
        write(tmp_path / "index", lambda pairs: encode(pairs)[:, :2])


def test_duplicates_and_nothing(tmp_path: Path) -> None:
    for passages, message in (([PASSAGES[0]] * 2, "same id"), ([], "no passage")):
        with pytest.raises(DataError, match=message), IndexWriter(tmp_path / "index") as writer:
            writer.write_passages(passages)
    assert list(tmp_path.iterdir()) == []


def test_interrupted(tmp_path: Path) -> None:
    def stopping(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        raise KeyboardInterrupt

    write(tmp_path / "index")
    before = (tmp_path / "index" / "manifest.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "index", stopping, overwrite=True)
    assert (tmp_path / "index" / "manifest.json").read_bytes() == before, (
        "the old index stands until the new one is whole"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.mkdir()
    write(path)
    (path / "tokens-0").mkdir()
    with pytest.raises(ConfigError, match="holds an index"):
        write(path)
    write(path, lambda pairs: -encode(pairs), overwrite=True)
    assert DenseIndex.open(path).vectors[0, 0] == -1
    assert not (path / "tokens-0").exists(), "tokens of other passages go with them"
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_folder_that_is_no_index_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no index"):
        write(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_order_of_calls(tmp_path: Path) -> None:
    with IndexWriter(tmp_path / "index") as writer:
        with pytest.raises(RagtrainError, match="before write_passages"):
            writer.write_vectors(encode, dim=3)
        with pytest.raises(RagtrainError, match="before passages and vectors"):
            writer.commit(encoder={})


def test_a_request_is_found_again(tmp_path: Path) -> None:
    def stopping(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        if pairs[0][1] == "text 4":
            raise KeyboardInterrupt
        return encode(pairs)

    def attempt(encode_with: object) -> list[int]:
        done: list[int] = []
        with IndexWriter(tmp_path / "index", request="r") as writer:
            if writer.stored_passages() is None:
                writer.write_passages(iter(PASSAGES))
                writer.record_passages(read=10)
            writer.write_vectors(encode_with, dim=3, chunk=4, progress=done.append)
            writer.commit(encoder={})
        return done

    with pytest.raises(KeyboardInterrupt):
        attempt(stopping)
    assert [path.name for path in tmp_path.iterdir()] == [".index.work-r"]
    assert attempt(encode) == [4, 2], "the first of three chunks was there"
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert (DenseIndex.open(tmp_path / "index").vectors == encode([(p.title, p.text) for p in PASSAGES])).all()
    with pytest.raises(ConfigError, match="holds an index"):
        attempt(encode)


def test_a_full_disk_is_said_before_hours_of_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=59))
    with pytest.raises(DataError, match=r"where 0\.0 GB are free"):
        write(tmp_path / "index")


def test_vectors_by_plain_reads_and_writes(tmp_path: Path) -> None:
    path, rows = tmp_path / "v.npy", np.arange(12, dtype=np.float16).reshape(4, 3)
    np.save(path, np.zeros((4, 3), np.float16))
    with VectorFile(path, writable=True) as file:
        assert (file.shape, file.dtype) == ((4, 3), np.float16)
        digest = file.write(1, rows[1:3])
        assert file.digest(1, 3) == digest == hashlib.sha256(rows[1:3].tobytes()).hexdigest()
        assert file.digest(0, 2) != digest
    assert np.load(path).tolist() == [[0, 0, 0], *rows[1:3].tolist(), [0, 0, 0]]


def test_faiss_file_can_be_added(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")
    manifest = write(tmp_path / "index")
    changed = add_faiss(tmp_path / "index", manifest)
    index = faiss.read_index(str(tmp_path / "index" / "index.faiss"))
    assert (index.ntotal, index.d, index.metric_type) == (10, 3, faiss.METRIC_INNER_PRODUCT)
    assert (index.reconstruct_n(0, 10) == encode([(p.title, p.text) for p in PASSAGES])).all()
    assert DenseIndex.open(tmp_path / "index").manifest == changed
    assert set(changed["files"]) - set(manifest["files"]) == {"index.faiss"}


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError) as caught:
        faiss_search.import_faiss()
    assert "pip install 'ragtrain[cpu]'" in str(caught.value.hint)
