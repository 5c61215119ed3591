"""A knowledge graph over documents, and a question about it: what readers, trainers and evaluations hand to each other.

Plain frozen dataclasses of numpy arrays; this module imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from ragtrain.records import Passage


@dataclasses.dataclass(frozen=True)
class KnowledgeGraph:
    """Entities, relations and triples between them, and the documents that hold the entities.

    Attributes:
        entities: names by id, in the order in which the triples name them first (u, then v); unicode as it stands.
        relations: names of the direct relations by id, in the order of their first triple. Inverse relations are no part of
            it: a model adds relation r + R for the inverse of r.
        triples: (E, 3) int32: head, relation, tail, without repetition; all relations of a pair are kept.
        documents: every document, also those without an entity.
        document_entities: of document d those at ``[document_offsets[d], document_offsets[d + 1])``: entity ids, int32.
        document_offsets: (documents + 1,) int64.
        held_out: triples of ``valid`` and ``test``, (n, 3) int32 each, where the source has such files; none of them is in
            ``triples``.
        fingerprint: hash of all of it, by which caches are known.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    triples: np.ndarray
    documents: tuple[Passage, ...]
    document_entities: np.ndarray
    document_offsets: np.ndarray
    held_out: Mapping[str, np.ndarray]
    fingerprint: str

    @property
    def n_entities(self) -> int:
        """Number of entities."""
        return len(self.entities)

    @property
    def n_relations(self) -> int:
        """Number of direct relations."""
        return len(self.relations)


@dataclasses.dataclass(frozen=True)
class GraphQuestion:
    """A question with what it mentions and what answers it, as ids of one graph.

    Attributes:
        id: of the question.
        question: its text.
        answers: every reference.
        entities: ids of the entities it was linked to; empty where none was.
        supporting_entities: ids of the entities of its supporting documents, as the source says.
        supporting_documents: places of the documents that answer it.
        missing_documents: how many supporting documents the graph does not have.
        hops: number of hops where the source says, else 0.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    entities: tuple[int, ...]
    supporting_entities: tuple[int, ...]
    supporting_documents: tuple[int, ...]
    missing_documents: int = 0
    hops: int = 0
