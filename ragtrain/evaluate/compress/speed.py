"""How long an answer takes from memory, and how long from the full passages, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.subject import Subject


def measure_speed(
    subject: Subject,
    rows: Sequence[CompressExample],
    *,
    repeats: int = 20,
    batch_sizes: Sequence[int] = (1, 8),
    max_new_tokens: int = 32,
    precision: Literal["no", "bf16", "fp16"] = "no",
) -> dict[str, Any]:
    """Time tokenising, compressing, reading and writing, for memory and for full passages in turn.

    Args:
        subject: the network; it is left as it was.
        rows: questions with their passages, as they are to be read.
        repeats: batches that are timed, of each size; each is read in every arm before the next.
        batch_sizes: questions at a time.
        max_new_tokens: tokens that every answer is made to have; the time to its natural end is kept too.
        precision: arithmetic of the network.
    """
    raise NotImplementedError
