"""What stands in the way of a run of ``train compress`` is found before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ragtrain.config.commands import CompressConfig
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError, DataError, Interrupted
from ragtrain.models.compress.model import CompressModel
from ragtrain.train import compress
from ragtrain.train.compress.check import check, make_accelerator
from ragtrain.train.compress.objective import rows_of_passages, tokens_of_passages


def config_of(model: Path, corner: Path, output: Path, **changes: object) -> CompressConfig:
    flags = {
        "model_name_or_path": str(model), "train_data": corner, "num_layers": 1, "num_memory_tokens": 4,
        "compression_rate": 8, "batch_size": 3, "gradient_accumulation_steps": 1, "max_steps": 2, "lora_rank": 4,
        "eval_samples": 0, "max_eval_samples": 2, "max_new_tokens": 3, "save_steps": None, "speed_repeats": 0,
        "trackers": (), "arms": "compressed", "full_context_steps": 0, "output_dir": output, **changes,
    }  # fmt: skip
    return load_config(CompressConfig, flags=flags).config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, "exclude each other"),
        ({"load_in_4bit": True, "dtype": "float16"}, "model.dtype"),
        ({"lora_rank": 0}, "the base is read as well"),
        ({"compressor_model": "some/encoder"}, "copies layers of the generator"),
        ({"eval_data": "x.json", "dev_split": 0.1}, "what is evaluated on"),
        ({"answers": "teacher", "answer_choice": "random"}, "draws among references"),
        ({"arms": "compressed,guessed"}, "there is no guessed"),
        ({"arms": "compressed,full"}, "full_context_steps=0 does not train"),
        ({"best_metric": "eval_f1"}, "evaluation.eval_samples is 0"),
        ({"rates": "4,8"}, "8 is compressor.compression_rate"),
        ({"reconstruction_share": 0.9}, "objective.pretrain_steps is 0"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(
    changes: dict[str, object], named: str, corner: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        check(config_of(tmp_path / "model", corner, tmp_path / "run", **changes))


def test_everything_that_is_wrong_is_told_at_once(corner: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check(config_of(tmp_path / "model", corner, tmp_path / "run", lora_rank=0, arms="guessed", rates="8"))
    assert all(word in error.value.message for word in ("lora.lora_rank", "guessed", "compressor.rates"))


def test_devices(corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="there is no GPU"):
        make_accelerator(config_of(tmp_path / "model", corner, tmp_path / "run", device="gpu"))
    found = make_accelerator(config_of(tmp_path / "model", corner, tmp_path / "run", device="cpu"))
    assert (found.device.type, found.mixed_precision) == ("cpu", "no")


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"train_data": "nothing.json"}, DataError, "nothing.json"),
        ({"eval_data": "nothing.json"}, DataError, "nothing.json"),
        ({"model_name_or_path": "./nothing"}, ConfigError, "nothing"),
        ({"num_layers": 3}, ConfigError, "the generator has 2"),
        ({"answers": "teacher"}, DataError, "an answer of a teacher"),
        ({"num_memory_tokens": 64, "compression_rate": 1, "n_distractors": 20}, DataError, "the generator has 1024"),
        ({"num_memory_tokens": 64, "compression_rate": 16}, ConfigError, "the compressor has 1024"),
    ],
    ids=str,
)
def test_what_cannot_be_done_ends_before_anything_is_written(
    changes: dict[str, object],
    kind: type[Exception],
    named: str,
    causal_lm: Callable[..., Path],
    corner: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(causal_lm("llama"), corner, tmp_path / "run", **changes)
    with pytest.raises(kind, match=named):
        compress.run(config)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(causal_lm: Callable[..., Path], corner: Path, tmp_path: Path) -> None:
    result = compress.run(config_of(causal_lm("llama"), corner, tmp_path / "run", dry_run=True, rates="4", n_docs=1))
    assert result.path is None
    assert result.plan["training rows"].endswith(", 1.0 passages each on average")
    assert not (tmp_path / "run").exists()
    assert result.plan["window"] == "32 tokens into 4 vectors, or 8"
    assert result.plan["relevance head"] == "none"


def test_another_configuration_is_another_run(causal_lm: Callable[..., Path], corner: Path, tmp_path: Path) -> None:
    compress.run(config_of(causal_lm("llama"), corner, tmp_path / "run", max_steps=1))
    with pytest.raises(ConfigError, match="holds another run"):
        compress.run(config_of(causal_lm("llama"), corner, tmp_path / "run", num_memory_tokens=2))
    # More steps are the same run, prolonged: what comes after training is done again.
    compress.run(config_of(causal_lm("llama"), corner, tmp_path / "run", max_steps=2))
    assert json.loads((tmp_path / "run" / "metrics_report.json").read_text())["steps"] == 2


def test_without_evaluation_rows_it_trains(causal_lm: Callable[..., Path], corner: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join((corner / "train.jsonl").read_text().splitlines(keepends=True)[:12]))
    result = compress.run(config_of(causal_lm("llama"), rows, tmp_path / "run", dev_split=0))
    assert result.steps == 2
    assert not (tmp_path / "run" / "metrics_report.json").exists()


def test_a_run_stopped_in_pre_training_goes_on_by_the_command_that_it_names(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training that the command is to go on with has no checkpoint yet."""
    from ragtrain.train.compress import phases

    real, calls = phases.text_loss, []

    def loss(model, batch):
        calls.append(1)
        if len(calls) == 2:
            import signal

            signal.raise_signal(signal.SIGTERM)
        return real(model, batch)

    config = config_of(causal_lm("llama"), corner, tmp_path / "run", pretrain_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(phases, "text_loss", loss)
        with pytest.raises(Interrupted) as stopped:
            compress.run(config)
    words = str(stopped.value.hint).partition("ragtrain train compress --config ")[2].split()
    again = load_config(CompressConfig, [words[0]], flags={"resume": words[2]}).config
    assert again.run.output_dir == config.run.output_dir
    assert compress.run(again).steps == 2


def test_a_device_that_is_full_first_recomputes_activations(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    real = CompressModel.forward

    def forward(self, batch):
        if not self.generator.is_activation_checkpointing and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return real(self, batch)

    calm = compress.run(config_of(causal_lm("llama"), corner, tmp_path / "calm"))
    monkeypatch.setattr(CompressModel, "forward", forward)
    full = compress.run(config_of(causal_lm("llama"), corner, tmp_path / "full"))
    assert "gradient checkpointing is switched on" in caplog.text
    assert full.loss == pytest.approx(calm.loss, rel=1e-5)


def test_passages_know_the_rows_that_they_are_of() -> None:
    """Rows of 2, 0 and 1 passages, of which the first is two windows: against a loop over slots."""
    from types import SimpleNamespace

    windows = SimpleNamespace(
        counts=torch.tensor([2, 1, 3, 1]), document=torch.tensor([0, 0, 1, 2]), n_documents=3
    )  # fmt: skip
    slot = torch.full((3, 9), -1)
    slot[0, 1:7] = torch.arange(6)
    slot[2, 4] = 6
    slot[1, 2] = -2
    found = rows_of_passages(windows, slot)
    assert found.tolist() == [0, 0, 2]
    labels = torch.full((3, 9), -100)
    labels[0, 7:9] = labels[2, 6:9] = 5
    predictors = (labels.reshape(-1) != -100).nonzero()[:, 0] - 1
    batch = SimpleNamespace(windows=windows, slot=slot, labels=labels, predictors=predictors)
    assert tokens_of_passages(batch).tolist() == [2, 2, 3]
