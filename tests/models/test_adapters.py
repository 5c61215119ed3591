"""Adapters in, trained, saved as peft loads them, merged, and gone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from ragtrain.errors import ConfigError
from ragtrain.models.adapters import add_lora, has_lora, merge_lora, save_adapters
from ragtrain.models.export import load_rag, save_rag


def generator_of(kind: str, tiny):
    if kind != "gpt2":
        return tiny.generator(kind)
    settings = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64, **settings))


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads transformers' old name
@pytest.mark.parametrize("kind", ["bart", "t5", "gpt2"])
def test_saved_adapters_load_with_peft_and_merge_exactly(kind: str, tiny, tmp_path: Path) -> None:
    model = generator_of(kind, tiny).eval().double()  # T5's round-off is large
    base, names = copy.deepcopy(model), set(model.state_dict())
    before = dict(base.named_parameters())
    add_lora(model, 3, alpha=5.0)
    model.double()
    assert has_lora(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    inputs = {"input_ids": torch.randint(8, 60, (2, 7))}
    if kind != "gpt2":
        inputs["decoder_input_ids"] = torch.randint(8, 60, (2, 4))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, base(**inputs).logits)  # B begins at zero
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        adapted = model(**inputs).logits
        assert (adapted - base(**inputs).logits).abs().max() > 1e-2
        save_adapters(model, tmp_path / "adapter")
        merge_lora(model)
        torch.testing.assert_close(model(**inputs).logits, adapted)
        assert set(model.state_dict()) == names
        assert not has_lora(model)
        assert any((parameter != before[name]).any() for name, parameter in model.named_parameters())
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").double()
        torch.testing.assert_close(loaded(**inputs).logits, adapted)


def test_unknown_layers_are_named(tiny) -> None:
    with pytest.raises(ConfigError, match="nothing_like_it") as caught:
        add_lora(tiny.bart(), 2, targets=["nothing_like_it"])
    assert "all-linear" in str(caught.value.hint)


def test_a_rag_model_is_saved_merged_and_with_its_adapters(tiny, tmp_path: Path) -> None:
    model = tiny.rag("bart").eval()
    add_lora(model.generator, 2)
    add_lora(model.question_encoder.model, 2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    example = tiny.example(2)
    given = (example.question_ids, example.question_mask, example.targets, example.retrieve)
    with torch.no_grad():
        before = model(*given)
        save_rag(model, tmp_path / "final")
        after, again = model(*given), load_rag(tmp_path / "final").eval()(*given)
    for output in (after, again):
        torch.testing.assert_close(output.loglik, before.loglik, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.scores, before.scores, rtol=1e-4, atol=1e-4)
    for part in ("generator", "question_encoder"):
        assert (tmp_path / "final" / f"{part}_adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "final" / "config.json").is_file(), "merged, it is transformers' RAG"
