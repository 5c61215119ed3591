"""What a name stands for, and what transformers is told when it is loaded: type, bits, attention."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.import_utils import is_bitsandbytes_available, is_flash_attn_2_available

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.adapters import CONFIG_FILE
from ragtrain.models.folders import local_folder, read_json
from ragtrain.models.readers import is_causal

if TYPE_CHECKING:
    from ragtrain.config.commands.sft import SftModelConfig
    from ragtrain.config.training import LoraConfig

Precision = Literal["no", "fp16", "bf16"]
_ARITHMETIC: dict[Precision, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_HINT = "Choose a causal language model with --model-name-or-path."


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


def own_config(folder: Path, name: str) -> Any:  # noqa: ANN401 - any configuration of transformers
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


def loading_settings(
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
