"""Causal language models: loading in every form, logits of labels only, recomputation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from ragtrain.config.commands.sft import SftModelConfig
from ragtrain.config.training import LoraConfig
from ragtrain.data.sft.batches import collate_rows
from ragtrain.errors import ConfigError, DataError
from ragtrain.models import causal as module
from ragtrain.models import causal_config
from ragtrain.models.adapters import add_lora, has_lora
from ragtrain.models.causal import compile_layers, label_logits, load_causal, set_checkpointing
from ragtrain.models.causal_export import save_causal

KINDS = ("gpt2", "llama", "gemma2", "cohere", "qwen2", "phi3", "bloom")
LENGTHS = ((20, 3), (13, 5), (9, 1), (17, 0))


def nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


def full_nll(model: nn.Module, batch) -> torch.Tensor:
    """The usual way: padding is masked, every position meets the head, and labels that are -100 are ignored."""
    out = model(input_ids=batch.input_ids, attention_mask=(batch.input_ids != 1).long()).logits.float()
    return nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def randomize(model: nn.Module) -> None:
    """Give B of every adapter some values: at its beginning it is zero and adapters compute nothing."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_label_logits_give_the_loss_of_full_logits(kind: str, adapters: bool, causal) -> None:
    model, batch = causal.model(kind), collate_rows(causal.encoded(*LENGTHS), list("abcd"), 1)
    if adapters:
        add_lora(model, 4)
        randomize(model)
    slow, fast = full_nll(model, batch), nll(label_logits(model, batch), batch.targets)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-6)
    wanted, got = gradients(model, slow), gradients(model, fast)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_only_positions_of_labels_meet_the_head(causal) -> None:
    model, batch = causal.model("qwen2"), collate_rows(causal.encoded(*LENGTHS), list("abcd"), 1)
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1].numel()))
    assert label_logits(model, batch).shape == (9, causal.vocab)
    handle.remove()
    assert seen == [9] == [batch.weight]
    assert not model.lm_head._forward_pre_hooks


def test_adapters_in_the_head(causal) -> None:
    model, batch = causal.model("llama"), collate_rows(causal.encoded(*LENGTHS), list("abcd"), 1)
    add_lora(model, 4, targets=["q_proj", "lm_head"])
    randomize(model)
    fast = nll(label_logits(model, batch), batch.targets)
    torch.testing.assert_close(fast, full_nll(model, batch), rtol=1e-6, atol=1e-6)
    assert sum("lm_head" in name for name in gradients(model, fast)) == 2
    with pytest.raises(ConfigError, match="lm_head is tied to the embeddings"):
        add_lora(causal.model("gpt2"), 4, targets=["lm_head"])


def test_a_head_that_is_not_shown(causal, monkeypatch) -> None:
    model, batch = causal.model("llama"), collate_rows(causal.encoded(*LENGTHS), list("abcd"), 1)
    expected = label_logits(model, batch)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(label_logits(model, batch), expected)


def test_a_batch_without_labels_has_a_gradient(causal) -> None:
    model = causal.model("llama")
    add_lora(model, 2)
    for encoded in (causal.encoded((9, 0), (5, 0)), []):
        batch = collate_rows(encoded, [], 1)
        logits = label_logits(model, batch)
        assert logits.shape == (0, causal.vocab)
        assert batch.weight == 0
        got = gradients(model, nll(logits, batch.targets))
        assert got
        assert all(bool((gradient == 0).all()) for gradient in got.values())


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_recomputing_layers_changes_no_number(kind: str, adapters: bool, causal) -> None:
    dropout = {"attn_pdrop": 0.1, "resid_pdrop": 0.1} if kind == "gpt2" else {"attention_dropout": 0.1}
    model, batch = causal.model(kind, **dropout).train(), collate_rows(causal.encoded(*LENGTHS), list("abcd"), 1)
    if adapters:
        add_lora(model, 4, dropout=0.1)
        randomize(model)
    results = []
    for on in (False, True, False):
        set_checkpointing(model, on)
        calls: list[int] = []
        layer = next(part for part in model.modules() if isinstance(part, module.GradientCheckpointingLayer))
        handle = next(layer.children()).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        results.append(gradients(model, nll(label_logits(model, batch), batch.targets)))
        handle.remove()
        assert len(calls) == 1 + on  # switched on, the layer is computed again in the backward pass
    assert results[0]
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        assert all(torch.equal(other[name], gradient) for name, gradient in results[0].items())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
def test_layers_are_compiled_in_place(causal) -> None:
    model, batch = causal.model("llama"), collate_rows(causal.encoded(*LENGTHS), list("abcd"), 1)
    expected = label_logits(model, batch)
    assert compile_layers(model, backend="eager") == 2
    torch.testing.assert_close(label_logits(model, batch), expected)
    assert "_orig_mod" not in "".join(model.state_dict())


def test_a_model_is_loaded_for_adapters(causal) -> None:
    model, tokenizer = load_causal(causal.folder(), lora=LoraConfig(lora_rank=4, lora_alpha=2), precision="bf16")
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(False, torch.bfloat16), (True, torch.float32)}
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    assert not model.training
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert label_logits(model, collate_rows(causal.encoded((9, 2)), ["a"], 2)).dtype == torch.float32


