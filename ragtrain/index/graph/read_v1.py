"""The folder of GFM-RAG up to 1.0: triples as comma-separated lines, entities of documents as JSON.

::

    NAME/
    ├── raw/dataset_corpus.json                       title -> text
    └── processed/stage1/
        ├── kg.txt                                    head,relation,tail
        └── document2entities.json                    title -> names of entities

Source: ``gfmrag/datasets/kg_dataset.py`` and ``docs/workflow/kg_index.md`` of RManLuo/gfm-rag at v1.0.0. Ids are those of its
``process``: by first appearance, head, tail, relation. What differs: all relations of a pair are kept, a line that cannot be
read stops instead of being skipped silently, documents without entities stay, and so do entities that only documents name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragtrain.errors import DataError
from ragtrain.index.graph.builder import GraphBuilder
from ragtrain.index.graph.lines import BadLines, read_json, shown, text_lines
from ragtrain.records import Passage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

TRIPLES_FILE, MEMBERS_FILE = "kg.txt", "document2entities.json"
#: Names of the corpus, the first that is there: of 1.0, and of 2.0.
CORPUS_FILES = ("dataset_corpus.json", "documents.json")
DELIMITER = ","


def read_v1(stage: Path, corpus: Path | None, bad: BadLines) -> tuple[GraphBuilder, list[Path]]:
    """Return the graph of a folder, still open, and the files that were read.

    Args:
        stage: where ``kg.txt`` is.
        corpus: the documents; without it they have titles only, those of ``document2entities.json``.
        bad: what becomes of bad lines.

    Raises:
        DataError: a file is missing or cannot be read; or a line, which is named.
    """
    builder = GraphBuilder()
    path = stage / TRIPLES_FILE
    for number, line in text_lines(path):
        parts = [part.strip() for part in line.split(DELIMITER)]
        if len(parts) != 3:
            bad.add(f"expected head,relation,tail, found {len(parts)} parts: {shown(line)}", path, line=number)
        elif not all(parts):
            field = ("head", "relation", "tail")[parts.index("")]
            bad.add(f"is empty in {shown(line)}", path, line=number, field=field)
        else:
            builder.triple(*parts)
    files = [path]
    members: Mapping[str, list[str]] = {}
    if (stage / MEMBERS_FILE).is_file():
        members = read_members(stage / MEMBERS_FILE, bad)
        files.append(stage / MEMBERS_FILE)
    texts: Mapping[str, str] = {}
    if corpus is not None:
        texts = read_corpus(corpus, bad)
        files.append(corpus)
    add_documents(builder, texts, members)
    return builder, files


def add_documents(builder: GraphBuilder, texts: Mapping[str, str], members: Mapping[str, Iterable[str]]) -> None:
    """Give a graph its documents by title: those with texts first, then those of which only entities are known.

    The title is the id. A title that occurs again has ``#2``, ``#3``, … behind it as an id and not as a title.
    """
    known = {**dict.fromkeys(texts), **dict.fromkeys(members)}
    for title in known:
        passage = Passage(id=title, title=_plain_title(title, known), text=texts.get(title, ""))
        builder.document(passage, members.get(title, ()))


def _plain_title(title: str, known: Mapping[str, None]) -> str:
    name, mark, number = title.rpartition("#")
    return name if mark and number.isdecimal() and name in known else title


def read_members(path: Path, bad: BadLines) -> dict[str, list[str]]:
    """Return the names of the entities of each document.

    Raises:
        DataError: the file is no object of lists of names.
    """
    read: dict[str, list[str]] = {}
    for title, names in _items(path, "of lists of entity names"):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            bad.add(f"expected a list of entity names, found {shown(names)}", path, field=title)
            continue
        read[title] = [name.strip() for name in names if name.strip()]
    return read


def read_corpus(path: Path, bad: BadLines) -> dict[str, str]:
    """Return the texts of documents by title: texts, or lists of sentences as HotpotQA has them.

    Raises:
        DataError: the file is no object of texts.
    """
    read: dict[str, str] = {}
    for title, text in _items(path, "of texts by title"):
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            read[title] = "".join(text).strip()
        elif isinstance(text, str):
            read[title] = text
        else:
            bad.add(f"expected a text or a list of sentences, found {shown(text)}", path, field=title)
    return read


def _items(path: Path, expected: str) -> Iterable[tuple[str, Any]]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object {expected}, found {shown(value)}", path=path)
    return value.items()
