"""Sums of products of states and relations along edges, made of sums over groups of edges.

Of all edges into v under one relation r the relation is a common factor::

    out[v] = sum over r of (sum over edges (u, r, v) of x[u]) * z[r]

so that there is one product for each pair (v, r), which are several times fewer than edges where relations have hubs, and the
inner sum is one gather of rows. Both gradients have the same form, with the three ids of an edge in other places; so one
function computes all, in chunks, without atomics and in a fixed order. It is for product and sum only; ``kernel`` has the rest.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.models.gfm.edges import Edges

#: Values of a chunk of products: what stays in a processor's cache, or keeps a GPU busy.
_CELLS = {"cpu": 1 << 19, "cuda": 1 << 25}


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Groups [g0, g1) of a walk: all offsets count from the chunk's beginning."""

    inner: Tensor
    starts: Tensor
    factor: Tensor
    rows: slice
    row_starts: Tensor
    places: Tensor


class _Walk:
    """Edges in groups of one (row, factor), ascending, and in each the ids whose states are summed."""

    def __init__(self, row: Tensor, factor: Tensor, inner: Tensor, n_rows: int, n_factors: int) -> None:
        keys = row.long() * n_factors + factor.long()
        keys, order = torch.sort(keys, stable=True)
        keys, counts = torch.unique_consecutive(keys, return_counts=True)
        self.inner = inner[order].int()
        self.starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.rows, self.factor = torch.div(keys, n_factors, rounding_mode="floor"), keys % n_factors
        self.row_starts = torch.searchsorted(self.rows, torch.arange(n_rows + 1, device=row.device))
        self.n_rows = n_rows
        self._plans: dict[int, list[_Chunk]] = {}

    def plan(self, size: int) -> list[_Chunk]:
        """Return chunks of at most ``size`` groups, of whole groups but not of whole rows."""
        if size not in self._plans:
            self._plans[size] = [self._chunk(start, start + size) for start in range(0, len(self.rows), size)]
        return self._plans[size]

    def _chunk(self, start: int, stop: int) -> _Chunk:
        stop = min(stop, len(self.rows))
        first, last = int(self.starts[start]), int(self.starts[stop])
        rows = slice(int(self.rows[start]), int(self.rows[stop - 1]) + 1)
        return _Chunk(
            inner=self.inner[first:last],
            starts=(self.starts[start : stop + 1] - first).int(),
            factor=self.factor[start:stop],
            rows=rows,
            row_starts=(self.row_starts[rows.start : rows.stop + 1].clamp(start, stop) - start).int(),
            places=torch.arange(stop - start, device=self.rows.device, dtype=torch.int32),
        )


class Groups:
    """Edges of a graph in the groups that its three sums need; two of them are made when a gradient is asked for."""

    def __init__(self, edges: Edges) -> None:
        self._walk = edges.into  # and not the graph itself, which may keep these groups
        self._n_out, self._n_in, self._n_relations = edges.n_out, edges.n_in, edges.n_relations

    @cached_property
    def into(self) -> _Walk:
        """By target, under each relation the sources."""
        walk = self._walk
        return _Walk(walk.row, walk.second, walk.first, self._n_out, self._n_relations)

    @cached_property
    def out_of(self) -> _Walk:
        """By source, under each relation the targets."""
        walk = self._walk
        return _Walk(walk.first, walk.second, walk.row, self._n_in, self._n_relations)

    @cached_property
    def by_relation(self) -> _Walk:
        """By relation, for each target the sources."""
        walk = self._walk
        return _Walk(walk.second, walk.row, walk.first, self._n_relations, self._n_out)


def sum_products(groups: Groups, states: Tensor, relations: Tensor, table: Tensor) -> Tensor:
    """Return ``out[v, b]``, the sum over the edges (u, r, v) of ``states[u, b] * relations[r, table[b]]``.

    Args:
        groups: of the graph.
        states: (n_in, B, D).
        relations: (n_relations, U, D), U tables of relations; queries of a batch share them.
        table: (B,) int64 in [0, U), which one each query of the batch has.

    Returns:
        (n_out, B, D) in the type of ``states``; differentiable in states and relations.
    """
    result: Tensor = _SumProducts.apply(states, relations.to(states.dtype), groups, table)  # type: ignore[no-untyped-call]
    return result.view(-1, *states.shape[1:])


class _SumProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, relations: Tensor, groups: Groups, table: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(states, relations, table)
        ctx.groups = groups
        return _sums(groups.into, states, relations, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        states, relations, table = ctx.saved_tensors
        gradient = gradient.view(-1, *states.shape[1:])
        d_states = d_relations = None
        if ctx.needs_input_grad[0]:
            d_states = _sums(ctx.groups.out_of, gradient, relations, table).view_as(states)
        if ctx.needs_input_grad[1]:
            each = _sums(ctx.groups.by_relation, states, gradient, None).view(len(relations), *states.shape[1:])
            d_relations = torch.zeros_like(relations).index_add_(1, table, each)
        return d_states, d_relations, None, None


def _sums(walk: _Walk, states: Tensor, factors: Tensor, table: Tensor | None) -> Tensor:
    """Return (rows, B * D): over the groups of a row, the sum of states times the group's factor.

    Args:
        walk: the groups.
        states: (n, B, D).
        factors: (m, U, D).
        table: (B,) which of U factors a query has; without it each its own.
    """
    _, batch, width = states.shape
    flat = states.reshape(len(states), batch * width)
    sums = flat.new_zeros(walk.n_rows, batch * width)
    shared = factors.shape[1] == 1
    for chunk in walk.plan(_size(states)):
        inner = embedding_bag(chunk.inner, flat, chunk.starts, mode="sum", include_last_offset=True)
        factor = factors.index_select(0, chunk.factor)
        if table is not None and not shared:
            factor = factor.index_select(1, table)
        products = inner.view(-1, batch, width).mul_(factor).view(-1, batch * width)
        part = embedding_bag(chunk.places, products, chunk.row_starts, mode="sum", include_last_offset=True)
        sums[chunk.rows].add_(part)
    return sums


def _size(states: Tensor) -> int:
    """Return how many groups are computed at a time: a power of two, since plans are kept."""
    size = max(16, _CELLS.get(states.device.type, _CELLS["cuda"]) // max(1, states.shape[1] * states.shape[2]))
    return 1 << (size.bit_length() - 1)
