"""What a fine-tuned causal language model leaves behind, and who can load it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragtrain.config.training import LoraConfig
from ragtrain.data.sft.batches import collate_rows
from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.models import weights
from ragtrain.models.adapters import adapters_off, add_lora
from ragtrain.models.causal import label_logits, load_causal
from ragtrain.models.causal_export import load_causal_run, push_to_hub, save_causal, save_merged

LORA = LoraConfig(lora_rank=4)
ABOUT = {"prompt": {"max_length": 64}, "data": {"train": {"sha256": "abc", "rows": 12}, "skipped": []}}


@pytest.fixture
def trained(causal):
    """A model with adapters that do something, its tokenizer, and its base."""

    def make(kind: str = "llama", **options: bool):
        folder = causal.folder(kind)
        model, tokenizer = load_causal(folder, lora=LORA.model_copy(update=options))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
            if "magnitude" in name:
                parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
        return model, tokenizer, str(folder)

    return make


@pytest.fixture
def batch(causal):
    return collate_rows(causal.encoded((20, 3), (13, 5), (9, 1)), list("abc"), 1)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3"])
def test_plain_peft_loads_an_adapter(kind: str, options: dict[str, bool], trained, batch, tmp_path: Path) -> None:
    model, tokenizer, base = trained(kind, **options)
    folder = save_causal(model, tokenizer, tmp_path / "out", sidecar=ABOUT, base_name=base)
    expected = model(input_ids=batch.input_ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GPT-2's transposed layers
        auto = AutoPeftModelForCausalLM.from_pretrained(folder)
        by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    for loaded in (auto, by_hand):
        torch.testing.assert_close(loaded(input_ids=batch.input_ids).logits, expected)
    assert not list(folder.glob("model*.safetensors"))
    assert len(AutoTokenizer.from_pretrained(folder)) == len(tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_run_comes_back(kind: str, trained, batch, tmp_path: Path) -> None:
    model, tokenizer, base = trained(kind)
    run = tmp_path / "run"
    save_causal(model, tokenizer, run / "final_model", sidecar=ABOUT, base_name=base)
    expected = label_logits(model, batch)
    for name in (run, run / "final_model"):
        again, again_tokenizer, sidecar = load_causal_run(name)
        torch.testing.assert_close(label_logits(again, batch), expected)
        assert again_tokenizer.get_vocab() == tokenizer.get_vocab()
        assert not again.training
    assert sidecar["kind"] == "sft"
    assert sidecar["base"] == base
    assert sidecar["prompt"] == ABOUT["prompt"]
    card = (run / "final_model/README.md").read_text()
    assert "AutoPeftModelForCausalLM.from_pretrained" in card
    assert "- train.sha256: abc" in card
    with adapters_off(again):
        plain = AutoModelForCausalLM.from_pretrained(base)
        torch.testing.assert_close(label_logits(again, batch), label_logits(plain, batch))
    torch.testing.assert_close(label_logits(again, batch), expected)


def test_switching_adapters_off_leaves_what_is_trained(trained, causal) -> None:
    model, _, _ = trained()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), adapters_off(model):
        raise RuntimeError("stop")
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    model.requires_grad_(False)
    with adapters_off(model):
        pass
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="no adapters"), adapters_off(causal.model("llama")):
        pass


def test_all_weights(causal, batch, tmp_path: Path) -> None:
    model, tokenizer = load_causal(causal.folder(), lora=LoraConfig(lora_rank=0))
    model.model.embed_tokens.weight.data += 0.1
    folder = save_causal(model, tokenizer, tmp_path / "out", sidecar=ABOUT, base_name=str(causal.folder()))
    expected = label_logits(model, batch)
    torch.testing.assert_close(label_logits(AutoModelForCausalLM.from_pretrained(folder), batch), expected)
    again, _, sidecar = load_causal_run(folder)
    torch.testing.assert_close(label_logits(again, batch), expected)
    assert not sidecar["network"]["adapter"]
    assert "AutoModelForCausalLM.from_pretrained" in (folder / "README.md").read_text()
    with pytest.raises(ConfigError, match="no adapters to merge"):
        save_merged(model, tokenizer, tmp_path / "merged", sidecar=ABOUT, base_name=str(causal.folder()))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_merged_model_needs_no_peft(kind: str, trained, batch, tmp_path: Path) -> None:
    model, tokenizer, base = trained(kind, use_dora=True)
    expected = label_logits(model, batch)
    folder = save_merged(model, tokenizer, tmp_path / "merged", sidecar=ABOUT, base_name=base)
    assert not (folder / "adapter_config.json").exists()
    assert not (folder / "adapter").exists()
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(label_logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(label_logits(load_causal_run(folder)[0], batch), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(label_logits(model, batch), expected)  # what was given is as it was


def test_a_base_that_was_changed_is_refused(causal, trained, tmp_path: Path) -> None:
    model, tokenizer, _ = trained()
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(causal.folder()).save_pretrained(base)
    tokenizer.save_pretrained(base)
    folder = save_causal(model, tokenizer, tmp_path / "out", sidecar={}, base_name=str(base))
    load_causal_run(folder)
    causal.model("llama").save_pretrained(base)
    with pytest.raises(DataError, match="was trained on another base"):
        load_causal_run(folder)
    causal.model("llama", width=16).save_pretrained(base)
    with pytest.raises(DataError, match="does not fit the model"):
        load_causal_run(folder)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_checkpoint_of_the_run(rank: int, causal, batch, tmp_path: Path) -> None:
    lora = LoraConfig(lora_rank=rank)
    model, tokenizer = load_causal(causal.folder(), lora=lora)
    run = tmp_path / "run"
    save_causal(model, tokenizer, run / "final_model", sidecar=ABOUT, base_name=str(causal.folder()))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    checkpoint = run / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    weights.save_weights(model, checkpoint)
    expected = label_logits(model, batch)
    for loaded in (load_causal_run(run, checkpoint=checkpoint), load_causal_run(checkpoint)):
        torch.testing.assert_close(label_logits(loaded[0], batch), expected)
        assert loaded[2]["prompt"] == ABOUT["prompt"]
    other = causal.model("gpt2")
    add_lora(other, 4)
    weights.save_weights(other, checkpoint)
    with pytest.raises(CheckpointError):
        load_causal_run(checkpoint)


def test_other_folders_are_refused(causal, trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the model of a `train sft` run"):
        load_causal_run(causal.folder())
    model, tokenizer, base = trained()
    folder = save_causal(model, tokenizer, tmp_path / "out", sidecar={}, base_name=base)
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, message in (({"peft_type": "IA3"}, "is IA3; only LORA"), ({"bias": "all"}, "also replaces weights")):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ConfigError, match=message):
            load_causal_run(folder)


def test_the_hub_is_not_asked_again(trained, batch, tmp_path: Path) -> None:
    """Hours later it may be out of reach, and the run would end without its model."""
    model, tokenizer, _ = trained()
    folder = save_causal(model, tokenizer, tmp_path / "out", sidecar={}, base_name="owner/name")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/name"
    assert "base_model: owner/name" in (folder / "README.md").read_text()
    merged = save_merged(model, tokenizer, tmp_path / "merged", sidecar={}, base_name="owner/name")
    torch.testing.assert_close(
        label_logits(load_causal_run(merged)[0], batch), label_logits(model, batch), rtol=1e-4, atol=1e-4
    )


def test_an_adapter_that_goes_on_keeps_its_base(trained, tmp_path: Path) -> None:
    model, tokenizer, base = trained()
    first = save_causal(model, tokenizer, tmp_path / "first", sidecar={}, base_name=base)
    again, _ = load_causal(first, lora=LORA)
    second = save_causal(again, tokenizer, tmp_path / "second", sidecar={}, base_name=str(first))
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    load_causal_run(second)


def test_generation_settings_that_cannot_be_written(causal, tmp_path: Path, caplog) -> None:
    model, tokenizer = load_causal(causal.folder(), lora=LoraConfig(lora_rank=0))
    model.generation_config.temperature = 0.5
    folder = save_causal(model, tokenizer, tmp_path / "out", sidecar={}, base_name=str(causal.folder()))
    assert "temperature" in caplog.text
    assert model.generation_config.temperature == 0.5
    again = load_causal_run(folder)[0].generation_config
    assert (again.eos_token_id, again.temperature) == (2, None)


def test_an_export_that_fails_leaves_what_was_there(trained, tmp_path: Path, monkeypatch) -> None:
    model, tokenizer, base = trained()
    folder = save_causal(model, tokenizer, tmp_path / "out", sidecar={}, base_name=base)
    before = (folder / "adapter_model.safetensors").read_bytes()
    model.model.norm.weight.data += 1

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_causal(model, tokenizer, folder, sidecar={}, base_name=base)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_push_is_private_and_whole(tmp_path: Path, monkeypatch) -> None:
    calls: list[tuple[str, dict[str, object]]] = []

    class Hub:
        def create_repo(self, repo_id: str, **options: object) -> None:
            calls.append(("create", {"repo_id": repo_id, **options}))

        def upload_folder(self, **options: object) -> None:
            if "taken" in str(options["repo_id"]):
                raise PermissionError("403")
            calls.append(("upload", options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push_to_hub(tmp_path, "me/model") == "https://huggingface.co/me/model"
    assert calls[0] == ("create", {"repo_id": "me/model", "private": True, "exist_ok": True})
    assert calls[1][1]["folder_path"] == str(tmp_path)
    with pytest.raises(ConfigError, match="the hub did not take"):
        push_to_hub(tmp_path, "me/taken")
