"""Entities and triples of passages from a language model: a local one, or a server that speaks OpenAI's protocol.

Entities and triples are asked for in one answer, as JSON, which is parsed as JSON and nothing else. Every usable answer is written to
``GRAPH/answers.jsonl`` as it comes, under a hash of model, prompt and text, so that a stopped command goes on and another one
about the same texts asks nothing twice. An answer that cannot be used is asked for once more, then counted; the passage
stays, without triples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.errors import DataError, Interrupted
from ragtrain.index.graph.read_openie import Extraction
from ragtrain.index.passages import split_passages
from ragtrain.prepare.graph.llm_writers import Writer, writer_of
from ragtrain.prepare.resume import LINE_EVERY_S, Stopped, stoppable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ragtrain.config.commands.graph import GraphConfig
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")

ANSWERS_FILE = "answers.jsonl"
#: Changes with the prompt: answers to another one are not used.
VERSION = 1
#: Words of a text that are asked about at once; longer texts are asked about in parts.
PART_WORDS = 400
#: Letters of a name or relation beyond which it is a sentence.
_LONGEST = 200

PROMPT = """Write down what the passage below says as a small knowledge graph.

Answer with one JSON object and nothing else, in this form:
{{"entities": ["name", ...], "triples": [["subject", "relation", "object"], ...]}}

- entities: the people, places, organisations, works, things, dates and numbers that the passage names, in its spelling, \
without articles.
- triples: one for each fact. Subject and object are entities from your list. The relation is a verb phrase of at most five \
words, in the language of the passage.
- Put the name in place of a pronoun. Where a sentence leaves its subject out, the title is the subject.
- Write down nothing that the passage does not say.

Example
Title: Lake Orn
Passage: It lies in the north of Velland and was dammed in 1931 by the engineer Ida Krone.
Answer: {{"entities": ["Lake Orn", "Velland", "1931", "Ida Krone", "engineer"], "triples": [["Lake Orn", "lies in the north of", \
"Velland"], ["Lake Orn", "was dammed in", "1931"], ["Lake Orn", "was dammed by", "Ida Krone"], ["Ida Krone", "is an", "engineer"]]}}

