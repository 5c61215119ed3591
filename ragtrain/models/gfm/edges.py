"""Edges of a graph in the orders in which messages are sent along them.

The direction is that of GFM-RAG's and ULTRA's kernel: of a triple (h, r, t) the head receives the message of the tail under r, and
the tail that of the head under the inverse, r + R. So the edge of a triple goes from t to h, and that of its inverse from h to t.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from ragtrain.errors import RagtrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ragtrain.graphs import KnowledgeGraph

Chunk = tuple[int, int, tuple[tuple[int, int], ...]]
"""Rows [r0, r1) and the pieces [e0, e1) of their edges; only a single row has more than one piece."""


class Walk:
    """Edges sorted by one of their three ids, the row, so that those of a row lie together.

    Attributes:
        offsets: (rows + 1,) int64; the edges of row r are those at ``[offsets[r], offsets[r + 1])``.
        row: (E,) int32, ascending.
        first: (E,) int32, and
        second: (E,) int32, the other two ids, in the order source, relation (by target), target, relation (by source),
            or target, source (by relation).
    """

    def __init__(self, offsets: Tensor, row: Tensor, first: Tensor, second: Tensor) -> None:
        self.offsets, self.row, self.first, self.second = offsets, row, first, second
        self._plans: dict[int, list[Chunk]] = {}

    def plan(self, size: int) -> list[Chunk]:
        """Return chunks of whole rows of at most ``size`` edges; a row with more is a chunk of its own in pieces."""
        if size not in self._plans:
            self._plans[size] = list(_chunks(self.offsets.cpu().numpy(), size))
        return self._plans[size]


def _chunks(offsets: np.ndarray, size: int) -> list[Chunk]:
    chunks: list[Chunk] = []
    row, rows = 0, len(offsets) - 1
    while row < rows:
        start = int(offsets[row])
        end = int(np.searchsorted(offsets, start + size, side="right")) - 1
        end = min(max(end, row + 1), rows)
        stop = int(offsets[end])
        if stop > start:
            pieces = tuple((a, min(a + size, stop)) for a in range(start, stop, size))
            chunks.append((row, end, pieces))
        row = end
    return chunks


class Edges:
    """Edges from ``n_in`` rows of states to ``n_out`` rows, each with a row of a table of relations.

    Args:
        target: (E,) integers in [0, n_out), who receives.
        source: (E,) integers in [0, n_in), who sends.
        relation: (E,) integers in [0, n_relations).
        sizes: n_out, n_in and n_relations.
        ordered: the edges are ascending by target already.
    """

    def __init__(
        self, target: Tensor, source: Tensor, relation: Tensor, sizes: tuple[int, int, int], *, ordered: bool = False
    ) -> None:
        self.n_out, self.n_in, self.n_relations = sizes
        if not ordered:
            order = torch.argsort(target, stable=True)
            target, source, relation = target[order], source[order], relation[order]
        offsets = torch.searchsorted(target.long(), torch.arange(self.n_out + 1, device=target.device))
        self.into = Walk(offsets, target.int(), source.int(), relation.int())

    def __len__(self) -> int:
        return len(self.into.row)

    @cached_property
    def out_of(self) -> Walk:
        """The edges by source; ``first`` is the target, ``second`` the relation."""
        return self._sorted(self.into.first, self.n_in, self.into.row, self.into.second)

    @cached_property
    def by_relation(self) -> Walk:
        """The edges by relation; ``first`` is the target, ``second`` the source."""
        return self._sorted(self.into.second, self.n_relations, self.into.row, self.into.first)

    @cached_property
    def degrees(self) -> Tensor:
        """(n_out,) int64, how many messages each row receives."""
        return self.into.offsets.diff()

    @property
    def device(self) -> torch.device:
        """Where the edges are."""
        return self.into.row.device

    @staticmethod
    def _sorted(row: Tensor, rows: int, first: Tensor, second: Tensor) -> Walk:
        order = torch.argsort(row, stable=True)
        row = row[order]
        offsets = torch.searchsorted(row.long(), torch.arange(rows + 1, device=row.device))
        return Walk(offsets, row, first[order], second[order])


class GraphTensors(Edges):
    """A graph with its inverse edges, sorted once.

    The edges are ascending by target, source and relation, so that one is found by bisection.

    Args:
        target: (E,) who receives, int.
        source: (E,) who sends.
        relation: (E,) ids in [0, 2R).
        n_entities: number of nodes.
        n_relations: 2R, relations with their inverses.
    """

    def __init__(self, target: Tensor, source: Tensor, relation: Tensor, n_entities: int, n_relations: int) -> None:
        keys = _keys(target, source, relation, n_entities, n_relations)
        keys, order = torch.sort(keys)
        sizes = (n_entities, n_entities, n_relations)
        super().__init__(target[order], source[order], relation[order], sizes, ordered=True)
        self._edge_keys = keys

    @classmethod
    def from_graph(cls, graph: KnowledgeGraph, device: torch.device | str = "cpu") -> GraphTensors:
        """Build the edges of a knowledge graph's triples and of their inverses."""
        return cls.from_triples(graph.triples, graph.n_entities, graph.n_relations, device)

    @classmethod
    def from_triples(
        cls, triples: np.ndarray | Tensor, n_entities: int, n_relations: int, device: torch.device | str = "cpu"
    ) -> GraphTensors:
        """Build the edges of triples and of their inverses.

        Args:
            triples: (E, 3) head, relation, tail.
            n_entities: number of nodes.
            n_relations: R, without inverses.
            device: where they go.

        Raises:
            RagtrainError: an id is out of range.
        """
        table = torch.as_tensor(np.asarray(triples)).long().reshape(-1, 3).to(device)
        head, relation, tail = table.unbind(1)
        if len(table) and (
            int(table.min()) < 0
            or int(torch.maximum(head, tail).max()) >= n_entities
            or int(relation.max()) >= n_relations
        ):
            raise RagtrainError(f"triples name an id outside of {n_entities} entities and {n_relations} relations")
        return cls(
            torch.cat([head, tail]),
            torch.cat([tail, head]),
            torch.cat([relation, relation + n_relations]),
            n_entities,
            2 * n_relations,
        )

    @property
    def n_entities(self) -> int:
        """Number of nodes."""
        return self.n_out

    def to(self, device: torch.device | str) -> GraphTensors:
        """Return the same graph on a device; itself where it is there already."""
        device = torch.device(device)
        if self.device.type == device.type and device.index in (None, self.device.index):
            return self
        walk = self.into
        parts = (walk.row.to(device).long(), walk.first.to(device).long(), walk.second.to(device).long())
        return GraphTensors(*parts, self.n_entities, self.n_relations)

    def without(self, removed: Tensor) -> GraphTensors:
        """Return the graph without some edges.

        Args:
            removed: (E,) bool in the order of ``into``, or (k,) places of edges.
        """
        keep = torch.ones(len(self), dtype=torch.bool, device=self.device)
        keep[removed] = False
        walk = self.into
        parts = (walk.row[keep].long(), walk.first[keep].long(), walk.second[keep].long())
        return GraphTensors(*parts, self.n_entities, self.n_relations)

    def find(self, target: Tensor, source: Tensor, relation: Tensor) -> Tensor:
        """Return the place of each edge in the order of ``into``, -1 where there is none: (k,) int64."""
        keys = _keys(target, source, relation, self.n_entities, self.n_relations)
        if not len(self):
            return torch.full_like(keys, -1)
        place = torch.searchsorted(self._edge_keys, keys).clamp_(max=len(self) - 1)
        return torch.where(self._edge_keys[place] == keys, place, -1)

    def inverse(self, relation: Tensor) -> Tensor:
        """Return the inverse of relations in [0, 2R)."""
        half = self.n_relations // 2
        return torch.where(relation < half, relation + half, relation - half)

    def own_edges(self, heads: Tensor, relations: Tensor, tails: Tensor) -> Removed:
        """Return the edge of each query's own triple and its inverse, to be removed for that query only.

        A query (h, r, ?) with r of the inverse half asks for the head of a triple; its edges are found all the same.

        Args:
            heads: (B,) int.
            relations: (B,) int in [0, 2R).
            tails: (B,) int, the answer.
        """
        rows = torch.arange(len(heads), device=self.device)
        targets, sources = torch.cat([heads, tails]), torch.cat([tails, heads])
        places = self.find(targets, sources, torch.cat([relations, self.inverse(relations)]))
        found = places >= 0
        return Removed(self, places[found], torch.cat([rows, rows])[found], len(heads))


