"""``ragtrain eval`` of a run of ``train compress``: its files, rates, checkpoints, reruns and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ragtrain import compare
from ragtrain.config.commands import CompareConfig, CompressConfig, EvalConfig
from ragtrain.config.load import load_config
from ragtrain.data.compress.contexts import CompressContexts
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.rows import read_rows
from ragtrain.data.compress.windows import Windower
from ragtrain.errors import CheckpointError, ConfigError
from ragtrain.evaluate import run
from ragtrain.evaluate.compress import measure
from ragtrain.evaluate.compress.measure import ArmSettings, answer_memory
from ragtrain.evaluate.compress.subject import Subject
from ragtrain.models.adapters import save_adapters
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.export import Tokenizers, load_compress, save_compress
from ragtrain.models.weights import save_weights
from ragtrain.runs import RunFolder

ALL = {"none-base", "none", "full-base", "full", "truncated-base", "truncated", "best-sentences-base", "best-sentences",
       "compressed", "random", "shuffled"}  # fmt: skip


def config_of(path: Path | str, **changes: Any) -> EvalConfig:
    return EvalConfig(**{"model_dir": str(path), "device": "cpu", **changes})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def moved(model: torch.nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)


@pytest.fixture(scope="session")
def finished(base: Path, corner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run as training leaves it, of random weights."""
    folder = tmp_path_factory.mktemp("compress") / "run"
    flags = {
        "model_name_or_path": str(base), "train_data": corner, "num_layers": 1, "num_memory_tokens": 3,
        "compression_rate": 6, "rates": (9,), "lora_rank": 2, "lora_alpha": 8.0, "n_docs": 2, "max_new_tokens": 5,
        "output_dir": folder, "rank_weight": 0.0,
    }  # fmt: skip
    config = load_config(CompressConfig, flags=flags).config
    torch.manual_seed(0)
    model, *tokenizers = build_compress(config)
    made = RunFolder.create(folder, "compress", config.model_dump(mode="json"), overwrite=False, resume="auto")
    prompt = CompressPrompter(tokenizers[0]).settings.to_json()
    _, about = read_rows(config.data, corner, split="train")
    made.write_data({"train": about, "prompt": prompt})
    moved(model.generator, 1)
    save_adapters(model.generator, folder / "full_context" / "final_model", str(base))
    moved(model.generator, 2)
    about = {"prompt": prompt, "data": {}, "context": config.context.model_dump(mode="json"), "max_new_tokens": 5}
    save_compress(model, Tokenizers(*tokenizers), made.final_model, sidecar=about)
    moved(model.generator, 3)
    checkpoint = made.checkpoints / "step-1"
    checkpoint.mkdir(parents=True)
    save_weights(model, checkpoint)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def subject_at(folder: Path) -> Subject:
    model, (tokenizer, own), _ = load_compress(folder)
    return Subject(model, tokenizer, Windower(own, model.settings), CompressPrompter(tokenizer))


