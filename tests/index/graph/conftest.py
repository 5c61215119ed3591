from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragtrain.graphs import KnowledgeGraph
from ragtrain.index.graph.builder import GraphBuilder
from ragtrain.records import Passage

CORPUS = {
    "Vienna": "Vienna is the capital of Austria.",
    "Austria": "Austria is a country.",
    "Empty": "Nothing was extracted here.",
    "Vienna#2": "Vienna is also a town in Virginia.",
    "維也納": "維也納是奧地利的首都。",
}
MEMBERS = {
    "Vienna": ["vienna", "austria"],
    "Austria": ["austria", "lonely"],
    "Vienna#2": ["vienna", "virginia"],
    "維也納": ["維也納", "奧地利"],
}
TRIPLES = [
    "vienna,capital of,austria",
    "vienna,located in,virginia",
    "vienna,located in,austria",
    "維也納,首都,奧地利",
    "alû,is,démon",
    "vienna,capital of,austria",
]


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    folder = tmp_path / "v1"
    stage = folder / "processed" / "stage1"
    stage.mkdir(parents=True)
    (folder / "raw").mkdir()
    (folder / "raw" / "dataset_corpus.json").write_text(json.dumps(CORPUS))
    (stage / "kg.txt").write_text("\n".join(TRIPLES) + "\n", encoding="utf-8")
    (stage / "document2entities.json").write_text(json.dumps(MEMBERS, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture
def graph() -> KnowledgeGraph:
    """Entities a b c d e; documents 0: a b, 1: b c, 2: none, 3: d."""
    builder = GraphBuilder()
    for head, relation, tail in (("a", "r", "b"), ("b", "s", "c"), ("a", "s", "b"), ("d", "r", "a"), ("e", "r", "e")):
        builder.triple(head, relation, tail)
    builder.triple("c", "r", "a", "valid")
    builder.triple("a", "r", "b", "test")
    for number, names in enumerate((["a", "b"], ["b", "c"], [], ["d"])):
        builder.document(Passage(str(number), f"T{number}", f"text {number}", {"page": number}), names)
    return builder.finish()
