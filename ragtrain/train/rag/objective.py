"""The loss of a micro-batch, and the figures that tell whether retrieval learns.

Every objective is made of the same tensors: log-likelihoods of the target's tokens under each passage, and scores. With
``reader`` rag the generator learns from the marginal likelihood; where another objective teaches the retriever, the
prior in it is held fixed. With ``reader`` fid it learns from the likelihood of the answer given all passages at once,
and each passage's own likelihood only teaches the retriever.

=============  ===========================================  ====================================================
objective      generator                                    retriever
=============  ===========================================  ====================================================
rag-sequence   -log sum_z p(z|q) p(y|q,z)                   the same
rag-token      -sum_t log sum_z p(z|q) p(y_t|q,z,y_<t)      the same
pdist          rag-sequence with p(z|q) fixed, or FiD       KL( softmax_z(log p(y|q,z) / temperature) || p(z|q) )
emdr           rag-sequence with p(z|q) fixed, or FiD       -log sum_z p(z|q) p(y|q,z) with p(y|q,z) fixed
=============  ===========================================  ====================================================

With ``reader`` rag, emdr has the gradient of rag-sequence; the two differ with FiD. A retriever that stays as it is has
no term: what would teach it is not computed.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from ragtrain import losses
from ragtrain.train.rag.lookup import TrainingLookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from ragtrain.config.commands import RagConfig
    from ragtrain.data.batches import RagBatch
    from ragtrain.models.rag import RagModel, RagOutput
    from ragtrain.retrieve import Retriever
    from ragtrain.train.alarms import Watch


@dataclasses.dataclass(frozen=True)
class Objective:
    """The terms of a micro-batch, (batch,) each in nats, and the passages' distributions (batch, n_docs).

    Attributes:
        loss: what is minimised.
        nll: negative log-likelihood of the answer as the model gives it.
        prior: p(z|q), detached.
        posterior: p(z|q,y), detached.
        parts: other terms by name.
    """

    loss: Tensor
    nll: Tensor
    prior: Tensor
    posterior: Tensor
    parts: dict[str, Tensor]


def loss_of(
    config: RagConfig, retriever: Retriever, bare: RagModel, watch: Watch | None = None
) -> Callable[[nn.Module, RagBatch], losses.LossOutput]:
    """Return the loss of a micro-batch.

    Args:
        config: the run's.
        retriever: search and tokens.
        bare: the model without what Accelerate puts around it.
        watch: who is told of what was retrieved.
    """
    asked = config.objective
    passage_encoder = bare.passage_encoder if config.retriever.train_context_encoder else None
    temperature = asked.infonce_temperature or bare.settings.score_temperature
    trains_retriever = config.trains_retriever

    def loss(model: nn.Module, batch: RagBatch) -> losses.LossOutput:
        lookup = TrainingLookup(config, retriever, batch, passage_encoder)
        output: RagOutput = model(
            batch.question_ids, batch.question_mask, batch.targets, lookup,
            with_smooth=asked.label_smoothing > 0, with_documents=trains_retriever,
        )  # fmt: skip
        terms = objective(config, output, temperature)
        if watch is not None and torch.is_grad_enabled():
            watch.saw(
                output.retrieved.ids, output.retrieved.mask, output.query, terms.prior, terms.posterior,
                question_mask=batch.question_mask, target_tokens=output.target_tokens,
            )  # fmt: skip
        n, hits = len(batch.ids), lookup.first_hits
        nll = terms.nll.detach().sum()
        return losses.LossOutput(
            total=terms.loss.sum(),
            weight=batch.weight,
            parts={
                "nll_per_token": (nll, output.target_tokens.sum()),
                "nll_per_answer": (nll, n),
                "recall@1": (int((hits == 1).sum()), n),
                f"recall@{lookup.n_docs}": (int(((hits >= 1) & (hits <= lookup.n_docs)).sum()), n),
                "prior_entropy": (losses.entropy(terms.prior).sum(), n),
                "posterior_entropy": (losses.entropy(terms.posterior).sum(), n),
                **{name: (term.detach().sum(), n) for name, term in terms.parts.items()},
            },
        )

    return loss


def objective(config: RagConfig, output: RagOutput, temperature: float = 1.0) -> Objective:
    """Return the terms of a configuration's objective for what the model gave; ``temperature`` is InfoNCE's."""
    terms = _fused(config, output) if output.fused_loglik is not None else _marginal(config, output)
    asked, pool = config.objective, output.retrieved.pool
    if asked.infonce_weight == 0 or pool is None or pool.positive is None or pool.candidate is None:
        return terms
    if output.pool_vectors is None:
        return terms
    contrast = losses.info_nce(output.query, output.pool_vectors, pool.positive, pool.candidate, temperature)
    loss = terms.loss + asked.infonce_weight * contrast
    return dataclasses.replace(terms, loss=loss, parts={**terms.parts, "infonce": contrast})


def _marginal(config: RagConfig, output: RagOutput) -> Objective:
    """Passages read one by one."""
    asked, mask = config.objective, output.retrieved.mask
    if asked.objective == "rag-token":
        token = losses.rag_token(output.token_loglik, output.scores, output.target_mask, mask)
        return Objective(token.nll, token.nll, token.prior, token.posterior, {})
    loglik, epsilon = output.loglik, asked.label_smoothing
    smoothing = None if output.smooth is None else losses.Smoothing(epsilon, output.smooth, output.vocab_size)
    taught = asked.objective == "rag-sequence"
    marginal = losses.rag_sequence(
        loglik, output.scores if taught else output.scores.detach(), mask,
        smoothing=smoothing, prior_counts=output.prior_counts,
    )  # fmt: skip
    terms = Objective(marginal.loss, marginal.nll, marginal.prior, marginal.posterior, {})
    if taught or not config.trains_retriever:
        return terms
    name, teaching = _teaching(config, output)
    # A frozen generator's own loss has nothing to say.
    loss = teaching + marginal.loss if config.model.train_generator else teaching
    return dataclasses.replace(terms, loss=loss, parts={name: teaching})


def _fused(config: RagConfig, output: RagOutput) -> Objective:
    """All passages read at once; where the retriever stays as it is, they have no likelihoods of their own."""
    if output.fused_loglik is None:
        raise ValueError("the model did not fuse")
    nll = -output.fused_loglik.sum(-1)
    with torch.no_grad():
        own = losses.rag_sequence(output.loglik, output.scores, output.retrieved.mask)
    if output.token_loglik.shape[-1] == 0 or not config.trains_retriever:
        return Objective(nll, nll, own.prior, own.prior, {})
    name, teaching = _teaching(config, output)
    loss = teaching + nll if config.model.train_generator else teaching
    return Objective(loss, nll, own.prior, own.posterior, {name: teaching})


def _teaching(config: RagConfig, output: RagOutput) -> tuple[str, Tensor]:
    """Return the name and the (batch,) values of what teaches the retriever alone."""
    mask = output.retrieved.mask
    if config.objective.objective == "pdist":
        temperature = config.objective.target_temperature
        return "pdist", losses.pdist(output.loglik, output.scores, mask, temperature=temperature)
    return "emdr", losses.emdr(output.loglik, output.scores, mask)
