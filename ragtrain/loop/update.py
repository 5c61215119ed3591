"""One optimizer step: accumulate, exchange, measure, clip, update."""

from __future__ import annotations

import dataclasses
import functools
import math
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ragtrain.errors import DataError, NumericsError, RagtrainError
from ragtrain.loop.exchange import agree, exchange_gradients, sum_over_ranks
from ragtrain.loop.oom import Full, attempt, free
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
    """What an optimizer step needs besides its data. ``model`` and ``optimizer`` are the prepared ones.

    ``divide``: where a device is full, the step may be done again in smaller micro-batches; ``retries``: in these, or in
    another way that takes less memory.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    loss: LossFunction
    groups: Sequence[ParamGroup]
    max_grad_norm: float
    run: RunFolder
    divide: bool = False
    retries: bool = False

    @functools.cached_property
    def parameters(self) -> list[nn.Parameter]:
        """All that are trained, in the order of their groups."""
        return [p for group in self.groups for p in group.parameters if p.requires_grad]


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


def do_update(
    engine: Engine, portion: Portion, learning_rates: Mapping[str, float], frozen: Collection[str], received: int | None
) -> Update | Full:
    """Do one optimizer step, or say that a device was full: then nothing has changed but the random generators.

    The gradient is that of ``sum of losses / sum of weights`` over all micro-batches of all ranks. The summed weight is
    known before the first backward pass, so each micro-batch's loss is divided by it on its way into the gradient, and
    the gradients of the ranks add up.

    Args:
        engine: What a step needs besides its data.
        portion: This rank's micro-batches.
        learning_rates: Of each parameter group.
        frozen: Groups that are measured and then take no part: not in clipping, not in the optimizer.
        received: Signal that came to this rank.

    Raises:
        NumericsError: A loss is not finite, or a gradient is not where no scaler would take care of it. The weights
            are as they were, and ``nonfinite.json`` tells the examples.
        DataError: The step has nothing to learn from: its weights sum to 0.
    """
    accelerator = engine.accelerator
    weight = _weight(engine, portion)
    engine.optimizer.zero_grad()
    done = _accumulate(engine, portion, weight)
    if isinstance(done, Full):
        _forget(engine)
    full_with = done.examples if isinstance(done, Full) else None
    names = [] if isinstance(done, Full) else list(done.sums)
    agreed = agree(accelerator, engine.parameters, names, full_with)
    if agreed.full:
        _forget(engine)
        message = done.message if isinstance(done, Full) else "the device of another process is full"
        return Full(full_with or 0, message, agreed.full_at_one > 0)
    if isinstance(done, Full):
        raise RagtrainError(f"the processes do not agree that a device was full: {done.message}")

    exchange_gradients(accelerator, engine.parameters, agreed.used)
    own: list[Tensor | float] = [
        sum(done.losses, torch.zeros((), device=accelerator.device)),
        sum(len(batch.ids) for batch in portion.batches),
        float(received == signal.SIGINT),
        float(received == signal.SIGTERM),
    ]
    own += [value for name in agreed.names for value in done.sums.get(name, (0.0, 0.0))]
    figures = sum_over_ranks(accelerator, own)
    norms = _norms(engine, frozen)
    # With one process, the one place where the host waits for the device.
    values = torch.cat([figures, torch.stack(norms).to(figures.dtype)]).tolist()
    loss, examples, interrupts, terminations = values[:4]
    part_values, norm_values = values[4 : len(own)], values[len(own) :]
    group_norms = {group.name: norm for group, norm in zip(engine.groups, norm_values, strict=True)}
    grad_norm = math.hypot(*(norm for name, norm in group_norms.items() if name not in frozen))

    if not math.isfinite(loss) or (not math.isfinite(grad_norm) and accelerator.scaler is None):
        _refuse(engine, portion, done.losses, loss, grad_norm)
    skipped = _apply(engine, learning_rates, grad_norm)
    pairs = zip(agreed.names, part_values[::2], part_values[1::2], strict=True)
    return Update(
        loss=loss / weight,
        weight=weight,
        parts={name: _ratio(total, count) for name, total, count in pairs},
        examples=round(examples),
        grad_norm=grad_norm,
        group_grad_norms=group_norms,
        skipped=skipped,
        stop=signal.SIGINT if interrupts else signal.SIGTERM if terminations else None,
    )


@dataclasses.dataclass(frozen=True)
class _Sums:
    """The losses of a rank's micro-batches, and the sum and weight of each figure beside them."""

    losses: list[Tensor]
    sums: dict[str, list[Tensor | float]]


def _weight(engine: Engine, portion: Portion) -> float:
    """Return what the step's summed loss is divided by, over all ranks."""
    own = float(sum(batch.weight for batch in portion.batches))
    weight = float(sum_over_ranks(engine.accelerator, [own])[0])
    if not weight > 0:
        ids = [i for batch in portion.batches for i in batch.ids]
        raise DataError(f"a step has no weight ({weight}): every target of its examples is empty: {_few(ids)}")
    return weight


def _accumulate(engine: Engine, portion: Portion, weight: float) -> _Sums | Full:
    """Add the gradients of a rank's micro-batches; where the device is full and that has a remedy, stop and say so."""
    result = _Sums([], {})
    for batch in portion.batches:
        output = attempt(_micro_batch, engine, batch, weight) if engine.retries else _micro_batch(engine, batch, weight)
        if isinstance(output, str):
            return Full(len(batch.ids), output)
        result.losses.append(output.total)
        for name, pair in output.parts.items():
            so_far = result.sums.setdefault(name, [0.0, 0.0])
            result.sums[name] = [a + b for a, b in zip(so_far, pair, strict=True)]
    return result


def _micro_batch(engine: Engine, batch: Batch, weight: float) -> LossOutput:
    """Add the gradient of one micro-batch; return its figures, from which no gradient flows any more."""
    output = _loss(engine, batch)
    if not math.isclose(output.weight, batch.weight, rel_tol=1e-6):
        raise RagtrainError(f"the loss has weight {output.weight}, its batch said {batch.weight}")
    engine.accelerator.backward(output.total / weight)
    parts = {name: (_detached(total), _detached(count)) for name, (total, count) in output.parts.items()}
    return LossOutput(output.total.detach(), output.weight, parts)


def _detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value


def _forget(engine: Engine) -> None:
    """Free the gradients of a step that is not completed."""
    engine.optimizer.zero_grad()
    free(engine.accelerator.device)


def _norms(engine: Engine, frozen: Collection[str]) -> list[Tensor]:
    """Return the gradient norm of each group; frozen groups have no gradients afterwards, so nothing acts on them."""
    scaler, device = engine.accelerator.scaler, engine.accelerator.device
    norms = {}
    for group in engine.groups:
        if group.name in frozen:
            norm = _norm([p.grad for p in group.parameters if p.grad is not None], device)
            # Before the scaler looks at gradients: an overflow here must not make it skip the step.
            norms[group.name] = norm if scaler is None else norm / scaler.get_scale()
            for parameter in group.parameters:
                parameter.grad = None
    if scaler is not None:
        scaler.unscale_(engine.optimizer.optimizer)
    for group in engine.groups:
        if group.name not in frozen:
            norms[group.name] = _norm([p.grad for p in group.parameters if p.grad is not None], device)
    return [norms[group.name] for group in engine.groups]


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
