"""Questions about a knowledge graph: what they mention, and which documents answer them.

Read are, recognised by their fields:

* questions of GFM-RAG 1.0 (``processed/stage1/{train,test}.json``): ``question_entities``, ``supporting_entities`` and
  ``supporting_facts`` by name and title; the raw files, which have the last only, are questions that nothing is linked to;
* of 2.0: ``start_nodes`` and ``target_nodes`` by type, ``supporting_documents``;
* questions of datasets, as ``ragtrain data fetch`` writes them: of their ``documents`` those that are gold, by id or title;
* our own JSON lines, by name and document id, so that they hold for a graph to which documents are added::

    {"id", "question", "answers", "entities", "supporting_entities", "supporting_documents", "missing_documents", "hops"}

A question keeps its place whatever is unknown of it: names that the graph does not have are counted, and a question without
entities, or without any of its documents, stays in every denominator.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ragtrain.data.formats.fields import answers_of, kind_of, text_of
from ragtrain.data.formats.files import BadRecordError, digest
from ragtrain.data.formats.rows import read_rows, sniff
from ragtrain.data.splits import question_words, rank
from ragtrain.errors import DataError
from ragtrain.graphs import GraphQuestion
from ragtrain.records import content_id, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ragtrain.graphs import KnowledgeGraph

log = logging.getLogger("ragtrain")

SKIP_HINT = "correct it, or leave such questions out with --skip-bad-lines"
#: Folder of questions in the folder of a graph of ours.
FOLDER = "questions"
#: File names of the splits, the first that is there; written under the first.
SPLITS = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev", "val"),
    "test": ("test",),
}
#: Where below the folder of a graph its questions may be, with entities linked first.
_PLACES = (FOLDER, ".", "processed/stage1", "stage1", "raw")
_HOPS = re.compile(r"(\d+)hop\d*__")
#: Hops of the types of HotpotQA and 2WikiMultihopQA.
_HOPS_OF_TYPE = {"bridge": 2, "comparison": 2, "compositional": 2, "inference": 2, "bridge_comparison": 4}


@dataclasses.dataclass
class QuestionCounts:
    """What was found, and what the graph does not have.

    Attributes:
        questions: read.
        unlinked: of these, those without an entity in the graph.
        unsupported: of these, those none of whose documents the graph has.
        unknown_entities: names of entities in questions that the graph does not have.
        unknown_supporting: names of supporting entities that it does not have.
        missing_documents: supporting documents that it does not have.
        ambiguous_titles: supporting titles that several documents have; all of them support.
        skipped_lines: records that could not be read.
    """

    questions: int = 0
    unlinked: int = 0
    unsupported: int = 0
    unknown_entities: int = 0
    unknown_supporting: int = 0
    missing_documents: int = 0
    ambiguous_titles: int = 0
    skipped_lines: int = 0


@dataclasses.dataclass(frozen=True)
class GraphQuestionFile:
    """Questions about a graph, the file they are from, its SHA-256, and counts."""

    questions: list[GraphQuestion]
    path: Path
    sha256: str
    counts: QuestionCounts

    def about(self) -> dict[str, Any]:
        """Return what ``data.json`` says of them."""
        return {"path": str(self.path.resolve()), "sha256": self.sha256, **dataclasses.asdict(self.counts)}


def find_graph_questions(folder: Path, split: str) -> Path | None:
    """Return the file with the questions of a split in the folder of a graph, those with linked entities first."""
    names = [f"{name}{suffix}" for name in SPLITS.get(split, (split,)) for suffix in (".jsonl", ".json")]
    return next((path for place in _PLACES for name in names if (path := folder / place / name).is_file()), None)


def read_graph_questions(
    path: Path, graph: KnowledgeGraph, split: str = "train", *, skip_bad_lines: bool = False
) -> GraphQuestionFile:
    """Read questions about a graph.

    Args:
        path: a file, or the folder of a graph.
        graph: whose names they use.
        split: ``train``, ``valid`` or ``test``: which file of a folder.
        skip_bad_lines: leave out records that cannot be read, and count them.

    Raises:
        DataError: there is no such file, or a record cannot be read; file, line and field are named.
    """
    file = find_graph_questions(path, split) if path.is_dir() else path
    if file is None:
        looked = ", ".join(f"{place}/{split}.json[l]" for place in _PLACES)
        raise DataError(
            f"holds no {split} questions; looked for {looked}", path=path, hint="name the file of questions"
        )
    reader = _Reader(graph)
    questions: list[GraphQuestion] = []
    lines: dict[str, int] = {}
    for row in read_rows(sniff(file, ("id", "question"))):
        try:
            if row.problem is not None:
                raise row.problem
            question = reader.question(row.value)
            if question.id in lines:
                raise BadRecordError(
                    f"{question.id!r} is the id of the question in line {lines[question.id]} too", "id"
                )
        except BadRecordError as error:
            if not skip_bad_lines:
                raise DataError(error.message, path=file, line=row.line, field=error.field, hint=SKIP_HINT) from error
            reader.counts.skipped_lines += 1
            continue
        lines[question.id] = row.line or 0
        questions.append(question)
    if not questions:
        raise DataError("there is no question", path=file, hint="give a file with at least one question")
    counts = reader.counts
    counts.questions = len(questions)
    counts.unlinked = sum(not question.entities for question in questions)
    counts.unsupported = sum(
        question.missing_documents > 0 and not question.supporting_documents for question in questions
    )
    _tell(file, counts)
    return GraphQuestionFile(questions, file, digest([file]), counts)


def write_graph_questions(path: Path, questions: Iterable[GraphQuestion], graph: KnowledgeGraph) -> int:
    """Write questions about a graph as JSON lines, by name, and return how many there were."""
    return write_jsonl(path, (_row(question, graph) for question in questions))


def _row(question: GraphQuestion, graph: KnowledgeGraph) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "entities": [graph.entities[i] for i in question.entities],
        "supporting_entities": [graph.entities[i] for i in question.supporting_entities],
        "supporting_documents": [graph.documents[i].id for i in question.supporting_documents],
        "missing_documents": question.missing_documents,
        "hops": question.hops,
    }


class _Reader:
    """Turns records into questions with ids of one graph, and counts what it does not know."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        self.graph, self.counts = graph, QuestionCounts()
        self._entities = {name: number for number, name in enumerate(graph.entities)}
        self._documents = {document.id: number for number, document in enumerate(graph.documents)}
        self._titles: dict[str, list[int]] = defaultdict(list)
        for number, document in enumerate(graph.documents):
            self._titles[document.title].append(number)

    def question(self, record: object) -> GraphQuestion:
        """Return the question in a record.

        Raises:
            BadRecordError: it is none.
        """
        if not isinstance(record, dict):
            raise BadRecordError(f"expected an object with a question, found {kind_of(record)}")
        text = text_of(record, "question")
        given = next((record[name] for name in ("id", "_id") if record.get(name) not in (None, "")), None)
        identifier = content_id(text) if given is None else str(given)
        documents, missing = self._support(record)
        entities, unknown = self._ids(_names(record, "entities", "question_entities", "start_nodes"))
        self.counts.unknown_entities += unknown
        return GraphQuestion(
            id=identifier,
            question=text,
            answers=_answers(record),
            entities=entities,
            supporting_entities=self._supporting_entities(record, documents),
            supporting_documents=documents,
            missing_documents=missing,
            hops=_hops(record, identifier),
        )

    def _ids(self, names: Iterable[str]) -> tuple[tuple[int, ...], int]:
        """Return the ids of names, each once, and how many names the graph does not have."""
        found = {name: self._entities.get(name, self._entities.get(name.strip())) for name in names}
        known = dict.fromkeys(number for number in found.values() if number is not None)
        return tuple(known), sum(number is None for number in found.values())

    def _support(self, record: dict[str, Any]) -> tuple[tuple[int, ...], int]:
        """Return the places of supporting documents, and how many the graph does not have."""
        titles = _titles(record) or self._gold(record)
        places: dict[int, None] = {}
        missing = 0
        for title in titles:
            by_title = self._titles.get(title, [])
            found = [self._documents[title]] if title in self._documents else by_title
            places.update(dict.fromkeys(found))
            missing += not found
            self.counts.ambiguous_titles += len(found) > 1
        given = record.get("missing_documents", 0)
        if not isinstance(given, int) or isinstance(given, bool) or given < 0:
            raise BadRecordError(f"expected a count, found {kind_of(given)} {given!r}", "missing_documents")
        self.counts.missing_documents += missing + given
        return tuple(places), missing + given

    def _gold(self, record: dict[str, Any]) -> list[str]:
        """Return ids or titles of the documents that a question of a dataset marks as gold; ids where the graph has them."""
        documents = record.get("documents")
        gold = [d for d in documents if isinstance(d, dict) and d.get("is_gold")] if isinstance(documents, list) else []
        names: dict[str, None] = {}
        for document in gold:
            identifier, title = str(document.get("id", "")), str(document.get("title") or "")
            place = self._documents.get(identifier)
            same = place is not None and self.graph.documents[place].title == title
            names[identifier if same or not title else title] = None
        return list(names)

    def _supporting_entities(self, record: dict[str, Any], documents: Sequence[int]) -> tuple[int, ...]:
        """Return the supporting entities that the record names; where it names none, those of its documents."""
        if not {"supporting_entities", "target_nodes"} & set(record):
            offsets, members = self.graph.document_offsets, self.graph.document_entities
            held = [int(i) for d in documents for i in members[offsets[d] : offsets[d + 1]]]
            return tuple(dict.fromkeys(held))
        entities, unknown = self._ids(_names(record, "supporting_entities", "target_nodes"))
        self.counts.unknown_supporting += unknown
        return entities


