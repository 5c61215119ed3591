"""What completes a graph, and which triples it is asked for: network, graphs, and what was held out of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.evaluate.graph_model import retriever_of
from ragtrain.index.graph.read import load_graph
from ragtrain.models.encoder import load_encoder
from ragtrain.models.folders import SIDECAR, read_json
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.known import KnownTails
from ragtrain.models.gfm.splits import hold_out
from ragtrain.models.gfm.ultra import UltraNetwork, is_ultra, load_ultra
from ragtrain.models.weights import FILE as WEIGHTS_FILE
from ragtrain.models.weights import load_weights
from ragtrain.prepare.relations import relation_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from ragtrain.config.commands import EvalConfig
    from ragtrain.evaluate.resolve import Subject
    from ragtrain.index.graph.read import ReadGraph
    from ragtrain.models.gfm.model import GraphNetwork
    from ragtrain.runs import RunFolder

log = logging.getLogger("ragtrain")

#: Share of triples that is held out of a graph that holds none out itself, where no run says another.
SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class LinkModel:
    """A network that completes graphs.

    Attributes:
        name: as the console calls it.
        network: on the CPU, in the mode of evaluation.
        text_encoder: folder or hub id, where it reads names of relations; None for ULTRA.
        fingerprint: of weights and encoder's name.
        graphs: that it was trained on, where that is known.
        share: of the triples of such a graph that was held out of training.
        seed: of that draw.
        fingerprints: of these graphs as they were.
    """

    name: str
    network: GraphNetwork | UltraNetwork
    text_encoder: str | None
    fingerprint: str
    graphs: tuple[Path, ...]
    share: float | None
    seed: int | None
    fingerprints: frozenset[str] = frozenset()


class _Saved(nn.Module):
    """A network under the name that it has in the checkpoints of ``train gfm``."""

    def __init__(self, network: UltraNetwork) -> None:
        super().__init__()
        self.network = network


def link_model_of(subject: Subject) -> LinkModel:
    """Load what a subject names.

    Raises:
        CheckpointError: there are no such weights, or they are of another network.
        ConfigError: there is no such model.
        DataError: a file of it cannot be read.
    """
    run = subject.run
    share = subject.setting("data", "dev_split") if run is not None else None
    seed = subject.setting("loop", "seed") if run is not None else None
    path = Path(str(subject.model_name)) if run is None else _weights_of(run, subject)
    if not is_ultra(path):
        found = retriever_of(subject)
        graphs, marks = _trained(found.graphs)
        return LinkModel(
            subject.name, found.network, found.text_encoder, found.fingerprint(), graphs, share, seed, marks
        )
    network = load_ultra(path)
    if run is not None and subject.checkpoint != "final":
        checkpoint = run.checkpoints / str(subject.checkpoint)
        if not (checkpoint / WEIGHTS_FILE).is_file():
            known = sorted(each.name for each in run.checkpoints.iterdir()) if run.checkpoints.is_dir() else []
            raise CheckpointError(f"no checkpoint {subject.checkpoint!r}", path=checkpoint,
                                  hint=f"known are: final, {', '.join(known) or '(none yet)'}")  # fmt: skip
        load_weights(_Saved(network), checkpoint)
    about = read_json(run.path / "data.json" if run is not None else path / SIDECAR)
    graphs, marks = _trained(about.get("graphs") or ())
    return LinkModel(subject.name, network.eval(), None, _fingerprint(network), graphs, share, seed, marks)


def _trained(graphs: Iterable[Any]) -> tuple[tuple[Path, ...], frozenset[str]]:
    """Return paths and fingerprints of the graphs of a training, of what was recorded of them."""
    named = [each for each in graphs if isinstance(each, Mapping) and "path" in each]
    return tuple(Path(str(each["path"])) for each in named), frozenset(str(each.get("fingerprint")) for each in named)


def _weights_of(run: RunFolder, subject: Subject) -> Path:
    """Return where a run's network is: in its final model, else, for a checkpoint, in what the run began with.

    Raises:
        CheckpointError: the run has not ended, and no checkpoint is named.
    """
    before = subject.setting("model", "model_dir")
    if run.final_model.is_dir() or before is None or not is_ultra(Path(before)):
        return run.final_model
    if subject.checkpoint == "final":
        raise CheckpointError("the run has no final model: its training has not ended", path=run.path,
                              hint="give --checkpoint latest; or let the training end")  # fmt: skip
    return Path(before)


def _fingerprint(network: UltraNetwork) -> str:
    digest = hashlib.sha256(json.dumps(network.settings.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Links:
    """The triples of one graph that are asked for.

    Attributes:
        found: the graph and what is said of it.
        split: ``test``, ``valid``, or ``held-out`` where its source has neither.
        facts: (E, 3) that messages travel along.
        asked: (n, 3) none of which is among the facts.
        known: every true tail: of the facts and of all that is held out.
    """

    found: ReadGraph
    split: str
    facts: np.ndarray
    asked: np.ndarray
    known: KnownTails

    def tensors(self, device: torch.device) -> GraphTensors:
        """Return the edges of the facts on a device."""
        graph = self.found.graph
        return GraphTensors.from_triples(self.facts, graph.n_entities, graph.n_relations, device)

    def features(self, model: LinkModel, device: torch.device) -> Tensor | None:
        """Return the text vectors of relations, where the network reads them.

        Raises:
            ConfigError: the text encoder cannot be loaded.
        """
        if model.text_encoder is None:
            return None
        encoder = load_encoder(model.text_encoder, role="passage")
        vectors = relation_features(self.found.graph, encoder, self.found.folder, device=str(device))
        return torch.from_numpy(vectors).to(device)

    def about(self) -> dict[str, Any]:
        """Return what the evaluation depends on."""
        digest = hashlib.sha256(np.ascontiguousarray(self.asked, dtype=np.int64).tobytes()).hexdigest()
        return {
            **{name: self.found.about[name] for name in ("path", "form", "fingerprint", "entities", "relations")},
            "facts": len(self.facts), "split": self.split, "asked": len(self.asked), "asked_sha256": digest,
        }  # fmt: skip


def links_of(config: EvalConfig, model: LinkModel) -> list[Links]:
    """Return what is asked of each graph: of the one that is given, else of those of the training.

    Raises:
        ConfigError: there is none, or one is no longer where it was.
        DataError: a graph cannot be read, or has nothing to ask for.
    """
    paths: Sequence[Path] = (config.graph,) if config.graph is not None else model.graphs
    if not paths:
        raise ConfigError(f"{model.name} says of no graph",
                          hint="give --graph, a folder of train, valid and test triples")  # fmt: skip
    if gone := [str(path) for path in paths if not path.exists()]:
        raise ConfigError(f"there is no graph {', '.join(gone)}", hint="give --graph")
    return [_links(config, model, path) for path in paths]


def _links(config: EvalConfig, model: LinkModel, path: Path) -> Links:
    found = load_graph(path, skip_bad_lines=config.skip_bad_lines)
    graph, split = found.graph, "test"
    facts, asked = graph.triples, graph.held_out.get("test")
    if asked is None or not len(asked):
        split, asked = "valid", graph.held_out.get("valid")
    if asked is None or not len(asked):
        split = "held-out"
        facts, asked = hold_out(graph.triples, *_draw(config, model, found))
    if not len(asked):
        raise DataError(
            "has no triple that could be held out: each is the only one of an entity or a relation", path=path,
            hint="give a graph with test triples with --graph",
        )  # fmt: skip
    if split != "test" and model.share is not None and _is_trained(model, path):
        log.info("%s has no test triples: those are ranked by which the best checkpoint of the run was chosen", path)
    elif split == "held-out":
        log.info(
            "%s has neither test nor validation triples: %d of %d are held out", path, len(asked), len(graph.triples)
        )
    if config.num_samples is not None and config.num_samples < len(asked):
        asked = asked[np.sort(np.random.default_rng(config.seed).permutation(len(asked))[: config.num_samples])]
    everything = np.concatenate([graph.triples, *graph.held_out.values()])
    known = KnownTails(torch.from_numpy(everything), graph.n_entities, graph.n_relations)
    return Links(found, split, facts, asked, known)


def _is_trained(model: LinkModel, path: Path) -> bool:
    return path.resolve() in {each.resolve() for each in model.graphs}


def _draw(config: EvalConfig, model: LinkModel, found: ReadGraph) -> tuple[float, int]:
    """Return which share of a graph's triples is held out, and the seed of the draw: of a run's graph what training held out.

    Raises:
        DataError: that is not known any more, or was nothing; what would be asked was trained on.
    """
    path = Path(found.about["path"])
    if not _is_trained(model, path):
        return SHARE, config.seed
    hint = "give a graph with test triples with --graph, or train again"
    if model.share is None:
        log.warning("%s was trained on %s, and only its run says what was held out: some of what is asked may have been "
                    "trained on", model.name, path)  # fmt: skip
        return SHARE, config.seed
    if not model.share:
        raise DataError(
            "the run held none of its triples out (dev_split is 0): it was trained on all", path=path, hint=hint
        )
    if found.graph.fingerprint not in model.fingerprints:
        raise DataError(
            "was changed since it was trained on: what would be held out now was trained on", path=path, hint=hint
        )
    return model.share, int(model.seed or 0)
