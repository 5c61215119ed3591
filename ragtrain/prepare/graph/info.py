"""What ``ragtrain index info`` says of a graph: ours, or one of another tool."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.data.graph_questions import FOLDER
from ragtrain.errors import DataError
from ragtrain.index.graph import read_v1, read_v2
from ragtrain.index.graph.read import load_graph
from ragtrain.index.graph.store import MANIFEST_FILE, open_graph, read_manifest
from ragtrain.prepare.graph import provenance, questions
from ragtrain.prepare.graph.synonyms import EQUIVALENT
from ragtrain.prepare.verify import Check, Verification

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.graphs import KnowledgeGraph

#: Relations named, the most frequent first.
_SHOWN = 5
_MADE = {"openie": "an earlier extraction", "llm": "a language model", "mentions": "titles and mentions"}


@dataclasses.dataclass(frozen=True)
class Explained:
    """Facts, checks and the next command, as ``InfoResult`` has them."""

    facts: dict[str, Any]
    checks: dict[str, Any]
    next_step: str


def is_graph(path: Path) -> bool:
    """Return whether a path is a graph's folder: ours, or one of GFM-RAG."""
    folder = path.parent if path.name == MANIFEST_FILE else path
    stages = (folder, folder / "processed" / "stage1", folder / "stage1")
    theirs = any((stage / name).is_file() for stage in stages for name in (read_v1.TRIPLES_FILE, read_v2.NODES_FILE))
    return (folder / MANIFEST_FILE).is_file() or theirs


def explain(path: Path) -> Explained:
    """Explain a graph.

    Raises:
        DataError: its description, or a graph of another tool, cannot be read.
    """
    folder = path.parent if path.name == MANIFEST_FILE else path
    if not (folder / MANIFEST_FILE).is_file():
        read = load_graph(folder)
        facts = {"kind": f"graph of another tool: {read.about['form']}", **_sizes(read.graph)}
        checks = Verification((Check("files", "ok", "all of it could be read"),)).to_json()
        return Explained(
            facts, checks, shlex.join(["ragtrain", "index", "prepare", "--graph", "--openie", str(folder)])
        )
    manifest = read_manifest(folder)
    extra = manifest["extra"]
    facts = {
        "kind": "knowledge graph of ragtrain", "triples_from": _MADE.get(extra.get("how"), "unknown"),
        "fingerprint": manifest["fingerprint"],
    }  # fmt: skip
    try:
        graph = open_graph(folder)
        provenance.read(folder, extra.get("sources"), graph)
    except DataError as error:
        sizes = {name: manifest[name] for name in ("documents", "entities", "relations", "triples")}
        checks = Verification((Check("files", "failed", str(error), error.hint),)).to_json()
        return Explained(facts | sizes, checks, "ragtrain index prepare --graph --overwrite …")
    found = [Check("files", "ok", f"all {len(manifest['files'])} files have the SHA-256 that was written")]
    encoder = extra.get("encoder")
    facts |= _sizes(graph) | {
        "source": extra.get("passages"), "extraction": extra.get("openie"), "settings": extra.get("settings"),
        "encoder_of_synonyms": encoder["name"] if encoder else None, "made": _made(extra),
        "files": {name: entry["size"] for name, entry in manifest["files"].items()},
    }  # fmt: skip
    linked = questions.known(folder)
    if linked:
        facts["questions"] = {split: counts["questions"] for split, counts in linked["splits"].items()}
        facts["questions_without_entity"] = {split: counts["unlinked"] for split, counts in linked["splits"].items()}
        stale = linked.get("graph") != graph.fingerprint
        message = "were linked to an earlier state of the graph" if stale else "were linked to this graph"
        hint = "give --graph-questions again" if stale else None
        found.append(Check("questions", "warning" if stale else "ok", message, hint))
    words = ["ragtrain", "train", "gfm", "--graphs", str(folder)]
    stage = "finetune" if (folder / FOLDER / "train.jsonl").is_file() else "pretrain"
    return Explained(facts, Verification(tuple(found)).to_json(), shlex.join([*words, "--stage", stage]))


def _sizes(graph: KnowledgeGraph) -> dict[str, Any]:
    """Return sizes of a graph, and what tells whether it is a good one: degrees, empty documents, frequent relations."""
    held = np.diff(graph.document_offsets)
    degree = np.bincount(graph.triples[:, [0, 2]].reshape(-1), minlength=graph.n_entities)
    used = np.bincount(graph.triples[:, 1], minlength=graph.n_relations)
    in_document = np.zeros(graph.n_entities, dtype=bool)
    in_document[graph.document_entities] = True
    most = np.argsort(-used, kind="stable")[:_SHOWN]
    synonyms = int(used[graph.relations.index(EQUIVALENT)]) if EQUIVALENT in graph.relations else 0
    return {
        "documents": len(graph.documents), "documents_without_entities": int((held == 0).sum()),
        "entities": graph.n_entities, "entities_of_deleted_passages": int(((degree == 0) & ~in_document).sum()),
        "entities_of_a_document": round(float(held.mean()), 1) if len(held) else 0.0,
        "triples_of_an_entity": round(2 * len(graph.triples) / max(1, graph.n_entities), 1),
        "relations": graph.n_relations, "triples": len(graph.triples), "synonyms": synonyms,
        "frequent_relations": {graph.relations[i]: int(used[i]) for i in most if used[i]},
        "held_out": {split: len(triples) for split, triples in graph.held_out.items()} or None,
    }  # fmt: skip


def _made(extra: dict[str, Any]) -> dict[str, Any] | None:
    kept = {name: extra[name] for name in ("malformed", "answers", "changes") if extra.get(name)}
    return kept or None
