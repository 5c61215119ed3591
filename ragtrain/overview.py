"""What runs there are, and how one of them goes: from their folders alone, whether they run here, elsewhere or no more."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import re
import time
from typing import TYPE_CHECKING, Any, Literal

from ragtrain import report
from ragtrain.errors import DataError
from ragtrain.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ragtrain.config.commands import RunsConfig, StatusConfig

log = logging.getLogger("ragtrain")

State = Literal["finished", "running", "stopped", "not begun"]
#: Folders inside folders that are looked through for runs.
DEPTH = 4
#: A run on another machine, or one without a process, counts as running while it wrote something this long ago, in seconds.
FRESH_S = 300
_STEP = re.compile(r"\bstep (\d+)/(\d+)\b.*?(?:ETA (\S+))?$")
#: A process that began this much later than the run's is another one with its number, in seconds.
_SAME_S = 5.0


@dataclasses.dataclass(frozen=True)
class RunState:
    """How a run goes.

    Attributes:
        path: the run folder.
        kind: of the training.
        state: ``finished``; ``running``; ``stopped`` before its end; ``not begun``: before the first step.
        step: last optimizer step.
        total: steps of the whole run, where its log says so.
        loss: of the last step.
        best: the best evaluation, by metric.
        best_step: its step.
        eta: what the log says is left, while it runs.
        age_s: seconds since it wrote something.
        checkpoints: names of those that are there.
        alarms: alarms raised.
        evaluated: whether ``eval`` holds an evaluation.
    """

    path: Path
    kind: str
    state: State
    step: int
    total: int | None
    loss: float | None
    best: dict[str, float]
    best_step: int | None
    eta: str | None
    age_s: float
    checkpoints: tuple[str, ...]
    alarms: int
    evaluated: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": str(self.path), "checkpoints": list(self.checkpoints)}


@dataclasses.dataclass(frozen=True)
class RunsResult:
    """The runs in a folder, the one that wrote last first."""

    runs: tuple[RunState, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the JSON form."""
        return [each.to_json() for each in self.runs]


def list_runs(config: RunsConfig) -> RunsResult:
    """List the runs in a folder, and in those inside it.

    Raises:
        DataError: there is no such folder.
    """
    if not config.folder.is_dir():
        raise DataError(
            "no such folder", path=config.folder, hint="give the folder that --output-dir of the runs lie in"
        )
    found = sorted((state_of(path) for path in _folders(config.folder, DEPTH)), key=lambda each: each.age_s)
    rows = [
        (
            str(each.path),
            each.kind,
            each.state,
            _steps(each),
            _best(each),
            report.duration(each.age_s),
            each.alarms or "",
        )
        for each in found
    ]
    if rows:
        report.table(f"runs in {config.folder}", ("run", "kind", "state", "step", "best", "wrote", "alarms"), rows)
    else:
        log.info("no runs in %s", config.folder)
    return RunsResult(tuple(found))


def status(config: StatusConfig) -> RunState:
    """Show how a run goes, and the end of its log.

    Raises:
        DataError: it is no run folder.
    """
    found = state_of(config.run)
    pairs: list[tuple[str, object]] = [
        ("kind", found.kind), ("state", found.state), ("step", _steps(found)),
        ("loss", "" if found.loss is None else f"{found.loss:.4f}"), ("best", _best(found)),
        ("wrote", f"{report.duration(found.age_s)} ago"), ("checkpoints", ", ".join(found.checkpoints) or "none"),
        ("alarms", found.alarms), ("evaluated", "yes" if found.evaluated else "no"),
    ]  # fmt: skip
    if found.eta is not None:
        pairs.insert(3, ("time left", found.eta))
    report.panel(str(found.path), pairs)
    lines = _tail(RunFolder.open(config.run).log_file, config.lines)
    if lines:
        report.block("log", "\n".join(lines))
    if found.state == "stopped":
        log.info("the command that began it goes on with it; or ragtrain train %s --config %s --resume latest", found.kind,
                 found.path / "config.yaml")  # fmt: skip
    return found


def state_of(path: Path) -> RunState:
    """Return how a run goes.

    Raises:
        DataError: it is no run folder, or a line of its metrics is broken.
    """
    folder = RunFolder.open(path)
    rows = folder.read_metrics() if folder.metrics_file.is_file() else []
    last = rows[-1] if rows else {}
    evaluated = [row for row in rows if row.get("is_best")]
    total, eta = _progress(folder.log_file)
    age = max(
        0.0, time.time() - max(_mtime(each) for each in (folder.metrics_file, folder.log_file, path / "config.yaml"))
    )
    state: State = "stopped" if rows else "not begun"
    if last.get("is_last") and folder.final_model.is_dir():
        state = "finished"
    elif _runs(path, age):
        state = "running"
    return RunState(
        path, folder.kind, state, int(last.get("step", 0)), total, last.get("loss"),
        dict(evaluated[-1]["evaluation"]) if evaluated else {}, evaluated[-1]["step"] if evaluated else None,
        eta if state == "running" else None, age,
        tuple(sorted(each.name for each in folder.checkpoints.glob("step-*"))) if folder.checkpoints.is_dir() else (),
        len(folder.read_alarms()) if folder.alarms_file.is_file() else 0, (path / "eval").is_dir(),
    )  # fmt: skip


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """Yield run folders; what lies inside a run is part of it."""
    try:
        RunFolder.open(root)
    except DataError:
        if depth:
            for child in sorted(root.iterdir()):
                if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                    yield from _folders(child, depth - 1)
        return
    yield root


def _runs(path: Path, age: float) -> bool:
    """Return whether a run's process is there; where that cannot be known, whether it wrote something lately."""
    file = path / "env.json"
    try:
        process = json.loads(file.read_text(encoding="utf-8")).get("process")
    except (OSError, ValueError, AttributeError):
        process = None
    if not isinstance(process, dict) or process.get("host") != platform.node():
        return age < FRESH_S
    import psutil

    try:
        began = psutil.Process(int(process["pid"])).create_time()
    except (psutil.Error, KeyError, ValueError):
        return False
    return bool(abs(began - float(process.get("began", began))) < _SAME_S)


def _progress(log_file: Path) -> tuple[int | None, str | None]:
    """Return the steps of the whole run and the time left, from the last line of the log that says them."""
    for line in reversed(_tail(log_file, 200)):
        found = _STEP.search(line)
        if found:
            return int(found.group(2)), found.group(3)
    return None, None


def _tail(file: Path, lines: int) -> list[str]:
    """Return the last lines of a file, however long it is."""
    if not file.is_file():
        return []
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - 400 * lines))
        return opened.read().decode("utf-8", errors="replace").splitlines()[-lines:]


def _mtime(file: Path) -> float:
    return file.stat().st_mtime if file.is_file() else 0.0


def _steps(each: RunState) -> str:
    return f"{each.step}" if each.total is None else f"{each.step} of {each.total}"


def _best(each: RunState) -> str:
    """Return the two figures of the best evaluation that say most: the loss, and the first other one."""
    shown = [name for name in each.best if name != "eval_loss"][:1] or list(each.best)[:1]
    return ", ".join(f"{name} {each.best[name]:.3f} at step {each.best_step}" for name in shown)
