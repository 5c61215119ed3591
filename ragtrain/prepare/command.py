"""``ragtrain index prepare``: what is to be made of the passages, an index of vectors or a knowledge graph."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ragtrain.config.commands.graph import GraphConfig
from ragtrain.errors import ConfigError
from ragtrain.prepare import build
from ragtrain.prepare.graph import build as graph_build

if TYPE_CHECKING:
    from ragtrain.config.commands import PrepareConfig
    from ragtrain.prepare.graph.result import GraphResult
    from ragtrain.prepare.result import PrepareResult


def run(config: PrepareConfig) -> PrepareResult | GraphResult:
    """Make the index or the graph of a configuration; see ``build.run`` and ``graph.build.run``.

    Raises:
        ConfigError: settings of a graph are given without ``graph``, or several processes are to make one graph.
    """
    if config.graph_build.graph:
        if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
            raise ConfigError("a graph is made by one process", hint="start it without a launcher")
        return graph_build.run(config)
    none = GraphConfig()
    given = [name for name in GraphConfig.model_fields if getattr(config.graph_build, name) != getattr(none, name)]
    if given:
        raise ConfigError(f"{', '.join(given)}: only a knowledge graph has that", hint="give --graph as well")
    return build.run(config)
