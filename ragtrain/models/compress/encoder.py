"""An encoder as a compressor (``compressor_type`` modernbert): ModernBERT, BERT, or any other that reads both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import ModernBertConfig, ModernBertModel

from ragtrain.models.compress.loading import Loaded, load_headless, prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "answerdotai/ModernBERT-base"


def load_encoder(name: str, generator_tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Return an encoder; see ``load_headless``."""
    return load_headless(name, generator_tokenizer, causal=False)


def small_encoder(generator_tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Return a ModernBERT of four layers with random weights that reads the generator's tokens."""
    highest = max(generator_tokenizer.get_vocab().values())
    tokens = {"pad_token_id": generator_tokenizer.pad_token_id, "bos_token_id": generator_tokenizer.bos_token_id,
              "eos_token_id": generator_tokenizer.eos_token_id, "cls_token_id": generator_tokenizer.bos_token_id,
              "sep_token_id": generator_tokenizer.eos_token_id}  # fmt: skip
    config = ModernBertConfig(
        vocab_size=highest + 1, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=2048, **tokens,
    )  # fmt: skip
    network = prepared(ModernBertModel(config), generator_tokenizer, "")
    return Loaded(network, generator_tokenizer, "", random=True)
