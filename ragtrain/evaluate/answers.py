"""Questions → answers → scores: what ``ragtrain eval`` and the evaluation during training have in common."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ragtrain import metrics, report
from ragtrain.data.prompts import bare_ids
from ragtrain.errors import OutOfMemoryError
from ragtrain.models.decoding import decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragtrain.evaluate.kept import Kept
    from ragtrain.models.decoding import Answer
    from ragtrain.models.rag import RagModel
    from ragtrain.records import Passage, Question
    from ragtrain.retrieve import Retriever

#: Resamples of the bootstrap interval of F1.
BOOTSTRAP_SAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """How questions are answered and what is counted.

    Attributes:
        n_docs: passages marginalised over.
        recall_at: depths of answer-recall; the search goes as deep as the deepest of them.
        num_beams: beams of the decoder for each passage.
        max_new_tokens: longest answer, in tokens.
        max_question_tokens: longest question the question encoder reads.
        batch_size: questions answered at a time; no result depends on it.
        seed: of the bootstrap.
        confidence: level of the intervals.
        decoding: what candidate answers are scored under: every passage, or those that proposed them.
        retrieval: what chooses passages; it is the retriever that does so, here it is only recorded.
        search_index: how vectors are searched; likewise.
        precision: arithmetic of the networks; scores and likelihoods are float32 in any case.
        compat: whose rules exact match and F1 follow.
    """

    n_docs: int = 5
    recall_at: tuple[int, ...] = (1, 5, 20)
    num_beams: int = 4
    max_new_tokens: int = 32
    max_question_tokens: int = 64
    batch_size: int = 16
    seed: int = 0
    confidence: float = 0.95
    decoding: Literal["thorough", "fast"] = "thorough"
    retrieval: Literal["dense", "bm25", "hybrid"] = "dense"
    search_index: Literal["flat", "faiss"] = "flat"
    precision: Literal["no", "bf16", "fp16"] = "no"
    compat: metrics.Compat = "squad"

    @property
    def depth(self) -> int:
        """Passages searched for each question."""
        return max((self.n_docs, *self.recall_at))

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths at which answer-recall is reported, ``n_docs`` among them."""
        return tuple(sorted({*self.recall_at, self.n_docs}))


@dataclasses.dataclass(frozen=True)
class FoundDocument:
    """A passage that the generator read for a question, its share in the answer, and whether it holds one."""

    id: str
    title: str
    text: str
    score: float
    prior: float
    posterior: float
    has_answer: bool


@dataclasses.dataclass(frozen=True)
class Record:
    """One question answered.

    Attributes:
        id: of the question.
        question: its text.
        answers: every reference.
        prediction: the answer given.
        em: exact match, 0 or 1.
        f1: token F1, 0 to 1.
        first_hit: rank of the first of ``depth`` passages that holds an answer, from 1; None if none does.
        depth: passages searched.
        log_likelihood: of the prediction, marginalised over the passages, in nats.
        seconds: time of its batch divided by the questions in it.
        documents: the ``n_docs`` passages the generator read, best first.
        new_tokens: tokens of the answer.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    em: float
    f1: float
    first_hit: int | None
    depth: int
    log_likelihood: float
    seconds: float
    documents: tuple[FoundDocument, ...]
    new_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: one line of ``predictions.jsonl``."""
        row = dataclasses.asdict(self)
        return {**row, "answers": list(self.answers), "documents": list(row["documents"])}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Record:
        """Return the record of a JSON form."""
        documents = tuple(FoundDocument(**document) for document in row["documents"])
        return cls(**{**row, "answers": tuple(row["answers"]), "documents": documents})


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All questions answered: metrics as fractions (where there are any), their intervals, and every record.

    ``metrics``: ``em``, ``f1``, ``answer_recall@k``, ``ceiling`` (answer-recall at ``n_docs``: no model that copies its
    answers from what it reads gets further), ``em_given_hit`` and ``em_given_miss`` (exact match where a passage held
    an answer, and where none did), ``questions_per_s``.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    records: tuple[Record, ...]


