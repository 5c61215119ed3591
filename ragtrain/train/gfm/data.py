"""The graphs of a run, the questions about them, and the vectors of both."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.known import KnownTails
from ragtrain.models.gfm.splits import hold_out as hold_out  # an evaluation holds out the same

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from ragtrain.graphs import GraphQuestion, KnowledgeGraph


@dataclasses.dataclass(eq=False)
class GraphData:
    """A graph as a network works on it.

    Attributes:
        path: where it was read from.
        graph: entities, relations, documents.
        triples: (E, 3) int64 that messages travel along and that are learnt from; nothing held out is among them.
        held_out: (n, 3) int64 triples to validate on.
        known: of every query the true tails in the training graph, which negatives must not be.
        all_known: the same with what is held out, which filtered ranks leave out.
        features: (2R, text_dim) text vectors of relations and their inverses; of no width where the network reads none.
        questions: to train on.
        validation: to validate on.
        vectors: text vectors of questions by their words; ids of two files may be the same.
        tensors: edges, in the orders that messages need.
    """

    path: Path
    graph: KnowledgeGraph
    triples: Tensor
    held_out: Tensor
    features: Tensor
    questions: Sequence[GraphQuestion] = ()
    validation: Sequence[GraphQuestion] = ()
    vectors: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        n, r = self.graph.n_entities, self.graph.n_relations
        self.tensors = GraphTensors.from_triples(self.triples, n, r)
        self.known = KnownTails(self.triples, n, r)
        others = [torch.from_numpy(np.asarray(t, dtype=np.int64)) for t in self.graph.held_out.values()]
        self.all_known = KnownTails(torch.cat([self.triples, self.held_out, *others]), n, r)

    def to(self, device: torch.device | str) -> None:
        """Move what a forward pass needs to a device."""
        self.tensors, self.features = self.tensors.to(device), self.features.to(device)
        self.known, self.all_known = self.known.to(device), self.all_known.to(device)

    def seed_weights(self) -> Tensor:
        """Return (entities,) float32: 1 by the number of documents that hold an entity, 0 where none does."""
        held = np.bincount(self.graph.document_entities, minlength=self.graph.n_entities)
        return torch.from_numpy(np.where(held > 0, 1.0 / np.maximum(held, 1), 0.0).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class GfmData:
    """All graphs of a run: those that are trained on, those that are validated on (the same objects where they are).

    ``text_encoder`` is None for ULTRA, which reads no texts.
    """

    train: list[GraphData]
    validation: list[GraphData]
    text_encoder: str | None
    text_dim: int
    sources: dict[str, Any]
