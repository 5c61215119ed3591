"""Records of the pair of files that ScaleDown's guide names, ``small.json`` and ``small_eval.json``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ragtrain.data import splits

if TYPE_CHECKING:
    from ragtrain.records import Document, Question

#: ScaleDown's scripts read the first documents of a question only; the gold ones are among so many, and a question of a
#: pair has at least so many, if it has any.
FIRST_DOCUMENTS = 5


def pair_record(question: Question, seed: int) -> dict[str, Any]:
    """Return a record that ScaleDown's scripts and ours read.

    Their scripts want ``query``, ``answer`` (one text) and ``documents`` (texts, ``title: text`` where there is a
    title); ``document_info`` beside it keeps id, title and gold mark of each, from which our reader restores them.
    They cut at the first documents, so the gold ones are among these, in no fixed place.
    """
    documents = _gold_among_first(question.documents, question.id, seed)
    row = dataclasses.replace(question, documents=()).to_json()
    return {
        **row,
        "query": question.question,
        "answer": question.answers[0] if question.answers else "",
        "documents": [f"{d.title}: {d.text}" if d.title else d.text for d in documents],
        "document_info": [{k: v for k, v in d.to_json().items() if k != "text"} for d in documents],
    }


def _gold_among_first(documents: tuple[Document, ...], identifier: str, seed: int) -> list[Document]:
    gold = [document for document in documents if document.is_gold]
    others = [document for document in documents if not document.is_gold]
    room = max(FIRST_DOCUMENTS - len(gold), 0)
    first = [*gold, *others[:room]] if gold else others[:room]
    if gold:
        first.sort(key=lambda document: splits.rank("place", seed, identifier, document.id))
    return [*first, *others[room:]]
