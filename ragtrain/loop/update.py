"""One optimizer step: accumulate, exchange, measure, clip, update."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ragtrain.errors import DataError, NumericsError, RagtrainError
from ragtrain.losses import LossOutput
from ragtrain.records import write_json
from ragtrain.runs import RunFolder, is_main_process

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from ragtrain.loop.feed import Batch, Portion
    from ragtrain.loop.schedule import ParamGroup

LossFunction = Callable[[nn.Module, Any], LossOutput]


@dataclasses.dataclass(frozen=True)
class Engine:
    """What an optimizer step needs besides its data. ``model`` and ``optimizer`` are the prepared ones."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    loss: LossFunction
    groups: Sequence[ParamGroup]
    max_grad_norm: float
    run: RunFolder


@dataclasses.dataclass(frozen=True)
class Update:
    """The figures of one optimizer step over all micro-batches and ranks.

    ``skipped``: the fp16 gradient scaler found an overflow, lowered its scale and left the weights as they are.
    ``stop``: a signal that some rank received.
    """

    loss: float
    weight: float
    parts: Mapping[str, float]
    examples: int
    grad_norm: float
    group_grad_norms: Mapping[str, float]
    skipped: bool
    stop: signal.Signals | None


def do_update(engine: Engine, portion: Portion, learning_rates: Mapping[str, float], received: int | None) -> Update:
    """Do one optimizer step.

    The gradient is that of ``sum of losses / sum of weights`` over all micro-batches of all ranks. The summed weight W
    is known before the first backward pass, so each micro-batch's loss is scaled by world / W on its way into the
    gradient; DDP then averages over ranks, which takes ``world`` out again. Gradients are exchanged once, in the
    last backward pass.

    Raises:
        NumericsError: A loss is not finite, or a gradient is not where no scaler would take care of it. The weights
            are as they were, and ``nonfinite.json`` tells the examples.
        DataError: The step has nothing to learn from: its weights sum to 0.
    """
    accelerator, world = engine.accelerator, engine.accelerator.num_processes
    own_weight = 0.0 if portion.is_filler else float(sum(batch.weight for batch in portion.batches))
    weight = float(_sum_over_ranks(accelerator, [own_weight])[0]) if world > 1 else own_weight
    if not weight > 0:
        ids = [i for batch in portion.batches for i in batch.ids]
        raise DataError(f"a step has no weight ({weight}): every target of its examples is empty: {_few(ids)}")

    engine.optimizer.zero_grad()
    losses: list[Tensor] = []
    sums: dict[str, list[Tensor | float]] = {}
    for number, batch in enumerate(portion.batches):
        exchange = number == len(portion.batches) - 1
        with contextlib.nullcontext() if exchange else accelerator.no_sync(engine.model):
            output = _loss(engine, batch)
            scale = 0.0 if portion.is_filler else world / weight
            accelerator.backward(output.total * scale)
        if not math.isclose(output.weight, batch.weight, rel_tol=1e-6):
            raise RagtrainError(f"the loss has weight {output.weight}, its batch said {batch.weight}")
        losses.append(output.total.detach())
        for name, pair in output.parts.items():
            so_far = sums.setdefault(name, [0.0, 0.0])
            if not portion.is_filler:
                sums[name] = [
                    a + b.detach() if isinstance(b, Tensor) else a + b for a, b in zip(so_far, pair, strict=True)
                ]

    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(engine.optimizer.optimizer)
    own: list[Tensor | float] = [
        sum(losses, torch.zeros((), device=accelerator.device)) if not portion.is_filler else 0.0,
        0 if portion.is_filler else sum(len(batch.ids) for batch in portion.batches),
        float(received == signal.SIGINT),
        float(received == signal.SIGTERM),
    ]
    names = sorted(sums)
    own += [value for name in names for value in sums[name]]
    figures = _sum_over_ranks(accelerator, own)
    norms = [_norm([p.grad for p in g.parameters if p.grad is not None], accelerator.device) for g in engine.groups]
    # The one place where the host waits for the device.
    values = torch.cat([figures, torch.stack(norms).to(figures.dtype)]).tolist()
    loss, examples, interrupts, terminations = values[:4]
    part_values, norm_values = values[4 : len(own)], values[len(own) :]
    grad_norm = math.hypot(*norm_values)

    if not math.isfinite(loss) or (not math.isfinite(grad_norm) and accelerator.scaler is None):
        _refuse(engine, portion, losses, loss, grad_norm)
    skipped = _apply(engine, learning_rates, grad_norm)
    return Update(
        loss=loss / weight,
        weight=weight,
        parts={n: _ratio(s, w) for n, s, w in zip(names, part_values[::2], part_values[1::2], strict=True)},
        examples=round(examples),
        grad_norm=grad_norm,
        group_grad_norms={g.name: n for g, n in zip(engine.groups, norm_values, strict=True)},
        skipped=skipped,
        stop=signal.SIGINT if interrupts else signal.SIGTERM if terminations else None,
    )


