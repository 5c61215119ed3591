"""The passages of questions: their own, found in a file by words, or found in an index."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import report
from ragtrain.config.commands import PrepareConfig
from ragtrain.data import caches
from ragtrain.data.sft.distractors import ranked
from ragtrain.data.sft.records import Example
from ragtrain.errors import ConfigError, DataError
from ragtrain.index.bm25 import BM25Index, add_bm25, highest
from ragtrain.index.encode import MANIFEST_FILE
from ragtrain.index.passages import PassageStore, write_passages
from ragtrain.prepare.contexts import filled, with_contexts
from ragtrain.prepare.resume import LINE_EVERY_S
from ragtrain.prepare.source import Source
from ragtrain.prepare.teach.output import recall
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ragtrain.config.commands.teach import TeachConfig
    from ragtrain.records import Document, Passage, Question

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class Found:
    """Questions with their passages, and what is to be said of where these came from.

    Attributes:
        questions: those with at least one passage, in their order; passages best first.
        about: for the manifest; ``answer_recall`` is of what was found, without the gold passages that were added to it.
        ranked: whether the order of passages says which is better.
        without: ids of questions that have none.
    """

    questions: list[Question]
    about: dict[str, Any]
    ranked: bool
    without: list[str]


def with_passages(questions: Sequence[Question], config: TeachConfig, work: Path) -> Found:
    """Return questions with the passages that were asked for.

    Args:
        questions: with their own passages, maybe.
        config: where to look.
        work: folder of the command, for the words of ``passages``.

    Raises:
        ConfigError: ``passages`` and ``index`` are both given.
        DataError: nothing is to be read there, or no question has a passage.
    """
    if config.passages is not None and config.index is not None:
        raise ConfigError(
            "passages and index are both given", hint="search one of them; --index searches prepared ones"
        )
    searched = config.passages is not None or config.index is not None
    if config.index is not None:
        examples, about = with_contexts(
            [_example(question) for question in questions], index=config.index, depth=config.n_docs,
            retrieval=config.retrieval, device=config.device,
        )  # fmt: skip
    elif config.passages is not None:
        examples, about = _by_words(questions, config, config.passages, work)
    else:
        examples, about = [_example(question) for question in questions], {"kind": "own"}
    changed = [
        dataclasses.replace(
            question, documents=_documents(example.documents, keep_gold=config.keep_gold or not searched)
        )
        for question, example in zip(questions, examples, strict=True)
    ]
    alone = [dataclasses.replace(q, documents=ranked(e)) for q, e in zip(questions, examples, strict=True)]
    added = sum(len(question.documents) for question in changed) - sum(len(each.documents) for each in alone)
    about = {**about, "answer_recall": recall(alone), "gold_added": added}
    kept = [question for question in changed if question.documents]
    without = [question.id for question in changed if not question.documents]
    if not kept:
        raise DataError("no question has a passage", path=config.questions,
                        hint="give passages to search: --passages FILE, or --index FOLDER")  # fmt: skip
    if without:
        log.warning("%d of %d questions have no passage and are left out", len(without), len(changed))
    return Found(kept, about, searched, without)


def _example(question: Question) -> Example:
    gold = frozenset(document.id for document in question.documents if document.is_gold)
    return Example(
        id=question.id, question=question.question, answers=question.answers, targets=question.answers,
        documents=question.documents, gold=gold,
    )  # fmt: skip


def _documents(documents: Iterable[Document], *, keep_gold: bool) -> tuple[Document, ...]:
    """Return passages without the mark of not having been found, or without those that were not."""
    kept = []
    for document in documents:
        if document.score is None or math.isfinite(document.score):
            kept.append(document)
        elif keep_gold:
            kept.append(dataclasses.replace(document, score=None))
    return tuple(kept)


def _by_words(
    questions: Sequence[Question], config: TeachConfig, path: Path, work: Path
) -> tuple[list[Example], dict[str, Any]]:
    """Return the rows with the passages of a file that share words with them, best first by BM25."""
    store, words, about = corpus(config, path, work)
    positions = np.full((len(questions), config.n_docs), -1, dtype=np.int64)
    scores = np.full((len(questions), config.n_docs), -np.inf, dtype=np.float32)
    bar: report.Progress[None] = report.progress(len(questions), "Searching by words", every_s=LINE_EVERY_S)
    with bar:
        for row, question in enumerate(questions):
            found = words.scores(question.question)
            best = highest(found, min(config.n_docs, words.count))
            positions[row, : len(best)] = best
            scores[row, : len(best)] = found[best]
            bar.advance()
    splitting = {"passage_words": config.passage_words, "overlap": 0}
    examples = [_example(question) for question in questions]
    return filled(examples, store, splitting, positions, scores), about


def corpus(config: TeachConfig, path: Path, work: Path) -> tuple[PassageStore, BM25Index, dict[str, Any]]:
    """Return the passages of a file and search by words in them; made once, and kept in ``work/corpus-KEY``.

    Raises:
        DataError: there is no passage, or none has a word.
    """
    prepared = PrepareConfig(
        passages=path, passage_words=config.passage_words, overlap=0, skip_bad_lines=config.skip_bad_lines
    )
    source = Source(prepared)
    folder = work / f"corpus-{source.request('words', config.max_passages)}"
    if not (folder / MANIFEST_FILE).is_file():
        with caches.written_aside(folder) as aside:
            pieces = report.progress(source.pieces(), "Reading passages", every_s=LINE_EVERY_S)
            written = write_passages(aside, _first(pieces, config.max_passages))
            manifest = {
                "passages_sha256": written.sha256, "count": written.count, "read": source.read,
                "skipped": source.skipped, "format": source.format, "files": {},
            }  # fmt: skip
            write_json(aside / MANIFEST_FILE, add_bm25(aside, manifest, iter(PassageStore(aside))))
    store = PassageStore(folder)
    manifest = _manifest(folder)
    about = {
        "kind": "passages", "path": str(path.resolve()), "retrieval": "bm25", "n_docs": config.n_docs,
        **{name: manifest[name] for name in ("passages_sha256", "count", "read", "skipped", "bm25")},
    }  # fmt: skip
    return store, BM25Index.open(folder, manifest), about


def _first(pieces: Iterable[Passage], most: int | None) -> Iterator[Passage]:
    """Yield the pieces of the first passages; those of one that was split are called ``ID#0``, ``ID#1`` and so on."""
    whole, count = None, 0
    for piece in pieces:
        name, mark, number = piece.id.rpartition("#")
        if not (mark and number.isdigit() and number != "0" and name == whole):
            whole, count = (name if mark and number == "0" else None), count + 1
        if most is not None and count > most:
            return
        yield piece


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not the description of passages: {error}", path=folder / MANIFEST_FILE) from error
    return manifest


def chosen(documents: Sequence[Document], most: int | None, *, keep_gold: bool) -> tuple[Document, ...]:
    """Return the first passages; gold ones behind them take the places of the last that are not gold.

    Args:
        documents: best first.
        most: how many; None for all.
        keep_gold: whether gold ones do.
    """
    if most is None or len(documents) <= most:
        return tuple(documents)
    places = list(range(most))
    if keep_gold:
        lost = [place for place in range(most, len(documents)) if documents[place].is_gold]
        giving = [place for place in places if not documents[place].is_gold]
        for place in lost[: len(giving)]:
            places.remove(giving.pop())
            places.append(place)
    return tuple(documents[place] for place in sorted(places))
