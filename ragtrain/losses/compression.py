"""Losses of a compressor beside the cross-entropy of its answers: a teacher's distributions, and a reranker's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ragtrain.errors import RagtrainError

if TYPE_CHECKING:
    from torch import Tensor


def token_divergence(logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return, for each token, how far the student's distribution is from the teacher's.

    With q the softmax of the teacher's logits over the temperature, and p of the student's::

        loss_t = temperature^2  sum_v q_v (log q_v - log p_v)

    The square keeps gradients of one size over temperatures (Hinton et al. 2015, arXiv:1503.02531, section 2). The teacher of
    a compressor is the same base reading the full text (xRAG, Cheng et al. 2024, arXiv:2405.13792, equation 4).

    Args:
        logits: (tokens, vocabulary) of the student.
        teacher_logits: (tokens, vocabulary); no gradient flows into them.
        temperature: both are divided by it.

    Returns:
        (tokens,) float32, in nats, 0 where both are the same.

    Raises:
        RagtrainError: the shapes differ, or the temperature is not positive.
    """
    if logits.shape != teacher_logits.shape or logits.dim() != 2:
        raise RagtrainError(
            f"logits have shape {tuple(logits.shape)} and the teacher's {tuple(teacher_logits.shape)}; expected the same "
            "(tokens, vocabulary)"
        )
    if not temperature > 0:
        raise RagtrainError(f"the temperature of the teacher is {temperature}; expected a positive number")
    student = torch.log_softmax(logits.float() / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    divergence = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
    return divergence * temperature**2


def score_squared_error(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of each passage's relevance score, 0 for a passage without a target.

    ``(r_i - r'_i)^2``: the second term of OSCAR's loss (Louis et al. 2025, arXiv:2504.07109, section 3), whose targets are a
    cross-encoder's scores.

    Args:
        scores: (passages,) of the relevance head.
        targets: (passages,) of the reranker, NaN where there is none.

    Returns:
        (passages,) float32. What stands at a passage without a target reaches neither the result nor a gradient.

    Raises:
        RagtrainError: the shapes differ.
    """
    if scores.shape != targets.shape or scores.dim() != 1:
        raise RagtrainError(
            f"scores have shape {tuple(scores.shape)} and their targets {tuple(targets.shape)}; expected the same "
            "(passages,)"
        )
    known = ~targets.isnan()
    # The difference is masked before it is squared: the gradient of a square of NaN would be NaN times 0.
    difference = torch.where(known, scores.float() - targets.float(), 0.0)
    return difference.square()
