"""Bases held in 8 or 4 bits: loading, training adapters on them, checkpoints, export."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import nn
from transformers import AutoModelForCausalLM

from ragtrain.config.commands.sft import SftModelConfig
from ragtrain.config.training import LoraConfig
from ragtrain.data.sft.batches import collate_rows
from ragtrain.errors import CheckpointError, ConfigError
from ragtrain.models import weights
from ragtrain.models.adapters import adapters_off
from ragtrain.models.causal import bits, label_logits, load_causal, set_checkpointing
from ragtrain.models.causal_export import load_causal_run, save_causal, save_merged

bnb = pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")

LORA = LoraConfig(lora_rank=4, lora_targets=("all-linear",))
CONFIGS = {8: SftModelConfig(load_in_8bit=True), 4: SftModelConfig(load_in_4bit=True)}
LAYERS = {8: bnb.nn.Int8Params, 4: bnb.nn.Params4bit}
EACH = pytest.mark.parametrize("held", [8, 4], ids=["8bit", "4bit"])


@pytest.fixture
def batch(causal):
    return collate_rows(causal.encoded((20, 3), (13, 5), (9, 1)), list("abc"), 1)


def nll(model: nn.Module, batch) -> torch.Tensor:
    return nn.functional.cross_entropy(label_logits(model, batch), batch.targets)


def train(model: nn.Module, batch, steps: int = 8) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = nll(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@EACH
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_learn_on_a_quantised_base(kind: str, held: int, causal, batch, caplog) -> None:
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        model, _ = load_causal(causal.folder(kind), CONFIGS[held], LORA, device="cpu")
        base = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
        losses = train(model, batch)
    assert losses[-1] < 0.7 * losses[0]
    assert not caplog.records
    assert not remarks
    assert bits(model) == held
    held_small = {name for name, p in model.named_parameters() if isinstance(p, LAYERS[held])}
    assert len(held_small) == (8 if kind == "gpt2" else 14)
    assert {p.dtype for name, p in model.named_parameters() if name not in held_small} == {torch.float32}
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in base.items())
    assert all("lora_" in name for name, p in after.items() if p.requires_grad)
    plain = AutoModelForCausalLM.from_pretrained(causal.folder(kind))
    with adapters_off(model), torch.no_grad():
        assert float((label_logits(model, batch) - label_logits(plain, batch)).abs().mean()) < 0.5


@EACH
def test_recomputing_layers_changes_no_gradient(held: int, causal, batch) -> None:
    model, _ = load_causal(causal.folder(), CONFIGS[held], LORA)
    model.train()
    results = []
    for on in (False, True):
        set_checkpointing(model, on)
        model.zero_grad()
        nll(model, batch).backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert len(results[0]) == 28
    assert all(torch.equal(results[1][name], gradient) for name, gradient in results[0].items())


def test_types_of_what_is_not_held_in_few_bits(causal, batch) -> None:
    config = CONFIGS[4].model_copy(update={"dtype": "bfloat16"})
    model, _ = load_causal(causal.folder(), config, LORA.model_copy(update={"use_dora": True}), precision="bf16")
    assert {model.lm_head.weight.dtype, model.model.norm.weight.dtype} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.model.layers[0].mlp.up_proj.base_layer.compute_dtype == torch.bfloat16
    losses = train(model, batch)
    assert losses[-1] < losses[0]
    model, _ = load_causal(causal.folder(), CONFIGS[4], LORA, precision="bf16")
    assert model.model.norm.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.base_layer.compute_dtype == torch.bfloat16


@pytest.mark.parametrize(("held", "dora"), [(8, False), (4, False), (4, True)], ids=["8bit", "4bit", "4bit-dora"])
def test_a_checkpoint_holds_what_is_trained(held: int, dora: bool, causal, batch, tmp_path: Path) -> None:
    lora = LORA.model_copy(update={"use_dora": dora})
    model, _ = load_causal(causal.folder(), CONFIGS[held], lora)
    train(model, batch)
    weights.save_weights(model, tmp_path)
    expected = label_logits(model, batch)
    assert (tmp_path / weights.FILE).stat().st_size < 100_000
    again, _ = load_causal(causal.folder(), CONFIGS[held], lora)
    weights.load_weights(again, tmp_path)
    torch.testing.assert_close(label_logits(again, batch), expected)
    used, _ = load_causal(causal.folder(), CONFIGS[held], lora)
    train(used, batch, steps=1)  # 8-bit layers rearrange themselves when they first compute
    used.to("cpu")
    weights.load_weights(used, tmp_path)
    torch.testing.assert_close(label_logits(used, batch), expected)
    whole, _ = load_causal(causal.folder(), lora=lora)
    with pytest.raises(CheckpointError):
        weights.load_weights(whole, tmp_path)


@EACH
def test_a_run_comes_back_in_its_bits(held: int, causal, batch, tmp_path: Path) -> None:
    model, tokenizer = load_causal(causal.folder(), CONFIGS[held], LORA)
    train(model, batch)
    folder = save_causal(model, tokenizer, tmp_path / "out", sidecar={}, base_name=str(causal.folder()))
    expected = label_logits(model, batch)
    again, _, sidecar = load_causal_run(folder)
    assert sidecar["network"]["bits"] == bits(again) == held
    torch.testing.assert_close(label_logits(again, batch), expected)
    assert f"held in {held} bits" in (folder / "README.md").read_text()
    on_whole, _, _ = load_causal_run(folder, SftModelConfig())
    assert bits(on_whole) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft reads what transformers is about to rename
        plain = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(label_logits(on_whole, batch), label_logits(plain.get_base_model(), batch))
    on_more, _ = load_causal(folder, CONFIGS[held], LORA)
    assert train(on_more, batch)[-1] < nn.functional.cross_entropy(expected, batch.targets).item()
    with pytest.raises(ConfigError, match="cannot be trained as a whole"):
        load_causal(folder, CONFIGS[held], LoraConfig(lora_rank=0))

    merged = save_merged(model, tokenizer, tmp_path / "merged", sidecar={}, base_name=str(causal.folder()))
    whole = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(label_logits(whole, batch), label_logits(on_whole, batch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(label_logits(model, batch), expected)


def test_lengths_of_columns_on_a_base_of_8_bits(causal) -> None:
    with pytest.raises(ConfigError, match="works on GPUs only"):
        load_causal(causal.folder(), CONFIGS[8], LORA.model_copy(update={"use_dora": True}))


@EACH
def test_evaluating_leaves_the_base_as_it_is(held: int, causal, batch) -> None:
    model, _ = load_causal(causal.folder(), CONFIGS[held], LORA)
    model.train()
    before = nll(model, batch).item()
    prints = weights.base_fingerprint(dict(model.named_parameters()))
    model.eval()
    with torch.no_grad():
        evaluated = nll(model, batch).item()
    model.train()
    assert nll(model, batch).item() == before
    # In evaluation, 8-bit layers on a CPU round their inputs to eight bits too.
    assert evaluated == pytest.approx(before, rel=1e-2 if held == 8 else 1e-6)
    assert weights.base_fingerprint(dict(model.named_parameters())) == prints


@EACH
def test_a_base_that_is_stored_in_few_bits(held: int, causal, batch, tmp_path: Path) -> None:
    model, tokenizer = load_causal(causal.folder(), CONFIGS[held])
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    stored, _ = load_causal(tmp_path / "base", lora=LORA)
    assert bits(stored) == held
    torch.testing.assert_close(label_logits(stored, batch), label_logits(model, batch))
    with pytest.raises(ConfigError, match="is quantised and cannot be trained as a whole"):
        load_causal(tmp_path / "base", lora=LoraConfig(lora_rank=0))
    with pytest.raises(ConfigError, match="is stored in few bits"):
        save_merged(stored, tokenizer, tmp_path / "merged", sidecar={}, base_name=str(tmp_path / "base"))
    assert not (tmp_path / "merged").exists()
