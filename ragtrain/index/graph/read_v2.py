"""The CSV graph of GFM-RAG 2: typed nodes, relations and edges, each with attributes.

::

    NAME/
    ├── raw/documents.json                   title -> text; optional
    └── processed/stage1/
        ├── nodes.csv                        name,type,attributes (or uid,name,type,attributes)
        ├── relations.csv                    name,attributes
        └── edges.csv                        source,relation,target,attributes

Source: ``docs/workflow/data_format.md`` and ``graph_index_datasets/graph_index_dataset.py`` of RManLuo/gfm-rag at v2.0.0. Ids
are row numbers, as there. Every node is an entity, documents too; the entities of a document are itself and the nodes that an
edge joins it with. Attributes give documents their text and are otherwise only checked. What differs: they may be JSON as
well as Python literals, or both mixed; they and ``raw/documents.json`` may be absent; an edge of a node that is not there
stops the reading instead of being skipped.
"""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

from ragtrain.index.graph.builder import GraphBuilder
from ragtrain.index.graph.lines import BadLines, csv_rows, shown
from ragtrain.index.graph.read_v1 import read_corpus
from ragtrain.records import Passage

if TYPE_CHECKING:
    from pathlib import Path

NODES_FILE, RELATIONS_FILE, EDGES_FILE = "nodes.csv", "relations.csv", "edges.csv"
#: Types of nodes that are documents.
DOCUMENT_TYPES = frozenset({"document", "passage"})
#: Attributes that hold a document's text, the first that is there.
_TEXTS = ("text", "content", "passage", "description")
_CONSTANTS = {"null": None, "true": True, "false": False}


def read_v2(stage: Path, corpus: Path | None, bad: BadLines) -> tuple[GraphBuilder, list[Path]]:
    """Return the graph of a folder, still open, and the files that were read.

    Args:
        stage: where ``nodes.csv`` is.
        corpus: texts of documents.
        bad: what becomes of bad lines.

    Raises:
        DataError: a file is missing or cannot be read; or a line, which is named.
    """
    builder = GraphBuilder()
    documents = _read_nodes(stage / NODES_FILE, builder, bad)
    files = [stage / NODES_FILE, stage / EDGES_FILE]
    if (stage / RELATIONS_FILE).is_file():
        files.insert(1, stage / RELATIONS_FILE)
        _read_relations(stage / RELATIONS_FILE, builder, bad)
    texts: dict[str, str] = {}
    if corpus is not None:
        files.append(corpus)
        texts = read_corpus(corpus, bad)
    # The documents' own nodes first, then their neighbours.
    members = {key: [key] for key in documents}
    _read_edges(stage / EDGES_FILE, builder, members, bad, any_relation=len(builder.relations) == 0)
    for key, (title, text) in documents.items():
        builder.document(Passage(id=key, title=title, text=texts.get(key, text)), members[key])
    for key, text in texts.items():
        if key not in documents:
            builder.document(Passage(id=key, title=key, text=text))
    return builder, files


def _read_nodes(path: Path, builder: GraphBuilder, bad: BadLines) -> dict[str, tuple[str, str]]:
    """Number the nodes and return title and text of those that are documents."""
    documents: dict[str, tuple[str, str]] = {}
    for line, row in csv_rows(path, ("name", "type")):
        if row is None:
            bad.add("has another number of fields than the header", path, line=line)
            continue
        key = (row.get("uid") or row["name"]).strip()
        attributes = _attributes(row, path, line, bad)
        if not key:
            bad.add("is empty", path, line=line, field="name")
        elif key in builder.entities:
            hint = "" if "uid" in row else "; nodes of one name need a column 'uid' that tells them apart"
            bad.add(f"a node above has the same name {key!r}{hint}", path, line=line, field="name")
        elif attributes is not None:
            builder.entity(key)
            if row["type"].strip().casefold() in DOCUMENT_TYPES:
                text = next((str(attributes[name]) for name in _TEXTS if attributes.get(name)), "")
                documents[key] = row["name"].strip(), text
    return documents


def _read_relations(path: Path, builder: GraphBuilder, bad: BadLines) -> None:
    for line, row in csv_rows(path, ("name",)):
        if row is None:
            bad.add("has another number of fields than the header", path, line=line)
            continue
        key = (row.get("uid") or row["name"]).strip()
        if not key:
            bad.add("is empty", path, line=line, field="name")
        elif key in builder.relations:
            bad.add(f"a relation above has the same name {key!r}", path, line=line, field="name")
        elif _attributes(row, path, line, bad) is not None:
            builder.relation(key)


def _read_edges(
    path: Path, builder: GraphBuilder, members: dict[str, list[str]], bad: BadLines, *, any_relation: bool
) -> None:
    for line, row in csv_rows(path, ("source", "relation", "target")):
        if row is None:
            bad.add("has another number of fields than the header", path, line=line)
            continue
        source, relation, target = (row[name].strip() for name in ("source", "relation", "target"))
        unknown = next(
            (name for name, key in (("source", source), ("target", target)) if key not in builder.entities), None
        )
        if unknown is not None:
            bad.add(f"{row[unknown]!r} is no node of {NODES_FILE}", path, line=line, field=unknown)
        elif not relation or (relation not in builder.relations and not any_relation):
            bad.add(f"{relation!r} is no relation of {RELATIONS_FILE}", path, line=line, field="relation")
        elif _attributes(row, path, line, bad) is not None:
            builder.triple(source, relation, target)
            for document, other in ((source, target), (target, source)):
                if document in members and other not in members:
                    members[document].append(other)


def _attributes(row: dict[str, str], path: Path, line: int, bad: BadLines) -> dict[str, Any] | None:
    """Return the attributes of a row, {} where it has none; None where they are bad and left out."""
    text = (row.get("attributes") or "").strip()
    if text in ("", "{}"):
        return {}
    try:
        value = parse_attributes(text)
    except ValueError as error:
        bad.add(str(error), path, line=line, field="attributes")
        return None
    return value


def parse_attributes(text: str) -> dict[str, Any]:
    """Return the attributes in a text: a JSON object, a Python literal, or one with JSON's ``null``, ``true``, ``false``.

    Nothing is evaluated.

    Raises:
        ValueError: it is neither, or no object.
    """
    try:
        value = json.loads(text, strict=False)  # a line break in a text is no mistake worth stopping for
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(_Constants().visit(ast.parse(text, mode="eval")))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"expected a JSON object or a Python dict, found {shown(text)}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"expected an object of attributes, found {shown(value)}")
    return value


class _Constants(ast.NodeTransformer):
    """Puts Python's constants in the place of JSON's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node
