"""RAG-Sequence: answers proposed by each passage's beams, chosen by their marginal likelihood (section 2.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ragtrain.models.decoding.answers import Answer, Ballot, elect, strip
from ragtrain.models.decoding.beams import search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.models.decoding.beams import Hypotheses, SearchSettings
    from ragtrain.models.decoding.reading import Reading
    from ragtrain.models.rag import RagModel, Retrieved

Method = Literal["thorough", "fast"]
Pair = tuple[int, tuple[int, ...]]


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
    ballot = _Count(found, retrieved.mask, settings.pad)
    if method == "thorough":
        ballot.complete(reading)
    return elect(model, ballot.close(model), scores, retrieved)


class _Count:
    """Candidates and what is known of them: ``values[candidate, passage]`` is log p of each token, where ``known``.

    Candidates stand in the order in which the passages of their question proposed them.
    """

    def __init__(self, found: Hypotheses, mask: Tensor, pad: int) -> None:
        n_docs = mask.shape[1]
        self.mask, self.pad = mask.tolist(), pad
        flat, rows = mask.flatten().tolist(), found.tokens.tolist()
        self.place: dict[Pair, int] = {}
        at: dict[tuple[int, int], tuple[int, int]] = {}
        for row, beams in enumerate(rows):
            if not flat[row]:
                continue
            for beam, tokens in enumerate(beams):
                candidate = self.place.setdefault((row // n_docs, strip(tokens, pad)), len(self.place))
                at.setdefault((candidate, row % n_docs), (row, beam))
        device, longest = found.token_loglik.device, found.token_loglik.shape[2]
        self.values = torch.zeros(len(self.place), n_docs, longest, device=device)
        self.known = torch.zeros(len(self.place), n_docs, dtype=torch.bool, device=device)
        if at:
            to, source = torch.tensor(list(at), device=device).T, torch.tensor(list(at.values()), device=device).T
            self.values[to[0], to[1]] = found.token_loglik[source[0], source[1]]
            self.known[to[0], to[1]] = True

    def complete(self, reading: Reading) -> None:
        """Score each candidate under the passages that did not propose it."""
        known, n_docs = self.known.tolist(), self.known.shape[1]
        wanted: dict[int, list[int]] = {}
        for (question, _), candidate in self.place.items():
            for doc in range(n_docs):
                if self.mask[question][doc] and not known[candidate][doc]:
                    wanted.setdefault(question * n_docs + doc, []).append(candidate)
        tokens = [sequence for _, sequence in self.place]
        sequences = [[tokens[candidate] for candidate in some] for some in wanted.values()]
        for (row, some), values in zip(wanted.items(), reading.score(list(wanted), sequences), strict=True):
            self.values[some, row % n_docs, : values.shape[1]] = values
        # What missing passages say is left out with their prior.
        self.known[:] = True

    def close(self, model: RagModel) -> Ballot:
        """Sum up the log-likelihoods.

        A BOS token that all candidates of a question open with is not scored, and in target style ``hf`` an answer of
        a single token loses its prior: both as in transformers.
        """
        tokens, owner = [sequence for _, sequence in self.place], [question for question, _ in self.place]
        values, counts = self.values, None
        if not model.reader.causal:
            values = values.masked_fill(self._padding(tokens), 0.0)
            if model.settings.target_style == "hf":
                second = [len(sequence) > 1 and sequence[1] != self.pad for sequence in tokens]
                counts = torch.tensor(second, dtype=torch.bool, device=values.device)
            bos = getattr(model.generator.config, "bos_token_id", None)
            strangers = {question for question, sequence in self.place if sequence[:1] != (bos,)}
            shared = torch.tensor([question not in strangers for question in owner], device=values.device)
            values[..., 0] = values[..., 0].masked_fill(shared[:, None], 0.0)
        loglik = values.sum(2).masked_fill(~self.known, -torch.inf)
        return Ballot(tokens, owner, loglik, counts)

    def _padding(self, tokens: Sequence[tuple[int, ...]]) -> Tensor:
        """Say where candidates hold a padding token within: (candidates, 1, tokens); it is not scored."""
        inner = torch.zeros(len(tokens), 1, self.values.shape[2], dtype=torch.bool)
        for candidate, sequence in enumerate(tokens):
            for place, token in enumerate(sequence):
                if token == self.pad:
                    inner[candidate, 0, place] = True
        return inner.to(self.values.device)
