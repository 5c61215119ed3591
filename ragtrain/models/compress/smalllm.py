"""A small causal language model as a compressor (``compressor_type`` small_lm), as OSCAR-llama is.

Its final norm stays: the connector behind it takes the states into the generator's space in any case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import LlamaConfig, LlamaModel

from ragtrain.models.compress.loading import Loaded, load_headless, prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "meta-llama/Llama-3.2-1B"


def load_small_lm(name: str, generator_tokenizer: PreTrainedTokenizerBase, attention: str = "auto") -> Loaded:
    """Return a causal language model without its head; see ``load_headless``."""
    return load_headless(name, generator_tokenizer, causal=True, attention=attention)


def small_small_lm(generator_tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Return a Llama of four layers with random weights that reads the generator's tokens."""
    config = LlamaConfig(
        vocab_size=max(generator_tokenizer.get_vocab().values()) + 1, hidden_size=128, intermediate_size=256,
        num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=2048,
        pad_token_id=generator_tokenizer.pad_token_id,
    )  # fmt: skip
    network = prepared(LlamaModel(config), generator_tokenizer, "")
    return Loaded(network, generator_tokenizer, "", random=True)