def _loss(engine: Engine, batch: Batch) -> LossOutput:
    """Return the loss of a micro-batch; where something on the way is not finite already, say for which examples."""
    try:
        return engine.loss(engine.model, batch.to(engine.accelerator.device))
    except NumericsError as error:
        raise NumericsError(f"{error.message}; the examples are {_few(batch.ids)}", hint=error.hint) from error


def _apply(engine: Engine, learning_rates: Mapping[str, float], grad_norm: float) -> bool:
    """Clip to the global norm, set the rates, update; return whether the scaler skipped the update."""
    if 0 < engine.max_grad_norm < grad_norm and math.isfinite(grad_norm):
        gradients = [p.grad for g in engine.groups for p in g.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, engine.max_grad_norm / (grad_norm + 1e-6))
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rates[group["name"]]
    engine.optimizer.step()
    return bool(engine.optimizer.step_was_skipped)


def _refuse(engine: Engine, portion: Portion, losses: Sequence[Tensor], loss: float, grad_norm: float) -> None:
    """Write down which examples gave the step that is not finite, and raise."""
    slot, rank = portion.slot, engine.accelerator.process_index
    rows = [
        {"rank": rank, "micro_batch": number, "loss": float(value), "ids": list(batch.ids)}
        for number, (value, batch) in enumerate(zip(losses, portion.batches, strict=True))
        if not portion.is_filler
    ]
    everywhere: list[dict[str, Any]] = gather_object(rows)
    bad = [row for row in everywhere if not math.isfinite(row["loss"])] or everywhere
    ids = [i for row in bad for i in row["ids"]]
    if is_main_process():
        write_json(
            engine.run.path / "nonfinite.json",
            {
                "epoch": slot.epoch,
                "position": slot.position,
                "loss": repr(loss),
                "grad_norm": repr(grad_norm),
                "micro_batches": [{**row, "loss": repr(row["loss"])} for row in bad],
            },
        )
    what = f"the gradient norm is {grad_norm}" if math.isfinite(loss) else f"the loss is {loss}"
    raise NumericsError(
        f"{what} in epoch {slot.epoch} at micro-batch {slot.position}, with the examples {_few(ids)}; "
        "the weights were left as they were and no checkpoint was written",
        hint=f"{engine.run.path / 'nonfinite.json'} has all ids; look at these examples, or try a smaller "
        "--learning-rate, a smaller --max-grad-norm or --mixed-precision no",
    )


def _few(ids: Sequence[str]) -> str:
    return ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")


def _ratio(total: float, weight: float) -> float:
    return total / weight if weight else math.nan


def _norm(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), device=device)
    return torch.nn.utils.get_total_norm(gradients).to(device, torch.float32)


def _sum_over_ranks(accelerator: Accelerator, values: Sequence[Tensor | float]) -> Tensor:
    """Return the sums over ranks, (len(values),), in float64 where the device has it."""
    device = accelerator.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    stacked = torch.stack([torch.as_tensor(v, dtype=dtype, device=device).reshape(()) for v in values])
    if accelerator.num_processes == 1:
        return stacked
    total: Tensor = accelerator.reduce(stacked, reduction="sum")
    return total
