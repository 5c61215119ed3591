"""Fields of foreign records: texts, answers in all their spellings, documents in all theirs."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ragtrain.data.formats.files import BadRecordError
from ragtrain.records import Document, content_id, split_contents

Record = Mapping[str, Any]

#: Marks that MS MARCO puts where a question has no answer.
_NO_ANSWER = frozenset({"No Answer Present.", "[]", ""})
_NEIGHBOURS = re.compile(r"""['"]\s+['"]""")
_ID_FIELDS = (
    "id", "_id", "qid", "query_id", "question_id", "QuestionId", "passage_id", "psg_id", "docid", "doc_id", "pid",
)  # fmt: skip
_TITLE_FIELDS = ("title", "wikipedia_title", "Title")
_TEXT_FIELDS = ("text", "contents", "content", "paragraph_text", "passage_text", "document_text", "passage", "body")


def kind_of(value: object) -> str:
    """Return what a value is, in JSON's words."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        str: "a string",
        dict: "an object",
        list: "an array",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)


def text_of(record: Record, field: str) -> str:
    """Return a field that must be a text with something in it.

    Raises:
        BadRecordError: it is missing, empty or no text.
    """
    if field not in record:
        raise BadRecordError(
            f"missing; expected a text, found the fields {', '.join(map(str, record)) or 'none'}", field
        )
    value = record[field]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRecordError(f"expected a text, found {kind_of(value)}", field)
    if not value.strip():
        raise BadRecordError("expected a text, found an empty one", field)
    return value.strip()


def value_of(record: Record, field: str, kind: type | tuple[type, ...] = object) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return a field that must be there, of one of the given types.

    Raises:
        BadRecordError: it is missing or of another type.
    """
    if field not in record:
        raise BadRecordError(f"missing; found the fields {', '.join(map(str, record)) or 'none'}", field)
    value = record[field]
    if not isinstance(value, kind):
        wanted = "an object" if kind is Mapping else "a list"
        raise BadRecordError(f"expected {wanted}, found {kind_of(value)}", field)
    return value


def optional_text(record: Record, *fields: str) -> str:
    """Return the first of the fields that holds a text, or the empty string."""
    for field in fields:
        value = record.get(field)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def id_of(record: Record) -> str:
    """Return the source's own id, or the empty string where there is none."""
    for field in _ID_FIELDS:
        value = record.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def answers_of(value: object, field: str) -> tuple[str, ...]:
    """Return the answers in a value: a text, a number, a list of them, or the objects of SQuAD, TriviaQA and KILT.

    Raises:
        BadRecordError: the value holds something else.
    """
    found = dict.fromkeys(text for text in _answer_texts(value, field) if text not in _NO_ANSWER)
    return tuple(found)


def _answer_texts(value: object, field: str) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _answer_texts(item, field)
    elif isinstance(value, Mapping):
        known = [value[name] for name in ("value", "Value", "text", "answer", "aliases", "Aliases") if name in value]
        if not known:
            raise BadRecordError(f"expected an answer, found an object with {', '.join(map(str, value))}", field)
        for item in known:
            yield from _answer_texts(item, field)
    elif value is not None:
        raise BadRecordError(f"expected an answer (a text or a list of texts), found {kind_of(value)}", field)


def required_answers(record: Record, field: str) -> tuple[str, ...]:
    """Return the answers of a field that must hold at least one.

    Raises:
        BadRecordError: there is none.
    """
    value = value_of(record, field)
    answers = listed_answers(value, field) if isinstance(value, str) else answers_of(value, field)
    if not answers:
        raise BadRecordError("expected at least one answer, found none", field)
    return answers


def listed_answers(text: str, field: str) -> tuple[str, ...]:
    """Return the answers in a cell: a Python or JSON list of them, or a single answer.

    Raises:
        BadRecordError: the cell looks like a list and is none.
    """
    stripped = text.strip()
    if stripped[:2] not in ("['", '["', "[]"):
        return answers_of(stripped, field)
    try:
        return answers_of(json.loads(stripped), field)
    except ValueError:
        pass
    if _NEIGHBOURS.search(stripped) and _strings_touch(stripped):
        raise BadRecordError("expected commas between the answers, found a list as numpy prints it", field)
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise BadRecordError(f"expected a list such as ['a', 'b'], found {stripped[:60]!r}", field) from error
    return answers_of(value, field)


def _strings_touch(text: str) -> bool:
    """Return whether two string literals follow each other without a comma: Python would join them silently."""
    try:
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    except (tokenize.TokenError, SyntaxError):
        return False
    shown = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE)]
    return any(a == b == tokenize.STRING for a, b in itertools.pairwise(shown))


def document(title: str, text: str, gold: bool | None = None, *, id: str = "", score: float | None = None) -> Document:
    """Return a document; without an id of its own it gets one from its content."""
    return Document(id or content_id(title, text), title, text, gold, score)


