"""Which documents say which triple: what is needed to take a document out of a graph again.

``sources-FINGERPRINT-HASH.npz`` stands in the folder of the graph with that fingerprint; HASH is of its content, so that the file of
the graph that is there is never written over::

    documents   (n,) int32 places of documents
    offsets     (E + 1,) int64: triple e is said by ``documents[offsets[e] : offsets[e + 1]]``

A triple that nobody says (synonyms; triples of a source that does not tell) stays as long as both its entities do.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from ragtrain.errors import DataError, IndexMismatchError
from ragtrain.index.graph.store import AGAIN
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ragtrain.graphs import KnowledgeGraph

Sources = list[list[int]]


def by_entities(graph: KnowledgeGraph) -> Sources:
    """Return for each triple the documents that hold both of its entities, where a source does not say who says it."""
    holders: dict[int, set[int]] = defaultdict(set)
    for document in range(len(graph.documents)):
        for entity in graph.document_entities[graph.document_offsets[document] : graph.document_offsets[document + 1]]:
            holders[int(entity)].add(document)
    empty: set[int] = set()
    return [sorted(holders.get(h, empty) & holders.get(t, empty)) for h, _, t in graph.triples.tolist()]


def by_name(graph: KnowledgeGraph, said: Iterable[tuple[int, Sequence[tuple[str, str, str]]]]) -> Sources:
    """Return for each triple the documents that say it.

    Args:
        graph: its triples are numbered.
        said: place of a document and the triples that it says, by name.
    """
    entities = {name: number for number, name in enumerate(graph.entities)}
    relations = {name: number for number, name in enumerate(graph.relations)}
    places = {tuple(triple): number for number, triple in enumerate(graph.triples.tolist())}
    sources: list[dict[int, None]] = [{} for _ in places]
    for document, triples in said:
        for head, relation, tail in triples:
            sources[places[entities[head], relations[relation], entities[tail]]][document] = None
    return [list(documents) for documents in sources]


def write(folder: Path, fingerprint: str, sources: Sources) -> dict[str, str]:
    """Write the file and return what the manifest says of it."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.zeros(len(sources) + 1, dtype=np.int64)
    np.cumsum([len(documents) for documents in sources], out=offsets[1:])
    documents = np.fromiter((d for part in sources for d in part), dtype=np.int32, count=int(offsets[-1]))
    aside = folder / f".sources-{fingerprint}.tmp.npz"
    np.savez(aside, documents=documents, offsets=offsets)
    digest = sha256_file(aside)
    path = aside.replace(folder / f"sources-{fingerprint}-{digest[:8]}.npz")
    return {"file": path.name, "sha256": digest}


def read(folder: Path, entry: Mapping[str, str] | None, graph: KnowledgeGraph) -> Sources:
    """Return for each triple of a graph the documents that say it.

    Raises:
        DataError: the file is missing or was changed.
        IndexMismatchError: it is of another graph.
    """
    if not entry:
        return by_entities(graph)
    path = folder / entry["file"]
    if not path.is_file() or sha256_file(path) != entry["sha256"]:
        raise DataError("is missing, or not what was written with the graph", path=path, hint=AGAIN)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            documents, offsets = arrays["documents"], arrays["offsets"]
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read: {error}", path=path, hint=AGAIN) from error
    if len(offsets) != len(graph.triples) + 1:
        raise IndexMismatchError(
            f"is of {len(offsets) - 1} triples, the graph has {len(graph.triples)}", path=path, hint=AGAIN
        )
    return [part.tolist() for part in np.split(documents, offsets[1:-1])]


def clean(folder: Path, entry: Mapping[str, str]) -> None:
    """Remove the files of earlier graphs."""
    for path in folder.glob("sources-*.npz"):
        if path.name != entry["file"]:
            path.unlink(missing_ok=True)
