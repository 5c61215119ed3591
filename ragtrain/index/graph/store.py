"""Our own folder of a graph.

::

    GRAPH/
    ├── graph.json              what it holds, how it was made, size and SHA-256 of every file
    └── graph-FINGERPRINT/
        ├── entities.jsonl  relations.jsonl          {"name": …} in the order of their ids
        ├── documents.jsonl                          {"id": …, "title": …, "text": …, …}
        ├── triples.npy                              (E, 3) int32: head, relation, tail
        ├── document_entities.npy  document_offsets.npy
        └── held_out.SPLIT.npy                       (n, 3) int32

Another graph is written beside the old one and becomes current when ``graph.json`` is renamed, so that questions and caches
in the folder stay and no moment has half a graph.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.errors import DataError, IndexMismatchError
from ragtrain.graphs import KnowledgeGraph
from ragtrain.index.encode import file_entry
from ragtrain.index.graph.builder import fingerprint
from ragtrain.index.passages import passage_line
from ragtrain.records import Passage, sha256_file, write_json, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT, VERSION = "ragtrain-graph", 1
MANIFEST_FILE = "graph.json"
ENTITIES_FILE, RELATIONS_FILE, DOCUMENTS_FILE = "entities.jsonl", "relations.jsonl", "documents.jsonl"
TRIPLES_FILE, MEMBERS_FILE, OFFSETS_FILE = "triples.npy", "document_entities.npy", "document_offsets.npy"
_OURS = re.compile(r"graph-[0-9a-f]{16}(-[0-9]+)?")
AGAIN = "make the graph again with `ragtrain index prepare --graph --overwrite`"


def save_graph(graph: KnowledgeGraph, folder: Path, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write a graph into a folder, in place of the one that is there, and return the manifest.

    Args:
        graph: what to write.
        folder: where to; other files in it stay.
        extra: how the graph was made, as JSON; stands in the manifest under ``extra``.

    Raises:
        IndexMismatchError: the graph's parts do not fit each other.
    """
    _check(graph, folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark = fingerprint(graph)
    # Never into the folder that is current now, even for the same graph: its files may differ in what is no part of the mark.
    names = (f"graph-{mark}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    name = next(name for name in names if not (folder / name).exists())
    aside = folder / f".{name}.tmp-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        files = _write(graph, aside)
        manifest = {
            "format": FORMAT, "version": VERSION, "fingerprint": mark, "folder": name,
            "entities": graph.n_entities, "relations": graph.n_relations, "triples": len(graph.triples),
            "documents": len(graph.documents), "held_out": {split: len(part) for split, part in graph.held_out.items()},
            "files": files, "extra": dict(extra or {}),
        }  # fmt: skip
        aside.replace(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    write_json(folder / MANIFEST_FILE, manifest)
    for old in folder.glob("graph-*"):
        if old.is_dir() and old.name != name and _OURS.fullmatch(old.name):
            shutil.rmtree(old, ignore_errors=True)
    return manifest


def _write(graph: KnowledgeGraph, folder: Path) -> dict[str, Any]:
    write_jsonl(folder / ENTITIES_FILE, ({"name": name} for name in graph.entities))
    write_jsonl(folder / RELATIONS_FILE, ({"name": name} for name in graph.relations))
    with (folder / DOCUMENTS_FILE).open("wb") as file:
        file.writelines(map(passage_line, graph.documents))
    np.save(folder / TRIPLES_FILE, graph.triples)
    np.save(folder / MEMBERS_FILE, graph.document_entities)
    np.save(folder / OFFSETS_FILE, graph.document_offsets)
    for split, triples in graph.held_out.items():
        np.save(folder / f"held_out.{split}.npy", triples)
    for path in folder.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())  # what the manifest names must be there after a power cut
    return {path.name: file_entry(path) for path in sorted(folder.iterdir())}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what ``graph.json`` of a folder says.

    Raises:
        DataError: it is missing, or not ours.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
        version = int(manifest["version"])
        wanted = (manifest["fingerprint"], manifest["folder"], manifest["files"].items())
    except OSError as error:
        raise DataError(f"no graph is here: {error.strerror}", path=path, hint="check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"is not the description of a graph: {error}", path=path, hint=AGAIN) from error
    if version > VERSION:
        raise DataError(
            f"has version {version}; this ragtrain reads up to {VERSION}", path=path, hint="update ragtrain"
        )
    if not _OURS.fullmatch(str(wanted[1])):
        raise DataError(f"names the folder {wanted[1]!r}", path=path, field="folder", hint=AGAIN)
    return dict(manifest)


def open_graph(folder: Path) -> KnowledgeGraph:
    """Return the graph in a folder; every file is read and verified.

    Raises:
        DataError: a file is missing, cut or changed; it is named.
        IndexMismatchError: the files do not fit each other, or the manifest.
    """
    manifest = read_manifest(folder)
    try:
        return _open(folder, manifest)
    except (DataError, OSError):
        if read_manifest(folder)["folder"] == manifest["folder"]:
            raise
    return open_graph(folder)  # another graph took its place while it was read


def _open(folder: Path, manifest: Mapping[str, Any]) -> KnowledgeGraph:
    inside = folder / str(manifest["folder"])
    for name, entry in manifest["files"].items():
        _verify(inside / name, entry)
    for name in (ENTITIES_FILE, RELATIONS_FILE, DOCUMENTS_FILE, TRIPLES_FILE, MEMBERS_FILE, OFFSETS_FILE):
        if name not in manifest["files"]:
            raise DataError("the description does not name this file", path=inside / name, hint=AGAIN)
    graph = KnowledgeGraph(
        entities=tuple(str(row["name"]) for row in _rows(inside / ENTITIES_FILE)),
        relations=tuple(str(row["name"]) for row in _rows(inside / RELATIONS_FILE)),
        triples=_array(inside / TRIPLES_FILE, np.dtype(np.int32), 2),
        documents=tuple(_passage(row) for row in _rows(inside / DOCUMENTS_FILE)),
        document_entities=_array(inside / MEMBERS_FILE, np.dtype(np.int32), 1),
        document_offsets=_array(inside / OFFSETS_FILE, np.dtype(np.int64), 1),
        held_out={
            split: _array(inside / f"held_out.{split}.npy", np.dtype(np.int32), 2) for split in manifest["held_out"]
        },
        fingerprint=str(manifest["fingerprint"]),
    )
    _check(graph, inside)
    if fingerprint(graph) != graph.fingerprint:
        message = f"says fingerprint {graph.fingerprint}, and the files have {fingerprint(graph)}"
        raise IndexMismatchError(message, path=folder / MANIFEST_FILE, hint=AGAIN)
    return graph


def _verify(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise DataError("this file of the graph is missing", path=path, hint=AGAIN)
    size = path.stat().st_size
    if size != entry["size"]:
        raise DataError(f"has {size} bytes where {entry['size']} were written", path=path, hint=AGAIN)
    if sha256_file(path) != entry["sha256"]:
        raise DataError("was changed after the graph was written (its SHA-256 is another)", path=path, hint=AGAIN)


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _passage(row: dict[str, Any]) -> Passage:
    return Passage(id=row.pop("id"), title=row.pop("title"), text=row.pop("text"), meta=row)


def _array(path: Path, dtype: np.dtype[Any], dimensions: int) -> np.ndarray:
    if not path.is_file():
        raise DataError("this file of the graph is missing", path=path, hint=AGAIN)
    array: np.ndarray = np.load(path, allow_pickle=False)
    if array.dtype != dtype or array.ndim != dimensions:
        message = f"holds {array.dtype} of shape {array.shape} where {dimensions}-d {dtype} was expected"
        raise IndexMismatchError(message, path=path, hint=AGAIN)
    return array


def _check(graph: KnowledgeGraph, folder: Path) -> None:
    """Refuse a graph whose parts do not fit each other."""
    limits = np.array([graph.n_entities, graph.n_relations, graph.n_entities])
    for name, triples in (
        (TRIPLES_FILE, graph.triples),
        *((f"held_out.{s}.npy", t) for s, t in graph.held_out.items()),
    ):
        if triples.ndim != 2 or triples.shape[1] != 3 or (triples < 0).any() or (triples >= limits).any():
            message = f"names entities or relations beyond the {graph.n_entities} and {graph.n_relations} there are"
            raise IndexMismatchError(message, path=folder / name, hint=AGAIN)
    members, offsets = graph.document_entities, graph.document_offsets
    if members.size and (members.min() < 0 or members.max() >= graph.n_entities):
        message = f"names entities beyond the {graph.n_entities} there are"
        raise IndexMismatchError(message, path=folder / MEMBERS_FILE, hint=AGAIN)
    fits = len(offsets) == len(graph.documents) + 1 and offsets[0] == 0 and offsets[-1] == len(members)
    if not fits or (np.diff(offsets) < 0).any():
        message = f"does not divide {len(members)} entities among {len(graph.documents)} documents"
        raise IndexMismatchError(message, path=folder / OFFSETS_FILE, hint=AGAIN)
    if len({document.id for document in graph.documents}) != len(graph.documents):
        raise IndexMismatchError("two documents have the same id", path=folder / DOCUMENTS_FILE, field="id", hint=AGAIN)
    for name, names in ((ENTITIES_FILE, graph.entities), (RELATIONS_FILE, graph.relations)):
        if len(set(names)) != len(names):
            raise IndexMismatchError("two names are the same", path=folder / name, field="name", hint=AGAIN)
