"""From the compressor's states to vectors that the generator reads as if they were embeddings."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

#: Widest hidden layer that is chosen where none is given.
MOST = 4096


def make_connector(width: int, out: int, hidden: int | None, *, identity: bool) -> nn.Module:
    """Return the connector: nothing at all, or two layers with a ReLU between them.

    Args:
        width: of the compressor's states.
        out: of the generator's embeddings.
        hidden: width between the layers; without it four times ``width``, 4096 at most.
        identity: the states live in the generator's space already, as those of its own layers do. They are then passed
            on as they are, unless ``hidden`` or another width asks for layers.
    """
    if identity and hidden is None and width == out:
        return nn.Identity()
    middle = min(4 * width, MOST) if hidden is None else hidden
    return nn.Sequential(nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, out))


@torch.no_grad()
def match_scale(connector: nn.Module, states: Tensor, target: float) -> None:
    """Scale the last layer so that what comes out has a size.

    Args:
        connector: of ``make_connector``; one that is nothing is left alone.
        states: (n, width) such as the compressor gives.
        target: root mean square of what is to come out.
    """
    if not isinstance(connector, nn.Sequential):
        return
    last = cast("nn.Linear", connector[-1])
    size = float(connector(states.float()).square().mean().sqrt())
    if size > 0 and target > 0:
        last.weight.mul_(target / size)
        last.bias.mul_(target / size)
