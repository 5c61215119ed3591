"""RAG-Sequence: answers proposed by each passage's beams, chosen by their marginal likelihood (section 2.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ragtrain.losses import log_joint, log_prior
from ragtrain.models.decoding.answers import Answer, Ballot, elect, strip
from ragtrain.models.decoding.beams import search

if TYPE_CHECKING:
    from ragtrain.models.decoding.beams import Hypotheses, SearchSettings
    from ragtrain.models.decoding.reading import Reading
    from ragtrain.models.rag import RagModel, Retrieved

Method = Literal["thorough", "fast"]
Pair = tuple[int, tuple[int, ...]]

#: Beginnings of candidates, in tokens, that are scored before whole candidates are: most are decided by then.
STAGES = (2, 8)
#: Nats below which a passage's share in a candidate's likelihood is left out: beyond the resolution of float32.
NEGLIGIBLE = -20.0
#: Nats that a bound may be off by rounding.
_SLACK = 1e-3


def answer(
    model: RagModel, reading: Reading, scores: Tensor, retrieved: Retrieved, settings: SearchSettings, method: Method
) -> list[Answer]:
    """Return the best answer to each question.

    Args:
        model: the model.
        reading: its passages, read.
        scores: (batch, n_docs).
        retrieved: the passages.
        settings: how to search.
        method: score every candidate under every passage, or only under those that proposed it.
    """
    found = search(reading.stepper(settings), len(retrieved.input_ids), settings, scores.device)
    count = _Count(model, found, retrieved.mask, settings.pad)
    if method == "thorough":
        count.complete(reading, log_prior(scores, retrieved.mask))
    ballot = Ballot(count.tokens, count.owner, count.loglik(), count.prior_counts)
    return elect(model, ballot, scores, retrieved)


class _Count:
    """Candidates and what is known of them: ``values[candidate, passage]`` is log p of each token, where ``known``.

    Candidates stand in the order in which the passages of their question proposed them.
    """

    def __init__(self, model: RagModel, found: Hypotheses, mask: Tensor, pad: int) -> None:
        n_docs = mask.shape[1]
        flat, rows = mask.flatten().tolist(), found.tokens.tolist()
        place: dict[Pair, int] = {}
        at: dict[tuple[int, int], tuple[int, int]] = {}
        for row, beams in enumerate(rows):
            if not flat[row]:
                continue
            for beam, tokens in enumerate(beams):
                candidate = place.setdefault((row // n_docs, strip(tokens, pad)), len(place))
                at.setdefault((candidate, row % n_docs), (row, beam))
        self.tokens, self.owner = [sequence for _, sequence in place], [question for question, _ in place]
        device, longest = found.token_loglik.device, found.token_loglik.shape[2]
        self.values = torch.zeros(len(place), n_docs, longest, device=device)
        self.known = torch.zeros(len(place), n_docs, dtype=torch.bool, device=device)
        if at:
            to, source = torch.tensor(list(at), device=device).T, torch.tensor(list(at.values()), device=device).T
            self.values[to[0], to[1]] = found.token_loglik[source[0], source[1]]
            self.known[to[0], to[1]] = True
        self.there = mask[torch.tensor(self.owner, dtype=torch.long, device=device)]
        self.ignored = torch.zeros(len(place), 1, longest, dtype=torch.bool, device=device)
        self.prior_counts: Tensor | None = None
        if not model.reader.causal:
            self._follow_transformers(model, pad)

    def loglik(self) -> Tensor:
        """Return log p(y|q,z) of each candidate, (candidates, n_docs) float32; -inf where it is not known."""
        return self.values.masked_fill(self.ignored, 0.0).sum(2).masked_fill(~self.known, -torch.inf)

    def complete(self, reading: Reading, prior: Tensor) -> None:
        """Score each candidate under the passages that did not propose it, as far as it matters.

        A likelihood never grows with another token. So the beginning of a candidate bounds the whole, and what cannot
        win any more, whatever its rest is worth, is not read to its end; neither is a candidate under a passage whose
        share in it is negligible already. The answer chosen is the same, and so is its likelihood.

        Args:
            reading: the passages.
            prior: (batch, n_docs) log p(z|q).
        """
        owner = torch.tensor(self.owner, dtype=torch.long, device=prior.device)
        bound = torch.zeros_like(self.known, dtype=torch.float32)  # of log p(y|q,z), where it is not known
        unknown = self.there & ~self.known
        for limit in (*STAGES, None):
            unknown &= self._matters(log_joint(bound, prior[owner], self.prior_counts), owner, prior)
            longest = max(
                (len(self.tokens[candidate]) for candidate in unknown.any(1).nonzero().flatten().tolist()), default=0
            )
            if limit is None or longest > 3 * limit:
                self._read(reading, unknown, limit)
                bound = self.values.masked_fill(self.ignored, 0.0).sum(2)
        self.known |= unknown

    def _matters(self, bound: Tensor, owner: Tensor, prior: Tensor) -> Tensor:
        """Say which pairs may still change an answer: (candidates, n_docs); ``bound`` is of log p(y,z|q)."""
        known = log_joint(self.loglik(), prior[owner], self.prior_counts)
        least = torch.logsumexp(known, dim=1)
        most = torch.logsumexp(torch.where(self.known, known, bound), dim=1)
        leader = torch.full((len(prior),), -torch.inf, device=prior.device).scatter_reduce(0, owner, least, "amax")
        alive = most >= leader[owner] - _SLACK
        return alive[:, None] & (bound >= least[:, None] + NEGLIGIBLE)

    def _read(self, reading: Reading, unknown: Tensor, limit: int | None) -> None:
        """Score pairs (candidates, n_docs), or the first ``limit`` tokens of their candidates."""
        n_docs, wanted = unknown.shape[1], dict[int, list[int]]()
        for candidate, doc in unknown.nonzero().tolist():
            wanted.setdefault(self.owner[candidate] * n_docs + doc, []).append(candidate)
        sequences = [[self.tokens[candidate][:limit] for candidate in some] for some in wanted.values()]
        for (row, some), values in zip(wanted.items(), reading.score(list(wanted), sequences), strict=True):
            self.values[some, row % n_docs, : values.shape[1]] = values

    def _follow_transformers(self, model: RagModel, pad: int) -> None:
        """Leave out padding, a BOS token that all candidates of a question open with, and lost priors (style ``hf``)."""
        if model.settings.target_style == "hf":
            second = [len(sequence) > 1 and sequence[1] != pad for sequence in self.tokens]
            self.prior_counts = torch.tensor(second, dtype=torch.bool, device=self.values.device)
        bos = getattr(model.generator.config, "bos_token_id", None)
        strangers = {question for question, y in zip(self.owner, self.tokens, strict=True) if y[:1] != (bos,)}
        for candidate, (question, sequence) in enumerate(zip(self.owner, self.tokens, strict=True)):
            places = [place for place, token in enumerate(sequence) if token == pad]
            if question not in strangers:
                places.append(0)
            self.ignored[candidate, 0, places] = True
