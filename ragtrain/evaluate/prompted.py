"""Prompts → what a causal language model writes → answers → scores: for ``ragtrain eval`` and during training alike."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ragtrain import metrics, report
from ragtrain.evaluate.answers import BOOTSTRAP_SAMPLES
from ragtrain.models.generate import Generated, generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.data.sft.fitting import Fitted
    from ragtrain.data.sft.prompts import Prompter
    from ragtrain.data.sft.records import Lost, Sample
    from ragtrain.evaluate.kept import Kept
    from ragtrain.records import Document

_UNANSWERED = Generated("", 0, False, 0.0)


@dataclasses.dataclass(frozen=True)
class PromptedSettings:
    """How prompts are answered and what is counted.

    Attributes:
        max_new_tokens: longest answer, in tokens; a prompt leaves room for it.
        batch_size: prompts answered at a time; no answer depends on it.
        recall_at: depths of answer-recall, where the passages searched are given.
        abstain_target: what stands for no answer; None where nothing does.
        seed: of the bootstrap.
        confidence: level of the intervals.
        precision: arithmetic of the network.
        progress: what a progress display calls the work; None shows none.
        kept: answers of an earlier attempt, which are not made again, and a place for those that are.
        compat: whose rules exact match and F1 follow.
    """

    max_new_tokens: int = 64
    batch_size: int = 16
    recall_at: tuple[int, ...] = ()
    abstain_target: str | None = None
    seed: int = 0
    confidence: float = 0.95
    precision: Literal["no", "bf16", "fp16"] = "no"
    progress: str | None = None
    kept: Kept | None = None
    compat: metrics.Compat = "squad"


@dataclasses.dataclass(frozen=True)
class PromptedDocument:
    """A passage as it stands in a prompt; ``rank`` counts from 0 for the best, ``has_answer`` is of the text that is left."""

    id: str
    title: str
    text: str
    rank: int
    has_answer: bool
    is_gold: bool | None


@dataclasses.dataclass(frozen=True)
class PromptedRecord:
    """One prompt answered.

    Attributes:
        id: of the sample.
        question: its text.
        answers: every reference.
        prediction: the answer within what was written.
        output: what was written.
        em: exact match, 0 or 1.
        f1: token F1, 0 to 1.
        first_hit: rank of the first of ``depth`` passages that holds an answer, from 1; None if none does.
        depth: passages searched; 0 where the prompt's passages are no result of a search.
        answer_in_prompt: whether a passage in the prompt holds an answer.
        abstained: whether the prediction is the abstention target; None where there is none.
        n_docs: passages in the prompt.
        lost: what the prompt lost for being too long; a ``row`` was not asked at all, and its prediction is empty.
        prompt_tokens: length of the prompt.
        new_tokens: tokens written.
        ended: whether the model came to an end by itself.
        seconds: from the beginning of its batch until the answer was complete.
        documents: the passages in the prompt, in their order.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    output: str
    em: float
    f1: float
    first_hit: int | None
    depth: int
    answer_in_prompt: bool
    abstained: bool | None
    n_docs: int
    lost: Lost
    prompt_tokens: int
    new_tokens: int
    ended: bool
    seconds: float
    documents: tuple[PromptedDocument, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: one line of ``predictions.jsonl``; what was written only where it is not the answer."""
        row = dataclasses.asdict(self)
        if self.output == self.prediction:
            del row["output"]
        return {**row, "answers": list(self.answers), "documents": list(row["documents"])}


@dataclasses.dataclass(frozen=True)
class PromptedEvaluation:
    """All prompts answered: metrics (rates as fractions), intervals of those that have one, and every record.

    ``metrics``: ``em``, ``f1``; ``answer_in_prompt`` (a passage of the prompt holds an answer), ``em_given_answer`` and
    ``em_given_no_answer`` (exact match where one does, and where none does), ``reader_error`` (one does, and the prediction
    is wrong), ``retrieval_error`` (none does, and it is wrong); ``answer_recall@k``; ``abstained``; ``ended``; means of
    ``n_docs``, ``prompt_tokens`` and ``new_tokens``; ``latency_p50_s``, ``latency_p95_s``, ``questions_per_s``.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    records: tuple[PromptedRecord, ...]


def evaluate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompter: Prompter,
    samples: Sequence[Sample],
    references: Sequence[Sequence[str]],
    settings: PromptedSettings,
    found: Sequence[Sequence[Document]] | None = None,
) -> PromptedEvaluation:
    """Answer prompts and score the answers; records come in the order of the samples.

    Args:
        model: a causal language model; it is left as it was.
        tokenizer: its tokenizer.
        prompter: writes the prompts and finds the answer in what is written.
        samples: what is asked; their targets do not count.
        references: right answers of each sample.
        settings: how.
        found: the passages that a search found for each sample, best first, for answer-recall.

    Raises:
        ConfigError: prompts leave no room for answers in the model's positions.
        DataError: a prompt is too long, and the run's ``on_overflow`` is ``error``.
        OutOfMemoryError: one prompt alone does not fit on the device.
    """
    started = time.perf_counter()
    spent = 0.0 if settings.kept is None else settings.kept.seconds
    records = tuple(measure(model, tokenizer, prompter, samples, references, settings, found))
    values, intervals = summarise(records, settings)
    if records:
        values["questions_per_s"] = len(records) / (spent + time.perf_counter() - started)
    return PromptedEvaluation(values, intervals, records)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompter: Prompter,
    samples: Sequence[Sample],
    references: Sequence[Sequence[str]],
    settings: PromptedSettings,
    found: Sequence[Sequence[Document]] | None = None,
) -> list[PromptedRecord]:
    """Return the records alone: several processes take a share of the samples each, and ``summarise`` those of all."""
    fitted = prompter.fitted_prompts(samples, room=settings.max_new_tokens)
    asked = [place for place, row in enumerate(fitted) if row.lost != "row"]
    earlier = {} if settings.kept is None else settings.kept.answers
    written = {place: Generated(**earlier[samples[place].id]) for place in asked if samples[place].id in earlier}
    left = [place for place in asked if place not in written]
    kind = torch.float16 if settings.precision == "fp16" else torch.bfloat16
    with (
        _shown(len(left), settings) as advance,
        torch.autocast(model.device.type, dtype=kind, enabled=settings.precision != "no"),
    ):
        answers = generate(
            model,
            tokenizer,
            [fitted[place].ids for place in left],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            advance=_each_batch([samples[place].id for place in left], settings.kept, advance),
        )
    written.update(zip(left, answers, strict=True))
    return [
        _record(
            prompter, fitted[place], references[place], written.get(place, _UNANSWERED), settings,
            None if found is None else found[place],
        )
        for place in range(len(samples))
    ]  # fmt: skip


