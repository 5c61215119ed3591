"""One layer's messages on a graph of triples: sums over groups of edges (ULTRA) against one message an edge.

    python benchmarks/graph_messages.py --graph data/codex-s --queries 8 --width 64

Both compute the same sums of products of states and relations, float32, one thread; seconds of the processor, the best of
several rounds in turn, forward alone and with the backward pass.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ragtrain.index.graph.read import read_graph
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.grouped import Groups, sum_products
from ragtrain.models.gfm.kernel import gather_messages
from ragtrain.report import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def main() -> None:
    """Measure and show both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    graph = read_graph(asked.graph)
    edges = GraphTensors.from_graph(graph)
    groups, alone = Groups(edges), torch.zeros(asked.queries, dtype=torch.long)
    states = torch.randn(graph.n_entities, asked.queries, asked.width, requires_grad=True)
    relations = torch.randn(2 * graph.n_relations, asked.width, requires_grad=True)
    systems: dict[str, Callable[[], Tensor]] = {
        "groups": lambda: sum_products(groups, states, relations[:, None], alone),
        "edges": lambda: gather_messages(edges, states, relations)[0],
    }
    best = {name: [float("inf"), float("inf")] for name in systems}
    for _ in range(asked.rounds):
        for name, system in systems.items():
            begin = time.process_time()
            with torch.no_grad():
                system()
            middle = time.process_time()
            system().sum().backward()  # type: ignore[no-untyped-call]
            end = time.process_time()
            best[name] = [min(best[name][0], middle - begin), min(best[name][1], end - middle)]
    with torch.no_grad():
        one, other = (system() for system in systems.values())
    rows = [
        (name, len(groups.into.rows) if name == "groups" else len(edges), *(f"{1000 * value:.1f}" for value in values))
        for name, values in best.items()
    ]
    title = f"{asked.graph.name}: {asked.queries} queries of width {asked.width}; greatest difference {(one - other).abs().max():.1e}"
    table(title, ("sums over", "products", "forward, ms", "forward and backward, ms"), rows)


if __name__ == "__main__":
    main()
