"""Pictures of a measurement, drawn from what its JSON files say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ARMS_PICTURE = "before_after_comparison.png"
CURVES_PICTURE = "training_curves.png"
SPEED_PICTURE = "speed_comparison.png"
COST_PICTURE = "quality_vs_cost.png"


def draw_arms(path: Path, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw every arm with its intervals, a panel for each score.

    Args:
        path: of the picture.
        arms: ``ArmResult.to_json`` by name, as in ``metrics_report.json``.
    """
    raise NotImplementedError


def draw_curves(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    *,
    arms: Mapping[str, Mapping[str, Any]] | None = None,
    pretraining: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Draw loss and evaluation scores against the step.

    Args:
        path: of the picture.
        steps: lines of ``metrics.jsonl``.
        arms: as in ``draw_arms``; F1 without passages and with full ones are lines to compare with.
        pretraining: lines of the pre-training's ``metrics.jsonl``.
    """
    raise NotImplementedError


def draw_speed(path: Path, speed: Mapping[str, Any]) -> None:
    """Draw what ``measure_speed`` returns: distributions of the time of an answer, and its stages on top of each other."""
    raise NotImplementedError


def draw_quality_and_cost(
    path: Path, arms: Mapping[str, Mapping[str, Any]], cost: Mapping[str, Any], *, metric: str = "f1"
) -> None:
    """Draw a score with its interval against the operations of a question, one point for each arm.

    Args:
        path: of the picture.
        arms: as in ``draw_arms``.
        cost: what ``measure_cost`` returns.
        metric: ``em``, ``f1``, ``rouge_l`` or ``contains``.
    """
    raise NotImplementedError
