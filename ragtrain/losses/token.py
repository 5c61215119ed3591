"""RAG-Token: the marginal likelihood of each token over retrieved passages (Lewis et al. 2020, section 2.1)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from ragtrain.errors import RagtrainError
from ragtrain.losses.marginal import entropy, log_prior

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class RagTokenLoss:
    """The RAG-Token loss of each question and the two distributions over its passages.

    Attributes:
        nll: (batch,) negative log-likelihood of the answer, in nats.
        prior: (batch, n_docs) p(z|q), detached; 0 for missing passages.
        posterior: (batch, n_docs) p(z|q,y_t,y_<t) averaged over the target's tokens, detached; 0 for missing passages.
            A target without tokens says nothing about passages: its posterior is the prior.
    """

    nll: Tensor
    prior: Tensor
    posterior: Tensor

    @property
    def prior_entropy(self) -> Tensor:
        """Entropy of each prior in nats, (batch,): 0 is one passage, log(n_docs) is indifference."""
        return entropy(self.prior)

    @property
    def posterior_entropy(self) -> Tensor:
        """Entropy of each averaged posterior in nats, (batch,)."""
        return entropy(self.posterior)


def rag_token(token_loglik: Tensor, scores: Tensor, token_mask: Tensor, mask: Tensor | None = None) -> RagTokenLoss:
    """Return the exact RAG-Token loss (Lewis et al. 2020, arXiv:2005.11401, section 2.1).

    Each token may come from another passage::

        nll = -sum_t log sum_z p(z|q) p(y_t | q, z, y_<t),   p(z|q) = softmax_z(scores)

    With T tokens the gradient with respect to a score is T (prior - posterior), the posterior being the mean of those
    of the tokens. With one passage, or one token, the loss is that of RAG-Sequence; otherwise neither bounds the other.
    It equals transformers' ``RagTokenForGeneration``, which counts the prior at every token as the paper does.

    Args:
        token_loglik: (batch, n_docs, tokens) log p(y_t|q,z,y_<t). What ignored positions and missing passages hold, NaN
            included, reaches neither the result nor a gradient.
        scores: (batch, n_docs) inner products of question and passage vectors over the temperature.
        token_mask: (batch, tokens) bool, False at ignored positions.
        mask: (batch, n_docs) bool, False where there is no such passage. A question without any passage gives NaN,
            which the training loop reports with the question's id.

    Returns:
        The loss of each question, float32; prior and posterior are detached.

    Raises:
        RagtrainError: the shapes do not belong together.
    """
    shape = token_loglik.shape
    if len(shape) != 3 or shape[:2] != scores.shape or (shape[0], shape[2]) != token_mask.shape:
        raise RagtrainError(
            f"log-likelihoods have shape {tuple(token_loglik.shape)}, scores {tuple(scores.shape)} and the mask of "
            f"tokens {tuple(token_mask.shape)}; expected (batch, n_docs, tokens), (batch, n_docs) and (batch, tokens)"
        )
    prior = log_prior(scores, mask)
    ignored = prior.isneginf()[:, :, None] | ~token_mask[:, None, :]
    joint = token_loglik.float().masked_fill(ignored, 0.0) + prior[:, :, None]
    # At an ignored position the joint is the prior, whose logsumexp has no gradient; the mask keeps its round-off out.
    nll = -torch.logsumexp(joint, dim=1).masked_fill(~token_mask, 0.0).sum(dim=-1)
    with torch.no_grad():
        kept = token_mask[:, None, :]
        tokens = token_mask.sum(dim=-1)[:, None]
        plain = prior.exp()
        mean = torch.softmax(joint, dim=1).masked_fill(~kept, 0.0).sum(dim=-1) / tokens.clamp(min=1)
        posterior = torch.where(tokens > 0, mean, plain)
    return RagTokenLoss(nll=nll, prior=plain, posterior=posterior)
