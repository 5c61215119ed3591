from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ragtrain.config.commands import PrepareConfig
from ragtrain.data import demo
from ragtrain.errors import ConfigError, DataError, IndexMismatchError
from ragtrain.index.search import DenseIndex
from ragtrain.models.encoder import TextEncoder
from ragtrain.prepare import run

if TYPE_CHECKING:
    from pathlib import Path

faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")


def adopt(path: Path, **settings: Any) -> DenseIndex:
    result = run(PrepareConfig.model_validate({"index_path": path, "verify_samples": 16, "device": "cpu", **settings}))
    return DenseIndex.open(result.path)


def state(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_folder_is_adopted_where_it_is(foreign, passages, vectors) -> None:
    folder = foreign()
    before = state(folder)
    index = adopt(folder)
    assert {name: content for name, content in state(folder).items() if name in before} == before
    assert set(state(folder)) - set(before) == {"manifest.json", "passages.idx.npy"}
    assert isinstance(index.vectors.base, (np.memmap, type(None))) or isinstance(index.vectors, np.memmap)
    np.testing.assert_array_equal(index.vectors, vectors)
    assert [(p.id, p.title, p.text) for p in index.passages] == [(p.id, p.title, p.text) for p in passages]
    assert DenseIndex.open(folder / "index.faiss").count == len(passages)
    queries = torch.from_numpy(vectors[:5])
    flat, theirs = index.searcher().search(queries, 3), index.searcher(backend="faiss").search(queries, 3)
    assert flat.ids.tolist() == theirs.ids.tolist()
    again = run(PrepareConfig(index_path=folder))
    assert again.reused


def test_elsewhere_the_folder_is_not_touched(foreign, tmp_path: Path, vectors) -> None:
    folder = foreign()
    before = state(folder)
    index = adopt(folder / "index.faiss", output_dir=tmp_path / "ours")
    assert state(folder) == before
    assert index.path == tmp_path / "ours"
    assert set(state(tmp_path / "ours")) == {"manifest.json", "passages.idx.npy"}
    np.testing.assert_array_equal(index.vectors, vectors)
    (folder / "index.faiss").write_bytes(before["index.faiss"][:-4])
    with pytest.raises(DataError, match="was cut"):
        DenseIndex.open(tmp_path / "ours")


def settings_of(**changes: Any):
    def change(encoder: TextEncoder, passages: list, vectors: np.ndarray) -> np.ndarray:
        pairs = [(p.title, p.text) for p in passages]
        other = TextEncoder(encoder.model, encoder.tokenizer, dataclasses.replace(encoder.settings, **changes))
        return other.encode_passages(pairs)

    return change


def noise(encoder: TextEncoder, passages: list, vectors: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(vectors.shape)


def holes(row: int, value: float):
    def change(encoder: TextEncoder, passages: list, vectors: np.ndarray) -> np.ndarray:
        changed = vectors.copy()
        changed[row] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("damage", "name", "detail", "remedy"),
    [
        (lambda e, p, v: v[::-1], "swapped order", "the order is reversed", "--ids-file"),
        (lambda e, p, v: np.roll(v, 2, axis=0), "swapped order", r"shifted by \+2", "--ids-file"),
        (lambda e, p, v: v[np.random.default_rng(0).permutation(len(v))], "swapped order", "has the vector number", "--ids-file"),
        (noise, "wrong encoder", "no vector at another place fits", "--encoder"),
        (settings_of(pooling="mean"), "encoder settings", "fit with pooling 'mean'", "--pooling mean"),
        (settings_of(passage_format="joined"), "encoder settings", "'joined'", "--passage-format joined"),
        (settings_of(passage_prompt="passage: "), "encoder settings", "prompt", "--passage-prompt 'passage: '"),
        (settings_of(normalize=True), "encoder settings", "length 1", "--normalize"),
        (lambda e, p, v: settings_of(pooling="mean")(e, p, v)[::-1], "swapped order", "encoded with pooling 'mean'", "--pooling mean"),
        (holes(5, np.nan), "not finite", "number 5", "encode"),
        (holes(7, 0.0), "zero", "number 7", "encode"),
        (lambda e, p, v: v[:-3], "count mismatch", "197 vectors for 200 passages", "--passages"),
    ],
)  # fmt: skip
def test_each_damage_has_its_name(
    foreign, encoder, passages, vectors, damage, name: str, detail: str, remedy: str
) -> None:
    folder = foreign(rows=damage(encoder, passages, vectors))
    before = state(folder)
    with pytest.raises(IndexMismatchError, match=rf"{name}: .*{detail}") as caught:
        adopt(folder, verify_samples=64)
    assert remedy in str(caught.value.hint)
    assert state(folder) == before


def test_swapped_halves_of_which_most_fit(foreign, vectors) -> None:
    rows = vectors.copy()
    rows[:60] = rows[:60][::-1]
    with pytest.raises(IndexMismatchError, match=r"swapped order: \d+ of 64"):
        adopt(foreign(rows=rows), verify_samples=64)


def test_a_distance_that_is_no_inner_product(foreign, vectors, tmp_path: Path) -> None:
    stretched = vectors * np.linspace(0.5, 1.5, len(vectors))[:, None]
    with pytest.raises(IndexMismatchError, match=r"L2 for inner product: .* lengths from") as caught:
        adopt(foreign(rows=stretched, metric=faiss.METRIC_L2))
    assert "METRIC_INNER_PRODUCT" in str(caught.value.hint)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    index = adopt(foreign("unit", rows=unit, metric=faiss.METRIC_L2), encoder={"normalize": True})
    assert index.metric == "cosine"


def test_dpr_s_auxiliary_dimension_is_left_out(foreign, vectors) -> None:
    squares = (vectors**2).sum(axis=1)
    stretched = vectors * np.linspace(0.99, 1.01, len(vectors))[:, None].astype(np.float32)
    squares = (stretched**2).sum(axis=1)
    rows = np.hstack([stretched, np.sqrt(squares.max() - squares)[:, None]])
    index = adopt(foreign(rows=rows, metric=faiss.METRIC_L2))
    assert (index.dim, index.metric) == (vectors.shape[1], "inner_product")
    np.testing.assert_array_equal(index.vectors, stretched)
    assert "index.faiss" not in index.manifest["files"]
    rows[:, -1] = 1
    with pytest.raises(IndexMismatchError, match="L2 for inner product: 129 dimensions are one more"):
        adopt(foreign("other", rows=rows, metric=faiss.METRIC_L2))


def test_a_cut_file(foreign) -> None:
    folder = foreign()
    with (folder / "index.faiss").open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(DataError, match="truncated file"):
        adopt(folder)
    assert set(state(folder)) == {"index.faiss", "passages.jsonl"}


def test_another_dimension(foreign, vectors, tmp_path: Path) -> None:
    folder = foreign(rows=vectors[:, :100])
    with pytest.raises(ConfigError, match="100 dimensions, and the built-in encoder makes 128") as caught:
        adopt(folder)
    assert "--verify-samples 0" in str(caught.value.hint)
    with pytest.raises(IndexMismatchError, match="wrong dimension: vectors of 100"):
        adopt(folder, encoder={"encoder": str(demo.ENCODER)})
    index = adopt(folder, verify_samples=0)
    assert index.manifest["encoder"] == {"name": None, "unknown": True}


def test_quantised_vectors_are_taken_with_a_warning(foreign, vectors, capsys) -> None:
    made = faiss.index_factory(vectors.shape[1], "SQ8", 0)
    made.train(vectors)
    made.add(vectors)
    index = adopt(foreign(index=made))
    assert index.file("vectors.npy").is_file()
    checks = {check["name"]: check for check in index.manifest["verification"]["checks"]}
    assert checks["lossy vectors"]["status"] == "warning"
    assert "encode again: ragtrain index prepare" in checks["lossy vectors"]["hint"]
    np.testing.assert_allclose(index.vectors, vectors, atol=0.1)


def test_vectors_matched_by_ids(foreign, passages, vectors, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(vectors))
    folder = foreign(rows=vectors[order])
    (folder / "ids.txt").write_text("\n".join(passages[i].id for i in order) + "\n")
    index = adopt(folder)
    assert [p.id for p in index.passages] == [passages[i].id for i in order]
    (tmp_path / "ids.json").write_text(json.dumps(["stranger", *(passages[i].id for i in order[1:])]))
    with pytest.raises(IndexMismatchError, match="1 of 200 ids of vectors are no passage's, 'stranger' first"):
        adopt(folder, ids_file=tmp_path / "ids.json", output_dir=tmp_path / "other")
    made = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
    made.add_with_ids(vectors[order], order)
    index = adopt(foreign("mapped", index=made))
    assert [p.id for p in index.passages] == [passages[i].id for i in order]


@pytest.mark.parametrize("kind", ["npy", "npz", "memmap", "atlas", "hf", "hf+faiss", "flashrag", "dpr", "gz"])
def test_layouts_of_other_tools(foreign, passages, vectors, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "layout"
    if kind in ("dpr", "gz", "flashrag"):
        folder = foreign("layout")
        lines = (folder / "passages.jsonl").read_bytes()
        (folder / "passages.jsonl").unlink()
        if kind == "gz":
            (folder / "passages.jsonl.gz").write_bytes(gzip.compress(lines))
        elif kind == "dpr":
            rows = "".join(f"{p.id}\t{p.text}\t{p.title}\n" for p in passages)
            (folder / "psgs_w100.tsv").write_text("id\ttext\ttitle\n" + rows)
        else:
            (folder / "index.faiss").rename(folder / "e5_Flat.index")
            contents = ({"id": p.id, "contents": f'"{p.title}"\n{p.text}'} for p in passages)
            (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in contents))
    elif kind.startswith("hf"):
        import datasets

        rows = {name: [getattr(p, name) for p in passages] for name in ("id", "title", "text")}
        data = datasets.Dataset.from_dict({**rows, "embeddings": vectors})
        data.save_to_disk(folder / "hf_dataset")
        if kind == "hf+faiss":
            shutil.move(foreign("x") / "index.faiss", folder / "hf_dataset_index.faiss")
    else:
        folder = foreign("layout")
        (folder / "index.faiss").unlink()
        if kind == "npy":
            np.save(folder / "embeddings.npy", vectors)
        elif kind == "npz":
            np.savez(folder / "embeddings.npz", embeddings=vectors[::-1], ids=[p.id for p in passages][::-1])
        elif kind == "memmap":
            vectors.astype(np.float16).tofile(folder / "emb_e5.memmap")
        else:
            for number, part in enumerate(np.array_split(vectors, 2)):
                torch.save(torch.from_numpy(part).half().T.contiguous(), folder / f"embeddings.{number}.pt")
    index = adopt(folder)
    expected = passages[::-1] if kind == "npz" else passages
    assert [(p.id, p.title, p.text) for p in index.passages] == [(p.id, p.title, p.text) for p in expected]
    np.testing.assert_allclose(index.vectors, vectors[::-1] if kind == "npz" else vectors, atol=5e-3)
    copied = {"vectors.npy", "passages.jsonl"} & {name for name in index.manifest["files"] if name != "passages"}
    expected_copies = {"npz": {"vectors.npy"}, "atlas": {"vectors.npy"}, "hf": {"vectors.npy", "passages.jsonl"},
                       "hf+faiss": {"passages.jsonl"}, "gz": {"passages.jsonl"}}  # fmt: skip
    assert copied == expected_copies.get(kind, set())


def test_what_stands_in_the_way(foreign, tmp_path: Path, vectors) -> None:
    folder = foreign()
    adopt(folder)
    with pytest.raises(ConfigError, match="would replace it"):
        adopt(folder, index_type="faiss-flat", overwrite=True)
    with pytest.raises(ConfigError, match="adopted as it stands"):
        run(PrepareConfig(passages=folder / "passages.jsonl", output_dir=folder, overwrite=True, device="cpu"))
    assert (folder / "index.faiss").is_file()
    other = foreign("other")
    with pytest.raises(ConfigError, match="holds another index"):
        adopt(other, output_dir=folder)
    bare = foreign("bare")
    (bare / "passages.jsonl").unlink()
    with pytest.raises(DataError, match="no passages are beside this index"):
        adopt(bare)
    planned = run(PrepareConfig(index_path=other, dry_run=True, device="cpu"))
    assert planned.plan is not None
    assert set(state(other)) == {"index.faiss", "passages.jsonl"}
