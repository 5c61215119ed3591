"""Runs of ``train sft`` on a corner of the demo set, with tiny random models."""

from __future__ import annotations

import datetime
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ragtrain.cli import main
from ragtrain.config.commands import SftConfig
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError, DataError
from ragtrain.models.causal import load_causal
from ragtrain.train import sft


def config_of(model: Path, corner: Path, output: Path, **changes: object) -> SftConfig:
    settings = {
        "model_name_or_path": str(model), "train_data": corner, "index": corner / "index", "n_docs": 2, "batch_size": 3,
        "gradient_accumulation_steps": 2, "max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "max_length": 512,
        "eval_samples": 2, "max_new_tokens": 4, "save_steps": None, "output_dir": output, "trackers": (), **changes,
    }  # fmt: skip
    return load_config(SftConfig, flags=settings).config


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


RUNS = {
    "chat": {"chat": True},
    "whole model": {"lora_rank": 0},
    "rsLoRA, DoRA": {"use_rslora": True, "use_dora": True, "lora_targets": ("q_proj", "v_proj")},
    "closed-book": {"n_docs": 0},
    "RAFT": {"raft": True, "raft_p": 0.5, "abstain_target": "unknown"},
    "a passage a sample": {"context_mode": "separate", "n_shots": 1},
    "packed": {"packing": True, "gradient_checkpointing": "on"},
    "shared beginnings": {"shared_context": True, "attention": "eager"},
    "hybrid retrieval, merged": {"retrieval": "dense", "merge": True, "answer_choice": "random"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_and_leaves_what_others_load(
    name: str, causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    changes = dict(RUNS[name])
    model = causal_lm("llama", chat=bool(changes.pop("chat", False)))
    result = sft.run(config_of(model, corner, tmp_path / "run", **changes))
    assert result.steps == 3
    rows = lines(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert 0 < rows[-1]["loss"] < rows[0]["loss"]
    assert {"eval_loss", "eval_em", "eval_f1"} <= rows[-1]["evaluation"].keys()
    final, sidecar = tmp_path / "run" / "final_model", tmp_path / "run" / "final_model" / "ragtrain.json"
    assert json.loads(sidecar.read_text())["prompt"]["max_length"] == 512
    weights = "model.safetensors" if changes.get("lora_rank") == 0 else "adapter_model.safetensors"
    assert any(tensor.any() for tensor in load_file(final / weights).values())
    assert (tmp_path / "run" / "merged_model" / "model.safetensors").is_file() == bool(changes.get("merge"))
    load_causal(final)


@pytest.mark.parametrize(
    "how", [{"packing": True}, {"shared_context": True}, {"gradient_checkpointing": "on"}], ids=str
)
def test_ways_of_computing_the_same(
    how: dict[str, object], causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    """With one step over all rows, loss and gradients are those of rows in sequences of their own."""
    whole = {"batch_size": 200, "gradient_accumulation_steps": 1, "max_steps": 1, "eval_samples": 0,
             "max_train_samples": 30}  # fmt: skip
    for name, changes in (("plain", {}), ("other", how)):
        sft.run(config_of(causal_lm("llama"), corner, tmp_path / name, **whole, **changes))
    (plain,), (other,) = lines(tmp_path / "plain"), lines(tmp_path / "other")
    assert other["weight"] == plain["weight"]
    assert other["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert other["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_rows_that_do_not_fit_end_the_run(causal_lm: Callable[..., Path], corner: Path, tmp_path: Path) -> None:
    """Nothing is written where everything is too long."""
    with pytest.raises(DataError, match="train no token") as error:
        sft.run(config_of(causal_lm("llama"), corner, tmp_path / "run", max_length=12))
    assert "--max-length" in error.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, "exclude each other"),
        ({"load_in_8bit": True, "lora_rank": 0}, "cannot be trained itself"),
        ({"lora_rank": 0, "lora_dropout": 0.1}, "shape adapters"),
        ({"lora_rank": 0, "merge": True}, "export.merge"),
        ({"packing": True, "shared_context": True}, "share a sequence"),
        ({"raft": True, "n_docs": 0}, "context.n_docs is 0"),
        ({"raft": True, "context_mode": "separate"}, "keeps passages apart"),
        ({"abstain_target": "unknown"}, "context.abstain_target"),
        ({"input_key": "prompt"}, "finished prompts"),
        ({"mask_mode": "ragfit"}, "completion_start"),
        ({"best_metric": "eval_em", "eval_samples": 0}, "eval_samples is 0"),
        ({"dev_split": 0.1, "val_data": "x.jsonl"}, "what is validated on"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(
    changes: dict[str, object], named: str, corner: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        sft.check(config_of(tmp_path / "model", corner, tmp_path / "run", **changes))


def test_a_dry_run_writes_nothing(causal_lm: Callable[..., Path], corner: Path, tmp_path: Path, capsys) -> None:
    config = config_of(causal_lm("llama"), corner, tmp_path / "run", dry_run=True, preview=1, shared_context=True)
    result = sft.run(config)
    assert result.path is None
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    assert "Question:" in said
    assert "trained" in said
    assert "times fewer tokens" in said


def test_a_run_that_goes_on_has_the_date_it_began_with(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    """Some chat templates write today's date; on another day the prompts of a run are still the same."""
    model = shutil.copytree(causal_lm("llama", chat=True), tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}" + template)
    config = config_of(model, corner, tmp_path / "run", max_steps=1)
    sft.run(config)
    about = tmp_path / "run" / "data.json"
    content = json.loads(about.read_text())
    content["prompt"]["date"] = "2020-02-29"
    about.write_text(json.dumps(content))
    sft.run(config_of(model, corner, tmp_path / "run", max_steps=2))
    assert json.loads(about.read_text())["prompt"]["date"] == "2020-02-29"
    sft.run(config_of(model, corner, tmp_path / "run", max_steps=2, overwrite=True))
    assert json.loads(about.read_text())["prompt"]["date"] == content_date()


def content_date() -> str:
    return datetime.datetime.now(tz=datetime.UTC).astimezone().date().isoformat()


def test_the_best_checkpoint_is_that_of_the_metric(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    config = config_of(
        causal_lm("llama"), corner, tmp_path / "run", best_metric="eval_f1", eval_steps=1, save_steps=1, max_steps=4
    )
    sft.run(config)
    rows = lines(tmp_path / "run")
    scores = [row["evaluation"]["eval_f1"] for row in rows]
    best = (tmp_path / "run" / "checkpoints" / "best").resolve().name
    assert best == f"step-{scores.index(max(scores)) + 1:06d}"


def test_a_device_that_is_full_first_recomputes_activations(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    sft.run(config_of(causal_lm("llama"), corner, tmp_path / "calm"))
    real = sft.completion_loss

    def loss(model, batch):
        if not model.is_activation_checkpointing and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return real(model, batch)

    monkeypatch.setattr(sft, "completion_loss", loss)
    sft.run(config_of(causal_lm("llama"), corner, tmp_path / "full"))
    assert "gradient checkpointing is switched on" in caplog.text
    calm, full = (load_file(tmp_path / name / "final_model" / "adapter_model.safetensors") for name in ("calm", "full"))
    for name, tensor in calm.items():
        torch.testing.assert_close(full[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def long_run(causal_lm: Callable[..., Path], corner: Path) -> list[str]:
    """Return the flags of a run in which everything is drawn at random: dropout, passages, answers, order."""
    return [
        "train", "sft", "--model-name-or-path", str(causal_lm("llama")), "--train-data", str(corner), "--index",
        str(corner / "index"), "--n-docs", "2", "--raft", "--lora-dropout", "0.1", "--batch-size", "3",
        "--gradient-accumulation-steps", "2", "--max-steps", "12", "--save-steps", "3", "--learning-rate", "1e-2",
        "--eval-samples", "0", "--answer-choice", "random", "--trackers", "null", "--logging-steps", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(long_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the weights that the run ends with."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([*long_run, "--output-dir", str(run)]) == 0
    return load_file(run / "final_model" / "adapter_model.safetensors")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    number: signal.Signals, long_run: list[str], undisturbed: dict[str, torch.Tensor], tmp_path: Path, spawn, capsys
) -> None:
    """The same command again, and the weights are the same bit for bit."""
    command = [*long_run, "--output-dir", str(tmp_path / "run")]
    process = spawn(*command)
    while not (tmp_path / "run" / "checkpoints" / "step-000003").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    assert "\r" not in said
    assert "\x1b" not in said
    assert main(command) == 0
    assert "resuming from" in capsys.readouterr().err
    again = load_file(tmp_path / "run" / "final_model" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in undisturbed.items())


@pytest.mark.slow
def test_runs_killed_at_random_steps_end_with_the_same_weights(
    long_run: list[str], undisturbed: dict[str, torch.Tensor], tmp_path: Path, spawn
) -> None:
    """Ten runs, each killed at a time of its own until it is done, by either signal."""
    rng = random.Random(0)
    for number in range(10):
        command = [*long_run, "--output-dir", str(tmp_path / str(number))]
        for _ in range(20):
            process = spawn(*command)
            try:
                process.communicate(timeout=rng.uniform(4.0, 20.0))
            except subprocess.TimeoutExpired:
                process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
                process.communicate(timeout=240)
            if process.returncode == 0:
                break
        assert process.returncode == 0
        again = load_file(tmp_path / str(number) / "final_model" / "adapter_model.safetensors")
        assert all(torch.equal(tensor, again[name]) for name, tensor in undisturbed.items())
