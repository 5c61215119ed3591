"""Pictures of a measurement, drawn from what its JSON files say.

Nothing is said by colour alone: what is hatched was measured before training, a hollow mark is the base, and every kind of text
has a mark of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from ragtrain import metrics
from ragtrain.evaluate.compress.arms import TABLE
from ragtrain.evaluate.compress.canvas import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, picture
from ragtrain.evaluate.compress.speed import FULL, MEMORY
from ragtrain.evaluate.compress.speed_picture import draw_speed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ragtrain.evaluate.compress.arms import Arm

__all__ = ["draw_arms", "draw_curves", "draw_quality_and_cost", "draw_speed"]

ARMS_PICTURE = "before_after_comparison.png"
CURVES_PICTURE = "training_curves.png"
SPEED_PICTURE = "speed_comparison.png"
COST_PICTURE = "quality_vs_cost.png"

#: Scores by their names in files, in the order of panels.
SCORES = {"em": "exact match", "f1": "token F1", "rouge_l": "ROUGE-L", "contains": "contains the answer"}
#: Colour and mark of what is read.
_KINDS = {
    "nothing": (GREY, "o"), "passages": (BLUE, "s"), "first tokens": (SKY, "^"), "best sentences": (GREEN, "v"),
    "memory": (RED, "D"), "random memory": (PINK, "X"), "other memory": (ORANGE, "P"),
}  # fmt: skip


def draw_arms(path: Path, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw every arm with its intervals, a panel for each score.

    Args:
        path: of the picture.
        arms: ``ArmResult.to_json`` by name, in the order of the rows, as in ``metrics_report.json``.
    """
    names = [name for name in arms if _arm(name) is not None]
    scores = {name: title for name, title in SCORES.items() if any(name in arms[arm] for arm in names)}
    if not names or not scores:
        return
    most = max((_ends(arms[arm], score)[1] for arm in names for score in scores), default=1.0)
    with picture(path, (2.6 + 2.3 * len(scores), 1.3 + 0.33 * len(names))) as figure:
        panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
        for panel, (score, title) in zip(panels, scores.items(), strict=True):
            for place, name in enumerate(names):
                _bar(panel, place, name, arms[name], score)
            for reference in ("none", FULL):
                if score in arms.get(reference, {}):
                    panel.axvline(
                        100 * arms[reference][score],
                        color=_KINDS[TABLE[reference].reads][0],
                        linestyle="--",
                        linewidth=1,
                    )
            panel.set_title(title)
            panel.set_xlabel("% of questions" if score in ("em", "contains") else "%, mean over questions")
            panel.set_xlim(0, min(118.0, 128 * most + 4))
            panel.grid(axis="y", visible=False)
            panel.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(names)), [_label(name) for name in names])
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        figure.suptitle(
            f"Answers to {_count(arms[names[0]])} evaluation questions; lines are 95 % intervals, hatched bars are measured before "
            f"training,\ndashed lines are the trained generator without passages and with full ones",
            fontsize=9.5, x=0.01, ha="left",
        )  # fmt: skip


def draw_curves(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    *,
    arms: Mapping[str, Mapping[str, Any]] | None = None,
    pretraining: Sequence[Mapping[str, Any]] = (),
    evaluated: int | None = None,
) -> None:
    """Draw loss and evaluation scores against the step.

    Args:
        path: of the picture.
        steps: lines of ``metrics.jsonl``.
        arms: as in ``draw_arms``; F1 without passages and with full ones are lines to compare with.
        pretraining: lines of the pre-training's ``metrics.jsonl``.
        evaluated: questions of each evaluation; with it, exact match has intervals.
    """
    evaluations = [(int(row["step"]), row["evaluation"]) for row in steps if row.get("evaluation")]
    if not steps:
        return
    answered = [(step, values) for step, values in evaluations if "eval_f1" in values]
    panels = [*(["pretraining"] if pretraining else []), "training", *(["scores"] if answered else [])]
    with picture(path, (7.5, 0.6 + 2.35 * len(panels))) as figure:
        for name, panel in zip(panels, figure.subplots(len(panels), 1, squeeze=False)[:, 0], strict=True):
            if name == "pretraining":
                _losses(panel, pretraining, [])
                panel.set_title("Pre-training: reconstruction and continuation")
            elif name == "training":
                _losses(panel, steps, evaluations)
                panel.set_title("Training: answers from memory")
            else:
                _scores(panel, answered, arms or {}, evaluated)
                _steps_axis(panel, steps)


