"""The built-in demo set on disk, with its index: made where it is not there yet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ragtrain.config.commands import FetchConfig, PrepareConfig
from ragtrain.config.commands.graph import GraphConfig
from ragtrain.data import fetch
from ragtrain.prepare import build, command

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("ragtrain")


def demo_set(folder: Path, *, with_index: bool = True) -> Path:
    """Return the folder of the demo set, fetched and indexed where it is not."""
    log.info("training on the built-in demo set in %s", folder)
    fetch.run(FetchConfig(dataset="demo", output_dir=folder))
    if with_index and not (folder / "index").exists():
        build.run(PrepareConfig(passages=folder / "passages.jsonl", output_dir=folder / "index"))
    return folder


def demo_graph(folder: Path) -> Path:
    """Return the folder of the demo set's knowledge graph, with its questions linked; made without a language model."""
    demo_set(folder, with_index=False)
    graph = folder / "graph"
    if not graph.exists():
        questions = tuple(folder / f"{split}.jsonl" for split in ("train", "validation", "test"))
        settings = GraphConfig(graph=True, graph_questions=questions)
        command.run(PrepareConfig(passages=folder / "passages.jsonl", output_dir=graph, graph_build=settings))
    return graph
