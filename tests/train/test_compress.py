"""Runs of ``train compress`` on a corner of the demo set, with tiny random models."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ragtrain.cli import main
from ragtrain.config.commands import CompressConfig
from ragtrain.config.commands.compress import ARMS
from ragtrain.config.load import load_config
from ragtrain.models.compress.export import load_compress
from ragtrain.train import compress

FILES = (
    "before_after_comparison.png", "training_curves.png", "speed_comparison.png", "quality_vs_cost.png",
    "metrics_report.json", "before_training_results.json", "after_training_results.json",
)  # fmt: skip


def flags_of(model: Path, corner: Path, output: Path, **changes: object) -> dict[str, object]:
    return {
        "model_name_or_path": str(model), "train_data": corner, "num_layers": 1, "num_memory_tokens": 4,
        "compression_rate": 8, "batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 2, "learning_rate": 1e-2,
        "compressor_learning_rate": 1e-2, "connector_learning_rate": 1e-2, "lora_rank": 4, "lora_dropout": 0.0, "logging_steps": 1, "eval_samples": 2,
        "max_eval_samples": 4, "max_new_tokens": 3, "save_steps": None, "speed_repeats": 0, "trackers": (),
        "arms": "compressed,shuffled", "full_context_steps": 0, "output_dir": output, **changes,
    }  # fmt: skip


def config_of(model: Path, corner: Path, output: Path, **changes: object) -> CompressConfig:
    return load_config(CompressConfig, flags=flags_of(model, corner, output, **changes)).config


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics_report.json").read_text())
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return all that a run leaves trained, of every phase."""
    files = [path for path in run.rglob("*.safetensors") if "final_model" in path.parts]
    return {f"{path.relative_to(run)} {name}": tensor for path in files for name, tensor in load_file(path).items()}


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, float):
        yield value


def test_a_run_leaves_every_file_and_a_model_that_loads_as_it_was(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    """With all arms, pre-training, and the time of answers."""
    run = tmp_path / "run"
    config = config_of(
        causal_lm("llama"), corner, run, arms=",".join(ARMS), full_context_steps=None, speed_repeats=1,
        speed_batch_size=2, pretrain_steps=2, eval_steps=1,
    )  # fmt: skip
    result = compress.run(config)
    assert result.steps == 2
    assert all((run / name).stat().st_size > 100 for name in FILES)
    assert (run / "checkpoints" / "final").readlink() == Path("../final_model")
    report = report_of(run)
    assert set(ARMS) <= report["arms"].keys()
    assert all(arm["n"] == 4 for arm in report["arms"].values())
    assert all(math.isfinite(each) for each in numbers(report))
    for name, arm in {"before_training": "before", "after_training": "compressed"}.items():
        assert report[name] == {score: report["arms"][arm][score] for score in ("em", "f1", "rouge_l", "contains")}
    assert report["cut"]["fed"] == 1
    assert result.verdict == report["verdict"]
    for name in ("before_training_results.json", "after_training_results.json"):
        rows = json.loads((run / name).read_text())["questions"]
        assert len(rows) == 4
        assert all(isinstance(each["prediction"], str) for row in rows for each in row["arms"].values())
    assert [row["step"] for row in lines(run)] == [1, 2]
    assert {"eval_loss", "eval_em", "eval_f1", "eval_rouge_l"} <= lines(run)[-1]["evaluation"].keys()
    assert len(lines(run / "pretraining")) == len(lines(run / "full_context")) == 2

    model, _, sidecar = load_compress(run)
    trained = load_file(run / "checkpoints" / "latest" / "model.safetensors")
    loaded = model.state_dict()
    assert trained
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())
    assert sidecar["prompt"]["instruction"] is not None
    # Adapters for full passages are others than those for memory.
    adapters = [load_file(each / "adapter_model.safetensors") for each in
                (run / "final_model" / "adapter", run / "full_context" / "final_model")]  # fmt: skip
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


