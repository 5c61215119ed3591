"""A run that ends badly and goes on is the run that did not: bit for bit on the CPU, dropout on."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from ragtrain import loop
from ragtrain.errors import CheckpointError, ConfigError
from ragtrain.loop import checkpoints
from ragtrain.models import weights
from ragtrain.runs import RunFolder


def same(a, b):
    """Return whether two nests of tensors and numbers are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_run(one, two, step):
    """Weights, optimizer, random states, loop state and the line of every step are the same."""
    name = f"checkpoints/step-{step:06d}"
    assert same(load_file(one / name / "model.safetensors"), load_file(two / name / "model.safetensors"))
    states = [torch.load(run / name / "training.pt", weights_only=True) for run in (one, two)]
    assert same(*states)
    inner = [json.loads((run / name / "state.json").read_text())["state"] for run in (one, two)]
    for state in inner:  # the sums since the last log line: a resumed run logs its first step besides
        state.pop("window_loss")
        state.pop("window_weight")
    assert inner[0] == inner[1]
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [row["step"] for row in rows[0]] == list(range(1, step + 1))
    for row in rows[0] + rows[1]:
        row.pop("seconds")
        row.pop("examples_per_s")
    assert rows[0] == rows[1]


CONFIG = {"max_steps": 9, "save_steps": 2, "eval_steps": 3, "seed": 3}


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    done = start(out=out, config=CONFIG, evaluate=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("kill_at", [1, 4, 5, 9])
def test_kill_and_resume_is_uninterrupted(start, tmp_path, uninterrupted, kill_at):
    """Killed before the first checkpoint, right after one, between two, and at the end."""
    out = tmp_path / "run"
    killed = start(out=out, config=CONFIG, evaluate=True, kill_at=kill_at)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "end.pt").exists()
    resumed = start(out=out, config=CONFIG, evaluate=True)
    assert resumed.returncode == 0, resumed.stderr
    assert ("resuming from" in resumed.stderr) == (kill_at > 1)
    assert_same_run(uninterrupted, out, 9)
    ends = [torch.load(run / "end.pt", weights_only=True) for run in (uninterrupted, out)]
    assert same(*ends)


def test_the_comparison_can_fail(start, tmp_path, uninterrupted):
    """Another seed for dropout and order is not the same run."""
    out = tmp_path / "run"
    assert start(out=out, config={**CONFIG, "seed": 4}, evaluate=True).returncode == 0
    with pytest.raises(AssertionError):
        assert_same_run(uninterrupted, out, 9)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_names_the_command(start, tmp_path, uninterrupted, number, code):
    out = tmp_path / "run"
    stopped = start(out=out, config=CONFIG, evaluate=True, signal_at=5, signal=int(number))
    assert stopped.returncode == code, stopped.stderr
    assert f"ragtrain train toy --config {out}/config.yaml --resume latest" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert (out / "checkpoints" / "latest").resolve().name == "step-000005"
    assert start(out=out, config=CONFIG, evaluate=True).returncode == 0
    assert_same_run(uninterrupted, out, 9)


def test_second_signal_in_an_evaluation_stops_at_once(start, tmp_path, uninterrupted):
    """Step 6 is due for saving and evaluating: it was saved first, and its evaluation is made up for."""
    out = tmp_path / "run"
    stopped = start(out=out, config=CONFIG, evaluate=True, signal_in_evaluation=2)
    assert stopped.returncode == 143, stopped.stderr
    assert "stopped at once" in stopped.stderr
    state = json.loads((out / "checkpoints/latest/state.json").read_text())["state"]
    assert (state["step"], state["pending"]["index"]) == (6, 6)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 5
    assert start(out=out, config=CONFIG, evaluate=True).returncode == 0
    assert_same_run(uninterrupted, out, 9)


def test_one_rank_is_told_and_all_stop(start, tmp_path):
    """The signal reaches rank 1 only; both end after the same step, and the run goes on from there."""
    config = {**CONFIG, "max_steps": 8, "gradient_accumulation_steps": 1}
    stopped = start(2, out=tmp_path / "run", config=config, signal_at=4, signal_rank=1)
    assert stopped.returncode != 0
    assert "SIGTERM after step 5 of 8" in stopped.stderr
    assert "accelerate launch --num_processes 2 -m ragtrain train toy" in stopped.stderr
    resumed = start(2, out=tmp_path / "run", config=config)
    assert resumed.returncode == 0, resumed.stderr
    whole = start(2, out=tmp_path / "whole", config=config)
    assert whole.returncode == 0, whole.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "run", 8)


