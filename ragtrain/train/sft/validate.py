"""Validation during training: the loss on all rows, and answers to a fixed sample of them."""

from __future__ import annotations

import itertools
import logging
import random
from typing import TYPE_CHECKING, cast

from accelerate.utils import gather_object

from ragtrain import loop
from ragtrain.evaluate.prompted import PromptedSettings, measure, summarise
from ragtrain.runs import is_main_process
from ragtrain.train.sft.objective import completion_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerate import Accelerator
    from torch import nn
    from transformers import PreTrainedModel

    from ragtrain.config.commands import SftConfig
    from ragtrain.data.sft.examples import SftRows
    from ragtrain.evaluate.prompted import PromptedRecord
    from ragtrain.train.sft.build import SftParts

log = logging.getLogger("ragtrain")

#: What an evaluation in the middle of training tells of its answers; ``ragtrain eval`` tells all.
TOLD = ("em", "f1", "answer_in_prompt", "em_given_answer", "abstained", "ended", "new_tokens")


def evaluation_of(
    config: SftConfig, parts: SftParts, rows: SftRows, accelerator: Accelerator
) -> Callable[[nn.Module], dict[str, float]]:
    """Return what the loop calls for validation; every process takes its share, all of them get the same figures.

    Raises:
        ConfigError: answers leave no room for prompts.
        DataError: a prompt is too long beside an answer, and ``on_overflow`` is ``error``.
    """
    source, asked = parts.validation, config.evaluation
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    first = source.rows(0)
    count = min(asked.eval_samples, len(first.samples))
    chosen = sorted(random.Random(config.loop.seed).sample(range(len(first.samples)), count))
    samples = [first.samples[i] for i in chosen]
    references = [rows.validation[source.maker.origin(i)].answers for i in chosen]
    settings = PromptedSettings(
        max_new_tokens=asked.max_new_tokens, batch_size=config.loop.batch_size,
        abstain_target=config.context.abstain_target,
        precision=loop.resolve_precision(config.loop.mixed_precision),
    )  # fmt: skip
    if samples:  # what cannot be asked is told now, and not after the first steps
        source.prompter.fitted_prompts(samples, room=asked.max_new_tokens)

    def validate(model: nn.Module) -> dict[str, float]:
        values = {"eval_loss": loss(model)}
        if not samples:
            return values
        network = cast("PreTrainedModel", model)
        mine = measure(network, parts.tokenizer, source.prompter, samples[own], references[own], settings)
        # In the order of the rows again: the processes took turns.
        everywhere = gather_object([list(enumerate(mine))])
        records = [record for _, record in sorted(itertools.chain.from_iterable(everywhere), key=lambda pair: pair[0])]
        _show(records[: asked.show_samples])
        found, _ = summarise(records, settings)
        return {**values, **{f"eval_{name}": found[name] for name in TOLD if name in found}}

    def loss(model: nn.Module) -> float:
        sums = []
        for indices in source.ordered()[own]:
            batch = source.collate(indices, 0).to(accelerator.device)
            with accelerator.autocast():
                sums.append((float(completion_loss(model, batch).total), batch.weight))
        totals, weights = zip(*gather_object(sums), strict=True)
        return float(sum(totals) / sum(weights))

    return validate


def _show(records: Sequence[PromptedRecord]) -> None:
    """Write some answers to the log: a figure alone does not tell what the model writes."""
    if is_main_process():
        for record in records:
            asked = " ".join(record.question.split())  # of a finished prompt it is the whole of it, on many lines
            log.info("%s | %s → %r, expected %r", "right" if record.em else "wrong", asked[-100:],
                     record.prediction[:100], record.answers[0] if record.answers else "")  # fmt: skip
