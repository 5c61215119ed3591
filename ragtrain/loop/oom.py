"""A full device: the step is done again in smaller micro-batches, or the error names what to change.

The gradient of a step is that of a sum over examples, divided by a weight that is known beforehand. So its micro-batches
can be cut in half without changing it. What does change: each half draws its own dropout masks, as any other cutting of
the same examples would; with dropout the gradient is another draw of the same expectation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

from ragtrain.errors import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from accelerate import Accelerator

    from ragtrain.loop.settings import Training

P = ParamSpec("P")
R = TypeVar("R")

_SIGNS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@dataclasses.dataclass(frozen=True)
class Full:
    """A device was full in a micro-batch; gradients and activations of the step are freed.

    Attributes:
        examples: Of the micro-batch; 0 where it was another process's.
        message: First line of what was raised.
        at_one: Some process was full with a single example: smaller micro-batches are not to be had.
    """

    examples: int
    message: str
    at_one: bool = False


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or the host, is full; libraries on a GPU say so in words of theirs."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def attempt(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | str:
    """Return what a function returns, or where memory ran out, the first line of the error.

    The error itself is let go of: its traceback holds every tensor that was alive in the frames it came through.
    """
    try:
        return function(*args, **kwargs)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return first_line(error)


def free(device: torch.device) -> None:
    """Give back what nothing refers to any more: reference cycles first, then the allocator's cache."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; an allocation that failed may say nothing."""
    return next(iter(str(error).splitlines()), "") or "allocation failed"


def cut(indices: Sequence[int], halvings: int) -> list[Sequence[int]]:
    """Return a micro-batch in ``2 ** halvings`` pieces of nearly the same size, or in its single examples."""
    pieces = max(1, min(2**halvings, len(indices)))
    size, more = divmod(len(indices), pieces)
    starts = [number * size + min(number, more) for number in range(pieces + 1)]
    return [indices[start:end] for start, end in itertools.pairwise(starts)]


def error_of(training: Training, accelerator: Accelerator, message: str, size: int) -> OutOfMemoryError:
    """Return the error that names what to change, for micro-batches of ``size`` examples."""
    flags = list(training.memory_flags)
    accumulation, configured = training.config.gradient_accumulation_steps, training.config.batch_size
    because = ""
    if training.indivisible:
        because = f"; micro-batches were not halved: {training.indivisible}"
    if size > 1:
        half = size // 2
        more = max(1, accumulation * configured // half)
        same = "another loss, with fewer negatives" if training.indivisible else "the same step"
        flags.insert(0, f"--batch-size {half} --gradient-accumulation-steps {more} ({same})")
    if size > 1 and not training.indivisible and training.config.on_out_of_memory == "stop":
        flags.append("--on-out-of-memory halve")
    if accelerator.mixed_precision == "no":
        flags.append("--mixed-precision bf16")
    examples = "1 example" if size == 1 else f"{size} examples"
    return OutOfMemoryError(
        f"{accelerator.device} has no memory left for micro-batches of {examples}: {message}{because}",
        hint="try " + ", or ".join(flags),
    )


@contextlib.contextmanager
def memory_explained(training: Training, accelerator: Accelerator, size: Callable[[], int]) -> Iterator[None]:
    """Turn a full device into an error that names what to change; ``size`` tells the examples of a micro-batch."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as cause:
        if not is_out_of_memory(cause):
            raise
        raise error_of(training, accelerator, first_line(cause), size()) from cause
