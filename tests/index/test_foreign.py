from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from ragtrain.data import formats
from ragtrain.errors import DataError
from ragtrain.index.foreign import LineForm, LineStore, Place, find, line_offsets, read_vectors, refuse_pickle
from ragtrain.index.foreign.faiss_file import is_faiss, read_faiss, read_layout, write_flat
from ragtrain.index.foreign.lines import chosen
from ragtrain.index.search import DenseIndex

if TYPE_CHECKING:
    from ragtrain.index.foreign import ForeignVectors

faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")

COUNT, DIM = 400, 8
VECTORS = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)


def write(path: Path, factory: str, metric: int = 0, ids: np.ndarray | None = None) -> Path:
    index = faiss.index_factory(DIM, factory, metric)
    index.train(VECTORS)
    if ids is None:
        index.add(VECTORS)
    else:
        index.add_with_ids(VECTORS[ids], ids)
    faiss.write_index(index, str(path))
    return path


def whole(found: ForeignVectors) -> np.ndarray:
    if found.place is not None:
        return np.array(found.place.open(found.path, found.count))
    return np.concatenate(list(found.blocks()))


@pytest.mark.parametrize("metric", [0, 1])
@pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat"])
def test_whole_vectors_are_mapped(tmp_path: Path, factory: str, metric: int) -> None:
    found = read_faiss(write(tmp_path / "a.faiss", factory, metric))
    assert found.place is not None
    assert found.metric == ("inner_product", "l2")[metric]
    assert found.loss is None
    assert found.searchable
    mapped = found.place.open(found.path, found.count)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, VECTORS)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,Flat", "IDMap,HNSW8"])
def test_id_maps_are_read_around_the_vectors(tmp_path: Path, factory: str) -> None:
    ids = np.random.default_rng(1).permutation(COUNT)
    found = read_faiss(write(tmp_path / "a.faiss", factory, ids=ids))
    assert found.place is not None
    assert not found.searchable
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(whole(found), VECTORS[ids])
    assert read_faiss(write(tmp_path / "b.faiss", factory, ids=np.arange(COUNT))).ids is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("factory", "loss", "error"),
    [
        ("IVF4,Flat", None, 0), ("Flat,RFlat", None, 0), ("RR8,Flat", None, 1e-5), ("SQfp16", None, 2e-3),
        ("SQ8", "scalar quantisation (8bit)", 0.05), ("IVF4,SQ8", "scalar quantisation", 0.05),
        ("HNSW8,SQ8", "scalar quantisation", 0.05), ("PQ4x4", "product quantisation keeps 2 bytes", 3),
        ("IVF4,PQ4x4", "product quantisation", 3), ("PCA4,Flat", "PCAMatrix keeps 4 of 8", 4),
    ],
)  # fmt: skip
def test_other_indexes_are_read_through_faiss(
    tmp_path: Path, factory: str, loss: str | None, error: float, capfd: pytest.CaptureFixture[str]
) -> None:
    found = read_faiss(write(tmp_path / "a.faiss", factory))
    assert found.place is None
    assert (found.loss is None) if loss is None else (loss in (found.loss or ""))
    read = whole(found)
    assert np.abs(read - VECTORS).max() <= error
    np.testing.assert_array_equal(
        read, faiss.read_index(str(found.path)).reconstruct_n() if "IVF" not in factory else read
    )


def test_inverted_lists_in_the_order_of_ids(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).permutation(COUNT)
    found = read_faiss(write(tmp_path / "a.faiss", "IVF4,Flat", ids=ids))
    assert found.ids is None
    np.testing.assert_array_equal(whole(found), VECTORS)
    shifted = read_faiss(write_shifted(tmp_path / "b.faiss"))
    np.testing.assert_array_equal(shifted.ids, np.arange(COUNT) + 1000)
    np.testing.assert_array_equal(whole(shifted), VECTORS)


def write_shifted(path: Path) -> Path:
    index = faiss.index_factory(DIM, "IVF4,Flat", 0)
    index.train(VECTORS)
    index.add_with_ids(VECTORS, np.arange(COUNT) + 1000)
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat", "IDMap,Flat", "SQ8"])
@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.99])
def test_a_cut_file_is_called_truncated(tmp_path: Path, factory: str, share: float) -> None:
    path = write(tmp_path / "a.faiss", factory, ids=np.arange(COUNT) if "IDMap" in factory else None)
    content = path.read_bytes()
    path.write_bytes(content[: max(4, int(len(content) * share))])
    with pytest.raises(DataError, match="truncated file") as caught:
        read_faiss(path)
    assert caught.value.path == path


def test_another_metric_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ranks by L1"):
        read_faiss(write(tmp_path / "a.faiss", "Flat", faiss.METRIC_L1))


