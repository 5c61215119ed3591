from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ragtrain.errors import DataError, IndexMismatchError
from ragtrain.graphs import KnowledgeGraph
from ragtrain.index.graph import store
from ragtrain.index.graph.builder import GraphBuilder, assemble, fingerprint
from ragtrain.index.graph.read import load_graph, read_graph
from ragtrain.index.graph.store import open_graph, read_manifest, save_graph


def same(a: KnowledgeGraph, b: KnowledgeGraph) -> bool:
    arrays = all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ("triples", "document_entities", "document_offsets")
    )
    held_out = a.held_out.keys() == b.held_out.keys() and all(
        np.array_equal(a.held_out[split], b.held_out[split]) for split in a.held_out
    )
    names = (a.entities, a.relations, a.documents, a.fingerprint) == (
        b.entities,
        b.relations,
        b.documents,
        b.fingerprint,
    )
    return arrays and held_out and names


def inside(folder: Path) -> Path:
    return folder / str(read_manifest(folder)["folder"])


def test_a_graph_reads_back_as_it_was(graph: KnowledgeGraph, tmp_path: Path) -> None:
    manifest = save_graph(graph, tmp_path / "g", {"made": {"by": "test"}})
    assert same(open_graph(tmp_path / "g"), graph)
    assert manifest == read_manifest(tmp_path / "g")
    assert manifest["extra"] == {"made": {"by": "test"}}
    assert (manifest["entities"], manifest["held_out"]) == (5, {"valid": 1, "test": 0})
    read = load_graph(tmp_path / "g")
    assert (read.about["form"], read.about["fingerprint"]) == ("ragtrain", graph.fingerprint)
    assert same(read_graph(tmp_path / "g" / "graph.json"), graph)


def test_a_foreign_graph_reads_back_as_it_was(v1: Path, tmp_path: Path) -> None:
    graph = read_graph(v1)
    save_graph(graph, tmp_path / "g")
    assert same(open_graph(tmp_path / "g"), graph)


def test_another_graph_takes_its_place_and_the_rest_of_the_folder_stays(graph: KnowledgeGraph, tmp_path: Path) -> None:
    save_graph(graph, tmp_path)
    (tmp_path / "questions").mkdir()
    (tmp_path / "graph-of-mine").mkdir()
    builder = GraphBuilder()
    builder.triple("x", "y", "z")
    other = builder.finish()
    save_graph(other, tmp_path)
    assert same(open_graph(tmp_path), other)
    save_graph(other, tmp_path, {"again": True})
    assert same(open_graph(tmp_path), other)
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"graph.json", inside(tmp_path).name, "questions", "graph-of-mine"}


def test_an_interrupted_writing_leaves_the_old_graph(
    graph: KnowledgeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_graph(graph, tmp_path)
    builder = GraphBuilder()
    builder.triple("x", "y", "z")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ragtrain.index.graph.store.write_json", full)
    with pytest.raises(OSError, match="No space"):
        save_graph(builder.finish(), tmp_path)
    assert same(open_graph(tmp_path), graph)


FILES = [
    "entities.jsonl", "relations.jsonl", "documents.jsonl", "triples.npy", "document_entities.npy",
    "document_offsets.npy", "held_out.valid.npy",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_file_is_named(graph: KnowledgeGraph, tmp_path: Path, name: str, damage: str) -> None:
    save_graph(graph, tmp_path)
    path = inside(tmp_path) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(DataError) as error:
        open_graph(tmp_path)
    assert error.value.path == path
    assert "prepare --graph" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format": "other"}, "format"),
        ({"version": 99}, "version 99"),
        ({"files": None}, "no description|not the description"),
        ({"fingerprint": "0" * 16}, "fingerprint"),
        ({"folder": "../elsewhere"}, "folder"),
        ({"held_out": {"never": 1}}, "missing"),
    ],
)
def test_a_changed_description_is_refused(
    graph: KnowledgeGraph, tmp_path: Path, change: dict[str, object], what: str
) -> None:
    save_graph(graph, tmp_path)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=what):
        open_graph(tmp_path)


def test_no_graph(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no graph is here"):
        open_graph(tmp_path)
    (tmp_path / "graph.json").write_text("{")
    with pytest.raises(DataError, match="not the description"):
        open_graph(tmp_path)


@pytest.mark.parametrize(
    ("change", "file"),
    [
        ({"triples": np.array([[0, 0, 5]], dtype=np.int32)}, "triples.npy"),
        ({"triples": np.array([[0, 2, 1]], dtype=np.int32)}, "triples.npy"),
        ({"held_out": {"valid": np.array([[-1, 0, 0]], dtype=np.int32)}}, "held_out.valid.npy"),
        ({"document_entities": np.array([0, 1, 1, 2, 9], dtype=np.int32)}, "document_entities.npy"),
        ({"document_offsets": np.array([0, 2, 4, 5])}, "document_offsets.npy"),
        ({"document_offsets": np.array([0, 2, 1, 4, 5])}, "document_offsets.npy"),
        ({"entities": ("a", "a", "c", "d", "e")}, "entities.jsonl"),
    ],
)
def test_parts_that_do_not_fit_are_never_written(
    graph: KnowledgeGraph, tmp_path: Path, change: dict[str, object], file: str
) -> None:
    with pytest.raises(IndexMismatchError, match=file):
        save_graph(dataclasses.replace(graph, **change), tmp_path / "g")  # type: ignore[arg-type]
    assert not (tmp_path / "g").exists()


def test_the_fingerprint_tells_all_parts_apart(graph: KnowledgeGraph) -> None:
    changed = [
        {"entities": (*graph.entities[:-1], "f")},
        {"relations": ("r", "t")},
        {"triples": graph.triples[::-1]},
        {"documents": (*graph.documents[:-1], dataclasses.replace(graph.documents[-1], text="other"))},
        {"document_entities": graph.document_entities[::-1]},
        {"held_out": {"valid": graph.held_out["valid"]}},
        {"held_out": {"other": graph.held_out["valid"], "test": graph.held_out["test"]}},
    ]
    marks = {fingerprint(dataclasses.replace(graph, **change)) for change in changed}  # type: ignore[arg-type]
    assert len(marks | {graph.fingerprint}) == len(changed) + 1
    assert fingerprint(graph) == graph.fingerprint


def test_a_graph_that_is_replaced_while_it_is_read_is_read_anew(
    graph: KnowledgeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = assemble(
        graph.entities,
        graph.relations,
        graph.triples[:2],
        graph.documents,
        [[] for _ in graph.documents],
        graph.held_out,
    )
    save_graph(graph, tmp_path)
    verify = store._verify

    def replace(path: Path, entry: object) -> None:
        monkeypatch.setattr(store, "_verify", verify)
        save_graph(other, tmp_path)
        verify(path, entry)

    monkeypatch.setattr(store, "_verify", replace)
    assert open_graph(tmp_path).fingerprint == other.fingerprint
