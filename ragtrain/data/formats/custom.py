"""Records whose fields a person named: question and answers, a finished prompt, or a text to learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ragtrain.data.formats.fields import (
    Record,
    answers_of,
    any_documents,
    document,
    id_of,
    kind_of,
    listed_answers,
    optional_text,
    required_answers,
    unique,
)
from ragtrain.data.formats.files import BadRecordError
from ragtrain.data.formats.shapes import DOCUMENT_FIELDS, PAIRS, Shape, find, make, usual_documents
from ragtrain.records import Question

if TYPE_CHECKING:
    from ragtrain.records import Document

#: Where in ``Question.extra`` a finished prompt stands, and a text to learn.
PROMPT, OUTPUT = "finished prompt", "output"
_QUESTIONS = ("query", "question", "Question")
_ANSWERS = (
    "answers", "golden_answers", "possible_answers", "answer", "completion", "response", "output", "target",
)  # fmt: skip
_PROMPT_DOCUMENTS = ("docs", *DOCUMENT_FIELDS, "positive_passages")


def custom(question_key: str | None, answer_key: str | None) -> Shape:
    """Return a form whose question and answers are in the fields a person named; dots reach into objects.

    A field that is not named is looked for under the usual names; documents are found as in the known forms.
    """

    def read(record: Record) -> Question:
        question = question_key or _usual(record, 0, "--question-key")
        answer = answer_key or _usual(record, 1, "--answer-key")
        found = {question: reach(record, question), answer: reach(record, answer)}
        base = find(record)
        try:
            documents = usual_documents(record) if base is None else base.read(record).documents
        except BadRecordError:
            documents = usual_documents(record)
        answers = required_answers(found, answer)
        used = (question.split(".")[0], answer.split(".")[0], *DOCUMENT_FIELDS)
        return make({**record, **found}, question, answers, documents=documents, used=(answer, *used))

    columns = tuple(name for name in (question_key, answer_key) if name)
    return Shape("custom", ", ".join(columns), lambda record: isinstance(record, Mapping), read, columns)


def finished(input_key: str, question_key: str | None = None, answer_key: str | None = None) -> Shape:
    """Return a form whose records bring their whole prompt, passages and all, as RAG-FiT processes them.

    The prompt stands as it is in ``extra[PROMPT]``; the question is the record's ``query`` or ``question`` where it has one,
    else the prompt; the documents are those of the record that stand in the prompt word for word.

    Args:
        input_key: field of the prompt; dots reach into objects.
        question_key: field of the question, where it has another name.
        answer_key: field of the answers, likewise.
    """

    def read(record: Record) -> Question:
        prompt = reach(record, input_key)
        if not isinstance(prompt, str) or not prompt.strip():
            found = "an empty one" if isinstance(prompt, str) else kind_of(prompt)
            raise BadRecordError(f"expected a prompt (a text), found {found}", input_key)
        asked = reach(record, question_key) if question_key else None
        question = asked.strip() if isinstance(asked, str) else ""
        return Question(
            id=id_of(record) or _first_id(record, "idx", "sample_id"),
            question=question or optional_text(record, *(name for name in _QUESTIONS if name != input_key)) or prompt,
            answers=_answers(record, answer_key, input_key),
            dataset=optional_text(record, "dataset"),
            group=optional_text(record, "group"),
            documents=_in_prompt(record, prompt),
            extra={PROMPT: prompt},
        )

    columns = tuple(name for name in (input_key, question_key, answer_key) if name)
    return Shape("finished-prompts", ", ".join(columns), lambda record: input_key in record, read, columns)


def _first_id(record: Record, *fields: str) -> str:
    values = (record.get(field) for field in fields)
    return next((str(value) for value in values if isinstance(value, (int, str)) and str(value).strip()), "")


def _answers(record: Record, answer_key: str | None, input_key: str) -> tuple[str, ...]:
    if answer_key:
        value = reach(record, answer_key)
        return listed_answers(value, answer_key) if isinstance(value, str) else answers_of(value, answer_key)
    for name in _ANSWERS:
        if name in record and name != input_key:
            try:
                return required_answers(record, name)
            except BadRecordError:  # nobody said that this field holds them
                continue
    return ()


def _in_prompt(record: Record, prompt: str) -> tuple[Document, ...]:
    """Return the documents that stand in the prompt, from the field that has most of them."""
    best: tuple[Document, ...] = ()
    for field in _PROMPT_DOCUMENTS:
        value = record.get(field)
        try:
            found = (document("", value),) if isinstance(value, str) else any_documents(record, field)
        except BadRecordError:
            continue
        inside = unique(each for each in found if each.text.strip() and each.text.strip() in prompt)
        if len(inside) > len(best):
            best = inside
    return best


def with_output(shape: Shape, output_key: str, *, required: bool = True) -> Shape:
    """Return a form that keeps the value of a field in ``extra[OUTPUT]``, whatever else it reads.

    Args:
        shape: the form.
        output_key: the field; dots reach into objects.
        required: a record without it is a bad one.
    """

    def read(record: Record) -> Question:
        question = shape.read(record)
        try:
            value = reach(record, output_key)
        except BadRecordError:
            if required:
                raise
            return question
        return dataclasses.replace(question, extra={**question.extra, OUTPUT: value})

    return dataclasses.replace(shape, read=read, columns=(*shape.columns, output_key))


def _usual(record: Record, side: int, flag: str) -> str:
    names = [pair[side] for pair in PAIRS] + ["answers", "golden_answers", "possible_answers"] * side
    for name in names:
        if name in record:
            return name
    raise BadRecordError(f"no known field for it among {', '.join(map(str, record))}; name it with {flag}")


def reach(record: Record, key: str) -> object:
    """Return what stands in a field of a record; dots reach into objects.

    Raises:
        BadRecordError: there is no such field.
    """
    value: object = record
    if key in record:
        return record[key]
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise BadRecordError(f"missing; found the fields {', '.join(map(str, record)) or 'none'}", key)
        value = value[part]
    return value
