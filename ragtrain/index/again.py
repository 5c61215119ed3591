"""The command that adds something to an index, for the messages that say it is missing."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def prepare_command(folder: Path, manifest: Mapping[str, Any], *flags: str) -> str:
    """Return the ``ragtrain index prepare`` that adds what the flags ask for to a finished index folder.

    Nothing is encoded again; an adopted index is named by what it was adopted from, as when it was adopted.
    """
    words = ["ragtrain", "index", "prepare"]
    source = manifest.get("source") or {}
    if not source.get("index_path"):
        return shlex.join([*words, "--index-path", str(folder), *flags])
    words += ["--index-path", str(source["index_path"]), "--passages", str(source["path"]), "--output-dir", str(folder)]
    for name, value in ((manifest.get("encoder") or {}).get("config") or {}).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return shlex.join([*words, *flags])
