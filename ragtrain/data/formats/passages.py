"""Passages from files of any known form, streamed where the form allows."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragtrain.data.formats import shapes
from ragtrain.data.formats.fields import Record, id_of, joined, kind_of, optional_text
from ragtrain.data.formats.files import (
    BadRecordError,
    digest,
    is_text_document,
    passage_files,
    plain_stem,
    whole_text,
)
from ragtrain.data.formats.questions import SKIP_HINT, plain_record, read_questions
from ragtrain.data.formats.rows import Container, Row, read_object, read_rows, sniff
from ragtrain.errors import DataError
from ragtrain.records import Passage, split_contents

log = logging.getLogger("ragtrain")

_SHOWN_PROBLEMS = 5
_REPEATED_TITLE = re.compile(r"#\d+$")
_HEADING = re.compile(r"\A(?:---\n.*?\n---\n)?\s*#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class PassageShape:
    """A form of passage record: its name, the fields that give it away, and how it becomes a Passage."""

    name: str
    fields: str
    fits: Callable[[Any], bool]
    read: Callable[[Any], Passage]


def _has(*fields: str) -> Callable[[Any], bool]:
    return lambda record: isinstance(record, Mapping) and all(field in record for field in fields)


def _make(record: Record, title: str, text: str, used: tuple[str, ...]) -> Passage:
    if not title.strip() and not text.strip():
        raise BadRecordError("expected a passage with a title or a text, found neither", used[0])
    taken = {"id", "_id", "docid", "passage_id", "psg_id", "doc_id", "pid", "title", "text", *used}
    meta = {str(name): value for name, value in record.items() if name not in taken and value is not None}
    return Passage(id_of(record), title.strip(), text.strip(), meta)


def _string(record: Record, field: str) -> str:
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecordError(f"expected a text, found {kind_of(value)}", field)
    return value


def _titled(text: str) -> Callable[[Record], Passage]:
    return lambda record: _make(record, _string(record, "title"), _string(record, text), (text,))


def _own(record: Record) -> Passage:
    passage = _make(record, _string(record, "title"), _string(record, "text"), ("text",))
    section = optional_text(record, "section")
    if section and passage.title and not passage.title.endswith(f": {section}"):
        # Atlas puts the section behind the title; its own reader joins them so.
        return dataclasses.replace(
            passage, title=f"{passage.title}: {section}", meta={**passage.meta, "section": section}
        )
    return passage


def _contents(record: Record) -> Passage:
    contents, title = _string(record, "contents"), _string(record, "title")
    first, text = split_contents(contents)
    if title and first and first != title:
        first, text = title, contents  # the first line belongs to the text
    return _make(record, title or first, text, ("contents",))


def _kilt(record: Record) -> Passage:
    title = _string(record, "wikipedia_title")
    text = record["text"]
    if not isinstance(text, list) or not all(isinstance(part, str) for part in text):
        raise BadRecordError(f"expected a list of paragraphs, found {kind_of(text)}", "text")
    paragraphs = [part.strip() for part in text if part.strip()]
    # The first paragraph of a KILT page is its title; heads of sections are written "Section::::".
    body = [part for i, part in enumerate(paragraphs) if not (i == 0 and part == title.strip())]
    body = [part for part in body if not part.startswith("Section::::")]
    identifier = record.get("wikipedia_id")
    kept = {name: record[name] for name in ("categories",) if name in record}
    made = _make({**kept, "id": identifier}, title, "\n".join(body), ("text",))
    return dataclasses.replace(made, id=str(identifier) if identifier is not None else made.id)


def _cells(title: int, text: int, identifier: int | None = None) -> Callable[[Any], Passage]:
    def read(cells: Sequence[str]) -> Passage:
        record = {} if identifier is None else {"id": cells[identifier]}
        return _make(record, cells[title] if title >= 0 else "", cells[text], ("text",))

    return read


#: Most telling first.
SHAPES = (
    PassageShape("kilt-ks", "wikipedia_id, wikipedia_title, text: [...]", _has("wikipedia_title", "text"), _kilt),
    PassageShape("flashrag", "id, contents (FlashRAG, Pyserini)", _has("contents"), _contents),
    PassageShape("beir", "_id, title, text", _has("_id", "text"), _titled("text")),
    PassageShape("tevatron", "docid, document_text, or docid, title, text", _has("docid", "document_text"), _titled("document_text")),
    PassageShape("tevatron", "docid, title, text", _has("docid", "text"), _titled("text")),
    PassageShape("dpr-psgs", "TSV with the head id, text, title", lambda r: _has("id", "text", "title")(r) and list(r) == ["id", "text", "title"],
                 _titled("text")),
    PassageShape("ragtrain", "id, title, text[, section] (ours, Atlas, Hugging Face's wiki_dpr)", _has("title", "text"), _own),
    PassageShape("musique-corpus", "title, paragraph_text", _has("paragraph_text"), _titled("paragraph_text")),
    PassageShape("passage-text", "id, passage", _has("passage"), _titled("passage")),
    PassageShape("passage-text", "id, passage_text", _has("passage_text"), _titled("passage_text")),
    PassageShape("text-only", "text", _has("text"), _titled("text")),
)  # fmt: skip

_FILE_FORMS = (
    ("hf-research", "CSV or TSV without head: title TAB text"),
    ("ms-marco-collection", "TSV without head: number TAB text"),
    ("ms-marco-docs", "TSV without head: id TAB url TAB title TAB body"),
    ("title-mapping", "one JSON object {title: text}"),
    ("text-files", "a .txt or .md file or a folder of them, a document a file"),
    ("question files", "documents that stand beside questions (SQuAD, HotpotQA, DPR ctxs, ...)"),
)
_COLUMNS = shapes.COLUMNS | {
    "id", "docid", "title", "text", "contents", "document_text", "passage", "passage_text", "pid", "section", "url",
}  # fmt: skip


def known_passage_formats() -> str:
    """Return a line for each known form, for error messages."""
    return "\n".join(f"  {name}: {fields}" for name, fields in (*((s.name, s.fields) for s in SHAPES), *_FILE_FORMS))


class PassageReader:
    """Passages of a path, read anew at each iteration.

    Ids are the source's own, in which a repeated one is an error; a source without ids gets ``FILE-0``, ``FILE-1``, ...
    (text files: the file's path within the folder; mappings: the title).

    Attributes:
        path: what was asked for.
        files: what is read, in order.
        format: name of the form that was recognised.
        skipped: bad lines left out by the latest iteration.
        problems: the first of them, each in a sentence.
    """

    def __init__(self, path: Path, *, skip_bad_lines: bool = False) -> None:
        self.path = Path(path)
        self.files = passage_files(self.path)
        self.skipped = 0
        self.problems: list[str] = []
        self._skip = skip_bad_lines
        self.format = ""
        self._seen = _Seen()
        # The first passage is read at once, so that a wrong file is refused before any work is done.
        if next(iter(self), None) is None:
            raise DataError(f"holds no passages that can be read ({self.skipped} bad lines)", path=self.path)

    def sha256(self) -> str:
        """Return the SHA-256 of the file, or of names and hashes where there are several."""
        return digest([f for file in self.files for f in (sorted(file.glob("*")) if file.is_dir() else [file])])

    def __iter__(self) -> Iterator[Passage]:
        self.skipped, self.problems, self._seen = 0, [], _Seen()
        numbers = itertools.count()
        for file in self.files:
            yield from self._file(file, numbers)
        if self.skipped:
            log.warning("%s: %d bad lines left out; the first: %s", self.path, self.skipped, self.problems[0])

    def _file(self, path: Path, numbers: Iterator[int]) -> Iterator[Passage]:
        if not path.is_dir() and is_text_document(path):
            self.format = "text-files"
            yield from self._rows(path, _text_rows(path, self.path), _AS_IT_IS, numbers)
            return
        container = sniff(path, _COLUMNS)
        if container.kind == "json-object":
            value = read_object(path)
            if not _is_mapping(value):
                yield from self._beside_questions(path, numbers)
                return
            self.format = "title-mapping"
            yield from self._rows(path, _mapping_rows(value), _AS_IT_IS, numbers)
            return
        rows = read_rows(container)
        first, rows = _peek(rows, self._skip)
        if first is None:
            return
        if container.kind == "table" and container.columns is None:
            if container.width == 2 and isinstance(first.value, list) and first.value[1].startswith(("['", '["')):
                yield from self._beside_questions(path, numbers)
                return
            shape = _headless(container, first)
        elif first.problem is not None:
            shape = None
        else:
            found = _find(first.value)
            if found is None and shapes.find(first.value) is not None:
                yield from self._beside_questions(path, numbers)
                return
            shape = found or _unknown(path, first)
        self.format = shape.name if shape else self.format
        yield from self._rows(path, rows, shape or SHAPES[0], numbers)

    def _rows(self, path: Path, rows: Iterator[Row], shape: PassageShape, numbers: Iterator[int]) -> Iterator[Passage]:
        stem = plain_stem(path)
        for row in rows:
            number = next(numbers)
            try:
                if row.problem is not None:
                    raise row.problem
                if not shape.fits(row.value):
                    fields = ", ".join(map(str, row.value)) if isinstance(row.value, Mapping) else kind_of(row.value)
                    raise BadRecordError(f"expected {shape.fields}, found {fields}")
                passage = shape.read(plain_record(row.value) if isinstance(row.value, Mapping) else row.value)
                if not passage.id:
                    passage = dataclasses.replace(passage, id=f"{stem}-{number}")
                if not self._seen.add(passage.id):
                    raise BadRecordError(
                        f"{passage.id!r} is the id of an earlier passage as well; ids are unique", "id"
                    )
            except BadRecordError as problem:
                self._bad(path, row, problem)
                continue
            yield passage

    def _bad(self, path: Path, row: Row, problem: BadRecordError) -> None:
        field = ".".join(part for part in (row.place, problem.field) if part) or None
        error = DataError(problem.message, path=path, line=row.line, field=field, hint=SKIP_HINT)
        if not self._skip:
            raise error from problem
        self.skipped += 1
        if len(self.problems) < _SHOWN_PROBLEMS:
            self.problems.append(error.message)

    def _beside_questions(self, path: Path, numbers: Iterator[int]) -> Iterator[Passage]:
        """Yield the documents of a question file, each once."""
        read = read_questions(path, skip_bad_lines=self._skip)
        self.format, self.skipped = f"documents of {read.format}", self.skipped + read.skipped
        self.problems.extend(read.problems)
        found = False
        for question in read.questions:
            for each in question.documents:
                if self._seen.add(each.id):
                    found = True
                    next(numbers)
                    yield Passage(each.id, each.title, each.text)
        if not found:
            raise DataError(
                f"these are questions ({read.format}) without documents; passages were expected",
                path=path,
                hint="known forms of passages:\n" + known_passage_formats(),
            )


def iter_passages(path: Path, *, skip_bad_lines: bool = False) -> PassageReader:
    """Return the passages of a file or folder in any known form, recognised from extension and first record.

    Args:
        path: a file (gzip included); a folder: a dataset folder, BEIR's, save_to_disk, parquet, text files.
        skip_bad_lines: leave out and count records that cannot be read instead of raising.

    Raises:
        DataError: no known form; a record that does not fit it, with file, line and field; no passage at all.
    """
    return PassageReader(path, skip_bad_lines=skip_bad_lines)


class _Seen:
    """Which ids have occurred; consecutive numbers, as the large corpora have them, cost no memory."""

    def __init__(self) -> None:
        self._start: int | None = None
        self._next = 0
        self._others: set[int] = set()

    def add(self, identifier: str) -> bool:
        """Note an id and return whether it is new."""
        if identifier.isascii() and identifier.isdigit() and str(int(identifier[:18])) == identifier:
            number = int(identifier)
            if self._start is None:
                self._start = self._next = number
            if number == self._next:
                self._next += 1
                return hash(identifier) not in self._others
            if self._start <= number < self._next:
                return False
        key = hash(identifier)
        new = key not in self._others
        self._others.add(key)
        return new


_AS_IT_IS = PassageShape("", "a passage", lambda value: isinstance(value, Passage), lambda passage: passage)


def _peek(rows: Iterator[Row], skip: bool) -> tuple[Row | None, Iterator[Row]]:
    """Return the first row that tells the form, and all rows again."""
    before: list[Row] = []
    for row in rows:
        before.append(row)
        if row.problem is None or not skip:
            break
    return (before[-1] if before else None), itertools.chain(before, rows)


def _find(value: object) -> PassageShape | None:
    return next((shape for shape in SHAPES if shape.fits(value)), None)


def _unknown(path: Path, row: Row) -> PassageShape:
    seen = ", ".join(map(str, row.value)) if isinstance(row.value, Mapping) else kind_of(row.value)
    raise DataError(
        f"no known form of passage has the fields {seen or 'none'}",
        path=path,
        line=row.line,
        hint="rename the fields to id, title and text; known forms of passages:\n" + known_passage_formats(),
    )


def _headless(container: Container, first: Row) -> PassageShape:
    cells = first.value if isinstance(first.value, list) else []
    if container.width == 2:
        if cells and cells[0].strip().isdigit():
            return PassageShape("ms-marco-collection", "number, text", _is_cells, _cells(-1, 1, 0))
        return PassageShape("hf-research", "title, text", _is_cells, _cells(0, 1))
    if container.width == 4 and cells and cells[1].startswith("http"):
        return PassageShape("ms-marco-docs", "id, url, title, body", _is_cells, _cells(2, 3, 0))
    raise DataError(
        f"a table without a known head was found, with {container.width} columns: {', '.join(cells)[:80]}",
        path=container.path,
        line=first.line,
        hint="give the first line names such as id, title and text; known forms:\n" + known_passage_formats(),
    )


def _is_cells(value: object) -> bool:
    return isinstance(value, list)


def _is_mapping(value: Mapping[str, Any]) -> bool:
    """Return whether an object is {title: text}: many texts (or lists of sentences), none under a known field name."""
    known = set(_COLUMNS) - {"title"}
    if not value or known & value.keys():
        return False
    return all(
        isinstance(text, str) or (isinstance(text, list) and all(isinstance(part, str) for part in text))
        for text in value.values()
    )


def _mapping_rows(value: Mapping[str, Any]) -> Iterator[Row]:
    for number, (title, text) in enumerate(value.items()):
        # GFM-RAG's stage 1 tells repeated titles apart as "Title#2"; the mark is no part of the title.
        base = _REPEATED_TITLE.sub("", title)
        shown = base if base != title and base in value else title
        try:
            passage = _make({"id": title}, shown, joined(text, title), ("text",))
            yield Row(passage, number, place=f"[{title!r}]")
        except BadRecordError as problem:
            yield Row(None, number, place=f"[{title!r}]", problem=BadRecordError(problem.message))


def _text_rows(path: Path, root: Path) -> Iterator[Row]:
    text = whole_text(path).strip()
    heading = _HEADING.match(text) if path.suffix.lower() in (".md", ".markdown") else None
    title = heading.group(1).strip() if heading else plain_stem(path)
    body = text[heading.end() :].strip() if heading else text
    if not text:
        yield Row(None, 0, problem=BadRecordError("expected a text, found an empty file"))
        return
    identifier = path.relative_to(root).as_posix() if root.is_dir() else path.name
    yield Row(Passage(identifier, title, body), 0)
