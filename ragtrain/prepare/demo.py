"""The built-in demo set on disk, with its index: made where it is not there yet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ragtrain.config.commands import FetchConfig, PrepareConfig
from ragtrain.data import fetch
from ragtrain.prepare import build

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("ragtrain")


def demo_set(folder: Path, *, with_index: bool = True) -> Path:
    """Return the folder of the demo set, fetched and indexed where it is not."""
    log.info("no --train-data: training on the built-in demo set")
    fetch.run(FetchConfig(dataset="demo", output_dir=folder))
    if with_index and not (folder / "index").exists():
        build.run(PrepareConfig(passages=folder / "passages.jsonl", output_dir=folder / "index"))
    return folder
