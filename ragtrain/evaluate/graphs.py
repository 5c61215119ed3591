"""``ragtrain eval`` of graph retrievers: entities of a graph scored for questions, documents ranked by them.

Beside the network stand, on the same questions, what needs no training (words, a random walk, both) and what it is worth together
with them; every difference has its interval. A question counts whether it was linked to an entity or not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
from typing import TYPE_CHECKING, Any

import torch

from ragtrain import metrics, prepare
from ragtrain.config.commands.gfm import GfmConfig
from ragtrain.data.graph_questions import cut_questions, find_graph_questions, read_graph_questions
from ragtrain.errors import ConfigError, DataError
from ragtrain.evaluate import graph_scores, results
from ragtrain.evaluate.graph_model import GraphRetriever, Scorer, graph_path_of, retriever_of
from ragtrain.evaluate.graph_scores import GraphRecord, ranks_of
from ragtrain.evaluate.graph_systems import Dense, Systems, evaluated
from ragtrain.evaluate.results import EvalResult
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from ragtrain.config.commands import EvalConfig
    from ragtrain.data.graph_questions import GraphQuestionFile
    from ragtrain.evaluate.resolve import Subject
    from ragtrain.graphs import GraphQuestion

log = logging.getLogger("ragtrain")

#: Depths at which recall is told where none are asked for: those of the papers, and 20.
DEPTHS = (2, 5, 10, 20)
#: Entities of each question that ``predictions.jsonl`` holds.
ENTITIES = 20


@dataclasses.dataclass(frozen=True)
class Asked:
    """The questions to answer.

    Attributes:
        questions: in the order of the file.
        file: what was read; of a split that was cut off, the file it was cut from.
        split: ``test``, ``validation`` or ``given``.
        linked_here: none came with entities, and they were looked up by their names.
    """

    questions: list[GraphQuestion]
    file: GraphQuestionFile
    split: str
    linked_here: bool = False


def run(config: EvalConfig, subject: Subject) -> EvalResult:
    """Rank the documents of a graph for its test questions and write what came of it.

    Raises:
        ConfigError: model, graph or questions cannot be found out, or the output folder holds another evaluation.
        DataError: a file of them cannot be read, or the graph has no documents.
    """
    # 1. What is evaluated, on what.
    device = prepare.resolve_device(config.device)
    output = results.output_folder(config, subject)
    retriever = retriever_of(subject)
    fusion = config.fusion or retriever.ranking.fusion
    if fusion == "dense" and config.index_path is None:
        raise ConfigError("--fusion dense needs vectors of the graph's documents",
                          hint="give --index-path, an index of the same passages (ragtrain index prepare)")  # fmt: skip
    path = graph_path_of(retriever, config.graph)
    scorer = Scorer.open(retriever, path, device, skip_bad_lines=config.skip_bad_lines)
    graph = scorer.found.graph
    if not graph.documents:
        raise DataError("this graph has no documents to retrieve", path=path)
    asked = _linked(questions_of(config, retriever, scorer), scorer)
    asked = dataclasses.replace(asked, questions=_drawn(asked.questions, config))
    if not any(each.supporting_documents or each.missing_documents for each in asked.questions):
        log.warning("%s: no question says which documents answer it: rankings are written, and nothing is measured",
                    asked.file.path)  # fmt: skip
    dense = None if config.index_path is None else Dense(config.index_path, graph, device)
    if dense is not None and dense.without:
        log.warning("%s has %d of the graph's %d documents; the others have no vector", config.index_path,
                    len(graph.documents) - dense.without, len(graph.documents))  # fmt: skip
    settings = {
        "recall_at": sorted(set(config.recall_at if "recall_at" in config.model_fields_set else DEPTHS)),
        "fusion": fusion,
        "n_docs": config.n_docs or max(DEPTHS),
        "seed": config.seed,
        "batch_size": config.batch_size,
        **{name: value for name, value in retriever.ranking.model_dump(mode="json").items() if name != "fusion"},
    }
    described = _describe(retriever, scorer, asked, dense, settings)

    # 2. The same evaluation is not made twice, and another one is not overwritten unasked.
    fingerprint = described["fingerprint"]
    results.check_document(config.output_file, fingerprint, overwrite=config.overwrite)
    found = results.earlier(output, fingerprint, overwrite=config.overwrite)
    if found is not None:
        log.info("%s holds this evaluation already: nothing was done (--overwrite does it again)", output)
        summary = found
    else:
        # 3. Rankings, figures, files.
        systems = Systems(scorer, retriever.ranking.fusion_weight, dense)
        name = evaluated(fusion)
        records = list(answer(systems, asked.questions, name, settings))
        summary = {
            **graph_scores.summarise(records, systems.names, name, settings["recall_at"], config.seed),
            **described,
            "device": str(device),
        }
        results.write(output, summary, (record.row for record in records))

    # 4. What came of it.
    if config.output_file is not None:
        write_json(config.output_file, {**summary, "predictions": results.read_predictions(output)})
        log.info("metrics and predictions in %s", config.output_file)
    graph_scores.show(summary, subject.name)
    compared = output.parent if output.name == "eval" else output
    log.info("rankings and metrics in %s; next: ragtrain compare OTHER_RUN %s", output, compared)
    return EvalResult(output, summary, reused=found is not None)


def questions_of(config: EvalConfig, retriever: GraphRetriever, scorer: Scorer) -> Asked:
    """Read the questions to answer; the log says which they are.

    They are those given, else the test questions in the folder of the graph, else those by which the run was validated.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    graph, folder = scorer.found.graph, scorer.found.folder
    skip = config.skip_bad_lines

    def read(path: Path, split: str) -> GraphQuestionFile:
        return read_graph_questions(path, graph, split, skip_bad_lines=skip)

    if config.test_data is not None:
        file = read(config.test_data, "test")
        _warn_of_training(retriever, file)
        return Asked(file.questions, file, "given")
    if (own := find_graph_questions(folder, "test")) is not None:
        file = read(own, "test")
        return Asked(file.questions, file, "test")
    if (own := find_graph_questions(folder, "valid")) is not None:
        file = read(own, "valid")
        log.warning("%s has no test questions: these are its validation questions%s", folder, _chosen(retriever))
        return Asked(file.questions, file, "validation")
    cut = _held_out(retriever, scorer, skip)
    if cut is None:
        raise DataError("holds neither test nor validation questions", path=folder, hint="name a file with --test-data")
    return cut


