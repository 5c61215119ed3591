"""Windows and prompts as tensors: all windows of a micro-batch in one flat table, prompts with the places of their vectors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from ragtrain.data.sft.records import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ragtrain.data.compress.records import Prompted
    from ragtrain.data.sft.batches import SftBatch


class _Moved:
    """A frozen dataclass of tensors and other batches."""

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on a device."""
        moved = {
            field.name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value.to(device)
            for field in dataclasses.fields(self)  # type: ignore[arg-type] # its children are dataclasses
            if hasattr(value := getattr(self, field.name), "to")
        }
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True)
class WindowBatch(_Moved):
    """Windows as the compressor reads them, padded on the right: one row each, document by document, row by row.

    The memory vectors of a batch are numbered through it: those of the first window, then those of the next.

    Attributes:
        input_ids: (windows, tokens); the pad token where a memory token or the rank token stands.
        attention_mask: (windows, tokens) int64, 1 where a token or a memory token stands.
        place: (windows, tokens): -1 where a token stands, j where memory token j does, ``l_max`` where the rank token does.
        span: (windows, tokens): with ``pooling`` mean the stretch, from 0, that a token of the passage is in; -1 elsewhere,
            and everywhere without it. Every stretch below ``counts`` has a token.
        counts: (windows,) memory vectors of each.
        document: (windows,) which document of the batch it is a piece of, ascending.
        n_documents: documents of the batch, each with at least one window.
        rate: the compression rate that ``counts`` follow.
        tokens: tokens of passages in it, without question, marks and memory tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    place: Tensor
    span: Tensor
    counts: Tensor
    document: Tensor
    n_documents: int
    rate: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class CompressBatch(_Moved):
    """A micro-batch.

    Attributes:
        ids: of the rows in it.
        windows: of all their documents; there may be none.
        input_ids: (rows, tokens) of the generator, padded on the right; the pad token where a vector stands.
        attention_mask: (rows, tokens) int64, 1 where anything but padding stands.
        labels: (rows, tokens), -100 where nothing is trained and at the first token of every row.
        slot: (rows, tokens): -1 a token, k ≥ 0 memory vector k of the batch, -2 the task of reconstruction, -3 of continuation.
        weight: trained tokens.
        tokens: places that the generator reads, padding aside.
        predictors: (trained,) places, in rows laid end to end, where the trained tokens are predicted.
        targets: (trained,) those tokens.
        rank_targets: (documents,) float32 scores of a reranker, nan where there is none.
        full: the same rows with their passages as text; it trains the same tokens in the same order.
    """

    ids: tuple[str, ...]
    windows: WindowBatch
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    slot: Tensor
    weight: float
    tokens: int
    predictors: Tensor
    targets: Tensor
    rank_targets: Tensor
    full: SftBatch | None = None


def collate_prompts(
    prompts: Sequence[Prompted],
    ids: Sequence[str],
    windows: WindowBatch,
    pad_id: int,
    *,
    scores: Sequence[float | None] = (),
    full: SftBatch | None = None,
) -> CompressBatch:
    """Put prompts into a table, padded on the right, their vectors numbered through the batch.

    Args:
        prompts: in the order of the windows, each with as many places as its windows have vectors.
        ids: of their rows.
        windows: all their windows.
        pad_id: of the generator.
        scores: of every document of the batch; none for no targets of the rank head.
        full: the same rows with their passages as text.
    """
    shape = (len(prompts), max((len(prompt.ids) for prompt in prompts), default=1))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    slot = np.full(shape, -1, dtype=np.int64)
    vectors = 0
    for i, prompt in enumerate(prompts):
        n = len(prompt.ids)
        input_ids[i, :n], mask[i, :n] = prompt.ids, 1
        labels[i, 1:n] = prompt.labels[1:]
        slot[i, :n] = np.where(prompt.slots >= 0, prompt.slots + vectors, prompt.slots)
        vectors += prompt.vectors
    if vectors != int(windows.counts.sum()):
        raise ValueError(
            f"the prompts have places for {vectors} vectors, the windows {int(windows.counts.sum())} vectors"
        )
    trained = np.flatnonzero(labels != IGNORED)
    targets = [np.nan if score is None else score for score in scores] or [np.nan] * windows.n_documents
    return CompressBatch(
        ids=tuple(ids), windows=windows, input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(mask),
        labels=torch.from_numpy(labels), slot=torch.from_numpy(slot), weight=float(len(trained)), tokens=int(mask.sum()),
        predictors=torch.from_numpy(trained - 1), targets=torch.from_numpy(labels.reshape(-1)[trained]),
        rank_targets=torch.tensor(targets, dtype=torch.float32), full=full,
    )  # fmt: skip
