"""Messages along edges: out[v] is the sum (or mean, largest, …) of m(x[source], z[relation]) over the edges into v.

There is never a tensor of a message for each edge: edges are walked in chunks that fit a processor's cache, by target for
the output and by source for the gradient of the states, so that each row is written once, without atomics. The table of
relations is one for all queries of a batch. Sums are float32 whatever the states are.

Source of the messages and aggregates: NBFNet (Zhu et al. 2021, arXiv:2106.06935), table 3; RotatE (Sun et al. 2019,
arXiv:1902.10197); PNA (Corso et al. 2020, arXiv:2004.05718).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch.autograd.function import once_differentiable

from ragtrain.errors import RagtrainError
from ragtrain.models.gfm import triton_kernel

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.models.gfm.edges import Chunk, Edges, Removed

Message = Literal["distmult", "transe", "rotate"]
Kind = Literal["sum", "square", "max", "min"]
"""What is gathered of the messages of a row: their sum, the sum of their squares, the largest, the smallest."""

CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Messages that exist at a time: what a core's cache holds, or what keeps a GPU busy."""
_START: dict[Kind, float] = {"sum": 0.0, "square": 0.0, "max": -torch.inf, "min": torch.inf}


def gather_messages(
    edges: Edges,
    states: Tensor,
    relations: Tensor,
    *,
    message: Message = "distmult",
    kinds: tuple[Kind, ...] = ("sum",),
    removed: Removed | None = None,
) -> tuple[Tensor, ...]:
    """Send messages along all edges and gather those of each row.

    Messages m(x, z): ``distmult`` x * z, ``transe`` x + z, ``rotate`` the complex product of x and z, each of D/2 real and
    then D/2 imaginary parts. A row without edges has the sum 0 and no largest: -inf (smallest: inf). Where several
    messages are the largest, each has an equal share of its gradient, as in ``torch.amax``.

    Args:
        edges: where messages go.
        states: (n_in, B, D).
        relations: (n_relations, D), one table for all of the batch, or (n_relations, B, D).
        message: how a state and a relation become a message.
        kinds: what is gathered.
        removed: edges that single rows of the batch do without.

    Returns:
        For each kind (n_out, B, D), in the type of ``states``.

    Raises:
        RagtrainError: shapes that do not fit.
    """
    _check(edges, states, relations, message)
    relations = relations.to(states.dtype)
    if removed is not None and len(removed) and (removed.n_rows != states.shape[1] or relations.dim() != 2):
        raise RagtrainError(
            f"edges are removed from {removed.n_rows} rows of a batch of {states.shape[1]} with relations of shape "
            f"{tuple(relations.shape)}; expected as many rows, and one table of relations"
        )
    if removed is not None and not len(removed):
        removed = None
    results: tuple[Tensor, ...] = _Gather.apply(states, relations, edges, message, kinds, removed)  # type: ignore[no-untyped-call]
    return results


