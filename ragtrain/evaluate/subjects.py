"""What a causal language model that is evaluated consists of: weights, prompts, and how it was trained.

A run says all of it in ``final_model/ragtrain.json``, and so does that folder alone wherever it was copied. A run that has
not ended says it in its configuration. Any other model is asked with the instruction and layout that training begins from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, Literal

from ragtrain.config.commands.sft import SftConfig, SftContextConfig, SftPromptConfig
from ragtrain.data import demo
from ragtrain.data.sft.prompts import PromptSettings
from ragtrain.errors import CheckpointError, ConfigError
from ragtrain.models.causal import bits, load_causal
from ragtrain.models.causal_config import source_of
from ragtrain.models.causal_export import load_causal_run
from ragtrain.models.folders import SIDECAR, local_folder, read_json
from ragtrain.models.weights import FILE, load_weights
from ragtrain.records import sha256_file
from ragtrain.runs import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.evaluate.resolve import Subject
    from ragtrain.models.causal_config import Precision

log = logging.getLogger("ragtrain")

Role = Literal["tuned", "base"]

_WEIGHTS = ("*.safetensors", "*.bin", "adapter_config.json", "config.json", "generation_config.json")
_TOKENIZER = ("tokenizer*", "special_tokens*", "added_tokens*", "chat_template*", "vocab*", "merges*", "*.model")


@dataclasses.dataclass(frozen=True)
class Causal:
    """A causal language model to evaluate.

    Attributes:
        name: as the console calls it.
        source: folder or hub id that it is loaded from; of a run that has not ended, its base.
        run: the run whose questions, passages and settings it has; None for a model by itself.
        checkpoint: whose weights are taken instead of the final ones; None for those.
        fine_tuned: it comes from ``train sft``.
        network: what is known of the network: ``adapter``, ``bits`` and a fingerprint of the base.
        base: folder or hub id of the base.
        prompt: how prompts are written.
        context: the passages of prompts in training.
        index: what is recorded of the index that they came from; None where there was none.
        max_new_tokens: longest answer in training's evaluations; None where that is not known.
    """

    name: str
    source: str
    run: RunFolder | None
    checkpoint: Path | None
    fine_tuned: bool
    network: dict[str, Any]
    base: str
    prompt: PromptSettings
    context: SftContextConfig
    index: dict[str, Any] | None
    max_new_tokens: int | None

    @property
    def unfinished(self) -> bool:
        """Whether it is a checkpoint of a run that has no final model."""
        return self.checkpoint is not None and self.run is not None and not self.run.final_model.is_dir()


def causal_of(subject: Subject) -> Causal:
    """Return the causal language model that a subject names.

    Raises:
        CheckpointError: a run has no such weights.
        ConfigError: there is no such model.
        DataError: a file of it cannot be read.
    """
    if subject.run is None:
        folder = local_folder(str(subject.model_name), kind="model")
        sidecar = read_json(folder / SIDECAR)
        if sidecar.get("kind") == "sft":
            return _of_sidecar(subject.name, folder, sidecar, _run_around(folder), None)
        return _plain(subject.name, folder)
    run = subject.run
    checkpoint = None if subject.checkpoint == "final" else run.checkpoints / str(subject.checkpoint)
    known = sorted(path.name for path in run.checkpoints.iterdir() if path.is_dir()) if run.checkpoints.is_dir() else []
    listed = ", ".join(known) or "(none yet)"
    if checkpoint is None and not run.final_model.is_dir():
        raise CheckpointError("the run has no final model: its training has not ended", path=run.path,
                              hint=f"give --checkpoint, one of: {listed}; or let the training end")  # fmt: skip
    if checkpoint is not None and not (checkpoint / FILE).is_file():
        raise CheckpointError(f"no checkpoint {subject.checkpoint!r}", path=checkpoint,
                              hint=f"known are: final, {listed}")  # fmt: skip
    if not run.final_model.is_dir():
        return _of_configuration(subject.name, run, checkpoint)
    return _of_sidecar(subject.name, run.final_model, read_json(run.final_model / SIDECAR), run, checkpoint)


def _run_around(folder: Path) -> RunFolder | None:
    """Return the run that a model lies in (``merged_model``), or None."""
    file = folder.parent / "config.yaml"
    run = RunFolder.open(folder.parent) if file.is_file() else None
    return run if run is not None and run.kind == "sft" else None


def _of_sidecar(
    name: str, folder: Path, sidecar: dict[str, Any], run: RunFolder | None, checkpoint: Path | None
) -> Causal:
    context = dict(sidecar.get("context") or {})
    index = context.pop("index", None)
    return Causal(
        name=name,
        source=str(folder),
        run=run,
        checkpoint=checkpoint,
        fine_tuned=True,
        network=dict(sidecar.get("network") or {}),
        base=str(sidecar.get("base")),
        prompt=PromptSettings.from_json(sidecar.get("prompt") or {}),
        context=_context(context),
        index={"path": index} if isinstance(index, str) else index,
        max_new_tokens=sidecar.get("max_new_tokens"),
    )


def _of_configuration(name: str, run: RunFolder, checkpoint: Path | None) -> Causal:
    """Return a run that was stopped before its final model."""
    config, data = SftConfig.model_validate(run.config), read_json(run.path / "data.json")
    base = str(config.model.model_name_or_path or demo.CAUSAL)
    recorded = data.get("prompt")
    return Causal(
        name=name,
        source=base,
        run=run,
        checkpoint=checkpoint,
        fine_tuned=True,
        network={"adapter": config.lora.lora_rank > 0},
        base=base,
        prompt=PromptSettings.from_json(recorded) if recorded else PromptSettings.from_config(config.prompt),
        context=config.context,
        index=data.get("index"),
        max_new_tokens=config.evaluation.max_new_tokens,
    )


def _plain(name: str, folder: Path) -> Causal:
    source = source_of(folder)
    prompt = PromptSettings.from_config(SftPromptConfig())
    own = read_json(source.folder / "config.json")
    most = next((own[key] for key in ("max_position_embeddings", "n_positions") if isinstance(own.get(key), int)), None)
    if most is not None and most < prompt.max_length:
        prompt = dataclasses.replace(prompt, max_length=most)
    return Causal(
        name=name, source=str(folder), run=None, checkpoint=None, fine_tuned=False,
        network={"adapter": source.adapter is not None}, base=source.base, prompt=prompt,
        context=SftContextConfig(), index=None, max_new_tokens=None,
    )  # fmt: skip


def _context(values: dict[str, Any]) -> SftContextConfig:
    known = {name: value for name, value in values.items() if name in SftContextConfig.model_fields}
    return SftContextConfig.model_validate(known)


def check_base(causal: Causal) -> None:
    """Refuse to switch off adapters that a model does not have.

    Raises:
        ConfigError: all its weights were trained, or it is a base itself.
    """
    if causal.network.get("adapter"):
        return
    if not causal.fine_tuned:
        raise ConfigError(f"--also-base: {causal.name} has no adapters, it is a base itself", hint="leave it out")
    raise ConfigError(
        f"--also-base: all weights of {causal.name} were trained, and its base is not inside it",
        hint=f"evaluate the base by itself: ragtrain eval --model-dir {causal.base} --conditions … --test-data …",
    )


def load(causal: Causal, device: torch.device, precision: Precision) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return network and tokenizer, on the device.

    Raises:
        CheckpointError: weights do not fit the model.
        ConfigError: it cannot be loaded.
        DataError: a file is missing, or the base is not the one it was trained on.
    """
    if causal.unfinished and causal.run is not None and causal.checkpoint is not None:
        config = SftConfig.model_validate(causal.run.config)
        model, tokenizer = load_causal(causal.source, config.model, config.lora, precision=precision, device=device)
        load_weights(model, causal.checkpoint)
        model.train(False)
    elif causal.fine_tuned:
        model, tokenizer, _ = load_causal_run(
            causal.source, checkpoint=causal.checkpoint, precision=precision, device=device
        )
    else:
        model, tokenizer = load_causal(causal.source, precision=precision, device=device)
    return (model if bits(model) is not None else model.to(device)), tokenizer  # type: ignore[arg-type]


def weights_of(causal: Causal, role: Role) -> str:
    """Return 16 hexadecimal digits that stand for weights, tokenizer and base, without loading them.

    Files are hashed whole. The base under adapters stands for itself by the fingerprint that was taken of it in training,
    which is checked when it is loaded; where there is none, by its files.
    """
    source, base = source_of(causal.source), causal.network.get("fingerprint")
    if base is None and (source.adapter is not None or role == "base"):
        base = _files(source.folder, _WEIGHTS)
    parts: list[Any] = [role, base, causal.network.get("bits"), _files(source.tokenizer, _TOKENIZER)]
    if role == "tuned":
        parts.append(_files(source.adapter or source.folder, _WEIGHTS))
        parts.append(None if causal.checkpoint is None else sha256_file(causal.checkpoint / FILE))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _files(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder (not below it) that matches a pattern, by name."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.name: sha256_file(path) for path in sorted(found)}
