"""An evaluation in the middle of training, and what it decides: the best checkpoint, and when patience ends."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from ragtrain.errors import ConfigError
from ragtrain.loop import checkpoints

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ragtrain.config.training import LoopConfig
    from ragtrain.loop.checkpoints import State
    from ragtrain.loop.journal import Step

logger = logging.getLogger("ragtrain")

Evaluate = Callable[[nn.Module], Mapping[str, float]]

LOWER_IS_BETTER = ("loss", "nll", "perplexity")
"""What the name of a metric contains that is better when it is smaller."""


def evaluation(accelerator: Accelerator, prepared: nn.Module, evaluate: Evaluate) -> dict[str, float]:
    """Evaluate the bare model; training modes and random generators are afterwards as they were."""
    model = accelerator.unwrap_model(prepared)
    modes = [(module, module.training) for module in model.modules()]
    before = checkpoints.random_state(accelerator.device)
    model.eval()
    try:
        with torch.no_grad():
            shared = [dict(evaluate(model))]
    finally:
        for module, mode in modes:
            module.training = mode
        checkpoints.set_random_state(before, accelerator.device)
    if accelerator.num_processes > 1:
        broadcast_object_list(shared, from_process=0)
    return shared[0]


def judged(step: Step, result: dict[str, float], state: State, config: LoopConfig) -> Step:
    """Compare with the best so far, and count towards early stopping.

    Raises:
        ConfigError: The evaluation has no ``best_metric``.
    """
    wanted = config.best_metric
    if wanted not in result:
        raise ConfigError(
            f"loop.best_metric: the evaluation has no {wanted!r}", hint=f"it has {', '.join(sorted(result))}"
        )
    value, best = result[wanted], state.best_value
    lower_is_better = any(word in wanted for word in LOWER_IS_BETTER)
    is_best = not math.isnan(value) and (best is None or (value < best if lower_is_better else value > best))
    if is_best:
        state.best_value, state.best_step, state.stale = value, step.index, 0
    else:
        state.stale += 1
    patience = config.early_stopping_patience
    ended = patience is not None and state.stale >= patience
    if ended and not step.is_last:
        logger.info("stopping early: %d evaluations without a better %s", state.stale, wanted)
    return dataclasses.replace(step, evaluation=result, is_best=is_best, is_last=step.is_last or ended)
