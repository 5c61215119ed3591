"""What is asked of an adopted folder later on, and what must not be lost or left behind."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ragtrain.config.commands import InfoConfig, PrepareConfig
from ragtrain.errors import ConfigError, DataError, IndexMismatchError
from ragtrain.index.search import DenseIndex
from ragtrain.prepare import info, run
from ragtrain.prepare.result import PrepareResult

if TYPE_CHECKING:
    from pathlib import Path

faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")


def adopt(path: Path, **settings: Any) -> PrepareResult:
    return run(PrepareConfig.model_validate({"index_path": path, "verify_samples": 4, "device": "cpu", **settings}))


def test_the_other_tool_s_file_is_never_written_over(foreign, vectors) -> None:
    folder = foreign()
    adopt(folder)
    content = (folder / "index.faiss").read_bytes()
    for again in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError, match="would replace it") as caught:
            adopt(folder, index_type="hnsw", **again)
        assert "--output-dir" in str(caught.value.hint)
        assert (folder / "index.faiss").read_bytes() == content
    # Beside it, ours is written, and replaced by another one of ours.
    elsewhere = folder.parent / "ours"
    adopt(folder / "index.faiss", output_dir=elsewhere, index_type="hnsw")
    adopt(elsewhere, index_type="faiss-flat")
    assert (folder / "index.faiss").read_bytes() == content
    np.testing.assert_array_equal(np.asarray(DenseIndex.open(elsewhere).vectors), vectors)


def test_a_faiss_file_with_ids_of_its_own_is_not_searched_as_if_they_were_positions(foreign, vectors, passages) -> None:
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], 2, faiss.METRIC_INNER_PRODUCT)
    lists.train(vectors)
    lists.add_with_ids(vectors, np.arange(len(vectors)) + 1000)
    folder = foreign(index=lists)
    rows = [{**passage.to_json(), "id": str(1000 + i)} for i, passage in enumerate(passages)]
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adopt(folder)
    index = DenseIndex.open(folder)
    assert index.searcher().search(torch.from_numpy(vectors[:3]), 2).mask.all()
    with pytest.raises(DataError, match="no search index of these vectors") as caught:
        index.searcher(backend="faiss")
    assert "--output-dir" in str(caught.value.hint)


def test_the_folder_alone_is_enough_wherever_its_files_lie(foreign, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    folder = foreign()
    adopt(folder, output_dir=tmp_path / "out")
    assert adopt(tmp_path / "out", bm25=True).reused
    assert DenseIndex.open(tmp_path / "out").words().count == 200


def test_other_passages_or_ids_are_not_taken_for_the_same(foreign, tmp_path: Path, passages) -> None:
    folder, out = foreign(), tmp_path / "out"
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(passage.id for passage in passages))
    adopt(folder, output_dir=out, ids_file=ids)
    assert adopt(folder, output_dir=out, ids_file=ids, passages=folder / "passages.jsonl").reused
    other = shutil.copy(folder / "passages.jsonl", tmp_path / "other.jsonl")
    for name, path in (("passages", other), ("ids_file", shutil.copy(ids, tmp_path / "other.txt"))):
        with pytest.raises(ConfigError, match=f"adopted with another {name}") as caught:
            adopt(folder, output_dir=out, **{name: path})
        assert "--overwrite" in str(caught.value.hint)


def test_a_folder_that_was_moved_is_known_again(foreign, tmp_path: Path) -> None:
    folder = foreign()
    adopt(folder)
    moved = folder.rename(tmp_path / "moved")
    assert adopt(moved).reused
    assert adopt(moved / "index.faiss", passages=moved / "passages.jsonl").reused


def test_a_plan_and_a_refusal_leave_no_folder(foreign, vectors, tmp_path: Path) -> None:
    folder = foreign()
    adopt(folder, output_dir=tmp_path / "new" / "deep", dry_run=True)
    swapped = foreign("swapped", rows=vectors[::-1])
    with pytest.raises(IndexMismatchError):
        adopt(swapped, output_dir=tmp_path / "new" / "deep", verify_samples=16)
    assert not (tmp_path / "new").exists()
    (tmp_path / "kept").mkdir()
    adopt(folder, output_dir=tmp_path / "kept" / "out", dry_run=True)
    assert list((tmp_path / "kept").iterdir()) == []


def test_empty_files_are_called_by_their_name(foreign, vectors, tmp_path: Path) -> None:
    folder = foreign()
    (folder / "ids.npy").touch()
    with pytest.raises(DataError, match="no list of ids") as caught:
        adopt(folder)
    assert caught.value.path == folder / "ids.npy"
    raw = tmp_path / "raw"
    raw.mkdir()
    vectors.tofile(raw / "emb.memmap")
    (raw / "passages.jsonl").touch()
    with pytest.raises(DataError, match="no shape of its own"):
        info(InfoConfig(index_path=raw))
