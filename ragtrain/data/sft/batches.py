"""Rows as tensors: each in a row of its own, several behind each other, or as branches of one beginning.

Labels follow the usual shift: what the network computes at token t predicts token t + 1. In every form the same tokens
are predicted from the same ones before them, so that loss and gradients are those of separate rows.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch

from ragtrain.data.sft.packing import SharedGroup, best_fit_decreasing, shared_groups
from ragtrain.data.sft.records import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ragtrain.data.sft.records import Encoded


@dataclasses.dataclass(frozen=True)
class SftBatch:
    """A micro-batch.

    Attributes:
        ids: of the samples in it.
        input_ids: (rows, tokens).
        labels: (rows, tokens), -100 where nothing is trained and at the first token of every sample.
        attention_mask: (rows, 1, tokens, tokens) bool, True where the third's token may see the fourth's; None where every
            token sees what is before it in its own sample.
        position_ids: (rows, tokens), or None where they count from 0 in each row.
        weight: trained tokens.
        tokens: tokens that the network reads, padding aside.
        predictors: (trained,) places, in rows laid end to end, where the trained tokens are predicted.
        targets: (trained,) those tokens.
    """

    ids: tuple[str, ...]
    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    weight: float
    tokens: int
    predictors: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> SftBatch:
        """Return the batch with its tensors on a device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return dataclasses.replace(self, **moved)  # type: ignore[arg-type] # each under its own name


def collate_rows(encoded: Sequence[Encoded], ids: Sequence[str], pad_id: int) -> SftBatch:
    """Put each sample into a row of its own, padded on the right; samples without tokens are left out.

    There is no mask: no token sees what comes after it, so that padding on the right changes nothing before it. Without
    one, attention takes its fastest way, which skips the half of the products that lies in the future.
    """
    rows = [row for row in encoded if len(row.ids)]
    # A micro-batch that lost all its rows is one token that nothing is learnt from.
    table = _Table(len(rows), max((len(row.ids) for row in rows), default=0), pad_id)
    for i, row in enumerate(rows):
        table.put(row, i, 0)
    return table.batch(ids, None, None)


def collate_packed(encoded: Sequence[Encoded], ids: Sequence[str], capacity: int, pad_id: int) -> SftBatch:
    """Fill rows of at most ``capacity`` tokens with whole samples, padded to the longest row.

    Positions begin anew with each sample, and with the padding. There is no mask on purpose: transformers reads from
    the positions where a sample begins, and only does so without a mask and without a cache of keys and values.
    """
    kept = [row for row in encoded if len(row.ids)]
    lengths = [len(row.ids) for row in kept]
    bins = best_fit_decreasing(lengths, capacity)
    table = _Table(len(bins), max((sum(lengths[j] for j in members) for members in bins), default=0), pad_id)
    positions = np.zeros(table.ids.shape, dtype=np.int64)
    for i, members in enumerate(bins):
        place = 0
        for j in members:
            table.put(kept[j], i, place)
            positions[i, place : place + lengths[j]] = np.arange(lengths[j])
            place += lengths[j]
        positions[i, place:] = np.arange(positions.shape[1] - place)
    return table.batch(ids, None, torch.from_numpy(positions))


def collate_shared(
    encoded: Sequence[Encoded], ids: Sequence[str], pad_id: int, *, capacity: int | None = None
) -> SftBatch:
    """Read the common beginning of samples once: a row is that beginning and behind it the rest of each sample.

    A token sees the beginning and its own branch up to itself, and has the position that it has in its own sample. So
    every branch computes what its sample would compute alone (tree attention). Samples of which no two begin alike are
    rows without a mask.

    Args:
        encoded: samples; those without tokens are left out.
        ids: of the samples.
        pad_id: token of the padding.
        capacity: tokens of a row, which then holds as many groups as fit; without it, each group is a row.
    """
    lengths = [len(row.ids) for row in encoded]
    groups = shared_groups(encoded, most_tokens=capacity)
    if capacity is None and all(len(group.members) == 1 for group in groups):
        return collate_rows(encoded, ids, pad_id)
    sizes = [group.tokens(lengths) for group in groups]
    alone = [[number] for number in range(len(groups))]
    bins = alone if capacity is None else best_fit_decreasing(sizes, max([capacity, *sizes]))
    table = _Table(len(bins), max((sum(sizes[j] for j in members) for members in bins), default=0), pad_id)
    # Of each token: the part it is in, the part that its tree begins with, its position. Padding is part 0.
    part, root = (np.zeros(table.ids.shape, dtype=np.int16) for _ in range(2))
    positions = np.zeros(table.ids.shape, dtype=np.int64)
    for i, members in enumerate(bins):
        place, number = 0, 1
        for j in members:
            first_part = number
            for row, first in _parts(groups[j], encoded):
                end = place + len(row.ids)
                table.put(row, i, place)
                part[i, place:end], root[i, place:end] = number, first_part
                positions[i, place:end] = np.arange(first, first + len(row.ids))
                place, number = end, number + 1
    return table.batch(ids, _tree_mask(part, root), torch.from_numpy(positions))


def _parts(group: SharedGroup, encoded: Sequence[Encoded]) -> list[tuple[Encoded, int]]:
    """Return the common beginning of a group and the rest of each member, with the position of their first tokens."""
    rows, n = [encoded[i] for i in group.members], group.prefix
    beginning = dataclasses.replace(rows[0], ids=rows[0].ids[:n], labels=rows[0].labels[:n])
    rest = [dataclasses.replace(row, ids=row.ids[n:], labels=row.labels[n:]) for row in rows]
    return [(beginning, 0), *((row, n) for row in rest)]


def _tree_mask(part: np.ndarray, root: np.ndarray) -> Tensor:
    """Return (rows, 1, tokens, tokens) bool: True where the third dimension's token may see the fourth's.

    Args:
        part: (rows, tokens) number of the beginning or branch that a token is in.
        root: (rows, tokens) number of the beginning of its tree.
    """
    seen = torch.from_numpy(part)[:, None, :]
    own, first = torch.from_numpy(part)[:, :, None], torch.from_numpy(root)[:, :, None]
    return ((seen == own) | (seen == first)).tril_()[:, None]


class _Table:
    """Rows that are being filled."""

    def __init__(self, rows: int, tokens: int, pad_id: int) -> None:
        shape = (max(rows, 1), max(tokens, 1))
        self.ids = np.full(shape, pad_id, dtype=np.int64)
        self.labels = np.full(shape, IGNORED, dtype=np.int64)
        self.tokens = 0

    def put(self, row: Encoded, i: int, place: int) -> None:
        """Put a sample, or a part of one, into a row; its first token is predicted by nothing."""
        n = len(row.ids)
        self.ids[i, place : place + n] = row.ids
        self.labels[i, place + 1 : place + n] = row.labels[1:]
        self.tokens += n

    def batch(self, ids: Sequence[str], mask: Tensor | None, positions: Tensor | None) -> SftBatch:
        """Return the filled rows as tensors."""
        # The first column is never trained, so that the place before a trained token is in the same row.
        trained = np.flatnonzero(self.labels != IGNORED)
        return SftBatch(
            ids=tuple(ids), input_ids=torch.from_numpy(self.ids), labels=torch.from_numpy(self.labels),
            attention_mask=mask, position_ids=positions, weight=float(len(trained)), tokens=self.tokens,
            predictors=torch.from_numpy(trained - 1), targets=torch.from_numpy(self.labels.reshape(-1)[trained]),
        )  # fmt: skip
