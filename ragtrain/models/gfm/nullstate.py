"""Null states: what the network computes of a graph that nobody asked anything, and queries on top of it.

``run_rows`` computes the rows of a batch (reach.py), the null states among them, with gradients. ``NullStates`` are those of a
graph and one state of the weights, kept for inference: a query then costs its own reach only.

It is exact for sum, mean and max. With pna it is exact as long as no edges are removed: pna scales by the mean degree of the
query's graph, so that a removed edge changes the states of all entities.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ragtrain.models.gfm.layers import Boundary, Degrees

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.models.gfm.edges import GraphTensors, Removed
    from ragtrain.models.gfm.layers import NBFLayer
    from ragtrain.models.gfm.model import GraphNetwork
    from ragtrain.models.gfm.reach import LayerRows, Rows

_CHUNK = 1024
"""Rows of hidden values that exist at a time: those of 512 columns fill half of a core's cache."""


@dataclasses.dataclass(frozen=True)
class NullStates:
    """Null states of a graph after each layer, and what else no query changes.

    Attributes:
        states: of each layer's input and of the last one's output, num_layers + 1 times (N, D).
        tables: relations of each layer, (2R, D).
        hidden: (N, 2D) the entity's half of the head's hidden values.
        relation_states: (2R, D).
    """

    states: tuple[Tensor, ...]
    tables: tuple[Tensor, ...]
    hidden: Tensor
    relation_states: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, net: GraphNetwork, graph: GraphTensors, relation_features: Tensor) -> NullStates:
        """Compute them: one pass of the whole graph with a batch of one and no boundary."""
        relation_states = net.relation_states(relation_features)
        nothing = Boundary(torch.zeros(0, dtype=torch.int64, device=graph.device), relation_states[:0])
        state = relation_states.new_zeros(graph.n_entities, 1, relation_states.shape[1])
        degrees = Degrees.of(graph)
        states, tables = [state[:, 0]], []
        for module in net.layers:
            layer = cast("NBFLayer", module)
            tables.append(layer.relations(relation_states))
            state = layer.update(state, layer.gather(state, tables[-1], graph), nothing, degrees)
            states.append(state[:, 0])
        return cls(tuple(states), tuple(tables), net.entity_hidden(states[-1]), relation_states)


