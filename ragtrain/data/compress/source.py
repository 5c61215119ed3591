"""Micro-batches for training: of memory (``CompressSource``), and of the same rows with their passages as text (``FullSource``).

Everything here is a function of the seed, the epoch and the row, so that a resumed run meets the same batches. Rows of similar
cost share a micro-batch; cost is counted in characters, so that planning needs no tokenizer. The compression rate of a
micro-batch is drawn with it, and stays the same where a full device halves it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ragtrain.data.compress.batches import collate_prompts
from ragtrain.data.sft.batches import collate_rows
from ragtrain.data.sft.records import Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.compress.batches import CompressBatch
    from ragtrain.data.compress.contexts import CompressContexts
    from ragtrain.data.compress.prompts import CompressPrompter
    from ragtrain.data.compress.records import Context, Prompted
    from ragtrain.data.compress.windows import Windower
    from ragtrain.data.sft.batches import SftBatch

#: Micro-batches whose rows are sorted by cost together: long enough to save padding, short enough to stay random.
BUCKET_BATCHES = 32
#: Rows with the longest passages whose prompts are tried before training.
CHECKED = 32


def planned(costs: np.ndarray, batch_size: int, seed: int, epoch: int, *, shuffle: bool = True) -> list[list[int]]:
    """Return micro-batches of places, each with places of similar cost, in an order drawn with seed and epoch.

    Args:
        costs: (places,) of each.
        batch_size: places in a micro-batch.
        seed: of the order.
        epoch: of training.
        shuffle: draw the order; without it, that of the places, sorted within buckets.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(costs)) if shuffle else np.arange(len(costs))
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * BUCKET_BATCHES):
        bucket = order[start : start + batch_size * BUCKET_BATCHES]
        bucket = bucket[np.argsort(costs[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size].tolist() for i in range(0, len(bucket), batch_size)]
    if not shuffle:
        return batches
    return [batches[i] for i in np.random.default_rng((seed, epoch, 1)).permutation(len(batches))]


def batch_rates(n_batches: int, rates: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Return the rate of each micro-batch of an epoch, drawn evenly: each rate is as frequent as any other, plus one at most."""
    rng = np.random.default_rng((seed, epoch, 2))
    drawn: list[int] = []
    while len(drawn) < n_batches:
        drawn += [rates[i] for i in rng.permutation(len(rates))]
    return drawn[:n_batches]


@dataclasses.dataclass(frozen=True)
class RatedPlan:
    """The micro-batches of an epoch, and the rate of each place in them."""

    batches: list[list[int]]
    rates: dict[int, int]


class RatedPlans:
    """Plans of epochs with a compression rate for each micro-batch."""

    def __init__(self, costs: Sequence[int], rates: Sequence[int], *, batch_size: int, seed: int) -> None:
        """Take what each place costs and the rates to draw from."""
        self.costs, self.rates = np.array(costs, dtype=np.int64), tuple(rates)
        self.batch_size, self.seed = batch_size, seed
        self._known: dict[int, RatedPlan] = {}

    def of(self, epoch: int) -> RatedPlan:
        """Return the plan of an epoch."""
        plan = self._known.get(epoch)
        if plan is None:
            batches = planned(self.costs, self.batch_size, self.seed, epoch)
            drawn = batch_rates(len(batches), self.rates, self.seed, epoch)
            by_place = {place: rate for batch, rate in zip(batches, drawn, strict=True) for place in batch}
            plan = RatedPlan(batches, by_place)
            # The loop asks for plans, and the thread that collates for rates, an epoch ahead at most.
            self._known = {**dict(list(self._known.items())[-1:]), epoch: plan}
        return plan


class CompressSource:
    """Micro-batches of questions with the memory of their passages.

    Attributes:
        contexts: the rows and what is shown of them.
        windower: cuts passages.
        prompter: writes prompts.
    """

    def __init__(
        self,
        contexts: CompressContexts,
        windower: Windower,
        prompter: CompressPrompter,
        *,
        batch_size: int,
        seed: int,
        full: bool = False,
    ) -> None:
        """Take the rows and how they are written.

        Args:
            contexts: the rows.
            windower: of the compressor.
            prompter: of the generator.
            batch_size: questions in a micro-batch.
            seed: of order and rates.
            full: give the same rows with their passages as text beside (``CompressBatch.full``).
        """
        self.contexts, self.windower, self.prompter, self.full = contexts, windower, prompter, full
        rates = windower.settings.all_rates
        self._plans = RatedPlans(contexts.lengths(), rates, batch_size=batch_size, seed=seed)

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the micro-batches of an epoch as places of rows."""
        return self._plans.of(epoch).batches

    def rate_of(self, place: int, epoch: int) -> int:
        """Return the compression rate that the row at a place is trained at in an epoch."""
        return self._plans.of(epoch).rates[place]

    def check(self) -> None:
        """Refuse rows whose memory the generator has no room for, before training meets them: the dearest are looked at.

        Raises:
            DataError: naming the question and what to change.
        """
        lowest = min(self.windower.settings.all_rates)
        for place in np.argsort(-self._plans.costs, kind="stable")[:CHECKED].tolist():
            self.batch([self.contexts.context(place, 0)], lowest)

    def collate(self, indices: Sequence[int], epoch: int) -> CompressBatch:
        """Assemble one micro-batch of training."""
        shown = [self.contexts.context(place, epoch) for place in indices]
        return self.batch(shown, self.rate_of(indices[0], epoch))

    def ordered(self) -> list[list[int]]:
        """Return micro-batches that visit every row once, dearest first: for evaluation."""
        order, size = np.argsort(-self._plans.costs, kind="stable"), self._plans.batch_size
        return [order[i : i + size].tolist() for i in range(0, len(order), size)]

    def evaluation(self, indices: Sequence[int], rate: int | None = None) -> CompressBatch:
        """Assemble rows as evaluations show them; without a rate, at the nominal one."""
        return self.batch([self.contexts.context(place) for place in indices], rate)

    def batch(self, shown: Sequence[Context], rate: int | None = None) -> CompressBatch:
        """Assemble contexts; those without a target have nothing to learn."""
        rows = self.windower.windows([(each.example.question, each.documents) for each in shown])
        prompts = [
            self.prompter.memory(each.example.question, self.windower.counts(row, rate), each.target or None)
            for each, row in zip(shown, rows, strict=True)
        ]
        full = text_batch(shown, self.prompter) if self.full else None
        scores = [score for each in shown for score in each.scores]
        ids = [each.example.id for each in shown]
        windows = self.windower.collate(rows, rate)
        return collate_prompts(prompts, ids, windows, self.prompter.pad_id, scores=scores, full=full)


class FullSource:
    """Micro-batches of the same rows with their passages as text: what adapters for full passages are trained on."""

    def __init__(self, contexts: CompressContexts, prompter: CompressPrompter, *, batch_size: int, seed: int) -> None:
        """Take the rows, in the same order and with the same passages each epoch as ``CompressSource`` of this seed."""
        self.contexts, self.prompter, self.batch_size, self.seed = contexts, prompter, batch_size, seed
        self._costs = np.array(contexts.lengths(), dtype=np.int64)

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the micro-batches of an epoch as places of rows."""
        return planned(self._costs, self.batch_size, self.seed, epoch)

    def collate(self, indices: Sequence[int], epoch: int) -> SftBatch:
        """Assemble one micro-batch of training."""
        return text_batch([self.contexts.context(place, epoch) for place in indices], self.prompter)


def text_batch(shown: Sequence[Context], prompter: CompressPrompter) -> SftBatch:
    """Return contexts as prompts of text."""
    prompts = [prompter.text(each.example.question, each.documents, each.target or None) for each in shown]
    return collate_rows([encoded(prompt) for prompt in prompts], [each.example.id for each in shown], prompter.pad_id)


def encoded(prompt: Prompted) -> Encoded:
    """Return a prompt without vectors in the form of fine-tuning."""
    return Encoded(prompt.ids, prompt.labels, lost="text" if prompt.cut else "")