@dataclasses.dataclass
class Removed:
    """Edges that are left out, each for one query of a batch and for no other.

    Attributes:
        graph: whose edges they are.
        places: (k,) int64, edges in the order of ``graph.into``.
        rows: (k,) int64, the query from which each is removed.
        n_rows: number of queries.
    """

    graph: Edges
    places: Tensor
    rows: Tensor
    n_rows: int

    def __post_init__(self) -> None:
        pair = torch.unique(self.places * self.n_rows + self.rows)  # an edge is removed once, however often it is named
        self.places, self.rows = pair // self.n_rows, pair % self.n_rows

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """(k,) targets, sources and relations of the edges, int64."""
        walk = self.graph.into
        return walk.row[self.places].long(), walk.first[self.places].long(), walk.second[self.places].long()

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        pair, lost = torch.unique(self.ends[0] * self.n_rows + self.rows, return_counts=True)
        return pair, lost

    @property
    def pairs(self) -> Tensor:
        """(p,) entity * n_rows + row of those who receive less, ascending."""
        return self._pairs[0]

    @property
    def lost(self) -> Tensor:
        """(p,) how many messages each of the pairs lacks."""
        return self._pairs[1]

    @cached_property
    def kept(self) -> Edges:
        """What each of the pairs still receives, over states and relations of shape (rows * B, D) and (2R, D)."""
        walk, n_rows = self.graph.into, self.n_rows
        places, group = ranges(walk.offsets, self.pairs // n_rows)
        row = self.pairs[group] % n_rows
        gone = torch.isin(places * n_rows + row, self.places * n_rows + self.rows)
        places, group, row = places[~gone], group[~gone], row[~gone]
        sizes = (len(self.pairs), self.graph.n_in * n_rows, self.graph.n_relations)
        source, relation = walk.first[places].long() * n_rows + row, walk.second[places]
        return Edges(group, source, relation, sizes, ordered=True)


def ranges(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places ``[offsets[r], offsets[r + 1])`` of several rows one after another, and which row each is of.

    Args:
        offsets: (n + 1,) int64.
        rows: (k,) int64.

    Returns:
        (m,) places and (m,) positions in ``rows``, int64.
    """
    start = offsets[rows]
    counts = offsets[rows + 1] - start
    group = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    first = counts.cumsum(0) - counts
    return torch.arange(len(group), device=rows.device) - first[group] + start[group], group


def unique_seeds(seeds: Sequence[Tensor | np.ndarray | Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return entities and rows of lists of entities, without repetition within a row: (k,) and (k,) int64."""
    arrays = [np.unique(np.asarray(entities, dtype=np.int64)) for entities in seeds]
    rows = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    nodes = np.concatenate([*arrays, np.empty(0, dtype=np.int64)])
    return torch.from_numpy(nodes).to(device), torch.from_numpy(rows).to(device)


def _keys(target: Tensor, source: Tensor, relation: Tensor, n_entities: int, n_relations: int) -> Tensor:
    """Return one number for each edge, by which edges are ordered: (k,) int64."""
    if n_entities * n_entities * max(n_relations, 1) >= 2**63:
        raise RagtrainError(
            f"a graph of {n_entities} entities and {n_relations} relations is too large for edge numbers"
        )
    return (target.long() * n_entities + source.long()) * n_relations + relation.long()