class NullCache:
    """The null states that were computed last; others as soon as a weight, the graph or a relation's vector changed."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._graph: weakref.ref[GraphTensors] | None = None
        self._states: NullStates | None = None

    def get(self, net: GraphNetwork, graph: GraphTensors, relation_features: Tensor) -> NullStates:
        """Return the null states of a graph under the weights as they are."""
        key = _key(net, relation_features)
        known = self._graph is not None and self._graph() is graph and key == self._key
        if self._states is None or not known:
            self._states = None  # the old ones are let go of before the new ones are made
            self._states = NullStates.of(net, graph, relation_features)
            self._key, self._graph = key, weakref.ref(graph)
        return self._states

    def __reduce__(self) -> tuple[type[NullCache], tuple[()]]:
        """Copies and pickles of a network begin without null states."""
        return NullCache, ()

    def clear(self) -> None:
        """Forget them, and the memory they take."""
        self._key = self._graph = self._states = None


def exact(net: GraphNetwork, removed: Removed | None) -> bool:
    """Return whether queries share null states: always, but for pna where edges are removed."""
    return net.settings.aggregate != "pna" or removed is None or not len(removed)


def run_rows(
    net: GraphNetwork,
    graph: GraphTensors,
    rows: Rows,
    boundary: Boundary,
    relation_states: Tensor,
    known: NullStates | None = None,
) -> Tensor:
    """Return the states of the rows after the last layer, (rows, D).

    Args:
        net: the network.
        graph: the edges.
        rows: what is to be computed.
        boundary: of the queries.
        relation_states: (2R, D).
        known: null states, for rows that were planned with them; there is no gradient through them.
    """
    width = boundary.values.shape[1]
    start = boundary.values.new_zeros(rows.n_first, width)
    states = start.index_copy(0, rows.places, boundary.values[rows.seeds])
    if known is not None:
        states = states[rows.n_first - len(rows.places) :]
    scale = None
    if net.settings.aggregate == "pna":
        scale = Degrees.of(graph, dtype=torch.promote_types(states.dtype, torch.float32)).scale
    for number, (module, part) in enumerate(zip(net.layers, rows.layers, strict=True)):
        if known is not None:
            states = torch.cat([known.states[number][part.nulls].to(states.dtype), states])
        table = relation_states if known is None else known.tables[number]
        arguments = (cast("NBFLayer", module), states, table, part, boundary.values, scale, known is not None)
        if net.activation_checkpointing and torch.is_grad_enabled():
            states = cast("Tensor", checkpoint(_step, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            states = _step(*arguments)
    return states


def _step(
    layer: NBFLayer,
    states: Tensor,
    table: Tensor,
    part: LayerRows,
    values: Tensor,
    scale: Tensor | None,
    projected: bool,
) -> Tensor:
    """Return the rows after a layer, (n_out, D), from those before it, (n_in, D)."""
    counts = (part.edges.degrees + 1).to(torch.promote_types(states.dtype, torch.float32))[:, None, None]
    degrees = Degrees(counts, counts if scale is None else scale[part.entities])
    gathered = layer.gather(states.unsqueeze(1), table if projected else layer.relations(table), part.edges)
    own = states.index_select(0, part.previous).unsqueeze(1)
    return layer.update(own, gathered, Boundary(part.places, values[part.seeds]), degrees).squeeze(1)


def pair_logits(net: GraphNetwork, states: Tensor, query: Tensor, wanted: Tensor) -> Tensor:
    """Return logits (B, C) of rows of states; the head's large product is computed once for each row, not for each query.

    Args:
        net: the network.
        states: (rows, D).
        query: (B, D).
        wanted: (B, C) which rows.
    """
    last = net.head_output
    logits: Tensor = _PairLogits.apply(net.entity_hidden(states), net.query_hidden(query), last.weight[0], wanted)  # type: ignore[no-untyped-call]
    return logits + last.bias


def logits_on(
    net: GraphNetwork, known: NullStates, states: Tensor, query: Tensor, rows: Rows, candidates: Tensor | None
) -> Tensor:
    """Return logits of candidates (B, C), or of all entities: of null states, and in their place of pairs that were reached.

    Args:
        net: the network.
        known: null states.
        states: (p, D) of the pairs.
        query: (B, D).
        rows: what was computed.
        candidates: (B, C).
    """
    asked, last, batch = net.query_hidden(query), net.head_output, len(query)
    weight = last.weight[0].to(asked.dtype)
    if candidates is None:
        candidates = torch.arange(len(known.hidden), device=asked.device).expand(batch, -1)
    logits = _pair_logits(known.hidden.to(asked.dtype), asked, weight, candidates.long())
    if len(rows.pairs):
        reached = F.relu_(net.entity_hidden(states).add_(asked[rows.pairs % batch])) @ weight
        place = rows.wanted - rows.n_nulls
        logits = torch.where(place >= 0, reached[place.clamp(min=0)], logits)
    return logits + last.bias


class _PairLogits(torch.autograd.Function):
    """w . relu(hidden[row] + asked[query]) for each pair; hidden values of pairs are made in chunks, and made again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, asked: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(hidden, asked, weight, wanted)
        return _pair_logits(hidden, asked.to(hidden.dtype), weight.to(hidden.dtype), wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        hidden, asked, weight, wanted = ctx.saved_tensors
        wide = torch.promote_types(hidden.dtype, torch.float32)
        d_hidden, d_asked = torch.zeros_like(hidden, dtype=wide), torch.zeros_like(asked, dtype=wide)
        d_weight = torch.zeros_like(weight, dtype=wide)
        for query in range(len(wanted)):
            for a in range(0, wanted.shape[1], _CHUNK):
                which, g = wanted[query, a : a + _CHUNK], outer[query, a : a + _CHUNK].to(wide)
                values = hidden.index_select(0, which).add_(asked[query].to(hidden.dtype)).relu_().to(wide)
                d_weight += g @ values
                inner = torch.outer(g, weight.to(wide)).mul_(values > 0)
                d_hidden.index_add_(0, which, inner)
                d_asked[query] += inner.sum(0)
        return d_hidden.to(hidden.dtype), d_asked.to(asked.dtype), d_weight.to(weight.dtype), None


def _pair_logits(hidden: Tensor, asked: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    logits = hidden.new_empty(wanted.shape)
    for query in range(len(wanted)):
        for a in range(0, wanted.shape[1], _CHUNK):
            values = hidden.index_select(0, wanted[query, a : a + _CHUNK])
            logits[query, a : a + _CHUNK] = values.add_(asked[query]).relu_() @ weight
    return logits


def _key(net: GraphNetwork, relation_features: Tensor) -> tuple[Any, ...]:
    """Return what null states depend on besides the graph, by places, versions and sums of tensors.

    Versions alone miss what is written past them (``.data``, some fused optimizers); sums alone miss exchanges.
    """
    tensors = [*net.parameters(), relation_features]
    sums = torch.stack([tensor.detach().sum(dtype=torch.float64) for tensor in tensors]).tolist()
    marks = [(tensor.data_ptr(), _version(tensor), tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    enabled = torch.is_autocast_enabled(tensors[0].device.type)
    return (*marks, *sums, enabled and torch.get_autocast_dtype(tensors[0].device.type))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
