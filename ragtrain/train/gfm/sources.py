"""Micro-batches of triples and of questions, over one graph or several.

What a micro-batch holds is a function of the seed, the epoch and its examples, one by one: which end of a triple is corrupted
and with what does not depend on the other triples beside it, so that a micro-batch can be cut without changing the step.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch

from ragtrain.models.gfm import negatives

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ragtrain.graphs import GraphQuestion
    from ragtrain.train.gfm.data import GraphData


@dataclasses.dataclass(frozen=True)
class TripleBatch:
    """Queries for tails over one graph.

    Attributes:
        ids: of the triples: graph and place.
        graph: number of the graph.
        heads: (B,) entities.
        relations: (B,) in [0, 2R).
        candidates: (B, 1 + k) entities, the true tail first.
        weight: queries.
    """

    ids: tuple[str, ...]
    graph: int
    heads: Tensor
    relations: Tensor
    candidates: Tensor
    weight: float

    def to(self, device: torch.device | str) -> TripleBatch:
        """Return the batch with its tensors on a device."""
        heads, relations = self.heads.to(device), self.relations.to(device)
        return dataclasses.replace(self, heads=heads, relations=relations, candidates=self.candidates.to(device))


@dataclasses.dataclass(frozen=True)
class QuestionBatch:
    """Questions over one graph.

    Attributes:
        ids: of the questions.
        graph: number of the graph.
        vectors: (B, text_dim).
        seeds: entities of each question.
        entities: entities that each is to find.
        documents: documents that each is to find.
        weight: questions.
    """

    ids: tuple[str, ...]
    graph: int
    vectors: Tensor
    seeds: tuple[Tensor, ...]
    entities: tuple[Tensor, ...]
    documents: tuple[Tensor, ...]
    weight: float

    def to(self, device: torch.device | str) -> QuestionBatch:
        """Return the batch with its tensors on a device."""

        def moved(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(part.to(device) for part in parts)

        return dataclasses.replace(
            self, vectors=self.vectors.to(device), seeds=moved(self.seeds), entities=moved(self.entities),
            documents=moved(self.documents),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """How examples become micro-batches.

    Attributes:
        batch_size: examples in a micro-batch.
        seed: of every draw.
        by_step: micro-batches of all graphs are mixed; without, one graph comes after another.
        most: examples of a graph in an epoch, drawn anew each time; None for all.
        num_negatives: corrupted triples for each.
        strict: they are none that the graph holds.
    """

    batch_size: int
    seed: int = 0
    by_step: bool = True
    most: int | None = None
    num_negatives: int = 256
    strict: bool = True


class _Source:
    """Micro-batches of examples that are numbered over all graphs."""

    def __init__(self, counts: Sequence[int], settings: SourceSettings) -> None:
        self.settings, self.counts = settings, list(counts)
        self._starts = [0, *itertools.accumulate(self.counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the micro-batches of an epoch, each of one graph."""
        seed, size = self.settings.seed, self.settings.batch_size
        graphs: list[list[list[int]]] = []
        for number, count in enumerate(self.counts):
            order = np.random.default_rng((seed, epoch, number)).permutation(count)[: self.settings.most]
            places = (order + self._starts[number]).tolist()
            graphs.append([places[start : start + size] for start in range(0, len(places), size)])
        rng = np.random.default_rng((seed, epoch, len(self.counts), 1))
        if not self.settings.by_step:
            return [batch for number in rng.permutation(len(graphs)) for batch in graphs[number]]
        mixed = [batch for batches in graphs for batch in batches]
        return [mixed[i] for i in rng.permutation(len(mixed))]

    def place(self, index: int) -> tuple[int, int]:
        """Return the graph of an example, and its place there."""
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]


class TripleSource(_Source):
    """Triples of graphs, each with corrupted ones."""

    def __init__(self, graphs: Sequence[GraphData], settings: SourceSettings) -> None:
        super().__init__([len(each.triples) for each in graphs], settings)
        self.graphs = graphs

    def collate(self, indices: Sequence[int], epoch: int) -> TripleBatch:
        """Draw the candidates of some triples of one graph; half of all triples are asked for their head, in turns."""
        number = self.place(indices[0])[0]
        data, settings = self.graphs[number], self.settings
        rows = []
        for index in indices:
            place = self.place(index)[1]
            # A generator of its own for each triple: its draws are the same in whatever batch it stands.
            state = int(np.random.default_rng((settings.seed, epoch, number, place)).integers(2**62))
            generator = torch.Generator().manual_seed(state)
            turn = (place + epoch) % 2
            triple = data.triples[place : place + 1]
            rows.append(
                negatives.draw(data.known, triple, settings.num_negatives, generator, strict=settings.strict, turn=turn)
            )
        return TripleBatch(
            ids=tuple(f"{data.path.name}:{self.place(index)[1]}" for index in indices),
            graph=number,
            heads=torch.cat([row.heads for row in rows]),
            relations=torch.cat([row.relations for row in rows]),
            candidates=torch.cat([row.candidates for row in rows]),
            weight=float(len(rows)),
        )


class QuestionSource(_Source):
    """Questions about graphs."""

    def __init__(self, graphs: Sequence[GraphData], settings: SourceSettings) -> None:
        self.questions = [[q for q in each.questions if learnable(q)] for each in graphs]
        super().__init__([len(some) for some in self.questions], settings)
        self.graphs = graphs

    def collate(self, indices: Sequence[int], epoch: int) -> QuestionBatch:
        """Assemble some questions of one graph."""
        number = self.place(indices[0])[0]
        return batch_of(self.graphs[number], number, [self.questions[number][self.place(i)[1]] for i in indices])


def learnable(question: GraphQuestion) -> bool:
    """Return whether a question teaches anything: it starts somewhere, and has somewhere to go."""
    return bool(question.entities) and bool(question.supporting_entities)


def batch_of(data: GraphData, number: int, questions: Sequence[GraphQuestion]) -> QuestionBatch:
    """Return questions about a graph as one batch."""

    def ids(parts: tuple[int, ...]) -> Tensor:
        return torch.tensor(parts, dtype=torch.long)

    return QuestionBatch(
        ids=tuple(question.id for question in questions),
        graph=number,
        vectors=torch.stack([data.vectors[question.question] for question in questions]),
        seeds=tuple(ids(question.entities) for question in questions),
        entities=tuple(ids(question.supporting_entities) for question in questions),
        documents=tuple(ids(question.supporting_documents) for question in questions),
        weight=float(len(questions)),
    )