def test_a_run_needs_no_other_flag_and_its_files_hold_every_arm(copied: Path, corner: Path) -> None:
    result = run(config_of(copied))
    assert result.path == copied / "eval"
    summary = json.loads((result.path / "metrics.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    config = load_config(CompressConfig, flags={"train_data": corner, "n_docs": 2}).config
    examples, _ = read_rows(config.data, corner / "test.jsonl", split="test")
    shown = CompressContexts(examples, config.context, seed=0).contexts()
    rows = lines(result.path)
    assert [row["id"] for row in rows] == [example.id for example in examples]
    assert [[doc["id"] for doc in row["documents"]] for row in rows] == [
        [d.id for d in each.documents] for each in shown
    ]
    asked = [each.example for each in shown]
    expected = answer_memory(subject_at(copied), asked, ArmSettings(max_new_tokens=5, batch_size=2))
    assert [row["prediction"] for row in rows] == [record.prediction for record in expected.records]
    assert set(summary["arms"]) == ALL
    for row in rows:
        assert set(row["arms"]) == ALL - {"compressed"}
    assert summary["em"] == summary["arms"]["compressed"]["em"]
    assert result.metrics["f1"] == expected.metrics["f1"]
    assert summary["verdict"]["outcome"] == "adds nothing"
    assert summary["counts"] == {name: {"n": len(rows), "missing": 0} for name in summary["intervals"]}
    assert summary["latency_mean_s"] == pytest.approx(sum(row["seconds"] for row in rows) / len(rows))
    assert summary["questions_per_s"] == pytest.approx(len(rows) / summary["seconds"])
    assert summary["settings"]["max_new_tokens"] == 5
    assert summary["settings"]["compression_rate"] == 6
    assert not list(copied.glob(".eval*"))


def test_the_same_evaluation_is_not_made_twice_and_another_is_left_alone(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(config_of(copied, num_samples=3))
    assert not first.reused
    again = run(config_of(copied, num_samples=3, batch_size=1))
    assert again.reused
    assert again.summary == json.loads(json.dumps(first.summary))
    with pytest.raises(ConfigError, match="another evaluation"):
        run(config_of(copied, num_samples=3, compression_rate=9))
    coarse = run(config_of(copied, num_samples=3, compression_rate=9, output_dir=copied / "coarse"))
    assert coarse.summary["arms"]["compressed"]["context_tokens"] == pytest.approx(
        first.summary["arms"]["compressed"]["context_tokens"] * 2 / 3
    )
    assert coarse.summary["arms"]["full"]["em"] == first.summary["arms"]["full"]["em"]
    found = compare.run(CompareConfig(runs=(copied, copied / "coarse")))
    assert found.comparisons[0].n == 3


def test_a_stopped_evaluation_goes_on_with_the_arm_it_was_at(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(config_of(copied, num_samples=2, output_dir=copied / "whole"))
    real, asked = measure.generate, []

    def stopping(*arguments: Any, **how: Any) -> Any:
        asked.append(1)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return real(*arguments, **how)

    monkeypatch.setattr(measure, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(copied, num_samples=2))
    assert not (copied / "eval").exists()
    found = run(config_of(copied, num_samples=2))
    assert len(asked) == 5 + len(ALL) - 4
    assert [
        (row["prediction"], {name: each["prediction"] for name, each in row["arms"].items()})
        for row in lines(found.path)
    ] == [
        (row["prediction"], {name: each["prediction"] for name, each in row["arms"].items()})
        for row in lines(whole.path)
    ]


def test_checkpoints_of_runs_that_have_ended_and_that_have_not(copied: Path) -> None:
    final = run(config_of(copied, output_dir=copied / "a"))
    earlier = run(config_of(copied, checkpoint="step-1", output_dir=copied / "b"))
    assert [row["prediction"] for row in lines(final.path)] != [row["prediction"] for row in lines(earlier.path)]
    shutil.rmtree(copied / "final_model")
    with pytest.raises(CheckpointError, match="no final model"):
        run(config_of(copied, output_dir=copied / "c"))
    unfinished = run(config_of(copied / "checkpoints" / "step-1", output_dir=copied / "d"))
    assert [row["prediction"] for row in lines(unfinished.path)] == [row["prediction"] for row in lines(earlier.path)]
    with pytest.raises(CheckpointError, match="no checkpoint 'step-9'") as caught:
        run(config_of(copied, checkpoint="step-9"))
    assert "final, step-1" in str(caught.value.hint)


def test_a_model_by_itself_is_asked_what_it_is_given(copied: Path, corner: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(copied / "final_model", tmp_path / "alone")
    with pytest.raises(ConfigError, match="no test questions of its own"):
        run(config_of(folder))
    found = run(config_of(folder, test_data=corner / "test.jsonl", num_samples=3))
    # Adapters for full passages stay with the run.
    assert set(found.summary["arms"]) == ALL - {"full", "truncated", "best-sentences"}
    assert any("favours compression" in each for each in found.summary["verdict"]["caveats"])


def test_passages_of_an_index_instead_of_the_rows_own(copied: Path, corner: Path) -> None:
    found = run(config_of(copied, index_path=corner / "index", n_docs=3, num_samples=3))
    assert all(len(row["documents"]) == 3 for row in lines(found.path))
    assert found.summary["settings"]["n_docs"] == 3
    assert found.summary["index"]["passages_sha256"]


def test_refusals(copied: Path, trained: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="trained for 6, 9"):
        run(config_of(copied, compression_rate=7))
    with pytest.raises(ConfigError, match="--conditions means nothing to a run of train compress"):
        run(config_of(copied, conditions=("gold",)))
    with pytest.raises(ConfigError, match="--retrieval says how"):
        run(config_of(copied, retrieval="bm25"))
    with pytest.raises(ConfigError, match="--compression-rate means nothing to a causal"):
        run(config_of(trained(), compression_rate=7))