class _Gather(torch.autograd.Function):
    """Forward by target; backward by source. Saves its inputs, and for the largest and smallest its outputs."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        states: Tensor,
        relations: Tensor,
        edges: Edges,
        message: Message,
        kinds: tuple[Kind, ...],
        removed: Removed | None,
    ) -> tuple[Tensor, ...]:
        states = states.contiguous()
        results: tuple[Tensor, ...]
        if triton_kernel.usable(states, relations, kinds, message):
            results = (triton_kernel.forward(edges, states, relations, message),)
        else:
            results = _forward(edges, states, relations, message, kinds)
        if removed is not None:
            flat = states.view(-1, 1, states.shape[-1])  # a row for each pair of node and query, as `kept` counts them
            fewer = _forward(removed.kept, flat, relations, message, kinds)
            for result, rows in zip(results, fewer, strict=True):
                result.view(-1, result.shape[-1])[removed.pairs] = rows[:, 0]
        extremes = [result for kind, result in zip(kinds, results, strict=True) if kind in ("max", "min")]
        ctx.save_for_backward(states, relations, *extremes)
        ctx.edges, ctx.message, ctx.kinds, ctx.removed = edges, message, kinds, removed
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        states, relations, *extremes = ctx.saved_tensors
        edges, message, kinds, removed = ctx.edges, ctx.message, ctx.kinds, ctx.removed
        outer = _Outer(kinds, [g.contiguous() for g in gradients], extremes)
        if triton_kernel.usable(states, relations, kinds, message):
            d_states, d_relations = triton_kernel.backward(edges, states, relations, message, gradients[0].contiguous())
        else:
            outer.share(edges, states, relations, message, removed)
            d_states, d_relations = _backward(edges, states, relations, message, outer)
        if removed is not None:
            _take_back(states, relations, message, outer, removed, (d_states, d_relations))
        return d_states.to(states.dtype), d_relations.to(relations.dtype), None, None, None, None


class _Outer:
    """Gradients of what was gathered, from which that of any single message follows."""

    def __init__(self, kinds: tuple[Kind, ...], gradients: list[Tensor], extremes: list[Tensor]) -> None:
        self.gradients = dict(zip(kinds, gradients, strict=True))
        self.extremes = dict(zip([kind for kind in kinds if kind in ("max", "min")], extremes, strict=True))

    @property
    def needs_message(self) -> bool:
        """Whether the gradient of a message depends on the message."""
        return tuple(self.gradients) != ("sum",)

    def share(self, edges: Edges, states: Tensor, relations: Tensor, message: Message, removed: Removed | None) -> None:
        """Divide the gradient of each largest (smallest) by the number of messages that are as large (small)."""
        counts = {kind: torch.zeros_like(best, dtype=_wide(best)) for kind, best in self.extremes.items()}
        if not counts:
            return
        walk = edges.into
        for a, b in _pieces(walk.plan(_size(states))):
            target = walk.row[a:b]
            sent = _sent(states.index_select(0, walk.first[a:b]), _of(relations, walk.second[a:b]), message)
            for kind, count in counts.items():
                equal = sent == self.extremes[kind].index_select(0, target)
                count.index_add_(0, target, equal.to(count.dtype))
        if removed is not None:
            (target, source, relation), row = removed.ends, removed.rows
            sent = _sent(states[source, row], _own(relations, relation, row), message)
            for kind, count in counts.items():
                equal = sent == self.extremes[kind][target, row]
                count.index_put_((target, row), -equal.to(count.dtype), accumulate=True)
        for kind, count in counts.items():
            self.gradients[kind] = self.gradients[kind] / count.clamp_(min=1)

    def of(self, target: Tensor, row: Tensor | None, sent: Tensor | None) -> Tensor:
        """Return the gradient of messages to some targets, in the width that sums have; of one row each where given."""
        total: Tensor | None = None
        for kind, gradient in self.gradients.items():
            part = _widen(gradient.index_select(0, target) if row is None else gradient[target, row])
            if kind == "square":
                part = part * (2 * _widen(sent))
            elif kind != "sum":
                best = self.extremes[kind]
                at = best.index_select(0, target) if row is None else best[target, row]
                part = part * (sent == at)
            total = part if total is None else total + part
        if total is None:
            raise RagtrainError("nothing was gathered")
        return total


def edge_gradients(
    edges: Edges,
    states: Tensor,
    relations: Tensor,
    gradients: tuple[Tensor, ...],
    *,
    message: Message = "distmult",
    kinds: tuple[Kind, ...] = ("sum",),
    results: tuple[Tensor, ...] = (),
) -> Tensor:
    """Return how much a score rises with the weight of each edge: the gradient of a factor 1 before each message.

    Args:
        edges: where messages went.
        states: (n_in, B, D).
        relations: (n_relations, D).
        gradients: of what was gathered, (n_out, B, D) for each kind.
        message: how a state and a relation became a message.
        kinds: what was gathered.
        results: what was gathered, for each kind; needed where one is the largest or smallest.

    Returns:
        (E,) float, in the order of ``edges.into``, summed over the batch.
    """
    extremes = [result for kind, result in zip(kinds, results, strict=False) if kind in ("max", "min")]
    outer = _Outer(kinds, [g.contiguous() for g in gradients], extremes)
    outer.share(edges, states, relations, message, None)
    weights = states.new_zeros(len(edges), dtype=_wide(states))
    walk = edges.into
    for a, b in _pieces(walk.plan(_size(states))):
        sent = _sent(states.index_select(0, walk.first[a:b]), _of(relations, walk.second[a:b]), message)
        weights[a:b] = (outer.of(walk.row[a:b], None, sent) * _widen(sent)).flatten(1).sum(1)
    return weights


def _forward(
    edges: Edges, states: Tensor, relations: Tensor, message: Message, kinds: tuple[Kind, ...]
) -> tuple[Tensor, ...]:
    """Walk the edges by target: (n_out, B, D) for each kind."""
    shape, wide, walk = (edges.n_out, *states.shape[1:]), _wide(states), edges.into
    results = [states.new_full(shape, _START[kind]) for kind in kinds]
    for r0, r1, pieces in walk.plan(_size(states)):
        if wide == states.dtype:
            sums, start = results, 0
        else:  # sums of half precision are float32 and rounded once
            sums, start = [states.new_full((r1 - r0, *shape[1:]), _START[kind], dtype=wide) for kind in kinds], r0
        for a, b in pieces:
            sent = _widen(states.index_select(0, walk.first[a:b]))
            sent = _message(sent, _widen(_of(relations, walk.second[a:b])), message, inplace=True)
            target = walk.row[a:b] - start if start else walk.row[a:b]
            for kind, total in zip(kinds, sums, strict=True):
                _add(total, target, sent, kind)
        if sums is not results:
            for result, total in zip(results, sums, strict=True):
                result[r0:r1] = total
    return tuple(results)


def _backward(
    edges: Edges, states: Tensor, relations: Tensor, message: Message, outer: _Outer
) -> tuple[Tensor, Tensor]:
    """Walk the edges by source: gradients of states and relations, in the width that sums have."""
    walk, wide = edges.out_of, _wide(states)
    d_states = torch.zeros_like(states, dtype=wide)
    d_relations = torch.zeros_like(relations, dtype=wide)
    shared = relations.dim() == 2
    for a, b in _pieces(walk.plan(_size(states))):
        relation = walk.second[a:b]
        x, z = states.index_select(0, walk.row[a:b]), _of(relations, relation)
        sent = _sent(x, z, message) if outer.needs_message else None
        gradient = outer.of(walk.first[a:b], None, sent)
        d_z = _to_relation(gradient, _widen(x), message)
        d_relations.index_add_(0, relation, d_z.sum(1) if shared else d_z)
        d_states.index_add_(0, walk.row[a:b], _to_state(gradient, _widen(z), message))
    return d_states, d_relations


def _take_back(
    states: Tensor,
    relations: Tensor,
    message: Message,
    outer: _Outer,
    removed: Removed,
    totals: tuple[Tensor, Tensor],
) -> None:
    """Subtract from gradients what removed edges were given in them."""
    (target, source, relation), row = removed.ends, removed.rows
    x, z = states[source, row], _own(relations, relation, row)
    sent = _sent(x, z, message) if outer.needs_message else None
    gradient = outer.of(target, row, sent)
    d_states, d_relations = totals
    d_x, d_z = _to_state(gradient, _widen(z), message), _to_relation(gradient, _widen(x), message)
    d_states.index_put_((source, row), -d_x.to(d_states.dtype), accumulate=True)
    d_relations.index_put_((relation,), -d_z.to(d_relations.dtype), accumulate=True)


def _message(x: Tensor, z: Tensor, message: Message, *, inplace: bool = False) -> Tensor:
    """Return m(x, z); x may be overwritten where told."""
    if message == "distmult":
        return x.mul_(z) if inplace else x * z
    if message == "transe":
        return x.add_(z) if inplace else x + z
    (xr, xi), (zr, zi) = x.chunk(2, -1), z.chunk(2, -1)
    return torch.cat([xr * zr - xi * zi, xr * zi + xi * zr], -1)


def _sent(x: Tensor, z: Tensor, message: Message) -> Tensor:
    """Return m(x, z) rounded as the forward pass rounds what it gathers, so that the largest message equals its row's."""
    return _message(_widen(x), _widen(z), message).to(x.dtype)


