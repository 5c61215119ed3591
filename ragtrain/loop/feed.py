"""From a plan of micro-batches to what one rank computes in each optimizer step."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from ragtrain.errors import DataError
from ragtrain.loop.oom import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch


class Batch(Protocol):
    """A collated micro-batch."""

    @property
    def weight(self) -> float:
        """What its loss sum counts for: target tokens or questions."""

    @property
    def ids(self) -> Sequence[str]:
        """Ids of its examples."""

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""


B = TypeVar("B", bound=Batch)
B_co = TypeVar("B_co", bound=Batch, covariant=True)


class BatchSource(Protocol[B_co]):
    """Where micro-batches come from. Both methods depend on their arguments and the run's seed only.

    ``collate`` runs in a thread of its own, a step ahead: it must not draw from the global random generators, or
    dropout would no longer be the same from run to run.
    """

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        """Return the micro-batches of an epoch as indices of examples, for all ranks, in order."""

    def collate(self, indices: Sequence[int], epoch: int) -> B_co:
        """Return the micro-batch of these examples."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """The micro-batches of one optimizer step on all ranks, and where the next step begins."""

    epoch: int
    position: int
    micro_batches: Sequence[Sequence[int]]
    next_epoch: int
    next_position: int
    plan_length: int


def slots(source: BatchSource[Any], epoch: int, position: int, size: int) -> Iterator[Slot]:
    """Yield the optimizer steps from a place in the plan on, epoch after epoch without end.

    Args:
        source: Where plans come from.
        epoch: Epoch to begin in.
        position: Micro-batch of that epoch to begin with.
        size: Micro-batches in a step, over accumulation and ranks; the last step of an epoch may have fewer.

    Raises:
        DataError: A plan is empty.
    """
    while True:
        plan = source.plan(epoch)
        if not plan:
            raise DataError(f"there is nothing to train on: the plan of epoch {epoch} is empty")
        while position < len(plan):
            end = min(position + size, len(plan))
            after = (epoch, end) if end < len(plan) else (epoch + 1, 0)
            yield Slot(epoch, position, plan[position:end], *after, len(plan))
            position = end
        epoch, position = epoch + 1, 0


@dataclasses.dataclass(frozen=True)
class Portion:
    """One rank's share of a slot, collated; empty where the slot had fewer micro-batches than ranks.

    ``halvings`` is how often each micro-batch of the plan was halved, ``size`` the examples of the largest piece on any
    rank.
    """

    slot: Slot
    batches: Sequence[Batch]
    halvings: int
    size: int

    @property
    def weight(self) -> float:
        """The weight of this rank's share."""
        return float(sum(batch.weight for batch in self.batches))


def portion(source: BatchSource[Any], slot: Slot, rank: int, world: int, halvings: int = 0) -> Portion:
    """Collate a rank's share: the micro-batches at positions rank, rank + world, … of the slot, in pieces."""
    pieces = [cut(indices, halvings) for indices in slot.micro_batches]
    own = [source.collate(piece, slot.epoch) for each in pieces[rank::world] for piece in each]
    return Portion(slot, own, halvings, max(len(piece) for each in pieces for piece in each))


class Feed:
    """The portions of one slot after the other, each made in a background thread while the one before is in use."""

    def __init__(self, each: Iterator[Slot], make: Callable[[Slot], Portion]) -> None:
        self._each, self._make = each, make
        # A single thread: no two collations run at once, which not every tokenizer would bear.
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="collate")
        self._coming = self._pool.submit(self._next)

    def _next(self) -> Portion:
        return self._make(next(self._each))

    def next(self) -> Portion:
        """Return the next portion, and begin the one after it."""
        ready = self._coming.result()
        self._coming = self._pool.submit(self._next)
        return ready

    def again(self, slot: Slot) -> Portion:
        """Return the portion of a slot made anew."""
        return self._pool.submit(self._make, slot).result()

    def close(self) -> None:
        """Wait for the thread."""
        self._pool.shutdown()


def plan_fingerprint(plan: Sequence[Sequence[int]]) -> str:
    """Return a short hash of a plan: another one means that the examples or their order changed."""
    text = json.dumps([[int(index) for index in indices] for indices in plan], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
