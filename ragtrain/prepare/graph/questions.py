"""Questions of any form that ragtrain reads, linked to a graph and written beside it.

``GRAPH/questions/{train,valid,test}.jsonl`` name entities and documents (ragtrain.data.graph_questions reads them), and
``GRAPH/questions/about.json`` says of which graph and files they are, so that nothing is linked twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragtrain.data.formats import read_questions
from ragtrain.data.formats.files import SPLIT_NAMES
from ragtrain.data.graph_questions import FOLDER
from ragtrain.errors import ConfigError, DataError
from ragtrain.records import content_id, sha256_file, write_json, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ragtrain.graphs import KnowledgeGraph
    from ragtrain.prepare.graph.link import EntityLinker
    from ragtrain.records import Document, Question

log = logging.getLogger("ragtrain")

Split = Literal["train", "validation", "test"]
#: File names of the splits beside a graph.
WRITTEN: dict[Split, str] = {"train": "train", "validation": "valid", "test": "test"}
ABOUT_FILE = "about.json"
#: Changes whenever the same questions would be linked otherwise.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Asked:
    """Questions to be linked: a file, or a split of a folder."""

    path: Path
    split: Split


def find(paths: Iterable[Path]) -> list[Asked]:
    """Return which questions are of which split: by the names of files, or all splits of a dataset folder.

    Raises:
        ConfigError: a name tells no split, or two tell the same.
        DataError: a folder holds no questions, or a path is not there.
    """
    found: list[Asked] = []
    for path in paths:
        if not path.exists():
            raise DataError("there is no such file or folder", path=path, hint="check --graph-questions")
        found += _splits(path) if path.is_dir() else [Asked(path, _split(path))]
    for split in WRITTEN:
        same = [str(asked.path) for asked in found if asked.split == split]
        if len(same) > 1:
            raise ConfigError(
                f"graph_questions: {' and '.join(same)} are both {split} questions", hint="give one file a split"
            )
    return found


def _splits(folder: Path) -> list[Asked]:
    found = [
        Asked(file, split)
        for split in WRITTEN
        for name in SPLIT_NAMES[split]
        if (file := next((f for f in (folder / f"{name}.jsonl", folder / f"{name}.json") if f.is_file()), None))
    ]
    if not found:
        raise DataError(
            "holds no train, validation or test questions (.jsonl, .json)", path=folder, hint="name the files"
        )
    return found


def _split(path: Path) -> Split:
    words = set(re.split(r"[^a-z]+", path.name.lower()))
    for split, names in SPLIT_NAMES.items():
        if words & {*names, *(["eval"] if split == "validation" else [])}:
            return split  # type: ignore[return-value]
    raise ConfigError(
        f"graph_questions: the name {path.name!r} does not say whether these are train, valid or test questions",
        hint="put one of these words into the file's name, as in train.jsonl",
    )


def link_questions(
    asked: Sequence[Asked], graph: KnowledgeGraph, folder: Path, linker: Callable[[], EntityLinker], settings: object,
    *, skip_bad_lines: bool = False,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """Write the questions beside a graph, unless they are there, and return counts by split and whether they were there.

    Args:
        asked: what to link.
        graph: to which.
        folder: of the graph.
        linker: made when it is needed.
        settings: what else decides the result, as JSON.
        skip_bad_lines: leave out what cannot be read.

    Raises:
        DataError: a file cannot be read.
    """
    inside = folder / FOLDER
    about = inside / ABOUT_FILE
    key = _request(asked, graph, settings)
    before = known(folder)
    if before.get("request") == key and all((inside / f"{WRITTEN[a.split]}.jsonl").is_file() for a in asked):
        return dict(before["splits"]), True
    about.unlink(missing_ok=True)  # until all are written, none of them is what it says
    linked = linker()
    finder = _Documents(graph)
    splits: dict[str, Any] = {}
    for each in asked:
        file = read_questions(each.path, split=each.split, skip_bad_lines=skip_bad_lines)
        rows, counts = _rows(file.questions, graph, linked, finder)
        write_jsonl(inside / f"{WRITTEN[each.split]}.jsonl", rows)
        splits[WRITTEN[each.split]] = {
            "path": str(each.path.resolve()),
            "sha256": file.sha256,
            **counts,
            "skipped_lines": file.skipped,
        }
    write_json(about, {"request": key, "graph": graph.fingerprint, "splits": splits})
    return splits, False


def _request(asked: Sequence[Asked], graph: KnowledgeGraph, settings: object) -> str:
    files = [(each.split, sha256_file(each.path)) for each in asked]
    text = json.dumps([VERSION, graph.fingerprint, files, settings], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def known(folder: Path) -> dict[str, Any]:
    """Return what stands beside a graph of its linked questions; nothing where there are none."""
    try:
        value = json.loads((folder / FOLDER / ABOUT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("splits"), dict) else {}


def recorded(folder: Path) -> tuple[Path, ...]:
    """Return the files that the questions beside a graph were read from; none if one is no longer what it was."""
    paths = []
    for counts in known(folder).get("splits", {}).values():
        path = Path(counts["path"])
        if not path.is_file() or sha256_file(path) != counts["sha256"]:
            return ()
        paths.append(path)
    return tuple(paths)


def stale(folder: Path, graph: KnowledgeGraph) -> bool:
    """Return whether linked questions stand beside a graph that they were not linked to."""
    about = known(folder)
    return bool(about) and about.get("graph") != graph.fingerprint


def _rows(
    questions: Sequence[Question], graph: KnowledgeGraph, linker: EntityLinker, finder: _Documents
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the questions as rows, and counts of what is unknown."""
    counts = {"questions": len(questions), "unlinked": 0, "unsupported": 0, "missing_documents": 0, "entities": 0}
    rows = []
    for question, links in zip(questions, linker.link([q.question for q in questions]), strict=True):
        gold, missing = finder.gold(question)
        counts["unlinked"] += not links
        counts["unsupported"] += not gold
        counts["missing_documents"] += missing
        counts["entities"] += len(links)
        row: dict[str, Any] = {
            "id": question.id, "question": question.question, "answers": list(question.answers),
            "entities": [graph.entities[number] for number, _ in links], "entity_scores": [score for _, score in links],
            "supporting_documents": [graph.documents[place].id for place in gold], "missing_documents": missing,
        }  # fmt: skip
        row.update({name: question.extra[name] for name in ("hops", "type") if name in question.extra})
        rows.append(row)
    return rows, counts


