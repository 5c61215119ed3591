"""The bundled configurations are valid, and ``ragtrain config`` lists, prints, copies and checks them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ragtrain.cli import main
from ragtrain.config import bundled, fields
from ragtrain.config.commands import CompressConfig, GfmConfig, RagConfig, SftConfig
from ragtrain.config.load import load_config
from ragtrain.config.training import LoraConfig

ROOT = Path(__file__).parents[2]
NAMES = bundled.names()
MODELS = {"sft": SftConfig, "rag": RagConfig, "gfm": GfmConfig, "compress": CompressConfig}


def run(words, capsys, code=0):
    assert main(["config", *words]) == code
    return capsys.readouterr()


def test_what_there_is():
    assert {"training", "paper/training-asqa", "paper/training-pubmed", "rag/demo", "sft/debug-cpu", "sft/t4-16gb",
            "sft/24gb", "sft/80gb"} <= set(NAMES)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_is_valid_and_commented(name, capsys):
    path = bundled.path_of(name)
    text = path.read_text()
    assert text.startswith("# ")
    model = MODELS[yaml.safe_load(text)["kind"]]
    resolved = load_config(model, [path])
    assert resolved.notes == []  # written in our own keys
    table = fields.leaves(model)
    for line in text.splitlines():
        match = re.match(r"  (\w+): ", line)
        if match:
            assert any(leaf.name == match[1] for leaf in table.values())
            assert "  # " in line, f"{name}: {line} does not say why"
        assert len(line) <= 120
    assert f"ragtrain train {yaml.safe_load(text)['kind']}" in run(["validate", name], capsys).out


def test_the_published_ones_have_the_published_values():
    asqa = load_config(SftConfig, ["paper/training-asqa"]).config
    assert asqa.model.model_name_or_path == "microsoft/Phi-3-mini-128k-instruct"
    assert (asqa.model.load_in_8bit, asqa.model.load_in_4bit) == (True, False)
    lora = asqa.lora
    assert (lora.lora_rank, lora.lora_alpha, lora.lora_dropout, lora.lora_targets) == (16, 16, 0.1, ("qkv_proj",))
    assert lora.use_rslora
    assert (asqa.prompt.completion_start, asqa.prompt.max_length, asqa.prompt.instruction) == (
        "<|assistant|>",
        4000,
        "qa",
    )
    loop, optim = asqa.loop, asqa.optim
    assert (loop.batch_size, loop.gradient_accumulation_steps, loop.num_epochs, loop.mixed_precision) == (1, 2, 1, "no")
    assert (loop.logging_steps, loop.save_steps, loop.save_total_limit, loop.max_steps) == (10, 20000, 1, None)
    assert (optim.learning_rate, optim.optimizer, optim.lr_scheduler) == (1e-4, "paged_adamw_8bit", "cosine")
    assert (optim.warmup_ratio, optim.weight_decay) == (0.03, 0.001)
    assert asqa.data.input_key == "prompt"
    pubmed = load_config(SftConfig, ["paper/training-pubmed"]).config
    assert (pubmed.prompt.max_length, pubmed.prompt.instruction, pubmed.data.output_key) == (2000, "yes-no", "answers")
    default = load_config(SftConfig, ["training"]).config
    assert (default.optim.learning_rate, default.optim.optimizer) == (2e-5, "adamw")
    assert (default.loop.gradient_accumulation_steps, default.loop.save_total_limit) == (4, 2)


def test_the_demo_of_the_joint_trainer_is_the_scripts():
    script = load_config(RagConfig, [ROOT / "scripts" / "demo.yaml"]).config
    assert load_config(RagConfig, ["rag/demo"]).config == script


def test_list(capsys):
    out = run(["list"], capsys).out
    assert [line.split()[0] for line in out.splitlines()] == NAMES
    assert "16 GB" in out
    assert run(["list", "--match", "paper"], capsys).out.count("\n") == 2
    listed = json.loads(run(["list", "--json"], capsys).out)["configs"]
    assert [entry["name"] for entry in listed] == NAMES
    assert all(entry["about"] for entry in listed)


def test_show(capsys):
    out, err = run(["show", "sft/t4-16gb"], capsys)
    assert out == bundled.path_of("sft/t4-16gb").read_text()
    assert err == ""
    assert json.loads(run(["show", "training.yaml", "--json"], capsys).out)["text"].startswith("#")
    err = run(["show", "sft/t4-16bg"], capsys, 2).err
    assert "did you mean sft/t4-16gb?" in err
    assert "ragtrain config list" in err
    assert "is missing" in run(["show"], capsys, 2).err


def test_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = bundled.path_of("sft/80gb").read_text()
    assert run(["cp", "sft/80gb"], capsys).out == "80gb.yaml\n"
    assert Path("80gb.yaml").read_text() == text
    Path("80gb.yaml").write_text("mine")
    assert "80gb.yaml is there already" in run(["cp", "sft/80gb"], capsys, 2).err
    assert Path("80gb.yaml").read_text() == "mine"
    run(["cp", "sft/80gb", "--overwrite"], capsys)
    assert Path("80gb.yaml").read_text() == text
    run(["cp", "paper/training-asqa", "configs/paper/"], capsys)
    run(["cp", "paper/training-asqa", "new/mine.yaml"], capsys)
    assert Path("configs/paper/training-asqa.yaml").read_text() == Path("new/mine.yaml").read_text()
    assert run(["cp", "training", "new"], capsys).out == "new/training.yaml\n"
    assert "at most one destination" in run(["cp", "a", "b", "c"], capsys, 2).err
    assert "at most one destination" in run(["cp"], capsys, 2).err


def test_validate(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  per_device_train_batch_size: 0\n  optim: sgd\nmodle:\n  a: 1\n")
    err = run(["validate", str(path)], capsys, 2).err
    assert "3 problems in the configuration of ragtrain train sft" in err
    for line in (2, 3, 4):
        assert f"{path}:{line}" in err
    path.write_text("retriever_learning_rate: 1e-5\n")
    assert "ragtrain train rag: 1 field given" in run(["validate", str(path)], capsys).out
    assert "1 problem" in run(["validate", str(path), "--for", "train sft"], capsys, 2).err
    assert "did you mean train sft?" in run(["validate", str(path), "--for", "train stf"], capsys, 2).err
    path.write_text("raft_p: 0.5\nkind: sft\n")
    about = json.loads(run(["validate", str(path), "--json"], capsys).out)
    assert (about["command"], about["given"]) == ("train sft", 1)
    path.write_text("kind: stf\n")
    assert "there is no command 'train stf'" in run(["validate", str(path)], capsys, 2).err
    path.write_text("nothing: 1\n")
    assert "no command knows" in run(["validate", str(path)], capsys, 2).err
    path.write_text("a: [\n")
    assert f"{path}:2" in run(["validate", str(path), "--for", "ragtrain eval"], capsys, 2).err
    assert "no such file" in run(["validate", str(tmp_path / "b.yaml")], capsys, 2).err
    assert "is missing" in run(["validate"], capsys, 2).err


def test_validate_a_run_folder(tmp_path, capsys):
    values = {"kind": "sft", **SftConfig().model_dump(mode="json")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert "ragtrain train sft" in run(["validate", str(tmp_path)], capsys).out


@pytest.mark.parametrize("words", [["lora=null"], ["model.lora=null"], ["use_peft=false"]], ids=str)
def test_without_adapters_nothing_of_a_presets_adapters_is_left(words):
    """As Hydra replaces the whole block: a rank of 0 beside a preset's alpha and dropout was refused."""
    assert load_config(SftConfig, ["paper/training-asqa"], words).config.lora == LoraConfig(lora_rank=0)
