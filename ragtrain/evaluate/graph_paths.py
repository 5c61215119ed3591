"""Why an entity was found: paths from the entities of a question along which its score came.

The network is unrolled into its layers. An edge of a layer has as its weight how much the entity's logit rises with a factor on
the message that this edge carries in this layer; to first order that is what the logit loses without it. A path takes edges in
rising layers, in the direction in which messages travel, and waits in between at no cost; it counts by the mean weight of its
edges. Source: NBFNet (Zhu et al. 2021, arXiv:2106.06935), section 3.3 and equation 11.

What differs: the gradients are those of the network's own layers, where the published programs of GFM-RAG explain a second
implementation that sends messages the other way; a path may begin and wait in any layer, since the boundary enters in each; and
the best paths are found exactly, by best-first search with the best possible rest as its bound, instead of by a beam.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ragtrain.models.gfm.edges import Edges, ranges, unique_seeds
from ragtrain.models.gfm.kernel import edge_gradients
from ragtrain.models.gfm.layers import KINDS, Boundary, Degrees
from ragtrain.models.gfm.reach import reached

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from ragtrain.models.gfm.edges import GraphTensors
    from ragtrain.models.gfm.layers import NBFLayer
    from ragtrain.models.gfm.model import GraphNetwork

#: Partial paths that are looked at for one entity and one length before those found so far have to do.
MOST = 20_000


@dataclasses.dataclass(frozen=True)
class Step:
    """A message: ``target`` received that of ``source`` under ``relation`` (in [0, 2R)) in ``layer``, counted from 0."""

    source: int
    relation: int
    target: int
    layer: int
    weight: float


@dataclasses.dataclass(frozen=True)
class Route:
    """Steps from an entity of the question to the entity that is explained."""

    steps: tuple[Step, ...]

    @property
    def weight(self) -> float:
        """What the logit loses without the steps, to first order."""
        return float(sum(step.weight for step in self.steps))

    @property
    def mean(self) -> float:
        """The weight of a step, by which paths of different lengths are compared."""
        return self.weight / len(self.steps)


@dataclasses.dataclass(frozen=True)
class LayerEdges:
    """Edges of one layer that a path may take, ascending by target: k of them.

    Attributes:
        target: (k,) int64, who receives.
        source: (k,) int64, who sends.
        relation: (k,) int64 in [0, 2R).
        weight: (k,) float64.
    """

    target: np.ndarray
    source: np.ndarray
    relation: np.ndarray
    weight: np.ndarray

    def into(self, node: int) -> slice:
        """Return the places of the edges into an entity."""
        start, stop = np.searchsorted(self.target, [node, node + 1])
        return slice(int(start), int(stop))


class Explainer:
    """One question on one graph, computed once and explained for any of its entities.

    Attributes:
        logits: (N,) of the network.
    """

    @torch.no_grad()
    def __init__(
        self, network: GraphNetwork, graph: GraphTensors, features: Tensor, vector: Tensor, seeds: Sequence[int],
        weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Run the network over the whole graph, and keep the states between its layers.

        Args:
            network: the network.
            graph: the edges.
            features: (2R, text_dim) of relations.
            vector: (text_dim,) of the question.
            seeds: entities of the question.
            weights: (N,) how much each entity counts as a seed; without it 1.
        """
        self.network, self.graph = network, graph
        relation_states = network.relation_states(features)
        self._query = network.question_mlp(vector.unsqueeze(0))
        nodes, _ = unique_seeds([seeds], graph.device)
        values = self._query.expand(len(nodes), -1)
        if weights is not None:
            values = values * weights[nodes].unsqueeze(1).to(values.dtype)
        self.seeds = nodes.tolist()
        self._boundary = Boundary(nodes, values)
        self._degrees = Degrees.of(graph)
        self._layers = [cast("NBFLayer", layer) for layer in network.layers]
        self._tables = [layer.relations(relation_states) for layer in self._layers]
        state = self._boundary.dense(graph.n_entities, 1)
        self._states = [state]
        for layer, table in zip(self._layers, self._tables, strict=True):
            state = layer.update(state, layer.gather(state, table, graph), self._boundary, self._degrees)
            self._states.append(state)
        self._level = reached(graph, nodes, 1, len(self._layers)).long()
        self.logits = self._head(state[:, 0])

    def _head(self, states: Tensor) -> Tensor:
        """Return logits (n,) of states (n, D)."""
        logits: Tensor = self.network.head(torch.cat([states, self._query.expand(len(states), -1)], -1))
        return logits.squeeze(-1)

    def edges(self, entity: int) -> list[LayerEdges]:
        """Return the edges of each layer that lead from the question's entities towards an entity, with their weights.

        Only entities that the question has reached, and that the entity depends on, are computed.
        """
        last = self._states[-1][entity].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self._head(last).sum(), last)
        rows, gradients = torch.tensor([entity], device=self.graph.device), gradient.unsqueeze(0)
        found: list[LayerEdges] = []
        for number in range(len(self._layers) - 1, -1, -1):
            edges, gradients = self._back(number, rows, gradients)
            # What the question has not reached carries nothing of it; nor does what left the entity itself.
            kept = (self._level[edges[1]] <= number) & (edges[1] != entity) & (edges[3] != 0)
            parts = [part[kept].cpu().numpy() for part in edges]
            found.append(LayerEdges(parts[0], parts[1], parts[2], parts[3].astype(np.float64)))
            if number:
                changed = (gradients != 0).flatten(1).any(1)
                rows = (changed & (self._level <= number)).nonzero().flatten()
                gradients = gradients[rows]
        return found[::-1]

    def _back(self, number: int, rows: Tensor, outer: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Go back through a layer.

        Args:
            number: of the layer.
            rows: (n,) entities after it, ascending.
            outer: (n, 1, D) gradients of their states.

        Returns:
            Target, source, relation and weight of each edge into the rows, and (N, 1, D) gradients of the states before.
        """
        layer, table, states = self._layers[number], self._tables[number], self._states[number]
        walk = self.graph.into
        places, group = ranges(walk.offsets, rows)
        sizes = (len(rows), self.graph.n_entities, self.graph.n_relations)
        edges = Edges(group, walk.first[places], walk.second[places], sizes, ordered=True)
        kinds = KINDS[layer.aggregate]
        with torch.enable_grad():
            before = states.detach().requires_grad_()
            gathered = layer.gather(before, table.detach(), edges)
            leaves = [each.detach().requires_grad_() for each in gathered]
            own = states[rows].detach().requires_grad_()
            # Copies, since the layer may write over what was gathered.
            after = layer.update(own, tuple(leaf.clone() for leaf in leaves), self._of(rows), self._degrees_of(rows))
            d_own, *d_gathered = torch.autograd.grad(after, [own, *leaves], outer)
            (d_before,) = torch.autograd.grad(gathered, before, d_gathered)
        weights = edge_gradients(
            edges, states, table, tuple(d_gathered), message=layer.message, kinds=kinds, results=gathered
        )
        d_before.index_add_(0, rows, d_own)
        return (rows[group], walk.first[places].long(), walk.second[places].long(), weights), d_before

    def _of(self, rows: Tensor) -> Boundary:
        """Return the boundary of some rows."""
        place = torch.full((self.graph.n_entities,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        places = place[self._boundary.places]
        return Boundary(places[places >= 0], self._boundary.values[places >= 0])

    def _degrees_of(self, rows: Tensor) -> Degrees:
        return Degrees(self._degrees.counts[rows], self._degrees.scale[rows])

    def routes(self, entity: int, count: int = 3) -> list[Route]:
        """Return the paths that carried most of an entity's logit, best first; paths that lowered it are none of them.

        Args:
            entity: which.
            count: of paths, at most.
        """
        return best_routes(self.edges(entity), self.seeds, entity, count, self.graph.n_entities)


def best_routes(layers: Sequence[LayerEdges], seeds: Sequence[int], entity: int, count: int, n: int) -> list[Route]:
    """Return the paths without repeated entities from any seed to an entity with the highest mean weight above 0.

    Args:
        layers: edges of each layer.
        seeds: where paths may begin.
        entity: where they end.
        count: of paths, at most.
        n: number of entities.
    """
    bounds = _bounds(layers, seeds, n)
    found = [
        route
        for length in range(1, len(layers) + 1)
        for route in itertools.islice(_of_length(layers, bounds, entity, length), count)
    ]
    best = sorted(found, key=lambda route: -route.mean)
    return [route for route in best if route.weight > 0][:count]


def _bounds(layers: Sequence[LayerEdges], seeds: Sequence[int], n: int) -> np.ndarray:
    """Return the largest weight of a walk from a seed: (layers + 1, layers + 1, n) by layers passed, edges, and its end."""
    depth = len(layers)
    best = np.full((depth + 1, depth + 1, n), -np.inf)
    best[0, 0, list(seeds)] = 0.0
    for passed, edges in enumerate(layers):
        best[passed + 1] = best[passed]
        if not len(edges.target):
            continue
        starts = np.flatnonzero(np.r_[True, edges.target[1:] != edges.target[:-1]])
        targets = edges.target[starts]
        for length in range(1, passed + 2):
            reach = np.maximum.reduceat(best[passed, length - 1, edges.source] + edges.weight, starts)
            row = best[passed + 1, length]
            row[targets] = np.maximum(row[targets], reach)
    return best


def _of_length(layers: Sequence[LayerEdges], bounds: np.ndarray, entity: int, length: int) -> Iterator[Route]:
    """Yield paths of some edges by falling weight, each sequence of entities and relations once, in its best layers.

    What is taken from the queue is the end of a path; it stands there by its own weight and the best possible rest's.
    """
    tie = itertools.count()
    queue: list[tuple[float, int, float, int, tuple[Step, ...]]] = []
    if bounds[-1, length, entity] > -np.inf:
        queue.append((-bounds[-1, length, entity], next(tie), 0.0, len(layers), ()))
    seen: set[tuple[tuple[int, int], ...]] = set()
    for _ in range(MOST):
        if not queue:
            return
        _, _, weight, layer, steps = heapq.heappop(queue)
        left = length - len(steps)
        if not left:
            key = tuple((step.source, step.relation) for step in steps)
            if key not in seen:
                seen.add(key)
                yield Route(steps)
            continue
        node = steps[0].source if steps else entity
        visited = {entity, *(step.source for step in steps)}
        for number in range(left - 1, layer):
            edges = layers[number]
            some = edges.into(node)
            rest = bounds[number, left - 1, edges.source[some]]
            for place in np.flatnonzero(rest > -np.inf) + some.start:
                source = int(edges.source[place])
                if source in visited:
                    continue
                total = weight + float(edges.weight[place])
                step = Step(source, int(edges.relation[place]), node, number, float(edges.weight[place]))
                bound = total + float(bounds[number, left - 1, source])
                heapq.heappush(queue, (-bound, next(tie), total, number, (step, *steps)))
