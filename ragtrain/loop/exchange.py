"""What the processes of a run tell each other in a step: figures, whether a device is full, gradients.

Gradients are exchanged here and not by DistributedDataParallel, whose exchange happens inside a backward pass: a process
whose device is full in that pass would leave the others waiting in it for good. Here every process computes its
micro-batches by itself; then all agree on whether all of them succeeded; then gradients are exchanged or the step is
done again. What it costs: the exchange no longer overlaps with the step's last backward pass. What it saves: the second
copy of all gradients that DistributedDataParallel keeps.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ragtrain.errors import RagtrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from accelerate import Accelerator

BUCKET_BYTES = 64 * 2**20
"""Gradients are copied together to this size before they are summed: few large messages, little additional memory."""
HASH_BITS = 24
"""Of a name list: its square is exact in float64, summed over many thousand processes."""


def check_same(values: Mapping[str, object]) -> None:
    """Raise, on every process, unless all of them have the same values: a difference would leave some waiting later.

    Raises:
        RagtrainError: Naming what differs.
    """
    seen: list[dict[str, object]] = gather_object([dict(values)])
    different = [name for name in values if any(each[name] != seen[0][name] for each in seen)]
    if different:
        raise RagtrainError(
            f"the processes of this run have different {' and '.join(different)}",
            hint="every process must read the same files, with the same configuration and seed",
        )


def share_weights(model: nn.Module) -> None:
    """Give every process the weights and buffers of the first one."""
    for tensor in (*model.parameters(), *model.buffers()):
        data = tensor.detach()
        whole = data.contiguous()
        # gloo has no booleans
        torch.distributed.broadcast(whole.view(torch.uint8) if whole.dtype == torch.bool else whole, src=0)
        if whole is not data:
            data.copy_(whole)


def sum_over_ranks(accelerator: Accelerator, values: Sequence[Tensor | float]) -> Tensor:
    """Return the sums over ranks, (len(values),), in float64 where the device has it."""
    device = accelerator.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    stacked = torch.stack([torch.as_tensor(v, dtype=dtype, device=device).reshape(()) for v in values])
    if accelerator.num_processes == 1:
        return stacked
    total: Tensor = accelerator.reduce(stacked, reduction="sum")
    return total


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What all processes know after their micro-batches.

    Attributes:
        full: Processes whose device was full.
        full_at_one: Those of them where it was full with a single example.
        used: For each parameter, whether any process has a gradient of it.
        names: The figures beside the loss, of all processes.
    """

    full: int
    full_at_one: int
    used: Sequence[bool]
    names: Sequence[str]


def agree(
    accelerator: Accelerator, parameters: Sequence[nn.Parameter], names: Sequence[str], full_with: int | None
) -> Agreement:
    """Tell the others how this process's micro-batches went, and learn how theirs did.

    Args:
        accelerator: Of the run.
        parameters: All that are trained, in the same order everywhere.
        names: The figures beside the loss that this process has.
        full_with: Number of examples with which the device was full, None where it was not.
    """
    used = [p.grad is not None for p in parameters]
    if accelerator.num_processes == 1:
        return Agreement(int(full_with is not None), int(full_with == 1), used, sorted(names))
    # Equal for all processes exactly where mean and mean square of a hash are those of each.
    own = zlib.crc32("\n".join(sorted(names)).encode()) >> (32 - HASH_BITS)
    told = [float(full_with is not None), float(full_with == 1), own, own * own, *map(float, used)]
    full, at_one, total, squares, *counts = sum_over_ranks(accelerator, told).tolist()
    world = accelerator.num_processes
    shared = sorted(names)
    if not full and (total != world * own or squares != world * own * own):
        shared = sorted(set(gather_object(list(names))))
    return Agreement(round(full), round(at_one), [count > 0 for count in counts], shared)


def exchange_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter], used: Sequence[bool]) -> None:
    """Replace each gradient by its sum over processes; a parameter that none of them used keeps none."""
    if accelerator.num_processes == 1:
        return
    gradients = []
    for parameter, anywhere in zip(parameters, used, strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            torch.distributed.all_reduce(bucket[0])
            continue
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients of one kind together, up to ``BUCKET_BYTES``, in the same order on every process."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        n_bytes = gradient.numel() * gradient.element_size()
        if bucket and (size + n_bytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += n_bytes
    if bucket:
        yield bucket