Title: {title}
Passage: {text}
Answer:"""
AGAIN = "\n\nAn earlier answer could not be read. Answer with the JSON object alone, with the keys entities and triples.\nAnswer:"


class BadAnswerError(Exception):
    """An answer that is not the JSON that was asked for."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says of a text.

    Attributes:
        entities: names.
        triples: head, relation, tail.
        malformed: rows that were no names or triples.
    """

    entities: tuple[str, ...]
    triples: tuple[tuple[str, str, str], ...]
    malformed: int = 0


def parse(text: str) -> Answer:
    """Return the answer in what a model wrote: the outermost JSON object, whatever stands around it.

    Raises:
        BadAnswerError: there is none, or it lacks a list.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError) as error:
        raise BadAnswerError(f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadAnswerError("holds no JSON object")
    entities, triples = value.get("entities"), value.get("triples")
    if not isinstance(entities, list) or not isinstance(triples, list):
        raise BadAnswerError("lacks the list entities, or triples")
    names = [name for name in map(_name, entities) if name]
    rows = [tuple(map(_name, row)) for row in triples if isinstance(row, list) and len(row) == 3]
    whole = [(row[0], row[1], row[2]) for row in rows if all(row)]
    return Answer(tuple(names), tuple(whole), len(entities) - len(names) + len(triples) - len(whole))


def _name(value: object) -> str:
    """Return a name on one line; "" for what is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    name = " ".join(value.split()) if isinstance(value, str) else ""
    return name if len(name) <= _LONGEST and name.isprintable() else ""


class Answers:
    """The answers in a file, to which new ones are appended.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self._model = path, model
        self._known: dict[str, Answer] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = parse(json.dumps(row))
                except (ValueError, KeyError, TypeError, BadAnswerError):
                    continue  # the line in whose middle an earlier command was killed

    def key(self, passage: Passage) -> str:
        """Return the hash under which the answer about a text is kept."""
        text = json.dumps([VERSION, self._model, passage.title, passage.text])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def get(self, passage: Passage) -> Answer | None:
        """Return the answer about a text, if there is one."""
        return self._known.get(self.key(passage))

    def add(self, answers: Iterable[tuple[Passage, Answer]]) -> None:
        """Write answers; once this returns, a kill loses none of them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.is_file() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" if torn else "")
            for passage, answer in answers:
                key = self.key(passage)
                self._known[key] = answer
                row = {"key": key, "entities": answer.entities, "triples": answer.triples}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def extract(
    passages: Sequence[Passage], settings: GraphConfig, folder: Path, *, device: str | None = None
) -> tuple[list[Extraction], dict[str, Any]]:
    """Return what a language model says of passages, and counts of its answers.

    Args:
        passages: to ask about.
        settings: which model.
        folder: of the graph; answers are kept there.
        device: of a local model.

    Raises:
        ConfigError: the model cannot be loaded, or the server refuses.
        DataError: no answer at all could be used, or the server is not to be reached.
        Interrupted: it was stopped; answers are kept.
    """
    model = f"{settings.llm} {settings.llm_model or ''}".strip()
    answers = Answers(folder / ANSWERS_FILE, model)
    parts = {passage.id: list(split_passages([passage], PART_WORDS)) for passage in passages}
    wanted = [part for passage in passages for part in parts[passage.id] if part.text.strip()]
    missing = list({answers.key(part): part for part in wanted if answers.get(part) is None}.values())
    counts = {"asked": len(missing), "known": len(wanted) - len(missing), "asked again": 0, "bad": 0}
    malformed = 0
    if missing:
        if counts["known"]:
            log.info("%d answers are in %s already", counts["known"], answers.path)
        asking = _Asking(answers, settings, len(missing))
        with stoppable(), writer_of(settings, device) as writer:
            bad = asking.ask(missing, writer, PROMPT, "Asking the language model")
            counts["asked again"] = len(bad)
            counts["bad"] = len(asking.ask(bad, writer, PROMPT + AGAIN, "Asking again")) if bad else 0
        malformed = asking.malformed
        if counts["bad"]:
            log.warning(
                "%d of %d answers could not be used; the last one: %s", counts["bad"], len(missing), asking.problem
            )
    found = [_merged(passage, [answers.get(part) for part in parts[passage.id]]) for passage in passages]
    if not any(extraction.triples for extraction in found):
        problem = asking.problem if missing else "no triples in any of them"
        raise DataError(
            f"the language model {model!r} gave no triple in {len(wanted)} answers; the last one: {problem}",
            hint="take a larger or an instruction-tuned model, or leave --llm out",
        )
    return found, {"answers": counts, "malformed": malformed}


class _Asking:
    """Asks about texts in batches, keeps usable answers as they come, and remembers what was wrong."""

    def __init__(self, answers: Answers, settings: GraphConfig, total: int) -> None:
        self.answers, self.size, self.total = answers, settings.llm_batch_size, total
        self.malformed, self.usable, self.problem = 0, 0, ""

    def ask(self, parts: Sequence[Passage], writer: Writer, prompt: str, title: str) -> list[Passage]:
        """Return the texts about which nothing usable was said.

        Raises:
            Interrupted: it was stopped.
        """
        bad = []
        bar: report.Progress[None] = report.progress(len(parts), title, every_s=LINE_EVERY_S)
        try:
            with bar:
                for start in range(0, len(parts), self.size):
                    batch = parts[start : start + self.size]
                    texts = writer([prompt.format(title=p.title or "(none)", text=p.text) for p in batch])
                    usable, unusable = self._read(batch, texts)
                    self.answers.add(usable)
                    bad += unusable
                    bar.advance(len(batch))
        except KeyboardInterrupt as interrupt:
            raise Interrupted(
                f"stopped; {self.usable} of {self.total} answers are kept in {self.answers.path}",
                signal_number=signal.SIGTERM if isinstance(interrupt, Stopped) else signal.SIGINT,
                hint="the same command goes on from there",
            ) from interrupt
        return bad

    def _read(
        self, batch: Sequence[Passage], texts: Sequence[str]
    ) -> tuple[list[tuple[Passage, Answer]], list[Passage]]:
        usable, unusable = [], []
        for part, text in zip(batch, texts, strict=True):
            try:
                answer = parse(text)
            except BadAnswerError as error:
                shown = " ".join(text.split())
                self.problem = f"{error}: {shown[:120]!r}"
                unusable.append(part)
                continue
            self.malformed += answer.malformed
            self.usable += 1
            usable.append((part, answer))
        return usable, unusable


def _merged(passage: Passage, answers: Sequence[Answer | None]) -> Extraction:
    """Return what was said of the parts of a passage; its title is one of its entities."""
    said = [answer for answer in answers if answer is not None]
    title = [" ".join(passage.title.split())] if passage.title.strip() else []
    names = dict.fromkeys([*title, *(name for answer in said for name in answer.entities)])
    triples = dict.fromkeys(triple for answer in said for triple in answer.triples)
    return Extraction(passage, tuple(names), tuple(triples), sum(answer.malformed for answer in said))
