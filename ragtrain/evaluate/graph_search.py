"""``ragtrain index search --model-dir``: one question to a graph retriever, what it found, and along which paths."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragtrain import prepare, report
from ragtrain.errors import ConfigError
from ragtrain.evaluate import graph_picture
from ragtrain.evaluate.graph_model import Scorer, graph_path_of, retriever_of
from ragtrain.evaluate.graph_paths import Explainer
from ragtrain.evaluate.graph_systems import Dense
from ragtrain.evaluate.resolve import Subject
from ragtrain.graphs import GraphQuestion
from ragtrain.index.bm25 import BM25Index
from ragtrain.index.graph.rankers import fuse, rank_documents
from ragtrain.models.gfm.ultra import is_ultra
from ragtrain.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ragtrain.config.commands import SearchConfig
    from ragtrain.evaluate.graph_paths import Route
    from ragtrain.prepare import SearchResult

log = logging.getLogger("ragtrain")

#: Entities that are shown and explained, and paths to each.
ENTITIES, PATHS = 5, 3
_ONLY_INDEX = ("encoder", "retrieval", "search_index")
_ONLY_GRAPH = ("graph", "draw")


@dataclasses.dataclass(frozen=True)
class GraphSearchResult:
    """What a question found in a graph.

    Attributes:
        question: as it was asked.
        model: that scored.
        graph: folder of the graph.
        linked: entities that the question names, with scores.
        documents: best first.
        entities: best first, with what leads to each (``paths``).
        picture: file of the drawing, or None.
    """

    question: str
    model: str
    graph: Path
    linked: tuple[dict[str, Any], ...]
    documents: tuple[dict[str, Any], ...]
    entities: tuple[dict[str, Any], ...]
    picture: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        paths = {"graph": str(self.graph), "picture": None if self.picture is None else str(self.picture)}
        return {**dataclasses.asdict(self), **paths}


def search(config: SearchConfig) -> GraphSearchResult | SearchResult:
    """Search an index, or a graph where a graph model is named, with one question and show what was found.

    Raises:
        ConfigError: there is no question, no such model, or an option means nothing to what is searched.
        DataError: index or graph cannot be read.
    """
    unknown = _ONLY_GRAPH if config.model_dir is None else _ONLY_INDEX
    if given := [name for name in unknown if name in config.model_fields_set]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        what = "a search without --model-dir" if config.model_dir is None else "a search in a graph"
        raise ConfigError(f"{flags} means nothing to {what}", hint=f"leave {flags} out")
    if config.model_dir is None:
        return prepare.search(config)
    if not config.question.strip():
        raise ConfigError("there is no question", hint='ragtrain index search "…" --model-dir runs/gfm')
    return _search(config, _subject(config.model_dir))


def _subject(model_dir: str) -> Subject:
    path = Path(model_dir)
    for folder in (path, path.parent):
        if (folder / "config.yaml").is_file() and (folder == path or path.name == "final_model"):
            run = RunFolder.open(folder)
            if run.kind != "gfm":
                raise ConfigError(f"{folder} is a run of kind {run.kind!r}: a graph is searched with one of train gfm",
                                  hint="search its index with --index-path and --encoder")  # fmt: skip
            return Subject(str(folder), run=run, checkpoint="final")
    return Subject(model_dir, model_name=model_dir)


def _search(config: SearchConfig, subject: Subject) -> GraphSearchResult:
    # 1. The network on its graph, and what the question names.
    device = prepare.resolve_device(config.device)
    if is_ultra(subject.model_name if subject.run is None else subject.run.final_model):
        raise ConfigError(f"{subject.name} is of ULTRA, which knows no questions: it completes graphs",
                          hint="ragtrain eval ranks the true ends of triples with it")  # fmt: skip
    retriever = retriever_of(subject)
    path = graph_path_of(retriever, config.graph)
    scorer = Scorer.open(retriever, path, device)
    graph = scorer.found.graph
    links = scorer.link([config.question])[0]
    seeds = tuple(place for place, _ in links)
    if not seeds:
        log.warning("the question names no entity of the graph: what follows goes by its words alone")

    # 2. Entities and documents.
    vector = scorer.vectors([config.question], kept=False).to(device)
    question = GraphQuestion("", config.question, (), seeds, (), ())
    explainer = Explainer(scorer.network, scorer.tensors, scorer.features, vector[0], seeds, scorer.weights)
    logits = explainer.logits.float().cpu()
    scores, order = _documents(config, scorer, question, logits)
    best = logits.argsort(descending=True, stable=True)
    probabilities = torch.sigmoid(logits.double())

    # 3. Paths to the best entities.
    drawn: list[graph_picture.Path] = []
    entities: list[dict[str, Any]] = []
    for place in best[:ENTITIES].tolist():
        found = [_named(scorer, route) for route in explainer.routes(place, PATHS)] if seeds else []
        drawn += found
        row = {"name": graph.entities[place], "score": float(probabilities[place]), "in_question": place in seeds}
        entities.append({**row, "paths": [dataclasses.asdict(each) for each in found]})
    counted = {graph.entities[place] for place in best[: retriever.ranking.ranker_top_k].tolist()}
    documents = [_document(scorer, place, float(scores[place]), counted) for place in order[: config.n_docs].tolist()]

    # 4. What came of it.
    _show(config.question, [{"name": graph.entities[i], "score": s} for i, s in links], documents, entities)
    shown = {row["name"]: row["score"] for row in entities}
    if drawn:
        report.block("Paths from the question to what was found, with their weight", graph_picture.tree(drawn, shown))
    if config.draw is not None:
        titles = [row["title"] or row["id"] for row in documents]
        held = {
            row["id"] if titles.count(title) > 1 else title: row["entities"]
            for title, row in zip(titles, documents, strict=True)
        }
        config.draw.parent.mkdir(parents=True, exist_ok=True)
        config.draw.write_text(graph_picture.svg(config.question, drawn, shown, held), encoding="utf-8")
        log.info("drawn in %s", config.draw)
    linked = tuple({"name": graph.entities[place], "score": score} for place, score in links)
    return GraphSearchResult(
        config.question, subject.name, path, linked, tuple(documents), tuple(entities), config.draw
    )


def _documents(config: SearchConfig, scorer: Scorer, question: GraphQuestion, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores (D,) of documents and their order, as training said they are ranked."""
    ranking, graph = scorer.retriever.ranking, scorer.found.graph
    if not graph.documents:
        return torch.zeros(0), torch.zeros(0, dtype=torch.long)
    scores, rarity = scorer.documents(logits.unsqueeze(0))
    fusion = ranking.fusion
    if fusion != "dense" and "index_path" in config.model_fields_set:
        log.warning("%s is not read: the model ranks without vectors", config.index_path)
    if fusion == "dense" and "index_path" not in config.model_fields_set:
        log.warning("the model ranks together with vectors: give --index-path for them; without, it ranks alone")
        fusion = "none"
    if fusion == "bm25":
        words = torch.from_numpy(np.stack([BM25Index.of(graph.documents).scores(question.question)]))
        scores = fuse(scores, words, ranking.fusion_weight)
    elif fusion == "dense":
        dense = Dense(config.index_path, graph, scorer.device)
        scores = fuse(scores, dense.scores([question.question]), ranking.fusion_weight)
    return scores[0], rank_documents(scores, fallback=rarity)[0]


