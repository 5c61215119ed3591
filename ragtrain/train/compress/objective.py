"""What is minimised: the answer's tokens, a teacher's distributions, a reranker's scores.

With T the trained tokens of a step, q ranging over its questions and T_q the tokens of each answer::

    loss = 1/T  sum_q [ sum_t -log p(y_t)  +  w_kd sum_t KL(base on the full text || p)  +  w_rank T_q sum_i (r_i - r'_i)^2 ]

The first two are means over tokens. The third is OSCAR's sum over the passages of a question, whose weight beside the mean
token of its answer is w_rank whatever the answer's length: a step of one question is the mean cross-entropy of its tokens plus
w_rank times the sum over its passages. (OSCAR's equation has sums over tokens and over passages, which its code, not
published, would have to divide by something.) Each term of a question depends on that question alone, so that micro-batches may
be cut and spread over processes without changing the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ragtrain import losses
from ragtrain.errors import RagtrainError
from ragtrain.losses import LossOutput

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from ragtrain import loop
    from ragtrain.config.commands.compress import CompressObjectiveConfig
    from ragtrain.data.compress.batches import CompressBatch, WindowBatch
    from ragtrain.data.sft.batches import SftBatch
    from ragtrain.models.compress.model import CompressModel, CompressOutput

Parts = dict[str, "tuple[Tensor | float, Tensor | float]"]


def loss_of(config: CompressObjectiveConfig, accelerator: Accelerator) -> loop.LossFunction:
    """Return the loss of a micro-batch of questions; the teacher computes in the accelerator's arithmetic, as the student."""

    def loss(model: nn.Module, batch: CompressBatch) -> LossOutput:
        output: CompressOutput = model(batch)
        nll = answer_nll(output.logits, batch)
        parts: Parts = {"token_accuracy": accuracy(output.logits, batch), "rate": (float(batch.windows.rate), 1.0)}
        total = nll
        if config.kd_weight:
            with accelerator.autocast():
                teacher = cast("CompressModel", model).base_logits(full_rows(batch))
            divergence = losses.token_divergence(output.logits, teacher, temperature=config.kd_temperature).sum()
            total = total + config.kd_weight * divergence
            parts["kd"] = (divergence, batch.weight)
        if config.rank_weight and output.memory.scores is not None:
            errors = losses.score_squared_error(output.memory.scores, batch.rank_targets)
            total = total + config.rank_weight * (errors * tokens_of_passages(batch)).sum()
            parts["rank"] = (errors.sum(), (~batch.rank_targets.isnan()).sum())
        if len(parts) > 2:
            parts["nll"] = (nll, batch.weight)
        return LossOutput(total, batch.weight, parts)

    return loss


def text_loss(model: nn.Module, batch: CompressBatch) -> LossOutput:
    """Return the cross-entropy of windows written back, and of what follows them: pre-training."""
    output: CompressOutput = model(batch)
    nll = answer_nll(output.logits, batch)
    return LossOutput(nll, batch.weight, {"token_accuracy": accuracy(output.logits, batch)})


def answer_nll(logits: Tensor, batch: CompressBatch) -> Tensor:
    """Return the summed cross-entropy of the trained tokens."""
    return torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")


def accuracy(logits: Tensor, batch: CompressBatch) -> tuple[Tensor | float, Tensor | float]:
    """Return how many trained tokens are the likeliest, and of how many."""
    return (logits.detach().argmax(-1) == batch.targets).float().sum(), batch.weight


def full_rows(batch: CompressBatch) -> SftBatch:
    """Return the rows with their passages as text.

    Raises:
        RagtrainError: there are none, or they do not train the same tokens.
    """
    if batch.full is None or len(batch.full.targets) != len(batch.targets):
        raise RagtrainError("the teacher's rows do not train the tokens of the student's")
    return batch.full


def tokens_of_passages(batch: CompressBatch) -> Tensor:
    """Return (documents,) the trained tokens of the row that each passage of a batch belongs to."""
    rows, _ = batch.slot.shape
    width = batch.labels.shape[1]
    trained = torch.bincount(batch.predictors // width, minlength=rows)
    return trained[rows_of_passages(batch.windows, batch.slot)].float()


def rows_of_passages(windows: WindowBatch, slot: Tensor) -> Tensor:
    """Return (documents,) the row of each passage: that in whose prompt its vectors stand."""
    where = slot >= 0
    row_of_vector = torch.empty(int(windows.counts.sum()), dtype=torch.long, device=slot.device)
    row_of_vector[slot[where]] = where.nonzero()[:, 0]
    document_of_vector = torch.repeat_interleave(windows.document, windows.counts)
    found = torch.zeros(windows.n_documents, dtype=torch.long, device=slot.device)
    found[document_of_vector] = row_of_vector
    return found