def _to_state(gradient: Tensor, z: Tensor, message: Message) -> Tensor:
    """Return the gradient of x from that of m(x, z)."""
    if message == "distmult":
        return gradient * z
    if message == "transe":
        return gradient
    (gr, gi), (zr, zi) = gradient.chunk(2, -1), z.chunk(2, -1)
    return torch.cat([gr * zr + gi * zi, gi * zr - gr * zi], -1)


def _to_relation(gradient: Tensor, x: Tensor, message: Message) -> Tensor:
    """Return the gradient of z from that of m(x, z): every message is the same in x and z."""
    return _to_state(gradient, x, message)


def _add(total: Tensor, target: Tensor, sent: Tensor, kind: Kind) -> None:
    """Add messages to the rows of their targets."""
    if kind == "sum":
        total.index_add_(0, target, sent)
    elif kind == "square":
        total.index_add_(0, target, sent.square())
    else:
        places = target.long().view(-1, 1, 1).expand_as(sent)
        total.scatter_reduce_(0, places, sent, "amax" if kind == "max" else "amin")


def _of(relations: Tensor, which: Tensor) -> Tensor:
    """Return relations of edges, (e, 1, D) or (e, B, D)."""
    rows = relations.index_select(0, which)
    return rows.unsqueeze(1) if rows.dim() == 2 else rows


