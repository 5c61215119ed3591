"""Weights on the disk: all of them, or only what is trained where most are frozen.

A model none of whose parameters is frozen is saved whole. One with any parameter that does not require a gradient
(adapters on a language model, a frozen generator) is saved without the frozen ones: the file holds the trained
parameters, the persistent buffers, and a fingerprint of the base that they were trained on. Such a file is read into a
model built from the same base, and refused by any other.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

from ragtrain.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

FILE = "model.safetensors"
BASE, BASE_COUNT = "ragtrain_base", "ragtrain_base_parameters"
SAMPLES = 64
"""Values of each frozen parameter that its fingerprint looks at."""

_HINT = "use it with the models it was made with"


def is_partial(model: nn.Module) -> bool:
    """Return whether only a part of the model is saved: any of its parameters has ``requires_grad`` False."""
    return any(not parameter.requires_grad for parameter in model.parameters())


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write weights and persistent buffers as safetensors; without the frozen weights where there are any.

    A parameter that has two names (tied weights) is written once.
    """
    if not is_partial(model):
        safetensors.torch.save_model(model, str(folder / FILE))
        return
    parameters = dict(model.named_parameters())
    frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
    kept = {name: p for name, p in parameters.items() if p.requires_grad} | _buffers(model)
    # Copies: parts of one storage, as some layers keep them, cannot be written as they are.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in kept.items()}
    about = {"format": "pt", BASE: base_fingerprint(frozen), BASE_COUNT: str(len(frozen))}
    safetensors.torch.save_file(tensors, str(folder / FILE), metadata=about)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read what ``save_weights`` wrote into a model of the same structure; nothing is changed where it does not fit.

    Of a file without the frozen weights everything must be the model's, and everything else of the model must be the
    base it was trained on, whether the model has it frozen (to go on training) or not (to be evaluated).

    Raises:
        CheckpointError: A weight is missing, has another shape, or is not one of the model's; or the base is another.
    """
    path = folder / FILE
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
        if BASE not in about:
            safetensors.torch.load_model(model, str(path), strict=True)
            return
        tensors = safetensors.torch.load_file(str(path))
    except (RuntimeError, safetensors.SafetensorError, OSError) as cause:
        raise CheckpointError(f"its weights do not fit the model: {cause}", path=folder, hint=_HINT) from cause
    _load_partial(model, tensors, about, folder)


def _load_partial(model: nn.Module, tensors: Mapping[str, Tensor], about: Mapping[str, str], folder: Path) -> None:
    parameters, buffers = dict(model.named_parameters()), _buffers(model)
    targets: dict[str, Tensor] = {**parameters, **buffers}
    base = {name: p for name, p in parameters.items() if name not in tensors}
    problems: dict[str, Collection[str]] = {
        "it has weights that the model has not": tensors.keys() - targets.keys(),
        "it lacks buffers of the model": buffers.keys() - tensors.keys(),
    }
    count = int(about.get(BASE_COUNT, len(base)))
    if len(base) != count:
        lacking = {name for name, parameter in base.items() if parameter.requires_grad}
        problems[f"it was trained on {count} frozen weights, and of the model's {len(parameters)} it lacks"] = (
            lacking if is_partial(model) and lacking else base.keys()
        )
    problems["their shapes differ"] = {
        name for name in tensors.keys() & targets.keys() if tensors[name].shape != targets[name].shape
    }
    for what, names in problems.items():
        if names:
            raise CheckpointError(f"its weights do not fit the model: {what}: {_few(names)}", path=folder, hint=_HINT)
    if base_fingerprint(base) != about[BASE]:
        raise CheckpointError(
            f"its weights were trained on another base: the {len(base)} frozen weights are not those it was made with",
            path=folder,
            hint=f"it holds only what was trained; {_HINT}, unchanged",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)


def base_fingerprint(parameters: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits for names, shapes and a few values of each parameter.

    The values are taken at even distances and rounded to bfloat16, so that a base read in half precision is the same
    base. It tells another model, or one trained further, and not a change of single values.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        flat = parameter.detach().reshape(-1)
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        if not len(flat):
            continue
        places = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64).long()
        values = flat[places.to(flat.device)].cpu()
        if values.is_floating_point():
            values = values.to(torch.bfloat16)
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a model's state holds, each under its first name."""
    names = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")
