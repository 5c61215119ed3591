"""Records whose question and answers stand in fields that a person named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ragtrain.data.formats.fields import Record, required_answers
from ragtrain.data.formats.files import BadRecordError
from ragtrain.data.formats.shapes import DOCUMENT_FIELDS, PAIRS, Shape, find, make, usual_documents

if TYPE_CHECKING:
    from ragtrain.records import Question


def custom(question_key: str | None, answer_key: str | None) -> Shape:
    """Return a form whose question and answers are in the fields a person named; dots reach into objects.

    A field that is not named is looked for under the usual names; documents are found as in the known forms.
    """

    def read(record: Record) -> Question:
        question = question_key or _usual(record, 0, "--question-key")
        answer = answer_key or _usual(record, 1, "--answer-key")
        found = {question: _reach(record, question), answer: _reach(record, answer)}
        base = find(record)
        try:
            documents = usual_documents(record) if base is None else base.read(record).documents
        except BadRecordError:
            documents = usual_documents(record)
        answers = required_answers(found, answer)
        used = (question.split(".")[0], answer.split(".")[0], *DOCUMENT_FIELDS)
        return make({**record, **found}, question, answers, documents=documents, used=(answer, *used))

    return Shape("custom", f"{question_key}, {answer_key}", lambda record: isinstance(record, Mapping), read)


def _usual(record: Record, side: int, flag: str) -> str:
    names = [pair[side] for pair in PAIRS] + ["answers", "golden_answers", "possible_answers"] * side
    for name in names:
        if name in record:
            return name
    raise BadRecordError(f"no known field for it among {', '.join(map(str, record))}; name it with {flag}")


def _reach(record: Record, key: str) -> object:
    value: object = record
    if key in record:
        return record[key]
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise BadRecordError(f"missing; found the fields {', '.join(map(str, record)) or 'none'}", key)
        value = value[part]
    return value
