"""How the beams of a passage, of a question over its passages, or of fused passages go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ragtrain.models.decoding.decoder import Tree

if TYPE_CHECKING:
    from ragtrain.models.decoding.beams import SearchSettings, Stepper
    from ragtrain.models.decoding.decoder import Decoder, Source


class PassageStepper:
    """The beams of each group of a source: one tree a group, whose keys and values never move."""

    def __init__(self, decoder: Decoder, source: Source, settings: SearchSettings) -> None:
        self.decoder, self.source = decoder, source
        self.tree = Tree(1 + settings.num_beams * (settings.max_new_tokens - 1))
        self.visible: Tensor | None = None
        self.steps = 0

    def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """Return logits (groups, beams, vocabulary) after the latest tokens."""
        groups, beams = tokens.shape
        own = torch.eye(beams, dtype=torch.bool, device=tokens.device).expand(groups, -1, -1)
        if self.visible is None or origin is None:
            self.visible = own
        else:
            self.visible = torch.cat([self.visible.take_along_dim(origin[..., None], 1), own], 2)
        depth = torch.full_like(tokens, self.steps)
        self.steps += 1
        return self.decoder.logits(self.decoder(tokens, depth, self.visible, self.source, self.tree))

    def select(self, rows: Tensor) -> None:
        """Keep some groups."""
        self.source = self.source.select(rows)
        self.tree.select(rows)
        self.visible = None if self.visible is None else self.visible[rows]


class MarginalStepper:
    """The beams of each question under all its passages: log sum_z p(z|q) p(y_t|q,z,y_<t) is what tokens are worth."""

    def __init__(self, passages: Stepper, log_prior: Tensor) -> None:
        self.passages, self.log_prior = passages, log_prior

    def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """Return marginal log-probabilities (questions, beams, vocabulary), float32."""
        n_docs = self.log_prior.shape[1]
        spread = None if origin is None else origin.repeat_interleave(n_docs, dim=0)
        logits = self.passages(tokens.repeat_interleave(n_docs, dim=0), spread).float()
        joint = torch.log_softmax(logits, dim=-1).view(-1, n_docs, *logits.shape[1:])
        return torch.logsumexp(joint + self.log_prior[:, :, None, None], dim=1)

    def select(self, rows: Tensor) -> None:
        """Keep some questions, with all their passages."""
        n_docs = self.log_prior.shape[1]
        self.passages.select((rows[:, None] * n_docs + torch.arange(n_docs, device=rows.device)).flatten())
        self.log_prior = self.log_prior[rows]
