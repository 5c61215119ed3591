"""A causal language model to be fine-tuned: how it is loaded, made smaller, and made to compute only what is trained.

A name is a folder or a hub id of any ``AutoModelForCausalLM``, a folder of adapters with the name of their base in it
(peft), or a run folder that ends in either.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.adapters import add_lora, load_adapters, lora_config, merge_lora
from ragtrain.models.causal_config import Precision, Source, loading_settings, own_config, source_of
from ragtrain.models.folders import load_tokenizer, load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.config.commands.sft import SftModelConfig
    from ragtrain.config.training import LoraConfig

log = logging.getLogger("ragtrain")

#: Kinds of layers in which a token sees those before it by their distance at most, so that neighbours do not mix.
_PLAIN_LAYERS = {"full_attention", "sliding_attention"}
#: Largest difference of losses, in nats a token, between two forms of the same rows.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class TokenRows(Protocol):
    """What the network needs of a micro-batch (``ragtrain.data.sft.batches.SftBatch``)."""

    @property
    def input_ids(self) -> Tensor: ...  # noqa: D102
    @property
    def attention_mask(self) -> Tensor | None: ...  # noqa: D102
    @property
    def position_ids(self) -> Tensor | None: ...  # noqa: D102
    @property
    def predictors(self) -> Tensor: ...  # noqa: D102
    @property
    def targets(self) -> Tensor: ...  # noqa: D102


def load_causal(
    name_or_path: str | Path,
    config: SftModelConfig | None = None,
    lora: LoraConfig | None = None,
    *,
    precision: Precision = "no",
    device: torch.device | str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        name_or_path: see the module.
        config: bits, type and attention of the network; the defaults without it.
        lora: how it is trained: with new adapters, with those it comes with, or (rank 0) as a whole. Without it nothing
            is prepared for training, and adapters that it comes with are in it.
        precision: arithmetic of the forward pass, which decides the type where ``config`` leaves it open.
        device: where a base of 8 or 4 bits goes; others are left on the CPU.

    Returns:
        The network, in evaluation mode, and a tokenizer that has a padding token.

    Raises:
        ConfigError: there is no such model, it is of another kind, or it cannot be had in this way.
        DataError: weights or tokenizer are missing, cannot be read safely, or do not belong together.
    """
    source, name = source_of(name_or_path), str(name_or_path)
    if config is None:
        from ragtrain.config.commands.sft import SftModelConfig

        config = SftModelConfig()
    settings = loading_settings(own_config(source.folder, name), config, lora, precision)
    if "quantization_config" in settings and device is not None:
        settings["device_map"] = {"": device}
    model = load_weights(AutoModelForCausalLM, source.folder, source.base, **settings)
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            # Else a layer of 4 bits rounds and reorders its weight, for good, when it first computes in evaluation.
            part.support_avx512bf16_for_cpu = False
    tokenizer = load_tokenizer(source.tokenizer, name)
    _fit(tokenizer, model, name)
    _adapt(model, source, lora)
    return model.eval(), tokenizer  # after adapters are in it: their dropout begins switched on


def bits(model: nn.Module) -> Literal[4, 8] | None:
    """Return the bits in which linear layers are held, where bitsandbytes holds them."""
    if getattr(model, "is_loaded_in_4bit", False):
        return 4
    return 8 if getattr(model, "is_loaded_in_8bit", False) else None


def label_logits(model: PreTrainedModel, batch: TokenRows) -> Tensor:
    """Return (trained, vocabulary) float32 logits that predict ``batch.targets``, in their order.

    Only the states of these positions meet the head: prompts are many times longer than answers, and the head is a large
    part of a small model. Whatever a model does with its logits afterwards (a soft cap, a scale) it does with these. No
    cache of keys and values is kept; with one, transformers does not see where a packed sample begins.

    Args:
        model: the network, adapters or not; where it does not show its head, all logits are computed and these taken.
        batch: a micro-batch on the model's device; without trained tokens the result is empty and still has a gradient.
    """
    return selected_logits(model, network_inputs(model, batch), batch.predictors, batch.input_ids.numel())


