"""Scores of passages by a cross-encoder, kept as they come."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.models.cross_encoder import load_cross_encoder
from ragtrain.prepare.encoders import resolve_device
from ragtrain.prepare.journal import Journal, key_of
from ragtrain.prepare.resume import LINE_EVERY_S
from ragtrain.prepare.teach.models import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands.teach import TeachConfig
    from ragtrain.prepare.teach.models import Identity
    from ragtrain.records import Document, Question

log = logging.getLogger("ragtrain")

VERSION = 1
SCORES_FILE = "scores.jsonl"
#: Batches of pairs between two times that scores are written down.
BATCHES = 8


def passage_of(document: Document) -> str:
    """Return a passage as the reranker reads it: title, a space, text."""
    return f"{document.title} {document.text}".strip()


def reranked(
    questions: Sequence[Question], config: TeachConfig, identity: Identity, journal: Journal
) -> tuple[list[Question], dict[str, Any]]:
    """Return questions with their passages by falling score of the reranker, each with its score; equal ones as they were.

    Args:
        questions: with passages.
        config: which reranker.
        identity: of it.
        journal: where scores are kept.

    Raises:
        ConfigError: the reranker cannot be had.
        DataError: its weights cannot be read.
    """
    settings = config.rerank
    keys = [_key(question, identity, settings.reranker_max_tokens) for question in questions]
    missing = list({key: place for place, key in reversed(list(enumerate(keys))) if key not in journal}.values())[::-1]
    _score(questions, keys, missing, config, journal)
    known = [journal.get(key) or {} for key in keys]
    ordered = []
    for question, found in zip(questions, known, strict=True):
        scored = [
            dataclasses.replace(document, score=score)
            for document, score in zip(question.documents, found["scores"], strict=True)
        ]
        scored.sort(key=lambda document: -(document.score or 0.0))
        ordered.append(dataclasses.replace(question, documents=tuple(scored)))
    split = sum(found["split_passages"] for found in known)
    cut = sum(found["cut_questions"] for found in known)
    pairs = sum(len(found["scores"]) for found in known)
    if cut:
        log.warning("of %d questions the reranker read the beginning only (--reranker-max-tokens)", cut)
    if split:
        log.info("%d of %d passages were longer than the reranker reads, and were scored in windows", split, pairs)
    return ordered, {
        **identity.to_json(), "pairs": pairs, "scored_now": sum(len(questions[p].documents) for p in missing),
        "max_tokens": settings.reranker_max_tokens, "passages_in_windows": split, "questions_cut": cut,
    }  # fmt: skip


def _key(question: Question, identity: Identity, max_tokens: int) -> str:
    texts = [passage_of(document) for document in question.documents]
    return key_of(VERSION, identity.mark, max_tokens, question.question, texts)


def _score(
    questions: Sequence[Question], keys: Sequence[str], missing: Sequence[int], config: TeachConfig, journal: Journal
) -> None:
    """Score what is not known, some questions at a time, and write each lot down."""
    bar: report.Progress[None] = report.progress(len(questions), "Reranking", every_s=LINE_EVERY_S)
    if not missing:
        log.info("all passages were reranked before: %s", journal.path)
        return
    encoder = load_cross_encoder(
        config.rerank.reranker_model or "", max_tokens=config.rerank.reranker_max_tokens, dtype=torch_dtype(config),
        device=resolve_device(config.device),
    )  # fmt: skip
    with bar:
        bar.skip(len(questions) - len(missing))
        for lot in _lots(questions, missing, BATCHES * config.rerank.rerank_batch_size):
            before = encoder.cut_questions, encoder.split_passages
            asked = [(questions[p].question, [passage_of(d) for d in questions[p].documents]) for p in lot]
            scores = encoder.scores(asked, config.rerank.rerank_batch_size)
            counts = {"cut_questions": encoder.cut_questions - before[0],
                      "split_passages": encoder.split_passages - before[1]}  # fmt: skip
            none = dict.fromkeys(counts, 0)
            # What was cut is counted by lot, and stands with its first row.
            found = {
                keys[place]: {"scores": row, **(none if number else counts)}
                for number, (place, row) in enumerate(zip(lot, scores, strict=True))
            }
            journal.add(found)
            bar.advance(len(lot))


def _lots(questions: Sequence[Question], places: Sequence[int], pairs: int) -> list[list[int]]:
    """Return places in lots of about so many pairs."""
    lots: list[list[int]] = [[]]
    count = 0
    for place in places:
        if lots[-1] and count + len(questions[place].documents) > pairs:
            lots.append([])
            count = 0
        lots[-1].append(place)
        count += len(questions[place].documents)
    return lots