def draw_quality_and_cost(
    path: Path, arms: Mapping[str, Mapping[str, Any]], cost: Mapping[str, Any], *, metric: str = "f1"
) -> None:
    """Draw a score with its interval against the operations of a question, one point for each arm.

    Args:
        path: of the picture.
        arms: as in ``draw_arms``; those without a cost are controls and are left out, ``compressed@RATE`` is memory at that rate.
        cost: what ``measure_cost`` returns.
        metric: ``em``, ``f1``, ``rouge_l`` or ``contains``.
    """
    points = [
        point for name, values in arms.items() if metric in values and (point := _point(name, values, cost, metric))
    ]
    if not points:
        return
    unit, factor = _operations_unit(max(point.operations for point in points))
    with picture(path, (8.4, 4.4)) as figure:
        panel = figure.subplots()
        for point, shift in zip(points, _shifts([point.operations for point in points]), strict=True):
            panel.errorbar(
                point.operations * factor, 100 * point.value,
                yerr=[[100 * (point.value - point.low)], [100 * (point.high - point.value)]], color=point.colour,
                marker=point.mark, markerfacecolor="white" if point.hollow else point.colour, markersize=7,
                linestyle="none", capsize=3, elinewidth=1, clip_on=False, transform=_moved(figure, panel, shift),
            )  # fmt: skip
            if point.note:
                panel.annotate(point.note, (point.operations * factor, 100 * point.value), (7, 5),
                               textcoords="offset points", fontsize=8)  # fmt: skip
        panel.set_xscale("log")
        _plain_ticks(panel, [point.operations * factor for point in points])
        panel.set_ylim(0, min(105.0, 115 * max(point.high for point in points) + 2))
        charged = ", the question charged to every window" if cost.get("question_charged_to_windows") else ""
        panel.set_xlabel(
            f"operations of a question, {unit}: compressing{charged}, reading,\nwriting {cost['new_tokens']} tokens "
            "(marks of equal cost stand beside each other)"
        )
        panel.set_ylabel(f"{SCORES.get(metric, metric)}, % (95 % interval)")
        panel.set_title(f"Quality and cost of answers, n = {_count(next(iter(arms.values())))} evaluation questions")
        figure.legend(handles=[_mark(point) for point in points], loc="outside right upper",
                      title="hollow: base, not trained", title_fontsize=8.5, alignment="left")  # fmt: skip


# ---- pieces


def _ends(values: Mapping[str, Any], score: str) -> tuple[float, float]:
    """Return the interval of a score, or the score twice where it has none."""
    value = values.get(score)
    if value is None or not math.isfinite(value):
        return 0.0, 0.0
    low, high = values.get("intervals", {}).get(score, (value, value))
    return min(low, value), max(high, value)


def _count(values: Mapping[str, Any]) -> str:
    return f"{values['n']:,}"


def _arm(name: str) -> Arm | None:
    """Return an arm by its name, with or without a rate behind it."""
    return TABLE.get(name.partition("@")[0])


def _label(name: str) -> str:
    base, _, rate = name.partition("@")
    what = TABLE[base].what
    return what[0].upper() + what[1:] + (f", rate {rate}" if rate else "")