def _names(record: dict[str, Any], *fields: str) -> list[str]:
    """Return the names in the first of the fields that is there: a list, or lists by type of node."""
    field = next((field for field in fields if record.get(field) is not None), None)
    if field is None:
        return []
    value = record[field]
    lists = [(f"{field}.{key}", part) for key, part in value.items()] if isinstance(value, dict) else [(field, value)]
    names: dict[str, None] = {}
    for where, part in lists:
        if not isinstance(part, list) or not all(isinstance(name, str) for name in part):
            raise BadRecordError(f"expected a list of names, found {kind_of(part)}", where)
        names.update(dict.fromkeys(part))
    return list(names)


def _titles(record: dict[str, Any]) -> list[str]:
    """Return ids or titles of supporting documents, each once; HotpotQA's ``[title, sentence]`` gives the title."""
    field = next((name for name in ("supporting_documents", "supporting_facts") if record.get(name) is not None), None)
    if field is None:
        targets = record.get("target_nodes")
        documents = targets.get("document", []) if isinstance(targets, dict) else []
        return _names({"target_nodes": documents}, "target_nodes")
    value = record[field]
    if isinstance(value, dict):  # of the hub's copies of HotpotQA: {"title": […], "sent_id": […]}
        value = value.get("title")
    if not isinstance(value, list):
        raise BadRecordError(f"expected a list of titles, found {kind_of(value)}", field)
    titles: dict[str, None] = {}
    for item in value:
        title = item[0] if isinstance(item, list) and item else item
        if not isinstance(title, str):
            raise BadRecordError(f"expected titles, found {kind_of(title)}", field)
        titles[title] = None
    return list(titles)


