"""Validation during training: the loss, and greedy answers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

from accelerate import PartialState
from accelerate.utils import gather_object

from ragtrain.evaluate.answers import AnswerSettings, evaluate_questions, summarise
from ragtrain.train.rag.objective import loss_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ragtrain.config.commands import RagConfig
    from ragtrain.models.rag import RagModel
    from ragtrain.retrieve import Retriever
    from ragtrain.train.rag.build import RagParts
    from ragtrain.train.rag.refresh import IndexRefresh


def evaluation_of(
    config: RagConfig, parts: RagParts, retriever: Retriever, refresh: IndexRefresh | None = None
) -> Callable[[nn.Module], dict[str, float]]:
    """Return what the loop calls for validation: the loss on all its questions, and greedy answers to them.

    Every process takes its share; all of them get the same figures. An index that follows the passage encoder is
    brought up to date for the time of the evaluation.
    """
    source, state = parts.validation, PartialState()
    loss = loss_of(config, retriever, parts.model)
    settings = AnswerSettings(
        n_docs=config.model.n_docs, recall_at=(1, config.model.n_docs), num_beams=1,
        max_new_tokens=config.model.max_target_tokens, max_question_tokens=config.model.max_question_tokens,
        batch_size=config.loop.batch_size,
    )  # fmt: skip

    def validate(model: nn.Module) -> dict[str, float]:
        with contextlib.nullcontext() if refresh is None else refresh.fresh():
            return measure(model)

    def measure(model: nn.Module) -> dict[str, float]:
        sums = []
        for indices in source.ordered()[state.process_index :: state.num_processes]:
            batch = source.collate(indices, 0).to(state.device)
            sums.append((float(loss(model, batch).total), batch.weight))
        mine = source.questions[state.process_index :: state.num_processes]
        records = evaluate_questions(cast("RagModel", model), retriever, mine, settings).records
        totals, weights = zip(*gather_object(sums), strict=True)
        values, _ = summarise(gather_object(list(records)), settings)
        return {"eval_loss": sum(totals) / sum(weights), **{f"eval_{name}": values[name] for name in values}}

    return validate
