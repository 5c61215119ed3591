"""From a plan of micro-batches to what one rank computes in each optimizer step."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

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
    """One rank's share of a slot, collated.

    ``is_filler``: the slot had fewer micro-batches than ranks and none for this one. It computes the slot's first
    micro-batch with weight 0, because gradients are exchanged by all ranks or by none.
    """

    slot: Slot
    batches: Sequence[Batch]
    is_filler: bool


def portion(source: BatchSource[Any], slot: Slot, rank: int, world: int) -> Portion:
    """Collate a rank's share: the micro-batches at positions rank, rank + world, … of the slot."""
    own = slot.micro_batches[rank::world]
    batches = [source.collate(indices, slot.epoch) for indices in own or slot.micro_batches[:1]]
    return Portion(slot, batches, is_filler=not own)


def ahead(each: Iterator[Slot], make: Callable[[Slot], Portion]) -> Generator[Portion, None, None]:
    """Yield ``make(slot)`` for every slot, made in a background thread while the one before is in use."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="collate") as pool:
        coming = pool.submit(lambda: make(next(each)))
        while True:
            ready = coming.result()
            coming = pool.submit(lambda: make(next(each)))
            yield ready


def plan_fingerprint(plan: Sequence[Sequence[int]]) -> str:
    """Return a short hash of a plan: another one means that the examples or their order changed."""
    text = json.dumps([[int(index) for index in indices] for indices in plan], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
