"""What a graph retriever consists of: network, text encoder, and how its scores of entities become a ranking of documents.

A run says all of it in the sidecar of ``final_model``, and so does that folder alone wherever it was copied. A run that has not
ended says it in its configuration and in ``data.json``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ragtrain import report
from ragtrain.config.commands import EncoderConfig
from ragtrain.config.commands.gfm import GfmConfig, GfmRankConfig
from ragtrain.data import demo
from ragtrain.errors import CheckpointError, ConfigError
from ragtrain.index.graph.rankers import DocumentRanker
from ragtrain.index.graph.read import load_graph
from ragtrain.index.graph.store import MANIFEST_FILE, read_manifest
from ragtrain.models.encoder import load_encoder
from ragtrain.models.folders import read_json
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.export import load_gfm
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork
from ragtrain.models.weights import FILE, load_weights
from ragtrain.prepare.encoders import passage_encoder
from ragtrain.prepare.graph import link_entities
from ragtrain.prepare.relations import question_features, relation_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from ragtrain.evaluate.resolve import Subject
    from ragtrain.graphs import GraphQuestion
    from ragtrain.index.graph.read import ReadGraph
    from ragtrain.models.encoder import TextEncoder
    from ragtrain.prepare.graph.link import Link
    from ragtrain.runs import RunFolder

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class GraphRetriever:
    """A trained network and everything beside it that decides what it retrieves.

    Attributes:
        name: as the console calls it.
        run: the run it is of; None for a model by itself.
        checkpoint: whose weights it has.
        network: on the CPU, in the mode of evaluation.
        stage: ``pretrain`` or ``finetune``; what it was trained for.
        text_encoder: folder or hub id.
        ranking: from scores of entities to documents.
        weighted_seeds: entities of a question count inversely to the documents that hold them.
        graphs: what it was trained on: ``path`` and ``fingerprint``.
    """

    name: str
    run: RunFolder | None
    checkpoint: str | None
    network: GraphNetwork
    stage: str
    text_encoder: str
    ranking: GfmRankConfig
    weighted_seeds: bool
    graphs: tuple[Mapping[str, Any], ...]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of the weights and of how they are used."""
        about = [self.network.settings.to_json(), self.weighted_seeds]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


class _Saved(nn.Module):
    """A network under the name that it has in the checkpoints of ``train gfm``."""

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__()
        self.network = network


def retriever_of(subject: Subject) -> GraphRetriever:
    """Load what a subject names.

    Raises:
        CheckpointError: a run has no such weights, or they do not fit its network.
        ConfigError: there is no such model, or nothing says which text encoder it reads.
        DataError: a file of it cannot be read.
    """
    run = subject.run
    if run is None:
        found = load_gfm(str(subject.model_name))
        return _of_sidecar(subject.name, None, None, found.network, found.sidecar)
    checkpoint = None if subject.checkpoint == "final" else run.checkpoints / str(subject.checkpoint)
    known = sorted(path.name for path in run.checkpoints.iterdir() if path.is_dir()) if run.checkpoints.is_dir() else []
    listed = ", ".join(known) or "(none yet)"
    if checkpoint is None and not run.final_model.is_dir():
        raise CheckpointError("the run has no final model: its training has not ended", path=run.path,
                              hint=f"give --checkpoint, one of: {listed}; or let the training end")  # fmt: skip
    if checkpoint is not None and not (checkpoint / FILE).is_file():
        raise CheckpointError(f"no checkpoint {subject.checkpoint!r}", path=checkpoint,
                              hint=f"known are: final, {listed}")  # fmt: skip
    if run.final_model.is_dir():
        found = load_gfm(str(run.final_model))
        network, sidecar = found.network, found.sidecar
    else:
        network, sidecar = _unfinished(run)
    if checkpoint is not None:
        load_weights(_Saved(network), checkpoint)
    return _of_sidecar(subject.name, run, subject.checkpoint, network, sidecar)


