"""A layer of the graph network: messages of neighbours and the boundary, a linear map, a norm (NBFNet, arXiv:2106.06935).

With states x and the relations of the layer z, for each entity v and query::

    u(v) = aggregate over edges into v of m(x(source), z(relation)), and the boundary of v
    y(v) = ReLU(LayerNorm(W [x(v); u(v)] + b)) + x(v)

W [x; u] is computed as W1 x + W2 u, so that states are never copied beside each other. Weights have the shapes and the order of
GFM-RAG's and ULTRA's, so that their checkpoints load.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional as F

from ragtrain.models.gfm.kernel import Kind, Message, gather_messages

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.models.gfm.edges import Edges, Removed

Aggregate = Literal["sum", "mean", "max", "pna"]
KINDS: dict[Aggregate, tuple[Kind, ...]] = {
    "sum": ("sum",),
    "mean": ("sum",),
    "max": ("max",),
    "pna": ("sum", "square", "max", "min"),
}
_VARIANCE_FLOOR, _SCALE_FLOOR = 1e-6, 1e-2
"""As in NBFNet's code: smallest variance, and smallest scale that is inverted."""


@dataclasses.dataclass(frozen=True)
class Boundary:
    """What is put into single rows at each layer; all others have 0.

    Attributes:
        places: (k,) int64, rows of states flattened to (rows * B, D), each once.
        values: (k, D).
    """

    places: Tensor
    values: Tensor

    def dense(self, rows: int, batch: int) -> Tensor:
        """Return it as states, (rows, B, D)."""
        width = self.values.shape[-1]
        return (
            self.values.new_zeros(rows * batch, width).index_copy(0, self.places, self.values).view(rows, batch, width)
        )

    def add_to(self, states: Tensor) -> Tensor:
        """Add it to (rows, B, D) in place, and return that."""
        states.view(-1, states.shape[-1]).index_add_(0, self.places, self.values.to(states.dtype))
        return states


@dataclasses.dataclass(frozen=True)
class Degrees:
    """How many messages rows gather, the boundary counted as one.

    Attributes:
        counts: (rows, B or 1, 1) float.
        scale: like counts: the logarithm of counts over its mean in the query's graph.
    """

    counts: Tensor
    scale: Tensor

    @classmethod
    def of(cls, graph: Edges, removed: Removed | None = None, *, dtype: torch.dtype = torch.float32) -> Degrees:
        """Return those of all entities; those of single queries where edges were removed from these."""
        counts = (graph.degrees + 1).to(torch.float64)[:, None]
        if removed is not None and len(removed):
            counts = counts.repeat(1, removed.n_rows)
            counts.view(-1).index_add_(0, removed.pairs, -removed.lost.to(counts.dtype))
        logs = counts.log()
        mean = logs.mean(0).clamp(min=torch.finfo(torch.float64).tiny)  # of a graph without edges
        return cls(counts[..., None].to(dtype), (logs / mean)[..., None].to(dtype))


class NBFLayer(nn.Module):
    """One round of messages.

    Args:
        width: D, of states and relations.
        message: how a neighbour's state and a relation become a message.
        aggregate: how messages are gathered.
        layer_norm: normalise before the activation.
        short_cut: add the layer's input to its output.
    """

    def __init__(
        self, width: int, message: Message, aggregate: Aggregate, *, layer_norm: bool = True, short_cut: bool = True
    ) -> None:
        super().__init__()
        self.width, self.message, self.aggregate, self.short_cut = width, message, aggregate, short_cut
        self.linear = nn.Linear((13 if aggregate == "pna" else 2) * width, width)
        self.layer_norm = nn.LayerNorm(width) if layer_norm else None
        self.relation_projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def relations(self, relation_states: Tensor) -> Tensor:
        """Return the relations of this layer, (2R, D), from those of the graph, (2R, D)."""
        table: Tensor = self.relation_projection(relation_states)
        return table

    def gather(self, states: Tensor, table: Tensor, edges: Edges, removed: Removed | None = None) -> tuple[Tensor, ...]:
        """Return what rows gather of their neighbours' messages, without the boundary: (n_out, B, D) for each kind."""
        return gather_messages(edges, states, table, message=self.message, kinds=KINDS[self.aggregate], removed=removed)

    def update(self, previous: Tensor, gathered: tuple[Tensor, ...], boundary: Boundary, degrees: Degrees) -> Tensor:
        """Return the new states of rows.

        Args:
            previous: (n_out, B, D) states of the rows before the layer.
            gathered: by ``gather``; may be overwritten.
            boundary: of the rows.
            degrees: of the rows.
        """
        linear, width = self.linear, self.width
        own = F.linear(previous, linear.weight[:, :width], linear.bias)
        if self.aggregate == "pna":
            hidden = own + self._pna(gathered, boundary, degrees)
        else:
            (received,) = gathered
            if self.aggregate == "max":
                received = torch.maximum(received, boundary.dense(*received.shape[:2]).to(received.dtype))
            else:
                received = boundary.add_to(received)
            if self.aggregate == "mean":
                received = received / degrees.counts.to(received.dtype)
            # One matrix product that adds to the other; the sum is never a third tensor.
            flat = torch.addmm(own.flatten(0, 1), received.flatten(0, 1), linear.weight[:, width:].T)
            hidden = flat.view_as(own)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden).to(previous.dtype)  # autocast gives float32
        hidden = F.relu_(hidden)  # neither a norm nor a product needs its output again
        return hidden + previous if self.short_cut else hidden

    def _pna(self, gathered: tuple[Tensor, ...], boundary: Boundary, degrees: Degrees) -> Tensor:
        """Return W2 of mean, largest, smallest and deviation, each as it is, by the degree, and by its inverse.

        The twelve parts of a row are three multiples of four, so W2 is applied to the four, and its three results are
        scaled; 12 D columns are never written.
        """
        total, square, largest, smallest = gathered
        dense = boundary.dense(*total.shape[:2]).to(total.dtype)
        counts, scale = degrees.counts.to(total.dtype), degrees.scale.to(total.dtype)
        mean = (total + dense) / counts
        variance = (square + dense.square()) / counts - mean.square()
        deviation = variance.clamp(min=_VARIANCE_FLOOR).sqrt()
        four = torch.cat([mean, torch.maximum(largest, dense), torch.minimum(smallest, dense), deviation], -1)
        width = self.width
        weight = self.linear.weight[:, width:].view(width, width, 4, 3)  # (out, column, part, scale)
        weight = weight.permute(3, 0, 2, 1).reshape(3 * width, 4 * width)
        plain, more, less = F.linear(four, weight).chunk(3, -1)
        return plain + scale * more + less / scale.clamp(min=_SCALE_FLOOR)
