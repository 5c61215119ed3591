"""The alarms that are known: when they are raised, and what to do about each."""

from __future__ import annotations

import dataclasses
from typing import Any

WINDOW_QUESTIONS = 128
"""Questions of a window: the share of different passages among so many has a standard error below 0.05."""
COLLAPSE_SHARE = 0.25
"""Different passages, relative to the beginning. A retriever that finds other passages for other questions keeps most of
them whatever it learns (the demo set: 84 to 89 % different, in every window); one that gives every question the same n_docs
passages keeps a 128th."""
QUERY_SHARE = 0.1
"""Spread of question vectors, relative to the beginning: what they share tells no passage from another. On the
demo set it falls from 0.40 to 0.30."""
UNTAUGHT_KL = 1e-3
"""KL(posterior || prior) in nats: probabilities differ by some two in a hundred, and the gradient is their difference. On
the demo set it stays between 0.7 and 1."""
CONTRADICTED_KL = 3.0
"""In nats: the prior gives what the posterior picks 5 % (e^-3), where indifference among 5 passages gives 20 %."""
KL_WINDOWS = 3
"""Windows in a row: either end is passed through on the way while the generator learns to read."""
ZERO_GRADIENT = 1e-12
"""Norm of a gradient: far below the float32 round-off of any gradient that is there."""
ZERO_GRADIENT_STEPS = 3
"""Steps in a row: one step may consist of questions whose answer no passage tells apart."""
EXPLODED = 3.0
"""Multiple of the running median, which lags behind a falling loss and so only errs on the safe side."""
EXPLODED_STEPS = 3
"""Steps in a row: a single step is an odd batch, which clipping takes care of."""
LOSS_STEPS = 80
"""Steps that the running median is taken over, and that a steady rise must fill."""
LOSS_FIRST = 20
"""Steps after which there is a median to compare with."""
LOSS_BLOCKS = 4
"""Parts of those steps whose medians must rise one after the other."""
RISEN = 1.5
"""What the last part's median must be of the first part's."""
LOSS_FLOOR = 0.5
"""Nats by which a loss must have grown in any case: three times nearly nothing is nearly nothing."""
CUT_SHARE = 0.01
"""Share of questions that are cut: one in a hundred may well be a pasted text."""
MISSING_SHARE = 0.01
"""Share of places without a passage."""
QUIET_STEPS = 200
"""Steps in a row without a trouble after which it is told of again when it comes back."""
QUIET_WINDOWS = 20
"""The same in windows, for what is looked at once a window."""

RETRIEVER_GROUPS = ("question_encoder", "passage_encoder")
"""Parameter groups of a retriever in training."""

HARMFUL = frozenset({"retrieval-collapse", "query-collapse", "zero-gradient", "exploding-loss", "rising-loss"})
"""Alarms after which going on is a waste."""

_COLLAPSED = (
    "start again with a --retriever-learning-rate ten times smaller, with --freeze-retriever-steps until the generator "
    "reads, or with --infonce-weight 0.1"
)
REMEDIES = {
    "retrieval-collapse": _COLLAPSED,
    "query-collapse": _COLLAPSED,
    "zero-gradient": "with --n-docs 1 there is nothing to prefer: take 2 or more; scores of hundreds have a prior of one "
    "passage: raise --score-temperature; or say --no-train-question-encoder",
    "exploding-loss": "start again with a smaller --learning-rate, more --warmup-steps or a smaller --max-grad-norm; or "
    "go on from an earlier checkpoint with --resume PATH",
    "rising-loss": "start again with smaller learning rates, or go on from an earlier checkpoint with --resume PATH",
    "untaught-retriever": "the generator ignores the passages, or the prior is one passage: train it longer before the "
    "retriever (--freeze-retriever-steps), add --infonce-weight 0.1, or change --score-temperature",
    "contradicted-retriever": "raise --score-temperature so that the prior is less sure of itself, or raise "
    "--retriever-learning-rate",
    "cut-questions": "raise --max-question-tokens",
    "cut-generator-questions": "raise --max-input-tokens: no passage fits beside such a question",
    "empty-targets": "remove these questions or their answers: they teach nothing",
    "missing-passages": "search exactly with --search-index flat, or ask for fewer with --n-docs",
}
"""What to do about each alarm; the flags are those of ``ragtrain train rag``."""


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One way of going wrong, as it was found.

    Attributes:
        name: which one, a key of ``REMEDIES``.
        step: optimizer steps done.
        message: what was seen, with its figures.
        figures: the same as numbers.
    """

    name: str
    step: int
    message: str
    figures: dict[str, float]

    @property
    def remedy(self) -> str:
        """What to do about it, flags by name."""
        return REMEDIES[self.name]

    @property
    def is_harmful(self) -> bool:
        """Whether going on is a waste."""
        return self.name in HARMFUL

    def to_json(self) -> dict[str, Any]:
        """Return the line of ``alarms.jsonl``."""
        return {**dataclasses.asdict(self), "remedy": self.remedy, "harmful": self.is_harmful}
