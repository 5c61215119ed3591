"""Questions from files of any known form."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ragtrain.data.formats.custom import custom
from ragtrain.data.formats.fields import kind_of, listed_answers, text_of
from ragtrain.data.formats.files import BadRecordError, byte_lines, decode, digest, plain_suffix, question_files
from ragtrain.data.formats.rows import Container, Row, read_object, read_rows, sniff
from ragtrain.data.formats.shapes import COLUMNS, SHAPES, Shape, find, known_formats, make
from ragtrain.errors import ConfigError, DataError
from ragtrain.records import Question, content_id

log = logging.getLogger("ragtrain")

SKIP_HINT = "correct the line, or leave such lines out and have them counted with --skip-bad-lines"
_SHOWN_PROBLEMS = 5


@dataclasses.dataclass(frozen=True)
class QuestionFile:
    """Questions and what was found where they came from.

    Attributes:
        questions: in the order of the file; ids are unique.
        format: name of the form that was recognised.
        skipped: bad lines left out.
        sha256: of the file as it is on disk; of the names and hashes where there are several.
        path: the file that was read, the first one where there are several.
        unanswered: questions without an answer (unanswerable ones, or retrieval data without answers).
        problems: the first of the bad lines, each in a sentence.
    """

    questions: list[Question]
    format: str
    skipped: int
    sha256: str
    path: Path
    unanswered: int = 0
    problems: tuple[str, ...] = ()


def read_questions(
    path: Path,
    *,
    split: Literal["train", "validation", "test"] = "train",
    question_key: str | None = None,
    answer_key: str | None = None,
    skip_bad_lines: bool = False,
    shapes: Sequence[Shape] = SHAPES,
) -> QuestionFile:
    """Read questions and answers in any known form, which is recognised from extension and first record.

    Ids are the source's own; where it has none, the hash of the question's text, so that the same question has the
    same id in another file (a repeated one gets ``-2``, ``-3``, ...). A source's own id that occurs twice is an error.

    Args:
        path: a file (gzip included) or a folder with one file a split (a dataset folder, save_to_disk, parquet).
        split: which questions of a folder; files are read whole.
        question_key: field that holds the question, where it is not recognised; ``a.b`` reaches into objects.
        answer_key: field that holds the answers, likewise.
        skip_bad_lines: leave out and count records that cannot be read instead of raising.
        shapes: the forms that records may have, most telling first; a single one is that of all records.

    Raises:
        ConfigError: fields are named, and the file is a table without a head.
        DataError: no known form; a record that does not fit it, with file, line and field; no question at all.
    """
    path = Path(path)
    files = question_files(path, split)
    if question_key or answer_key:
        shapes = (custom(question_key, answer_key),)
    reading = _Reading(shapes, skip_bad_lines)
    for file in files:
        reading.add(file)
    pair = _target_of(files[0]) if plain_suffix(files[0]) in (".source", ".target") else None
    if not reading.questions:
        raise DataError(f"holds no questions that can be read ({reading.skipped} bad lines)", path=files[0])
    if reading.skipped:
        log.warning("%s: %d bad lines left out; the first: %s", path, reading.skipped, reading.problems[0])
    return QuestionFile(
        reading.questions,
        reading.format,
        reading.skipped,
        digest([*pair] if pair else [f for file in files for f in _inside(file)]),
        files[0],
        sum(not question.answers for question in reading.questions),
        tuple(reading.problems),
    )


def questions_from_rows(
    rows: Iterable[Mapping[str, Any]], origin: str, *, skip_bad_lines: bool = False
) -> QuestionFile:
    """Read questions from records that are in memory or streamed (a hub's data set) in any known form.

    Raises:
        DataError: as in `read_questions`; ``origin`` stands in place of the path.
    """
    reading = _Reading(SHAPES, skip_bad_lines)
    reading.take(Path(origin), (Row(dict(row), i, place=f"[{i}]") for i, row in enumerate(rows)))
    unanswered = sum(not question.answers for question in reading.questions)
    return QuestionFile(
        reading.questions, reading.format, reading.skipped, "", Path(origin), unanswered, tuple(reading.problems)
    )


def _inside(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


class _Reading:
    """What has been read so far, over the files of one path."""

    def __init__(self, shapes: Sequence[Shape], skip: bool) -> None:
        self.shapes, self.skip = shapes, skip
        self.shape = shapes[0] if len(shapes) == 1 else None
        self.questions: list[Question] = []
        self.format = self.shape.name if self.shape else ""
        self.skipped = 0
        self.problems: list[str] = []
        self._own_ids: dict[str, str] = {}
        self._taken: set[str] = set()

    def add(self, path: Path) -> None:
        """Read one file."""
        if plain_suffix(path) in (".source", ".target"):
            self.format = "source-target"
            self.take(path, _source_target(*_target_of(path)), _SOURCE_TARGET)
            return
        named = dict.fromkeys(name for shape in self.shapes for name in shape.columns)
        container = sniff(path, {*COLUMNS, *(name.lower() for name in named)})
        if container.kind == "json-object":
            self.take(path, _object_rows(path))
        elif container.kind == "table" and container.columns is None:
            if named:
                raise ConfigError(
                    f"{path}: the fields {', '.join(named)} were named, and this table has no head with them"
                )
            self.format = _check_width(container)
            self.take(path, read_rows(container), _DPR_QAS)
        else:
            self.take(path, read_rows(container))

    def take(self, path: Path, rows: Iterable[Row], shape: Shape | None = None) -> None:
        """Turn rows into questions in the form of the first of them."""
        shape = shape or self.shape
        for row in rows:
            try:
                if row.problem is not None:
                    raise row.problem
                if shape is None:
                    shape = _recognise(path, row, self.shapes)
                    self.format = shape.name
                if not isinstance(row.value, list if shape in (_DPR_QAS, _SOURCE_TARGET) else Mapping):
                    raise BadRecordError(f"expected a JSON object, found {kind_of(row.value)}")
                self._keep(shape.read(plain_record(row.value) if isinstance(row.value, Mapping) else row.value), row)
            except BadRecordError as problem:
                self._bad(path, row, problem)

    def _keep(self, question: Question, row: Row) -> None:
        if question.id:
            if question.id in self._own_ids:
                raise BadRecordError(
                    f"{question.id!r} is also the id {self._own_ids[question.id]}; ids are unique", "id"
                )
            self._own_ids[question.id] = f"on line {row.line}" if row.line else f"of {row.place or 'an earlier record'}"
        identifier = question.id or content_id(question.question)
        if identifier in self._taken:
            numbers = itertools.count(2)
            identifier = next(name for n in numbers if (name := f"{identifier}-{n}") not in self._taken)
        self._taken.add(identifier)
        self.questions.append(dataclasses.replace(question, id=identifier))

    def _bad(self, path: Path, row: Row, problem: BadRecordError) -> None:
        field = ".".join(part for part in (row.place, problem.field) if part) or None
        error = DataError(problem.message, path=path, line=row.line, field=field, hint=SKIP_HINT)
        if not self.skip:
            raise error from problem
        self.skipped += 1
        if len(self.problems) < _SHOWN_PROBLEMS:
            self.problems.append(error.message)


def _recognise(path: Path, row: Row, shapes: Sequence[Shape]) -> Shape:
    if not isinstance(row.value, Mapping):
        raise BadRecordError(f"expected a JSON object, found {kind_of(row.value)}")
    shape = find(row.value, shapes)
    if shape is None:
        seen = ", ".join(map(str, row.value)) or "none"
        raise DataError(
            f"no known form of question has the fields {seen}",
            path=path,
            line=row.line,
            hint="name the fields with --question-key and --answer-key, or use one of the known forms:\n"
            + known_formats(),
        )
    return shape


def plain_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with what JSON or UTF-8 cannot hold (dates, bytes, half a surrogate pair) as text that they can."""
    return {str(_plain(str(key))): _plain(item) for key, item in record.items()}


def _plain(value: object) -> object:
    """Return a value with what JSON or UTF-8 cannot hold as text that they can."""
    if isinstance(value, str):
        # JSON may escape half of a surrogate pair; such a text cannot be written again.
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        # Tables have NaN where a cell is empty; JSON has no such number.
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return plain_record(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (datetime.date, datetime.time, decimal.Decimal)):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value


def _object_rows(path: Path) -> Iterator[Row]:
    """Yield the records of one JSON object: SQuAD's articles, TriviaQA's Data, MS MARCO's columns, or itself."""
    value = read_object(path)
    data = value.get("data", value.get("Data"))
    if isinstance(data, list):
        name = "data" if "data" in value else "Data"
        numbers = itertools.count()
        for i, item in enumerate(data):
            if isinstance(item, Mapping) and isinstance(item.get("paragraphs"), list) and "question" not in item:
                yield from _squad_rows(item, f"{name}[{i}]", numbers)
            else:
                yield Row(item, next(numbers), place=f"{name}[{i}]")
    elif isinstance(value.get("query"), Mapping) and value["query"]:
        for number, key in enumerate(value["query"]):
            row = {name: column[key] for name, column in value.items() if isinstance(column, Mapping) and key in column}
            yield Row(row, number, place=f"[{key}]")
    elif value and all(isinstance(text, (str, list)) for text in value.values()) and find(value) is None:
        raise DataError(
            f"a mapping with {len(value)} names was found ({', '.join(itertools.islice(value, 3))}, ...) and no questions",
            path=path,
            hint="a corpus of the form {title: text} is given as passages; known forms of questions:\n"
            + known_formats(),
        )
    else:
        yield Row(value, 0, line=1)


def _squad_rows(article: Mapping[str, Any], place: str, numbers: Iterator[int]) -> Iterator[Row]:
    title = article.get("title", "")
    for j, paragraph in enumerate(article["paragraphs"]):
        where = f"{place}.paragraphs[{j}]"
        if not isinstance(paragraph, Mapping) or not isinstance(paragraph.get("qas"), list):
            problem = BadRecordError("expected a paragraph with context and qas")
            yield Row(None, next(numbers), place=where, problem=problem)
            continue
        for k, qa in enumerate(paragraph["qas"]):
            at = f"{where}.qas[{k}]"
            if not isinstance(qa, Mapping):
                yield Row(
                    None, next(numbers), place=at, problem=BadRecordError(f"expected an object, found {kind_of(qa)}")
                )
                continue
            extra = {} if "context" not in paragraph else {"context": paragraph["context"]}
            yield Row({"answers": None, **qa, **extra, "title": title}, next(numbers), place=at)


def _check_width(container: Container) -> str:
    if container.width != 2:
        raise DataError(
            f"a table without a known head was found, with {container.width} columns; expected two, question and answers",
            path=container.path,
            line=1,
            hint="give the first line names such as question and answer; known forms:\n" + known_formats(),
        )
    return "dpr-qas"


def _read_cells(cells: Sequence[str]) -> Question:
    record = {"question": cells[0], "answers": cells[1]}
    answers = listed_answers(cells[1], "answers")
    if not answers:
        raise BadRecordError("expected at least one answer, found none", "answers")
    return make(record, "question", answers)


def _read_pair(pair: Sequence[str]) -> Question:
    return make(
        {"source": pair[0], "target": pair[1]}, "source", (text_of({"target": pair[1]}, "target"),), used=("target",)
    )


_DPR_QAS = Shape("dpr-qas", "question, answers", lambda value: isinstance(value, list), _read_cells)
_SOURCE_TARGET = Shape("source-target", "source, target", lambda value: isinstance(value, list), _read_pair)


def _target_of(path: Path) -> tuple[Path, Path]:
    """Return the pair of files that a ``.source`` or ``.target`` file belongs to."""
    name = path.name
    source, target = (path.with_name(name.replace(plain_suffix(path), end)) for end in (".source", ".target"))
    for file in (source, target):
        if not file.is_file():
            raise DataError(f"{name} is one half of a pair, and its other half is missing", path=file)
    return source, target


def _source_target(source: Path, target: Path) -> Iterator[Row]:
    for number, (asked, answered) in enumerate(itertools.zip_longest(byte_lines(source), byte_lines(target))):
        if asked is None or answered is None:
            longer = target if asked is None else source
            raise DataError(
                f"{longer.name} goes on after the last line of the other half", path=longer, line=number + 1
            )
        if not asked[1].strip() and not answered[1].strip():
            continue
        try:
            yield Row([decode(asked[1]), decode(answered[1])], number, asked[0])
        except BadRecordError as problem:
            yield Row(None, number, asked[0], problem=problem)
