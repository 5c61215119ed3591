"""What a question costs in each arm, whatever the machine: tokens, floating-point operations, bytes of the cache.

The same is meant by ``flops`` as in ``ragtrain.models.flops``. A question that the compressor reads with a passage is charged to
every window of it, and every arm writes an answer of the same length; choosing sentences (BM25) and tokenising count nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from typing import TYPE_CHECKING, Any

from ragtrain.data.compress.records import passage_text
from ragtrain.errors import ConfigError
from ragtrain.evaluate.compress.arms import TABLE
from ragtrain.evaluate.compress.asked import Asked
from ragtrain.models.flops import StackFlops, cache_bytes, linear_flops

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.arms import Arm
    from ragtrain.evaluate.compress.subject import Subject

log = logging.getLogger("ragtrain")

#: Controls: nobody would answer like this, and nothing is to be learnt from what it costs.
_CONTROLS = ("random", "shuffled", "before")


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one question: of compressor and connector, of reading the prompt, of writing after the first token."""

    compress: int
    prefill: int
    decode: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.compress + self.prefill + self.decode


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one question costs.

    Attributes:
        context_tokens: positions of the generator that passages or memory take.
        prompt_tokens: positions of the whole prompt.
        compressor_tokens: tokens that the compressor reads, its own and the question among them, over all windows.
        flops: operations; None where they cannot be counted.
        cache_bytes: keys and values of prompt and answer.
    """

    context_tokens: int
    prompt_tokens: int
    compressor_tokens: int
    flops: Flops | None
    cache_bytes: int


def measure_cost(
    subject: Subject, rows: Sequence[CompressExample], *, max_new_tokens: int = 32, rate: int | None = None
) -> dict[str, Any]:
    """Return the mean cost of a question in each arm, at each rate, and what a stored passage takes.

    Nothing is computed but sizes: operations are those of the configurations, for every row with its own lengths, without
    padding and without adapters; a network that cannot be counted gives ``None`` for each, and a warning. Keys and values
    are of the type of the generator's weights.

    Args:
        subject: the network.
        rows: questions with their passages, as they are read; at least one.
        max_new_tokens: tokens of every answer.
        rate: compression rate whose memory the arms have; None for the nominal one.

    Returns:
        ``n``, ``new_tokens``, ``question_charged_to_windows``; ``arms`` (by name: ``context_tokens``, ``prompt_tokens``,
        ``compressor_tokens``, ``flops`` with ``compress``, ``prefill``, ``decode`` and ``total``, ``cache_bytes``, and
        ``full_over_this``: how many times full passages cost as many operations, means over means); ``rates`` (the same of
        memory at every rate); ``stored`` (bytes of a passage as vectors of 16 bits and as text; for a compressor that reads no
        question, after how many questions on a passage its vectors have cost less than its text).
    """
    counter = _Counter(subject, max_new_tokens)
    settings = subject.model.settings
    nominal = settings.all_rates[0] if rate is None else rate
    asked = Asked(subject, rows, rate=nominal, seed=0, room=max_new_tokens)
    memory = {each: _memory(counter, subject, asked, each) for each in dict.fromkeys((nominal, *settings.all_rates))}
    arms = {
        arm.name: memory[nominal] if arm.of_memory else _text(counter, asked, arm)
        for arm in TABLE.values()
        if arm.name not in _CONTROLS
    }
    full = arms["full"]
    return {
        "n": len(asked.rows),
        "new_tokens": max_new_tokens,
        "question_charged_to_windows": settings.query_dependent,
        "arms": {name: _means(costs, full) for name, costs in arms.items()},
        "rates": {str(each): _means(costs, full) for each, costs in memory.items()},
        "stored": _stored(subject, asked, memory[nominal], full),
    }


def sentences(costs: Mapping[str, Any]) -> list[str]:
    """Return what memory costs beside full passages, a sentence for operations and one for each size of batch that was timed.

    Args:
        costs: ``cost`` of ``measure_cost`` and, where times were taken, ``speed`` of ``measure_speed``.
    """
    found, arms = [], costs["cost"]["arms"]
    if arms["compressed"]["flops"] is not None:
        own, full = (arms[name]["flops"]["total"] for name in ("compressed", "full"))
        found.append(
            f"operations of a question: {own:.3g} from memory, {full:.3g} from full passages, {full / own:.2f} times as many"
        )
    for size, batch in costs.get("speed", {}).get("batches", {}).items():
        what = "single questions" if size == "1" else f"batches of {size} questions"
        if batch["full_over_compressed"] is None:
            found.append(f"{what}: one of memory and full passages does not fit on the device")
            continue
        own, full = (batch["arms"][name]["seconds"]["total"]["mean"] for name in ("compressed", "full"))
        ratio = batch["full_over_compressed"]["total"]
        found.append(
            f"{what}: {1000 * own:,.0f} ms from memory, {1000 * full:,.0f} ms from full passages, "
            f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times as long"
        )
    return found


class _Counter:
    """Operations and bytes of one network, by lengths."""

    def __init__(self, subject: Subject, new_tokens: int) -> None:
        model = subject.model
        self._config = model.generator.config
        self._dtype = model.generator.dtype
        self.known = True
        try:
            self._generator = StackFlops(self._config, head=True)
            self._compressor = StackFlops(model.compressor.config, head=False)
        except ConfigError as error:
            # A run of hours is not given up for this.
            log.warning("%s", error.message)
            self.known = False
        self._connector = linear_flops(model.connector)
        self._rank = linear_flops(model.rank_head) if model.settings.rank_head else 0
        self._new = new_tokens

    def of(self, context: int, prompt: int, windows: Iterable[int] = (), vectors: int = 0) -> Cost:
        """Return the cost of a prompt whose memory comes from windows of so many tokens."""
        lengths = list(windows)
        size = cache_bytes(self._config, prompt + self._new - 1, bytes_per_value=self._dtype.itemsize)
        if not self.known:
            return Cost(context, prompt, sum(lengths), None, size)
        compress = sum(map(self._compressor.forward, lengths)) + self._connector * vectors + self._rank * len(lengths)
        flops = Flops(compress, self._generator.forward(prompt), self._generator.decode(prompt, self._new))
        return Cost(context, prompt, sum(lengths), flops, size)


def _memory(counter: _Counter, subject: Subject, asked: Asked, rate: int) -> list[Cost]:
    """Return the cost of every question answered from memory."""
    costs = []
    for row, windowed in zip(asked.rows, asked.windowed, strict=True):
        lengths = subject.windower.collate([windowed], rate).attention_mask.sum(1).tolist()
        counts = subject.windower.counts(windowed, rate)
        prompt = subject.prompter.memory(row.question, counts)
        costs.append(counter.of(sum(counts), len(prompt.ids), lengths, sum(counts)))
    return costs


def _text(counter: _Counter, asked: Asked, arm: Arm) -> list[Cost]:
    """Return the cost of every question answered from text, or from nothing."""
    return [counter.of(prompt.context_tokens, len(prompt.prompted.ids)) for prompt in asked.prompts(arm, None)]


def _means(costs: Sequence[Cost], full: Sequence[Cost]) -> dict[str, Any]:
    def mean(name: str) -> float:
        return statistics.fmean(getattr(cost, name) for cost in costs)

    names = "compress", "prefill", "decode", "total"
    flops = [cost.flops for cost in costs if cost.flops is not None]
    means = {name: statistics.fmean(getattr(each, name) for each in flops) for name in names} if flops else None
    return {
        **{name: mean(name) for name in ("context_tokens", "prompt_tokens", "compressor_tokens")},
        "flops": means,
        "cache_bytes": mean("cache_bytes"),
        "full_over_this": statistics.fmean(cost.flops.total for cost in full if cost.flops) / means["total"]
        if means
        else None,
    }


def _stored(subject: Subject, asked: Asked, memory: Sequence[Cost], full: Sequence[Cost]) -> dict[str, Any]:
    """Return what a passage takes on disk, and when that has paid where it can be stored at all."""
    texts = [passage_text(document) for row in asked.rows for document in row.documents]
    passages = max(1, len(texts))
    width = subject.model.tasks.shape[1]
    found: dict[str, Any] = {
        "vector_bytes": 2 * width * sum(asked.budgets) / passages,
        "text_bytes": sum(len(text.encode()) for text in texts) / passages,
        "can_be_stored": not subject.model.settings.query_dependent,
    }
    if found["can_be_stored"]:
        pairs = [(a.flops, b.flops) for a, b in zip(full, memory, strict=True) if a.flops and b.flops]
        saved = sum(text.total - own.prefill - own.decode for text, own in pairs)
        made = sum(own.compress for _, own in pairs)
        found["break_even_questions"] = made / saved if saved > 0 else None
    return found