def _named(scorer: Scorer, route: Route) -> graph_picture.Path:
    graph = scorer.found.graph
    hops = []
    for step in route.steps:
        # Of a triple (h, r, t) the head receives the tail's message under r, and the tail the head's under r + R.
        inverse, relation = divmod(step.relation, graph.n_relations)
        source, target = graph.entities[step.source], graph.entities[step.target]
        hops.append(graph_picture.Hop(source, graph.relations[relation], bool(inverse), target, step.weight))
    return graph_picture.Path(tuple(hops), route.mean)


def _document(scorer: Scorer, place: int, score: float, counted: set[str]) -> dict[str, Any]:
    """Return a document with those of its entities that are among the best."""
    graph = scorer.found.graph
    document = graph.documents[place]
    members = graph.document_entities[graph.document_offsets[place] : graph.document_offsets[place + 1]]
    names = dict.fromkeys(graph.entities[i] for i in members.tolist())
    row = {"id": document.id, "title": document.title, "text": document.text}
    held = [name for name in names if name in counted]
    return {**row, "score": score if score > -torch.inf else None, "entities": held}


def _show(
    question: str,
    linked: Sequence[dict[str, Any]],
    documents: Sequence[dict[str, Any]],
    entities: Sequence[dict[str, Any]],
) -> None:
    """Show tables on stderr."""
    named = ", ".join(
        each["name"] if each["score"] == 1 else f"{each['name']} ({each['score']:.2f})" for each in linked
    )
    rows = [
        (rank, row["score"], row["title"] or row["id"], _few(row["entities"])) for rank, row in enumerate(documents, 1)
    ]
    title = f"{question}  (names: {named or 'nothing that the graph has'})"
    report.table(title, ("rank", "score", "document", "by its entities"), rows)
    found = [(f"{row['score']:.3f}", row["name"], _said_of(row)) for row in entities]
    report.table("Entities", ("score", "entity", ""), found)


def _few(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _said_of(entity: dict[str, Any]) -> str:
    paths = len(entity["paths"])
    led = f"{paths} path{'s' if paths != 1 else ''}" if paths else "no path raised its score"
    return f"in the question, {led}" if entity["in_question"] else led