def _held_out(retriever: GraphRetriever, scorer: Scorer, skip: bool) -> Asked | None:
    """Return the questions that a run held out of its training questions, or None for none."""
    run = retriever.run
    trained = any(each.get("fingerprint") == scorer.found.graph.fingerprint for each in retriever.graphs)
    if run is None or not trained:
        return None
    config = GfmConfig.model_validate(run.config)
    asked, folder = config.data, scorer.found.folder
    if asked.val_data is not None:
        file = read_graph_questions(asked.val_data, scorer.found.graph, "valid", skip_bad_lines=skip)
        log.warning("%s has no test questions: these are those of %s%s", folder, asked.val_data, _chosen(retriever))
        return Asked(file.questions, file, "validation")
    train = asked.train_data or find_graph_questions(folder, "train")
    if train is None or asked.val_graphs or not asked.dev_split:
        return None
    file = read_graph_questions(train, scorer.found.graph, "train", skip_bad_lines=skip)
    questions = cut_questions(file.questions, asked.dev_split, config.loop.seed)[1]
    log.warning("%s has no test questions: these are the %d that the run held out of its %d training questions%s", folder,
                len(questions), len(file.questions), _chosen(retriever))  # fmt: skip
    return Asked(questions, file, "validation")


def _chosen(retriever: GraphRetriever) -> str:
    return ", by which its best checkpoint was chosen" if retriever.run is not None else ""


def _warn_of_training(retriever: GraphRetriever, file: GraphQuestionFile) -> None:
    """Warn where questions are those of the training."""
    if retriever.run is None:
        return
    recorded = retriever.run.path / "data.json"
    if recorded.is_file() and file.sha256 in recorded.read_text(encoding="utf-8"):
        log.warning("%s are questions that the run was trained with: what follows says how well it remembers them, not how "
                    "well it retrieves", file.path)  # fmt: skip


def _linked(asked: Asked, scorer: Scorer) -> Asked:
    """Return questions with the entities that they name, where none of them came with any."""
    if any(question.entities for question in asked.questions):
        return asked
    links = scorer.link([each.question for each in asked.questions])
    questions = [
        dataclasses.replace(each, entities=tuple(place for place, _ in found))
        for each, found in zip(asked.questions, links, strict=True)
    ]
    log.info("no question of %s is linked to an entity: %d of %d name one that the graph has", asked.file.path,
             sum(bool(each.entities) for each in questions), len(questions))  # fmt: skip
    return dataclasses.replace(asked, questions=questions, linked_here=True)


def _drawn(questions: list[GraphQuestion], config: EvalConfig) -> list[GraphQuestion]:
    if config.num_samples is None or config.num_samples >= len(questions):
        return questions
    chosen = sorted(random.Random(config.seed).sample(range(len(questions)), config.num_samples))
    return [questions[index] for index in chosen]


