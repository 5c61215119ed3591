"""Which states a batch of queries needs: those that a query has reached, and one of each entity for all that have not.

After l layers the state of an entity depends on the query only where the query's boundary is within l hops. Everywhere else it
is the null state, that of a graph nobody asked anything. So a layer is computed over rows: null states of entities, once for the
batch, and states of pairs of an entity and a query that has reached it. It is exact for every message and aggregate, and so are
its gradients, since the null states are rows like the others.

Rows that no wanted score depends on are left out as well: of the last layer only the candidates are computed, of the layer
before only they and their neighbours, and so on.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from ragtrain.models.gfm.edges import Edges, ranges

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.models.gfm.edges import GraphTensors, Removed

_FAR = 127
_SAMPLED = 32
WORTH = 0.8
"""Rows are computed one by one where they cost less than this share of all entities times queries."""


@dataclasses.dataclass(frozen=True)
class LayerRows:
    """What one layer computes. Rows before and after it are null states of some entities, and then pairs.

    Attributes:
        edges: from the rows before the layer to those after it.
        nulls: (z,) entities whose null states stand first before the layer.
        previous: (n_out,) the row before the layer of each row after it.
        places: (k,) rows after the layer that have a boundary, and
        seeds: (k,) which one.
        entities: (n_out,) the entity of each row after the layer.
    """

    edges: Edges
    nulls: Tensor
    previous: Tensor
    places: Tensor
    seeds: Tensor
    entities: Tensor


@dataclasses.dataclass(frozen=True)
class Rows:
    """What all layers compute.

    Attributes:
        layers: first to last.
        n_first: rows before the first layer, null states included.
        places: rows before the first layer that have a boundary, and
        seeds: which one.
        wanted: (B, C) or (B, N), the row after the last layer of each wanted score.
        n_nulls: how many of the rows after the last layer are null states; they come first, and
        pairs: (p,) entity * B + query of the others.
        cost: rows that are computed in all layers.
    """

    layers: list[LayerRows]
    n_first: int
    places: Tensor
    seeds: Tensor
    wanted: Tensor
    n_nulls: int
    pairs: Tensor
    cost: int


def reached(graph: GraphTensors, seeds: Tensor, batch: int, n_layers: int, removed: Removed | None = None) -> Tensor:
    """Return after how many layers each pair depends on its query: (N * B,) int8, 127 where after none.

    Args:
        graph: the edges.
        seeds: (k,) entity * B + query, where the boundary is.
        batch: B.
        n_layers: number of layers.
        removed: edges that single queries do without; who would have received a message depends on it.
    """
    level = torch.full((graph.n_entities * batch,), _FAR, dtype=torch.int8, device=seeds.device)
    level[seeds] = 0
    frontier, walk = seeds, graph.out_of
    for layer in range(1, n_layers + 1):
        places, group = ranges(walk.offsets, frontier // batch)
        to = walk.first[places].long() * batch + (frontier % batch)[group]
        if layer == 1 and removed is not None:
            to = torch.cat([to, removed.pairs])
        level[to[level[to] == _FAR]] = layer
        frontier = (level == layer).nonzero().squeeze(1)
    return level


def overhead(width: int) -> float:
    """Return what a row costs next to one of the dense pass, whose edges are looked up once for all queries.

    Measured on a CPU: the lookups of a row's edges take as long as some 64 values of its messages.
    """
    return 1 + 64 / width


def worth(
    graph: GraphTensors, batch: int, n_layers: int, width: int, *, cached: bool = False, some: int | None = None
) -> bool:
    """Return whether queries reach so little of a graph that rows are probably cheaper than entities times queries.

    A guess from entities at even distances in the order of edges, so that those of many edges are met as often as
    questions meet them. It depends on the graph alone and is made once.

    Args:
        graph: the edges.
        batch: number of queries.
        n_layers: number of layers.
        width: D.
        cached: null states cost nothing.
        some: how many entities are scored for each query, so that of the last layers less is computed; None is all.
    """
    if not len(graph) or (batch < 2 and not (cached or some)):
        return False
    key = f"_reach_{n_layers}"
    shares: Tensor | None = graph.__dict__.get(key)
    if shares is None:
        step = max(1, len(graph) // _SAMPLED)
        nodes = torch.unique(graph.into.row[::step].long())[:_SAMPLED]
        level = reached(graph, nodes * len(nodes) + torch.arange(len(nodes), device=nodes.device), len(nodes), n_layers)
        shares = torch.stack([(level <= layer).double().mean() for layer in range(1, n_layers + 1)]).cpu()
        graph.__dict__[key] = shares
    if some is not None:  # the way back from some entities is as long as the way there
        back = torch.cat([shares.new_full((1,), 1 / graph.n_entities), shares[:-1]]).mul_(some).clamp_(max=1)
        shares = torch.minimum(shares, back.flip(0))
    rows = float((batch * shares + (0 if cached else 1)).sum())
    return rows * overhead(width) < WORTH * n_layers * batch


def rows_of(
    graph: GraphTensors,
    seeds: Tensor,
    level: Tensor,
    n_layers: int,
    *,
    removed: Removed | None = None,
    wanted: Tensor | None = None,
    cached: bool = False,
) -> Rows:
    """Return what the layers have to compute.

    Args:
        graph: the edges.
        seeds: (k,) entity * B + query of the boundary.
        level: by ``reached``.
        n_layers: number of layers.
        removed: edges that single queries do without.
        wanted: (B, C) entities to be scored, or all.
        cached: the null states are there; rows of null states are read and never computed.
    """
    size, batch = len(level), len(level) // graph.n_entities
    new = Scratch(graph, size, batch)
    new.seed_index[seeds] = torch.arange(len(seeds), device=seeds.device)
    nodes = torch.arange(graph.n_entities, device=level.device)
    queries = torch.arange(batch, device=level.device).unsqueeze(1)
    keys = (nodes if wanted is None else wanted.long()) * batch + queries
    far = level[keys] > n_layers
    out = _Needed(new, keys[~far], keys[far] // batch)
    last = torch.where(far, new.null_index[keys // batch], len(out.nulls) + new.pair_index[keys])
    n_nulls, pairs = len(out.nulls), out.pairs
    layers: list[LayerRows] = []
    for layer in range(n_layers, 0, -1):
        rows, out = _layer(new, level, layer, out, removed, cached)
        layers.append(rows)
    cost = sum(rows.edges.n_out for rows in layers)
    index = new.seed_index[out.pairs]
    n_first = len(out.nulls) + len(out.pairs)
    places = torch.arange(len(out.nulls), n_first, device=level.device)
    return Rows(layers[::-1], n_first, places, index, last, n_nulls, pairs, cost)


class Scratch:
    """Tables of the size of all pairs, by which places of rows are found; made once for a batch."""

    def __init__(self, graph: GraphTensors, size: int, batch: int) -> None:
        self.graph, self.batch, device = graph, batch, graph.device
        self.seed_index = torch.full((size,), -1, dtype=torch.int64, device=device)
        self.pair_index = torch.zeros(size, dtype=torch.int64, device=device)
        self.null_index = torch.zeros(graph.n_entities, dtype=torch.int64, device=device)


class _Needed:
    """Rows before or after a layer; their places are written into the scratch tables."""

    def __init__(self, scratch: Scratch, pairs: Tensor, nulls: Tensor) -> None:
        mark = torch.zeros(len(scratch.pair_index), dtype=torch.bool, device=pairs.device)
        mark[pairs] = True
        self.pairs = mark.nonzero().squeeze(1)
        mark = torch.zeros(len(scratch.null_index), dtype=torch.bool, device=pairs.device)
        mark[nulls] = True
        self.nulls = mark.nonzero().squeeze(1)
        scratch.pair_index[self.pairs] = torch.arange(len(self.pairs), device=pairs.device)
        scratch.null_index[self.nulls] = torch.arange(len(self.nulls), device=pairs.device)


def _layer(
    scratch: Scratch, level: Tensor, layer: int, out: _Needed, removed: Removed | None, cached: bool
) -> tuple[LayerRows, _Needed]:
    """Return what a layer computes for some rows, and which rows that needs before it."""
    graph, batch, walk = scratch.graph, scratch.batch, scratch.graph.into
    nulls = out.nulls[:0] if cached else out.nulls
    own, own_group = ranges(walk.offsets, nulls)
    places, group = ranges(walk.offsets, out.pairs // batch)
    query = (out.pairs % batch)[group]
    if removed is not None:
        keep = ~torch.isin(places * batch + query, removed.places * batch + removed.rows)
        places, group, query = places[keep], group[keep], query[keep]
    own_source, sender = walk.first[own].long(), walk.first[places].long()
    key = sender * batch + query
    near, same = level[key] < layer, level[out.pairs] < layer
    needed = _Needed(
        scratch,
        torch.cat([key[near], out.pairs[same]]),
        torch.cat([sender[~near], out.pairs[~same] // batch, own_source, nulls]),
    )
    first = len(needed.nulls)
    null_index, pair_index = scratch.null_index, scratch.pair_index
    source = torch.cat([null_index[own_source], torch.where(near, first + pair_index[key], null_index[sender])])
    entity = out.pairs // batch
    previous = torch.cat([null_index[nulls], torch.where(same, first + pair_index[out.pairs], null_index[entity])])
    n_out, n_in = len(nulls) + len(out.pairs), first + len(needed.pairs)
    target = torch.cat([own_group, len(nulls) + group])
    relation = walk.second[torch.cat([own, places])]
    edges = Edges(target, source, relation, (n_out, n_in, graph.n_relations), ordered=True)
    index = scratch.seed_index[out.pairs]
    has = (index >= 0).nonzero().squeeze(1)
    return (
        LayerRows(edges, needed.nulls, previous, len(nulls) + has, index[has], torch.cat([nulls, entity])),
        needed,
    )
