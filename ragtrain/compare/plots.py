"""A comparison as pictures: differences with intervals, and quality against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragtrain.compare import several
from ragtrain.compare.differences import label

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.compare import CompareResult

_COSTS = {
    "latency_p50_s": "median latency, s",
    "questions_per_s": "questions/s",
    "peak_memory_bytes": "peak memory, GiB",
}
_BLUE, _GREY, _ORANGE = "#0072b2", "#777777", "#d55e00"  # told apart by colour-blind readers (Okabe and Ito)


def write(folder: Path, result: CompareResult) -> list[Path]:
    """Write ``differences.png``, and ``quality-against-….png`` where costs are measured; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "differences.png"]
    _save(_differences(result), written[0])
    for cost, points in result.pareto.items():
        path = folder / f"quality-against-{cost.replace('_', '-')}.png"
        _save(_pareto(cost, points, dict(zip(result.runs, several.short_names(result.runs), strict=True))), path)
        written.append(path)
    return written


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib's Figure is imported where it is used
    aside = path.with_name(f".{path.name}.tmp.png")
    try:
        figure.savefig(aside, dpi=150)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _differences(result: CompareResult) -> Any:  # noqa: ANN401 - see above
    short = several.short_names(result.runs)
    rows = [
        (name, d)
        for name, comparison in zip(short[1:], result.comparisons, strict=True)
        for d in comparison.differences
    ]
    figure, axes = _figure(8.5, 1.4 + 0.36 * len(rows))
    axes.axvline(0, color=_GREY, linewidth=1)
    names = []
    for place, (name, d) in enumerate(rows):
        sure = d.low > 0 or d.high < 0
        colour = (_BLUE if d.delta > 0 else _ORANGE) if sure else _GREY
        low, middle, high = (100 * value for value in (d.low, d.delta, d.high))
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([middle], [place], "o", color=colour, markersize=6)
        names.append(label(d.metric) if len(result.comparisons) == 1 else f"{name}: {label(d.metric)}")
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"difference to {short[0]}, percentage points, with {100 * result.confidence:g} % intervals")
    axes.set_title(f"n = {result.comparisons[0].n} questions", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _pareto(cost: str, points: list[Any], short: dict[str, str]) -> Any:  # noqa: ANN401 - see above
    figure, axes = _figure(6, 4)
    for each in points:
        value = each.cost / 2**30 if cost.endswith("_bytes") else each.cost
        axes.plot(
            [value], [100 * each.quality], "o" if each.best else "x", color=_BLUE if each.best else _GREY, markersize=8
        )
        axes.annotate(
            short[each.name], (value, 100 * each.quality), textcoords="offset points", xytext=(6, 6), fontsize=8
        )
    axes.set_xlabel(_COSTS[cost])
    axes.set_ylabel("quality, percent")
    axes.set_title("a dot: no other run is at least as good in both", fontsize=10)
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    return figure