def list_at(record: Record, field: str) -> Sequence[Any]:
    """Return a field that is a list, or nothing where it is missing or null.

    Raises:
        BadRecordError: it is something else.
    """
    value = record.get(field)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise BadRecordError(f"expected a list, found {kind_of(value)}", field)
    return value


def any_documents(record: Record, field: str, gold: bool | None = None) -> tuple[Document, ...]:
    """Return the documents of a list of texts, of objects with ``text`` or ``contents``, or of (title, text) pairs.

    Raises:
        BadRecordError: an item is none of these.
    """
    return tuple(_one_document(item, f"{field}[{i}]", gold) for i, item in enumerate(list_at(record, field)))


def _one_document(item: object, field: str, gold: bool | None) -> Document:
    if isinstance(item, str):
        return document("", item, gold)
    if isinstance(item, Mapping):
        text = optional_text(item, *_TEXT_FIELDS)
        title = optional_text(item, *_TITLE_FIELDS)
        if "contents" in item and not title:
            title, text = split_contents(text)
        if not text and not title:
            raise BadRecordError(
                f"expected a document with text, found {', '.join(map(str, item)) or 'nothing'}", field
            )
        marked = item.get("is_gold", gold)
        score = number_of(item.get("score"))
        return document(title, text, marked if isinstance(marked, bool) else None, id=id_of(item), score=score)
    if isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str):
        return document(item[0], joined(item[1], field), gold)
    raise BadRecordError(f"expected a document (a text or an object with text), found {kind_of(item)}", field)


def number_of(value: object) -> float | None:
    """Return a number, also where it is written as a text (DPR writes scores so); None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def joined(value: object, field: str) -> str:
    """Return a text, or sentences put together as they stand: with a space only where none separates them.

    Raises:
        BadRecordError: it is neither.
    """
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise BadRecordError(f"expected a text or a list of sentences, found {kind_of(value)}", field)
    parts: list[str] = []
    for part in value:
        if parts and part and not parts[-1][-1:].isspace() and not part[0].isspace():
            parts.append(" ")
        parts.append(part)
    return "".join(parts).strip()


def unique(documents: Iterable[Document]) -> tuple[Document, ...]:
    """Return documents without repetitions by id; where copies differ in being gold, the gold one counts."""
    kept: dict[str, Document] = {}
    for each in documents:
        if each.id not in kept or (each.is_gold and not kept[each.id].is_gold):
            kept[each.id] = each
    return tuple(kept.values())


def hotpot_documents(record: Record, field: str = "context") -> tuple[Document, ...]:
    """Return HotpotQA's paragraphs, from pairs (raw files) or from two columns (the hub); gold if supporting.

    Raises:
        BadRecordError: the context is in neither form.
    """
    context, gold = record.get(field), set(supporting_titles(record))
    if isinstance(context, Mapping):
        titles, texts = (
            list_at(context, "title"),
            list_at(context, "sentences" if "sentences" in context else "content"),
        )
        pairs: Iterable[Any] = zip(titles, texts, strict=False)
    else:
        pairs = list_at(record, field)
    documents = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) < 2 or not isinstance(pair[0], str):
            raise BadRecordError(f"expected [title, [sentences]], found {kind_of(pair)}", f"{field}[{i}]")
        documents.append(document(pair[0].strip(), joined(pair[1], f"{field}[{i}]"), pair[0] in gold if gold else None))
    return unique(documents)


def supporting_titles(record: Record) -> list[str]:
    """Return the titles of HotpotQA's ``supporting_facts``, each once, in any of its three forms."""
    facts = record.get("supporting_facts")
    if isinstance(facts, Mapping):
        facts = facts.get("title")
    if not isinstance(facts, (list, tuple)):
        return []
    titles = (fact[0] if isinstance(fact, (list, tuple)) and fact else fact for fact in facts)
    return list(dict.fromkeys(title for title in titles if isinstance(title, str)))


def ms_marco_documents(record: Record) -> tuple[Document, ...]:
    """Return MS MARCO's passages, from a list of objects (raw files) or from columns (the hub); gold if selected.

    Raises:
        BadRecordError: the passages are in neither form.
    """
    passages = record.get("passages")
    if isinstance(passages, Mapping):
        texts, marks = list_at(passages, "passage_text"), list_at(passages, "is_selected")
        pairs = [(text, bool(mark)) for text, mark in zip(texts, marks, strict=False)]
    else:
        items = list_at(record, "passages")
        if not all(isinstance(item, Mapping) and isinstance(item.get("passage_text"), str) for item in items):
            raise BadRecordError("expected objects with passage_text and is_selected", "passages")
        pairs = [(item["passage_text"], bool(item.get("is_selected"))) for item in items]
    return unique(document("", text.strip(), mark) for text, mark in pairs if text.strip())


Documents = Callable[[Record], tuple[Document, ...]]
