"""Other adapters in a generator for a while: its own are kept aside, and put back to the last bit."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from peft import LoraConfig, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.adapters import CONFIG_FILE, SHELLS, WEIGHTS_FILE, lora_config
from ragtrain.models.folders import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

#: What has to be equal for one set of weights to stand in the place of another.
_SAME = ("r", "lora_alpha", "use_rslora", "use_dora", "bias")


@contextlib.contextmanager
def adapters_swapped(model: nn.Module, folder: Path) -> Iterator[None]:
    """Let a model compute with the adapters of a folder inside the context.

    The parameters stay the same objects, so that an optimizer keeps its hold of them. Only the adapters are held twice
    meanwhile, on the host.

    Args:
        model: a network with adapters of the same form in it.
        folder: as ``save_adapters`` wrote it.

    Raises:
        ConfigError: the model has no adapters.
        DataError: those of the folder cannot be read, or are of another form.
    """
    own = _adapters(model)
    if not own:
        raise ConfigError("the generator has no adapters that could be exchanged", hint="train with --lora-rank 16")
    weights = _read(model, folder)
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in own.items()}
    try:
        result: Any = set_peft_model_state_dict(model, weights)
        _check(result, folder)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(before[name])


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of adapters by name."""
    layers = [name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name and any(name.startswith(f"{layer}.") for layer in layers)
    }


def _read(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a folder, by the names that they have in the model.

    Raises:
        DataError: they cannot be read, or are of another form.
    """
    if not read_json(folder / CONFIG_FILE):
        raise DataError("no adapters here", path=folder)
    theirs, mine = LoraConfig.from_pretrained(str(folder)), lora_config(model)
    for name in _SAME:
        if getattr(theirs, name) != getattr(mine, name):
            raise DataError(
                f"adapters of another form: {name} is {getattr(theirs, name)} there and {getattr(mine, name)} in the model",
                path=folder / CONFIG_FILE,
            )
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"its weights cannot be read: {error}", path=folder / WEIGHTS_FILE) from error
    return {name.removeprefix(SHELLS): weight for name, weight in weights.items()}


def _check(result: Any, folder: Path) -> None:  # noqa: ANN401 - peft has no type for it
    lacking = [name for name in result.missing_keys if "lora_" in name]
    if lacking or result.unexpected_keys:
        first = (lacking or list(result.unexpected_keys))[0]
        raise DataError(f"these adapters do not fit the generator: {first} has no counterpart", path=folder)