def _bar(panel: Axes, place: int, name: str, values: Mapping[str, Any], score: str) -> None:
    """Draw one arm in one panel, with its interval and its value."""
    value, arm = values.get(score), _arm(name)
    if value is None or not math.isfinite(value) or arm is None:
        return
    low, high = _ends(values, score)
    colour, before = _KINDS[arm.reads][0], arm.stage == "before"
    panel.barh(
        place, 100 * value, height=0.68, color="white" if before else colour, edgecolor=colour,
        hatch="////" if before else None, linewidth=1,
    )  # fmt: skip
    panel.errorbar(100 * value, place, xerr=[[100 * (value - low)], [100 * (high - value)]], color=BLACK, capsize=2.5,
                   elinewidth=1)  # fmt: skip
    panel.annotate(
        f"{100 * value:.1f}", (100 * high, place), (4, 0), textcoords="offset points", va="center", fontsize=8,
        fontweight="bold" if name == MEMORY else "normal", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def _losses(panel: Axes, steps: Sequence[Mapping[str, Any]], evaluations: Sequence[tuple[int, Any]]) -> None:
    """Draw the loss of each step, its moving mean, and the loss of evaluations."""
    # Where there are other terms, what the answers cost by themselves is a part; that is what evaluations measure.
    pairs = ((int(row["step"]), (row.get("parts") or {}).get("nll", row["loss"])) for row in steps)
    rows: list[tuple[int, float]] = [pair for pair in pairs if _finite(pair[1])]
    if rows:
        places, losses = zip(*rows, strict=True)
        window = max(1, len(rows) // 20)
        few: dict[str, Any] = {"marker": "o", "markersize": 3} if len(rows) <= 30 else {}
        panel.plot(places, losses, color=SKY, linewidth=0.8, label="each step", **few)
        if window > 1:
            means = [math.fsum(losses[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(losses))]
            panel.plot(places, means, color=BLUE, linewidth=1.6, label=f"mean of the last {window}")
    held = [(step, values["eval_loss"]) for step, values in evaluations if _finite(values.get("eval_loss"))]
    if held:
        panel.plot(
            *zip(*held, strict=True), color=RED, marker="D", markersize=4, linewidth=1.2, label="evaluation questions"
        )
    _steps_axis(panel, steps)
    highest = max((value for _, value in [*rows, *held]), default=1.0)
    panel.set_ylim(0, 1.08 * highest)
    panel.set_xlabel("optimizer step")
    panel.set_ylabel("cross-entropy,\nnats a token")
    if rows or held:
        panel.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=3, borderaxespad=0)


def _scores(
    panel: Axes, answered: Sequence[tuple[int, Any]], arms: Mapping[str, Mapping[str, Any]], evaluated: int | None
) -> None:
    """Draw F1 and exact match of each evaluation, and what they are compared with."""
    places = [step for step, _ in answered]
    for name, colour, mark in (("f1", RED, "D"), ("em", GREEN, "o")):
        values = [100 * result[f"eval_{name}"] for _, result in answered if f"eval_{name}" in result]
        if len(values) != len(places):
            continue
        panel.plot(
            places, values, color=colour, marker=mark, markersize=4, linewidth=1.2, label=SCORES[name], clip_on=False
        )
        if name == "em" and evaluated:
            ends = [metrics.wilson(value / 100 * evaluated, evaluated) for value in values]
            lows, highs = ([100 * end for end in side] for side in zip(*ends, strict=True))
            if len(places) > 1:
                panel.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0, label="its 95 % interval")  # fmt: skip
            else:  # an area between two ends of one place cannot be seen
                panel.vlines(places, lows, highs, color=colour, linewidth=1.2, label="its 95 % interval")
    for arm, style in (("none", ":"), (FULL, "--")):
        if "f1" in arms.get(arm, {}):
            panel.axhline(100 * arms[arm]["f1"], color=_KINDS[TABLE[arm].reads][0], linestyle=style, linewidth=1.2,
                          label=f"F1, {TABLE[arm].what} (n = {_count(arms[arm])})")  # fmt: skip
    n = f", n = {evaluated:,}" if evaluated else ""
    panel.set_title(f"Answers from memory on evaluation questions{n}")
    panel.set_xlabel("optimizer step")
    panel.set_ylabel("score, %")
    panel.set_ylim(0, None)
    panel.margins(y=0.15)
    panel.legend(loc="upper left", bbox_to_anchor=(0, -0.28), ncols=2)


def _steps_axis(panel: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    """Let the axis begin at 0 and end after the last step, with whole numbers."""
    from matplotlib.ticker import MaxNLocator

    last = max(int(row["step"]) for row in steps)
    panel.set_xlim(0, last * 1.02 + 0.2)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))


def _finite(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int | float) and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class _Point:
    """An arm in the plane of cost and quality."""

    label: str
    operations: float
    value: float
    low: float
    high: float
    colour: str
    mark: str
    hollow: bool
    note: str


def _point(name: str, values: Mapping[str, Any], cost: Mapping[str, Any], metric: str) -> _Point | None:
    rate, arm = name.partition("@")[2], _arm(name)
    costs = cost["rates"].get(rate) if rate else cost["arms"].get(name)
    if costs is None or costs["flops"] is None or arm is None or not _finite(values[metric]):
        return None
    colour, mark = _KINDS[arm.reads]
    return _Point(_label(name), costs["flops"]["total"], values[metric], *_ends(values, metric), colour, mark,
                  arm.weights == "base", f"rate {rate}" if rate else "")  # fmt: skip


def _operations_unit(most: float) -> tuple[str, float]:
    for power in (12, 9):
        if most >= 10**power:
            return f"10{'¹²' if power == 12 else '⁹'}", 10.0**-power
    return "10⁶", 1e-6


def _shifts(operations: Sequence[float]) -> list[float]:
    """Return by how many points each mark is moved sideways, so that those of equal cost can be told apart."""
    shifts = []
    for place, value in enumerate(operations):
        same = [other for other, cost in enumerate(operations) if abs(math.log(cost / value)) < 0.02]
        shifts.append(5.0 * (same.index(place) - (len(same) - 1) / 2))
    return shifts


def _moved(figure: Figure, panel: Axes, points: float) -> Any:  # noqa: ANN401 - a transform of matplotlib
    from matplotlib.transforms import ScaledTranslation

    return panel.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _mark(point: _Point) -> Any:  # noqa: ANN401 - an artist of matplotlib
    """Return what stands in the legend for a point."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=point.colour, marker=point.mark, markersize=7, linestyle="none", label=point.label,
                  markerfacecolor="white" if point.hollow else point.colour)  # fmt: skip


def _plain_ticks(panel: Axes, values: Sequence[float]) -> None:
    """Write numbers, not powers, on a logarithmic axis, and enough of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    panel.set_xlim(low / 1.4, high * 1.4)
    steps = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    panel.xaxis.set_major_locator(LogLocator(base=10, subs=steps))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