def answer(
    systems: Systems, questions: Sequence[GraphQuestion], name: str, settings: dict[str, Any]
) -> Iterator[GraphRecord]:
    """Yield a record for each question, in order.

    Args:
        systems: all rankings.
        questions: what is asked.
        name: of the ranking whose documents are written.
        settings: ``batch_size`` and ``n_docs``.
    """
    for some, logits in systems.scorer.batches(questions, settings["batch_size"]):
        ranked = systems.rank(some, logits)
        for row, question in enumerate(some):
            scores, order = ranked[name]
            ranks = {each: ranks_of(found[1][row], question.supporting_documents) for each, found in ranked.items()}
            entities = logits[row].argsort(descending=True, stable=True)
            yield GraphRecord(
                question=question,
                ranks=ranks,
                entity_ranks=ranks_of(entities, question.supporting_entities),
                row={
                    **_asked_row(question, ranks, name),
                    **_documents_row(systems.scorer, question, scores[row], order[row, : settings["n_docs"]]),
                    "entities": entity_rows(systems.scorer, question, logits[row], entities[:ENTITIES]),
                },
            )


def _asked_row(question: GraphQuestion, ranks: dict[str, tuple[int, ...]], name: str) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "hops": question.hops,
        "linked": len(question.entities),
        "gold": len(question.supporting_documents) + question.missing_documents,
        "missing_documents": question.missing_documents,
        "gold_ranks": list(ranks[name]),
        "ranks": {each: list(found) for each, found in ranks.items()},
    }


def _documents_row(scorer: Scorer, question: GraphQuestion, scores: Tensor, order: Tensor) -> dict[str, Any]:
    """Return the documents that were found, with scores, and the first that has an answer in its words."""
    documents, gold = scorer.found.graph.documents, set(question.supporting_documents)
    rows: list[dict[str, Any]] = []
    for place in order.tolist():
        document, score = documents[place], float(scores[place])
        row: dict[str, Any] = {"id": document.id, "title": document.title, "text": document.text}
        rows.append({**row, "score": score if score > -torch.inf else None, "is_gold": place in gold})
    texts = (f"{row['title']} {row['text']}" for row in rows)
    return {"first_hit": metrics.first_hit(question.answers, texts), "depth": len(rows), "documents": rows}


def entity_rows(scorer: Scorer, question: GraphQuestion, logits: Tensor, order: Tensor) -> list[dict[str, Any]]:
    """Return entities with the probabilities that the network gives them, best first.

    Args:
        scorer: of the graph.
        question: whose own entities are marked.
        logits: (N,).
        order: (k,) entities.
    """
    names, seeds, gold = scorer.found.graph.entities, set(question.entities), set(question.supporting_entities)
    probabilities = torch.sigmoid(logits.double())
    return [
        {
            "name": names[place],
            "score": float(probabilities[place]),
            "in_question": place in seeds,
            "is_gold": place in gold,
        }
        for place in order.tolist()
    ]


def _describe(
    retriever: GraphRetriever, scorer: Scorer, asked: Asked, dense: Dense | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return everything that an evaluation depends on, and its fingerprint."""
    ids = hashlib.sha256("\n".join(question.id for question in asked.questions).encode()).hexdigest()
    described: dict[str, Any] = {
        "kind": "gfm",
        "model": {
            "name": retriever.name,
            "stage": retriever.stage,
            "checkpoint": retriever.checkpoint,
            "fingerprint": retriever.fingerprint(),
            "text_encoder": {"name": retriever.text_encoder, "fingerprint": scorer.encoder.fingerprint()},
        },
        "graph": scorer.found.about,
        "data": {**asked.file.about(), "split": asked.split, "linked_here": asked.linked_here, "ids_sha256": ids},
        "settings": settings,
        "versions": results.versions(),
    }
    if dense is not None:
        manifest = dense.index.manifest
        hashes = {name: manifest.get(name) for name in ("passages_sha256", "vectors_sha256")}
        described["index"] = {"path": str(dense.index.path), "count": dense.index.count, **hashes}
    defining = {
        "model": [described["model"]["fingerprint"], described["model"]["text_encoder"]["fingerprint"]],
        "graph": scorer.found.graph.fingerprint,
        "data": [asked.file.sha256, ids, asked.linked_here],
        "index": {name: value for name, value in described.get("index", {}).items() if name.endswith("sha256")},
        "settings": {name: value for name, value in settings.items() if name != "batch_size"},
    }
    return {**described, "fingerprint": results.fingerprint_of(defining)}
