"""Pictures: what is drawn is what the files say, everything is labelled, and no text covers another or is cut."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from ragtrain import metrics
from ragtrain.evaluate.compress import plots, speed_picture
from ragtrain.evaluate.compress.arms import TABLE
from ragtrain.evaluate.compress.canvas import picture

F1 = {
    "none-base": 0.04, "none": 0.12, "full-base": 0.30, "full": 0.62, "truncated-base": 0.12, "truncated": 0.26,
    "best-sentences-base": 0.20, "best-sentences": 0.44, "before": 0.02, "compressed": 0.47, "random": 0.05, "shuffled": 0.11,
}  # fmt: skip
FLOPS = {"none": 2.5e8, "full": 2.74e9, "truncated": 5e8, "best-sentences": 5e8, "compressed": 1.33e9}
N = 1234


@pytest.fixture
def arms() -> dict[str, dict]:
    found = {}
    for name, f1 in F1.items():
        values = {"em": 0.8 * f1, "f1": f1, "rouge_l": f1, "contains": 0.9 * f1}
        intervals = {score: list(metrics.wilson(value * N, N)) for score, value in values.items()}
        found[name] = {"arm": name, "what": TABLE[name].what, "n": N, **values, "intervals": intervals}
    return found


@pytest.fixture
def cost() -> dict:
    return {
        "new_tokens": 32, "question_charged_to_windows": True, "rates": {"32": {"flops": {"total": 1.1e9}}},
        "arms": {name: {"flops": {"total": FLOPS[kind]}} for name in F1 if (kind := name.removesuffix("-base")) in FLOPS},
    }  # fmt: skip


@pytest.fixture
def speed() -> dict:
    rng = random.Random(0)

    def arm(stages: tuple[float, ...], vectors: int) -> dict:
        times = {
            name: [mean * rng.uniform(0.8, 1.4) for _ in range(20)]
            for name, mean in zip(speed_picture.STAGES, stages, strict=True)
        }
        times["total"] = [math.fsum(each) for each in zip(*times.values(), strict=True)]
        seconds = {name: {"mean": math.fsum(all_) / 20, "all": all_} for name, all_ in times.items()}
        return {"seconds": seconds, "prompt_tokens": 700.4 if not vectors else 200, "vectors": vectors}

    def batch(scale: float) -> dict:
        return {
            "arms": {
                "full": arm((0.001, 0.0, 0.3 * scale, 0.1), 0),
                "compressed": arm((0.02, 0.06 * scale, 0.08 * scale, 0.1), 80),
                "compressed@32": arm((0.02, 0.06 * scale, 0.06 * scale, 0.1), 40),
            },
            "full_over_compressed": {"total": {"ratio": 1.89, "low": 1.75, "high": 2.04}},
        }

    return {
        "device": "cpu", "device_name": None, "threads": 1, "load_average": 3.14, "dtype": "float32", "precision": "no",
        "repeats": 20, "new_tokens": 32, "batches": {"1": batch(1), "8": batch(7)},
    }  # fmt: skip


def steps(n: int, every: int) -> list[dict]:
    rows: list[dict] = [{"step": i, "loss": 5 / i + 1, "parts": {"nll": 4 / i, "rank": 0.1}} for i in range(1, n + 1)]
    for row in rows[every - 1 :: every]:
        row["evaluation"] = {"eval_loss": 1.0, "eval_f1": 0.4 * row["step"] / n, "eval_em": 0.3 * row["step"] / n}
    return rows


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn in a test."""
    found: list[Figure] = []

    @contextlib.contextmanager
    def kept(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
        with picture(path, size) as figure:
            yield figure
            found.append(figure)

    monkeypatch.setattr(plots, "picture", kept)
    monkeypatch.setattr(speed_picture, "picture", kept)
    return found


def texts_of(figure: Figure) -> list[Text]:
    """Every text that is seen."""
    found = [*figure.texts, *([figure._suptitle] if figure._suptitle else [])]
    for legend in figure.legends + [legend for panel in figure.axes if (legend := panel.get_legend())]:
        found += [*legend.get_texts(), legend.get_title()]
    for panel in figure.axes:
        found += [*panel.texts, panel.title, panel._left_title, panel.xaxis.label, panel.yaxis.label]
        for axis in (panel.xaxis, panel.yaxis):
            found += [tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible()]
    return [text for text in dict.fromkeys(found) if text.get_text() and text.get_visible()]


def assert_legible(figure: Figure) -> None:
    """No text covers another, or leaves the picture."""
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts_of(figure)]
    assert len(boxes) > 10
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0, text
        assert box.y1 <= figure.bbox.y1, text
    for legend in figure.legends + [legend for panel in figure.axes if (legend := panel.get_legend())]:
        own = {text.get_text() for text in (*legend.get_texts(), legend.get_title())}
        assert not [text for text, box in boxes if text not in own and legend.get_window_extent().overlaps(box)]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} and {other!r}"


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts_of(figure))


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and not list(path.parent.glob(".*"))