def test_the_flat_file_we_write_is_the_one_that_faiss_writes(tmp_path: Path) -> None:
    write_flat(tmp_path / "ours.faiss", iter([VECTORS[:100], VECTORS[100:]]), COUNT, DIM)
    assert (tmp_path / "ours.faiss").read_bytes() == write(tmp_path / "theirs.faiss", "Flat").read_bytes()
    assert is_faiss(tmp_path / "ours.faiss")
    assert read_layout(tmp_path / "ours.faiss").offset == 45


def test_numpy_files(tmp_path: Path) -> None:
    for name, array in {"a": VECTORS, "half": VECTORS.astype(np.float16)}.items():
        np.save(tmp_path / f"{name}.npy", array)
        found = read_vectors(find(tmp_path / f"{name}.npy"), passages=None, dim=None)
        assert found.place is not None
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(whole(found), array)
    np.save(tmp_path / "wide.npy", VECTORS.astype(np.float64))
    found = read_vectors(find(tmp_path / "wide.npy"), passages=None, dim=None)
    assert found.place is None
    np.testing.assert_array_equal(whole(found), VECTORS)
    np.savez(tmp_path / "b.npz", embeddings=VECTORS, ids=np.arange(COUNT) + 7)
    found = read_vectors(find(tmp_path / "b.npz"), passages=None, dim=None)
    np.testing.assert_array_equal(whole(found), VECTORS)
    assert found.ids[:2] == ["7", "8"]
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled objects"):
        read_vectors(find(tmp_path / "objects.npy"), passages=None, dim=None)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-9])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_vectors(find(tmp_path / "a.npy"), passages=None, dim=None)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dim", [None, DIM])
def test_a_raw_file_takes_its_shape_from_passages(tmp_path: Path, dtype: str, dim: int | None) -> None:
    VECTORS.astype(dtype).tofile(tmp_path / "emb_e5.memmap")
    found = read_vectors(find(tmp_path), passages=COUNT, dim=dim)
    assert (found.dtype, found.width) == (dtype, DIM)
    np.testing.assert_array_equal(whole(found), VECTORS.astype(dtype))
    with pytest.raises(DataError, match="count mismatch"):
        read_vectors(find(tmp_path), passages=COUNT - 1, dim=dim)


@pytest.mark.parametrize("columns", [True, False])
def test_atlas_shards(tmp_path: Path, columns: bool) -> None:
    for number, part in enumerate(np.array_split(VECTORS, 3)):
        tensor = torch.from_numpy(part).half()
        torch.save(tensor.T.contiguous() if columns else tensor, tmp_path / f"embeddings.{number}.pt")
    found = read_vectors(find(tmp_path), passages=COUNT, dim=DIM)
    assert (found.count, found.width, found.dtype) == (COUNT, DIM, "float16")
    np.testing.assert_array_equal(whole(found), VECTORS.astype(np.float16).astype(np.float32))
    with pytest.raises(DataError, match="count mismatch"):
        read_vectors(find(tmp_path), passages=COUNT + 1, dim=DIM)
    (tmp_path / "embeddings.1.pt").unlink()
    with pytest.raises(DataError, match="some are missing"):
        read_vectors(find(tmp_path), passages=COUNT, dim=DIM)


def test_a_shard_that_is_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"code": print}, tmp_path / "embeddings.0.pt")
    with pytest.raises(DataError, match="no tensor that can be read safely"):
        read_vectors(find(tmp_path), passages=1, dim=None)


def test_a_dataset_folder(tmp_path: Path) -> None:
    import datasets

    rows = {"title": ["t"] * COUNT, "text": [f"x{i}" for i in range(COUNT)], "embeddings": VECTORS}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "mine", num_shards=3)
    found = find(tmp_path)
    assert (found.kind, found.passages()) == ("arrow", tmp_path / "mine")
    np.testing.assert_array_equal(whole(read_vectors(found, passages=None, dim=None)), VECTORS)
    datasets.Dataset.from_dict({"title": ["t"], "text": ["x"]}).save_to_disk(tmp_path / "bare")
    with pytest.raises(DataError, match="no column of vectors among title, text"):
        read_vectors(find(tmp_path / "bare"), passages=None, dim=None)


@pytest.mark.parametrize("name", ["a.pkl", "wiki_passages_1", "dpr.index_meta.dpr", "innocent.bin", "index.faiss"])
def test_pickles_are_refused_by_name_and_by_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(DataError, match="pickle") as caught:
        find(tmp_path / name)
    assert "--passages" in str(caught.value.hint)
    with pytest.raises(DataError, match="pickle"):
        refuse_pickle(tmp_path / name)


