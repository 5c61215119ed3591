"""Validation during training: ranks of held-out triples, or of the documents of held-out questions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from accelerate.utils import gather_object

from ragtrain.index.graph.rankers import DocumentRanker, rank_documents
from ragtrain.models.gfm import ranks
from ragtrain.train.gfm.sources import QuestionBatch, batch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator
    from torch import Tensor, nn

    from ragtrain.config.commands import GfmConfig
    from ragtrain.train.gfm.build import GfmParts
    from ragtrain.train.gfm.data import GraphData
    from ragtrain.train.gfm.task import GraphModel

#: Depths at which the recall of documents is told.
DEPTHS = (2, 5, 10)


def evaluation_of(
    config: GfmConfig, parts: GfmParts, accelerator: Accelerator
) -> Callable[[nn.Module], dict[str, float]]:
    """Return what the loop calls for validation: means over the graphs; processes share the queries."""
    pretrain = config.data.stage == "pretrain"
    measure, expected = (_triples, ()) if pretrain else (_questions, ("mrr", *(f"recall@{k}" for k in DEPTHS)))

    def validate(model: nn.Module) -> dict[str, float]:
        network = cast("GraphModel", model)
        found: list[dict[str, float]] = []
        for number in parts.validation:
            mine: dict[str, list[float]] = {}
            with accelerator.autocast():
                for row in measure(config, network, number, accelerator):
                    for name, value in row.items():
                        mine.setdefault(name, []).append(value)
            everywhere = gather_object([mine])
            names = dict.fromkeys([*expected, *(name for each in everywhere for name in each)])
            found.append({name: _mean([v for each in everywhere for v in each.get(name, [])]) for name in names})
        names = dict.fromkeys(name for each in found for name in each)
        # Of a graph whose questions have no gold documents (entities) there is no such figure.
        there = {name: [each[name] for each in found if not math.isnan(each.get(name, math.nan))] for name in names}
        return {f"eval_{name}": _mean(values) for name, values in there.items()}

    return validate


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _triples(config: GfmConfig, model: GraphModel, number: int, accelerator: Accelerator) -> Iterator[dict[str, float]]:
    """Yield the figures of each held-out triple, asked for its tail and for its head."""
    data = model.on(number, accelerator.device)
    mine = data.held_out[accelerator.process_index :: accelerator.num_processes].to(accelerator.device)
    for start in range(0, len(mine), config.loop.batch_size):
        some = mine[start : start + config.loop.batch_size]
        heads, relations, targets = _both(some, data)
        scores = model.network.score_tails(data.tensors, data.features, heads, relations).float()
        found = ranks.filtered(scores, targets, data.all_known.pairs(heads, relations))
        for rank in found.tolist():
            yield {"mr": rank, "mrr": 1 / rank, **{f"hits@{k}": float(rank <= k) for k in (1, 3, 10)}}


def _both(triples: Tensor, data: GraphData) -> tuple[Tensor, Tensor, Tensor]:
    """Return heads, relations and tails of what triples ask in both directions."""
    head, relation, tail = triples.unbind(1)
    return (
        torch.cat([head, tail]),
        torch.cat([relation, relation + data.graph.n_relations]),
        torch.cat([tail, head]),
    )


def _questions(
    config: GfmConfig, model: GraphModel, number: int, accelerator: Accelerator
) -> Iterator[dict[str, float]]:
    """Yield the figures of each held-out question: of its documents, whether it was linked or not, and of its entities."""
    data = model.on(number, accelerator.device)
    asked = config.ranking
    ranker = DocumentRanker(data.graph, asked.ranker, asked.ranker_top_k, accelerator.device)
    by_rarity = DocumentRanker(data.graph, "idf", asked.ranker_top_k, accelerator.device)
    mine = data.validation[accelerator.process_index :: accelerator.num_processes]
    for start in range(0, len(mine), config.loop.batch_size):
        some = mine[start : start + config.loop.batch_size]
        batch = batch_of(data, number, some).to(accelerator.device)
        scores = model(batch).float()
        # As in evaluation: equal documents are ordered by all their entities, by rarity.
        probabilities = torch.sigmoid(scores.double())
        order = rank_documents(ranker.scores(probabilities), fallback=by_rarity.scores(probabilities))
        for row in range(len(some)):
            n_gold = len(batch.documents[row]) + some[row].missing_documents
            yield {**_of_documents(order[row], batch.documents[row], n_gold), **_of_entities(scores[row], batch, row)}


def _of_documents(order: Tensor, gold: Tensor, n_gold: int) -> dict[str, float]:
    """Return true recall at the depths and the reciprocal rank of the first supporting document, as evaluation does.

    Documents that the graph does not have (``n_gold`` counts them) are not found. A question that names none has no figures.
    """
    if not n_gold:
        return {}
    place = torch.isin(order, gold).nonzero().flatten()
    found = {f"recall@{k}": float((place < k).sum()) / n_gold for k in DEPTHS}
    return {"mrr": 1 / (int(place[0]) + 1) if len(place) else 0.0, **found}


def _of_entities(scores: Tensor, batch: QuestionBatch, row: int) -> dict[str, float]:
    gold = batch.entities[row]
    if not len(gold):
        return {}
    best = scores[gold].max()
    return {"entity_mrr": 1 / int((scores >= best).sum())}
