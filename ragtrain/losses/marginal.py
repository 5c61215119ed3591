"""Marginal likelihoods over retrieved passages (Lewis et al. 2020, arXiv:2005.11401, section 2.1)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from ragtrain.errors import RagtrainError

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class RagSequenceLoss:
    """The RAG-Sequence loss of each question and the two distributions over its passages.

    Attributes:
        loss: (batch,) what is minimised: ``nll``, smoothed where that was asked for.
        nll: (batch,) negative marginal log-likelihood, in nats per answer.
        prior: (batch, n_docs) p(z|q), detached; 0 for missing passages.
        posterior: (batch, n_docs) p(z|q,y), detached; 0 for missing passages.
    """

    loss: Tensor
    nll: Tensor
    prior: Tensor
    posterior: Tensor

    @property
    def prior_entropy(self) -> Tensor:
        """Entropy of each prior in nats, (batch,): 0 is one passage, log(n_docs) is indifference."""
        return entropy(self.prior)

    @property
    def posterior_entropy(self) -> Tensor:
        """Entropy of each posterior in nats, (batch,)."""
        return entropy(self.posterior)


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """Label smoothing as transformers' RAG defines it.

    Attributes:
        epsilon: share of the target probability spread over the vocabulary.
        loglik: (batch, n_docs) log-probabilities summed over target positions *and* the whole vocabulary.
        vocab_size: entries of the vocabulary.
    """

    epsilon: float
    loglik: Tensor
    vocab_size: int


def log_prior(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return log p(z|q) = log softmax_z(scores), float32, -inf for missing passages.

    Args:
        scores: (batch, n_docs) inner products of question and passage vectors.
        mask: (batch, n_docs) bool, False where there is no such passage. A question without any passage has no
            prior: its row is NaN, which the training loop reports with the question's id.

    Returns:
        (batch, n_docs) log-probabilities.
    """
    scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.log_softmax(scores, dim=-1)


def log_joint(loglik: Tensor, prior: Tensor, prior_counts: Tensor | None = None) -> Tensor:
    """Return log p(z|q) + log p(y|q,z), (batch, n_docs) float32.

    Args:
        loglik: (batch, n_docs) log p(y|q,z). What missing passages hold, NaN included, reaches neither the result nor
            a gradient.
        prior: (batch, n_docs) log p(z|q), -inf for missing passages.
        prior_counts: (batch,) bool, False for rows whose prior is left out; without it, all count.
    """
    missing = prior.isneginf()
    if prior_counts is not None:
        prior = torch.where(prior_counts[:, None] | missing, prior, torch.zeros_like(prior))
    return loglik.float().masked_fill(missing, 0.0) + prior


def rag_sequence(
    loglik: Tensor,
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    smoothing: Smoothing | None = None,
    prior_counts: Tensor | None = None,
) -> RagSequenceLoss:
    """Return the exact RAG-Sequence loss (Lewis et al. 2020, arXiv:2005.11401, section 2.1).

    For each question::

        nll = -logsumexp_z( log softmax(scores)_z + loglik_z ),   loglik_z = sum_t log p(y_t | q, z, y_<t)

    so that the gradient with respect to a score is prior minus posterior. With label smoothing, as in transformers::

        smooth = -logsumexp_z( sum_t sum_v log p(v | q, z, y_<t) + V log softmax(scores)_z )
        loss   = (1 - epsilon) nll + epsilon / V smooth

    transformers adds the prior to the second target position, and so loses it where a target has only one; here it
    is added after the sum and cannot be lost. ``prior_counts`` reproduces the loss for checkpoints trained that way.

    Args:
        loglik: (batch, n_docs) log-likelihood of the target under each passage, summed over its tokens.
        scores: (batch, n_docs) inner products of question and passage vectors.
        mask: (batch, n_docs) bool, False where there is no such passage.
        smoothing: label smoothing; without it, none.
        prior_counts: (batch,) bool, False for questions whose prior is to be left out; without it, all count.

    Returns:
        The loss of each question; prior and posterior are detached.

    Raises:
        RagtrainError: the shapes differ.
    """
    if loglik.shape != scores.shape or loglik.dim() != 2:
        raise RagtrainError(
            f"log-likelihoods have shape {tuple(loglik.shape)} and scores {tuple(scores.shape)}; "
            "expected the same (batch, n_docs)"
        )
    prior = log_prior(scores, mask)
    joint = log_joint(loglik, prior, prior_counts)
    nll = -torch.logsumexp(joint, dim=-1)
    loss = nll
    if smoothing is not None and smoothing.epsilon > 0:
        smooth = -torch.logsumexp(log_joint(smoothing.loglik, smoothing.vocab_size * prior, prior_counts), dim=-1)
        loss = (1.0 - smoothing.epsilon) * nll + smoothing.epsilon / smoothing.vocab_size * smooth
    with torch.no_grad():
        posterior = torch.softmax(joint, dim=-1)
    return RagSequenceLoss(loss=loss, nll=nll, prior=prior.detach().exp(), posterior=posterior)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy in nats over the last dimension; 0 log 0 is 0."""
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(dim=-1)
