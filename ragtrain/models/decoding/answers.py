"""Candidate answers, and the one of them that is given."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ragtrain.errors import DataError
from ragtrain.losses import log_joint, log_prior

if TYPE_CHECKING:
    from ragtrain.models.rag import RagModel, Retrieved


@dataclasses.dataclass(frozen=True)
class Answer:
    """The best answer to a question, and how much each passage had to do with it.

    Attributes:
        text: the answer.
        token_ids: its tokens, without the decoder's start token and padding.
        log_likelihood: log sum_z p(z|q) p(y|q,z); where the answer opens with a BOS token, without that token's. By
            fast decoding the sum is over the passages that proposed the answer. Of a FiD model: log p(y|q,passages).
        candidates: different answers that were weighed.
        passage_ids: the passages' positions in the index, -1 where fewer were found.
        scores: inner products of question and passages, over the model's temperature.
        prior: p(z|q) of each passage.
        posterior: p(z|q,y) of each passage; of a FiD model, which has none, the prior.
    """

    text: str
    token_ids: tuple[int, ...]
    log_likelihood: float
    candidates: int
    passage_ids: tuple[int, ...]
    scores: tuple[float, ...]
    prior: tuple[float, ...]
    posterior: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Ballot:
    """Answers to be weighed.

    Attributes:
        tokens: of each candidate, without start token and trailing padding.
        owner: its question's place in the batch.
        loglik: (candidates, n_docs) float32 log p(y|q,z), -inf where a passage has no say.
        prior_counts: (candidates,) bool for ``ragtrain.losses.log_joint``; None where every prior counts.
    """

    tokens: list[tuple[int, ...]]
    owner: list[int]
    loglik: Tensor
    prior_counts: Tensor | None = None


def elect(model: RagModel, ballot: Ballot, scores: Tensor, retrieved: Retrieved) -> list[Answer]:
    """Return the candidate with the highest marginal likelihood of each question; the first of equals.

    Raises:
        DataError: a question has no candidate, because no passage was found for it.
    """
    prior = log_prior(scores, retrieved.mask)
    owner = torch.tensor(ballot.owner, dtype=torch.long, device=scores.device)
    joint = log_joint(ballot.loglik, prior[owner], ballot.prior_counts)
    marginal = torch.logsumexp(joint, dim=1).tolist()
    own: list[list[int]] = [[] for _ in range(len(scores))]
    for candidate, question in enumerate(ballot.owner):
        own[question].append(candidate)
    chosen = []
    for question, candidates in enumerate(own):
        if not candidates:
            raise DataError(f"no passage was found for question {question} of the batch", hint="Check the index.")
        chosen.append(max(candidates, key=lambda candidate: marginal[candidate]))
    posterior = torch.softmax(joint[chosen], dim=1)
    shares = Shares(scores, prior.exp(), posterior)
    lines = [(ballot.tokens[best], marginal[best], len(own[question])) for question, best in enumerate(chosen)]
    return describe(model, lines, shares, retrieved)


@dataclasses.dataclass(frozen=True)
class Shares:
    """What passages are worth: ``scores``, ``prior`` and ``posterior``, each (batch, n_docs)."""

    scores: Tensor
    prior: Tensor
    posterior: Tensor


def describe(
    model: RagModel, lines: list[tuple[tuple[int, ...], float, int]], shares: Shares, retrieved: Retrieved
) -> list[Answer]:
    """Return answers as plain values; ``lines`` are tokens, log-likelihood and number of candidates of each."""
    table = (part.tolist() for part in (retrieved.ids, shares.scores, shares.prior, shares.posterior))
    return [
        Answer(
            text=str(model.generator_tokenizer.decode(list(tokens), skip_special_tokens=True)).strip(),
            token_ids=tokens,
            log_likelihood=loglik,
            candidates=count,
            passage_ids=tuple(ids),
            scores=tuple(scores),
            prior=tuple(prior),
            posterior=tuple(posterior),
        )
        for (tokens, loglik, count), ids, scores, prior, posterior in zip(lines, *table, strict=True)
    ]


def strip(tokens: list[int], pad: int) -> tuple[int, ...]:
    """Return a hypothesis without its start token and trailing padding."""
    end = len(tokens)
    while end > 1 and tokens[end - 1] == pad:
        end -= 1
    return tuple(tokens[1:end])