class _Documents:
    """Finds the documents of a graph that a question names as its gold ones: by id, by text, by title."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._documents = graph.documents
        self._ids = {document.id: place for place, document in enumerate(graph.documents)}
        self._texts: dict[str, list[int]] = defaultdict(list)
        self._titles: dict[str, list[int]] = defaultdict(list)
        for place, document in enumerate(graph.documents):
            self._texts[content_id(document.title, document.text)].append(place)
            self._titles[content_id(document.title)].append(place)

    def gold(self, question: Question) -> tuple[list[int], int]:
        """Return the places of a question's supporting documents, and how many the graph does not have."""
        places: dict[int, None] = {}
        missing = 0
        for document in (document for document in question.documents if document.is_gold):
            found = self._places(document)
            places.update(dict.fromkeys(found))
            missing += not found
        if not places and not missing:
            for title in _titles(question):
                found = [self._ids[title]] if title in self._ids else self._titles.get(content_id(title), [])
                places.update(dict.fromkeys(found))
                missing += not found
        return list(places), missing

    def _places(self, document: Document) -> list[int]:
        place = self._ids.get(document.id)
        if place is not None and content_id(self._documents[place].title) == content_id(document.title):
            return [place]
        same = self._texts.get(content_id(document.title, document.text))
        if same:
            return same
        return self._titles.get(content_id(document.title), []) if document.title.strip() else []


def _titles(question: Question) -> list[str]:
    """Return ids or titles in the fields of graph questions, where a file has no documents of its own."""
    for field in ("supporting_documents", "supporting_facts"):
        value = question.extra.get(field)
        if isinstance(value, list):
            titles = [item[0] if isinstance(item, list) and item else item for item in value]
            return list(dict.fromkeys(title for title in titles if isinstance(title, str)))
    return []
