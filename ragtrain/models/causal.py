"""A causal language model to be fine-tuned: how it is loaded, made smaller, and made to compute only what is trained.

A name is a folder or a hub id of any ``AutoModelForCausalLM``, a folder of adapters with the name of their base in it
(peft), or a run folder that ends in either.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.import_utils import is_bitsandbytes_available, is_flash_attn_2_available

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.adapters import CONFIG_FILE, add_lora, load_adapters, lora_config, merge_lora
from ragtrain.models.folders import load_tokenizer, load_weights, local_folder, read_json
from ragtrain.models.readers import is_causal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.config.commands.sft import SftModelConfig
    from ragtrain.config.training import LoraConfig

log = logging.getLogger("ragtrain")

Precision = Literal["no", "fp16", "bf16"]
_ARITHMETIC: dict[Precision, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_HINT = "Choose a causal language model with --model-name-or-path."


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


@dataclasses.dataclass(frozen=True)
class Source:
    """What a name stands for.

    Attributes:
        base: folder or hub id of the network.
        folder: where it lies.
        adapter: folder of the adapters on it, if any.
        tokenizer: folder of the tokenizer.
    """

    base: str
    folder: Path
    adapter: Path | None
    tokenizer: Path


def source_of(name_or_path: str | Path) -> Source:
    """Return the network, adapters and tokenizer that a name stands for.

    Raises:
        ConfigError: there is no such model, or it is a run that did not end.
    """
    folder = local_folder(name_or_path, kind="model")
    name = str(folder.resolve()) if Path(name_or_path).is_dir() else str(name_or_path)
    if (folder / "config.json").is_file():
        return Source(name, folder, None, folder)
    base = read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
    if base:
        under = local_folder(base, kind=f"base of the adapter {str(name_or_path)!r}")
        brings_tokenizer = (folder / "tokenizer_config.json").is_file()
        return Source(str(base), under, folder, folder if brings_tokenizer else under)
    unfinished = (folder / "checkpoints").is_dir()
    raise ConfigError(
        f"{str(name_or_path)!r} is no model: it has neither config.json nor {CONFIG_FILE} with a base",
        hint="It is a run that did not end: let it go on to its end first." if unfinished else _HINT,
    )


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
    settings = _settings(_own_config(source.folder, name), config, lora, precision)
    if "quantization_config" in settings:
        # Of what bitsandbytes always does: products in half precision.
        warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
        settings |= {} if device is None else {"device_map": {"": device}}
    model = load_weights(AutoModelForCausalLM, source.folder, source.base, **settings)
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
    rows, tokens = batch.input_ids.shape
    selected = False

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal selected
        if not inputs or inputs[0].shape[:-1].numel() != rows * tokens:
            return None
        selected = True
        return (inputs[0].flatten(0, -2).index_select(0, batch.predictors)[None], *inputs[1:])

    head: nn.Module | None = cast("Any", model).get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        logits: Tensor = model(**network_inputs(model, batch), use_cache=False).logits.flatten(0, -2)
    finally:
        if handle is not None:
            handle.remove()
    return (logits if selected else logits.index_select(0, batch.predictors)).float()


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


def _own_config(folder: Path, name: str) -> Any:  # noqa: ANN401 - any configuration of transformers
    """Return the configuration of a model that must be a causal language model."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"not a model of transformers' own: {error}", path=name) from error
    try:
        causal = is_causal(config)
    except ConfigError:
        causal = False
    if not causal:
        raise ConfigError(f"{name!r} is a {config.model_type} model, not a causal language model", hint=_HINT)
    return config


def _settings(
    own: Any,  # noqa: ANN401
    config: SftModelConfig,
    lora: LoraConfig | None,
    precision: Precision,
) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told: type, attention, bits."""
    whole = lora is not None and not lora.lora_rank
    small = config.load_in_4bit or config.load_in_8bit
    arithmetic = _ARITHMETIC[precision] if config.dtype == "auto" else getattr(torch, config.dtype)
    # What is not held in few bits (norms, embeddings, head) is float32 as peft prepares it, unless told otherwise.
    dtype = torch.float32 if config.dtype == "auto" and (whole or small) else arithmetic
    if whole and small:
        raise ConfigError(
            "load_in_4bit and load_in_8bit hold a base that cannot be trained as a whole (lora_rank 0)",
            hint="train adapters (--lora-rank 16), or leave the base as it is",
        )
    if whole and dtype == torch.float16:
        raise ConfigError("dtype float16: weights in half precision cannot be trained",
                          hint="--dtype float32 --mixed-precision fp16 computes in half precision")  # fmt: skip
    settings: dict[str, Any] = {"dtype": dtype}
    if small:
        settings["quantization_config"] = _quantization(config, arithmetic)
    if config.attention != "auto":
        _check_attention(own, config.attention)
        settings["attn_implementation"] = config.attention
    return settings


def _quantization(config: SftModelConfig, arithmetic: torch.dtype) -> Any:  # noqa: ANN401
    if config.load_in_4bit and config.load_in_8bit:
        raise ConfigError("load_in_4bit and load_in_8bit are both on", hint="choose one")
    if not is_bitsandbytes_available():
        raise ConfigError("a base of 8 or 4 bits needs bitsandbytes", hint="pip install 'ragtrain[quant]'")
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    if config.load_in_8bit:
        return make(load_in_8bit=True)
    return make(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=arithmetic,
    )  # fmt: skip


def _check_attention(own: Any, attention: str) -> None:  # noqa: ANN401
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise ConfigError("attention flash_attention_2 needs the package flash-attn and a GPU",
                          hint="--attention sdpa is torch's own, which is flash attention where it can be")  # fmt: skip
    flag = {"sdpa": "_supports_sdpa", "flex_attention": "_supports_flex_attn"}.get(attention, "_supports_flash_attn")
    network: Any = AutoModelForCausalLM._model_mapping[type(own)]
    if attention != "eager" and not getattr(network, flag, False):
        raise ConfigError(f"attention {attention}: {network.__name__} has no such implementation",
                          hint="--attention auto or eager")  # fmt: skip


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
