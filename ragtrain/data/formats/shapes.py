"""The known forms of a question record: how each is recognised by its fields, and what is where in it.

Sources of the forms: the readers of NQ-open, Atlas, DPR, FiD, FlashRAG, KILT, SQuAD, TriviaQA, HotpotQA, MuSiQue,
PopQA, WebQuestions, MS MARCO, BEIR, FlagEmbedding, Tevatron and ScaleDown, as their publishers wrote them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ragtrain.data.formats.fields import (
    Record,
    answers_of,
    any_documents,
    document,
    hotpot_documents,
    id_of,
    kind_of,
    list_at,
    listed_answers,
    ms_marco_documents,
    number_of,
    optional_text,
    required_answers,
    supporting_titles,
    text_of,
    unique,
    value_of,
)
from ragtrain.data.formats.files import BadRecordError
from ragtrain.records import Document, Question

_OWN = ("id", "dataset", "split", "group", "question", "answers", "documents")
#: Fields that name a record and are kept in ``id``.
_IDS = ("_id", "qid", "query_id", "question_id", "QuestionId")
PAIRS = (
    ("question", "answer"), ("query", "response"), ("query", "answer"), ("query", "answers"), ("prompt", "completion"),
    ("prompt", "response"), ("instruction", "output"), ("instruction", "response"), ("input", "output"), ("q", "a"),
    ("input", "target"), ("source", "target"), ("question", "response"), ("Question", "Answer"),
    ("question", "target"),
)  # fmt: skip
DOCUMENT_FIELDS = ("documents", "ctxs", "context", "contexts", "passages")
_WEBQ_VALUE = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()]+))\)')


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """A form of record: its name, the fields that give it away, and how it becomes a Question (without an id).

    ``columns`` are names that a person gave: a table with one of them in its first line has a head.
    """

    name: str
    fields: str
    fits: Callable[[Any], bool]
    read: Callable[[Any], Question]
    columns: tuple[str, ...] = ()


def make(
    record: Record,
    question: str,
    answers: tuple[str, ...],
    *,
    documents: tuple[Document, ...] = (),
    used: tuple[str, ...] = (),
    **known: str,
) -> Question:
    """Return a Question whose ``extra`` holds the fields of the record that were not used."""
    taken = {*_OWN, *_IDS, question, *used}
    named = {name: optional_text(record, name) for name in ("dataset", "split", "group")}
    return Question(
        id=id_of(record),
        question=text_of(record, question),
        answers=answers,
        documents=documents,
        extra={str(name): value for name, value in record.items() if name not in taken and value is not None},
        **{**named, **known},
    )


def _has(*fields: str) -> Callable[[Record], bool]:
    return lambda record: all(field in record for field in fields)


def _own(record: Record) -> Question:
    documents = any_documents(record, "documents")
    info = record.get("document_info")
    if isinstance(info, list) and len(info) == len(documents):
        documents = tuple(map(_informed, documents, info))
    value = value_of(record, "answers")
    answers = listed_answers(value, "answers") if isinstance(value, str) else answers_of(value, "answers")
    used = ("query", "answer", "document_info") if "document_info" in record else ()
    return make(record, "question", answers, documents=documents, used=used)


def _informed(plain: Document, info: object) -> Document:
    """Return a document of the ScaleDown pair with its id, title and mark from ``document_info``."""
    if not isinstance(info, Mapping):
        raise BadRecordError(f"expected objects with id and title, found {kind_of(info)}", "document_info")
    title = optional_text(info, "title")
    text = plain.text.removeprefix(f"{title}: ") if title else plain.text
    gold = info.get("is_gold")
    return document(
        title, text, gold if isinstance(gold, bool) else None, id=id_of(info), score=number_of(info.get("score"))
    )


def _with_target(record: Record) -> tuple[str, ...]:
    """Return the answers of Atlas's and FiD's records, where ``target`` may stand alone."""
    field = "answers" if record.get("answers") else "target"
    return required_answers(record, field if field in record else "answers")


def _retrieved(record: Record) -> Question:
    return make(record, "question", _with_target(record), documents=any_documents(record, "ctxs"), used=("ctxs",))


def _biencoder(record: Record) -> Question:
    names = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")
    documents = [d for name in names for d in any_documents(record, name, name == "positive_ctxs")]
    return make(record, "question", _with_target(record), documents=unique(documents), used=names)


def _squad(record: Record) -> Question:
    title = optional_text(record, "title")
    gold = document(title.replace("_", " "), text_of(record, "context"), True)
    answers = answers_of(value_of(record, "answers"), "answers")
    impossible = record.get("is_impossible", not answers)
    if not answers and not impossible:
        raise BadRecordError("expected at least one answer, found none", "answers")
    made = make(
        record, "question", answers, documents=(gold,), used=("context", "title", "plausible_answers"), group=title
    )
    return dataclasses.replace(made, dataset=made.dataset or "squad")


def _hotpot(record: Record) -> Question:
    titles = supporting_titles(record)
    made = make(
        record,
        "question",
        required_answers(record, "answer"),
        documents=hotpot_documents(record),
        used=("context", "answer"),
        group=" + ".join(sorted(titles)),
    )
    return dataclasses.replace(made, dataset=made.dataset or "hotpot_qa")


def _hippo(record: Record) -> Question:
    answers = (*required_answers(record, "answer"), *answers_of(record.get("answer_aliases"), "answer_aliases"))
    group = " + ".join(sorted(supporting_titles(record)))
    used = ("answer", "answer_aliases")
    return make(record, "question", tuple(dict.fromkeys(answers)), used=used, group=group)


def _musique(record: Record) -> Question:
    paragraphs = any_documents(record, "paragraphs")
    marks = [
        isinstance(paragraph, Mapping) and bool(paragraph.get("is_supporting"))
        for paragraph in value_of(record, "paragraphs", list)
    ]
    # Paragraph numbers (idx) count within one question, so ids come from the content.
    documents = [document(d.title, d.text, mark) for d, mark in zip(paragraphs, marks, strict=True)]
    answerable = record.get("answerable", True)
    answers = (
        *(required_answers(record, "answer") if answerable else answers_of(record.get("answer"), "answer")),
        *answers_of(record.get("answer_aliases"), "answer_aliases"),
    )
    group = " + ".join(sorted(d.title for d in documents if d.is_gold))
    used = ("paragraphs", "answer", "answer_aliases")
    made = make(record, "question", tuple(dict.fromkeys(answers)), documents=unique(documents), used=used, group=group)
    return dataclasses.replace(made, dataset=made.dataset or "musique")


def _trivia(record: Record) -> Question:
    question, answer = ("Question", "Answer") if "Question" in record else ("question", "answer")
    value = value_of(record, answer, Mapping)
    names = ("value", "Value", "aliases", "Aliases", "human_answers", "HumanAnswers")
    answers = tuple(dict.fromkeys(text for name in names for text in answers_of(value.get(name), answer)))
    if not answers:
        raise BadRecordError("expected a value or aliases, found none", answer)
    pages, found = record.get("entity_pages"), record.get("search_results")
    documents = [*_columns(pages, "wiki_context"), *_columns(found, "search_context")]
    used = (answer, "entity_pages", "search_results", "EntityPages", "SearchResults")
    made = make(record, question, answers, documents=unique(documents), used=used)
    # The raw files name the pages and hold none of them; whoever has the evidence folder reads them from there.
    named = [page for page in _listed(record.get("EntityPages")) if {"Title", "Filename"} <= page.keys()]
    pages_extra = {"pages": [{"title": page["Title"], "file": page["Filename"]} for page in named]} if named else {}
    return dataclasses.replace(made, dataset=made.dataset or "trivia_qa", extra={**made.extra, **pages_extra})


def _listed(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _columns(value: object, text: str) -> list[Document]:
    """Return whole pages of TriviaQA; nothing says which of them hold the answer."""
    if not isinstance(value, Mapping) or not isinstance(value.get(text), list):
        return []
    titles = value.get("title") or [""] * len(value[text])
    return [document(str(title or ""), page) for title, page in zip(titles, value[text], strict=False) if page]


def _popqa(record: Record) -> Question:
    # A JSON list written as a text.
    answers = required_answers(record, "possible_answers")
    group = optional_text(record, "subj", "s_wiki_title")
    return make(record, "question", answers, used=("possible_answers",), group=group)


def _kilt(record: Record) -> Question:
    output = value_of(record, "output", list)
    items = [item for item in output if isinstance(item, Mapping)]
    answers = answers_of([item.get("answer") for item in items], "output")
    if not answers:
        raise BadRecordError("expected an object with an answer, found none", "output")
    provenance = [entry for item in items for entry in list_at(item, "provenance") if isinstance(entry, Mapping)]
    made = make(record, "input", answers, used=("output",))
    return dataclasses.replace(made, extra={**made.extra, **({"provenance": provenance} if provenance else {})})


def _ms_marco(record: Record) -> Question:
    # "No Answer Present." is an answer to none of its questions: they stay, without one.
    answers = answers_of(record.get("answers"), "answers")
    documents = ms_marco_documents(record)
    made = make(record, "query", answers, documents=documents, used=("passages", "wellFormedAnswers"))
    return dataclasses.replace(made, dataset=made.dataset or "ms_marco")


def _flag(record: Record) -> Question:
    documents = [
        dataclasses.replace(each, score=number_of(score))
        for texts, scores, gold in (("pos", "pos_scores", True), ("neg", "neg_scores", False))
        for each, score in _padded(any_documents(record, texts, gold), record.get(scores))
    ]
    answers = answers_of(record.get("answers", record.get("answer")), "answers")
    used = ("pos", "neg", "pos_scores", "neg_scores", "answer", "pos_id", "neg_id")
    return make(record, "query", answers, documents=unique(documents), used=used)


def _padded(documents: tuple[Document, ...], scores: object) -> list[tuple[Document, Any]]:
    known = scores if isinstance(scores, list) and len(scores) == len(documents) else [None] * len(documents)
    return list(zip(documents, known, strict=True))


def _tevatron(record: Record) -> Question:
    names = ("positive_passages", "negative_passages")
    documents = [d for name in names for d in any_documents(record, name, name == "positive_passages")]
    answers = answers_of(record.get("answers", record.get("answer")), "answers")
    return make(record, "query", answers, documents=unique(documents), used=(*names, "answer"))


def _scaledown(record: Record) -> Question:
    documents = any_documents(record, "documents")
    scored = [dataclasses.replace(d, score=number_of(s)) for d, s in _padded(documents, record.get("reranking_scores"))]
    used = ("answer", "reranking_scores")
    return make(record, "query", required_answers(record, "answer"), documents=unique(scored), used=used)


def _webq(record: Record) -> Question:
    value = text_of(record, "targetValue")
    answers = answers_of([quoted or bare for quoted, bare in _WEBQ_VALUE.findall(value)], "targetValue")
    if not answers:
        raise BadRecordError("expected (list (description ...)), found none", "targetValue")
    return make(record, "utterance", answers, used=("targetValue",))


def _chat(record: Record) -> Question:
    """Return the last exchange of a conversation: the last assistant turn and the user turn before it."""
    field = "messages" if "messages" in record else "conversations"
    turns = []
    for i, turn in enumerate(value_of(record, field, list)):
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadRecordError("expected turns with role and content", f"{field}[{i}]")
        turns.append((role.lower(), content.strip()))
    places = [i for i, (role, content) in enumerate(turns) if role in ("assistant", "gpt", "model", "bot") and content]
    asked = [
        i
        for i, (role, content) in enumerate(turns[: places[-1]] if places else [])
        if role in ("user", "human") and content
    ]
    if not asked:
        raise BadRecordError("expected a user turn followed by an assistant turn", field)
    made = make({**record, "_question": turns[asked[-1]][1]}, "_question", (turns[places[-1]][1],), used=(field,))
    before = [{"role": role, "content": content} for role, content in turns[: asked[-1]]]
    return dataclasses.replace(made, extra={**made.extra, **({"history": before} if before else {})})


def _pair(record: Record) -> Question:
    question, answer = next((p for p in PAIRS if p[0] in record and p[1] in record), PAIRS[0])
    documents = usual_documents(record)
    answers = required_answers(record, answer)
    return make(record, question, answers, documents=documents, used=(answer, *(DOCUMENT_FIELDS if documents else ())))


def usual_documents(record: Record) -> tuple[Document, ...]:
    """Return the documents of a record, where they stand under a usual name."""
    for field in DOCUMENT_FIELDS:
        value = record.get(field)
        if isinstance(value, str) and value.strip():
            return (document(optional_text(record, "title"), value.strip()),)
        if isinstance(value, list) and value:
            return unique(any_documents(record, field))
    return ()


def _is_list(field: str, kind: type = list) -> Callable[[Record], bool]:
    return lambda record: isinstance(record.get(field), kind)


def _all(*tests: Callable[[Record], bool]) -> Callable[[Record], bool]:
    return lambda record: all(test(record) for test in tests)


def _any_pair(record: Record) -> bool:
    return any(question in record and answer in record for question, answer in PAIRS)


def _first_paragraph(record: Record) -> bool:
    paragraphs = record.get("paragraphs")
    return isinstance(paragraphs, list) and all(
        isinstance(p, Mapping) and "paragraph_text" in p for p in paragraphs[:1]
    )


#: Most telling first: the first that fits the first record of a file is taken for all of them.
SHAPES = (
    Shape("dpr-biencoder", "question, answers, positive_ctxs, hard_negative_ctxs", _has("question", "positive_ctxs"), _biencoder),
    Shape("fid", "question, answers, ctxs (FiD, DPR retriever output)", _has("question", "ctxs"), _retrieved),
    Shape("squad", "{data: [{title, paragraphs: [{context, qas}]}]}, or rows with context and answers",
          _all(_has("question", "answers"), _is_list("context", str)), _squad),
    Shape("ragtrain", "id, dataset, split, group, question, answers, documents?",
          lambda r: _has("question", "answers")(r) and any(name in r for name in ("dataset", "split", "group", "documents")), _own),
    Shape("musique", "question, answer, paragraphs", _all(_has("question"), _first_paragraph), _musique),
    Shape("hotpot_qa", "question, answer, supporting_facts, context",
          _has("question", "answer", "context", "supporting_facts"), _hotpot),
    Shape("hipporag", "question, answer, supporting_facts (titles only)", _has("question", "answer", "supporting_facts"), _hippo),
    Shape("trivia_qa", "{Data: [{Question, Answer: {Value, Aliases}}]}, or rows of the hub",
          lambda r: _all(_has("Question"), _is_list("Answer", Mapping))(r)
          or _all(_has("question"), _is_list("answer", Mapping))(r), _trivia),
    Shape("popqa", "question, possible_answers", _has("question", "possible_answers"), _popqa),
    Shape("flashrag", "id, question, golden_answers", _has("question", "golden_answers"),
          lambda r: make(r, "question", required_answers(r, "golden_answers"), used=("golden_answers",))),
    Shape("kilt", "id, input, output: [{answer, provenance}]", _all(_has("input"), _is_list("output")), _kilt),
    Shape("ms_marco", "query, passages: [{passage_text, is_selected}], answers", _has("query", "passages"), _ms_marco),
    Shape("flagembedding", "query, pos, neg", _has("query", "pos"), _flag),
    Shape("tevatron", "query_id, query, positive_passages, negative_passages", _has("query", "positive_passages"), _tevatron),
    Shape("scaledown", "query, documents, answer", _has("query", "documents", "answer"), _scaledown),
    Shape("webquestions", "utterance, targetValue", _has("utterance", "targetValue"), _webq),
    Shape("atlas", "question, answers[, target] (Atlas, DPR, FiD without ctxs)", _has("question", "answers"),
          lambda r: make(r, "question", _with_target(r))),
    Shape("nq-open", "question, answer: [...]", _all(_has("question"), _is_list("answer")),
          lambda r: make(r, "question", required_answers(r, "answer"), used=("answer",))),
    Shape("chat", "messages: [{role, content}] or conversations: [{from, value}]",
          lambda r: isinstance(r.get("messages"), list) or isinstance(r.get("conversations"), list), _chat),
    Shape("pairs", "question and answer under usual names (question/answer, query/response, q/a, ...)", _any_pair, _pair),
    Shape("beir-queries", "_id, text (no answers)", _has("_id", "text"), lambda r: make(r, "text", ())),
)  # fmt: skip

#: Forms of a whole file, beside the records above.
FILE_FORMS = (
    ("dpr-qas", "TSV without head: question TAB ['answer', ...]"),
    ("source-target", "NAME.source and NAME.target, a line each"),
)

#: Heads that make the first line of a table its head.
COLUMNS = frozenset(name.lower() for pair in PAIRS for name in pair) | {
    "id", "_id", "qid", "answers", "golden_answers", "possible_answers", "utterance", "targetvalue", "context", "title",
    "ctxs", "subj", "obj", "prop", "dataset", "split", "group", "documents", "text",
}  # fmt: skip


def known_formats() -> str:
    """Return a line for each known form, for error messages."""
    return "\n".join(f"  {name}: {fields}" for name, fields in (*((s.name, s.fields) for s in SHAPES), *FILE_FORMS))


def find(record: object, shapes: Sequence[Shape] = SHAPES) -> Shape | None:
    """Return the form of a record, or None."""
    if not isinstance(record, Mapping):
        return None
    return next((shape for shape in shapes if shape.fits(record)), None)
