"""Samples behind each other in a row, or branching from one beginning: loss and gradients of separate rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM

from ragtrain.data.sft.batches import SftBatch, collate_packed, collate_rows, collate_shared
from ragtrain.errors import ConfigError
from ragtrain.models import causal as module
from ragtrain.models.adapters import add_lora
from ragtrain.models.causal import check_shared, label_logits, network_inputs, supports_packing, supports_shared

IDS = list("abcdef")
CASES = [
    (kind, attention)
    for kind in ("gpt2", "llama", "qwen2", "phi3", "cohere", "mistral")
    for attention in ("eager", "sdpa")
]
CASES.append(("gemma2", "eager"))  # its soft cap inside attention is eager's alone


@pytest.fixture
def samples(causal):
    """Four samples on 20 equal tokens, two on 9 others."""
    return causal.encoded((30, 3), (28, 5), (25, 1), (33, 2), common=20) + causal.encoded(
        (12, 1), (19, 4), common=9, seed=3
    )


def compute(model: nn.Module, batch: SftBatch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = nn.functional.cross_entropy(label_logits(model, batch), batch.targets, reduction="sum")
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: nn.Module, rows: SftBatch, other: SftBatch) -> None:
    (expected, wanted), (loss, got) = compute(model, rows), compute(model, other)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name)
    check_shared(model, rows, other)


@pytest.mark.parametrize(("kind", "attention"), CASES, ids=map("-".join, CASES))
def test_branches_are_separate_rows(kind: str, attention: str, samples, causal) -> None:
    model, rows = causal.model(kind, attention), collate_rows(samples, IDS, 1)
    shared = collate_shared(samples, IDS, 1)
    assert shared.input_ids.shape == (2, 56)
    assert (rows.tokens, shared.tokens) == (147, 78)
    assert supports_shared(model, 64) == ""
    assert_same(model, rows, shared)
    both = collate_shared(samples, IDS, 1, capacity=80)
    assert both.input_ids.shape == (1, 78)
    assert_same(model, rows, both)


@pytest.mark.parametrize(("kind", "attention"), CASES, ids=map("-".join, CASES))
def test_packed_samples_are_separate_rows(kind: str, attention: str, samples, causal) -> None:
    model, rows, packed = (
        causal.model(kind, attention),
        collate_rows(samples, IDS, 1),
        collate_packed(samples, IDS, 70, 1),
    )
    assert packed.input_ids.shape == (3, 65)
    assert supports_packing(model) == ""
    assert_same(model, rows, packed)


def test_with_adapters(samples, causal) -> None:
    model, rows = causal.model("llama"), collate_rows(samples, IDS, 1)
    add_lora(model, 4, dora=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    assert_same(model, rows, collate_shared(samples, IDS, 1))
    assert_same(model, rows, collate_packed(samples, IDS, 70, 1))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_answers_to_one_prompt(attention: str, causal) -> None:
    """Several answers to one prompt, one of them twice and one the beginning of another."""
    (one, two, three, four) = causal.encoded((24, 4), (26, 6), (22, 2), (23, 3), common=20)
    longer = dataclasses.replace(one, ids=one.ids[:22], labels=one.labels[:22])
    samples, ids = [one, two, three, four, one, longer], list("abcdef")
    model, shared = causal.model("llama", attention), collate_shared(samples, ids, 1)
    assert shared.tokens == 19 + sum(
        len(row.ids) - 19 for row in samples
    )  # branches begin before the first answer token
    assert_same(model, collate_rows(samples, ids, 1), shared)


def test_a_window_slides_over_packed_samples_but_not_over_branches(samples, causal) -> None:
    model = causal.model("mistral", "eager", sliding_window=8)
    rows = collate_rows(samples, IDS, 1)
    assert_same(model, rows, collate_packed(samples, IDS, 70, 1))
    assert "see 8 tokens back" in supports_shared(model)
    assert "see 8 tokens back" in supports_shared(model, 33)
    assert supports_shared(model, 8) == ""
    with pytest.raises(ConfigError, match="does not compute the same"):
        check_shared(model, rows, collate_shared(samples, IDS, 1))
    assert model.training is False


def test_what_a_model_must_know(samples, causal) -> None:
    bloom = causal.model("bloom")
    assert "cannot be told the positions" in supports_packing(bloom)
    assert supports_shared(bloom) == supports_packing(bloom)
    with pytest.raises(ConfigError, match="BloomForCausalLM does not compute the same"):
        check_shared(bloom, collate_rows(samples, IDS, 1), collate_packed(samples, IDS, 70, 1))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4))
    assert "carries a state over" in supports_packing(mamba)


def test_flash_attention_gets_one_row_and_no_branches(samples, causal, monkeypatch) -> None:
    model, rows, packed = causal.model("llama"), collate_rows(samples, IDS, 1), collate_packed(samples, IDS, 70, 1)
    monkeypatch.setattr(module, "attention_of", lambda _: "flash_attention_2")
    assert network_inputs(model, packed)["input_ids"].shape == (1, 195)
    assert network_inputs(model, rows).keys() == {"input_ids"}
    assert_same(model, rows, packed)  # still SDPA underneath: one row of everything is right too
    assert "takes no mask of branches" in supports_shared(model)


def test_a_cache_would_make_packing_wrong(samples, causal) -> None:
    """Why ``label_logits`` keeps no cache: transformers then lets a sample see the ones before it."""
    model, packed = causal.model("llama"), collate_packed(samples, IDS, 70, 1)
    expected = label_logits(model, packed)
    wrong = LlamaForCausalLM.forward(model, packed.input_ids, position_ids=packed.position_ids, use_cache=True)
    assert not torch.allclose(wrong.logits.flatten(0, 1)[packed.predictors], expected, atol=1e-2)


def test_rows_share_under_half_precision(samples, causal) -> None:
    model, rows, shared = causal.model("llama"), collate_rows(samples, IDS, 1), collate_shared(samples, IDS, 1)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with torch.autocast("cpu", torch.bfloat16):
            check_shared(model, rows, shared)
    half = causal.model("llama").bfloat16()
    check_shared(half, rows, shared)


def test_nothing_to_learn(causal) -> None:
    samples = causal.encoded((9, 0), (7, 0), common=5)
    model = causal.model("llama")
    for batch in (collate_shared(samples, ["a", "b"], 1), collate_packed(samples, ["a", "b"], 20, 1)):
        loss, gradients = compute(model, batch)
        assert loss == 0
        assert all(bool((gradient == 0).all()) for gradient in gradients.values())