def _answers(record: dict[str, Any]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for field in ("answers", "answer", "answer_aliases", "aliases"):
        value = record.get(field)
        if value is not None:
            found.update(dict.fromkeys(answers_of(value, field)))
    return tuple(found)


def _hops(record: dict[str, Any], identifier: str) -> int:
    """Return the number of hops: given, or in an id of MuSiQue (``2hop__…``), or of the question's type; else 0."""
    for field in ("hops", "n_hops", "hop"):
        value = record.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    match = _HOPS.match(identifier)
    return int(match.group(1)) if match else _HOPS_OF_TYPE.get(str(record.get("type", "")), 0)


def _tell(path: Path, counts: QuestionCounts) -> None:
    log.info("%s: %d questions", path, counts.questions)
    without = {
        "questions without an entity of the graph": counts.unlinked,
        "questions none of whose supporting documents is in the graph": counts.unsupported,
        "supporting documents that are not in the graph": counts.missing_documents,
        "records that cannot be read": counts.skipped_lines,
    }
    for what, count in without.items():
        if count:
            log.warning("%s: %s: %d", path, what, count)


def cut_questions(
    questions: Sequence[GraphQuestion], fraction: float, seed: int
) -> tuple[list[GraphQuestion], list[GraphQuestion]]:
    """Set a share of the questions aside and return the others and these, both in their order.

    A question that is asked twice, in the same words, is never on both sides.

    Raises:
        DataError: there is one question only.
    """
    groups = _ordered(questions, seed)
    if len(groups) < 2:
        raise DataError(f"{len(groups)} question cannot be cut in two", hint="give a file of validation questions")
    return _part(questions, set(groups[: min(max(1, round(len(groups) * fraction)), len(groups) - 1)]))


def fold_questions(
    questions: Sequence[GraphQuestion], folds: int, seed: int
) -> list[tuple[list[GraphQuestion], list[GraphQuestion]]]:
    """Return for each of ``folds`` folds the questions to train on and those to measure on; each is measured on once.

    Raises:
        DataError: there are fewer questions than folds.
    """
    groups = _ordered(questions, seed)
    if not 2 <= folds <= len(groups):
        raise DataError(
            f"{len(groups)} different questions cannot be cut into {folds} folds", hint="ask for fewer folds"
        )
    return [_part(questions, set(groups[fold::folds])) for fold in range(folds)]


def _ordered(questions: Sequence[GraphQuestion], seed: int) -> list[str]:
    """Return the different wordings in a seeded order that does not depend on that of the file."""
    return sorted({question_words(q.question) for q in questions}, key=lambda words: rank("cut", seed, words))


def _part(questions: Sequence[GraphQuestion], aside: set[str]) -> tuple[list[GraphQuestion], list[GraphQuestion]]:
    sides: tuple[list[GraphQuestion], list[GraphQuestion]] = ([], [])
    for question in questions:
        sides[question_words(question.question) in aside].append(question)
    return sides