def selected_logits(model: PreTrainedModel, inputs: Mapping[str, Tensor], places: Tensor, n_tokens: int) -> Tensor:
    """Return (places, vocabulary) float32 logits at some places of a forward pass; only these meet the head.

    Args:
        model: the network.
        inputs: what it reads, ids or embeddings.
        places: in rows laid end to end.
        n_tokens: tokens of all rows, padding included.
    """
    selected = False

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal selected
        if not inputs or inputs[0].shape[:-1].numel() != n_tokens:
            return None
        selected = True
        return (inputs[0].flatten(0, -2).index_select(0, places)[None], *inputs[1:])

    head: nn.Module | None = cast("Any", model).get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits.flatten(0, -2)
    finally:
        if handle is not None:
            handle.remove()
    return (logits if selected else logits.index_select(0, places)).float()


def network_inputs(model: PreTrainedModel, batch: TokenRows) -> dict[str, Tensor]:
    """Return a micro-batch in the form in which this model's attention reads it."""
    inputs = {"input_ids": batch.input_ids}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    mask = batch.attention_mask
    attention = attention_of(model)
    if mask is None:
        if batch.position_ids is not None and attention.startswith("flash"):
            # Flash attention reads from the positions where a sample begins only if there is one row.
            return {name: tensor.reshape(1, -1) for name, tensor in inputs.items()}
        return inputs
    if mask.dim() == 4 and attention == "eager":
        dtype = cast("Tensor", model.get_input_embeddings().weight).dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return {**inputs, "attention_mask": mask}


def attention_of(model: PreTrainedModel) -> str:
    """Return the implementation of attention, by transformers' name."""
    return str(model.config.get_text_config()._attn_implementation)


def positions_of(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has; None where nothing limits them."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def set_checkpointing(model: PreTrainedModel, on: bool) -> None:
    """Recompute the activations of each layer in the backward pass from now on, or keep them; numbers stay.

    The recomputation replays dropout. It is the kind that needs no gradient at a layer's inputs (not reentrant), so that
    a frozen base with adapters needs nothing else.

    Raises:
        ConfigError: the model knows no such thing.
    """
    if not on:
        cast("Any", model).activation_checkpointing_disable()
        return
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"gradient_checkpointing: {type(model).__name__} cannot recompute its layers",
            hint="--gradient-checkpointing off, and a smaller --batch-size",
        ) from error


def compile_layers(model: PreTrainedModel, **settings: Any) -> int:  # noqa: ANN401
    """Compile each layer of the stack in place, for any length, and return how many there are.

    One layer's code serves them all, which starts many times sooner than compiling the whole; embeddings and head are
    single operators.

    Args:
        model: the network.
        settings: passed to ``torch.compile``.
    """
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(**{"dynamic": True, **settings})
    return len(layers)


def supports_packing(model: PreTrainedModel) -> str:
    """Return why samples must not stand behind each other in a row, or the empty string where they may."""
    config, name = model.config.get_text_config(), type(model).__name__
    kinds = set(getattr(config, "layer_types", None) or ()) - _PLAIN_LAYERS
    if getattr(model, "_is_stateful", False) or kinds:
        return f"{name} carries a state over from one sample to the next ({', '.join(sorted(kinds)) or 'recurrent'})"
    if getattr(config, "alibi", False) or "position_ids" not in inspect.signature(type(model).forward).parameters:
        return f"{name} cannot be told the positions of tokens (position_ids), which begin anew with each sample"
    return ""


