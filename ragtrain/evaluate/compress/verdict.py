"""Whether memory is worth more than the text that costs as much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.measure import ArmResult


def verdict(
    results: Mapping[str, ArmResult], rows: Sequence[CompressExample], *, seed: int = 0, confidence: float = 0.95
) -> dict[str, Any]:
    """Return what arms say together, and one sentence.

    Keys: ``outcome`` (``adds``, ``adds nothing`` or ``not measured``), ``sentence``, ``metric``, ``comparisons`` (compressed
    less each other arm: ``delta``, ``low``, ``high``, ``n``, for every score), ``retention`` and ``boost`` (share of questions
    right from memory among those that full passages get right, and wrong), ``gap_closed``, ``constant_answer`` (best score of
    one answer to all questions), ``caveats``.
    """
    raise NotImplementedError
