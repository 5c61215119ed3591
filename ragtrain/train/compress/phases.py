"""The phases beside training itself: each in a folder of its own, and passed over when it is done."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
from typing import TYPE_CHECKING, Any, cast

import torch

from ragtrain import loop
from ragtrain.errors import ConfigError
from ragtrain.loop import checkpoints
from ragtrain.models.adapters import save_adapters
from ragtrain.models.causal import set_checkpointing
from ragtrain.models.folders import written_aside
from ragtrain.runs import RunFolder
from ragtrain.train.alarms import LossWatch
from ragtrain.train.compress.build import adapter_weights, groups_of, put_adapter_weights
from ragtrain.train.compress.objective import text_loss
from ragtrain.train.sft.objective import completion_loss

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from accelerate import Accelerator
    from torch import nn

    from ragtrain.config.commands import CompressConfig
    from ragtrain.loop.feed import BatchSource
    from ragtrain.models.compress.model import CompressModel
    from ragtrain.train.compress.build import CompressParts

log = logging.getLogger("ragtrain")

PRETRAINING, FULL_CONTEXT = "pretraining", "full_context"
#: Link to the final model, where ScaleDown has it.
FINAL = "final"
#: How long a process waits for the one that measures.
PATIENCE = datetime.timedelta(days=7)


@dataclasses.dataclass(frozen=True)
class Place:
    """What every phase of a run has in common."""

    config: CompressConfig
    parts: CompressParts
    folder: RunFolder
    accelerator: Accelerator

    @functools.cached_property
    def waiting(self) -> Any:  # noqa: ANN401 - torch's group has no public type
        """A group in which processes wait for as long as an evaluation of the first one takes."""
        return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def wait(self) -> None:
        """Wait for all processes, hours if need be: a barrier of the accelerator's own gives up after minutes."""
        if self.accelerator.num_processes > 1:
            torch.distributed.barrier(group=self.waiting)


def pretrain(place: Place) -> None:
    """Train on windows written back and continued; where that is done, the network gets its weights and nothing more."""
    config, parts = place.config, place.parts
    if parts.pretraining is None:
        return
    steps = config.objective.pretrain_steps
    log.info("pre-training: %d steps of reconstruction and continuation", steps)
    _train(place, PRETRAINING, parts.model, text_loss, parts.pretraining, steps, groups_of(config, parts.model))


def train_full_context(place: Place, steps_done: int) -> Path | None:
    """Train adapters that read the full passages, as many steps as the compressor; return their folder.

    They begin as the compressor's began, on the same base, which is the only one in memory: the adapters that read memory
    step aside and come back.
    """
    config, parts = place.config, place.parts
    asked = config.evaluation.full_context_steps
    steps = steps_done if asked is None else asked
    if not steps or not any(arm in config.evaluation.arms for arm in ("full", "truncated", "best-sentences")):
        return None
    log.info("adapters for full passages, for the comparison: %d steps", steps)
    generator = parts.model.generator
    trained = adapter_weights(generator)
    put_adapter_weights(generator, parts.first_adapters)
    try:
        group = next(group for group in groups_of(config, parts.model) if group.name == "generator")
        run = _train(place, FULL_CONTEXT, generator, completion_loss, parts.full, steps, [group])
        if place.accelerator.is_main_process:
            with written_aside(run.final_model) as aside:
                save_adapters(generator, aside, parts.base_name)
    finally:
        put_adapter_weights(generator, trained)
    place.accelerator.wait_for_everyone()
    return run.final_model


def _train(
    place: Place, name: str, model: nn.Module, loss: loop.LossFunction, source: BatchSource[Any], steps: int,
    groups: list[loop.ParamGroup],
) -> RunFolder:  # fmt: skip
    """Train for some steps in a folder of the run; nothing is evaluated, and one checkpoint is kept."""
    config = place.config
    # With the configuration of the whole run in it, which is what goes on from there.
    folder = RunFolder.create(place.folder.path / name, "compress", place.folder.config)
    settings = config.loop.model_copy(
        update={"max_steps": steps, "eval_steps": None, "early_stopping_patience": None, "save_total_limit": 1,
                "resume": "auto"}
    )  # fmt: skip
    training = loop.Training(
        settings, config.optim, folder, config.run.trackers, relief=relief_of(config, place.parts.model)
    )
    watch = LossWatch(folder, config.run)
    for step in loop.steps(model, loss, source, groups=groups, training=training, accelerator=place.accelerator):
        watch.after(step)
    return folder


def resume_of(config: CompressConfig, folder: RunFolder) -> str:
    """Return where training goes on from: a run that was stopped before it has no checkpoint to be the latest."""
    asked = config.loop.resume
    begun = any((folder.path / name / "checkpoints").is_dir() for name in (PRETRAINING,))
    return "auto" if asked == "latest" and begun and not checkpoints.listing(folder.checkpoints) else asked


def relief_of(config: CompressConfig, model: CompressModel) -> Callable[[], str] | None:
    """Return what is done first when the device is full: activations are recomputed from then on."""
    if config.model.gradient_checkpointing != "auto":
        return None
    done: list[str] = []

    def relieve() -> str:
        if done:
            return ""
        for network in (model.generator, model.compressor):
            try:
                set_checkpointing(cast("Any", network), on=True)
            except ConfigError:  # one of the two may not know how
                continue
            done.append("gradient checkpointing is switched on")
        return done[0] if done else ""

    return relieve


def link_final(folder: RunFolder) -> None:
    """Let ``checkpoints/final`` be the final model, by a relative link that is there at once."""
    aside = folder.checkpoints / f".{FINAL}.tmp"
    aside.unlink(missing_ok=True)
    aside.symlink_to(f"../{folder.final_model.name}")
    aside.replace(folder.checkpoints / FINAL)
