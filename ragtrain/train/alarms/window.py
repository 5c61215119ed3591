"""What a process saw of retrieval since the last look, kept on its device until the window is over."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from ragtrain.data.prompts import CUTS
from ragtrain.train.alarms.known import WINDOW_QUESTIONS

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Seen:
    """A micro-batch of training.

    Attributes:
        ids: (batch, n_docs) positions in the index, -1 where ``mask`` is False.
        mask: (batch, n_docs) bool.
        queries: (batch, dim) question vectors.
        prior: (batch, n_docs) p(z|q), 0 where there is no passage.
        posterior: (batch, n_docs) p(z|q,y), likewise.
        question_mask: (batch, question tokens), what the question encoder reads.
        target_tokens: (batch,) tokens of each target that are predicted.
    """

    ids: Tensor
    mask: Tensor
    queries: Tensor
    prior: Tensor
    posterior: Tensor
    question_mask: Tensor | None = None
    target_tokens: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Window:
    """The figures of a window.

    Attributes:
        questions: how many.
        distinct: different passages among those retrieved for the first ``WINDOW_QUESTIONS`` of them, over places.
        spread: mean squared distance of question vectors from their mean, over their mean squared length.
        kl: KL(posterior || prior), mean over questions, in nats.
        n_docs: places of a question.
        missing: share of places without a passage.
        empty: questions whose target has no token.
        long: questions that reach the limit of the question encoder.
        inputs: generator inputs put together.
        cut: those in which the question was cut.
    """

    questions: int
    distinct: float
    spread: float
    kl: float
    n_docs: int
    missing: float
    empty: int
    long: int
    inputs: int
    cut: int


class Collector:
    """Adds up micro-batches without waiting for the device."""

    def __init__(self, max_question_tokens: int) -> None:
        """Begin the first window; questions of so many tokens count as cut."""
        self._limit = max_question_tokens
        self._centre: Tensor | None = None  # of the first question vectors: keeps the variance free of round-off
        self._clear()

    def _clear(self) -> None:
        self._sums: Tensor | None = None
        self._found: list[Tensor] = []
        self._kept = self._questions = self._n_docs = 0
        self._cuts = (CUTS.inputs, CUTS.questions)

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        """Take note of a micro-batch; a window holds its sums and the ids of ``WINDOW_QUESTIONS`` questions."""
        ids, mask, queries = seen.ids.detach(), seen.mask.detach(), seen.queries.detach().float()
        prior, posterior = seen.prior.detach().float(), seen.posterior.detach().float()
        if self._centre is None:
            self._centre = queries.mean(0)
        offset = queries - self._centre
        # A prior below the smallest float32 is 0, and a KL of infinity would tell less than one of 80.
        kl = torch.xlogy(posterior, posterior) - posterior * prior.clamp(min=1e-35).log()
        nothing = mask.new_zeros((), dtype=torch.long)
        long = nothing if seen.question_mask is None else (seen.question_mask.sum(1) >= self._limit).sum()
        empty = nothing if seen.target_tokens is None else (seen.target_tokens == 0).sum()
        figures = [offset.square().sum(), queries.square().sum(), kl.sum(), (~mask).sum(), long, empty]
        row = torch.cat([torch.stack([figure.float() for figure in figures]), offset.sum(0)])
        self._sums = row if self._sums is None else self._sums + row
        self._questions += len(ids)
        self._n_docs = ids.shape[1]
        if self._kept < WINDOW_QUESTIONS:
            self._found.append(ids.masked_fill(~mask, -1)[: WINDOW_QUESTIONS - self._kept])
            self._kept += len(self._found[-1])

    def take(self) -> Window | None:
        """Read the window's figures from the device, the one place where the host waits for it, and begin the next.

        Returns:
            None where nothing was seen.
        """
        if self._sums is None:
            return None
        n, found = self._questions, torch.cat(self._found)
        squares, lengths, kl, missing, long, empty = self._sums[:6].tolist()
        mean = float((self._sums[6:] / n).square().sum())
        window = Window(
            questions=n,
            distinct=len(torch.unique(found[found >= 0])) / found.numel(),
            spread=max(0.0, squares / n - mean) / max(lengths / n, 1e-30),
            kl=kl / n,
            n_docs=self._n_docs,
            missing=missing / (n * self._n_docs),
            empty=round(empty),
            long=round(long),
            inputs=CUTS.inputs - self._cuts[0],
            cut=CUTS.questions - self._cuts[1],
        )
        self._clear()
        return window
