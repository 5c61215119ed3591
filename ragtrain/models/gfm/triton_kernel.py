"""The sum of messages on a GPU: the walk of kernel.py as Triton programs, which come with torch and need no compiler.

One program gathers a tile of one row: it loops over the row's edges, loads a relation once for all queries of the batch, and
sums in float32. The gradient of the states is the same walk by source over the gradient, that of the relations a walk by
relation. No atomics, so results do not change from one time to the next.

It serves ``distmult`` and ``transe`` with ``sum`` (and so ``mean``); the rest takes the chunks of kernel.py, on any device.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

import torch

triton: Any = None
tl: Any = None
with contextlib.suppress(ImportError):  # a build of torch without GPUs has no Triton
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.models.gfm.edges import Edges, Walk

PRODUCT, SUM, COPY = 0, 1, 2
_OPERATIONS = {"distmult": PRODUCT, "transe": SUM}
INTERPRETED = False
"""Run on other devices than CUDA as well, where Triton interprets programs (``TRITON_INTERPRET=1``), to be tested."""


def usable(states: Tensor, relations: Tensor, kinds: tuple[str, ...], message: str) -> bool:
    """Return whether there is a GPU, Triton, and a program for what is asked."""
    return (
        triton is not None
        and (states.is_cuda or INTERPRETED)
        and kinds == ("sum",)
        and message in _OPERATIONS
        and relations.dim() == 2
        and states.dtype != torch.float64
    )


def forward(edges: Edges, states: Tensor, relations: Tensor, message: str) -> Tensor:
    """Return the sums of messages, (n_out, B, D)."""
    return _rows(edges.into, edges.n_out, states, relations, _OPERATIONS[message])


def backward(edges: Edges, states: Tensor, relations: Tensor, message: str, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of states (n_in, B, D), in their type, and of relations (n_relations, D), float32.

    Args:
        edges: where messages went.
        states: (n_in, B, D), contiguous.
        relations: (n_relations, D).
        message: how a state and a relation became a message.
        gradient: of the sums, (n_out, B, D), contiguous.
    """
    operation = _OPERATIONS[message] if message == "distmult" else COPY
    d_states = _rows(edges.out_of, edges.n_in, gradient, relations, operation)
    walk, (batch, width) = edges.by_relation, states.shape[1:]
    d_relations = torch.empty_like(relations, dtype=torch.float32)
    tile = _tile(width)
    if edges.n_relations:
        _relation_program[(edges.n_relations, triton.cdiv(width, tile))](
            walk.offsets, walk.first, walk.second, gradient, states, d_relations, batch, width, operation, tile
        )
    return d_states, d_relations


def _rows(walk: Walk, rows: int, values: Tensor, relations: Tensor, operation: int) -> Tensor:
    batch, width = values.shape[1:]
    result = torch.empty((rows, batch, width), dtype=values.dtype, device=values.device)
    tile = _tile(width)
    queries = min(triton.next_power_of_2(batch), 8)
    grid = (rows, triton.cdiv(width, tile), triton.cdiv(batch, queries))
    if rows:
        _row_program[grid](
            walk.offsets, walk.first, walk.second, values, relations.contiguous(), result, batch, width, operation,
            queries, tile,
        )  # fmt: skip
    return result


def _tile(width: int) -> int:
    return int(min(triton.next_power_of_2(width), 256))


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _row_program(  # noqa: PLR0913 - a program takes pointers and sizes, and nothing else
        offsets: Any, other: Any, relation: Any, values: Any, table: Any, result: Any, batch: Any, width: Any,  # noqa: ANN401
        operation: tl.constexpr, queries: tl.constexpr, tile: tl.constexpr,
    ) -> None:  # fmt: skip
        """Gather what comes over the edges of one row, for some queries and a tile of the width."""
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * tile + tl.arange(0, tile)
        query = tl.program_id(2) * queries + tl.arange(0, queries)
        inside = (query[:, None] < batch) & (column[None, :] < width)
        place = query[:, None] * width + column[None, :]
        total = tl.zeros([queries, tile], dtype=tl.float32)
        for edge in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
            start = tl.load(other + edge).to(tl.int64) * batch * width
            value = tl.load(values + start + place, mask=inside, other=0.0).to(tl.float32)
            if operation != 2:
                at = tl.load(relation + edge).to(tl.int64) * width + column
                factor = tl.load(table + at, mask=column < width, other=0.0).to(tl.float32)[None, :]
                value = value * factor if operation == 0 else value + factor
            total += value
        tl.store(result + row * batch * width + place, total.to(result.dtype.element_ty), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def _relation_program(  # noqa: PLR0913
        offsets: Any, target: Any, source: Any, gradient: Any, states: Any, result: Any, batch: Any, width: Any,  # noqa: ANN401
        operation: tl.constexpr, tile: tl.constexpr,
    ) -> None:  # fmt: skip
        """Sum the gradient of one relation over its edges and all queries, for a tile of the width."""
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * tile + tl.arange(0, tile)
        inside = column < width
        total = tl.zeros([tile], dtype=tl.float32)
        for edge in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
            to = tl.load(target + edge).to(tl.int64) * batch * width
            start = tl.load(source + edge).to(tl.int64) * batch * width
            for query in range(batch):
                value = tl.load(gradient + to + query * width + column, mask=inside, other=0.0).to(tl.float32)
                if operation == 0:
                    at = states + start + query * width + column
                    value = value * tl.load(at, mask=inside, other=0.0).to(tl.float32)
                total += value
        tl.store(result + row * width + column, total, mask=inside)