def test_which_file_of_a_folder_is_the_index(tmp_path: Path) -> None:
    for folder, names in {
        "user": ["index.faiss", "passages.jsonl"], "rag": ["hf_dataset_index.faiss"], "mine": ["my_hnsw_index.faiss"],
        "flash": ["e5_Flat.index", "corpus.jsonl"], "dpr": ["wiki.index.dpr", "psgs_w100.tsv"], "pyserini": ["index", "docid"],
    }.items():  # fmt: skip
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / names[0], "Flat")
        for name in names[1:]:
            (tmp_path / folder / name).write_text("x\n")
        found = find(tmp_path / folder)
        assert (found.kind, found.path.name) == ("faiss", names[0])
        assert (found.passages() or Path()).name == (names[1] if len(names) > 1 and folder != "pyserini" else "")
    assert find(tmp_path / "pyserini").ids() == tmp_path / "pyserini" / "docid"
    write(tmp_path / "flash" / "bge_Flat.index", "Flat")
    with pytest.raises(DataError, match=r"several indexes: bge_Flat.index, e5_Flat.index"):
        find(tmp_path / "flash")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no index of a known kind"):
        find(tmp_path / "nothing")
    (tmp_path / "nothing" / "x.faiss").write_bytes(b"")
    with pytest.raises(DataError, match="truncated file: it is empty"):
        find(tmp_path / "nothing")


def test_an_index_of_another_tool_names_the_command_that_adopts_it(tmp_path: Path) -> None:
    write(tmp_path / "index.faiss", "Flat")
    (tmp_path / "passages.jsonl").write_text("{}\n")
    for path in (tmp_path, tmp_path / "index.faiss"):
        with pytest.raises(DataError, match="not adopted yet") as caught:
            DenseIndex.open(path)
        command = (
            f"ragtrain index prepare --index-path {path} --passages {tmp_path / 'passages.jsonl'} --encoder ENCODER"
        )
        assert command in str(caught.value.hint)
    with pytest.raises(DataError, match="not adopted yet") as caught:
        DenseIndex.open(tmp_path, passages=tmp_path / "other.jsonl")
    assert str(tmp_path / "other.jsonl") in str(caught.value.hint)


RECORDS = {
    "ragtrain": [{"id": "a", "title": " T ", "text": "one\n", "kind": 3}, {"id": 7, "title": "", "text": "two"}],
    "atlas": [
        {"id": "a", "title": "T", "section": "S", "text": "one"},
        {"id": "b", "title": "T: S", "section": "S", "text": "x"},
    ],
    "flashrag": [{"id": 1, "contents": '"T"\nbody\nmore'}, {"id": 2, "contents": "no title"}],
    "pyserini": [
        {"id": "a", "title": "T", "contents": "T\nbody"},
        {"id": "b", "title": "T", "contents": "Other\nbody"},
    ],
    "beir": [{"_id": "a", "title": "T", "text": "one", "metadata": {}}],
    "tevatron": [{"docid": "a", "title": "T", "text": "one"}],
    "text-only": [{"text": "one"}, {"text": "two"}],
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n", ""])
def test_lines_are_read_as_the_full_reader_reads_them(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes((ending or "\n").join(json.dumps(record) for record in RECORDS[name]).encode() + ending.encode())
    form = LineForm.of(RECORDS[name][0], "corpus")
    assert form is not None
    np.save(tmp_path / "idx.npy", line_offsets(path))
    store = LineStore(path, tmp_path / "idx.npy", LineForm.from_json(json.loads(json.dumps(form.to_json()))))
    assert list(store) == list(formats.iter_passages(path))
    again = pickle.loads(pickle.dumps(store))
    assert again[-1] == store[-1]
    assert store[0:9] == list(store)


def test_tables_and_chosen_lines(tmp_path: Path) -> None:
    path = tmp_path / "psgs_w100.tsv"
    path.write_text('id\ttext\ttitle\n1\t"He said ""no"""\tA\n2\ttwo\tB\n3\tthree\tC\n')
    form = LineForm.of(dict.fromkeys(["id", "text", "title"], ""), "psgs_w100", "tsv")
    offsets = line_offsets(path, skip=1)
    np.save(tmp_path / "idx.npy", offsets)
    store = LineStore(path, tmp_path / "idx.npy", form)
    passages = list(formats.iter_passages(path))
    assert list(store) == passages
    np.save(tmp_path / "chosen.npy", chosen(offsets, [2, 0]))
    assert list(LineStore(path, tmp_path / "chosen.npy", form)) == [passages[2], passages[0]]
    path.write_text("id\ttext\ttitle\n")
    with pytest.raises(DataError, match="where its offsets end at"):
        LineStore(path, tmp_path / "idx.npy", form)


def test_a_changed_line_is_located(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n')
    np.save(tmp_path / "idx.npy", line_offsets(path))
    store = LineStore(path, tmp_path / "idx.npy", LineForm("jsonl", "text", id="id"))
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "txet": "y"}\n')
    with pytest.raises(DataError, match=r"corpus.jsonl:2: no passage of the adopted form"):
        LineStore(path, tmp_path / "idx.npy", store.form)[1]


def test_a_place_that_ends_beyond_its_file(tmp_path: Path) -> None:
    VECTORS.tofile(tmp_path / "x")
    place = Place("float32", 0, DIM, DIM - 1)
    np.testing.assert_array_equal(place.open(tmp_path / "x", COUNT), VECTORS[:, :-1])
    with pytest.raises(DataError, match="truncated file"):
        place.open(tmp_path / "x", COUNT + 1)
