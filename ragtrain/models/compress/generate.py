"""Answers written from memory: vectors first, then prompts that hold them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from ragtrain.errors import DataError, OutOfMemoryError
from ragtrain.models.compress.model import Memory, evaluating
from ragtrain.models.generate import Generated, continue_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

    from ragtrain.models.compress.model import CompressModel
    from ragtrain.models.compress.rows import WindowRows

__all__ = ["CompressPrompt", "Generated", "generate", "memories", "vectors_of"]

log = logging.getLogger("ragtrain")

_Windows = TypeVar("_Windows", bound="WindowRows")


@dataclasses.dataclass(frozen=True, slots=True)
class CompressPrompt:
    """A prompt with places for vectors, and the vectors that go there.

    Attributes:
        ids: its tokens; at a vector's place any id.
        slots: as many: -1 at a token, k >= 0 at this prompt's vector k, -2 and -3 at the tasks, see ``MemoryRows``.
        vectors: (n, width) its own, on any device; none for a prompt of text.
    """

    ids: Sequence[int]
    slots: Sequence[int]
    vectors: Tensor | None = None


def generate(
    model: CompressModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[CompressPrompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Continue prompts greedily, each up to an end token or the limit; see ``ragtrain.models.generate.generate``.

    Args:
        model: compressor and generator; only the generator computes here.
        tokenizer: the generator's.
        prompts: with their vectors.
        max_new_tokens: most tokens written after a prompt.
        batch_size: prompts at a time; halved where a batch does not fit on the device.
        advance: called with the number of prompts that are done after each batch.

    Raises:
        ConfigError: a prompt fills all positions that the generator has.
        DataError: a prompt has not the vectors that it has places for.
        OutOfMemoryError: one prompt alone does not fit on the device.
    """
    for number, prompt in enumerate(prompts):
        _check(number, prompt)

    def rows(places: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        return padded(model, [prompts[place] for place in places])

    lengths = [len(prompt.ids) for prompt in prompts]
    return continue_rows(
        model.generator, tokenizer, lengths, rows, max_new_tokens=max_new_tokens, batch_size=batch_size,
        advance=None if advance is None else lambda written: advance(len(written)),
    )  # fmt: skip


@torch.no_grad()
def padded(model: CompressModel, prompts: Sequence[CompressPrompt]) -> tuple[dict[str, Tensor], Tensor]:
    """Return prompts as the generator reads them, padded on the left: ``inputs_embeds`` and the (rows, longest) mask."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    slots, mask = torch.full_like(ids, -1), torch.zeros_like(ids)
    vectors, first = [], 0
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.ids)
        own = torch.as_tensor(prompt.slots, dtype=torch.long)
        ids[row, start:] = torch.as_tensor(prompt.ids, dtype=torch.long)
        slots[row, start:] = torch.where(own >= 0, own + first, own)
        mask[row, start:] = 1
        if prompt.vectors is not None:
            vectors.append(prompt.vectors.to(model.device, non_blocking=True))
            first += len(prompt.vectors)
    table = torch.cat(vectors) if vectors else model.tasks[:0]
    ids, slots, mask = (tensor.to(model.device) for tensor in (ids, slots, mask))
    return {"inputs_embeds": model.embed(ids, slots, table)}, mask


def vectors_of(model: CompressModel, batches: Iterable[WindowRows]) -> Tensor:
    """Return (M, width) vectors of all windows of all batches, in their order, on the CPU.

    A batch that does not fit on the device is cut in half; see ``memories``.
    """
    found = [memory.vectors for memory in memories(model, batches)]
    return torch.cat(found) if found else model.tasks.detach()[:0].cpu()


def memories(model: CompressModel, batches: Iterable[WindowRows]) -> list[Memory]:
    """Return the memory of each batch of windows, on the CPU, without gradients and without dropout.

    Raises:
        OutOfMemoryError: one window alone does not fit on the device.
    """
    found = []
    with torch.no_grad(), evaluating(model.compressor), evaluating(model.connector):
        for windows in batches:
            parts = _fitting(model, windows)
            scores = None
            if all(part.scores is not None for part in parts):
                # A passage whose windows are in another half has minus infinity here.
                scores = torch.stack([cast("Tensor", part.scores) for part in parts]).amax(0).cpu()
            found.append(Memory(torch.cat([part.vectors for part in parts]).cpu(), scores))
    return found


def _fitting(model: CompressModel, windows: WindowRows) -> list[Memory]:
    """Return the memory of windows, in as many pieces as the device needs."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return [model.compress(_on(windows, model.device))]
    n = len(windows.input_ids)
    if n < 2:
        raise OutOfMemoryError(f"a window of {windows.input_ids.shape[1]} tokens does not fit on the device by itself",
                               hint="give smaller windows (--num-memory-tokens, --compression-rate)")  # fmt: skip
    torch.cuda.empty_cache()
    log.warning("%d windows do not fit on the device at once: going on with %d", n, n // 2)
    return [part for rows in (slice(0, n // 2), slice(n // 2, n)) for part in _fitting(model, cut(windows, rows))]


def cut(windows: _Windows, rows: slice) -> _Windows:
    """Return some of the windows of a batch; its passages keep their numbers."""
    batch = cast("Any", windows)
    n = len(windows.input_ids)
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    kept = {name: v[rows] for name, v in fields.items() if isinstance(v, Tensor) and v.dim() and len(v) == n}
    return cast("_Windows", dataclasses.replace(batch, **kept))


def _on(windows: WindowRows, device: torch.device) -> WindowRows:
    batch = cast("Any", windows)
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return cast("WindowRows", dataclasses.replace(
        batch, **{name: value.to(device) for name, value in fields.items() if isinstance(value, Tensor)}
    ))  # fmt: skip


def _check(number: int, prompt: CompressPrompt) -> None:
    given = 0 if prompt.vectors is None else len(prompt.vectors)
    wanted = max((int(slot) for slot in prompt.slots), default=-1) + 1
    if len(prompt.ids) != len(prompt.slots) or wanted > given:
        raise DataError(
            f"prompt {number} has {len(prompt.ids)} tokens, {len(prompt.slots)} slots up to vector {wanted - 1}, and "
            f"{given} vectors"
        )
