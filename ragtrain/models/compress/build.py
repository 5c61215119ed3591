"""From a configuration to generator, compressor, and what lies between them."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, cast

import torch

from ragtrain.errors import ConfigError
from ragtrain.models.causal import load_causal, positions_of, set_checkpointing
from ragtrain.models.causal_config import own_config, source_of
from ragtrain.models.compress import encoder, smalllm
from ragtrain.models.compress.connector import match_scale
from ragtrain.models.compress.export import is_compress, load_parts
from ragtrain.models.compress.loading import Loaded
from ragtrain.models.compress.model import CompressModel, Names, evaluating, place
from ragtrain.models.compress.nlayers import layers_of, load_layers
from ragtrain.models.compress.settings import CompressSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.config.commands.compress import CompressConfig
    from ragtrain.models.causal_config import Precision, Source

log = logging.getLogger("ragtrain")

#: Tokens that stand around question and window in what a compressor reads, at most.
_FRAME = 16
#: Tokens by which the size of embeddings and states is measured: rows, tokens.
_SAMPLE = (8, 64)
#: What must be the same where training goes on with a run: it decides which weights there are, or what they mean.
_SHAPE = ("compressor_type", "num_layers", "pooling", "query_dependent", "max_memory")


def build_compress(
    config: CompressConfig,
    *,
    base_name: str | None = None,
    precision: Precision = "no",
    device: torch.device | str | None = None,
) -> tuple[CompressModel, PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Load the generator with its adapters, and make the compressor.

    Args:
        config: of the command.
        base_name: generator where the configuration names none: the folder of the built-in demo model. Compressors of
            other kinds than ``n_layers`` are then small random ones, unless one is named.
        precision: arithmetic of the forward pass, which decides the type of a frozen base.
        device: where everything goes; the CPU without it.

    Returns:
        The network in evaluation mode, the generator's tokenizer, and the compressor's.

    Raises:
        ConfigError: a model cannot be had, has fewer layers than asked for, or too few positions for a window.
        DataError: weights or tokenizers cannot be read.
    """
    name = config.model.model_name_or_path or base_name
    if name is None:
        raise ConfigError("there is no generator", hint="Choose one with --model-name-or-path.")
    settings = CompressSettings.from_config(config)
    if is_compress(name):
        model, tokenizers, _ = load_parts(name, config.model, config.lora, precision=precision, device=device)
        model.settings = _going_on(settings, model.settings)
        _checkpointing(model, config)
        return model, tokenizers.generator, tokenizers.compressor
    generator, tokenizer = load_causal(name, config.model, config.lora, precision=precision, device=device)
    source = source_of(name)
    settings, loaded = _compressor(config, settings, source, tokenizer)
    _check_positions(loaded.network, settings)
    model = CompressModel(generator, loaded.network, settings, Names(name, loaded.name))
    _begin(model)
    place(model, device)
    _checkpointing(model, config)
    return model.eval(), tokenizer, loaded.tokenizer


def _compressor(
    config: CompressConfig, settings: CompressSettings, source: Source, tokenizer: PreTrainedTokenizerBase
) -> tuple[CompressSettings, Loaded]:
    """Return the compressor, and the settings with as many layers as it has."""
    given, attention = config.compressor.compressor_model, config.model.attention
    if settings.compressor_type == "n_layers":
        settings = _within(config, settings, source)
        network = load_layers(source, settings.num_layers, attention)
        return settings, Loaded(network, tokenizer, "", random=False)
    demo = config.model.model_name_or_path is None
    if settings.compressor_type == "modernbert":
        loaded = (
            encoder.small_encoder(tokenizer) if given is None and demo
            else encoder.load_encoder(given or encoder.NAME, tokenizer)
        )  # fmt: skip
    else:
        loaded = (
            smalllm.small_small_lm(tokenizer) if given is None and demo
            else smalllm.load_small_lm(given or smalllm.NAME, tokenizer, attention)
        )  # fmt: skip
    if loaded.random:
        log.warning("the compressor begins with random weights: %s", loaded.name or "a small one of the built-in kind")
    if not config.objective.pretrain_steps:
        log.warning(
            "a compressor of type %s that was not pre-trained for this generator does worse (OSCAR: 7 points): "
            "--pretrain-steps", settings.compressor_type,
        )  # fmt: skip
    layers = layers_of(loaded.network.config)
    return dataclasses.replace(settings, num_layers=layers), loaded