def supports_shared(model: PreTrainedModel, longest: int | None = None) -> str:
    """Return why samples must not branch from a common beginning, or the empty string where they may.

    Args:
        model: the network.
        longest: tokens of the longest sample; windows of attention that are as wide do not matter.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    if reason := supports_packing(model):
        return reason
    if attention_of(model) not in ("eager", "sdpa"):
        return f"attention {attention_of(model)} takes no mask of branches; eager and sdpa do"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if "local" in (getattr(config, "attention_layers", None) or ()):
        window = config.window_size
    if window is not None and (longest is None or window < longest):
        return f"layers of {name} see {window} tokens back, counted along the row and not along the branch"
    return ""


@torch.no_grad()
def check_shared(model: PreTrainedModel, rows: TokenRows, shared: TokenRows) -> None:
    """Compute the same samples in rows of their own and in another form, and raise unless the losses are the same.

    What ``supports_shared`` and ``supports_packing`` know of a model is what its configuration says; this is the proof.

    Args:
        model: on the batches' device; it is put into evaluation mode meanwhile.
        rows: of ``collate_rows``.
        shared: the same samples from ``collate_shared`` or ``collate_packed``.

    Raises:
        ConfigError: the losses differ.
    """
    training = model.training
    model.train(False)
    try:
        # The same tokens stand in another order; their losses, sorted, are the same.
        one, other = (
            nn.functional.cross_entropy(label_logits(model, batch), batch.targets, reduction="none").sort().values
            for batch in (rows, shared)
        )
    finally:
        model.train(training)
    lowest = torch.get_autocast_dtype(one.device.type) if torch.is_autocast_enabled(one.device.type) else model.dtype
    tolerance = _TOLERANCE[torch.bfloat16 if bits(model) else lowest]
    difference = float((one - other).abs().mean()) if len(one) == len(other) else float("inf")
    if len(one) and not difference <= tolerance * max(1.0, float(one.mean())):
        raise ConfigError(
            f"{type(model).__name__} does not compute the same for samples that share a row: losses of tokens differ by "
            f"{difference:.2g} on average",
            hint="leave --packing and --shared-context out",
        )


def _fit(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """See that every token is known to the network, and that there is one to pad with.

    The end token does for padding: what is padded is known by its place, and no label is taken away for being equal.
    """
    highest = max(tokenizer.get_vocab().values(), default=0)
    rows = cast("Tensor", model.get_input_embeddings().weight).shape[0]
    if highest >= rows:
        raise DataError(f"its tokenizer has tokens up to {highest}, and the network's embeddings end at {rows - 1}",
                        path=name, hint="Use the tokenizer that the model was trained with.")  # fmt: skip
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)


def _adapt(model: PreTrainedModel, source: Source, lora: LoraConfig | None) -> None:
    """Freeze what is not trained, and put adapters where they are asked for or come with the model."""
    if source.adapter is not None:
        load_adapters(model, source.adapter, dropout=None if lora is None else lora.lora_dropout)
    if lora is None:
        return
    if not lora.lora_rank:
        if getattr(model, "is_quantized", False):
            raise ConfigError("the base is quantised and cannot be trained as a whole (lora_rank 0)",
                              hint="train adapters (--lora-rank 16)")  # fmt: skip
        merge_lora(model)
        model.requires_grad_(True)
    elif source.adapter is not None:
        _check_same(model, source.adapter, lora)
    elif lora.use_dora and bits(model) == 8 and model.device.type == "cpu":
        raise ConfigError("use_dora on a base of 8 bits works on GPUs only: on a CPU, peft loses the base's scales",
                          hint="--load-in-4bit, or leave --use-dora out")  # fmt: skip
    else:
        add_lora(
            model, lora.lora_rank, alpha=lora.lora_alpha, dropout=lora.lora_dropout, targets=lora.lora_targets,
            rslora=lora.use_rslora, dora=lora.use_dora,
        )  # fmt: skip


def _check_same(model: PreTrainedModel, folder: Path, lora: LoraConfig) -> None:
    """Refuse settings that adapters which are there already do not have."""
    there = lora_config(model)
    asked = {"lora_rank": lora.lora_rank, "lora_alpha": lora.lora_alpha or 2 * lora.lora_rank,
             "use_rslora": lora.use_rslora, "use_dora": lora.use_dora}  # fmt: skip
    have = {"lora_rank": there.r, "lora_alpha": there.lora_alpha, "use_rslora": there.use_rslora,
            "use_dora": there.use_dora}  # fmt: skip
    for name, value in have.items():
        if asked[name] != value:
            raise ConfigError(
                f"{name} is {asked[name]}, and the adapter in {folder}, with which training goes on, has {value}",
                hint=f"--{name.replace('_', '-')} {value}; or --lora-rank 0 merges it and trains all weights",
            )
    has = there.target_modules
    names = {has} if isinstance(has, str) else set(has or ())
    if tuple(lora.lora_targets) != ("all-linear",) and set(lora.lora_targets) != names:
        raise ConfigError(
            f"lora_targets are {', '.join(lora.lora_targets)}, and the adapter in {folder}, with which training goes on, "
            f"has {', '.join(sorted(names))}",
            hint="leave --lora-targets out",
        )
