"""The two models that teach: where they lie, what tells one from another, how they are loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ragtrain.config.commands.sft import SftModelConfig
from ragtrain.data import demo
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.templates import read_instruction
from ragtrain.errors import ConfigError
from ragtrain.models.causal import load_causal, positions_of
from ragtrain.models.causal_config import source_of
from ragtrain.models.folders import SIDECAR, local_folder, read_json
from ragtrain.prepare.encoders import resolve_device
from ragtrain.prepare.journal import key_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.config.commands.teach import TeachConfig

#: Longest prompt with its answer where nobody says otherwise and the teacher has more positions.
LONGEST = 8192


@dataclasses.dataclass(frozen=True)
class Identity:
    """A model as it lies on the disk.

    Attributes:
        name: folder or hub id, as it was named.
        mark: changes with any of its files (by size and time), with its bits and its type.
    """

    name: str
    mark: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def dtype_name(config: TeachConfig) -> str:
    """Return the type of the weights, by torch's name."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if resolve_device(config.device).type == "cuda" else "float32"


def reranker_identity(config: TeachConfig) -> Identity | None:
    """Return what tells the reranker from others; None without one.

    Raises:
        ConfigError: there is no such model.
    """
    name = config.rerank.reranker_model
    if name is None:
        return None
    folder = local_folder(name, kind="reranker")
    return Identity(_shown(name), key_of(_stamps(folder), dtype_name(config)))


def teacher_identity(config: TeachConfig) -> Identity | None:
    """Return what tells the teacher from others; None where nobody answers.

    Raises:
        ConfigError: there is no such model.
    """
    if not config.teacher.teach:
        return None
    name = config.teacher.teacher_model
    source = source_of(name or demo.CAUSAL)
    folders = [source.folder, source.tokenizer, *([source.adapter] if source.adapter else [])]
    mark = key_of([_stamps(folder) for folder in folders], dtype_name(config), config.teacher.load_in_8bit)
    return Identity(_shown(name) if name else "built-in demo model", mark)


def _shown(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of the files of a model."""
    kinds = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in kinds)
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        model: on its device.
        tokenizer: of it.
        prompter: writes what it is asked.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompter: Prompter


def load_teacher(config: TeachConfig) -> Teacher:
    """Load the teacher.

    Raises:
        ConfigError: there is no such model, or its prompts leave no room for passages.
        DataError: weights or tokenizer cannot be read.
    """
    settings = config.teacher
    name = settings.teacher_model or str(demo.CAUSAL)
    device = resolve_device(config.device)
    asked = SftModelConfig(load_in_8bit=settings.load_in_8bit, dtype=_causal_dtype(config, bits=settings.load_in_8bit))
    model, tokenizer = load_causal(name, asked, device=device)
    if not settings.load_in_8bit:
        model.to(device)  # type: ignore[arg-type]
    return Teacher(model, tokenizer, Prompter(tokenizer, _prompt(config, name, positions_of(model))))


def _causal_dtype(config: TeachConfig, *, bits: bool) -> Any:  # noqa: ANN401 - one of the field's values
    # In 8 bits, only norms, embeddings and head have a type of their own.
    return "auto" if bits and config.dtype == "auto" else dtype_name(config)


def _prompt(config: TeachConfig, name: str, positions: int | None) -> PromptSettings:
    """Return how the teacher is asked: as it was trained, where it is a run."""
    settings = config.teacher
    longest = min(settings.max_length or LONGEST, positions or LONGEST)
    if longest <= settings.max_new_tokens:
        raise ConfigError(
            f"max_length {longest} leaves no room for a prompt beside an answer of {settings.max_new_tokens} tokens",
            hint="raise --max-length, lower --max-new-tokens, or take a teacher with more positions",
        )
    saved = read_json(local_folder(name, kind="teacher") / SIDECAR).get("prompt")
    if isinstance(saved, dict):
        trained = PromptSettings.from_json(saved)
        return dataclasses.replace(trained, max_length=longest, on_overflow="drop-docs")
    return PromptSettings(instruction=read_instruction(settings.instruction), max_length=longest)


def torch_dtype(config: TeachConfig) -> torch.dtype:
    """Return the type of the weights."""
    dtype: torch.dtype = getattr(torch, dtype_name(config))
    return dtype
