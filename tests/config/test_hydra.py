"""Hydra's spelling on our command line: -cp, -cn, +KEY=VALUE, ~KEY, values with equals signs, quotes and lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragtrain.cli import main
from ragtrain.config import bundled
from ragtrain.config.commands import RagConfig, SftConfig
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError

CONTEXT = (
    "-cp configs/paper -cn training-asqa data_file=asqa-prefix-train.jsonl output_key=answers "
    "train.output_dir=./trained_models_context/"
)
THOUGHT = (
    "-cp configs/paper -cn training-asqa data_file=asqa-raft-cot-train.jsonl output_key=generated_answer "
    "train.output_dir=./trained_models_cot/"
)


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """Run ``train sft … --print-config`` in an empty folder; return the configuration and what was said."""
    monkeypatch.chdir(tmp_path)

    def printed(words, command=SftConfig):
        words = words.split() if isinstance(words, str) else words
        assert main([*command.name.split(), *words, "--print-config"]) == 0
        out, err = capsys.readouterr()
        path = tmp_path / "printed.yaml"
        path.write_text(out)
        return load_config(command, [path]).config, out, err

    return printed


def failed(words, capsys, command="train sft"):
    assert main([*command.split(), *words, "--print-config"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("words", "data", "key", "folder"),
    [
        (CONTEXT, "asqa-prefix-train.jsonl", "answers", "trained_models_context"),
        (THOUGHT, "asqa-raft-cot-train.jsonl", "generated_answer", "trained_models_cot"),
    ],
)
def test_both_published_commands(printed, words, data, key, folder):
    config, out, err = printed(words)
    assert (config.data.train_data, config.data.output_key, config.run.output_dir) == (Path(data), key, Path(folder))
    assert (config.data.input_key, config.lora.lora_targets, config.optim.learning_rate) == (
        "prompt",
        ("qkv_proj",),
        1e-4,
    )
    assert "learning_rate: 0.0001  # ragtrain/configs/paper/training-asqa.yaml:" in out
    assert f"train_data: {data}  # argument as data_file\n" in out
    assert f"output_dir: {folder}  # argument as train.output_dir\n" in out
    lines = [line.partition(" ")[2].partition(" ")[2] for line in err.splitlines()]
    assert lines == [
        "configs/paper/training-asqa.yaml is not there: ragtrain's own is read (ragtrain/configs/paper/training-asqa.yaml)",
        "command line: data_file is data.train_data here",
        "command line: train.output_dir is run.output_dir here",
    ]


def test_the_users_file_comes_first(printed, tmp_path):
    folder = tmp_path / "configs" / "paper"
    folder.mkdir(parents=True)
    (folder / "training-asqa.yaml").write_text("model:\n  max_sequence_len: 77\n")
    config, out, _ = printed(CONTEXT)
    assert config.prompt.max_length == 77
    assert "# configs/paper/training-asqa.yaml:2 as model.max_sequence_len\n" in out
    assert config.lora.lora_targets == ("all-linear",)


@pytest.mark.parametrize("name", ["mine", "mine.yaml"])
def test_names_with_and_without_suffix_and_folder(printed, tmp_path, name):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("seed: 5\n")
    assert printed(["-cn", name])[0].loop.seed == 5
    assert printed(["--config-path", "configs", f"--config-name={name}"])[0].loop.seed == 5
    (tmp_path / "configs" / "mine.yaml").rename(tmp_path / "mine.yaml")
    assert printed(["-cn", name])[0].loop.seed == 5
    assert printed(["-cp", str(tmp_path), "-cn", name])[0].loop.seed == 5
    assert printed(["-cp", ".", "-cn", name], RagConfig)[0].loop.seed == 5


def test_bundled_names(printed):
    for words in (["-cn", "sft/t4-16gb"], ["--config", "sft/t4-16gb"], ["--config", "sft/t4-16gb.yaml"],
                  ["-cp", "configs/sft", "-cn", "t4-16gb"], ["-cp", "../configs/sft/", "-cn", "t4-16gb.yaml"]):  # fmt: skip
        assert printed(words)[0].loop.mixed_precision == "fp16"
    assert printed(["-cn", "rag/demo"], RagConfig)[0].loop.max_steps == 330


def test_files_after_the_named_one_win(printed, tmp_path):
    (tmp_path / "b.yaml").write_text("lora_rank: 2\n")
    config, _, _ = printed("--config b.yaml -cn sft/t4-16gb loop.seed=4 --num-epochs 5")
    assert (config.lora.lora_rank, config.loop.seed, config.loop.num_epochs) == (2, 4, 5.0)


def test_what_is_wrong_with_names(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--config-name" in failed(["-cp", "configs/paper"], capsys)
    err = failed(["-cp", "configs/paper", "-cn", "traning-asqa", "seed=x"], capsys)
    assert "configs/paper/traning-asqa.yaml (--config): cannot be read" in err
    assert "did you mean the bundled paper/training-asqa?" in err
    assert "loop.seed = 'x'" in err
    assert "expects 'rag'" in failed(["-cn", "sft/80gb"], capsys, "train rag")


def test_added_and_deleted_keys(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 3\nmodel:\n  lora:\n    r: 2\ntrain:\n  optim: paged_adamw\nlora_dropout: 0.5\n")

    def config(*words):
        return load_config(SftConfig, [path], words).config

    assert config("+seed=4").loop.seed == 4
    assert config("++loop.seed=4").loop.seed == 4
    assert config("+train.seed=4").loop.seed == 4
    assert config("~seed").loop.seed == 0
    assert config("~loop.seed", "loop.seed=9").loop.seed == 9
    assert config("loop.seed=9", "~loop.seed").loop.seed == 0
    assert config("~train.optim").optim.optimizer == "adamw"
    assert config("~model.lora.r").lora.lora_rank == 16
    lora = config("~lora").lora
    assert (lora.lora_rank, lora.lora_dropout) == (16, 0.0)
    resolved = load_config(SftConfig, [path], ["~seed"])
    assert resolved.origins["loop.seed"] == "default"
    assert config("~train.remove_unused_columns").loop.seed == 3
    for word, words in (
        ("~sede", "did you mean loop.seed?"),
        ("+sede=1", "did you mean loop.seed?"),
        ("~seed=3", "write ~seed to go back to the default"),
    ):
        with pytest.raises(ConfigError, match="1 problem") as caught:
            config(word)
        assert words in caught.value.message


def test_values():
    def config(*words):
        return load_config(SftConfig, overrides=words).config

    assert config("answer_pattern=a=(.*)=b").prompt.answer_pattern == "a=(.*)=b"
    assert config("answer_pattern='a = b'").prompt.answer_pattern == "a = b"
    assert config('data_file="my data.jsonl"').data.train_data == Path("my data.jsonl")
    assert config("abstain_target='null'").context.abstain_target == "null"
    assert config("abstain_target=null").context.abstain_target is None
    assert config("abstain_target='it''s'").context.abstain_target == "'it''s'"
    assert config("lora_targets=[q_proj,'v_proj']").lora.lora_targets == ("q_proj", "v_proj")
    assert config("lora_targets='q_proj'").lora.lora_targets == ("q_proj",)
    assert config("model.lora.target_modules=[q_proj, k_proj]").lora.lora_targets == ("q_proj", "k_proj")
    assert config("train.learning_rate='1e-5'").optim.learning_rate == 1e-5


def test_flags_reach_the_command_line(printed):
    words = (
        "--per-device-train-batch-size 2 --max_seq_length=64 --data-file d.jsonl --lora-r 4 --bf16 --group_by_length"
    )
    config, out, err = printed(words)
    assert (config.loop.batch_size, config.prompt.max_length, config.lora.lora_rank) == (2, 64, 4)
    assert (config.data.train_data, config.loop.mixed_precision) == (Path("d.jsonl"), "bf16")
    assert "lora_rank: 4  # flag as --lora-r\n" in out
    assert err.count("\n") == 1
    assert "command line: 6 keys have other names here" in err


def test_the_bundled_folder_is_found_under_any_configs_folder():
    assert bundled.find(Path("/a/configs/sft/80gb.yaml")) == bundled.FOLDER / "sft" / "80gb.yaml"
    assert bundled.find(Path("/a/configs/old/configs/training.yml")) == bundled.FOLDER / "training.yaml"
    assert bundled.find(Path("/a/sft/80gb.yaml")) is None
    assert bundled.find(Path("configs")) is None