def _of_sidecar(
    name: str, run: RunFolder | None, checkpoint: str | None, network: GraphNetwork, sidecar: Mapping[str, Any]
) -> GraphRetriever:
    encoder = sidecar.get("text_encoder")
    if not isinstance(encoder, str):
        raise ConfigError(f"{name} does not say which text encoder it reads questions and relations with",
                          hint="fine-tune it here (ragtrain train gfm --model-dir … --text-encoder …), or add text_encoder "
                          "to its gfm.json")  # fmt: skip
    stage = str(sidecar.get("stage", "finetune"))
    if stage == "pretrain":  # which asks with relations, and leaves the map of questions as it was made
        network.questions_from_relations()
    return GraphRetriever(
        name=name,
        run=run,
        checkpoint=checkpoint,
        network=network.eval(),
        stage=stage,
        text_encoder=encoder,
        ranking=GfmRankConfig.model_validate(sidecar.get("ranking") or {}),
        weighted_seeds=bool(sidecar.get("init_entity_weights", True)),
        graphs=tuple(each for each in sidecar.get("graphs") or () if isinstance(each, dict)),
    )


def _unfinished(run: RunFolder) -> tuple[GraphNetwork, dict[str, Any]]:
    """Return the network of a run that was stopped before its final model, without its weights, and its sidecar."""
    config, data = GfmConfig.model_validate(run.config), read_json(run.path / "data.json")
    asked = config.model
    before = None if asked.model_dir is None else load_gfm(asked.model_dir)
    recorded = (data.get("text_encoder") or {}).get("name")
    encoder = str(recorded or asked.text_encoder or demo.ENCODER)
    dim = load_encoder(encoder, role="passage").dim
    settings = GfmSettings(
        hidden_dim=asked.hidden_dim, num_layers=asked.num_layers, message=asked.message, aggregate=asked.aggregate,
        short_cut=asked.short_cut, layer_norm=asked.layer_norm,
    )  # fmt: skip
    network = before.network if before is not None and not asked.refit else None
    if network is None:
        network = GraphNetwork(settings if before is None else before.network.settings, dim)
        if before is None and config.data.stage == "pretrain":
            network.forget_questions()
    return network, {
        "stage": config.data.stage,
        "text_encoder": encoder,
        "ranking": config.ranking.model_dump(mode="json"),
        "init_entity_weights": asked.init_entity_weights,
        "graphs": data.get("graphs") or [],
    }


def graph_path_of(retriever: GraphRetriever, given: Path | None) -> Path:
    """Return the graph that is searched: the one given, else the one of the training.

    Raises:
        ConfigError: there are several, or the only one is no longer where it was.
    """
    if given is not None:
        return given
    paths = [Path(str(each["path"])) for each in retriever.graphs if "path" in each]
    if len(paths) != 1:
        what = f"{retriever.name} was trained on {len(paths)} graphs" if paths else f"{retriever.name} says of no graph"
        listed = ": " + ", ".join(map(str, paths)) if paths else ""
        raise ConfigError(what + listed, hint="name one with --graph")
    if not paths[0].exists():
        raise ConfigError(
            f"the graph {paths[0]} that {retriever.name} was trained on is not there", hint="give --graph"
        )
    return paths[0]


