"""How many steps, at which learning rate, in which arithmetic, and with which optimizer."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from ragtrain.errors import ConfigError, RagtrainError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ragtrain.config.training import LoopConfig, OptimConfig


logger = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a peak learning rate, under the name by which logs and metrics call them.

    ``frozen_steps``: in the first so many steps of the run the group takes no part: its learning rate is 0, its gradients
    are measured and dropped, so they count neither in the global norm nor in the optimizer, and there is no weight
    decay. The schedule is the run's: a warm-up counts from the run's beginning, not from the end of the freeze.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    frozen_steps: int = 0


def resolve_precision(mixed_precision: str) -> Literal["no", "fp16", "bf16"]:
    """Return the arithmetic that ``auto`` stands for on this machine.

    Raises:
        ConfigError: fp16 was asked for where there is no CUDA device: its gradient scaler needs one.
    """
    cuda = torch.cuda.is_available()
    if mixed_precision == "auto":
        if not cuda:
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if mixed_precision == "fp16":
        if not cuda:
            raise ConfigError(
                "mixed_precision fp16 needs a CUDA device, and there is none",
                hint="use --mixed-precision no, or bf16, which a CPU can do as well",
            )
        return "fp16"
    return "bf16" if mixed_precision == "bf16" else "no"


def total_steps(config: LoopConfig, micro_batches_per_epoch: int, world: int) -> int:
    """Return the optimizer steps of a whole run; the last step of an epoch may be a smaller one."""
    if config.max_steps is not None:
        return config.max_steps
    per_epoch = math.ceil(micro_batches_per_epoch / (config.gradient_accumulation_steps * world))
    # 0.07 epochs of 100 steps are 7 steps, although 0.07 * 100 is 7.000000000000001.
    return max(1, math.ceil(round(config.num_epochs * per_epoch, 9)))


def warmup_steps(optim: OptimConfig, total: int) -> int:
    """Return the steps of linear warm-up."""
    return math.ceil(optim.warmup_ratio * total) if optim.warmup_steps is None else optim.warmup_steps


def lr_factor(schedule: str, completed: int, warmup: int, total: int) -> float:
    """Return what the peak learning rate is multiplied by in the step after ``completed`` steps.

    The three shapes are those of transformers' ``get_{linear,cosine,constant}_schedule_with_warmup``, as functions
    of the number of completed steps: there is no scheduler state to save, and a step that fp16 skipped was not
    completed, so it does not advance them. As there, the very first step of a warm-up has a factor of 0.
    """
    if completed < warmup:
        return completed / warmup
    if schedule == "constant":
        return 1.0
    progress = (completed - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return max(0.0, 1.0 - progress)


def check_groups(model: nn.Module, groups: Sequence[ParamGroup]) -> None:
    """Raise unless every trainable parameter of the model is in exactly one group.

    Raises:
        RagtrainError: One is in no group or in two, a group has one that is not the model's, two groups have one name, or
            at first all of them are frozen.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if len({group.name for group in groups}) < len(groups):
        raise RagtrainError(f"parameter groups share a name: {[group.name for group in groups]}")
    trained = [group for group in groups if any(parameter.requires_grad for parameter in group.parameters)]
    if trained and all(group.frozen_steps > 0 for group in trained):
        raise RagtrainError(f"in the first steps nothing learns: {[group.name for group in trained]} are frozen")
    owner: dict[int, str] = {}
    for group in groups:
        for parameter in group.parameters:
            name = names.get(id(parameter))
            if name is None:
                raise RagtrainError(f"parameter group {group.name} has a parameter that is not the model's")
            if id(parameter) in owner:
                raise RagtrainError(f"{name} is in two parameter groups: {owner[id(parameter)]} and {group.name}")
            owner[id(parameter)] = group.name
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in owner:
            raise RagtrainError(f"{name} is trainable and in no parameter group")


#: Ours by bitsandbytes' names.
BITSANDBYTES = {"paged_adamw": "PagedAdamW32bit", "adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}


def make_optimizer(groups: Sequence[ParamGroup], optim: OptimConfig, *, scaled: bool = False) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on matrices only; each of its groups knows its name and its peak rate.

    Args:
        groups: what is trained.
        optim: which AdamW, betas, epsilon, weight decay.
        scaled: whether fp16's gradient scaler decides about each step.

    Raises:
        ConfigError: bitsandbytes is asked for, and not installed.
        RagtrainError: No parameter is trainable.
    """
    torch_groups = []
    for group in groups:
        trainable = [p for p in group.parameters if p.requires_grad]
        for parameters, decay in (
            ([p for p in trainable if p.ndim >= 2], optim.weight_decay),
            ([p for p in trainable if p.ndim < 2], 0.0),
        ):
            if parameters:
                torch_groups.append(
                    {
                        "params": parameters,
                        "weight_decay": decay,
                        "lr": group.learning_rate,
                        "name": group.name,
                        "peak": group.learning_rate,
                    }
                )
    if not torch_groups:
        raise RagtrainError("no parameter is trainable")
    betas = (optim.adam_beta1, optim.adam_beta2)
    if optim.optimizer != "adamw":
        return _bitsandbytes(optim.optimizer)(torch_groups, betas=betas, eps=optim.adam_epsilon)
    # One pass over a weight and its moments instead of a dozen: a third of the time of a small step on a CPU. A fused step
    # looks for overflows itself, on the device, and would not tell the loop that it did nothing.
    return torch.optim.AdamW(torch_groups, betas=betas, eps=optim.adam_epsilon, fused=not scaled)


def check_optimizer(name: str) -> None:
    """Raise ConfigError unless the package of an optimizer is installed."""
    if name == "adamw":
        return
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"optim.optimizer {name} is bitsandbytes', which is not installed",
            hint="pip install 'ragtrain[quant]', or take --optimizer adamw",
        ) from error


def _bitsandbytes(name: str) -> Callable[..., torch.optim.Optimizer]:
    check_optimizer(name)
    from bitsandbytes import optim as optimizers

    theirs = BITSANDBYTES[name]
    if theirs.startswith("Paged") and not torch.accelerator.is_available():
        logger.info(
            "%s: moments are paged between a GPU and its host, and there is no GPU: they stay where they are", name
        )
        theirs = theirs.removeprefix("Paged")
    return cast("Callable[..., torch.optim.Optimizer]", getattr(optimizers, theirs))
