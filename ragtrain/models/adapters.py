"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) inside a model of transformers, and out again.

They are put into the layers in place, so that a model stays of its class; merged, nothing of them remains but their
effect on the weights.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

WEIGHTS_FILE = "adapter_model.safetensors"


def add_lora(
    model: nn.Module,
    rank: int,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("all-linear",),
) -> None:
    """Freeze a model and put trainable adapters of W + alpha / rank * B A into its layers; B begins at zero.

    Args:
        model: a model of transformers.
        rank: rows of A, columns of B.
        alpha: scale; twice the rank where it is not given.
        dropout: before A.
        targets: names of layers, or ``all-linear``: all linear layers but the head.

    Raises:
        ConfigError: no layer has such a name.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=cast("int", 2 * rank if alpha is None else alpha),  # any number, whatever its type says
        lora_dropout=dropout,
        target_modules="all-linear" if tuple(targets) == ("all-linear",) else list(targets),
    )
    try:
        with warnings.catch_warnings():
            # Of GPT-2's transposed layers, which it handles, and of names that transformers is about to change.
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ConfigError(
            f"lora_targets {', '.join(targets)}: {error}", hint="name linear layers of the model, or all-linear"
        ) from error


def has_lora(model: nn.Module) -> bool:
    """Say whether adapters are in the model."""
    return any(isinstance(part, BaseTunerLayer) for part in model.modules())


def save_adapters(model: nn.Module, folder: Path) -> None:
    """Write a model's adapters as peft does: ``adapter_config.json`` and ``adapter_model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    # peft names weights as they are under the two shells that it puts around a model.
    save_file({f"base_model.model.{name}": tensor for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    cast("Any", model).peft_config["default"].save_pretrained(str(folder))


def merge_lora(model: nn.Module) -> None:
    """Add what the adapters learned to the weights, and take the adapters out; the model computes the same."""
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if layers:
        del model.peft_config
