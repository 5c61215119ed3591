"""Objectives that teach the retriever from the generator's likelihoods, and leave the generator alone.

Both are functions of the scores only: log-likelihoods are detached. Whoever trains the generator as well adds its own
loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ragtrain.errors import RagtrainError
from ragtrain.losses.marginal import entropy, log_joint, log_prior

if TYPE_CHECKING:
    from torch import Tensor


def pdist(loglik: Tensor, scores: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Return the perplexity distillation of each question (Izacard et al. 2022, Atlas, arXiv:2208.03299, section 2.2).

    The retriever is drawn towards the passages under which the generator finds the answer likely::

        loss = KL( target || prior ) = sum_z target_z (log target_z - log prior_z)
        target = softmax_z(loglik / temperature), without gradient;   prior = softmax_z(scores)

    The gradient with respect to a score is prior minus target. A low temperature makes the best passage the target; at 1
    the target is the posterior of a uniform prior. REPLUG LSR (Shi et al. 2023, arXiv:2301.12652) is the same idea.

    What differs:

    - Atlas's code takes ``KLDivLoss()``, whose mean is over questions *and* passages: its loss is this one, averaged over
      the questions, over n_docs.
    - Atlas's code takes the mean log-likelihood of a token with a temperature of 0.01; here it is the sum over the
      answer's tokens. For an answer of T tokens, temperature 0.01 there is 0.01 T here.
    - Atlas's code divides scores by the square root of the vectors' width first; here scores come divided by
      ``score_temperature`` and nothing else.
    - REPLUG writes KL(prior || target), and its target is the softmax of likelihoods, not of log-likelihoods, over a
      temperature of 0.1. Answers of several tokens have likelihoods near 0, whose softmax is flat.

    Args:
        loglik: (batch, n_docs) log-likelihood of the target under each passage, summed over its tokens.
        scores: (batch, n_docs) inner products of question and passage vectors over their temperature.
        mask: (batch, n_docs) bool, False where there is no such passage; what stands there, NaN included, reaches
            neither the result nor a gradient. A question without any passage gives NaN.
        temperature: what log-likelihoods are divided by, in nats.

    Returns:
        (batch,) float32, in nats.

    Raises:
        RagtrainError: the shapes differ, or the temperature is not positive.
    """
    _check(loglik, scores)
    if not temperature > 0:
        raise RagtrainError(f"the temperature of the target is {temperature}; expected a positive number")
    prior = log_prior(scores, mask)
    # log_prior is a masked log-softmax of whatever it is given.
    target = log_prior(loglik.detach().float() / temperature, mask).exp()
    # 0 log 0 is 0: missing passages have no target, and -inf times 0 would be NaN.
    cross = -(target * prior.masked_fill(prior.isneginf(), 0.0)).sum(dim=-1)
    return cross - entropy(target)


def emdr(loglik: Tensor, scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the retriever's loss of EMDR² for each question (Sachan et al. 2021, arXiv:2106.05346, section 2.3).

    The expected likelihood of the answer, with the generator held still::

        loss = -log sum_z p(z|q) SG[ p(y|q,z) ],   p(z|q) = softmax_z(scores),   SG: no gradient

    Its gradient with respect to a score is prior minus posterior, that of RAG-Sequence; the generator gets none. In the
    paper the generator is trained beside it by fusion over all passages, and p(y|q,z) is that same reader given one
    passage.

    What differs: EMDR²'s and Atlas's code marginalise at each token (``-sum_t log sum_z p(z|q) p(y_t|q,z,y_<t)``, and
    Atlas divides by the number of tokens), which is the equation of ``rag_token``; here, as in the paper, it is the
    likelihood of the whole answer.

    Args:
        loglik: (batch, n_docs) log-likelihood of the target under each passage, summed over its tokens.
        scores: (batch, n_docs) inner products of question and passage vectors over their temperature.
        mask: (batch, n_docs) bool, False where there is no such passage; what stands there, NaN included, reaches
            neither the result nor a gradient. A question without any passage gives NaN.

    Returns:
        (batch,) float32, in nats per answer.

    Raises:
        RagtrainError: the shapes differ.
    """
    _check(loglik, scores)
    return -torch.logsumexp(log_joint(loglik.detach(), log_prior(scores, mask)), dim=-1)


def _check(loglik: Tensor, scores: Tensor) -> None:
    if loglik.shape != scores.shape or loglik.dim() != 2:
        raise RagtrainError(
            f"log-likelihoods have shape {tuple(loglik.shape)} and scores {tuple(scores.shape)}; "
            "expected the same (batch, n_docs)"
        )