def evaluate_questions(
    model: RagModel,
    retriever: Retriever,
    questions: Sequence[Question],
    settings: AnswerSettings,
    kept: Kept | None = None,
) -> Evaluation:
    """Answer questions and score the answers.

    The model is left in the mode it was in. Records come in the order of the questions.

    Args:
        model: with question encoder and generator.
        retriever: finds passages.
        questions: what is asked; their ids are unique.
        settings: how.
        kept: answers of an earlier attempt, which are not made again, and a place for those that are.

    Raises:
        OutOfMemoryError: a batch does not fit on the device.
    """
    started = time.perf_counter()
    # Longest first: neighbours are padded little, and a batch that does not fit fails at once.
    order = sorted(range(len(questions)), key=lambda index: -len(questions[index].question))
    earlier = {} if kept is None else kept.answers
    records = {
        row: Record.from_json(earlier[question.id]) for row, question in enumerate(questions) if question.id in earlier
    }
    order = [row for row in order if row not in records]
    spent = 0.0 if kept is None else kept.seconds
    progress: report.Progress[None] = report.progress(len(order), "Answering questions")
    with progress:
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            try:
                answered = answer_batch(model, retriever, [questions[row] for row in rows], settings)
            except torch.OutOfMemoryError as error:
                raise OutOfMemoryError(
                    f"{len(rows)} questions at a time with {settings.n_docs} passages and {settings.num_beams} beams "
                    "do not fit on the device",
                    hint=f"give --batch-size {max(1, len(rows) // 2)}, or fewer --num-beams",
                ) from error
            records.update(zip(rows, answered, strict=True))
            if kept is not None:
                kept.add({each.id: each.to_json() for each in answered}, sum(each.seconds for each in answered))
            progress.advance(len(rows))
    ordered = tuple(records[index] for index in range(len(questions)))
    values, intervals = summarise(ordered, settings)
    if ordered:
        values["questions_per_s"] = len(ordered) / (spent + time.perf_counter() - started)
    return Evaluation(values, intervals, ordered)


def answer_batch(
    model: RagModel, retriever: Retriever, questions: Sequence[Question], settings: AnswerSettings
) -> list[Record]:
    """Answer one batch of questions: a record each, in the same order."""
    started = time.perf_counter()
    device = model.question_encoder.device
    texts = [question.question for question in questions]
    encoded = model.question_encoder.tokenize_questions(texts, settings.max_question_tokens).to(device)
    # A question follows a space in the generator's input.
    spaced = bare_ids(model.generator_tokenizer, [f" {text}" for text in texts])
    lookup = retriever.for_questions(
        [np.asarray(ids, dtype=np.int64) for ids in spaced], n_docs=settings.n_docs, depth=settings.depth, texts=texts,
        ids=[question.id for question in questions],
    )  # fmt: skip
    kind = torch.float16 if settings.precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, dtype=kind, enabled=settings.precision != "no"):
        answers = decode(
            model,
            encoded["input_ids"],
            encoded["attention_mask"],
            lookup,
            num_beams=settings.num_beams,
            max_new_tokens=settings.max_new_tokens,
            method=settings.decoding,
        )
    found = [retriever.passages(lookup.hits, row) for row in range(len(questions))]
    seconds = (time.perf_counter() - started) / len(questions)
    return [
        _record(question, answer, passages, settings, seconds)
        for question, answer, passages in zip(questions, answers, found, strict=True)
    ]


def _record(
    question: Question, answer: Answer, passages: Sequence[Passage], settings: AnswerSettings, seconds: float
) -> Record:
    documents = tuple(
        FoundDocument(
            passage.id, passage.title, passage.text, score, prior, posterior,
            metrics.has_answer(question.answers, passage.text),
        )
        # The search went deeper than the generator read.
        for passage, score, prior, posterior in zip(
            passages, answer.scores, answer.prior, answer.posterior, strict=False
        )
    )  # fmt: skip
    return Record(
        id=question.id,
        question=question.question,
        answers=question.answers,
        prediction=answer.text,
        em=metrics.score("em", answer.text, question.answers, settings.compat),
        f1=metrics.score("f1", answer.text, question.answers, settings.compat),
        first_hit=metrics.first_hit(question.answers, (passage.text for passage in passages)),
        depth=settings.depth,
        log_likelihood=answer.log_likelihood,
        seconds=seconds,
        documents=documents,
        new_tokens=len(answer.token_ids),
    )


def summarise(
    records: Sequence[Record], settings: AnswerSettings
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the metrics of answered questions and their intervals: Wilson's for rates, bootstrap for F1.

    A metric over no questions (``em_given_miss`` where every question was a hit) is left out.
    """
    hits = [record.first_hit for record in records]
    inside = [hit is not None and hit <= settings.n_docs for hit in hits]
    rates = {
        "em": [record.em for record in records],
        **{f"answer_recall@{k}": [float(hit is not None and hit <= k) for hit in hits] for k in settings.depths},
        "ceiling": [float(hit) for hit in inside],
        "em_given_hit": [record.em for record, hit in zip(records, inside, strict=True) if hit],
        "em_given_miss": [record.em for record, hit in zip(records, inside, strict=True) if not hit],
    }
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name, scores in rates.items():
        if scores:
            values[name] = math.fsum(scores) / len(scores)
            intervals[name] = metrics.wilson(sum(scores), len(scores), settings.confidence)
        if name == "em" and scores:
            overlaps = [record.f1 for record in records]
            values["f1"] = math.fsum(overlaps) / len(overlaps)
            intervals["f1"] = metrics.bootstrap_mean(overlaps, BOOTSTRAP_SAMPLES, settings.seed, settings.confidence)
    return values, intervals
