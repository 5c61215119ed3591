"""Samples as micro-batches: which ones, in what order, and how they share a sequence.

Everything here is a function of (seed, epoch), so that a resumed run, or one on another number of devices, meets the same
batches. Where the passages of a row are drawn anew each epoch (RAFT), its tokens are those of that epoch.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
from typing import TYPE_CHECKING

import numpy as np

from ragtrain.data.sft.batches import collate_packed, collate_rows, collate_shared
from ragtrain.data.sft.packing import SharedGroup, best_fit_decreasing, shared_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragtrain.data.sft.batches import SftBatch
    from ragtrain.data.sft.contexts import ContextMaker
    from ragtrain.data.sft.prompts import Prompter
    from ragtrain.data.sft.records import Encoded, Sample

#: Micro-batches that are sorted by length together: long enough to save padding, short enough to stay random.
BUCKET_BATCHES = 32
#: Rows that are packed together: enough of them for full sequences.
PACKED_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """How samples become micro-batches.

    Attributes:
        batch_size: samples in a micro-batch; with ``capacity``, sequences.
        seed: of the order.
        shuffle: draw the order anew each epoch, instead of that of the file.
        length_grouping: put samples of similar length into a micro-batch.
        capacity: longest sequence that is filled with several samples; 0 keeps each in one of its own.
        shared_context: samples with a common beginning are one sequence that branches.
    """

    batch_size: int = 8
    seed: int = 0
    shuffle: bool = True
    length_grouping: bool = True
    capacity: int = 0
    shared_context: bool = False


@dataclasses.dataclass(frozen=True)
class EpochRows:
    """The samples of an epoch and their tokens; ``usable`` are those that have anything to learn."""

    samples: Sequence[Sample]
    encoded: Sequence[Encoded]
    usable: np.ndarray
    lengths: np.ndarray


class SftSource:
    """Micro-batches of samples, in an order that depends on the seed and the epoch only."""

    def __init__(self, maker: ContextMaker, prompter: Prompter, settings: SourceSettings, pad_id: int) -> None:
        self.maker, self.prompter, self.settings, self.pad_id = maker, prompter, settings, pad_id
        self._rows: collections.OrderedDict[int, EpochRows] = collections.OrderedDict()
        self._plans: dict[int, list[list[int]]] = {}
        self._lock = threading.Lock()  # plans are asked for by the loop, batches by the thread that collates

    def rows(self, epoch: int) -> EpochRows:
        """Return the samples of an epoch; where no epoch differs from another, they are made once."""
        epoch = 0 if self.maker.static else epoch
        with self._lock:
            if epoch not in self._rows:
                samples = self.maker.samples(epoch)
                encoded = self.prompter.encode(samples)
                lengths = np.array([len(each.ids) for each in encoded], dtype=np.int64)
                usable = np.array([i for i, each in enumerate(encoded) if each.trained], dtype=np.int64)
                self._rows[epoch] = EpochRows(samples, encoded, usable, lengths)
                while len(self._rows) > 2:  # the epoch in use, and the one whose first batch is collated already
                    self._rows.popitem(last=False)
            return self._rows[epoch]

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the micro-batches of an epoch as places of samples."""
        if epoch not in self._plans:
            self._plans = {epoch: list(self._planned(epoch)), **dict(itertools.islice(self._plans.items(), 1))}
        return self._plans[epoch]

    def _planned(self, epoch: int) -> Iterator[list[int]]:
        rows, settings = self.rows(epoch), self.settings
        if settings.shared_context:
            units = [list(group.members) for group in self.groups(epoch)]
        else:
            units = [[int(place)] for place in rows.usable]
        if settings.shuffle:
            order = np.random.default_rng((settings.seed, epoch)).permutation(len(units))
            units = [units[i] for i in order]
        batches = self._packed(rows, units) if settings.capacity else self._grouped(rows, units)
        if settings.shuffle:
            batches = [batches[i] for i in np.random.default_rng((settings.seed, epoch, 1)).permutation(len(batches))]
        yield from batches

    def groups(self, epoch: int) -> list[SharedGroup]:
        """Return samples that begin alike, at most a micro-batch of them together."""
        rows = self.rows(epoch)
        usable = [int(i) for i in rows.usable]
        groups = shared_groups([rows.encoded[i] for i in usable], most_members=self.settings.batch_size)
        return [SharedGroup(tuple(usable[i] for i in group.members), group.prefix) for group in groups]

    def _grouped(self, rows: EpochRows, units: list[list[int]]) -> list[list[int]]:
        """Fill micro-batches with whole units; those of similar length together where that is wanted."""
        size, width = self.settings.batch_size, self.settings.batch_size * BUCKET_BATCHES
        batches: list[list[int]] = []
        for bucket in _portions(units, width):
            if self.settings.length_grouping:
                bucket = sorted(bucket, key=lambda unit: int(rows.lengths[unit].max()))
            batches += [[i for unit in some for i in unit] for some in _portions(bucket, size)]
        return batches

    def _packed(self, rows: EpochRows, units: list[list[int]]) -> list[list[int]]:
        """Fill sequences with samples, best fit first, and micro-batches with sequences."""
        flat = [i for unit in units for i in unit]
        bins: list[list[int]] = []
        for start in range(0, len(flat), PACKED_ROWS):
            some = flat[start : start + PACKED_ROWS]
            lengths = [int(rows.lengths[i]) for i in some]
            bins += [[some[i] for i in each] for each in best_fit_decreasing(lengths, self.settings.capacity)]
        if self.settings.shuffle:
            seed = (self.settings.seed, len(bins))
            bins = [bins[i] for i in np.random.default_rng(seed).permutation(len(bins))]
        size = self.settings.batch_size
        return [[i for each in bins[start : start + size] for i in each] for start in range(0, len(bins), size)]

    def ordered(self) -> list[list[int]]:
        """Return micro-batches that visit every usable sample once, longest first: for evaluation."""
        rows, size = self.rows(0), self.settings.batch_size
        order = rows.usable[np.argsort(-rows.lengths[rows.usable], kind="stable")]
        return [order[i : i + size].tolist() for i in range(0, len(order), size)]

    def collate(self, indices: Sequence[int], epoch: int) -> SftBatch:
        """Assemble one micro-batch."""
        rows, settings = self.rows(epoch), self.settings
        encoded, ids = [rows.encoded[i] for i in indices], [rows.samples[i].id for i in indices]
        if settings.shared_context:
            return collate_shared(encoded, ids, self.pad_id)
        if settings.capacity:
            return collate_packed(encoded, ids, settings.capacity, self.pad_id)
        return collate_rows(encoded, ids, self.pad_id)


def _portions(units: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Yield neighbouring units with ``size`` samples in all, or as many as fit."""
    some: list[list[int]] = []
    count = 0
    for unit in units:
        if some and count + len(unit) > size:
            yield some
            some, count = [], 0
        some.append(unit)
        count += len(unit)
    if some:
        yield some
