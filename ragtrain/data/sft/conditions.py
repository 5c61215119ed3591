"""The conditions under which a model is evaluated: without passages, with right, wrong or found ones, or mixed.

Exact match with the gold passages less that with those found is what retrieval costs; with gold passages among distractors
less that with the gold ones alone is what distraction costs.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Literal

from ragtrain.data.sft.distractors import Distractors, gold_of, ranked, shown
from ragtrain.data.sft.records import Sample
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.sft.records import Example
    from ragtrain.data.sft.shots import Shots
    from ragtrain.records import Document

log = logging.getLogger("ragtrain")

Condition = Literal["closed-book", "gold", "retrieved", "gold+distractors", "distractors-only"]
#: Hard negatives of a row to draw from, for each passage of a prompt.
HARD = 4


@dataclasses.dataclass(frozen=True)
class ConditionSamples:
    """The prompts of a condition.

    Attributes:
        condition: its name.
        samples: one for each row that the condition can be had of, in their order.
        origins: the place of each sample's row.
        left_out: ids of the rows without a gold passage, where the condition needs one.
    """

    condition: Condition
    samples: list[Sample]
    origins: list[int]
    left_out: tuple[str, ...]


def samples_for(
    examples: Sequence[Example],
    condition: Condition,
    n_docs: int,
    seed: int,
    *,
    shots: Shots | None = None,
    gold_at: int | None = None,
) -> ConditionSamples:
    """Return prompts under a condition; what is drawn depends on the seed and the row's id only.

    Args:
        examples: rows with their passages, best first.
        condition: ``closed-book``: no passage; ``gold``: the gold ones, at most ``n_docs``; ``retrieved``: the best
            ``n_docs``; ``gold+distractors``: the gold ones in any places among distractors, ``n_docs`` in all;
            ``distractors-only``: ``n_docs`` passages that hold no answer, in any order.
        n_docs: passages in a prompt.
        seed: of the draws.
        shots: draws solved examples from the training rows.
        gold_at: of ``gold+distractors``, the place of the gold passage from 1, or of the first of several that follow each
            other, as far as there is room; the distractors are the same ones in the same order wherever it is. None
            shuffles all of them.

    Raises:
        ConfigError: rows bring finished prompts, or no row has what the condition needs.
    """
    if any(example.finished is not None for example in examples):
        raise ConfigError(f"rows with finished prompts cannot be asked under the condition {condition!r}",
                          hint="leave --conditions out, or give questions and passages")  # fmt: skip
    if condition != "closed-book" and n_docs < 1:
        raise ConfigError(f"the condition {condition!r} needs passages, and n_docs is {n_docs}", hint="give --n-docs")
    distractors = Distractors(examples, HARD * n_docs)
    made = ConditionSamples(condition, [], [], ())
    left_out: list[str] = []
    for place, example in enumerate(examples):
        gold = gold_of(example)[:n_docs]
        if condition in ("gold", "gold+distractors") and not gold:
            left_out.append(example.id)
            continue
        documents: Sequence[Document] = ()
        ranks: Sequence[int] | None = None
        if condition == "gold":
            documents = gold
        elif condition == "retrieved":
            documents = ranked(example)[:n_docs]
        elif condition in ("gold+distractors", "distractors-only"):
            rng = random.Random(f"condition/{seed}/{example.id}")
            right = gold if condition == "gold+distractors" else ()
            mixed = [*right, *distractors.draw(place, n_docs - len(right), rng, beside=right)]
            ranks = (
                rng.sample(range(len(mixed)), len(mixed))
                if gold_at is None
                else _gold_at(gold_at, len(right), len(mixed))
            )
            documents = [mixed[i] for i in ranks]
        made.samples.append(
            Sample(
                example.id, example.question, tuple(map(shown, documents)), example.targets[0] if example.targets else "",
                shots=() if shots is None else shots.draw(example),
                ranks=tuple(range(len(documents)) if ranks is None else ranks),
            )
        )  # fmt: skip
        made.origins.append(place)
    _report(examples, made, left_out)
    return dataclasses.replace(made, left_out=tuple(left_out))


def _gold_at(place: int, n_gold: int, count: int) -> list[int]:
    """Return the order of gold passages, which come first, and distractors, so that the gold ones begin at a place from 1."""
    wrong = list(range(n_gold, count))
    before = min(place - 1, len(wrong))
    return [*wrong[:before], *range(n_gold), *wrong[before:]]


def _report(examples: Sequence[Example], made: ConditionSamples, left_out: Sequence[str]) -> None:
    if examples and not made.samples:
        raise ConfigError(f"the condition {made.condition!r} needs gold passages, and none of {len(examples)} rows has one",
                          hint="take --conditions closed-book,retrieved, or data that says which passages are gold")  # fmt: skip
    if made.condition == "retrieved" and made.samples and not any(sample.documents for sample in made.samples):
        raise ConfigError("the condition 'retrieved' needs passages, and no row has one", hint="give an index")
    if left_out:
        log.warning(
            "%s: %d of %d rows have no gold passage and are left out", made.condition, len(left_out), len(examples)
        )
