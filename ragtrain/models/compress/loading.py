"""A compressor from a folder or the hub: a network without head, and its tokenizer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig, AutoModel

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.folders import load_tokenizer, load_weights, local_folder
from ragtrain.models.readers import is_causal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A compressor's network.

    Attributes:
        network: without head, float32, in evaluation mode, all of it trained.
        tokenizer: its own, or the generator's where it has none.
        name: folder or hub id; empty where it was made up here.
        random: whether its weights are.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    random: bool


def load_headless(
    name: str, generator_tokenizer: PreTrainedTokenizerBase, *, causal: bool, attention: str = "auto"
) -> Loaded:
    """Load an encoder or a causal language model without its head.

    Args:
        name: folder or hub id. A folder without weights begins with random ones; one without a tokenizer reads the
            generator's tokens.
        generator_tokenizer: of the generator.
        causal: whether a causal language model is wanted, or else an encoder.
        attention: implementation, by transformers' name; ``auto`` for its own choice.

    Raises:
        ConfigError: there is no such model, or it is of the other kind.
        DataError: it cannot be read, or the tokenizer has more tokens than it.
    """
    folder = local_folder(name, kind="compressor_model")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"not a model of transformers' own: {error}", path=name) from error
    _check_kind(config, name, causal=causal)
    random = not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
    settings: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    if random:
        network = cast("Any", AutoModel).from_config(config, dtype=torch.float32, **settings)
    else:
        network = load_weights(AutoModel, folder, name, optional="pooler", **settings)
    tokenizer = _tokenizer_of(folder, name) or generator_tokenizer
    return Loaded(prepared(network, tokenizer, name), tokenizer, name, random)


def prepared(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedModel:
    """Return a network whose parameters all take part in what is read of it, in evaluation mode.

    Raises:
        DataError: the tokenizer has more tokens than the network.
    """
    if getattr(network, "pooler", None) is not None:
        cast("Any", network).pooler = None  # BERT's is behind the states that are read
    rows = cast("Tensor", network.get_input_embeddings().weight).shape[0]
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise DataError(f"tokens go up to {highest}, and its embeddings end at {rows - 1}", path=name or None,
                        hint="Put the compressor's own tokenizer into its folder.")  # fmt: skip
    network.requires_grad_(True)
    network.train(False)
    return network


def _tokenizer_of(folder: Path, name: str) -> PreTrainedTokenizerBase | None:
    if any(next(folder.glob(pattern), None) for pattern in _TOKENIZERS):
        return load_tokenizer(folder, name)
    return None


def _check_kind(config: Any, name: str, *, causal: bool) -> None:  # noqa: ANN401
    try:
        found = is_causal(config)
    except ConfigError:
        found = False
    if found != causal or config.is_encoder_decoder:
        wanted, other = ("a causal language model", "modernbert") if causal else ("an encoder", "small_lm")
        hint = f"--compressor-type {other}" if found != causal and not config.is_encoder_decoder else "Choose another."
        raise ConfigError(f"compressor_model {name!r} is a {config.model_type} model, not {wanted}", hint=hint)
