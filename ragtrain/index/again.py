"""The command that adds something to an index, for the messages that say it is missing."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Settings of an index that a command must repeat, with the value that goes without saying.
_STORAGE, _WORDS, _OVERLAP = "float16", 100, 0


def prepare_command(folder: Path, manifest: Mapping[str, Any], *flags: str) -> str:
    """Return the ``ragtrain index prepare`` that adds what the flags ask for to a finished index folder."""
    words = ["ragtrain", "index", "prepare"]
    source = manifest.get("source") or {}
    adopted = source.get("index_path")
    if adopted:
        words += ["--index-path", str(adopted)]
    if source.get("path"):
        words += ["--passages", str(source["path"])]
    words += ["--output-dir", str(folder)]
    encoder = (manifest.get("encoder") or {}).get("config") or {}
    for name, value in encoder.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    splitting = manifest.get("splitting") or {}
    if not adopted and splitting:
        if splitting.get("passage_words", _WORDS) != _WORDS:
            limit = splitting["passage_words"]
            words += ["passage_words=null"] if limit is None else ["--passage-words", str(limit)]
        if splitting.get("overlap", _OVERLAP) != _OVERLAP:
            words += ["--overlap", str(splitting["overlap"])]
    if not adopted and manifest.get("storage", _STORAGE) != _STORAGE:
        words += ["--storage", str(manifest["storage"])]
    return shlex.join([*words, *flags])
