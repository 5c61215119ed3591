"""Entities and triples that were extracted before: OpenIE results of HippoRAG, or a folder of GFM-RAG.

Names are one where Unicode says so (NFC, case, spacing); nothing is deleted from them, and all relations of a pair stay.
Passages that the source does not know, and documents without a triple, are documents of the graph all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragtrain.errors import DataError
from ragtrain.index.graph.builder import GraphBuilder
from ragtrain.index.graph.lines import BadLines
from ragtrain.index.graph.read import load_graph
from ragtrain.index.graph.read_openie import Extraction, read_extractions
from ragtrain.prepare.graph import provenance
from ragtrain.records import content_id, normalize_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ragtrain.graphs import KnowledgeGraph
    from ragtrain.prepare.graph.provenance import Sources
    from ragtrain.records import Passage


def read(
    path: Path, passages: Sequence[Passage] = (), *, skip_bad_lines: bool = False
) -> tuple[KnowledgeGraph, Sources, int]:
    """Return the graph of an extraction, which documents say which triple, and how many extracted rows were none.

    Args:
        path: OpenIE results (.json) or a folder with a graph.
        passages: what the graph is to be about besides the source's own documents.
        skip_bad_lines: leave out what cannot be read, and count it.

    Raises:
        DataError: it cannot be read, or holds no triple.
    """
    if _is_folder(path):
        return _folder(path, passages, skip_bad_lines=skip_bad_lines)
    file = _file(path)
    bad = BadLines(skip=skip_bad_lines)
    extractions = read_extractions(file, bad)
    extractions += [Extraction(passage, (), ()) for passage in _others(passages, [e.passage for e in extractions])]
    malformed = bad.count + sum(extraction.malformed for extraction in extractions)
    try:
        graph, sources = graph_of(extractions)
    except DataError as error:
        raise DataError(error.message, path=file, hint=error.hint) from error
    return graph, sources, malformed


def extractions(path: Path, passages: Sequence[Passage] = (), *, skip_bad_lines: bool = False) -> list[Extraction]:
    """Return the same passage by passage; of a folder, a triple is said by the documents that hold both its entities.

    Raises:
        DataError: it cannot be read.
    """
    if not _is_folder(path):
        found = read_extractions(_file(path), BadLines(skip=skip_bad_lines))
        return [*found, *(Extraction(passage, (), ()) for passage in _others(passages, [e.passage for e in found]))]
    graph, sources, _ = _folder(path, passages, skip_bad_lines=skip_bad_lines)
    said: list[list[tuple[str, str, str]]] = [[] for _ in graph.documents]
    for (head, relation, tail), documents in zip(graph.triples.tolist(), sources, strict=True):
        for document in documents:
            said[document].append((graph.entities[head], graph.relations[relation], graph.entities[tail]))
    held = np.split(graph.document_entities, graph.document_offsets[1:-1])
    return [
        Extraction(document, tuple(graph.entities[int(i)] for i in members), tuple(triples))
        for document, members, triples in zip(graph.documents, held, said, strict=True)
    ]


def graph_of(extractions: Iterable[Extraction]) -> tuple[KnowledgeGraph, Sources]:
    """Return the graph of what was extracted from passages, and which documents say which triple.

    Raises:
        DataError: nothing was extracted from any of them, or two passages have the same id.
    """
    builder, names = GraphBuilder(), Names()
    said: list[tuple[int, list[tuple[str, str, str]]]] = []
    for place, extraction in enumerate(extractions):
        triples = [(names(head), names.relation(phrase), names(tail)) for head, phrase, tail in extraction.triples]
        triples = [triple for triple in dict.fromkeys(triples) if triple[0] != triple[2]]
        for triple in triples:
            builder.triple(*triple)
        own = [name for head, _, tail in triples for name in (head, tail)]
        builder.document(extraction.passage, [*map(names, extraction.entities), *own])
        said.append((place, triples))
    graph = builder.finish()
    return graph, provenance.by_name(graph, said)


class Names:
    """Gives a name in the spelling in which it was first seen, whatever its case and spacing."""

    def __init__(self, entities: Iterable[str] = (), relations: Iterable[str] = ()) -> None:
        self._entities = {normalize_text(name): name for name in entities}
        self._relations = {normalize_text(name): name for name in relations}

    def __call__(self, name: str) -> str:
        """Return the first spelling of an entity's name."""
        return self._entities.setdefault(normalize_text(name), name)

    def relation(self, name: str) -> str:
        """Return the first spelling of a relation's name."""
        return self._relations.setdefault(normalize_text(name), name)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.glob("openie*.json"))


def _file(path: Path) -> Path:
    """Return the file of OpenIE results that a path means."""
    found = sorted(path.glob("openie*.json")) if path.is_dir() else [path]
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise DataError(f"holds {len(found)} OpenIE results: {names}", path=path, hint="name one of them")
    return found[0]


def _folder(path: Path, passages: Sequence[Passage], *, skip_bad_lines: bool) -> tuple[KnowledgeGraph, Sources, int]:
    """Return a graph of the readers' own with names made one, and documents added."""
    read = load_graph(path, skip_bad_lines=skip_bad_lines)
    graph, builder, names = read.graph, GraphBuilder(), Names()
    entities, relations = [names(e) for e in graph.entities], [names.relation(r) for r in graph.relations]
    for head, relation, tail in graph.triples.tolist():
        builder.triple(entities[head], relations[relation], entities[tail])
    for split, triples in graph.held_out.items():
        builder.held_out(split)
        for head, relation, tail in triples.tolist():
            builder.triple(entities[head], relations[relation], entities[tail], split)
    for place, document in enumerate(graph.documents):
        members = graph.document_entities[graph.document_offsets[place] : graph.document_offsets[place + 1]]
        builder.document(document, [entities[int(member)] for member in members])
    for passage in _others(passages, graph.documents):
        builder.document(passage)
    made = builder.finish()
    return made, provenance.by_entities(made), int(read.about.get("skipped_lines", 0))


def _others(passages: Iterable[Passage], known: Sequence[Passage]) -> list[Passage]:
    """Return the passages that are not among the known ones, by text.

    Raises:
        DataError: one has the id of a known passage with another text.
    """
    texts = {content_id(passage.title, passage.text) for passage in known}
    ids = {passage.id for passage in known}
    others = [passage for passage in passages if content_id(passage.title, passage.text) not in texts]
    clash = next((passage.id for passage in others if passage.id in ids), None)
    if clash is not None:
        raise DataError(
            f"the passage {clash!r} has another text here than in the extraction",
            field="id", hint="extract from these passages, or give those that were extracted from",
        )  # fmt: skip
    return others
