"""The loss: cross-entropy of the tokens of the answer, and what stands beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ragtrain.losses import LossOutput
from ragtrain.models.causal import label_logits

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from ragtrain.data.sft.batches import SftBatch


def completion_loss(model: nn.Module, batch: SftBatch) -> LossOutput:
    """Return the summed cross-entropy of the trained tokens; only their positions meet the head.

    -sum_t log p(y_t | prompt, y_<t) over the micro-batch. The loop divides by the trained tokens of the whole step, over
    micro-batches and ranks, which is what TRL's ``num_items_in_batch`` does.
    """
    logits = label_logits(cast("PreTrainedModel", model), batch)
    nll = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    right = (logits.detach().argmax(-1) == batch.targets).float().sum()
    parts: dict[str, tuple[Tensor | float, Tensor | float]] = {
        "token_accuracy": (right, batch.weight),
        "tokens": (float(batch.tokens), 1.0),
    }
    return LossOutput(nll.sum(), batch.weight, parts)