def _within(config: CompressConfig, settings: CompressSettings, source: Source) -> CompressSettings:
    """Return settings with no more layers than the generator has.

    A number that was chosen is not changed in silence; the default one is, and so is what the built-in model gets.

    Raises:
        ConfigError: more layers were asked for.
    """
    there = layers_of(own_config(source.folder, source.base))
    if settings.num_layers <= there:
        return settings
    default = type(config.compressor).model_fields["num_layers"].default
    chosen = "num_layers" in config.compressor.model_fields_set and settings.num_layers != default
    if chosen and config.model.model_name_or_path is not None:
        raise ConfigError(f"num_layers {settings.num_layers}: the generator has {there}",
                          hint=f"--num-layers {there}, or fewer")  # fmt: skip
    log.warning("num_layers %d is %d: the generator has no more", settings.num_layers, there)
    return dataclasses.replace(settings, num_layers=there)


def _check_positions(compressor: PreTrainedModel, settings: CompressSettings) -> None:
    most = positions_of(compressor)
    question = settings.max_query_tokens if settings.query_dependent else 0
    needed = settings.window_tokens + question + settings.max_memory + 1 + _FRAME
    if most is not None and needed > most:
        raise ConfigError(
            f"a window of {settings.window_tokens} tokens, a question of {question} and memory take {needed} positions, "
            f"and the compressor has {most}",
            hint="give a smaller --num-memory-tokens or --compression-rate",
        )


def _going_on(asked: CompressSettings, there: CompressSettings) -> CompressSettings:
    """Return the settings with which training goes on from a run.

    Raises:
        ConfigError: they do not fit its weights.
    """
    if asked.compressor_type == there.compressor_type:
        asked = dataclasses.replace(asked, num_layers=there.num_layers, connector_hidden=there.connector_hidden)
    for name in _SHAPE:
        if getattr(asked, name) != getattr(there, name):
            raise ConfigError(
                f"{name} is {getattr(asked, name)}, and of the run with which training goes on {getattr(there, name)}",
                hint="give the same, or begin with the model that the run began with",
            )
    return asked


@torch.no_grad()
def _begin(model: CompressModel) -> None:
    """Let learnt tokens and connector begin where embeddings are, rather than far from all that was ever read."""
    read = _embeddings(model.compressor)
    written = _embeddings(model.generator)
    for learnt, known in ((model.memory, read), (model.tasks, written)):
        learnt.copy_(known.mean(0) + known.std(0) * torch.randn(learnt.shape))
    # Scores begin at the middle of their scale; a state of a random direction says nothing.
    model.rank_head.weight.zero_()
    model.rank_head.bias.zero_()
    with evaluating(model.compressor):
        states = model.compressor(input_ids=_sample(model.compressor)).last_hidden_state
    match_scale(model.connector, states.flatten(0, 1).cpu(), float(written.square().mean().sqrt()))


def _embeddings(network: PreTrainedModel) -> Tensor:
    """Return (n, width) float32 embeddings of tokens drawn at random, as the network itself makes them."""
    found = cast("Tensor", network.get_input_embeddings()(_sample(network)))
    return found.flatten(0, 1).float().cpu()


def _sample(network: PreTrainedModel) -> Tensor:
    rows = int(cast("Tensor", network.get_input_embeddings().weight).shape[0])
    return torch.randint(rows, _SAMPLE).to(network.device)


def _checkpointing(model: CompressModel, config: CompressConfig) -> None:
    if config.model.gradient_checkpointing == "on":
        set_checkpointing(model.generator, on=True)
    if config.compressor.compressor_checkpointing:
        set_checkpointing(model.compressor, on=True)
