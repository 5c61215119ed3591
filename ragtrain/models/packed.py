"""Linear layers on weights that oneDNN has laid out ahead: the same float32 numbers, sooner, on a CPU.

``torch.nn.Linear`` hands its weight to the BLAS as it lies in memory, and a GELU after it reads and writes the widest
activation of the network once more. Inside ``packed``, each weight stands in the block layout of oneDNN's kernels, and
a GELU that follows a layer is computed while the product is still in the registers. These are the operators that
``torch.compile`` puts into a frozen model on a CPU (``torch/_inductor/fx_passes/mkldnn_fusion.py``); they are called
here directly, since a compiler on the machine cannot be counted on. Where the operators are missing, or give other
numbers than the plain layer on a probe, the plain layers run.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("ragtrain")

#: Rows that weights are laid out for; kernels for other numbers of rows read the same layout.
ROWS = 1024
#: Largest difference, relative to the largest number, that a probe may show: rounding of sums in another order.
TOLERANCE = 1e-4


@contextmanager
def packed(model: nn.Module) -> Iterator[int]:
    """Run the linear layers of a model on packed weights inside the context, and give their number.

    Gradients do not flow. Weights must not change inside the context. The packed weights take as much memory again as
    the layers do.
    """
    replaced: list[nn.Module] = []
    try:
        if _usable():
            inside: set[nn.Module] = set()  # layers that a fused operator stands for
            for module in model.modules():
                if module in inside:
                    continue
                forward = _fused(module) or _plain(module)
                if forward is not None:
                    inside.update(module.children())
                    # An attribute of the instance goes before the method of its class, and is deleted afterwards.
                    module.forward = forward
                    replaced.append(module)
        yield len(replaced)
    finally:
        for module in replaced:
            del module.forward


def _plain(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return what a linear layer computes, on packed weights, or None for anything else."""
    if type(module) is not nn.Linear or not _packable(module) or "forward" in vars(module):
        return None
    return _pointwise(module, "none", "")


def _fused(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return a BERT-like ``intermediate`` (a linear layer and an exact GELU) as one operator, or None."""
    layer, activation = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
    if type(layer) is not nn.Linear or not _packable(layer) or set(dict(module.named_children())) - {
        "dense", "intermediate_act_fn",
    }:  # fmt: skip
        return None
    if activation is not nn.functional.gelu and not _is_gelu(activation):
        return None
    return _pointwise(layer, "gelu", "none")


def _is_gelu(activation: object) -> bool:
    """Return whether it is the exact GELU (by erf): transformers' own or torch's."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return type(activation).__name__ == "GELUActivation" and getattr(activation, "act", None) is nn.functional.gelu


def _packable(layer: nn.Linear) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and type(weight) is nn.Parameter


def _pointwise(layer: nn.Linear, attribute: str, algorithm: str) -> Callable[[Tensor], Tensor]:
    operators: Any = torch.ops.mkldnn
    weight = operators._reorder_linear_weight(layer.weight.detach(), ROWS)
    bias = None if layer.bias is None else layer.bias.detach()

    def forward(states: Tensor) -> Tensor:
        result: Tensor = operators._linear_pointwise(states, weight, bias, attribute, [], algorithm)
        return result

    return forward


def _usable() -> bool:
    """Return whether this build of torch has the operators, and they compute what the plain layers do."""
    global _checked
    if _checked is None:
        _checked = _probe()
    return _checked


_checked: bool | None = None


def _probe() -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layer, states = nn.Linear(96, 64), torch.randn(3, 7, 96)
        plain = layer(states)
        try:
            results = [_pointwise(layer, "none", "")(states), _pointwise(layer, "gelu", "none")(states)]
        except (AttributeError, RuntimeError) as error:
            log.debug("oneDNN's packed linear layers are not to be had: %s", error)
            return False
        wanted = [plain, nn.functional.gelu(plain)]
        return all(
            bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
            for one, other in zip(results, wanted, strict=True)
        )
