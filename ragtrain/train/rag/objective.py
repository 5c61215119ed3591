"""The loss of a micro-batch, and the figures that tell whether retrieval learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragtrain import losses, metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ragtrain.config.commands import RagConfig
    from ragtrain.data.batches import RagBatch
    from ragtrain.retrieve import Retriever


def loss_of(config: RagConfig, retriever: Retriever) -> Callable[[nn.Module, RagBatch], losses.LossOutput]:
    """Return the loss of a micro-batch: the marginal likelihood, and what tells whether retrieval learns."""
    epsilon = config.objective.label_smoothing

    def loss(model: nn.Module, batch: RagBatch) -> losses.LossOutput:
        lookup = retriever.for_questions(batch.generator_questions)
        output = model(batch.question_ids, batch.question_mask, batch.targets, lookup, with_smooth=epsilon > 0)
        smoothing = losses.Smoothing(epsilon, output.smooth, output.vocab_size) if epsilon > 0 else None
        marginal = losses.rag_sequence(
            output.loglik, output.scores, output.retrieved.mask, smoothing=smoothing, prior_counts=output.prior_counts
        )
        n = len(batch.ids)
        nll, found = marginal.nll.detach().sum(), [
            metrics.first_hit(question.answers, [passage.text for passage in retriever.passages(lookup.hits, row)])
            for row, question in enumerate(batch.questions)
        ]  # fmt: skip
        return losses.LossOutput(
            total=marginal.loss.sum(),
            weight=batch.weight,
            parts={
                "nll_per_token": (nll, output.target_tokens.sum()),
                "nll_per_answer": (nll, n),
                "recall@1": (sum(rank == 1 for rank in found), n),
                f"recall@{retriever.n_docs}": (sum(rank is not None for rank in found), n),
                "prior_entropy": (marginal.prior_entropy.sum(), n),
                "posterior_entropy": (marginal.posterior_entropy.sum(), n),
            },
        )

    return loss
