"""InfoNCE over questions and passages: the contrastive loss that encoders are usually trained with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ragtrain.errors import RagtrainError

if TYPE_CHECKING:
    from torch import Tensor


def info_nce(queries: Tensor, passages: Tensor, positive: Tensor, candidate: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss of each question (van den Oord et al. 2018, arXiv:1807.03748, equation 4).

    With s_j the inner product of question and passage j over the temperature, P the question's positives and C its
    candidates, positives among them::

        loss = -log ( sum_{j in P} exp(s_j) / sum_{j in C} exp(s_j) )

    With one positive each and all passages of the micro-batch as candidates this is the loss of DPR (Karpukhin et al.
    2020, arXiv:2004.04906, equation 2). With several, the sum stands inside the logarithm: it is enough that one
    positive is found, whereas the mean of logarithms would ask for all of them at once. A passage of the batch that
    also answers the question is made a positive or taken out of the candidates, and is so no false negative.

    On several processes nothing is gathered: each process contrasts the questions and passages of its own micro-batch,
    so the number of negatives is that of one device, and so is that of each micro-batch under accumulation.

    Args:
        queries: (batch, dim) question vectors.
        passages: (m, dim) passage vectors; one that is nobody's candidate may hold anything, NaN included.
        positive: (batch, m) bool, True where the passage answers the question; counts among candidates only.
        candidate: (batch, m) bool, True where the passage stands in the question's sum.
        temperature: what inner products are divided by.

    Returns:
        (batch,) float32, in nats. A question without a positive gives 0 and no gradient.

    Raises:
        RagtrainError: the shapes do not belong together, or the temperature is not positive.
    """
    wanted = (queries.shape[0], passages.shape[0])
    if positive.shape != wanted or candidate.shape != wanted or queries.shape[1:] != passages.shape[1:]:
        raise RagtrainError(
            f"{tuple(queries.shape)} questions and {tuple(passages.shape)} passages with masks {tuple(positive.shape)} "
            f"and {tuple(candidate.shape)}; expected vectors of one width and masks {wanted}"
        )
    if not temperature > 0:
        raise RagtrainError(f"the temperature of the contrastive loss is {temperature}; expected a positive number")
    positive = positive & candidate
    counts = positive.any(dim=1)
    # The gradient of a product reaches both factors: what does not count must not stand in it at all.
    queries = queries.float().masked_fill(~counts[:, None], 0.0)
    passages = passages.float().masked_fill(~candidate.any(dim=0)[:, None], 0.0)
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries @ passages.T / temperature
    # A row without a positive would be -inf minus something, whose gradient is NaN: it gets everything in both sums.
    idle = ~counts[:, None]
    found = torch.logsumexp(scores.masked_fill(~(positive | idle), -math.inf), dim=1)
    everything = torch.logsumexp(scores.masked_fill(~(candidate | idle), -math.inf), dim=1)
    return torch.where(counts, everything - found, torch.zeros_like(found))
