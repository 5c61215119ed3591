"""Model folders: where a name or hub id lives on this machine, and what a folder says of how its model is used.

Weights come from safetensors, or from ``.bin`` files that hold nothing but tensors (``weights_only``). Code that a
folder brings along is never run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as remarks

from ragtrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

SIDECAR = "ragtrain.json"
Pooling = Literal["cls", "mean", "pooler", "last"]

#: sentence-transformers' names of the poolings that are supported; its other ones are refused by name.
_POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """How an encoder turns text into a vector.

    Attributes:
        name: folder or hub id it was loaded from.
        model_class: transformers class of the network.
        pooling: how token vectors become one: the first token's (``cls``), their mean, the last token's, or what the
            network itself returns as ``pooler_output`` (DPR; BERT's tanh pooler).
        normalize: scale the vector to unit length.
        query_prompt: text put before each question.
        passage_prompt: text put before each passage.
        passage_format: ``pair`` (title and text as two segments, as DPR has it) or ``joined`` by a space.
        max_tokens: longest input the encoder reads.
        lower_case: lower-case the text although the tokenizer does not.
    """

    name: str
    model_class: str = "AutoModel"
    pooling: Pooling | None = None
    normalize: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""
    passage_format: Literal["pair", "joined"] = "joined"
    max_tokens: int | None = None
    lower_case: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


@contextmanager
def hushed() -> Iterator[None]:
    """Keep transformers' progress bars and remarks off the console while weights are read or written."""
    level, bars = remarks.get_verbosity(), remarks.is_progress_bar_enabled()
    remarks.set_verbosity_error()  # type: ignore[no-untyped-call]
    remarks.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        remarks.set_verbosity(level)
        if bars:
            remarks.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a folder to fill, and put it in place of what stands at the path once it is whole."""
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if path.exists():
            shutil.rmtree(path)
        aside.replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def local_folder(name_or_path: str | Path, *, kind: str) -> Path:
    """Return the folder of a model: the path itself, a run folder's ``final_model``, or a snapshot of a hub id.

    Raises:
        ConfigError: there is no such folder, and the hub has no such model or cannot be reached.
    """
    path = Path(name_or_path)
    if path.is_dir():
        inner = path / "final_model"
        return inner if inner.is_dir() and not (path / "config.json").exists() else path
    name = str(name_or_path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigError(f"{kind}: no folder {name!r}", hint="Pass an existing folder or a hub id (owner/name).")
    from huggingface_hub import snapshot_download  # slow to import, and needed for hub ids only

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, "pytorch_model*.bin"]))
    except Exception as error:  # the hub's errors have no common class: offline, not found, gated, bad name
        raise ConfigError(
            f"{kind}: {name!r} is no folder, and the hub did not give it: {type(error).__name__}",
            hint="Check the spelling and the network, or download the model and pass its folder.",
        ) from error
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one where there is no such file.

    Raises:
        DataError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not JSON: {error}", path=path) from error
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, found {type(value).__name__}", path=path)
    return value


def sentence_transformers_spec(folder: Path, name: str) -> tuple[EncoderSpec, Path]:
    """Return what a sentence-transformers folder says, and the folder of its transformer.

    Source: the layout that sentence-transformers writes (``modules.json`` and a ``config.json`` per module), versions
    2 to 6.

    Raises:
        ConfigError: the folder has a module or a pooling that is not supported.
    """
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        parts = {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in modules}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"not a list of modules: {error!r}", path=folder / "modules.json") from error
    unknown = [part for part in parts if part not in ("Transformer", "Pooling", "Normalize")]
    if unknown or "Transformer" not in parts or len(parts) != len(modules):
        raise ConfigError(
            f"encoder {name!r}: its modules are {', '.join(parts)}; supported are Transformer, Pooling, Normalize",
            hint="Choose an encoder of these modules only, or pass its transformer's own folder with --pooling.",
        )
    inner = parts["Transformer"]
    settings = read_json(inner / "sentence_bert_config.json")
    prompts = read_json(folder / "config_sentence_transformers.json")
    spec = EncoderSpec(
        name=name,
        pooling=_pooling(read_json(parts["Pooling"] / "config.json"), name) if "Pooling" in parts else None,
        normalize="Normalize" in parts,
        query_prompt=_prompt(prompts, ("query",)),
        passage_prompt=_prompt(prompts, ("document", "passage", "corpus")),
        max_tokens=settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case", False)),
    )
    return spec, inner


def write_sentence_transformers(folder: Path, spec: EncoderSpec, dim: int) -> None:
    """Write the files by which sentence-transformers reads a transformer folder as this encoder.

    ``pooler`` has no name there; nothing is written for it.
    """
    names = {pooling: name for name, pooling in _POOLINGS.items()}
    if spec.pooling not in names:
        return
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * spec.normalize)]
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    pooling = {"word_embedding_dimension": dim}
    pooling |= {key: mode == names[spec.pooling] for key, mode in _LEGACY_POOLINGS.items()}
    prompts = {"query": spec.query_prompt, "document": spec.passage_prompt}
    files: dict[str, object] = {
        "modules.json": rows,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": spec.max_tokens, "do_lower_case": spec.lower_case},
        "config_sentence_transformers.json": {
            "prompts": {key: value for key, value in prompts.items() if value},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if spec.normalize else "dot",
        },
    }
    for file, value in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _pooling(config: dict[str, Any], name: str) -> Pooling:
    mode = config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else list(mode or [])
    modes = modes or [short for key, short in _LEGACY_POOLINGS.items() if config.get(key)]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ConfigError(
            f"encoder {name!r}: its pooling is {' + '.join(modes) or 'not given'}; supported are cls, mean, lasttoken",
            hint="Choose another encoder.",
        )
    return _POOLINGS[modes[0]]


def _prompt(config: dict[str, Any], names: tuple[str, ...]) -> str:
    prompts = config.get("prompts") or {}
    for name in (*names, config.get("default_prompt_name")):
        if name in prompts:
            return cast("str", prompts[name]) or ""
    return ""


def load_weights(
    auto: Any,  # noqa: ANN401 - any class of theirs
    folder: Path,
    name: str,
    *,
    optional: str = "",
    **settings: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Return a transformers model, float32 unless told otherwise, from files that hold tensors only.

    Args:
        auto: the class to load with.
        folder: the folder.
        name: what the caller called it, for messages.
        optional: weights with this in their name may be missing.
        settings: what else is passed to ``from_pretrained``, as ``dtype``.

    Raises:
        DataError: the weights cannot be read, or some are missing.
    """
    try:
        with hushed():
            model, info = auto.from_pretrained(
                folder, output_loading_info=True, trust_remote_code=False, **{"dtype": torch.float32, **settings}
            )
    except Exception as error:  # pickle, OSError, ValueError, RuntimeError: all say the folder is not usable
        raise DataError(
            f"its weights cannot be loaded: {error}",
            path=name,
            hint="Weights must be safetensors, or a file of nothing but tensors.",
        ) from error
    missing = sorted(key for key in info["missing_keys"] if not (optional and optional in key))
    if missing:
        raise DataError(f"{len(missing)} weights are missing, {missing[0]!r} first", path=name)
    return model


def load_tokenizer(folder: Path, name: str, **settings: Any) -> PreTrainedTokenizerBase:  # noqa: ANN401
    """Return a folder's tokenizer.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if not any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES):
        # transformers would make up a tokenizer of five special tokens, to which every word is unknown.
        raise DataError("there is no tokenizer in this folder", path=name, hint="Save the model's tokenizer beside it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **settings)
    except Exception as error:  # OSError, ValueError, KeyError and worse: all say there is no tokenizer here
        raise DataError(f"its tokenizer cannot be loaded: {error}", path=name) from error
    return cast("PreTrainedTokenizerBase", tokenizer)