@contextlib.contextmanager
def _shown(total: int, settings: PromptedSettings) -> Iterator[Callable[[int], None] | None]:
    """Show the progress where it is asked for, and yield what moves it on."""
    if settings.progress is None:
        yield None
        return
    bar: report.Progress[None]
    with report.progress(total, settings.progress) as bar:
        yield bar.advance


def _each_batch(
    ids: Sequence[str], kept: Kept | None, advance: Callable[[int], None] | None
) -> Callable[[Mapping[int, Generated]], None]:
    """Return what is called after each batch: it keeps the answers and moves the progress on."""
    began = time.perf_counter()

    def each(batch: Mapping[int, Generated]) -> None:
        nonlocal began
        if kept is not None:
            now = time.perf_counter()
            kept.add({ids[place]: dataclasses.asdict(one) for place, one in batch.items()}, now - began)
            began = now
        if advance is not None:
            advance(len(batch))

    return each


def _record(
    prompter: Prompter,
    asked: Fitted,
    answers: Sequence[str],
    written: Generated,
    settings: PromptedSettings,
    found: Sequence[Document] | None,
) -> PromptedRecord:
    sample, lost = asked.sample, asked.lost == "row"
    prediction = prompter.extract(written.text)
    passages = () if lost else sample.documents
    ranks = sample.ranks or range(len(passages))
    documents = tuple(
        PromptedDocument(
            document.id,
            document.title,
            document.text,
            rank,
            metrics.has_answer(answers, document.text),
            document.is_gold,
        )
        for document, rank in zip(passages, ranks, strict=False)
    )
    depth = max(settings.recall_at, default=0) if found is not None else 0
    abstained = None
    if settings.abstain_target is not None:
        abstained = metrics.normalize_answer(prediction) == metrics.normalize_answer(settings.abstain_target)
    return PromptedRecord(
        id=sample.id,
        question=sample.question,
        answers=tuple(answers),
        prediction=prediction,
        output=written.text,
        em=metrics.score("em", prediction, answers, settings.compat),
        f1=metrics.score("f1", prediction, answers, settings.compat),
        first_hit=metrics.first_hit(answers, (document.text for document in (found or ())[:depth])),
        depth=depth,
        answer_in_prompt=any(document.has_answer for document in documents),
        abstained=abstained,
        n_docs=len(documents),
        lost=asked.lost,
        prompt_tokens=0 if lost else len(asked.ids),
        new_tokens=written.n_tokens,
        ended=written.ended,
        seconds=written.seconds,
        documents=documents,
    )


def summarise(
    records: Sequence[PromptedRecord], settings: PromptedSettings
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the metrics of answered prompts and their intervals: Wilson's for rates, bootstrap for F1.

    Whatever has no question (``em_given_answer`` where no prompt held one) is left out.
    """
    if not records:
        return {}, {}
    inside = [record.answer_in_prompt for record in records]
    rates: dict[str, Sequence[float]] = {
        "em": [record.em for record in records],
        "answer_in_prompt": [float(held) for held in inside],
        "em_given_answer": [record.em for record in records if record.answer_in_prompt],
        "em_given_no_answer": [record.em for record in records if not record.answer_in_prompt],
        "reader_error": [float(record.answer_in_prompt and not record.em) for record in records],
        "retrieval_error": [float(not record.answer_in_prompt and not record.em) for record in records],
        **{
            f"answer_recall@{k}": [float(r.first_hit is not None and r.first_hit <= k) for r in records]
            for k in settings.recall_at
            if k <= min(record.depth for record in records)
        },
        "ended": [float(record.ended) for record in records],
    }
    if settings.abstain_target is not None:
        rates["abstained"] = [float(bool(record.abstained)) for record in records]
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name, scores in rates.items():
        if scores:
            values[name] = math.fsum(scores) / len(scores)
            intervals[name] = metrics.wilson(sum(scores), len(scores), settings.confidence)
        if name == "em":
            overlaps = [record.f1 for record in records]
            values["f1"] = math.fsum(overlaps) / len(overlaps)
            intervals["f1"] = metrics.bootstrap_mean(overlaps, BOOTSTRAP_SAMPLES, settings.seed, settings.confidence)
    for name in ("n_docs", "prompt_tokens", "new_tokens"):
        values[name] = math.fsum(getattr(record, name) for record in records) / len(records)
    median, late = np.quantile([record.seconds for record in records], [0.5, 0.95])
    return {**values, "latency_p50_s": float(median), "latency_p95_s": float(late)}, intervals
