"""What stands in the way of a run of ``train sft`` is found before anything is written, and what a run says of itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ragtrain.config.commands import SftConfig
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError, DataError
from ragtrain.train import sft


def config_of(model: Path, corner: Path, output: Path, **changes: object) -> SftConfig:
    settings = {
        "model_name_or_path": str(model), "train_data": corner, "n_docs": 1, "batch_size": 3, "max_steps": 2,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "eval_samples": 3, "max_new_tokens": 4,
        "save_steps": None, "output_dir": output, "trackers": (), **changes,
    }  # fmt: skip
    return load_config(SftConfig, flags=settings).config


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_are_no_longer_than_the_positions_of_the_model(
    kind: str, causal_lm: Callable[..., Path], corner: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The default of max_length is more than many models have: with learnt positions the first long row ended the run."""
    rows = [json.loads(line) for line in (corner / "train.jsonl").read_text().splitlines()[:8]]
    for row in rows:
        row["documents"] = [{"id": "long", "text": " ".join(f"word{i}" for i in range(900))}, *row["documents"]]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(causal_lm(kind), data, tmp_path / "run", val_data=data, n_docs=2)
    assert config.prompt.max_length == 2048
    caplog.set_level("INFO", "ragtrain")
    sft.run(config)
    sidecar = json.loads((tmp_path / "run" / "final_model" / "ragtrain.json").read_text())
    assert sidecar["prompt"]["max_length"] == 1024
    assert "1024 positions" in caplog.text
    about = json.loads((tmp_path / "run" / "data.json").read_text())
    assert about["train"]["overflow"]["passages_dropped"] == 8


def test_answers_without_room_end_a_run_before_it_is_written(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    """They ended it at the first evaluation, after the steps before."""
    config = config_of(causal_lm(), corner, tmp_path / "run", max_length=250, max_new_tokens=250, eval_steps=2)
    with pytest.raises(ConfigError, match="no room for a prompt"):
        sft.run(config)
    assert not (tmp_path / "run").exists()


def test_prompts_that_must_not_be_cut_end_a_run_before_it_is_written(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    """With ``on_overflow`` error a row may fit with its target, and its prompt not fit beside a long answer."""
    changes: dict[str, object] = {"on_overflow": "error", "max_length": 1000, "max_new_tokens": 900}
    with pytest.raises(DataError, match="longer than 100 tokens, which leaves 900 for an answer") as error:
        sft.run(config_of(causal_lm(), corner, tmp_path / "run", **changes))
    assert "--max-new-tokens" in str(error.value.hint)
    assert not (tmp_path / "run").exists()


def test_too_many_rows_without_anything_to_learn_end_a_run(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    """They were left out with a warning, however many they were."""
    rows = [json.loads(line) for line in (corner / "train.jsonl").read_text().splitlines()[:20]]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({**row, "learn": "x" if i else None}) + "\n" for i, row in enumerate(rows)))
    assert sft.run(config_of(causal_lm(), data, tmp_path / "one", output_key="learn")).steps == 2
    data.write_text("".join(json.dumps({**row, "learn": "x" if i > 1 else None}) + "\n" for i, row in enumerate(rows)))
    config = config_of(causal_lm(), data, tmp_path / "run", output_key="learn")
    with pytest.raises(DataError, match=f"2 of 20 rows have nothing to learn: {rows[0]['id']}, ") as error:
        sft.run(config)
    assert "--max-untrained-share 0.1" in str(error.value.hint)
    assert not (tmp_path / "run").exists()
    sft.run(config_of(causal_lm(), data, tmp_path / "run", output_key="learn", max_untrained_share=0.1))


@pytest.mark.parametrize(("policy", "other"), [("drop-docs", False), ("drop-row", True)])
def test_a_policy_that_is_in_force_is_no_remedy(
    policy: str, other: bool, causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="train no token") as error:
        sft.run(config_of(causal_lm(), corner, tmp_path / "run", max_length=12, on_overflow=policy))
    assert "--max-length ≥" in str(error.value.hint)
    assert ("--on-overflow" in str(error.value.hint)) is other


def test_an_answer_shown_is_one_line(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The question of a finished prompt may be the prompt itself."""
    data = tmp_path / "train.jsonl"
    row = {"prompt": "A passage.\n\nWho is\nit?", "answers": ["he"]}
    data.write_text((json.dumps(row) + "\n") * 4)
    caplog.set_level("INFO", "ragtrain")
    sft.run(config_of(causal_lm(), data, tmp_path / "run", val_data=data))
    shown = [record.getMessage() for record in caplog.records if "expected 'he'" in record.getMessage()]
    assert shown
    assert all("A passage. Who is it? →" in line for line in shown)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"optimizer": "paged_adamw_8bit"}, "bitsandbytes'"), ({"trackers": ("swanlab",)}, "swanlab")],
    ids=["optimizer", "tracker"],
)
def test_packages_that_are_missing_end_a_run_before_it_is_written(
    changes: dict[str, object],
    named: str,
    causal_lm: Callable[..., Path],
    corner: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They left a run folder, which the same command with another optimizer was then refused for."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("ragtrain.loop.journal.get_available_trackers", list)
    with pytest.raises(ConfigError, match=named):
        sft.run(config_of(causal_lm(), corner, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_abstentions_are_counted_during_training(causal_lm: Callable[..., Path], corner: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"raft": True, "n_docs": 2, "index": corner / "index", "abstain_target": "unknown"}
    result = sft.run(config_of(causal_lm(), corner, tmp_path / "run", **changes))
    assert "eval_abstained" in result.evaluation


def test_the_model_card_has_the_hashes_of_the_data(
    causal_lm: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    sft.run(config_of(causal_lm(), corner, tmp_path / "run", index=corner / "index", merge=True))
    about = json.loads((tmp_path / "run" / "data.json").read_text())
    for name in ("final_model", "merged_model"):
        card = (tmp_path / "run" / name / "README.md").read_text()
        for value in (about["train"]["sha256"], about["validation"]["sha256"], about["index"]["passages_sha256"]):
            assert value in card
