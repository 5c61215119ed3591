"""Arms → prompts → answers → scores. Every answer is written, greedily and in batches; none is scored under teacher forcing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.arms import Arm
    from ragtrain.evaluate.compress.subject import Subject

#: Scores of one answer: rates, which are 0 or 1, and shares.
RATES, SHARES = ("em", "contains"), ("f1", "rouge_l")


@dataclasses.dataclass(frozen=True)
class ArmSettings:
    """How questions are answered and what is counted.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        batch_size: questions answered at a time; no answer depends on it beyond rounding.
        rate: compression rate; None for the nominal one.
        seed: of random vectors, of the exchange of memories, and of the bootstrap.
        confidence: level of the intervals.
        precision: arithmetic of the network.
        progress: whether the console shows how far it is.
    """

    max_new_tokens: int = 32
    batch_size: int = 16
    rate: int | None = None
    seed: int = 0
    confidence: float = 0.95
    precision: Literal["no", "bf16", "fp16"] = "no"
    progress: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ArmRecord:
    """One question as one arm answered it.

    Attributes:
        id: of the question.
        prediction: the answer.
        em: exact match (SQuAD's rules, best of all references), 0 or 1.
        contains: whether the prediction holds a reference as a run of whole tokens, 0 or 1.
        f1: token F1, best of all references, 0 to 1.
        rouge_l: F of the longest common subsequence, best of all references, 0 to 1.
        context_tokens: positions of the generator that passages or memory take.
        prompt_tokens: positions of the whole prompt.
        new_tokens: tokens written, the end token among them.
        ended: whether the generator came to an end by itself.
        seconds: from the beginning of its batch until the answer was complete, compression not included.
        answer_given: whether an answer stands in the text that was read, or in the text that was compressed.
        memory_of: the question whose memory was read, where it was another's.
    """

    id: str
    prediction: str
    em: float
    contains: float
    f1: float
    rouge_l: float
    context_tokens: int
    prompt_tokens: int
    new_tokens: int
    ended: bool
    seconds: float
    answer_given: bool
    memory_of: str | None = None


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """All questions as one arm answered them.

    Attributes:
        arm: which one.
        records: one a question, in the order of the rows.
        metrics: ``em``, ``contains``, ``f1``, ``rouge_l``, ``ended``, ``answer_given`` as fractions, and the means
            ``context_tokens``, ``prompt_tokens``, ``new_tokens``.
        intervals: of those that have one: Wilson's for rates, bootstrap for others.
        seconds: that answering took, compression included.
    """

    arm: Arm
    records: tuple[ArmRecord, ...]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    seconds: float

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.records)

    def scores(self, metric: str) -> list[float]:
        """Return a score of each question."""
        return [float(getattr(record, metric)) for record in self.records]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form without the records: ``n``, the metrics beside each other, ``intervals``, and what the arm is."""
        return {
            "arm": self.arm.name, "what": self.arm.what, "reads": self.arm.reads, "weights": self.arm.weights, "n": self.n,
            **self.metrics, "intervals": {name: list(ends) for name, ends in self.intervals.items()}, "seconds": self.seconds,
        }  # fmt: skip


def measure_arms(
    subject: Subject,
    rows: Sequence[CompressExample],
    arms: Sequence[Arm],
    settings: ArmSettings,
    *,
    store: Path | None = None,
    weights: str = "",
) -> dict[str, ArmResult]:
    """Answer all rows in every arm and score the answers; results come in the order of the arms.

    Args:
        subject: the network; adapters for full passages are put in place of its own while they read, and its own are restored
            exactly.
        rows: questions with their passages, as they are to be read.
        arms: of ``arms_of``.
        settings: how.
        store: folder in which each arm is kept as soon as it is answered; what is there is not answered again.
        weights: stands for the weights of generator and compressor: what is in the store with another name is answered anew.

    Raises:
        ConfigError: prompts leave no room for answers in the generator's positions.
        DataError: the adapters for full passages do not fit the generator.
        OutOfMemoryError: one prompt alone does not fit on the device.
    """
    raise NotImplementedError


def answer_memory(subject: Subject, rows: Sequence[CompressExample], settings: ArmSettings) -> ArmResult:
    """Answer rows from memory alone: what an evaluation in the middle of training measures."""
    raise NotImplementedError