def bars(panel: Axes) -> list[float]:
    return [
        bar.get_width() for container in panel.containers if isinstance(container, BarContainer) for bar in container
    ]


def ends(panel: Axes, way: Callable[[object], list]) -> list[tuple[float, float]]:
    lines = [c for c in panel.containers if isinstance(c, ErrorbarContainer)]
    return [tuple(way(segment)) for container in lines for segment in container.lines[2][0].get_segments()]


def test_arms(tmp_path: Path, arms: dict, drawn: list[Figure]) -> None:
    arms = {**arms, "compressed@32": arms["best-sentences"]}
    plots.draw_arms(tmp_path / plots.ARMS_PICTURE, arms)
    (figure,) = drawn
    assert is_png(tmp_path / plots.ARMS_PICTURE)
    assert_legible(figure)
    assert [panel._left_title.get_text() for panel in figure.axes] == list(plots.SCORES.values())
    for panel, score in zip(figure.axes, plots.SCORES, strict=True):
        assert bars(panel) == pytest.approx([100 * arms[name][score] for name in arms])
        wanted = [100 * end for name in arms for end in arms[name]["intervals"][score]]
        assert list(itertools.chain(*ends(panel, lambda s: s[:, 0].tolist()))) == pytest.approx(wanted)
        assert panel.get_xlim()[0] == 0
        assert "%" in panel.get_xlabel()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [name.lower() for name in names] == [*(TABLE[name].what.lower() for name in TABLE), "memory, rate 32"]
    assert f"{N:,} evaluation questions" in texts(figure)
    # What was measured before training is hatched.
    hatched = [bool(c.patches[0].get_hatch()) for c in figure.axes[0].containers if isinstance(c, BarContainer)]
    assert hatched == [*(arm.stage == "before" for arm in TABLE.values()), False]


def test_arms_of_a_useless_model_and_of_a_perfect_one(tmp_path: Path, arms: dict, drawn: list[Figure]) -> None:
    for value in (0.0, 1.0):
        some = copy.deepcopy({name: arms[name] for name in ("none-base", "full", "compressed")})
        for row in some.values():
            row.update(dict.fromkeys(plots.SCORES, value))
            row["intervals"] = {score: list(metrics.wilson(value * 10, 10)) for score in plots.SCORES}
        some["none-base"]["em"] = math.nan
        del some["full"]["intervals"]
        plots.draw_arms(tmp_path / "a.png", some)
    for figure in drawn:
        assert_legible(figure)
    assert len(bars(drawn[0].axes[0])) == 2
    plots.draw_arms(tmp_path / "none.png", {})
    assert not (tmp_path / "none.png").exists()


def test_curves(tmp_path: Path, arms: dict, drawn: list[Figure]) -> None:
    pretraining = [{"step": i, "loss": 6 / i} for i in range(1, 31)]
    rows = steps(40, 10)
    plots.draw_curves(tmp_path / plots.CURVES_PICTURE, rows, arms=arms, pretraining=pretraining, evaluated=50)
    (figure,) = drawn
    assert is_png(tmp_path / plots.CURVES_PICTURE)
    assert_legible(figure)
    first, loss, scores = figure.axes
    assert first.lines[0].get_ydata().tolist() == [row["loss"] for row in pretraining]
    # The answers' own part of the loss is what evaluations measure.
    assert loss.lines[0].get_ydata().tolist() == [row["parts"]["nll"] for row in rows]
    assert loss.lines[-1].get_xdata().tolist() == [10, 20, 30, 40]
    assert scores.lines[0].get_ydata().tolist() == pytest.approx([10, 20, 30, 40])
    assert {line.get_ydata()[0] for line in scores.lines[2:]} == {100 * F1["none"], 100 * F1["full"]}
    seen = texts(figure)
    assert seen.count("optimizer step") == 3
    assert "nats a token" in seen
    assert "score, %" in seen
    assert "n = 50" in seen
    assert f"n = {N:,}" in seen


def test_the_interval_of_a_single_evaluation_is_seen(tmp_path: Path, arms: dict, drawn: list[Figure]) -> None:
    plots.draw_curves(tmp_path / plots.CURVES_PICTURE, steps(10, 10), arms=arms, evaluated=50)
    (bar,) = drawn[0].axes[-1].collections
    low, high = bar.get_datalim(drawn[0].axes[-1].transData).intervaly
    assert high - low > 10
    assert_legible(drawn[0])


def test_curves_of_a_run_without_evaluations(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.draw_curves(tmp_path / "a.png", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}])
    assert_legible(drawn[0])
    assert len(drawn[0].axes) == 1
    plots.draw_curves(tmp_path / "b.png", [])
    assert not (tmp_path / "b.png").exists()