def go(toy, out, *, model=None, source=None, evaluate=None, **config):
    """Train in this process; return the steps and the model."""
    model = model or toy.Net()
    training = toy.settings(out, **config)
    steps = loop.steps(
        model, toy.loss, source or toy.Source(), groups=toy.groups(model), training=training, evaluate=evaluate
    )
    return list(steps), model


def test_a_finished_run_has_nothing_to_do_and_its_weights(toy, tmp_path, caplog):
    _, model = go(toy, tmp_path / "run")
    with caplog.at_level("INFO", "ragtrain"):
        steps, again = go(toy, tmp_path / "run")
    assert steps == []
    assert "nothing left to do: the run has done 6 of 6 steps" in caplog.text
    assert same(dict(model.state_dict()), dict(again.state_dict()))


def test_a_finished_run_can_be_prolonged(toy, tmp_path, caplog):
    go(toy, tmp_path / "run")
    with caplog.at_level("WARNING", "ragtrain"):
        steps, _ = go(toy, tmp_path / "run", max_steps=10)
    assert [step.index for step in steps] == [7, 8, 9, 10]
    assert "the run now has 10 steps instead of 6" in caplog.text
    # The schedule of 10 steps with one of warm-up: 4 of 9 left before step 7.
    assert steps[0].learning_rates["first"] == pytest.approx(0.05 * 4 / 9)


def test_resume_best_removes_what_came_after(toy, tmp_path):
    values = iter([3.0, 1.0, 2.0, 5.0, 6.0])
    config = {"eval_steps": 2, "save_total_limit": None}
    go(toy, tmp_path / "run", evaluate=lambda _: {"eval_loss": next(values)}, **config)
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "best").resolve().name == "step-000004"
    first = load_file(folder / "step-000006" / "model.safetensors")

    def evaluate(model):
        assert list(checkpoints.listing(folder)) == [2, 4, 6], "step 6 was saved anew before its evaluation"
        assert [row["step"] for row in RunFolder.open(tmp_path / "run").read_metrics()] == [1, 2, 3, 4, 5]
        return {"eval_loss": next(values)}

    resumed = loop.steps(
        model := toy.Net(), toy.loss, toy.Source(), groups=toy.groups(model), evaluate=evaluate,
        training=toy.settings(tmp_path / "run", resume="best", **config),
    )  # fmt: skip
    assert next(resumed).index == 5
    assert list(checkpoints.listing(folder)) == [2, 4]
    assert [step.index for step in resumed] == [6]
    assert same(first, load_file(folder / "step-000006" / "model.safetensors"))
    assert [row["step"] for row in RunFolder.open(tmp_path / "run").read_metrics()] == [1, 2, 3, 4, 5, 6]


def test_training_does_not_depend_on_draws_before_it(toy, tmp_path):
    """What building a model draws differs between a fresh start and a resumed one; dropout must not."""
    ends = []
    for draws in (0, 5):
        training = toy.settings(tmp_path / f"run-{draws}")
        accelerator = loop.make_accelerator(training.config)
        model = toy.Net()
        torch.rand(draws)
        list(
            loop.steps(
                model, toy.loss, toy.Source(), groups=toy.groups(model), training=training, accelerator=accelerator
            )
        )
        ends.append(dict(model.state_dict()))
    assert same(*ends)


def test_resume_from_a_path(toy, tmp_path):
    go(toy, tmp_path / "a")
    config = {"max_steps": 6}
    steps, _ = go(toy, tmp_path / "b", resume=str(tmp_path / "a/checkpoints/step-000004"), **config)
    assert [step.index for step in steps] == [5, 6]
    names = [f"{run}/checkpoints/step-000006/model.safetensors" for run in ("a", "b")]
    assert same(*(load_file(tmp_path / name) for name in names))


def test_resume_never_sets_the_old_run_aside(toy, tmp_path):
    go(toy, tmp_path / "run")
    steps, _ = go(toy, tmp_path / "run", resume="never")
    assert [step.index for step in steps] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run.old-1" / "checkpoints" / "latest").is_dir()


