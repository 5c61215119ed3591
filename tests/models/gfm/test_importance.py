"""Importance of edges against automatic differentiation of a weight before each message."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.importance import edge_importance
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork

N, R, TEXT, WIDTH = 9, 3, 5, 4


@pytest.mark.parametrize("message", ["distmult", "transe", "rotate"])
@pytest.mark.parametrize("aggregate", ["sum", "mean", "max"])
def test_importance_is_the_gradient_of_edge_weights(message: str, aggregate: str, twins: ModuleType) -> None:
    settings = GfmSettings(hidden_dim=WIDTH, num_layers=3, message=message, aggregate=aggregate, text_dim=TEXT)
    net = GraphNetwork(settings).double()
    graph = GraphTensors.from_triples(twins.random_triples(14, N - 1, R), N, R)
    features, question = torch.randn(2 * R, TEXT).double(), torch.randn(TEXT).double()
    weights = torch.rand(N).double()
    got = edge_importance(net, graph, features, question, [0, 3], [2, 5], weights)

    target, source, relation = (part.long() for part in (graph.into.row, graph.into.first, graph.into.second))
    edge_weights = torch.ones(3, len(graph), dtype=torch.float64, requires_grad=True)
    query = net.question_mlp(question)
    boundary = torch.zeros(N, WIDTH, dtype=torch.float64)
    boundary[[0, 3]] = torch.outer(weights[[0, 3]], query)
    x = boundary
    for layer, own in zip(net.layers, edge_weights, strict=True):
        z = layer.relation_projection(net.relation_mlp(features))
        sent = twins.message_of(x[source], z[relation], message) * own.unsqueeze(1)
        if aggregate == "max":
            places = target.unsqueeze(1).expand_as(sent)
            u = torch.full_like(x, -torch.inf).scatter_reduce(0, places, sent, "amax")
            u = torch.maximum(u, boundary)
        else:
            u = boundary.index_add(0, target, sent)
            if aggregate == "mean":
                u = u / (graph.degrees + 1).unsqueeze(1)
        y = F.linear(torch.cat([x, u], -1), layer.linear.weight, layer.linear.bias)
        y = F.layer_norm(y, (WIDTH,), layer.layer_norm.weight, layer.layer_norm.bias)
        x = F.relu(y) + x
    scores = net.head(torch.cat([x, query.expand_as(x)], -1)).squeeze(-1)
    for row, entity in zip(got, (2, 5), strict=True):
        want = torch.autograd.grad(scores[entity], edge_weights, retain_graph=True)[0]
        torch.testing.assert_close(row, want)


def test_importance_with_pna_and_without_targets(twins: ModuleType) -> None:
    net = GraphNetwork(GfmSettings(hidden_dim=WIDTH, num_layers=2, aggregate="pna", text_dim=TEXT))
    graph = GraphTensors.from_triples(twins.random_triples(14, N - 1, R), N, R)
    features = torch.randn(2 * R, TEXT)
    found = edge_importance(net, graph, features, torch.randn(TEXT), [1], [2, 3])
    assert found.shape == (2, 2, len(graph))
    assert found.isfinite().all()
    assert found[:, 1].abs().sum() > 0
    assert edge_importance(net, graph, features, torch.randn(TEXT), [1], []).shape == (0, 2, len(graph))
