"""What a stretch of training is told, and how it is started."""

from __future__ import annotations

import dataclasses
import os
import shlex
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, set_seed

from ragtrain.errors import ConfigError
from ragtrain.loop.journal import check_trackers
from ragtrain.loop.schedule import check_optimizer, resolve_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ragtrain.config.training import LoopConfig, OptimConfig
    from ragtrain.runs import RunFolder


@dataclasses.dataclass(frozen=True)
class Training:
    """What a stretch of training is told besides model, loss and data.

    Attributes:
        config: How long, in which portions, what is kept.
        optim: Optimizer and schedule.
        run: Folder that everything is written to.
        trackers: Experiment trackers by Accelerate's names.
        memory_flags: Flags of this trainer that save memory, named when the device is full.
        indivisible: Why the examples of a micro-batch cannot be computed apart ("in-batch negatives: …"), empty where
            they can. It keeps a micro-batch from being halved when the device is full.
        relief: What to do once when a device is full, before micro-batches are halved: it frees memory without changing
            the step (activations recomputed, say) and returns what it did, or nothing where there is nothing left to do.
            Called on every process alike.
    """

    config: LoopConfig
    optim: OptimConfig
    run: RunFolder
    trackers: Sequence[str] = ()
    memory_flags: Sequence[str] = ("--gradient-checkpointing",)
    indivisible: str = ""
    relief: Callable[[], str] | None = None


def check_packages(optim: OptimConfig, trackers: Sequence[str]) -> None:
    """Refuse an optimizer or trackers that are not installed: before anything is read, or a run folder is made.

    Raises:
        ConfigError: naming what to install.
    """
    check_optimizer(optim.optimizer)
    check_trackers(trackers)


def make_accelerator(config: LoopConfig, *, cpu: bool = False) -> Accelerator:
    """Return the Accelerator of a run and seed every random generator, so that what is built next is reproducible.

    Args:
        config: Arithmetic and seed.
        cpu: Stay on the CPU although there is a GPU.

    Raises:
        ConfigError: The precision does not go with the device, or the launcher asks for sharded training.
    """
    # A process may train several times (tests, notebooks); the precision of an earlier run must not stick.
    AcceleratorState._reset_state()
    # Under torchrun Accelerate joins the processes of a machine without accelerators only when it is told that this
    # is what is meant; left alone, each would train by itself in the same folder.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        cpu=cpu or (several and not torch.accelerator.is_available()),
        mixed_precision=resolve_precision(config.mixed_precision),
        # The loop normalises by weights itself; 1 here also overrides what the launcher's environment may say.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"{accelerator.distributed_type.value} is not supported: every rank holds the whole model",
            hint="launch with --multi_gpu, or with torchrun",
        )
    set_seed(config.seed)
    return accelerator


def resume_command(run: RunFolder, world: int = 1) -> str:
    """Return the command line that goes on with a run from its latest checkpoint."""
    launcher = "ragtrain" if world == 1 else f"accelerate launch --num_processes {world} -m ragtrain"
    config = shlex.quote(str(run.path / "config.yaml"))
    return f"{launcher} train {run.kind} --config {config} --resume latest"
