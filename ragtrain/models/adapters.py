"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) inside a model of transformers, and out again.

They are put into the layers in place, so that a model stays of its class; merged, nothing of them remains but their
effect on the weights. Their weights are float32 whatever the base is held in.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import safetensors
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.folders import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
#: peft names weights as they are under the two shells that it puts around a model.
SHELLS = "base_model.model."


def add_lora(
    model: nn.Module,
    rank: int,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("all-linear",),
    rslora: bool = False,
    dora: bool = False,
) -> None:
    """Freeze a model and put trainable adapters of W + alpha / rank * B A into its layers; B begins at zero.

    Args:
        model: a model of transformers.
        rank: rows of A, columns of B.
        alpha: scale; twice the rank where it is not given.
        dropout: before A.
        targets: names of layers, or ``all-linear``: all linear layers but the head.
        rslora: divide by the square root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
        dora: train the length of each column of W beside its direction (Liu et al. 2024, arXiv:2402.09353).

    Raises:
        ConfigError: no layer has such a name, or the layer cannot have adapters: a head that is also the embeddings
            would change them when it is merged.
    """
    _check_head(model, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=cast("int", 2 * rank if alpha is None else alpha),  # any number, whatever its type says
        lora_dropout=dropout,
        target_modules="all-linear" if tuple(targets) == ("all-linear",) else list(targets),
        use_rslora=rslora,
        use_dora=dora,
    )
    try:
        _inject(model, config)
    except ValueError as error:
        raise ConfigError(
            f"lora_targets {', '.join(targets)}: {error}", hint="name linear layers of the model, or all-linear"
        ) from error


def has_lora(model: nn.Module) -> bool:
    """Say whether adapters are in the model."""
    return any(isinstance(part, BaseTunerLayer) for part in model.modules())


def lora_config(model: nn.Module) -> LoraConfig:
    """Return what the adapters in a model are like."""
    return cast("LoraConfig", cast("Any", model).peft_config["default"])


def save_adapters(model: nn.Module, folder: Path, base_name: str | None = None) -> None:
    """Write a model's adapters as peft does: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        model: with adapters.
        folder: where they go.
        base_name: folder or hub id of the causal language model under them, by which peft's
            ``AutoPeftModelForCausalLM`` finds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Embeddings are never trained; left to itself, peft asks the hub whether they were.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file({SHELLS + name: tensor for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    config = lora_config(model)
    if base_name is not None:
        config.base_model_name_or_path, config.task_type = base_name, "CAUSAL_LM"
    config.save_pretrained(str(folder))


def load_adapters(model: nn.Module, folder: Path, *, dropout: float | None = None) -> None:
    """Freeze a model and put the adapters of a folder into it, trainable.

    Args:
        model: the base they were trained on.
        folder: as ``save_adapters`` or peft wrote it.
        dropout: before A, where it is to be another one than before.

    Raises:
        ConfigError: they are not LoRA, or more than LoRA.
        DataError: they cannot be read, or are another model's.
    """
    kind = read_json(folder / CONFIG_FILE).get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"the adapter in {folder} is {kind}; only LORA is known", hint="Choose another adapter.")
    config = LoraConfig.from_pretrained(str(folder))
    if config.modules_to_save or config.bias != "none" or config.trainable_token_indices:
        raise ConfigError(
            f"the adapter in {folder} also replaces weights of the base (modules_to_save, bias or trainable tokens)",
            hint="Merge it with peft and give the merged model.",
        )
    if dropout is not None:
        config.lora_dropout = dropout
    config.inference_mode = False
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"its weights cannot be read: {error}", path=folder / WEIGHTS_FILE) from error
    try:
        _inject(model, config)
        result: Any = set_peft_model_state_dict(model, {name.removeprefix(SHELLS): w for name, w in weights.items()})
    except (ValueError, RuntimeError) as error:
        raise DataError(f"this adapter does not fit the model: {error}", path=folder) from error
    lacking = [name for name in result.missing_keys if "lora_" in name]
    if lacking or result.unexpected_keys:
        first = (lacking or list(result.unexpected_keys))[0]
        raise DataError(f"this adapter does not fit the model: {first} has no counterpart", path=folder)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let the base compute without its adapters inside the context; what is trainable stays so.

    Raises:
        ConfigError: there are no adapters in the model.
    """
    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    if not layers:
        raise ConfigError("the model has no adapters that could be switched off", hint="Load its base instead.")
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for parameter, was in trainable:
            parameter.requires_grad_(was)


def merge_lora(model: nn.Module) -> None:
    """Add what the adapters learned to the weights, and take the adapters out; the model computes the same."""
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if layers:
        del model.peft_config


def _check_head(model: nn.Module, targets: Sequence[str]) -> None:
    """Refuse adapters in a head whose weight is also the embeddings'."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        return
    name = next(name for name, part in model.named_modules() if part is head)
    asked = any(name == target or name.endswith(f".{target}") for target in targets)
    embeddings = cast("Any", model).get_input_embeddings()
    if asked and getattr(head, "weight", None) is getattr(embeddings, "weight", 0):
        raise ConfigError(
            f"lora_targets: {name} is tied to the embeddings, which adapters in it would change when they are merged",
            hint="leave the head out",
        )


def _inject(model: nn.Module, config: LoraConfig) -> None:
    with warnings.catch_warnings():
        # Of GPT-2's transposed layers, which it handles, and of names that transformers is about to change.
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        # Made in the base's type, in which steps of a small learning rate would be lost.
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
