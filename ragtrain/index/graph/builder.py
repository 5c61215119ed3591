"""Names in, ids out: what every reader of graphs puts triples and documents into."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from typing import TYPE_CHECKING

import numpy as np

from ragtrain.errors import DataError
from ragtrain.graphs import KnowledgeGraph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ragtrain.records import Passage


class GraphBuilder:
    """Numbers entities and relations by their first appearance and takes each triple once.

    Attributes:
        entities: ids by name.
        relations: ids by name.
        repeated: triples that were given again, those held out included; known when it is finished.
        held_out_in_graph: held-out triples that the graph has as well, and that are left out for it; likewise.
    """

    def __init__(self) -> None:
        self.entities: dict[str, int] = {}
        self.relations: dict[str, int] = {}
        self.repeated = 0
        self.held_out_in_graph = 0
        # Twelve bytes a triple: tens of millions fit.
        self._triples = array("i")
        self._held_out: dict[str, array[int]] = {}
        self._documents: dict[str, Passage] = {}
        self._members: dict[str, dict[int, None]] = {}

    def entity(self, name: str) -> int:
        """Return the id of an entity, a new one where the name is new."""
        return self.entities.setdefault(name, len(self.entities))

    def relation(self, name: str) -> int:
        """Return the id of a relation, a new one where the name is new."""
        return self.relations.setdefault(name, len(self.relations))

    def triple(self, head: str, relation: str, tail: str, split: str | None = None) -> None:
        """Take a triple: head, then tail, then relation get their ids.

        Args:
            head: name of an entity.
            relation: name of a relation.
            tail: name of an entity.
            split: what it is held out for; without it, it is part of the graph. A held-out triple that the graph has, before
                or after, is not held out.
        """
        h, t = self.entity(head), self.entity(tail)
        into = self._triples if split is None else self._held_out.setdefault(split, array("i"))
        into.extend((h, self.relation(relation), t))

    def held_out(self, split: str) -> None:
        """Say that there is such a split, though it may have no triple."""
        self._held_out.setdefault(split, array("i"))

    def document(self, passage: Passage, entities: Iterable[str] = ()) -> None:
        """Take a document and the entities in it; entities that no triple names become ids, too.

        Raises:
            DataError: another document has its id.
        """
        if passage.id in self._documents:
            raise DataError(f"two documents have the same id {passage.id!r}", field="id", hint="give each its own id")
        self._documents[passage.id] = passage
        self._members[passage.id] = {self.entity(name): None for name in entities}

    def finish(self) -> KnowledgeGraph:
        """Return the graph of what was taken.

        Raises:
            DataError: it has no triple.
        """
        if not self._triples:
            raise DataError("there is no triple", hint="give at least one line with head, relation and tail")
        rows: dict[str | None, np.ndarray] = {None: _rows(self._triples)}
        rows.update({split: _rows(held) for split, held in self._held_out.items()})
        keys = self._keys(rows)
        kept = {split: _first(each) for split, each in keys.items()}
        self.repeated = sum(len(each) - len(kept[split]) for split, each in keys.items())
        held_out = {}
        for split in self._held_out:
            known = np.isin(keys[split][kept[split]], keys[None])
            self.held_out_in_graph += int(known.sum())
            held_out[split] = rows[split][kept[split][~known]]
        return assemble(
            tuple(self.entities),
            tuple(self.relations),
            rows[None][kept[None]],
            tuple(self._documents.values()),
            [list(members) for members in self._members.values()],
            held_out,
        )

    def _keys(self, rows: Mapping[str | None, np.ndarray]) -> dict[str | None, np.ndarray]:
        """Return (n,) int64 for each split's (n, 3) triples: a number for each different triple."""
        every = np.concatenate(list(rows.values())).astype(np.int64)
        # In two steps, since head, relation and tail at once may be beyond 63 bits.
        _, pairs = np.unique(every[:, 0] * len(self.entities) + every[:, 2], return_inverse=True)
        numbers = pairs.reshape(-1) * len(self.relations) + every[:, 1]
        ends = np.cumsum([len(each) for each in rows.values()])[:-1]
        return dict(zip(rows, np.split(numbers, ends), strict=True))


def _rows(triples: array[int]) -> np.ndarray:
    return np.array(triples, dtype=np.int32).reshape(-1, 3)


def _first(keys: np.ndarray) -> np.ndarray:
    """Return where each different key is first, rising."""
    return np.sort(np.unique(keys, return_index=True)[1])


def assemble(
    entities: Sequence[str],
    relations: Sequence[str],
    triples: np.ndarray,
    documents: Sequence[Passage],
    members: Sequence[Sequence[int]],
    held_out: Mapping[str, np.ndarray],
) -> KnowledgeGraph:
    """Return a graph of finished parts, with its fingerprint.

    Args:
        entities: names by id.
        relations: names by id.
        triples: (E, 3) head, relation, tail.
        documents: every document.
        members: entity ids of each document.
        held_out: triples by split.
    """
    offsets = np.zeros(len(documents) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in members], out=offsets[1:])
    graph = KnowledgeGraph(
        entities=tuple(entities),
        relations=tuple(relations),
        triples=np.ascontiguousarray(triples, dtype=np.int32),
        documents=tuple(documents),
        document_entities=np.fromiter((i for ids in members for i in ids), dtype=np.int32, count=int(offsets[-1])),
        document_offsets=offsets,
        held_out={split: np.ascontiguousarray(part, dtype=np.int32) for split, part in held_out.items()},
        fingerprint="",
    )
    return dataclasses.replace(graph, fingerprint=fingerprint(graph))


def fingerprint(graph: KnowledgeGraph) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of everything in a graph: names, triples, documents, held-out triples."""
    digest = hashlib.sha256(b"ragtrain-graph 1")
    for names in (graph.entities, graph.relations):
        _add(digest, json.dumps(names, ensure_ascii=True).encode())
    documents = [(document.id, document.title, document.text) for document in graph.documents]
    _add(digest, json.dumps(documents, ensure_ascii=True).encode())
    for ids in (graph.triples, graph.document_entities):
        _add(digest, np.ascontiguousarray(ids, dtype="<i4").tobytes())
    _add(digest, np.ascontiguousarray(graph.document_offsets, dtype="<i8").tobytes())
    for split in sorted(graph.held_out):
        _add(digest, split.encode())
        _add(digest, np.ascontiguousarray(graph.held_out[split], dtype="<i4").tobytes())
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, part: bytes) -> None:
    # The length first, so that no two different graphs hash the same bytes.
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)