KINDS: dict[str, dict[str, object]] = {
    "an encoder, in chat": {"compressor_type": "modernbert", "chat": True},
    "a small LM, means, two rates": {"compressor_type": "small_lm", "pooling": "mean", "rates": "4,16"},
    "a teacher, a reranker": {"kd_weight": 1.0, "scores": True, "answers": "teacher", "proportional_memory": True},
    "an index, no question": {"index": True, "n_docs": 2, "query_dependent": False, "n_distractors": 1},
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_runs(name: str, causal_lm: Callable[..., Path], corner: Path, tmp_path: Path) -> None:
    changes, run = dict(KINDS[name]), tmp_path / "run"
    model, data = causal_lm("llama", chat=bool(changes.pop("chat", False))), corner
    kind = changes.get("compressor_type")
    if kind == "modernbert":
        changes["compressor_model"] = str(encoder_config(tmp_path / "encoder"))
    elif kind == "small_lm":
        changes["compressor_model"] = str(causal_lm("qwen2"))
    if changes.pop("scores", False):
        data = taught(corner, tmp_path / "taught")
    if changes.pop("index", False):
        changes["index"] = corner / "index"
    compress.run(config_of(model, data, run, max_steps=4, **changes))
    rows = lines(run)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(norm > 0 for norm in rows[-1]["group_grad_norms"].values())
    assert ("kd" in rows[0]["parts"], "rank" in rows[0]["parts"]) == (("kd_weight" in changes),) * 2
    if "rates" in changes:
        assert len({row["parts"]["rate"] for row in rows}) > 1
    load_compress(run)


def test_training_goes_on_from_a_run(causal_lm: Callable[..., Path], corner: Path, tmp_path: Path) -> None:
    """With its weights, its prompts, and another set of rates."""
    first, second = tmp_path / "first", tmp_path / "second"
    compress.run(config_of(causal_lm("llama"), corner, first))
    sidecar = first / "final_model" / "ragtrain.json"
    about = json.loads(sidecar.read_text())
    about["prompt"]["instruction"] = "Say it."
    sidecar.write_text(json.dumps(about))
    compress.run(
        config_of(first, corner, second, rates="16", eval_steps=1, full_context_steps=1, arms="compressed,full")
    )
    after = json.loads((second / "final_model" / "ragtrain.json").read_text())
    assert (after["prompt"]["instruction"], after["base"]) == ("Say it.", about["base"])
    adapters = json.loads((second / "full_context" / "final_model" / "adapter_config.json").read_text())
    assert adapters["base_model_name_or_path"] == str(causal_lm("llama"))
    assert lines(second)[0]["evaluation"]["eval_loss"] < lines(first)[-1]["evaluation"]["eval_loss"] * 1.05


def encoder_config(folder: Path) -> Path:
    """Return a folder with the configuration of a small ModernBERT and nothing else."""
    from transformers import AutoConfig

    AutoConfig.for_model(
        "modernbert", vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, local_attention=32, pad_token_id=1, bos_token_id=0, eos_token_id=0, cls_token_id=0,
        sep_token_id=0,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def taught(corner: Path, folder: Path) -> Path:
    """Return rows as ``data teach`` writes them, every other one with scores."""
    folder.mkdir()
    for name in ("train", "validation"):
        rows = [json.loads(line) for line in (corner / f"{name}.jsonl").read_text().splitlines()]
        for i, row in enumerate(rows):
            row["teacher_answer"] = f"It is {row['answers'][0]}."
            row["reranking_scores"] = [1.5 if i % 2 else None for _ in row["documents"]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_learning_rates_and_weight_decay_are_those_of_each_part(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    """Three rates; what has one dimension does not decay."""
    from ragtrain.loop.schedule import make_optimizer
    from ragtrain.train.compress.build import build, groups_of, read
    from ragtrain.train.compress.check import make_accelerator

    config = config_of(
        causal_lm("llama"),
        corner,
        tmp_path / "run",
        learning_rate=1e-4,
        compressor_learning_rate=None,
        connector_learning_rate=None,
    )
    parts = build(config, read(config, tmp_path), make_accelerator(config))
    groups = {group.name: group for group in groups_of(config, parts.model)}
    assert {name: group.learning_rate for name, group in groups.items()} == {
        "generator": 1e-4, "compressor": 5e-5, "connector": pytest.approx(5e-4),
    }  # fmt: skip
    owned = [parameter for group in groups.values() for parameter in group.parameters]
    assert len(owned) == len({id(p) for p in owned}) == sum(p.requires_grad for p in parts.model.parameters())
    optimizer = make_optimizer(list(groups.values()), config.optim)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0.0)
        assert len({p.ndim > 1 for p in group["params"]}) == 1


class Killed(BaseException):
    """Ends a run where nothing can catch it."""


#: Where a run is killed: what is called at that moment, and the how manyth call of it.
MOMENTS = {
    "pre-training": ("phases.text_loss", 5),
    "before": ("measure.files.write_results", 1),
    "training": ("loss", 7),
    "export": ("save_compress", 1),
    "full passages": ("phases.completion_loss", 5),
    "after": ("measure.files.write_results", 2),
    "report": ("measure.files.write_report", 1),
}


def whole_run(model: Path, corner: Path, output: Path) -> CompressConfig:
    """Return a run in which everything is drawn at random: dropout, order, rates, targets."""
    return config_of(
        model, corner, output, max_steps=6, save_steps=2, lora_dropout=0.1, rates="4", answer_choice="random",
        pretrain_steps=4, full_context_steps=4, arms="compressed,full,before", eval_samples=0, n_distractors=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(causal_lm: Callable[..., Path], corner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    compress.run(whole_run(causal_lm("llama"), corner, run))
    return run


def test_a_run_killed_in_every_phase_ends_as_one_that_was_not(
    undisturbed: Path, causal_lm: Callable[..., Path], corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again and again: losses, weights, answers and figures are the same to the last bit."""
    run = tmp_path / "run"
    config = whole_run(causal_lm("llama"), corner, run)
    for place, number in MOMENTS.values():
        with monkeypatch.context() as patch:
            kill_at(patch, place, number)
            with pytest.raises(Killed):
                compress.run(config)
    compress.run(config)
    assert_same(run, undisturbed)
    # Once more: nothing is trained or answered again.
    before = {path: path.stat().st_mtime_ns for path in (run / "evaluation").iterdir()}
    compress.run(config)
    assert before == {path: path.stat().st_mtime_ns for path in (run / "evaluation").iterdir()}
    assert_same(run, undisturbed)


def kill_at(patch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Let the call of a function raise ``Killed``."""
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise Killed
            return real(*arguments, **named)

        return call

    if place == "loss":
        make = compress.loss_of
        patch.setattr(compress, "loss_of", lambda *arguments: dying(make(*arguments)))
        return
    *path, name = place.split(".")
    owner: Any = compress
    for each in path:
        owner = getattr(owner, each)
    patch.setattr(owner, name, dying(getattr(owner, name)))


def assert_same(run: Path, other: Path) -> None:
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for phase in ("", "pretraining", "full_context"):
        # Rates of examples differ from run to run.
        kept = [[{k: row[k] for k in ("step", "loss", "parts", "grad_norm")} for row in lines(each / phase)]
                for each in (run, other)]  # fmt: skip
        assert kept[0] == kept[1]
    arms = [{name: {**arm, "seconds": 0} for name, arm in report_of(each)["arms"].items()} for each in (run, other)]
    assert arms[0] == arms[1]


@pytest.fixture
def command_line(causal_lm: Callable[..., Path], corner: Path) -> list[str]:
    """The same run as a command."""
    flags = flags_of(causal_lm("llama"), corner, Path(), max_steps=6, save_steps=2, eval_samples=0, arms="compressed")
    flags = {name: value for name, value in flags.items() if name not in ("output_dir", "trackers")}
    words = [word for name, value in flags.items() for word in (f"--{name}", "null" if value is None else str(value))]
    return ["train", "compress", *words, "--trackers", "null"]


@pytest.mark.slow
def test_a_process_killed_by_a_signal_goes_on(command_line: list[str], tmp_path: Path, spawn, capsys) -> None:
    command = [*command_line, "--output_dir", str(tmp_path / "run")]
    process = spawn(*command)
    while not (tmp_path / "run" / "checkpoints" / "step-000002").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=240)
    assert main([*command_line, "--output_dir", str(tmp_path / "whole")]) == 0
    assert main(command) == 0
    assert "resuming from" in capsys.readouterr().err
    mine, whole = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], tensor) for name, tensor in whole.items())


def test_two_processes_are_one(command_line: list[str], tmp_path: Path, command) -> None:
    assert main([*command_line, "--output_dir", str(tmp_path / "one")]) == 0
    two = [*command_line, "--gradient_accumulation_steps", "1", "--output_dir", str(tmp_path / "two")]
    code, _, err = command(*two, processes=2)
    assert code == 0, err
    one, two_ = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [row["loss"] for row in two_] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-4, atol=1e-4)
    assert report_of(tmp_path / "two")["arms"]["compressed"]["n"] == 4