class Scorer:
    """A network on one graph: questions in, scores of entities out.

    Attributes:
        retriever: the network and what belongs to it.
        found: the graph and what is said of it.
        encoder: of texts.
        tensors: edges, on the device.
        features: (2R, text_dim) vectors of relations, on the device.
        weights: (N,) of entities as seeds, or None where all count alike.
        ranker: of documents, on the CPU.
    """

    def __init__(self, retriever: GraphRetriever, found: ReadGraph, encoder: TextEncoder, device: torch.device) -> None:
        graph = found.graph
        self.retriever, self.found, self.encoder, self.device = retriever, found, encoder, device
        self.network = retriever.network.to(device)
        if encoder.dim != self.network.settings.text_dim:
            raise ConfigError(f"{retriever.name} reads texts of {self.network.settings.text_dim} dimensions, and "
                              f"{retriever.text_encoder} has {encoder.dim}")  # fmt: skip
        self.tensors = GraphTensors.from_graph(graph, device)
        vectors = relation_features(graph, encoder, found.folder, device=str(device))
        self.features = torch.from_numpy(vectors).to(device)
        ranking = retriever.ranking
        self.ranker = DocumentRanker(graph, ranking.ranker, ranking.ranker_top_k)
        self._by_rarity = DocumentRanker(graph, "idf")
        self.weights: Tensor | None = None
        if retriever.weighted_seeds:
            held = self.ranker.frequency
            self.weights = torch.where(held > 0, 1 / held.clamp(min=1), 0.0).float().to(device)

    @classmethod
    def open(
        cls, retriever: GraphRetriever, path: Path, device: torch.device, *, skip_bad_lines: bool = False
    ) -> Scorer:
        """Read a graph, and encode its relations.

        Raises:
            ConfigError: the text encoder cannot be loaded, or is of another width than the network reads.
            DataError: the graph cannot be read.
        """
        found = load_graph(path, skip_bad_lines=skip_bad_lines)
        known = {str(each.get("fingerprint")) for each in retriever.graphs}
        if known and found.graph.fingerprint not in known:
            log.info("%s is not a graph that %s was trained on, or it was changed since", path, retriever.name)
        # As in training, where one encoder reads relations and questions.
        return cls(retriever, found, load_encoder(retriever.text_encoder, role="passage"), device)

    def link(self, questions: Sequence[str]) -> list[list[Link]]:
        """Return the entities that each question names, with scores: 1, or the cosine where the words are not the name."""
        return link_entities(questions, self.found.graph, self._encoder_of_names())

    def _encoder_of_names(self) -> TextEncoder | None:
        """Return what compares names: what the graph's synonyms were found with, so that later questions are linked as earlier.

        A graph of ours that was made without is linked by words alone. One of another tool says nothing of it: there the
        network's encoder does it, unless it is the demo's, which holds any two names to be alike.
        """
        folder = self.found.folder
        if (folder / MANIFEST_FILE).is_file():
            entry = read_manifest(folder)["extra"].get("encoder")
            if not entry:
                return None
            try:
                return passage_encoder(EncoderConfig(**{**entry["config"], "encoder": entry["name"]})).to(self.device)
            except ConfigError as error:
                log.warning("names are compared by their words alone: %s", error)
                return None
        named = Path(self.retriever.text_encoder)
        return None if named.resolve() == demo.ENCODER.resolve() else self.encoder

    def vectors(self, questions: Sequence[str], *, kept: bool = True) -> Tensor:
        """Return (questions, text_dim) vectors of questions; those of a whole file are kept beside the graph."""
        folder = self.found.folder if kept else None
        return torch.from_numpy(question_features(questions, self.encoder, folder, device=str(self.device)))

    @torch.no_grad()
    def entities(self, questions: Sequence[GraphQuestion], vectors: Tensor) -> Tensor:
        """Return (B, N) float32 logits of entities, on the CPU.

        States that no question has reached are computed once for the graph and the weights.
        """
        seeds = [np.asarray(question.entities, dtype=np.int64) for question in questions]
        logits = self.network.score_entities(self.tensors, self.features, vectors.to(self.device), seeds, self.weights)
        return logits.float().cpu()

    def batches(
        self, questions: Sequence[GraphQuestion], batch_size: int, *, kept: bool = True
    ) -> Iterator[tuple[Sequence[GraphQuestion], Tensor]]:
        """Yield batches of questions with their (B, N) logits, in order."""
        vectors = self.vectors([question.question for question in questions], kept=kept)
        bar: report.Progress[None] = report.progress(len(questions), "Scoring entities")
        with bar:
            for start in range(0, len(questions), batch_size):
                some = questions[start : start + batch_size]
                yield some, self.entities(some, vectors[start : start + len(some)])
                bar.advance(len(some))

    def documents(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D) scores of documents, and (B, D) others by which equal ones are ordered.

        The usual ranker counts the best entities and so gives many documents one score; among these the sum of the
        probabilities of all their entities by rarity decides.
        """
        # In double precision, in which no two logits that differ become one probability at 1.
        probabilities = torch.sigmoid(logits.double())
        return self.ranker.scores(probabilities), self._by_rarity.scores(probabilities)
