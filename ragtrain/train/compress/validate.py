"""Validation during training: the loss on the evaluation rows, and answers from memory to a fixed sample of them."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from typing import TYPE_CHECKING, cast

from accelerate.utils import gather_object

from ragtrain.evaluate.compress.measure import RATES, SHARES, answer_memory
from ragtrain.train.compress.measure import settings_of
from ragtrain.train.compress.objective import answer_nll

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ragtrain.models.compress.model import CompressModel
    from ragtrain.train.compress.phases import Place

log = logging.getLogger("ragtrain")

#: Answers written to the log at each evaluation: a figure alone does not tell what the model writes.
SHOWN = 3


def evaluation_of(place: Place) -> Callable[[nn.Module], dict[str, float]] | None:
    """Return what the loop calls for validation, if there is anything to validate on.

    Every process takes its share; all of them get the same figures, those of all rows.
    """
    parts, accelerator = place.parts, place.accelerator
    if not parts.evaluated:
        return None
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    count = min(place.config.evaluation.eval_samples, len(parts.evaluated))
    chosen = sorted(random.Random(place.config.loop.seed).sample(range(len(parts.evaluated)), count))
    rows = [parts.evaluated[i] for i in chosen]
    settings = dataclasses.replace(settings_of(place), progress=False)

    def validate(model: nn.Module) -> dict[str, float]:
        values = {"eval_loss": loss(model)}
        if not rows:
            return values
        mine = answer_memory(parts.subject, rows[own], settings) if rows[own] else None
        records = () if mine is None else mine.records
        scored = [[getattr(record, name) for name in (*RATES, *SHARES)] for record in records]
        everywhere = gather_object(scored)
        for row, record in list(zip(rows[own], records, strict=True))[:SHOWN]:
            log.info("%s | %s → %r, expected %r", "right" if record.em else "wrong", row.question[-100:],
                     record.prediction[:100], row.answers[0] if row.answers else "")  # fmt: skip
        means = {
            f"eval_{name}": math.fsum(scores) / len(scores)
            for name, scores in zip((*RATES, *SHARES), zip(*everywhere, strict=True), strict=True)
        }
        return {**values, **means}

    def loss(model: nn.Module) -> float:
        sums = []
        for indices in parts.validation.ordered()[own]:
            batch = parts.validation.evaluation(indices).to(accelerator.device)
            with accelerator.autocast():
                sums.append((float(answer_nll(cast("CompressModel", model)(batch).logits, batch)), batch.weight))
        totals, weights = zip(*gather_object(sums), strict=True)
        return float(sum(totals) / sum(weights))

    return validate