@pytest.mark.parametrize(("asked", "precision", "rank", "expected"), [
    ("auto", "no", 4, torch.float32), ("auto", "fp16", 4, torch.float16), ("auto", "bf16", 0, torch.float32),
    ("bfloat16", "no", 0, torch.bfloat16), ("float32", "bf16", 4, torch.float32), ("auto", "bf16", None, torch.bfloat16),
])  # fmt: skip
def test_types(asked: str, precision: str, rank: int | None, expected: torch.dtype, causal) -> None:
    lora = None if rank is None else LoraConfig(lora_rank=rank)
    model, _ = load_causal(causal.folder(), SftModelConfig(dtype=asked), lora, precision=precision)
    assert model.lm_head.weight.dtype == expected
    assert model.lm_head.weight.requires_grad == (rank != 4)


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}], ids=["rslora", "dora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_kinds_of_adapters(kind: str, options: dict[str, bool], causal) -> None:
    plain, _ = load_causal(causal.folder(kind))
    model, _ = load_causal(causal.folder(kind), lora=LoraConfig(lora_rank=4, **options))
    batch = collate_rows(causal.encoded(*LENGTHS), list("abcd"), 1)
    torch.testing.assert_close(label_logits(model, batch), label_logits(plain, batch), rtol=1e-5, atol=1e-5)
    names = {
        name.rsplit(".default", 1)[0].rsplit(".", 1)[-1] for name, p in model.named_parameters() if p.requires_grad
    }
    assert names == {"lora_A", "lora_B", *(["lora_magnitude_vector"] if "use_dora" in options else [])}
    layer = next(part for part in model.modules() if hasattr(part, "lora_A"))
    assert layer.scaling["default"] == (4.0 if "use_rslora" in options else 2.0)


def test_targets_by_name(causal) -> None:
    model, _ = load_causal(causal.folder("gpt2"), lora=LoraConfig(lora_rank=2, lora_targets=("c_attn",)))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all("c_attn" in name for name in trained)
    with pytest.raises(ConfigError, match="lora_targets qkv_proj"):
        load_causal(causal.folder("gpt2"), lora=LoraConfig(lora_rank=2, lora_targets=("qkv_proj",)))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_chosen(attention: str, causal) -> None:
    model, _ = load_causal(causal.folder(), SftModelConfig(attention=attention))
    assert module.attention_of(model) == attention


@pytest.mark.parametrize(("config", "lora", "message"), [
    ({"attention": "flash_attention_2"}, None, "needs the package flash-attn"),
    ({"load_in_4bit": True}, 0, "cannot be trained as a whole"),
    ({"load_in_4bit": True, "load_in_8bit": True}, 4, "both on"),
    ({"dtype": "float16"}, 0, "half precision cannot be trained"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused(config: dict[str, object], lora: int | None, message: str, causal) -> None:
    with pytest.raises(ConfigError, match=message):
        load_causal(causal.folder(), SftModelConfig(**config), None if lora is None else LoraConfig(lora_rank=lora))


def test_an_attention_that_a_model_has_not(causal) -> None:
    with pytest.raises(ConfigError, match="BloomForCausalLM has no such implementation"):
        load_causal(causal.folder("bloom"), SftModelConfig(attention="sdpa"))


def test_bitsandbytes_is_asked_for(causal, monkeypatch) -> None:
    monkeypatch.setattr(causal_config, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match="needs bitsandbytes") as error:
        load_causal(causal.folder(), SftModelConfig(load_in_8bit=True), LoraConfig(lora_rank=4))
    assert error.value.hint == "pip install 'ragtrain[quant]'"


def test_other_models_are_refused(tiny, causal, tmp_path: Path) -> None:
    tiny.bart().save_pretrained(tmp_path / "bart")
    with pytest.raises(ConfigError, match="is a bart model, not a causal language model"):
        load_causal(tmp_path / "bart")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is no model") as error:
        load_causal(tmp_path / "run")
    assert "did not end" in str(error.value.hint)
    with pytest.raises(ConfigError, match="no folder"):
        load_causal(tmp_path / "nothing")
    shutil.copytree(causal.folder(), tmp_path / "other")
    config = json.loads((tmp_path / "other/tokenizer.json").read_text())
    config["model"]["vocab"]["more"] = causal.vocab
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="tokens up to 60, and the network's embeddings end at 59"):
        load_causal(tmp_path / "other")


def test_a_run_is_a_starting_point(causal, tmp_path: Path) -> None:
    lora = LoraConfig(lora_rank=4, lora_alpha=4, use_dora=True)
    model, tokenizer = load_causal(causal.folder(), lora=lora)
    randomize(model)
    run = tmp_path / "run"
    save_causal(model, tokenizer, run / "final_model", sidecar={}, base_name=str(causal.folder()))
    batch = collate_rows(causal.encoded(*LENGTHS), list("abcd"), 1)
    expected = label_logits(model, batch)

    again, _ = load_causal(run, lora=lora.model_copy(update={"lora_dropout": 0.25}))
    torch.testing.assert_close(label_logits(again, batch), expected)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert {part.p for part in again.modules() if isinstance(part, nn.Dropout)} == {0.25}

    whole, _ = load_causal(run, lora=LoraConfig(lora_rank=0))
    torch.testing.assert_close(label_logits(whole, batch), expected, rtol=1e-4, atol=1e-4)
    assert not has_lora(whole)
    assert all(p.requires_grad for p in whole.parameters())

    for changes, message in (
        ({"lora_rank": 8}, "lora_rank is 8, and the adapter in .* has 4"),
        ({"lora_alpha": None}, "lora_alpha is 8"),
        ({"use_dora": False}, "use_dora is False"),
        ({"lora_targets": ("q_proj",)}, "lora_targets are q_proj"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_causal(run, lora=lora.model_copy(update=changes))
