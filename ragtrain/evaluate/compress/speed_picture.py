"""The picture of ``measure_speed``: how long answers take, and what takes how much of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ragtrain.evaluate.compress.canvas import BLACK, BLUE, GREY, RED, SKY, patch, picture
from ragtrain.evaluate.compress.speed import FULL, STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

#: Colour and hatch of stages.
_STAGE_STYLES = {"tokenise": (GREY, ""), "compress": (RED, "//"), "prefill": (BLUE, ""), "decode": (SKY, "..")}


def draw_speed(path: Path, speed: Mapping[str, Any]) -> None:
    """Draw what ``measure_speed`` returns: distributions of the time of an answer, and its stages on top of each other."""
    batches = {size: batch for size, batch in speed["batches"].items() if any(batch["arms"].values())}
    if not batches:
        return
    most = max(len(batch["arms"]) for batch in batches.values())
    with picture(path, (10, 1.5 + len(batches) * (0.9 + 0.42 * most))) as figure:
        for (size, batch), (left, right) in zip(
            batches.items(), figure.subplots(len(batches), 2, squeeze=False), strict=True
        ):
            arms = {name: arm for name, arm in batch["arms"].items() if arm is not None}
            unit, factor = _time_unit(arms)
            for place, arm in enumerate(arms.values()):
                _distribution(left, place, [factor * second for second in arm["seconds"]["total"]["all"]])
                _stages(right, place, arm["seconds"], factor)
            questions = "single questions" if size == "1" else f"batches of {size} questions"
            left.set_title(f"{questions.capitalize()}, each a dot")
            right.set_title(_ratio_title(batch))
            for panel in (left, right):
                panel.set_yticks(range(len(arms)), [_speed_label(name, arm) for name, arm in arms.items()])
                panel.set_ylim(len(arms) - 0.4, -0.6)
                panel.grid(axis="y", visible=False)
                panel.tick_params(axis="y", length=0)
            longest = factor * max(max(arm["seconds"]["total"]["all"]) for arm in arms.values())
            left.set_xlim(0, 1.45 * longest)  # room for what is written behind the dots
            right.set_xlim(0, 1.15 * longest)
            right.set_yticklabels([])
            left.set_xlabel(f"time of a {'question' if size == '1' else 'batch'}, {unit}")
            right.set_xlabel(f"mean time of each stage, {unit}")
        handles = [patch(*_STAGE_STYLES[stage], stage) for stage in STAGES]
        figure.legend(handles=handles, loc="outside lower right", ncols=len(handles))
        figure.suptitle(_machine(speed), fontsize=9.5, x=0.01, ha="left")


def _distribution(panel: Axes, place: int, times: Sequence[float]) -> None:
    """Draw every time as a dot, the median as a line and the 90th percentile as a short one."""
    import numpy as np

    # A fixed spread keeps dots apart; their height says nothing.
    heights = [place + 0.22 * math.sin(2.4 * number) for number in range(len(times))]
    panel.plot(times, heights, linestyle="none", marker="o", markersize=3.5, color=BLUE, alpha=0.55, markeredgewidth=0)
    p50, p90 = np.quantile(times, [0.5, 0.9])
    panel.vlines(p50, place - 0.34, place + 0.34, color=BLACK, linewidth=2)
    panel.vlines(p90, place - 0.34, place + 0.34, color=BLACK, linewidth=1, linestyle=":")
    panel.annotate(f"p50 {_short(float(p50))}, p90 {_short(float(p90))}", (max(times), place), (6, 0), va="center",
                   textcoords="offset points", fontsize=8, annotation_clip=False)  # fmt: skip


def _stages(panel: Axes, place: int, seconds: Mapping[str, Any], factor: float) -> None:
    """Draw the mean of each stage behind the one before."""
    start = 0.0
    for stage in STAGES:
        colour, hatch = _STAGE_STYLES[stage]
        width = factor * seconds[stage]["mean"]
        panel.barh(place, width, left=start, height=0.62, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        start += width
    panel.annotate(_short(start), (start, place), (4, 0), textcoords="offset points", va="center", fontsize=8)


def _short(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _speed_label(name: str, arm: Mapping[str, Any]) -> str:
    tokens = f"{arm['prompt_tokens']:.0f} positions"
    if name == FULL:
        return f"Full passages\n{tokens}"
    rate = name.partition("@")[2]
    return f"Memory{f' at rate {rate}' if rate else ''}\n{tokens}, {arm['vectors']:.0f} vectors"


def _ratio_title(batch: Mapping[str, Any]) -> str:
    ratio = (batch.get("full_over_compressed") or {}).get("total")
    if ratio is None:
        return "One of the two does not fit on the device"
    return f"Full passages / memory: {ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times as long"


def _machine(speed: Mapping[str, Any]) -> str:
    """Return what the times depend on, in a line."""
    where = speed.get("device_name") or f"{speed['device']}, {speed['threads']} thread{'s' * (speed['threads'] != 1)}"
    precision = speed["dtype"] if speed["precision"] == "no" else f"{speed['dtype']} in {speed['precision']}"
    load = speed.get("load_average")
    busy = f", load average {load:.1f}" if load is not None and speed["device"] == "cpu" else ""
    return (
        f"Time of an answer of {speed['new_tokens']} tokens, {speed['repeats']} batches each, in turn ({where}, {precision}{busy}).\n"
        "Black lines: median, dotted: 90th percentile. Brackets: 95 % interval over pairs of the same questions."
    )


def _time_unit(arms: Mapping[str, Any]) -> tuple[str, float]:
    longest = max(max(arm["seconds"]["total"]["all"]) for arm in arms.values())
    return ("s", 1.0) if longest >= 2 else ("ms", 1000.0)
