"""The arms of a measurement: what the generator is given, and which adapters it reads with.

All arms answer the same questions with the same base weights and the same decoding::

    none-base             nothing                     base
    none                  nothing                     trained on memory
    full-base             the passages                base
    full                  the passages                trained on passages, as many steps on the same rows
    truncated[-base]      their first tokens          trained on passages [base]
    best-sentences[-base] their best sentences        trained on passages [base]
    before                memory                      before training
    compressed            memory                      trained on memory
    random                vectors of the same norms   trained on memory
    shuffled              memory of other questions   trained on memory

``truncated`` and ``best-sentences`` spend as many positions of the generator as the memory of the same question. They are read
in both forms, because a text arm that was never trained loses by the style of its answers alone.
"""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Literal

from ragtrain.config.commands.compress import ARMS
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Reads = Literal["nothing", "passages", "first tokens", "best sentences", "memory", "random memory", "other memory"]
Weights = Literal["base", "full-context", "compressed"]
Stage = Literal["before", "after"]


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering.

    Attributes:
        name: as configurations, files and plots have it.
        reads: what stands in place of the passages.
        weights: the adapters in the generator: none, those trained on full passages, or those trained on memory.
        stage: when it can be measured; what reads with the base alone, before training begins.
        what: in words, for tables.
    """

    name: str
    reads: Reads
    weights: Weights
    stage: Stage
    what: str

    @property
    def of_memory(self) -> bool:
        """Whether vectors stand in the prompt."""
        return self.reads in ("memory", "random memory", "other memory")


_ALL = (
    Arm("none-base", "nothing", "base", "before", "no passages, base"),
    Arm("none", "nothing", "compressed", "after", "no passages, trained"),
    Arm("full-base", "passages", "base", "before", "full passages, base"),
    Arm("full", "passages", "full-context", "after", "full passages, fine-tuned on them"),
    Arm("truncated-base", "first tokens", "base", "before", "first tokens, base"),
    Arm("truncated", "first tokens", "full-context", "after", "first tokens, fine-tuned on passages"),
    Arm("best-sentences-base", "best sentences", "base", "before", "best sentences, base"),
    Arm("best-sentences", "best sentences", "full-context", "after", "best sentences, fine-tuned on passages"),
    Arm("before", "memory", "compressed", "before", "memory before training"),
    Arm("compressed", "memory", "compressed", "after", "memory"),
    Arm("random", "random memory", "compressed", "after", "random vectors"),
    Arm("shuffled", "other memory", "compressed", "after", "memory of other questions"),
)
#: Every arm by its name, in the order of tables and plots.
TABLE: dict[str, Arm] = {arm.name: arm for arm in _ALL}
#: Text within the budget of the memory, which memory has to beat.
TEXT_ARMS = ("truncated", "best-sentences", "truncated-base", "best-sentences-base")


def arms_of(names: Iterable[str], stage: Stage, *, full_adapters: bool = True) -> tuple[Arm, ...]:
    """Return the arms that are measured at a stage, in the order of tables.

    Each text arm brings its form with the base along, and those of the full-context adapters need these.

    Args:
        names: of ``ARMS``, as configured.
        stage: before or after training.
        full_adapters: whether adapters for full passages are trained.

    Raises:
        ConfigError: there is no such arm.
    """
    asked = set(names)
    if unknown := sorted(asked - TABLE.keys()):
        raise ConfigError(f"arms: there is no {', '.join(unknown)}", hint=f"known are {', '.join(ARMS)}")
    asked |= {f"{name}-base" for name in asked & {"truncated", "best-sentences"}}
    found = [arm for arm in TABLE.values() if arm.name in asked and arm.stage == stage]
    return tuple(arm for arm in found if full_adapters or arm.weights != "full-context")


def derangement(contents: Sequence[frozenset[str]], seed: int) -> list[int]:
    """Return for each question another one whose memory it is given: a permutation without fixed points.

    Where it can be avoided nobody is given the memory of a question on one of its own passages, from which it could be
    answered as well: neighbours in SQuAD ask about the same paragraph.

    Args:
        contents: the passages of each question.
        seed: of the draw.

    Raises:
        ValueError: there are fewer than two questions.
    """
    n = len(contents)
    if n < 2:
        raise ValueError("a memory can be exchanged between two questions, not fewer")
    draw = random.Random(seed)
    donors = draw.sample(range(n), n)

    def bad(receiver: int, donor: int) -> bool:
        return receiver == donor or not contents[receiver].isdisjoint(contents[donor])

    _repair(donors, bad, draw)
    # What is left cannot be avoided, but nobody keeps their own.
    _repair(donors, lambda receiver, donor: receiver == donor, draw)
    return donors


def _repair(donors: list[int], bad: Callable[[int, int], bool], draw: random.Random) -> None:
    """Exchange donors of pairs in place, as long as that leaves fewer bad ones."""
    for receiver in [place for place, donor in enumerate(donors) if bad(place, donor)]:
        if not bad(receiver, donors[receiver]):  # by an exchange in between
            continue
        for other in draw.sample(range(len(donors)), len(donors)):
            mine, theirs = donors[receiver], donors[other]
            if not bad(receiver, theirs) and (not bad(other, mine) or (bad(other, theirs) and other != mine)):
                donors[receiver], donors[other] = theirs, mine
                break
