"""A network with everything that asks it questions, and a run of ``train compress`` as ``ragtrain eval`` finds it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

from ragtrain.config.commands import CompressConfig
from ragtrain.config.commands.compress import ARMS, CompressContextConfig
from ragtrain.config.compression import CompressSettings
from ragtrain.data import demo
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.windows import Windower
from ragtrain.data.sft.prompts import PromptSettings
from ragtrain.errors import CheckpointError
from ragtrain.models.adapters import CONFIG_FILE
from ragtrain.models.causal import positions_of
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.export import load_compress, read_sidecar
from ragtrain.models.folders import local_folder, read_json
from ragtrain.models.weights import FILE, load_weights
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedTokenizerBase

    from ragtrain.evaluate.resolve import Subject as Named
    from ragtrain.models.causal_config import Precision
    from ragtrain.models.compress.model import CompressModel
    from ragtrain.runs import RunFolder

#: Folder in a run where the adapters for full passages are trained.
FULL_CONTEXT = "full_context"


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: the network, on its device; it is left as it was.
        tokenizer: of the generator.
        windower: passages → windows, with the compressor's tokenizer.
        prompter: questions with text, memory or nothing → prompts.
        full_adapters: folder of the adapters that were trained on full passages (``save_adapters``); None where there are none.
    """

    model: CompressModel
    tokenizer: PreTrainedTokenizerBase
    windower: Windower
    prompter: CompressPrompter
    full_adapters: Path | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run of ``train compress``, or its model by itself.

    Attributes:
        name: as the console calls it.
        folder: of the final model; None of a run that has not ended.
        run: the run that it is of; None for a model by itself.
        checkpoint: whose weights are taken instead of the final ones; None for those.
        named_checkpoint: as it was asked for.
        base: folder or hub id of the generator.
        settings: what the compressor is like.
        prompt: how prompts are written.
        context: the passages of questions in training.
        index: what is recorded of the index that they came from.
        max_new_tokens: longest answer in training's evaluations.
        arms: that the run measured.
        full_adapters: folder of the adapters that were trained on full passages.
    """

    name: str
    folder: Path | None
    run: RunFolder | None
    checkpoint: Path | None
    named_checkpoint: str | None
    base: str
    settings: CompressSettings
    prompt: PromptSettings
    context: CompressContextConfig
    index: dict[str, Any] | None
    max_new_tokens: int | None
    arms: tuple[str, ...] = ARMS
    full_adapters: Path | None = None


def trained_of(named: Named) -> Trained:
    """Return the run or model that is meant.

    Raises:
        CheckpointError: a run has no such weights.
        ConfigError: there is no such model.
        DataError: a file of it cannot be read.
    """
    if named.run is None:
        folder = local_folder(str(named.model_name), kind="model")
        return _of_sidecar(named, folder, None)
    run = named.run
    checkpoint = None if named.checkpoint == "final" else run.checkpoints / str(named.checkpoint)
    known = sorted(path.name for path in run.checkpoints.iterdir() if path.is_dir()) if run.checkpoints.is_dir() else []
    listed = ", ".join(name for name in known if name != "final") or "(none yet)"
    if checkpoint is None and not run.final_model.is_dir():
        raise CheckpointError("the run has no final model: its training has not ended", path=run.path,
                              hint=f"give --checkpoint, one of: {listed}; or let the training end")  # fmt: skip
    if checkpoint is not None and not (checkpoint / FILE).is_file():
        raise CheckpointError(f"no checkpoint {named.checkpoint!r}", path=checkpoint,
                              hint=f"known are: final, {listed}")  # fmt: skip
    found = (
        _of_sidecar(named, run.final_model, checkpoint) if run.final_model.is_dir() else _unfinished(run, checkpoint)
    )
    adapters = run.path / FULL_CONTEXT / "final_model"
    return dataclasses.replace(
        found, name=named.name, run=run, named_checkpoint=named.checkpoint,
        arms=tuple((run.config.get("evaluation") or {}).get("arms") or ARMS),
        full_adapters=adapters if (adapters / CONFIG_FILE).is_file() else None,
    )  # fmt: skip


def _of_sidecar(named: Named, folder: Path, checkpoint: Path | None) -> Trained:
    sidecar = read_sidecar(folder)
    return Trained(
        name=named.name, folder=folder, run=None, checkpoint=checkpoint, named_checkpoint=named.checkpoint,
        base=str(sidecar["base"]), settings=CompressSettings.from_json(sidecar["settings"]),
        prompt=PromptSettings.from_json(sidecar.get("prompt") or {}), context=_context(sidecar.get("context") or {}),
        index=(sidecar.get("data") or {}).get("index"), max_new_tokens=sidecar.get("max_new_tokens"),
    )  # fmt: skip


def _unfinished(run: RunFolder, checkpoint: Path | None) -> Trained:
    """Return a run that was stopped before its final model."""
    config, data = _config(run), read_json(run.path / "data.json")
    return Trained(
        name=str(run.path), folder=None, run=run, checkpoint=checkpoint, named_checkpoint=None,
        base=str(config.model.model_name_or_path or demo.CAUSAL), settings=CompressSettings.from_config(config),
        prompt=PromptSettings.from_json(data.get("prompt") or {}), context=config.context, index=data.get("index"),
        max_new_tokens=config.evaluation.max_new_tokens,
    )  # fmt: skip


def _config(run: RunFolder) -> CompressConfig:
    """Return the configuration of a run, without a relevance head where its rows had no scores."""
    config = CompressConfig.model_validate(run.config)
    scored = (read_json(run.path / "data.json").get("train") or {}).get("with_scores")
    if scored == 0:
        config = config.model_copy(update={"objective": config.objective.model_copy(update={"rank_weight": 0.0})})
    return config


def _context(values: dict[str, Any]) -> CompressContextConfig:
    known = {name: value for name, value in values.items() if name in CompressContextConfig.model_fields}
    return CompressContextConfig.model_validate(known)


def load(trained: Trained, device: torch.device, precision: Precision) -> Subject:
    """Return the network with what asks it, on the device.

    Raises:
        CheckpointError: weights do not fit the model.
        ConfigError: it cannot be loaded.
        DataError: a file is missing, or the base is not the one it was trained on.
    """
    if trained.folder is not None:
        model, (tokenizer, own), _ = load_compress(
            trained.folder, device, checkpoint=trained.checkpoint, precision=precision
        )
    else:
        assert trained.run is not None  # noqa: S101 - a model by itself has a folder
        assert trained.checkpoint is not None  # noqa: S101 - or there is nothing to evaluate
        model, tokenizer, own = build_compress(
            _config(trained.run), base_name=trained.base, precision=precision, device=device
        )
        load_weights(model, trained.checkpoint)
        model.eval()
    prompter = CompressPrompter(tokenizer, limit=positions_of(model.generator), settings=trained.prompt)
    return Subject(model, tokenizer, Windower(own, model.settings), prompter, trained.full_adapters)


def weights_of(trained: Trained) -> str:
    """Return 16 hexadecimal digits that stand for all weights and tokenizers, without loading them; files are hashed whole.

    The base under adapters stands for itself by the fingerprint that was taken of it in training.
    """
    parts: list[Any] = [trained.base, trained.settings.to_json()]
    for folder in (trained.folder, trained.full_adapters):
        names = ("*.safetensors", "*.json", "*.model", "*.txt")
        found = [] if folder is None else sorted({path for name in names for path in folder.rglob(name)})
        parts.append({str(path.relative_to(folder)): sha256_file(path) for path in found if folder is not None})
    parts.append(None if trained.checkpoint is None else sha256_file(trained.checkpoint / FILE))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
