"""The network together with the graphs that it works on, and the losses of both stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ragtrain import losses
from ragtrain.losses import ranking
from ragtrain.models.gfm.model import GraphNetwork
from ragtrain.train.gfm.sources import QuestionBatch, TripleBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ragtrain.config.commands import GfmConfig
    from ragtrain.models.gfm.ultra import UltraNetwork
    from ragtrain.train.gfm.data import GraphData

#: Temperature of the weights of negatives where none is given (GFM-RAG's in both stages).
TEMPERATURE = {"pretrain": 1.0, "finetune": 0.2}


class GraphModel(nn.Module):
    """A network that is asked in batches; graphs are no part of its weights."""

    def __init__(
        self, network: GraphNetwork | UltraNetwork, graphs: Sequence[GraphData], *, weighted_seeds: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.graphs = list(graphs)
        self._weights = [each.seed_weights() if weighted_seeds else None for each in graphs]

    def forward(self, batch: TripleBatch | QuestionBatch) -> Tensor:
        """Return logits: of the candidates of triples (B, 1 + k), or of all entities for questions (B, N)."""
        data = self.on(batch.graph, batch.vectors.device if isinstance(batch, QuestionBatch) else batch.heads.device)
        if isinstance(batch, TripleBatch):
            tails = batch.candidates[:, 0]
            removed = data.tensors.own_edges(batch.heads, batch.relations, tails)
            return self.network.score_tails(
                data.tensors, data.features, batch.heads, batch.relations, batch.candidates, removed=removed
            )
        if not isinstance(self.network, GraphNetwork):
            raise TypeError("ULTRA knows no questions")
        return self.network.score_entities(
            data.tensors, data.features, batch.vectors, batch.seeds, self._weights[batch.graph]
        )

    def on(self, number: int, device: torch.device) -> GraphData:
        """Return a graph, moved to a device the first time it is asked for."""
        data, weights = self.graphs[number], self._weights[number]
        data.to(device)
        if weights is not None and weights.device != device:
            self._weights[number] = weights.to(device)
        return data


def loss_of(config: GfmConfig) -> Callable[[nn.Module, TripleBatch | QuestionBatch], losses.LossOutput]:
    """Return the loss of a micro-batch of the configuration's stage."""
    return _pretrain(config) if config.data.stage == "pretrain" else _finetune(config)


def _temperature(config: GfmConfig) -> float:
    asked = config.objective.adversarial_temperature
    return TEMPERATURE[config.data.stage] if asked is None else asked


def _pretrain(config: GfmConfig) -> Callable[[nn.Module, TripleBatch | QuestionBatch], losses.LossOutput]:
    temperature = _temperature(config)

    def loss(model: nn.Module, batch: TripleBatch | QuestionBatch) -> losses.LossOutput:
        logits = model(batch).float()
        nll = ranking.self_adversarial_bce(logits, temperature=temperature)
        first = (logits.detach()[:, :1] > logits.detach()[:, 1:]).all(1).float().sum()
        return losses.LossOutput(nll.sum(), batch.weight, {"first_of_candidates": (first, batch.weight)})

    return loss


def _finetune(config: GfmConfig) -> Callable[[nn.Module, TripleBatch | QuestionBatch], losses.LossOutput]:
    temperature, asked = _temperature(config), config.objective

    def loss(model: nn.Module, batch: TripleBatch | QuestionBatch) -> losses.LossOutput:
        if not isinstance(batch, QuestionBatch):
            raise TypeError("questions are fine-tuned on")
        logits = model(batch).float()
        positives = marked(batch.entities, logits.shape[1], logits.device)
        terms = {"bce": (asked.bce_weight, ranking.self_adversarial_bce(logits, positives, temperature=temperature)),
                 "list": (asked.list_weight, ranking.list_cross_entropy(logits, positives))}  # fmt: skip
        if asked.document_weight > 0:
            terms["documents"] = (asked.document_weight, _documents(model, batch, logits))
        total = sum((weight * term.sum() for weight, term in terms.values()), torch.zeros((), device=logits.device))
        parts = {name: (term.detach().sum(), batch.weight) for name, (_, term) in terms.items()}
        return losses.LossOutput(total, batch.weight, parts)

    return loss


def _documents(model: nn.Module, batch: QuestionBatch, logits: Tensor) -> Tensor:
    """Return the listwise cross-entropy of documents, by the rarity of their entities."""
    bare = next(part for part in model.modules() if isinstance(part, GraphModel))
    data = bare.graphs[batch.graph]
    entities = torch.from_numpy(data.graph.document_entities).to(logits.device)
    offsets = torch.from_numpy(data.graph.document_offsets).to(logits.device)
    weights = data.seed_weights().to(logits.device)
    positives = marked(batch.documents, len(data.graph.documents), logits.device)
    return ranking.document_cross_entropy(logits, entities, offsets, positives, weights)


def marked(places: Sequence[Tensor], count: int, device: torch.device) -> Tensor:
    """Return (rows, count) bool, True at the places of each row."""
    table = torch.zeros((len(places), count), dtype=torch.bool, device=device)
    for row, some in enumerate(places):
        table[row, some] = True
    return table
