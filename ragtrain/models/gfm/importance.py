"""How much each edge matters to a score, layer by layer: what paths of an explanation are made of.

The weight of an edge is a factor before its message, which is 1; its importance is the gradient of the score with respect to that
factor (NBFNet, arXiv:2106.06935, section 4.3). It is the gradient of the network itself, in the direction in which its messages
go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ragtrain.models.gfm.kernel import edge_gradients
from ragtrain.models.gfm.layers import KINDS, Degrees

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from ragtrain.models.gfm.edges import GraphTensors
    from ragtrain.models.gfm.layers import NBFLayer
    from ragtrain.models.gfm.model import GraphNetwork


def edge_importance(
    net: GraphNetwork,
    graph: GraphTensors,
    relation_features: Tensor,
    question_vector: Tensor,
    seeds: Tensor | np.ndarray | Sequence[int],
    targets: Sequence[int],
    weights: Tensor | None = None,
) -> Tensor:
    """Return the gradient of entities' logits with respect to the weight of each edge in each layer.

    Args:
        net: the network.
        graph: the edges.
        relation_features: (2R, text_dim).
        question_vector: (text_dim,) of one question.
        seeds: its entities.
        targets: entities whose scores are explained.
        weights: (N,) how much each entity counts as a seed.

    Returns:
        (targets, layers, E) float32, edges in the order of ``graph.into``.
    """
    settings = net.settings
    kinds = KINDS[settings.aggregate]
    with torch.enable_grad():
        query, boundary = net.boundary_of(question_vector.unsqueeze(0), [seeds], weights)
        relation_states = net.relation_states(relation_features)
        states, degrees = boundary.dense(graph.n_entities, 1), Degrees.of(graph)
        passed: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = []
        for module in net.layers:
            layer = cast("NBFLayer", module)
            relations = layer.relations(relation_states)
            gathered = layer.gather(states, relations, graph)
            passed.append((states.detach(), relations.detach(), gathered))
            # Copies, since a layer adds the boundary in place.
            states = layer.update(states, tuple(each.clone() for each in gathered), boundary, degrees)
        chosen = states[torch.as_tensor(list(targets), dtype=torch.int64, device=graph.device), 0]
        logits = net.head(torch.cat([chosen, query.expand(len(chosen), -1)], -1)).squeeze(-1)
    inputs = [each for _, _, gathered in passed for each in gathered]
    rows = []
    for number, logit in enumerate(logits):
        found = torch.autograd.grad(logit, inputs, retain_graph=number + 1 < len(logits))
        layers = []
        for at, (before, relations, gathered) in enumerate(passed):
            gradients = found[at * len(kinds) : (at + 1) * len(kinds)]
            results = tuple(each.detach() for each in gathered)
            layers.append(
                edge_gradients(
                    graph, before, relations, gradients, message=settings.message, kinds=kinds, results=results
                )
            )
        rows.append(torch.stack(layers))
    return torch.stack(rows) if rows else logits.new_zeros(0, len(passed), len(graph))
