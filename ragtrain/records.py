"""The two things that every command reads and writes: a question with its answers, and a passage.

Both are plain frozen dataclasses with a JSON form of one line. Readers of foreign formats are in
``ragtrain.data.formats``; this module knows our own form only and imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """A retrievable piece of text; ``meta`` keeps whatever else the source said of it."""

    id: str
    title: str
    text: str
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: ``meta`` beside the three fields."""
        return {"id": self.id, "title": self.title, "text": self.text, **self.meta}


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A passage as it stands beside a question: given by the source or found by a retriever."""

    id: str
    title: str
    text: str
    is_gold: bool | None = None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form without the fields that are not known."""
        row: dict[str, Any] = {"id": self.id, "title": self.title, "text": self.text}
        if self.is_gold is not None:
            row["is_gold"] = self.is_gold
        if self.score is not None:
            row["score"] = self.score
        return row


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question with every reference answer.

    ``group`` is what a split must not cut (an article, a question family); ``extra`` keeps source fields that
    have no place of their own.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    dataset: str = ""
    split: str = ""
    group: str = ""
    documents: tuple[Document, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, in the order in which a person reads it."""
        row: dict[str, Any] = {
            "id": self.id,
            "dataset": self.dataset,
            "split": self.split,
            "group": self.group,
            "question": self.question,
            "answers": list(self.answers),
        }
        if self.documents:
            row["documents"] = [document.to_json() for document in self.documents]
        return {**row, **self.extra}


def normalize_text(text: str) -> str:
    """Return a text as it is compared with others: composed (NFC), without regard to case and spacing."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


@functools.lru_cache(maxsize=1024)  # questions on one paragraph follow each other
def content_id(*parts: str) -> str:
    """Return an id (16 hexadecimal digits) of texts, the same wherever they differ in case and spacing only."""
    return hashlib.sha256("\0".join(map(normalize_text, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def split_contents(contents: str) -> tuple[str, str]:
    r"""Return title and text of FlashRAG's ``contents``: ``"title"\ntext``; without a line break all is text."""
    title, newline, text = contents.partition("\n")
    if not newline or not text.strip():
        return "", contents.strip()
    title = title.strip()
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1].strip()
    return title, text.strip()


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, aside and then renamed, and return how many there were."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return count


def write_json(path: Path, value: object) -> None:
    """Write a JSON document, aside and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        aside.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