def test_speed(tmp_path: Path, speed: dict, drawn: list[Figure]) -> None:
    plots.draw_speed(tmp_path / plots.SPEED_PICTURE, speed)
    (figure,) = drawn
    assert is_png(tmp_path / plots.SPEED_PICTURE)
    assert_legible(figure)
    for row, (batch, factor) in enumerate(zip(speed["batches"].values(), (1000, 1), strict=True)):
        left, right = figure.axes[2 * row : 2 * row + 2]
        for dots, arm in zip(left.lines, batch["arms"].values(), strict=True):
            assert dots.get_xdata().tolist() == pytest.approx([factor * t for t in arm["seconds"]["total"]["all"]])
        stages = [arm["seconds"][stage]["mean"] for arm in batch["arms"].values() for stage in speed_picture.STAGES]
        assert bars(right) == pytest.approx([factor * mean for mean in stages])
        assert "1.89 [1.75, 2.04]" in right._left_title.get_text()
    assert figure.axes[0].get_xlabel().endswith("ms")
    assert figure.axes[2].get_xlabel().endswith(", s")
    seen = texts(figure)
    assert "20 batches each" in seen
    assert "1 thread, float32, load average 3.1" in seen
    assert "700 positions" in seen
    assert "80 vectors" in seen


def test_speed_where_something_did_not_fit(tmp_path: Path, speed: dict, drawn: list[Figure]) -> None:
    speed["batches"]["8"]["arms"]["full"] = None
    speed["batches"]["8"]["full_over_compressed"] = None
    plots.draw_speed(tmp_path / "a.png", speed)
    assert_legible(drawn[0])
    assert "does not fit" in texts(drawn[0])
    for batch in speed["batches"].values():
        batch["arms"] = dict.fromkeys(batch["arms"])
    plots.draw_speed(tmp_path / "b.png", speed)
    assert not (tmp_path / "b.png").exists()


def test_quality_and_cost(tmp_path: Path, arms: dict, cost: dict, drawn: list[Figure]) -> None:
    arms["compressed@32"] = arms["best-sentences"]
    plots.draw_quality_and_cost(tmp_path / plots.COST_PICTURE, arms, cost)
    (figure,) = drawn
    assert is_png(tmp_path / plots.COST_PICTURE)
    assert_legible(figure)
    (panel,) = figure.axes
    costed = [name for name in arms if name in cost["arms"] or "@" in name]
    assert not {"random", "shuffled", "before"} & set(costed)
    found = [tuple(c.lines[0].get_xydata()[0]) for c in panel.containers if isinstance(c, ErrorbarContainer)]
    spent = [cost["rates"]["32"] if "@" in name else cost["arms"][name] for name in costed]
    assert [x for x, _ in found] == pytest.approx([each["flops"]["total"] / 1e9 for each in spent])
    assert [y for _, y in found] == pytest.approx([100 * arms[name]["f1"] for name in costed])
    wanted = [100 * end for name in costed for end in arms[name]["intervals"]["f1"]]
    assert list(itertools.chain(*ends(panel, lambda s: s[:, 1].tolist()))) == pytest.approx(wanted)
    seen = texts(figure)
    assert "10⁹" in seen
    assert "the question charged to every window" in seen
    assert "writing 32 tokens" in seen
    assert f"n = {N:,}" in seen
    assert "rate 32" in seen
    marks = [handle.get_markerfacecolor() == "white" for handle in figure.legends[0].legend_handles]
    assert marks == [TABLE[name.partition("@")[0]].weights == "base" for name in costed]
    cost["arms"]["none"]["flops"] = None  # not counted
    some = {name: arms[name] for name in ("random", "none")}
    plots.draw_quality_and_cost(tmp_path / "none.png", some, cost)
    assert not (tmp_path / "none.png").exists()


def test_pictures_leave_matplotlib_as_it_was(tmp_path: Path, arms: dict, drawn: list[Figure]) -> None:
    """A user's style is kept, and is not used: with TeX, every label would need an installation of it."""
    loaded = "matplotlib.pyplot" in sys.modules
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "black", "font.size": 40}):
        names = [name for name in mpl.rcParams if "backend" not in name]  # asking for that one loads it
        before = {name: mpl.rcParams[name] for name in names}
        plots.draw_arms(tmp_path / "a.png", arms)
        assert {name: mpl.rcParams[name] for name in names} == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded
    assert_legible(drawn[0])


def test_a_picture_that_fails_leaves_nothing(tmp_path: Path, arms: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(plots, "_bar", fail)
    with pytest.raises(RuntimeError):
        plots.draw_arms(tmp_path / "a.png", arms)
    assert not list(tmp_path.iterdir())
