"""The generator's own first layers as a compressor (OSCAR-N-Layers).

It is a network of its own, in float32 and without head: nothing of it is shared with the generator, so that it can be
trained as a whole while the generator keeps its base. The norm behind the last layer is taken out: what is left is the
generator's own ``hidden_states[N]``, which lives in the space of its embeddings.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from ragtrain.errors import ConfigError
from ragtrain.models.adapters import load_adapters, merge_lora
from ragtrain.models.compress.model import evaluating
from ragtrain.models.folders import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ragtrain.models.causal_config import Source

log = logging.getLogger("ragtrain")

#: What transformers' models call the norm behind their last layer.
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "layer_norm")


def load_layers(source: Source, n_layers: int, attention: str = "auto") -> PreTrainedModel:
    """Return the first layers of a causal language model, float32, in evaluation mode, without head and final norm.

    Args:
        source: of the generator; adapters that it comes with are merged into the layers.
        n_layers: how many; no more than there are.
        attention: implementation, by transformers' name; ``auto`` for its own choice.
    """
    config = truncated(AutoConfig.from_pretrained(source.folder, trust_remote_code=False), n_layers)
    settings: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    if source.adapter is None:
        network = load_weights(AutoModel, source.folder, source.base, config=config, **settings)
    else:
        whole = load_weights(AutoModelForCausalLM, source.folder, source.base)
        load_adapters(whole, source.adapter)
        merge_lora(whole)
        network = cast("Any", AutoModel).from_config(config, dtype=torch.float32, **settings)
        own = network.state_dict().keys()
        network.load_state_dict({name: w for name, w in whole.base_model.state_dict().items() if name in own})
    network.requires_grad_(True)
    network.train(False)
    return without_final_norm(network)


def layers_of(config: Any) -> int:  # noqa: ANN401 - any configuration of transformers
    """Return how many layers a network has."""
    return int(config.get_text_config().num_hidden_layers)


def truncated(config: Any, n_layers: int) -> Any:  # noqa: ANN401
    """Return the configuration of a model's first layers."""
    config = copy.deepcopy(config.get_text_config())
    before = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        # Kinds of each layer, as layer_types; a list of tokens may be as long by chance.
        if "layer" in name and isinstance(value, list) and len(value) == before:
            setattr(config, name, value[:n_layers])
    if getattr(config, "attention_types", None) and hasattr(config, "attention_layers"):  # GPT-Neo's way to write them
        config.attention_types = [[list(config.attention_layers), 1]]
    config.num_hidden_layers = n_layers
    return config


def without_final_norm(network: PreTrainedModel) -> PreTrainedModel:
    """Put nothing in the place of the norm behind the last layer, and see that the last layer's states come out.

    Raises:
        ConfigError: something else than a norm stands behind the last layer.
    """
    stack, layers = _stack(network)
    for name in _FINAL_NORMS:
        if isinstance(getattr(stack, name, None), nn.Module):
            setattr(stack, name, nn.Identity())
    last: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        last.append(output[0] if isinstance(output, tuple) else output)

    handle = layers[-1].register_forward_hook(keep)
    try:
        with torch.no_grad(), evaluating(network):
            states = network(input_ids=torch.zeros(1, 2, dtype=torch.long, device=network.device), use_cache=False)[0]
    finally:
        handle.remove()
    if states.shape == last[0].shape and not torch.equal(states, last[0]):
        raise ConfigError(
            f"{type(network).__name__}: its first layers cannot be had without what it computes behind the last one",
            hint="--compressor-type small_lm or modernbert",
        )
    return network


def _stack(network: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """Return the module that holds the layers, and the layers."""
    lists = [
        (parent, part)
        for parent in network.modules()
        for part in parent.children()
        if isinstance(part, nn.ModuleList) and len(part)
    ]
    n = layers_of(cast("Any", network).config)
    for parent, part in lists:
        if len(part) == n:
            return parent, part
    raise ConfigError(f"{type(network).__name__} has no list of {n} layers", hint="--compressor-type small_lm")
