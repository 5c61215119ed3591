"""Operations and cache bytes: polynomials against every count, counts against formulas, bytes against a real cache."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from ragtrain.errors import ConfigError
from ragtrain.models.flops import StackFlops, cache_bytes, linear_flops

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
CAUSAL = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "gemma3": Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=24, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=200),
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=512),
    "opt": OPTConfig(
        vocab_size=60, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=512,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSAL)
def test_lengths_that_were_not_counted_cost_what_counting_them_gives(name: str) -> None:
    stack = StackFlops(CAUSAL[name], head=True)
    for tokens in (1, 25, 201):
        assert stack.forward(tokens, rows=3) == 3 * stack._count_forward(tokens)
    for past in (23, 24, 199, 200):
        assert stack._step(past) == stack._count_step(past)
    assert stack.decode(22, 4) == sum(stack._count_step(past) for past in (22, 23, 24))
    assert stack.decode(22, 1) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_counts_follow_the_formula(name: str) -> None:
    """Two for each weight of a layer and token, four for each pair of tokens and channel, the head once."""
    config = CAUSAL[name]
    model = AutoModelForCausalLM.from_config(config)
    kinds = (nn.Linear, type(model.base_model.h[0].attn.c_attn)) if name == "gpt2" else (nn.Linear,)
    inner = sum(part.weight.numel() for part in model.base_model.modules() if isinstance(part, kinds))
    tokens, head = 50, 2 * 32 * 60
    expected = 2 * inner * tokens + 3 * 4 * tokens**2 * 32
    assert StackFlops(config, head=True).forward(tokens) == expected + head
    assert StackFlops(config, head=False).forward(tokens) == expected


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
        ModernBertConfig(
            vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_encoders_are_counted_and_write_nothing(config: PreTrainedConfig) -> None:
    stack = StackFlops(config, head=False)
    assert stack.forward(77) == stack._count_forward(77) > 0
    assert stack.forward(0) == 0
    with pytest.raises(ConfigError, match="writes nothing"):
        stack.decode(5, 2)


def test_experts_count_for_the_tokens_that_they_are_given() -> None:
    """Two of four experts for each token: as much as a plain layer of twice an expert's width, and the choice of experts."""
    sizes = {**SIZES, "intermediate_size": 24}
    experts = StackFlops(MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2), head=True)
    plain = StackFlops(MistralConfig(**{**sizes, "intermediate_size": 48}, sliding_window=None), head=True)
    for tokens in (7, 100):
        assert experts.forward(tokens) == plain.forward(tokens) + 3 * 2 * 32 * 4 * tokens


def test_a_stack_without_a_cache_of_keys_and_values_cannot_be_counted() -> None:
    config = MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, state_size=8)
    with pytest.raises(ConfigError, match="operations of a mamba model cannot be counted"):
        StackFlops(config, head=True)


def test_attention_of_the_models_own_is_counted_where_there_is_no_other() -> None:
    config = BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4)
    inner = 2 * (32 * 96 + 32 * 32 + 2 * 32 * 128)
    assert StackFlops(config, head=True).forward(50) == 2 * inner * 50 + 2 * 4 * 50**2 * 32 + 2 * 32 * 60


def test_a_stack_that_is_no_language_model_has_no_head() -> None:
    with pytest.raises(ConfigError, match="cannot be counted"):
        StackFlops(ModernBertConfig(), head=True)


def test_counting_leaves_the_configuration_alone() -> None:
    config = LlamaConfig(**SIZES)
    config._attn_implementation = "eager"
    before = config.to_dict()
    StackFlops(config, head=True)
    assert config.to_dict() == before
    assert config._attn_implementation == "eager"


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("tokens", [10, 30])
def test_cache_bytes_are_those_of_a_real_cache(name: str, tokens: int) -> None:
    config = CAUSAL[name]
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        cache = model(torch.ones(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    # A full window is cut by the next token only.
    held = sum(tensor.numel() * 4 for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert cache_bytes(config, tokens) == held
    assert cache_bytes(config, tokens, bytes_per_value=2) == held // 2


def test_linear_layers_count_two_for_each_weight() -> None:
    assert linear_flops(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))) == 2 * (15 + 35)
    assert linear_flops(nn.Identity()) == 0
