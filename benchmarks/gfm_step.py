"""Steps of a graph network: ours against a plain form of the same mathematics, and against torch_geometric.

The network of GFM-RAG (distmult, sum, short-cut, layer norm), the same weights and questions in every system, float32. Each
system runs in a process of its own, so that its peak of memory is its own; the first step is left out. Scores are compared
with those of the plain form.

    python benchmarks/gfm_step.py                                    # small, in some minutes
    python benchmarks/gfm_step.py --graph data/musique --hidden-dim 512 --num-layers 6
    python benchmarks/gfm_step.py --shape hotpotqa --hidden-dim 512 --num-layers 6 --systems ours-checkpointing --steps 1

ours                 train gfm as it comes: null states, rows that scores depend on
ours-dense           without null states
ours-checkpointing   without null states, layers recomputed in the backward pass
plain                gather, multiply, index_add_: a tensor of a message for each edge, relations once for each query as in GFM-RAG
pyg                  the same as torch_geometric's MessagePassing

In the stage `finetune` all entities are scored, in `pretrain` 257 candidates; `inference` scores all without gradients, after one
warm-up that makes the null states.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork
from ragtrain.report import table

if TYPE_CHECKING:
    from ragtrain.models.gfm.layers import NBFLayer

#: Entities, relations and triples of the graphs of GFM-RAG's test sets; `small` for a look.
SHAPES = {
    "small": (3_000, 1_500, 4_000),
    "musique-train": (16_234, 5_034, 17_035),
    "musique": (100_853, 55_944, 319_618),
    "hotpotqa": (87_768, 45_112, 279_112),
    "2wiki": (48_779, 20_748, 160_950),
}
STAGES = ("finetune", "pretrain", "inference")
SYSTEMS = ("ours", "ours-dense", "ours-checkpointing", "plain", "pyg")
NEGATIVES, SEEDS = 256, 3


def main() -> None:
    """Measure and print a table (stderr) and one JSON document (stdout)."""
    given = parse()
    if given.system:
        warnings.simplefilter("ignore")
        sys.stdout.write(json.dumps(work(given)) + "\n")
        return
    json.dump(compare(given), sys.stdout, indent=2)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, help="graph folder; without it a random one of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--hidden-dim", type=int, default=32)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--text-dim", type=int, default=768)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed, after one that is not")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Run every system at every stage in a process of its own."""
    results: dict[str, dict[str, Any]] = {}
    for stage in given.stages:
        for system in given.systems:
            if (system == "pyg" and not _has_pyg()) or (stage == "inference" and system == "ours-checkpointing"):
                continue
            command = [sys.executable, __file__, "--system", system, "--stage", stage, *_words(given)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                results.setdefault(stage, {})[system] = {"failed": done.stderr.strip().splitlines()[-1:]}
                continue
            results.setdefault(stage, {})[system] = json.loads(done.stdout)
        show(stage, results[stage])
    return {
        "graph": str(given.graph or given.shape), "hidden_dim": given.hidden_dim, "num_layers": given.num_layers,
        "batch_size": given.batch_size, "threads": given.threads, "device": given.device,
        "torch": torch.__version__, "machine": platform.processor() or platform.machine(), "results": results,
    }  # fmt: skip


def show(stage: str, results: dict[str, Any]) -> None:
    """Print the table of a stage."""
    reference = results.get("plain", {})
    rows = []
    for system, found in results.items():
        if "failed" in found:
            rows.append([system, *["failed"] * 6])
            continue
        against = reference.get("seconds")
        difference = _difference(found["scores"], reference.get("scores"))
        rows.append([
            system, f"{found['forward']:.3f}", f"{found['backward']:.3f}", f"{found['seconds']:.3f}",
            "" if against is None else f"{found['seconds'] / against:.2f}", f"{found['peak'] / 2**30:.2f}",
            "" if difference is None else f"{difference:.0e}",
        ])  # fmt: skip
    table(stage, ("system", "forward s", "backward s", "step s", "of plain", "peak GiB", "scores differ"), rows)


def work(given: argparse.Namespace) -> dict[str, Any]:
    """Time one system at one stage."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device(given.device)
    triples, n_entities, n_relations = read(given)
    graph = GraphTensors.from_triples(triples, n_entities, n_relations, device)
    net = GraphNetwork(
        GfmSettings(hidden_dim=given.hidden_dim, num_layers=given.num_layers, text_dim=given.text_dim)
    ).to(device)
    features = torch.randn(2 * n_relations, given.text_dim).mul_(given.text_dim**-0.5).to(device)
    system: Any = Plain(net, pyg=given.system == "pyg") if given.system in ("plain", "pyg") else Ours(net, given.system)
    timed: list[tuple[float, float]] = []
    first: list[float] = []
    for step in range(given.steps + 1):
        generator = torch.Generator().manual_seed(step)
        with torch.set_grad_enabled(given.stage != "inference"):
            began = _now(device)
            scores = system(given.stage, graph, features, generator, given.batch_size, triples)
            between = _now(device)
            if given.stage != "inference":
                scores.square().mean().backward()
        ended = _now(device)
        net.zero_grad()
        if step:
            timed.append((between - began, ended - between))
        else:
            first = scores.detach().flatten()[:: max(1, scores.numel() // 512)].cpu().tolist()
    forward, backward = (statistics.median(times) for times in zip(*timed, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {
        "forward": forward, "backward": backward, "seconds": forward + backward, "peak": peak, "scores": first,
        "entities": n_entities, "relations": n_relations, "edges": len(graph), "steps": timed,
    }  # fmt: skip


def read(given: argparse.Namespace) -> tuple[np.ndarray, int, int]:
    """Return triples, entities and relations: of a folder, or random ones with a few of very many edges."""
    if given.graph is not None:
        from ragtrain.index.graph.read import load_graph

        found = load_graph(given.graph).graph
        return found.triples, found.n_entities, found.n_relations
    n_entities, n_relations, n_triples = SHAPES[given.shape]
    draw = np.random.default_rng(0)

    def power_law(top: int) -> np.ndarray:
        """Ids whose frequency falls with their rank to the power of 0.6, each at least once."""
        weights = np.arange(1, top + 1) ** -0.6
        ids = draw.choice(top, size=n_triples - min(top, n_triples), p=weights / weights.sum())
        return draw.permutation(np.concatenate([np.arange(min(top, n_triples)), ids]))

    return np.stack([power_law(top) for top in (n_entities, n_relations, n_entities)], 1), n_entities, n_relations


def questions(
    graph: GraphTensors, generator: torch.Generator, batch: int, text_dim: int
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return vectors of questions, the entities they name (often met ones more often), and weights of entities."""
    vectors = torch.randn(batch, text_dim, generator=generator) * text_dim**-0.5
    places = torch.randint(0, len(graph), (batch, SEEDS), generator=generator)
    seeds = list(graph.into.row.cpu()[places].long())
    return vectors.to(graph.device), seeds, torch.ones(graph.n_entities, device=graph.device)


def asked_triples(
    graph: GraphTensors, triples: np.ndarray, generator: torch.Generator, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return heads, relations and candidates, the true tail first."""
    rows = torch.from_numpy(triples[torch.randint(0, len(triples), (batch,), generator=generator).numpy()]).long()
    negatives = torch.randint(0, graph.n_entities, (batch, NEGATIVES), generator=generator)
    parts = rows[:, 0], rows[:, 1], torch.cat([rows[:, 2:], negatives], 1)
    return tuple(part.to(graph.device) for part in parts)  # type: ignore[return-value]


class Ours:
    """The network as it is trained."""

    def __init__(self, net: GraphNetwork, system: str) -> None:
        self.net = net
        net.null_states = system == "ours"
        net.activation_checkpointing = system == "ours-checkpointing"

    def __call__(
        self,
        stage: str,
        graph: GraphTensors,
        features: Tensor,
        generator: torch.Generator,
        batch: int,
        triples: np.ndarray,
    ) -> Tensor:
        """Return scores of a batch."""
        if stage == "pretrain":
            heads, relations, candidates = asked_triples(graph, triples, generator, batch)
            removed = graph.own_edges(heads, relations, candidates[:, 0])
            return self.net.score_tails(graph, features, heads, relations, candidates, removed=removed)
        vectors, seeds, weights = questions(graph, generator, batch, features.shape[1])
        return self.net.score_entities(graph, features, vectors, seeds, weights)


class Plain:
    """The same from the equations, with a message for each edge: (B, E, D), and inputs put beside each other."""

    def __init__(self, net: GraphNetwork, *, pyg: bool) -> None:
        self.net = net
        self.send = _pyg_sum() if pyg else _plain_sum

    def __call__(
        self,
        stage: str,
        graph: GraphTensors,
        features: Tensor,
        generator: torch.Generator,
        batch: int,
        triples: np.ndarray,
    ) -> Tensor:
        """Return scores of a batch."""
        table_ = self.net.relation_mlp(features)
        boundary = table_.new_zeros(batch, graph.n_entities, table_.shape[1])
        rows = torch.arange(batch, device=graph.device)
        target, source, relation = (part.long() for part in (graph.into.row, graph.into.first, graph.into.second))
        if stage == "pretrain":
            heads, relations, candidates = asked_triples(graph, triples, generator, batch)
            query = table_[relations]
            boundary = boundary.index_put((rows, heads), query)
            removed = graph.own_edges(heads, relations, candidates[:, 0])
            keep = torch.ones(batch, len(graph), device=graph.device).index_put(
                (removed.rows, removed.places), torch.zeros(len(removed), device=graph.device)
            )
        else:
            vectors, seeds, weights = questions(graph, generator, batch, features.shape[1])
            query, candidates, keep = self.net.question_mlp(vectors), None, None
            mask = boundary.new_zeros(boundary.shape[:2])
            for row, own in enumerate(seeds):
                mask[row, own.to(mask.device)] = 1
            boundary = torch.einsum("bn,bd->bnd", mask * weights, query)
        states = boundary
        expanded = table_.expand(batch, -1, -1)
        for module in self.net.layers:
            layer = cast("NBFLayer", module)
            z = layer.relation_projection(expanded)
            received = self.send(states, z, target, source, relation, keep) + boundary
            hidden = F.linear(torch.cat([states, received], -1), layer.linear.weight, layer.linear.bias)
            states = F.relu(cast("nn.LayerNorm", layer.layer_norm)(hidden)) + states
        if candidates is not None:
            states = states.gather(1, candidates.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        scores: Tensor = self.net.head(torch.cat([states, query.unsqueeze(1).expand(-1, states.shape[1], -1)], -1))
        return scores.squeeze(-1)


def _plain_sum(
    states: Tensor, z: Tensor, target: Tensor, source: Tensor, relation: Tensor, keep: Tensor | None
) -> Tensor:
    sent = states.index_select(1, source) * z.index_select(1, relation)
    if keep is not None:
        sent = sent * keep.unsqueeze(-1)
    return torch.zeros_like(states).index_add_(1, target, sent)


def _pyg_sum() -> Any:  # noqa: ANN401
    """Return the same sum by torch_geometric's MessagePassing."""
    passing: Any = importlib.import_module("torch_geometric.nn").MessagePassing

    class Sum(passing):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(aggr="sum", node_dim=1)

        def forward(
            self, x: Tensor, z: Tensor, target: Tensor, source: Tensor, relation: Tensor, keep: Tensor | None
        ) -> Any:  # noqa: ANN401
            return self.propagate(torch.stack([source, target]), x=x, z=z, relation=relation, keep=keep)

        def message(self, x_j: Tensor, z: Tensor, relation: Tensor, keep: Tensor | None) -> Tensor:
            sent = x_j * z.index_select(1, relation)
            return sent if keep is None else sent * keep.unsqueeze(-1)

    return Sum()


def _has_pyg() -> bool:
    return importlib.util.find_spec("torch_geometric") is not None


def _difference(ours: list[float], theirs: list[float] | None) -> float | None:
    return None if theirs is None else max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _words(given: argparse.Namespace) -> list[str]:
    words = ["--graph", str(given.graph)] if given.graph else ["--shape", given.shape]
    for name in ("hidden_dim", "num_layers", "text_dim", "batch_size", "steps", "threads", "device"):
        words += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    return words


if __name__ == "__main__":
    main()
