"""``ragtrain index prepare --graph``: passages to a knowledge graph, and questions linked to it.

Triples come from an earlier extraction, from a language model, or from titles, mentions and the words between them. Entities
that mean the same are joined, documents without a triple stay, and questions are written beside the graph by name. Asked
again for what is there, it does nothing and says so.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.errors import ConfigError, DataError
from ragtrain.index.graph.store import MANIFEST_FILE, open_graph, read_manifest
from ragtrain.prepare.graph import change, questions
from ragtrain.prepare.graph.lock import changing
from ragtrain.prepare.graph.making import Maker
from ragtrain.prepare.graph.result import GraphResult, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands import PrepareConfig
    from ragtrain.graphs import KnowledgeGraph
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")


def run(config: PrepareConfig) -> GraphResult:
    """Make the graph of a configuration, add to it, or take passages out of it.

    Raises:
        ConfigError: options do not go together, another graph is there, another process changes it, or the language model
            cannot be reached.
        DataError: passages, an extraction or questions cannot be read, or nothing is mentioned in them.
        Interrupted: it was stopped; the same command goes on where it was.
    """
    check(config)
    maker = Maker(config)
    with contextlib.nullcontext() if config.dry_run else changing(maker.path):
        if config.graph_build.add or config.graph_build.delete_ids is not None:
            return change.run(maker)
        return _make(maker)


def _make(maker: Maker) -> GraphResult:
    config = maker.config
    questions.find(config.graph_build.graph_questions)  # refused before any work is done
    passages = maker.passages()
    if config.dry_run:
        return _plan(maker, passages)
    request = maker.request(passages)
    there = _finished(maker, request)
    if there is not None:
        linked, known = maker.questions(there, None)
        return maker.result(there, reused=known, questions=linked)
    made = maker.make(passages)
    vectors = maker.vectors(made.graph.entities)
    made = maker.join(made, vectors)
    maker.save(made, request)
    linked, _ = maker.questions(made.graph, vectors)
    done = maker.result(made.graph, questions=linked, about=made.about)
    show(done)
    return done


def check(config: PrepareConfig) -> None:
    """Refuse what does not go together.

    Raises:
        ConfigError: it is found.
    """
    graph = config.graph_build
    if config.index_path is not None:
        raise ConfigError("graph and index_path do not go together", hint="adopt an index, or make a graph")
    others = [name for name, given in (("bm25", config.bm25), ("export_hf", config.export_hf is not None),
                                       ("index_type", config.index_type != "flat")) if given]  # fmt: skip
    if others:
        hint = "make an index of the passages by itself, without --graph"
        raise ConfigError(
            f"a graph has no vectors of passages: {', '.join(others)} cannot be had with graph", hint=hint
        )
    if graph.openie is not None and graph.llm is not None:
        raise ConfigError("openie and llm do not go together", hint="triples come from one of them")
    if graph.llm is not None and graph.llm.startswith(("http://", "https://")) and graph.llm_model is None:
        raise ConfigError(f"llm_model: which model of {graph.llm} is not said", hint="name it with --llm-model")
    changes = [name for name, given in (("add", graph.add), ("delete_ids", graph.delete_ids is not None)) if given]
    if changes and config.output_dir is None:
        raise ConfigError(f"{' and '.join(changes)}: no graph is named", hint="give its folder with --output-dir")
    if changes and config.overwrite:
        raise ConfigError(
            f"{' and '.join(changes)} and overwrite do not go together", hint="overwrite makes a graph anew"
        )
    if graph.add and config.passages is None and graph.openie is None:
        raise ConfigError("add: no passages are named", hint="give --passages, or --openie with what was extracted")


def _finished(maker: Maker, request: str) -> KnowledgeGraph | None:
    """Return the graph at the path if it is the one that is asked for, and None if there is room for it.

    Raises:
        ConfigError: another graph is there, and must not be overwritten.
        DataError: a damaged graph is there, and must not be overwritten.
    """
    path = maker.path
    if not (path / MANIFEST_FILE).is_file():
        if (path / "manifest.json").is_file():
            raise ConfigError(f"{path} holds an index of vectors", hint="give another --output-dir")
        return None
    try:
        manifest = read_manifest(path)
        graph = open_graph(path)
    except DataError:
        if maker.config.overwrite:
            return None
        raise
    if manifest["extra"].get("request") == request:
        log.info("%s holds this graph already (same passages and settings): nothing to do for it", path)
        return graph
    if not maker.config.overwrite:
        raise ConfigError(
            f"{path} holds another graph, of {len(graph.documents)} documents",
            hint="give --overwrite to replace it, --add to add these passages to it, or another --output-dir",
        )
    return None


def _plan(maker: Maker, passages: Sequence[Passage]) -> GraphResult:
    """Return what would be made; without a language model that is so quick that it is made and thrown away."""
    plan: dict[str, Any] = {"passages": len(passages), "triples from": maker.how, "output": str(maker.path)}
    if maker.how != "llm":
        made = maker.make(passages)
        graph = made.graph
        plan |= {"documents": len(graph.documents), "entities": graph.n_entities, "relations": graph.n_relations,
                 "triples": len(graph.triples), **made.about}  # fmt: skip
    else:
        plan |= {"language model": maker.settings.llm, "words": sum(len(p.text.split()) for p in passages)}
    encoder = maker.encoder()
    plan["synonyms"] = "by spelling and vectors" if encoder else "by spelling; --encoder would find more"
    for asked in questions.find(maker.settings.graph_questions):
        plan[f"{asked.split} questions"] = str(asked.path)
    report.panel("Plan", list(plan.items()))
    seconds = round(time.monotonic() - maker.started, 3)
    return GraphResult(maker.path, maker.how, seconds=seconds, passages_read=len(passages), plan=plan)
