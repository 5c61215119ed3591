"""Arms → prompts → answers → scores. Every answer is written, greedily and in batches; none is scored under teacher forcing.

An arm that is answered is on the disk before the next one begins, so that a measurement that was stopped goes on with the
arm it was at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from typing import TYPE_CHECKING, Any, Literal

import torch

from ragtrain import metrics, report
from ragtrain.evaluate import results
from ragtrain.evaluate.answers import BOOTSTRAP_SAMPLES
from ragtrain.evaluate.compress.arms import TABLE
from ragtrain.evaluate.compress.asked import Asked
from ragtrain.evaluate.compress.swap import adapters_swapped
from ragtrain.models.adapters import WEIGHTS_FILE, has_lora
from ragtrain.models.compress.generate import CompressPrompt, generate
from ragtrain.models.compress.model import evaluating
from ragtrain.records import sha256_file, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.arms import Arm
    from ragtrain.evaluate.compress.asked import ArmPrompt
    from ragtrain.evaluate.compress.subject import Subject
    from ragtrain.models.generate import Generated

#: Scores of one answer: rates, which are 0 or 1, and shares.
RATES, SHARES = ("em", "contains"), ("f1", "rouge_l")
_MEANS = ("context_tokens", "prompt_tokens", "new_tokens", "cut_tokens")
#: Settings on which no answer depends.
_NOT_DEFINING = {"batch_size", "progress", "confidence"}


@dataclasses.dataclass(frozen=True)
class ArmSettings:
    """How questions are answered and what is counted.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        batch_size: questions answered at a time; no answer depends on it beyond rounding.
        rate: compression rate; None for the nominal one.
        seed: of random vectors, of the exchange of memories, and of the bootstrap.
        confidence: level of the intervals.
        precision: arithmetic of the network.
        progress: whether the console shows how far it is.
    """

    max_new_tokens: int = 32
    batch_size: int = 16
    rate: int | None = None
    seed: int = 0
    confidence: float = 0.95
    precision: Literal["no", "bf16", "fp16"] = "no"
    progress: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ArmRecord:
    """One question as one arm answered it.

    Attributes:
        id: of the question.
        prediction: the answer.
        em: exact match (SQuAD's rules, best of all references), 0 or 1.
        contains: whether the prediction holds a reference as a run of whole tokens, 0 or 1.
        f1: token F1, best of all references, 0 to 1.
        rouge_l: F of the longest common subsequence, best of all references, 0 to 1.
        context_tokens: positions of the generator that passages or memory take.
        prompt_tokens: positions of the whole prompt.
        new_tokens: tokens written, the end token among them.
        ended: whether the generator came to an end by itself.
        seconds: from the beginning of its batch until the answer was complete, compression not included.
        answer_given: whether an answer stands in the text that was read, or in the text that was compressed.
        cut_tokens: tokens of passages that did not fit into the generator.
        memory_of: the question whose memory was read, where it was another's.
    """

    id: str
    prediction: str
    em: float
    contains: float
    f1: float
    rouge_l: float
    context_tokens: int
    prompt_tokens: int
    new_tokens: int
    ended: bool
    seconds: float
    answer_given: bool
    cut_tokens: int = 0
    memory_of: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, ``memory_of`` only where there is one."""
        row = dataclasses.asdict(self)
        return row if self.memory_of is not None else {name: row[name] for name in row if name != "memory_of"}


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """All questions as one arm answered them.

    Attributes:
        arm: which one.
        records: one a question, in the order of the rows.
        metrics: ``em``, ``contains``, ``f1``, ``rouge_l``, ``ended``, ``answer_given`` as fractions, and the means
            ``context_tokens``, ``prompt_tokens``, ``new_tokens``, ``cut_tokens``.
        intervals: of those that have one: Wilson's for rates, bootstrap for others.
        seconds: that answering took; of memory, with its compression.
    """

    arm: Arm
    records: tuple[ArmRecord, ...]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    seconds: float

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.records)

    def scores(self, metric: str) -> list[float]:
        """Return a score of each question."""
        return [float(getattr(record, metric)) for record in self.records]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form without the records: ``n``, the metrics beside each other, ``intervals``, and what the arm is."""
        return {
            "arm": self.arm.name, "what": self.arm.what, "reads": self.arm.reads, "weights": self.arm.weights, "n": self.n,
            **self.metrics, "intervals": {name: list(ends) for name, ends in self.intervals.items()}, "seconds": self.seconds,
        }  # fmt: skip


def measure_arms(
    subject: Subject,
    rows: Sequence[CompressExample],
    arms: Sequence[Arm],
    settings: ArmSettings,
    *,
    store: Path | None = None,
    weights: str = "",
) -> dict[str, ArmResult]:
    """Answer all rows in every arm and score the answers; results come in the order of the arms.

    Of fewer than two questions, ``shuffled`` is left out: there is no other memory.

    Args:
        subject: the network; adapters for full passages are put in place of its own while they read, and its own are restored
            exactly.
        rows: questions with their passages, as they are to be read.
        arms: of ``arms_of``.
        settings: how.
        store: folder in which each arm is kept as soon as it is answered; what is there is not answered again.
        weights: stands for the weights of generator and compressor: what is in the store with another name is answered anew.

    Raises:
        ConfigError: prompts leave no room for answers in the generator's positions.
        DataError: the adapters for full passages do not fit the generator.
        OutOfMemoryError: one prompt alone does not fit on the device.
    """
    asked = Asked(subject, rows, rate=settings.rate, seed=settings.seed, room=settings.max_new_tokens)
    arms = [arm for arm in arms if arm.reads != "other memory" or len(asked.rows) > 1]
    keys = {arm.name: _key(subject, asked, arm, settings, weights) for arm in arms}
    found = {} if store is None else {arm.name: _stored(store, arm, keys[arm.name], settings) for arm in arms}
    memory: list[Tensor] | None = None
    compressing = 0.0
    done: dict[str, ArmResult] = {}
    for arm in arms:
        earlier = found.get(arm.name)
        if earlier is not None:
            done[arm.name] = earlier
            continue
        started = time.perf_counter()
        with _computing(subject, settings):
            if arm.of_memory and memory is None:
                with _shown(len(asked.rows), "Compressing", settings) as advance:
                    memory = asked.vectors(settings.batch_size, advance)
                compressing = time.perf_counter() - started
                started = time.perf_counter()
            records = _answered(subject, asked, arm, memory, settings)
        seconds = time.perf_counter() - started + (compressing if arm.of_memory else 0.0)
        done[arm.name] = summarise(arm, records, seconds, settings)
        if store is not None:
            _keep(store, done[arm.name], keys[arm.name])
    return done


def answer_memory(subject: Subject, rows: Sequence[CompressExample], settings: ArmSettings) -> ArmResult:
    """Answer rows from memory alone: what an evaluation in the middle of training measures."""
    return measure_arms(subject, rows, [TABLE["compressed"]], settings)["compressed"]


def measure_rates(
    subject: Subject,
    rows: Sequence[CompressExample],
    settings: ArmSettings,
    *,
    store: Path | None = None,
    weights: str = "",
) -> dict[str, ArmResult]:
    """Answer all rows from memory at every further rate that the network was trained for, by names like ``compressed@32``.

    Nothing where there is one rate only.

    Args:
        subject: the network.
        rows: questions with their passages.
        settings: how; their rate does not count.
        store: as in ``measure_arms``, in a folder for each rate.
        weights: likewise.
    """
    found = {}
    for rate in subject.model.settings.all_rates[1:]:
        chosen = dataclasses.replace(settings, rate=rate)
        kept = None if store is None else store / f"rate-{rate}"
        arm = TABLE["compressed"]
        found[f"{arm.name}@{rate}"] = measure_arms(subject, rows, [arm], chosen, store=kept, weights=weights)[arm.name]
    return found


def summarise(arm: Arm, records: Sequence[ArmRecord], seconds: float, settings: ArmSettings) -> ArmResult:
    """Return an arm with its metrics and their intervals; none of either without a record."""
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    n = len(records)
    for name in (*RATES, *SHARES, "ended", "answer_given") if n else ():
        scores = [float(getattr(record, name)) for record in records]
        values[name] = math.fsum(scores) / n
        if name in SHARES:
            intervals[name] = metrics.bootstrap_mean(scores, BOOTSTRAP_SAMPLES, settings.seed, settings.confidence)
        else:
            intervals[name] = metrics.wilson(sum(scores), n, settings.confidence)
    for name in _MEANS if n else ():
        values[name] = math.fsum(getattr(record, name) for record in records) / n
    return ArmResult(arm, tuple(records), values, intervals, seconds)


@contextlib.contextmanager
def _computing(subject: Subject, settings: ArmSettings) -> Iterator[None]:
    """Compute in the arithmetic asked for, without gradients or dropout."""
    kind = torch.float16 if settings.precision == "fp16" else torch.bfloat16
    with (
        torch.no_grad(),
        evaluating(subject.model),
        torch.autocast(subject.model.device.type, dtype=kind, enabled=settings.precision != "no"),
    ):
        yield


@contextlib.contextmanager
def _shown(total: int, what: str, settings: ArmSettings) -> Iterator[Callable[[int], None] | None]:
    """Show how far it is, where that is asked for."""
    if not settings.progress:
        yield None
        return
    bar: report.Progress[None]
    with report.progress(total, what) as bar:
        yield bar.advance


@contextlib.contextmanager
def _weights(subject: Subject, arm: Arm) -> Iterator[None]:
    """Put the adapters of an arm into the generator."""
    if arm.weights == "full-context":
        if subject.full_adapters is None:
            raise ValueError(f"{arm.name} reads with adapters for full passages, and there are none")
        with adapters_swapped(subject.model.generator, subject.full_adapters):
            yield
    elif arm.weights == "base" and has_lora(subject.model.generator):
        with subject.model.untrained():
            yield
    else:
        yield


def _answered(
    subject: Subject, asked: Asked, arm: Arm, memory: Sequence[Tensor] | None, settings: ArmSettings
) -> list[ArmRecord]:
    """Return the answers of one arm, scored."""
    prompts = asked.prompts(arm, memory)
    other = settings.rate not in (None, subject.model.settings.compression_rate)
    rate = f"@{settings.rate}" if arm.of_memory and other else ""
    given = [CompressPrompt(p.prompted.ids.tolist(), p.prompted.slots.tolist(), p.vectors) for p in prompts]
    with _weights(subject, arm), _shown(len(prompts), f"Answering ({arm.name}{rate})", settings) as advance:
        answers = generate(
            subject.model, subject.tokenizer, given, max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size, advance=advance,
        )  # fmt: skip
    return [score(row, prompt, written) for row, prompt, written in zip(asked.rows, prompts, answers, strict=True)]


def score(row: CompressExample, prompt: ArmPrompt, written: Generated) -> ArmRecord:
    """Return an answer with its scores."""
    answers = row.answers
    return ArmRecord(
        id=row.id,
        prediction=written.text,
        em=metrics.exact_match(written.text, answers),
        contains=float(metrics.has_answer(answers, written.text)),
        f1=metrics.f1(written.text, answers),
        rouge_l=metrics.rouge_l(written.text, answers),
        context_tokens=prompt.context_tokens,
        prompt_tokens=len(prompt.prompted.ids),
        new_tokens=written.n_tokens,
        ended=written.ended,
        seconds=written.seconds,
        answer_given=prompt.answer_given,
        cut_tokens=prompt.prompted.cut,
        memory_of=prompt.memory_of,
    )


def _key(subject: Subject, asked: Asked, arm: Arm, settings: ArmSettings, weights: str) -> str:
    """Return what stands for all that an arm's answers depend on."""
    file = None if subject.full_adapters is None else subject.full_adapters / WEIGHTS_FILE
    adapters = sha256_file(file) if file is not None and arm.weights == "full-context" else None
    chosen = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _NOT_DEFINING}
    return results.fingerprint_of(
        {
            "arm": arm.name, "asked": asked.sha256, "weights": weights, "adapters": adapters, "settings": chosen,
            "prompt": subject.prompter.settings.to_json(), "compressor": subject.model.settings.to_json(),
        }
    )  # fmt: skip


def _keep(store: Path, result: ArmResult, key: str) -> None:
    records = [record.to_json() for record in result.records]
    write_json(store / f"{result.arm.name}.json", {"key": key, "seconds": result.seconds, "records": records})


def _stored(store: Path, arm: Arm, key: str, settings: ArmSettings) -> ArmResult | None:
    """Return an arm that was answered before, or None where it was not, or not this."""
    file = store / f"{arm.name}.json"
    if not file.is_file():
        return None
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] != key:
            return None
        records = [ArmRecord(**row) for row in kept["records"]]
        return summarise(arm, records, float(kept["seconds"]), settings)
    except (ValueError, TypeError, KeyError):  # of another version, or not ours
        return None
