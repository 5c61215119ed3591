"""The questions to teach: any known form, and forms that hold questions alone."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ragtrain.config.commands import FetchConfig
from ragtrain.data import fetch, splits
from ragtrain.data.formats import read_questions
from ragtrain.data.formats.custom import custom
from ragtrain.data.formats.files import byte_lines, decode, plain_suffix
from ragtrain.data.formats.shapes import SHAPES, Shape, make, usual_documents
from ragtrain.errors import DataError
from ragtrain.records import Question, content_id, sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from ragtrain.config.commands.teach import TeachConfig

log = logging.getLogger("ragtrain")

_NAMES = ("question", "query", "Question", "utterance")


@dataclasses.dataclass(frozen=True)
class Asked:
    """Questions, and where they stand.

    Attributes:
        questions: in the order of the file; ids are unique.
        path: file or folder that was named.
        about: format, hash, rows read, bad lines left out.
    """

    questions: list[Question]
    path: Path
    about: dict[str, Any]


def questions_path(config: TeachConfig) -> Path:
    """Return the file or folder of the questions; where none is named, the set is fetched.

    Raises:
        DataError: it cannot be fetched.
    """
    if config.questions is not None:
        return config.questions
    folder = Path("data") / config.dataset
    if not (folder / f"{config.split}.jsonl").is_file():
        log.info("no file of questions was given: the set %s is fetched into %s", config.dataset, folder)
        fetch.run(FetchConfig(dataset=config.dataset))
    return folder


def read_asked(config: TeachConfig, path: Path) -> Asked:
    """Read the questions, and draw those that are wanted.

    Raises:
        ConfigError: a field is named, and the file is a table without a head.
        DataError: no known form, a bad line, or no question.
    """
    plain = path.is_file() and not config.question_key and _is_plain(path)
    if plain:
        questions = list(_plain_questions(path))
        about: dict[str, Any] = {"format": "questions", "sha256": sha256_file(path), "skipped_lines": 0}
    else:
        found = read_questions(
            path, split=config.split, skip_bad_lines=config.skip_bad_lines,
            shapes=_shapes(config.question_key, config.answer_key),
        )  # fmt: skip
        questions = found.questions
        about = {"format": found.format, "sha256": found.sha256, "skipped_lines": found.skipped}
    if not questions:
        raise DataError("holds no questions", path=path)
    about = {"path": str(path.resolve()), **about, "read": len(questions)}
    if config.max_questions is not None:
        questions = splits.draw(questions, config.max_questions, config.seed)
    return Asked(questions, path, {**about, "used": len(questions)})


def _shapes(question_key: str | None, answer_key: str | None) -> tuple[Shape, ...]:
    """Return the forms of records; questions need no answers here."""
    if answer_key:
        return (custom(question_key, answer_key),)
    if question_key:
        return (_alone((question_key,)),)
    return (*SHAPES, _alone(_NAMES))


def _alone(names: tuple[str, ...]) -> Shape:
    """Return the form of a record with a question, maybe with documents, and no answer that is known."""

    def read(record: Mapping[str, Any]) -> Question:
        name = next((name for name in names if name in record), names[0])
        documents = usual_documents(record)
        return make(record, name, (), documents=documents, used=("documents", "ctxs", "contexts", "passages"))

    return Shape("questions", names[0], lambda record: any(name in record for name in names), read, names)


def _is_plain(path: Path) -> bool:
    """Say whether a file holds questions and nothing else: text lines, or MS MARCO's numbers with questions."""
    if plain_suffix(path) == ".txt":
        return True
    if plain_suffix(path) != ".tsv":
        return False
    head = [line.split(b"\t") for _, line in itertools.islice(byte_lines(path), 20) if line.strip()]
    return bool(head) and all(len(cells) == 2 and cells[0].strip().isdigit() for cells in head)


def _plain_questions(path: Path) -> Iterator[Question]:
    """Yield a question a line; a number before a tab is its id, else the hash of its text, each once."""
    taken: set[str] = set()
    repeated = 0
    for _, line in byte_lines(path):
        number, tab, text = decode(line).strip().partition("\t")
        if not number:
            continue
        question, own = (text.strip(), number) if tab else (number, content_id(number))
        if not question or own in taken:
            repeated += own in taken
            continue
        taken.add(own)
        yield Question(id=own, question=question, answers=())
    if repeated:
        log.warning("%s: %d questions stand there more than once, and are asked once", path, repeated)
