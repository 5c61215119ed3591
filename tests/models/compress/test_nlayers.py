"""The generator's first layers are the generator's first layers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM, PreTrainedModel

from ragtrain.errors import ConfigError
from ragtrain.models.adapters import add_lora, merge_lora, save_adapters
from ragtrain.models.causal_config import source_of
from ragtrain.models.compress.nlayers import load_layers, truncated, without_final_norm

KINDS = ("llama", "qwen3", "gemma3", "gpt2", "opt")


def states_after(model: PreTrainedModel, n: int, ids: Tensor) -> Tensor:
    """The output of layer n of a whole model."""
    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == 3)
    kept = []
    handle = layers[n - 1].register_forward_hook(
        lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    if n < 3:  # transformers puts the last one through the final norm
        assert torch.equal(kept[0], hidden[n])
    return kept[0]


@pytest.mark.parametrize(
    ("kind", "n"),
    [*((kind, n) for kind in KINDS for n in (1, 2, 3)), *((kind, 1) for kind in ("gemma2", "bloom", "cohere", "phi3"))],
)
def test_states_are_those_of_the_generator(kind: str, n: int, make: SimpleNamespace, causal: SimpleNamespace) -> None:
    folder = make.folders[kind] if kind in KINDS else causal.folder(kind)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(8, 58, (3, 40))
    part = load_layers(source_of(folder), n)
    with torch.no_grad():
        found = part(input_ids=ids, use_cache=False).last_hidden_state
        by_vectors = part(inputs_embeds=part.get_input_embeddings()(ids), use_cache=False).last_hidden_state
    if kind in KINDS:
        assert torch.equal(found, states_after(whole, n, ids))
    else:  # of two layers
        assert torch.equal(found, whole(ids, output_hidden_states=True).hidden_states[n])
    assert torch.equal(by_vectors, found)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in part.parameters())
    assert not part.training


def test_lists_of_layers_are_cut_with_them(tmp_path: Path, causal: SimpleNamespace) -> None:
    neo = GPTNeoConfig(
        vocab_size=60, hidden_size=16, num_layers=3, num_heads=2, attention_types=[[["global", "local", "local"], 1]],
        window_size=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=[2, 3, 4],
    )  # fmt: skip
    torch.manual_seed(0)
    whole = GPTNeoForCausalLM(neo).eval()
    whole.save_pretrained(tmp_path)
    causal.tokenizer().save_pretrained(tmp_path)
    part = load_layers(source_of(tmp_path), 2)
    assert part.config.attention_layers == ["global", "local"]
    assert part.config.eos_token_id == [2, 3, 4]
    assert AutoConfig.for_model(**part.config.to_dict()).num_layers == 2
    ids = torch.randint(8, 58, (2, 20))
    with torch.no_grad():
        assert torch.equal(part(ids).last_hidden_state, whole(ids, output_hidden_states=True).hidden_states[2])


def test_cutting_leaves_the_configuration_alone(make: SimpleNamespace) -> None:
    config = AutoConfig.from_pretrained(make.folders["gemma3"])
    assert truncated(config, 2).layer_types == ["sliding_attention", "full_attention"]
    assert len(config.layer_types) == config.num_hidden_layers == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_of_a_generator_are_in_its_layers(kind: str, make: SimpleNamespace, tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(make.folders[kind], dtype=torch.float32).eval()
    add_lora(whole, 2)
    for name, parameter in whole.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    save_adapters(whole, tmp_path, str(make.folders[kind]))
    ids = torch.randint(8, 58, (2, 9))
    part = load_layers(source_of(tmp_path), 2)
    merge_lora(whole)
    with torch.no_grad():
        assert torch.equal(part(ids, use_cache=False).last_hidden_state, states_after(whole, 2, ids))


def test_what_stands_behind_the_last_layer_is_noticed(make: SimpleNamespace) -> None:
    part = load_layers(source_of(make.folders["llama"]), 1)
    part.norm = None
    without_final_norm(part.__class__(part.config))

    class Scaled(type(part)):
        def forward(self, *args: object, **more: object) -> object:
            out = super().forward(*args, **more)
            out.last_hidden_state = 2 * out.last_hidden_state
            return out

    with pytest.raises(ConfigError, match="behind the last one"):
        without_final_norm(Scaled(part.config))
