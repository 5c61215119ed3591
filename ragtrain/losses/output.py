"""What every loss of this project returns to the training loop."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class LossOutput:
    """The loss of a micro-batch as a sum, with what it is to be divided by.

    Attributes:
        total: scalar, differentiable: the sum over the micro-batch, not its mean.
        weight: what the sum over all micro-batches and ranks of a step is divided by.
        parts: (sum, weight) of every other figure, reported as sum / weight over the step.
    """

    total: Tensor
    weight: float
    parts: Mapping[str, tuple[Tensor | float, Tensor | float]] = dataclasses.field(default_factory=dict)