def test_another_run_in_the_folder_is_refused_before_anything_is_written(toy, tmp_path):
    go(toy, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with pytest.raises(ConfigError, match=r"loop.seed: 0 there, 1 here") as caught:
        go(toy, tmp_path / "run", seed=1)
    for option in ("--resume never", "--overwrite", "--output-dir"):
        assert option in (caught.value.hint or "")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}


def test_a_checkpoint_of_another_configuration_is_refused(toy, tmp_path):
    go(toy, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"loop.seed: 0 there, 1 here"):
        go(toy, tmp_path / "b", seed=1, resume=str(tmp_path / "a/checkpoints/step-000004"))


def test_another_number_of_micro_batches_is_refused(toy, tmp_path):
    go(toy, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"its steps have 2 micro-batches .* and these have 3"):
        go(toy, tmp_path / "run", max_steps=9, gradient_accumulation_steps=3)


def test_other_data_is_refused(toy, tmp_path):
    go(toy, tmp_path / "run")
    with pytest.raises(CheckpointError, match="the training examples of epoch 2, or their order"):
        go(toy, tmp_path / "run", max_steps=9, source=toy.Source(n=28))


def test_other_models_are_refused(toy, tmp_path):
    go(toy, tmp_path / "run")
    with pytest.raises(CheckpointError, match="its weights do not fit the model"):
        go(toy, tmp_path / "run", max_steps=9, model=toy.Line())


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "state.json"])
def test_a_checkpoint_without_a_file_is_refused(toy, tmp_path, name):
    go(toy, tmp_path / "run")
    (tmp_path / "run/checkpoints/step-000006" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        go(toy, tmp_path / "run", max_steps=9)


@pytest.mark.parametrize("key", ["optimizer", "scaler", "random"])
def test_a_checkpoint_without_a_key_is_refused(toy, tmp_path, key):
    go(toy, tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-000006/training.pt"
    content = torch.load(path, weights_only=True)
    del content[key]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"lacks '{key}'"):
        go(toy, tmp_path / "run", max_steps=9)


def test_a_state_without_a_key_is_refused(toy, tmp_path):
    go(toy, tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-000006/state.json"
    content = json.loads(path.read_text())
    del content["frame"]["plan"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="its state lacks plan"):
        go(toy, tmp_path / "run", max_steps=9)


def test_a_pickle_in_a_checkpoint_runs_no_code(toy, tmp_path):
    go(toy, tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-000006/training.pt"
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (shutil.copy, (str(path), str(trap)))

    torch.save({"optimizer": Trap(), "scaler": None, "random": []}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        go(toy, tmp_path / "run", max_steps=9)
    assert not trap.exists()


@pytest.mark.parametrize("resume", ["latest", "best"])
def test_asking_for_a_checkpoint_that_is_not_there(toy, tmp_path, resume):
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        go(toy, tmp_path / "run", resume=resume)


def test_a_path_that_is_not_there(toy, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        go(toy, tmp_path / "run", resume=str(tmp_path / "nowhere"))


def test_half_written_leftovers_are_ignored_and_removed(toy, tmp_path):
    """What a kill in the middle of a save leaves: a dotted folder, and a link that points to what is gone."""
    go(toy, tmp_path / "run", max_steps=4)
    folder = tmp_path / "run" / "checkpoints"
    half = folder / ".step-000006.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (folder / "latest").unlink()
    (folder / "latest").symlink_to("step-000099")
    steps, _ = go(toy, tmp_path / "run", max_steps=5)
    assert [step.index for step in steps] == [5]
    assert not half.exists()
    assert (folder / "latest").readlink().name == "step-000005"


def test_a_failing_save_leaves_the_checkpoint_before(toy, tmp_path, monkeypatch):
    real, calls = weights.save_weights, []

    def full_disk(model, folder):
        calls.append(folder)
        real(model, folder)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_weights", full_disk)
    with pytest.raises(OSError, match="No space left"):
        go(toy, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.listing(folder).values()] == ["step-000002"]
    monkeypatch.undo()
    steps, _ = go(toy, tmp_path / "run")
    assert [step.index for step in steps] == [3, 4, 5, 6]