def _own(relations: Tensor, which: Tensor, row: Tensor) -> Tensor:
    """Return relations of edges of single rows, (e, D)."""
    return relations[which] if relations.dim() == 2 else relations[which, row]


def _pieces(plan: list[Chunk]) -> list[tuple[int, int]]:
    return [piece for _, _, pieces in plan for piece in pieces]


def _size(states: Tensor) -> int:
    """Return how many messages are made at a time."""
    width = max(1, states.shape[1] * states.shape[2] * 4)
    size = max(16, CHUNK_BYTES.get(states.device.type, CHUNK_BYTES["cuda"]) // width)
    return 1 << (size.bit_length() - 1)  # few sizes, since plans are kept


def _wide(states: Tensor) -> torch.dtype:
    """Return the type of sums."""
    return torch.float32 if states.dtype in (torch.bfloat16, torch.float16) else states.dtype


def _widen(values: Tensor | None) -> Tensor:
    """Return values in the type of sums."""
    if values is None:
        raise RagtrainError("the gradient of a message was asked for without the message")
    return values.to(_wide(values))


def _check(edges: Edges, states: Tensor, relations: Tensor, message: str) -> None:
    if message not in get_args(Message):
        raise RagtrainError(f"there is no message {message!r}; there are {', '.join(get_args(Message))}")
    if states.dim() != 3 or states.shape[0] != edges.n_in:
        raise RagtrainError(f"states have shape {tuple(states.shape)}; expected ({edges.n_in}, batch, width)")
    expected = {(edges.n_relations, states.shape[2]), (edges.n_relations, *states.shape[1:])}
    if tuple(relations.shape) not in expected:
        raise RagtrainError(f"relations have shape {tuple(relations.shape)}; expected one of {sorted(expected)}")
    if message == "rotate" and states.shape[2] % 2:
        raise RagtrainError(f"rotate needs an even width, and states have {states.shape[2]}")
