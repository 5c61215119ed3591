r"""What a language model extracted from passages, as HippoRAG and GFM-RAG write it: entities and triples by passage.

``{"docs": [{"idx": …, "passage": "title\ntext", "extracted_entities": […], "extracted_triples": [[h, r, t], …]}, …], …}``

Source: ``save_openie_results`` of OSU-NLP-Group/HippoRAG (and ``openie_with_retrieval_option_parallel.py`` of its first
version, whose documents also have ``title`` and ``text``). What differs: names are one where they are the same apart from case
and spacing (the first spelling is kept), and no letter is deleted, so that other scripts than Latin survive. Triples that are
no three names are the model's mistakes: they are counted and left out, as there.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ragtrain.errors import DataError
from ragtrain.index.graph.builder import GraphBuilder
from ragtrain.index.graph.lines import BadLines, read_json, shown
from ragtrain.records import Passage, normalize_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What was extracted from one passage.

    Attributes:
        passage: the passage.
        entities: names, also those that no triple has.
        triples: head, relation, tail by name.
        malformed: triples and entities that were none.
    """

    passage: Passage
    entities: tuple[str, ...]
    triples: tuple[tuple[str, str, str], ...]
    malformed: int = 0


def read_extractions(path: Path, bad: BadLines) -> list[Extraction]:
    """Return what an OpenIE file holds, passage by passage. An id that occurs again gets ``#2``, ``#3``, … behind it.

    Raises:
        DataError: it is no such file, or a document, which is named.
    """
    value = read_json(path)
    documents = value.get("docs") if isinstance(value, dict) else value
    if not isinstance(documents, list):
        found = f"the keys {', '.join(map(repr, value))}" if isinstance(value, dict) else shown(value)
        raise DataError(f"expected an object with a list of documents, found {found}", path=path, field="docs")
    read: list[Extraction] = []
    taken: set[str] = set()
    for place, document in enumerate(documents):
        try:
            extraction = _extraction(document, place)
        except _NoDocumentError as error:
            bad.add(str(error), path, field=f"docs[{place}]{error.field}")
            continue
        identifier = _free(extraction.passage.id, taken)
        taken.add(identifier)
        passage = dataclasses.replace(extraction.passage, id=identifier)
        read.append(dataclasses.replace(extraction, passage=passage))
    return read


def build(extractions: Iterable[Extraction]) -> GraphBuilder:
    """Return the graph of extractions, still open; entities of a passage are those named and those of its triples."""
    builder = GraphBuilder()
    names = Names()
    for extraction in extractions:
        inside = []
        for head, relation, tail in extraction.triples:
            builder.triple(names(head), names(relation), names(tail))
            inside += [names(head), names(tail)]
        builder.document(extraction.passage, [*inside, *map(names, extraction.entities)])
    return builder


class Names:
    """Gives a name in the spelling in which it was first seen, whatever its case and spacing."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the first spelling of a name."""
        return self._first.setdefault(normalize_text(name), name)


class _NoDocumentError(Exception):
    """A document of another shape; ``field`` is where, from the document on."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def _extraction(document: object, place: int) -> Extraction:
    if not isinstance(document, dict):
        raise _NoDocumentError(f"expected an object with passage and extracted_triples, found {shown(document)}")
    passage = _passage(document, place)
    names = _list(document, "extracted_entities")
    rows = _list(document, "extracted_triples")
    entities = [name for name in map(_name, names) if name]
    triples = [triple for triple in map(_triple, rows) if triple is not None]
    malformed = len(names) - len(entities) + len(rows) - len(triples)
    return Extraction(passage, tuple(entities), tuple(triples), malformed)


def _passage(document: dict[str, Any], place: int) -> Passage:
    identifier = str(document.get("idx", document.get("id", place)))
    if isinstance(document.get("title"), str) and isinstance(document.get("text"), str):
        return Passage(identifier, document["title"].strip(), document["text"].strip())
    whole = document.get("passage")
    if not isinstance(whole, str) or not whole.strip():
        raise _NoDocumentError(f"expected the passage's text, found {shown(whole)}", ".passage")
    title, newline, text = whole.strip().partition("\n")
    return Passage(identifier, title.strip(), text.strip()) if newline else Passage(identifier, "", title)


def _list(document: dict[str, Any], field: str) -> Sequence[object]:
    value = document.get(field)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _NoDocumentError(f"expected a list, found {shown(value)}", f".{field}")
    return value


def _name(value: object) -> str:
    """Return a name on one line; "" for what is none."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return " ".join(str(value).split())
    return ""


def _triple(value: object) -> tuple[str, str, str] | None:
    names = [_name(part) for part in value] if isinstance(value, list) else []
    return (names[0], names[1], names[2]) if len(names) == 3 and all(names) else None


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    return free
