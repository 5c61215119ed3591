"""Runs as their folders show them: finished, running, stopped, not begun."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from ragtrain import overview
from ragtrain.config.commands import RunsConfig, StatusConfig
from ragtrain.errors import DataError
from ragtrain.runs import RunFolder

if TYPE_CHECKING:
    from pathlib import Path


def make_run(path: Path, *rows: dict[str, Any], old: bool = True, finished: bool = False) -> RunFolder:
    run = RunFolder.create(path, "rag", {"loop": {"seed": 0}}, overwrite=False, resume="auto")
    run.write_env(device="cpu", seed=0)
    for row in rows:
        run.append_metrics(row)
    lines = [f"2026-01-01 00:00:00 step {row['step']}/20  loss 1.0  ETA 0:01:00" for row in rows]
    run.log_file.write_text("\n".join([*lines, "a last line"]) + "\n")
    if finished:
        run.final_model.mkdir()
    if old:
        for file in run.path.iterdir():
            os.utime(file, (1e9, 1e9))
    return run


STEP = {"step": 10, "loss": 1.5}
BEST = {"step": 20, "loss": 1.0, "evaluation": {"eval_loss": 0.9, "eval_em": 0.5}, "is_best": True, "is_last": True}


def test_what_state_a_run_is_in(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", STEP)
    assert overview.state_of(run.path).state == "running", "its process is this one"
    assert overview.state_of(run.path).eta == "0:01:00"
    env = run.path / "env.json"
    told = json.loads(env.read_text())
    for change in ({"pid": 2**22 + 1}, {"began": 0.0}):
        env.write_text(json.dumps({**told, "process": {**told["process"], **change}}))
        stopped = overview.state_of(run.path)
        assert (stopped.state, stopped.step, stopped.total, stopped.eta) == ("stopped", 10, 20, None)
    env.write_text(json.dumps({**told, "process": {**told["process"], "host": "another"}}))
    assert overview.state_of(run.path).state == "stopped", "on another machine, and silent"
    run.log_file.write_text("something\n")
    assert overview.state_of(run.path).state == "running", "on another machine, and writing"
    done = overview.state_of(make_run(tmp_path / "done", STEP, BEST, finished=True).path)
    assert (done.state, done.best, done.best_step) == ("finished", BEST["evaluation"], 20)
    begun = make_run(tmp_path / "begun")
    (begun.path / "env.json").unlink()
    assert overview.state_of(begun.path).state == "not begun"


def test_runs_are_listed_the_latest_first_and_not_those_inside_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a" / "old", STEP, BEST, finished=True)
    make_run(tmp_path / "new", STEP, old=False)
    make_run(tmp_path / "new" / "pretraining", STEP)
    found = overview.list_runs(RunsConfig(folder=tmp_path))
    assert [each.path.name for each in found.runs] == ["new", "old"]
    assert json.loads(json.dumps(found.to_json()))[1]["state"] == "finished"
    said = capsys.readouterr().err
    assert "eval_em 0.500 at step 20" in said
    assert "10 of 20" in said


def test_a_folder_without_runs(tmp_path: Path) -> None:
    assert overview.list_runs(RunsConfig(folder=tmp_path)).runs == ()
    with pytest.raises(DataError, match="no such folder"):
        overview.list_runs(RunsConfig(folder=tmp_path / "nothing"))
    with pytest.raises(DataError, match="not a run folder"):
        overview.status(StatusConfig(run=tmp_path))


def test_status_shows_the_end_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", STEP)
    found = overview.status(StatusConfig(run=run.path, lines=1))
    assert found.step == 10
    said = capsys.readouterr().err
    assert "a last line" in said
    assert "step 10/20" not in said
