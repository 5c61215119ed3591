"""Graphs in every form in which people have them, recognised without being asked."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.errors import DataError
from ragtrain.index.graph import read_openie, read_triples, read_v1, read_v2
from ragtrain.index.graph.lines import BadLines
from ragtrain.index.graph.store import MANIFEST_FILE, open_graph
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ragtrain.graphs import KnowledgeGraph
    from ragtrain.index.graph.builder import GraphBuilder

log = logging.getLogger("ragtrain")

ACCEPTED = (
    "a folder of `ragtrain index prepare --graph`; of GFM-RAG (processed/stage1 with kg.txt, or with nodes.csv and edges.csv); "
    "of train, valid and test triples (.txt, .tsv); or OpenIE results of HippoRAG (.json)"
)
#: Where below a folder its graph may be, nearest first.
_STAGES = (".", "processed/stage1", "stage1")


@dataclasses.dataclass(frozen=True)
class ReadGraph:
    """A graph and what is to be said of its reading.

    Attributes:
        graph: the graph.
        about: form, path, hash of each file, counts of everything and of what was left out; for ``data.json``.
        folder: the folder that stands for the graph: caches and questions are kept there.
    """

    graph: KnowledgeGraph
    about: dict[str, Any]
    folder: Path


def read_graph(path: Path, *, skip_bad_lines: bool = False) -> KnowledgeGraph:
    """Return the graph of a folder or file; see ``load_graph``."""
    return load_graph(path, skip_bad_lines=skip_bad_lines).graph


def load_graph(path: Path, *, skip_bad_lines: bool = False) -> ReadGraph:
    """Read a graph, whatever its form.

    Args:
        path: our own folder, GFM-RAG's folder (1.0 or the CSV form of 2.0), a folder of train, valid and test triples, one file
            of triples, or an OpenIE file.
        skip_bad_lines: leave out lines that cannot be read, and count them.

    Raises:
        DataError: the form is not known, a file is missing or damaged, or a line cannot be read; file, line and field are named.
        IndexMismatchError: the files of our own folder do not fit each other.
    """
    if path.name == MANIFEST_FILE and path.is_file():
        path = path.parent
    if (path / MANIFEST_FILE).is_file():
        graph = open_graph(path)
        return ReadGraph(graph, {"form": "ragtrain", "path": str(path.resolve()), **counts(graph)}, path)
    bad = BadLines(skip=skip_bad_lines)
    form, builder, files, more = _read(path, bad)
    try:
        graph = builder.finish()
    except DataError as error:
        raise DataError(error.message, path=files[0], hint=error.hint) from error
    about = {
        "form": form,
        "path": str(path.resolve()),
        "files": {str(file.resolve()): sha256_file(file) for file in files},
        **counts(graph),
        "skipped_lines": bad.count,
        "repeated_triples": builder.repeated,
        "held_out_in_graph": builder.held_out_in_graph,
        "held_out_unseen": _unseen(graph),
        **more,
    }
    _tell(path, about)
    return ReadGraph(graph, about, path if path.is_dir() else path.parent)


def counts(graph: KnowledgeGraph) -> dict[str, Any]:
    """Return the sizes of a graph, and its fingerprint."""
    members = graph.document_offsets[1:] - graph.document_offsets[:-1]
    return {
        "fingerprint": graph.fingerprint,
        "entities": graph.n_entities,
        "relations": graph.n_relations,
        "triples": len(graph.triples),
        "documents": len(graph.documents),
        "documents_without_entities": int((members == 0).sum()),
        "held_out": {split: len(triples) for split, triples in graph.held_out.items()},
    }


def _unseen(graph: KnowledgeGraph) -> dict[str, int]:
    """Return by split how many held-out triples name an entity or a relation that no triple of the graph has."""
    entities, relations = graph.triples[:, [0, 2]], graph.triples[:, 1]
    return {
        split: int((~(np.isin(rows[:, [0, 2]], entities).all(axis=1) & np.isin(rows[:, 1], relations))).sum())
        for split, rows in graph.held_out.items()
    }


def _read(path: Path, bad: BadLines) -> tuple[str, GraphBuilder, Sequence[Path], dict[str, Any]]:
    """Return form, open graph, files and what else is to be said."""
    if path.is_file():
        return _read_file(path, bad)
    if not path.is_dir():
        raise DataError("there is no such file or folder", path=path, hint=f"give {ACCEPTED}")
    for stage in (path / name for name in _STAGES):
        if (stage / read_v1.TRIPLES_FILE).is_file():
            return "gfm-rag", *read_v1.read_v1(stage, _corpus(path, stage), bad), {}
        if (stage / read_v2.NODES_FILE).is_file():
            return "gfm-rag-csv", *read_v2.read_v2(stage, _corpus(path, stage), bad), {}
    splits = read_triples.split_files(path)
    if "train" in splits:
        builder, files, columns = read_triples.read_triples(splits, bad)
        return "triples", builder, files, {"columns": columns}
    results = sorted(path.glob("openie*.json"))
    if len(results) > 1:
        names = ", ".join(file.name for file in results)
        raise DataError(f"holds {len(results)} OpenIE results: {names}", path=path, hint="name one of them")
    if results:
        return _read_file(results[0], bad)
    if _corpus(path, path / _STAGES[1]) is not None:
        hint = "make its graph with `ragtrain index prepare --graph`, or with GFM-RAG's stage 1"
        raise DataError("holds documents and no graph of them (processed/stage1/kg.txt)", path=path, hint=hint)
    there = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise DataError(f"no graph is recognised here; the folder holds {there}", path=path, hint=f"give {ACCEPTED}")


def _read_file(path: Path, bad: BadLines) -> tuple[str, GraphBuilder, Sequence[Path], dict[str, Any]]:
    if path.name in (read_v1.TRIPLES_FILE, read_v2.NODES_FILE, read_v2.EDGES_FILE):
        return _read(path.parent, bad)
    if path.suffix == ".json":
        extractions = read_openie.read_extractions(path, bad)
        malformed = sum(extraction.malformed for extraction in extractions)
        return "openie", read_openie.build(extractions), [path], {"malformed": malformed}
    if path.suffix in read_triples.SUFFIXES:
        builder, files, columns = read_triples.read_triples({"train": path}, bad)
        return "triples", builder, files, {"columns": columns}
    raise DataError(f"no graph is recognised by the name {path.name!r}", path=path, hint=f"give {ACCEPTED}")


def _corpus(path: Path, stage: Path) -> Path | None:
    """Return the file of documents of a GFM-RAG folder, of which ``path`` may be the root or the stage."""
    folders = (path / "raw", path, stage.parent.parent / "raw")
    return next(
        (folder / name for folder in folders for name in read_v1.CORPUS_FILES if (folder / name).is_file()), None
    )


def _tell(path: Path, about: dict[str, Any]) -> None:
    log.info(
        "%s: %d entities, %d relations, %d triples, %d documents",
        path, about["entities"], about["relations"], about["triples"], about["documents"],
    )  # fmt: skip
    left_out = {
        "lines that cannot be read": about["skipped_lines"],
        "extractions that are no names or triples": about.get("malformed", 0),
        "held-out triples that the graph has as well": about["held_out_in_graph"],
    }
    for split, count in about["held_out_unseen"].items():
        if count:
            log.warning(
                "%s: entities or relations that no training triple has, in %s triples that are asked for all the same: %d of %d",
                path, split, count, about["held_out"][split],
            )  # fmt: skip
    for what, count in left_out.items():
        if count:
            log.warning("%s: %d %s were left out", path, count, what)
