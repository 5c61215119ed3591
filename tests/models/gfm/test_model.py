"""The network against twins from the equations, query by query."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ragtrain.errors import ConfigError, RagtrainError
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork

N, R, TEXT = 9, 3, 5
SMALL = GfmSettings(hidden_dim=4, num_layers=3, text_dim=TEXT)
FORMS = [(m, a) for m in ("distmult", "transe", "rotate") for a in ("sum", "mean", "max", "pna")]


def network(**changes: object) -> GraphNetwork:
    net = GraphNetwork(dataclasses.replace(SMALL, **changes))
    for parameter in net.parameters():  # norms too, which begin as 1 and 0
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def gradients(net: GraphNetwork, scores: Tensor) -> list[Tensor]:
    outer = torch.sin(torch.arange(scores.numel(), dtype=scores.dtype)).view_as(scores)
    found = torch.autograd.grad((scores * outer).sum(), list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), found, strict=True)]


@pytest.fixture
def table(twins: ModuleType) -> Tensor:
    return twins.random_triples(16, N - 1, R)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("message", "aggregate"), FORMS)
def test_questions_equal_the_twin(
    message: str, aggregate: str, checkpointing: bool, table: Tensor, twins: ModuleType
) -> None:
    net = network(message=message, aggregate=aggregate)
    net.activation_checkpointing = checkpointing
    graph = GraphTensors.from_triples(table, N, R)
    features, questions, weights = torch.randn(2 * R, TEXT), torch.randn(3, TEXT), torch.rand(N)
    seeds = [[0, 3, 3], [], [N - 1, 2]]
    scores = net.score_entities(graph, features, questions, seeds, weights)
    expected = twins.plain_entities(net, features, questions, seeds, weights, twins.edges_of(table, R))
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients(net, scores), gradients(net, expected), atol=5e-5, rtol=5e-5)
    with torch.no_grad():
        alone = net.score_entities(graph, features, questions, seeds, weights)
    torch.testing.assert_close(alone, expected.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("message", "aggregate"), FORMS)
def test_tails_equal_the_twin_on_graphs_without_the_own_edge(
    message: str, aggregate: str, table: Tensor, twins: ModuleType
) -> None:
    net = network(message=message, aggregate=aggregate)
    graph = GraphTensors.from_triples(table, N, R)
    features = torch.randn(2 * R, TEXT)
    head, relation, tail = table[[1, 4, 7]].unbind(1)
    heads, tails = torch.stack([head[0], tail[1], head[2]]), torch.stack([tail[0], head[1], tail[2]])
    relations = torch.stack([relation[0], relation[1] + R, relation[2]])  # the second asks for the head
    removed = graph.own_edges(heads, relations, tails)
    graphs = [twins.edges_of(torch.cat([table[:i], table[i + 1 :]]), R) for i in (1, 4, 7)]
    expected = twins.plain_tails(net, features, heads, relations, graphs, N)
    scores = net.score_tails(graph, features, heads, relations, removed=removed)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
    candidates = torch.stack([tails, torch.tensor([N - 1, 0, 2]), torch.tensor([5, 5, 5])], 1)
    some = net.score_tails(graph, features, heads, relations, candidates, removed=removed)
    torch.testing.assert_close(some, expected.gather(1, candidates), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        gradients(net, some), gradients(net, expected.gather(1, candidates)), atol=5e-5, rtol=5e-5
    )


@pytest.mark.parametrize("short_cut", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_without_norm_and_short_cut(short_cut: bool, layer_norm: bool, table: Tensor, twins: ModuleType) -> None:
    net = network(short_cut=short_cut, layer_norm=layer_norm).double()
    graph = GraphTensors.from_triples(table, N, R)
    features, heads, relations = torch.randn(2 * R, TEXT).double(), torch.tensor([0, 5]), torch.tensor([1, 4])
    expected = twins.plain_tails(net, features, heads, relations, [twins.edges_of(table, R)] * 2, N)
    torch.testing.assert_close(net.score_tails(graph, features, heads, relations), expected)


def test_scores_of_a_query_do_not_depend_on_its_batch(table: Tensor) -> None:
    net, graph, features = network(), GraphTensors.from_triples(table, N, R), torch.randn(2 * R, TEXT)
    head, relation, tail = table.unbind(1)
    together = net.score_tails(graph, features, head, relation, removed=graph.own_edges(head, relation, tail))
    for row in range(len(table)):
        own = [column[row : row + 1] for column in (head, relation, tail)]
        alone = net.score_tails(graph, features, *own[:2], removed=graph.own_edges(*own))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-5)


def test_the_retriever_has_as_many_parameters_as_gfm_rags() -> None:
    with torch.device("meta"):
        net = GraphNetwork(GfmSettings())
    assert sum(parameter.numel() for parameter in net.parameters()) == 8_144_897


def test_bfloat16_is_near(table: Tensor) -> None:
    net, graph, features = network(hidden_dim=16), GraphTensors.from_triples(table, N, R), torch.randn(2 * R, TEXT)
    questions, seeds = torch.randn(2, TEXT), [[0], [3, 4]]
    exact = net.score_entities(graph, features, questions, seeds)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = net.score_entities(graph, features, questions, seeds)
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores.float(), exact, atol=0.1 * exact.abs().max().item(), rtol=0.1)
    assert all(gradient.isfinite().all() for gradient in gradients(net, scores))


def test_questions_begin_where_relations_are() -> None:
    net = network()
    net.questions_from_relations()
    texts = torch.randn(2, TEXT)
    assert torch.equal(net.question_mlp(texts), net.relation_mlp(texts))
    assert net.question_mlp.weight is not net.relation_mlp.weight


def test_settings_survive_json_and_refuse_what_cannot_be() -> None:
    settings = GfmSettings(hidden_dim=8, message="rotate", aggregate="pna", text_dim=3)
    assert GfmSettings.from_json(settings.to_json()) == settings
    assert GraphNetwork(settings, text_dim=7).settings.text_dim == 7
    with pytest.raises(ConfigError, match="no setting colour"):
        GfmSettings.from_json({"colour": 1})
    with pytest.raises(ConfigError, match="aggregate"):
        GfmSettings(aggregate="median")
    with pytest.raises(ConfigError, match="even"):
        GfmSettings(hidden_dim=5, message="rotate")
    with pytest.raises(ConfigError, match="at least 1"):
        GfmSettings(num_layers=0)


def test_each_question_has_its_seeds(table: Tensor) -> None:
    graph = GraphTensors.from_triples(table, N, R)
    with pytest.raises(RagtrainError, match="2 questions and seeds of 1"):
        network().score_entities(graph, torch.randn(2 * R, TEXT), torch.randn(2, TEXT), [[0]])
