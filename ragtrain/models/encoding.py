"""Texts to vectors in bulk: tokens without padding, batches of equal length, one arithmetic on each device.

Three steps, so that the first two can run in another thread than the third: ``ragged_tokens`` (texts to token ids, one
after another), ``token_batches`` (sorted by number of tokens and cut at a budget of tokens), ``encode_batches``.
"""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ragtrain.models.packed import packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

Precision = Literal["float32", "float16", "bfloat16"]

#: Tokens of a batch on a CPU. What a layer writes then stays in a cache of a few MB until the next one reads it; larger
#: batches are slower there (docs/benchmarks.md), smaller ones too once a layer has less work than Python around it.
CPU_TOKENS = 1024
#: Tokens from which laying out the weights for oneDNN pays: it takes about as long as a few hundred tokens.
WORTH_PACKING = 4 * CPU_TOKENS


@dataclasses.dataclass(frozen=True)
class RaggedTokens:
    """Token ids of texts, one text after another: text i has ``ids[bounds[i] : bounds[i + 1]]``.

    Attributes:
        ids: (tokens,) int32.
        segments: (tokens,) int32, 0 in a first and 1 in a second text, or None where texts have one segment.
        bounds: (texts + 1,) int64.
    """

    ids: np.ndarray
    segments: np.ndarray | None
    bounds: np.ndarray


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of ``TokenBatches``: positions in ``order`` and in the flat arrays, and the shape there."""

    first: int
    rows: int
    offset: int
    longest: int
    padded: bool


@dataclasses.dataclass(frozen=True)
class TokenBatches:
    """Texts as the network reads them: longest first, batch after batch in one flat array, padded where they must be.

    Attributes:
        order: (texts,) which text stands where; ``vectors[order[i]]`` is computed i-th.
        lengths: (texts,) int32 tokens of each, in that order.
        ids: flat int32; batch b is ``ids[b.offset :][: b.rows * b.longest]``.
        segments: the same of segments, or None.
        batches: where they are.
    """

    order: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    segments: np.ndarray | None
    batches: list[Batch]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def padding(self) -> int:
        """Padding tokens among ``ids``."""
        return len(self.ids) - int(self.lengths.sum())


def ragged_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_tokens: int
) -> RaggedTokens:
    """Tokenize texts, or pairs of texts as two segments, in one call and without padding."""
    if not texts:
        return RaggedTokens(np.empty(0, np.int32), None, np.zeros(1, np.int64))
    encoded = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        padding=False,
        truncation="longest_first",
        max_length=max_tokens,
        return_attention_mask=False,
        return_token_type_ids=pairs is not None,
    )
    bounds = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in encoded["input_ids"]], out=bounds[1:])
    segments = None if pairs is None else _flat(encoded["token_type_ids"], int(bounds[-1]))
    return RaggedTokens(_flat(encoded["input_ids"], int(bounds[-1])), segments, bounds)


def _flat(rows: Sequence[Sequence[int]], count: int) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=count)


def token_budget(tokens: int, device: torch.device) -> int:
    """Return how many tokens a batch may have on a device where memory allows ``tokens``."""
    return min(tokens, CPU_TOKENS) if device.type == "cpu" else tokens


def token_batches(tokens: RaggedTokens, budget: int, *, pad_token_id: int) -> TokenBatches:
    """Sort texts by their number of tokens, longest first, and cut them into batches of at most ``budget`` tokens.

    A batch that is half full ends where the length changes: with enough texts few batches need padding, and the mask
    that comes with it. A text longer than the budget is a batch of its own.
    """
    lengths = np.diff(tokens.bounds)
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    batches, ids, segments, offset = [], [], [], 0
    for first, last in _cuts(lengths, budget):
        longest = int(lengths[first])
        columns = np.arange(longest)
        inside = columns < lengths[first:last, None]
        # Padding reads the text's last token, and is overwritten.
        places = tokens.bounds[order[first:last], None] + np.minimum(columns, lengths[first:last, None] - 1)
        ids.append(np.where(inside, tokens.ids[places], pad_token_id).astype(np.int32).ravel())
        if tokens.segments is not None:
            segments.append(np.where(inside, tokens.segments[places], 0).astype(np.int32).ravel())
        batches.append(Batch(first, last - first, offset, longest, not inside.all()))
        offset += len(ids[-1])
    return TokenBatches(
        order,
        lengths.astype(np.int32),
        np.concatenate(ids) if ids else np.empty(0, np.int32),
        np.concatenate(segments) if segments else None,
        batches,
    )


def _cuts(lengths: np.ndarray, budget: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of batches of texts whose lengths fall."""
    changes = np.flatnonzero(np.diff(lengths)) + 1
    first = 0
    while first < len(lengths):
        longest = max(int(lengths[first]), 1)
        last = min(first + max(1, budget // longest), len(lengths))
        # The first change of length behind half the budget, and before the whole of it.
        after = changes[np.searchsorted(changes, first + max(1, budget // (2 * longest))) :]
        if len(after) and after[0] < last:
            last = int(after[0])
        yield first, last
        first = last


def encode_batches(
    encoder: nn.Module,
    batches: TokenBatches,
    *,
    dim: int,
    precision: Precision = "float32",
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Return (texts, dim) float32 vectors in the order of the texts.

    On a GPU all tokens go there at once and all vectors come back at once: nothing waits in between.

    Args:
        encoder: a ``TextEncoder`` in evaluation mode; no gradient is kept.
        batches: what it reads.
        dim: length of a vector.
        precision: arithmetic of the matrix products on a GPU; on a CPU it is float32.
        progress: called with the number of texts computed since the last call.
    """
    device = next(encoder.parameters()).device
    on_gpu = device.type != "cpu"
    vectors = torch.empty((len(batches), dim), dtype=torch.float32, device=device)
    ids, segments = _sent(batches.ids, device), None if batches.segments is None else _sent(batches.segments, device)
    order, lengths = _sent(batches.order, device), _sent(batches.lengths, device)
    arithmetic = (
        torch.autocast(device.type, dtype=getattr(torch, precision))
        if on_gpu and precision != "float32"
        else nullcontext()
    )
    layers = packed(encoder) if not on_gpu and len(batches.ids) >= WORTH_PACKING else nullcontext(0)
    with torch.no_grad(), arithmetic, layers:
        for batch in batches.batches:
            stop, shape = batch.offset + batch.rows * batch.longest, (batch.rows, batch.longest)
            rows = slice(batch.first, batch.first + batch.rows)
            mask = None
            if batch.padded:
                mask = (torch.arange(batch.longest, device=device) < lengths[rows, None]).long()
            inputs = {"input_ids": ids[batch.offset : stop].view(shape), "attention_mask": mask}
            if segments is not None:
                inputs["token_type_ids"] = segments[batch.offset : stop].view(shape)
            vectors[order[rows]] = encoder(**inputs).float()
            if progress is not None:
                progress(batch.rows)
    return vectors.cpu().numpy()


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    """Put an array on a device, on a GPU without waiting for it."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pool(states: Tensor, mask: Tensor, pooling: str | None) -> Tensor:
    """Return (batch, dim) float32 of (batch, tokens, dim) states; padding may be on either side."""
    states, rows = states.float(), torch.arange(len(states), device=states.device)
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == "cls":
        return states[rows, mask.int().argmax(dim=1)]
    positions = torch.arange(mask.shape[1], device=mask.device)
    return states[rows, (mask * positions).argmax(dim=1)]
