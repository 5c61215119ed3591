"""The saved form of a compressor and of the generator that reads its memory.

final_model/
├── compressor/         config.json and model.safetensors: all weights, without head; its tokenizer, where it has its own
├── heads.safetensors   memory tokens, tasks, connector, relevance head
├── adapter/            of the generator, as peft loads them, with its tokenizer; the configuration names the base
│   or generator/       where all of its weights were trained, as transformers loads them
├── README.md           what it is and how it is read
└── ragtrain.json       settings, and how prompts are made
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel

from ragtrain.errors import ConfigError, DataError
from ragtrain.models import weights
from ragtrain.models.adapters import has_lora, save_adapters
from ragtrain.models.causal import bits, load_causal
from ragtrain.models.causal_export import base_of, check_base, save_network
from ragtrain.models.compress.loading import prepared
from ragtrain.models.compress.model import CompressModel, Names, place
from ragtrain.models.compress.nlayers import without_final_norm
from ragtrain.models.compress.settings import CompressSettings
from ragtrain.models.folders import SIDECAR, hushed, load_tokenizer, local_folder, read_json, written_aside
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.config.commands.sft import SftModelConfig
    from ragtrain.config.training import LoraConfig
    from ragtrain.models.causal_config import Precision

log = logging.getLogger("ragtrain")

KIND = "compress"
COMPRESSOR, HEADS, ADAPTER, GENERATOR = "compressor", "heads.safetensors", "adapter", "generator"


class Tokenizers(NamedTuple):
    """What turns text into what the two networks read; the same object where they read the same."""

    generator: PreTrainedTokenizerBase
    compressor: PreTrainedTokenizerBase


def save_compress(
    model: CompressModel, tokenizers: Tokenizers, folder: str | Path, *, sidecar: Mapping[str, Any]
) -> Path:
    """Write all that was trained, and not the base. The folder is written aside and then put in place.

    Args:
        model: trained; it stays as it is.
        tokenizers: of both networks.
        folder: where it goes.
        sidecar: becomes ``ragtrain.json``, with ``kind``, ``base``, ``settings`` and ``network`` added.

    Returns:
        The folder.
    """
    generator, adapter = model.generator, has_lora(model.generator)
    base = base_of(generator, model.names.generator)
    network: dict[str, Any] = {
        "adapter": adapter,
        "bits": bits(generator),
        "dtype": str(generator.dtype).removeprefix("torch."),
        "compressor": model.names.compressor,
        "compressor_parameters": sum(p.numel() for p in model.compressor.parameters()),
    }
    if adapter:
        network["fingerprint"] = weights.base_fingerprint(_frozen(model))
    about = {**sidecar, "kind": KIND, "base": base, "settings": model.settings.to_json(), "network": network}
    with written_aside(Path(folder)) as path:
        if adapter:
            save_adapters(generator, path / ADAPTER, base)
        else:
            save_network(generator, path / GENERATOR)
        _save_compressor(model, path / COMPRESSOR)
        heads = {name: tensor.detach().cpu().contiguous() for name, tensor in _heads(model).items()}
        safetensors.torch.save_file(heads, path / HEADS)
        with hushed():
            tokenizers.generator.save_pretrained(path / (ADAPTER if adapter else GENERATOR))
            if tokenizers.compressor is not tokenizers.generator:
                tokenizers.compressor.save_pretrained(path / COMPRESSOR)
        write_json(path / SIDECAR, about)
        (path / "README.md").write_text(_card(about), encoding="utf-8")
    return Path(folder)


def load_compress(
    name_or_path: str | Path,
    device: torch.device | str | None = None,
    *,
    checkpoint: Path | None = None,
    config: SftModelConfig | None = None,
    precision: Precision = "no",
) -> tuple[CompressModel, Tokenizers, dict[str, Any]]:
    """Load what ``save_compress`` wrote: the same weights, bit for bit, in the types that they had.

    Args:
        name_or_path: the folder, a run that ends in it, one of that run's checkpoints, or a hub id.
        device: where everything goes; the CPU without it.
        checkpoint: of the same run, whose weights are taken instead of the final ones.
        config: bits, type and attention of the generator; without it, those it was trained with.
        precision: arithmetic of the forward pass.

    Returns:
        The network in evaluation mode, both tokenizers, and the contents of ``ragtrain.json``.

    Raises:
        ConfigError: there is no such model, or it is of another kind.
        DataError: something is missing from it, or its base is not the one it was trained on.
        CheckpointError: the checkpoint is another model's.
    """
    path = Path(name_or_path)
    if path.is_dir() and path.resolve().parent.name == "checkpoints":
        path, checkpoint = path.resolve().parent.parent, path
    model, tokenizers, sidecar = load_parts(
        path if path.is_dir() else name_or_path, config, None, precision=precision, device=device
    )
    if checkpoint is not None:
        weights.load_weights(model, checkpoint)
    return model, tokenizers, sidecar


def load_parts(
    name_or_path: str | Path,
    config: SftModelConfig | None,
    lora: LoraConfig | None,
    *,
    precision: Precision = "no",
    device: torch.device | str | None = None,
) -> tuple[CompressModel, Tokenizers, dict[str, Any]]:
    """Load what ``save_compress`` wrote, to be trained further or not; see ``load_compress``.

    Args:
        name_or_path: the folder, or a run that ends in it.
        config: bits, type and attention of the generator; without it, those it was trained with.
        lora: how the generator is trained.
        precision: arithmetic of the forward pass.
        device: where everything goes.
    """
    folder = local_folder(name_or_path, kind="model")
    sidecar = read_sidecar(folder)
    network = sidecar["network"]
    inner = folder / (ADAPTER if network["adapter"] else GENERATOR)
    generator, tokenizer = load_causal(
        inner, _as_trained(network) if config is None else config, lora, precision=precision, device=device
    )
    own = any((folder / COMPRESSOR).glob("tokenizer*"))
    tokenizers = Tokenizers(tokenizer, load_tokenizer(folder / COMPRESSOR, str(folder)) if own else tokenizer)
    settings = CompressSettings.from_json(sidecar["settings"])
    compressor = _load_compressor(folder / COMPRESSOR, settings, tokenizers.compressor)
    model = CompressModel(generator, compressor, settings, Names(sidecar["base"], network.get("compressor", "")))
    _load_heads(model, folder / HEADS)
    if has_lora(generator) and bits(generator) == network.get("bits"):
        check_base(generator, sidecar, inner)
    place(model, device)
    return model.eval(), tokenizers, sidecar


def is_compress(name_or_path: str | Path) -> bool:
    """Say whether a folder is the model of a `train compress` run, or such a run."""
    if not Path(name_or_path).is_dir():
        return False
    return read_json(local_folder(name_or_path, kind="model") / SIDECAR).get("kind") == KIND


def read_sidecar(folder: Path) -> dict[str, Any]:
    """Return ``ragtrain.json`` of a compressor.

    Raises:
        ConfigError: there is none, or it is of another kind of run.
    """
    sidecar = read_json(folder / SIDECAR)
    if sidecar.get("kind") != KIND:
        raise ConfigError(f"{folder} is not the model of a `train compress` run",
                          hint="Pass a run folder or its final_model.")  # fmt: skip
    return sidecar


def _as_trained(network: Mapping[str, Any]) -> SftModelConfig:
    """Return how the generator is to be loaded so that it is what it was in training."""
    from ragtrain.config.commands.sft import SftModelConfig

    held = network.get("bits")
    if held:
        return SftModelConfig(load_in_8bit=held == 8, load_in_4bit=held == 4)
    return SftModelConfig(dtype=network["dtype"])


def _save_compressor(model: CompressModel, path: Path) -> None:
    with hushed():
        model.compressor.save_pretrained(path)


def _load_compressor(path: Path, settings: CompressSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build a compressor from its configuration and put its weights into it, all of them.

    Raises:
        DataError: they are not this network's, or cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        network: PreTrainedModel = cast("Any", AutoModel).from_config(config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise DataError(f"not a model of transformers' own: {error}", path=path) from error
    if settings.compressor_type == "n_layers":
        network = without_final_norm(network)
    network = prepared(network, tokenizer, str(path))
    _fill(network, path / weights.FILE)
    return network


def _heads(model: CompressModel) -> dict[str, Tensor]:
    """Return what belongs neither to the generator nor to the compressor, by name."""
    networks = ("generator.", "compressor.")
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(networks)}


def _load_heads(model: CompressModel, file: Path) -> None:
    found = _read(file)
    wanted = _heads(model)
    if {name: w.shape for name, w in found.items()} != {name: w.shape for name, w in wanted.items()}:
        names = sorted({*found, *wanted})
        raise DataError(f"these are not the weights of this compressor: {', '.join(names)}", path=file)
    with torch.no_grad():
        for name, tensor in found.items():
            wanted[name].copy_(tensor)


def _fill(network: PreTrainedModel, file: Path) -> None:
    try:
        safetensors.torch.load_model(network, str(file), strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(f"its weights do not fit its configuration: {error}", path=file) from error


def _read(file: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"its weights cannot be read: {error}", path=file) from error
    return found


def _frozen(model: CompressModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.generator.named_parameters() if not p.requires_grad}


def _card(about: Mapping[str, Any]) -> str:
    """Return a short description for people."""
    settings, base = about["settings"], about["base"]
    rates = ", ".join(f"{rate}x" for rate in CompressSettings.from_json(settings).all_rates)
    lines = ["---", "library_name: ragtrain"]
    lines += [] if Path(base).is_absolute() else [f"base_model: {base}"]
    lines += [
        "pipeline_tag: text-generation", "tags: [rag, ragtrain, context-compression]", "---", "",
        f"# Passages as memory for {base.rstrip('/').rsplit('/', 1)[-1]}", "",
        f"A compressor of type {settings['compressor_type']} ({settings['num_layers']} layers), trained by "
        f"`ragtrain train compress`. It turns each window of {settings['num_memory_tokens']} x "
        f"{settings['compression_rate']} tokens into {settings['num_memory_tokens']} vectors, which `{base}` reads in the "
        f"place of the text. Rates: {rates}.", "",
        "## Use", "",
        "`ragtrain eval --model-dir FOLDER --test-data FILE` answers questions from compressed passages and measures it.",
        "The base is not in this folder; it is read from where it was.", "",
    ]  # fmt: skip
    return "\n".join(lines)
