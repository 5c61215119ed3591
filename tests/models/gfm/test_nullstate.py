"""Null states against the dense pass over all entities and queries."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ragtrain.models.gfm import nullstate, reach
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork

N, R, TEXT, LAYERS = 40, 3, 5, 3
FORMS = [(m, a) for m in ("distmult", "transe", "rotate") for a in ("sum", "mean", "max", "pna")]


def network(**changes: object) -> GraphNetwork:
    net = GraphNetwork(GfmSettings(**{"hidden_dim": 6, "num_layers": LAYERS, "text_dim": TEXT, **changes}))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net


@pytest.fixture
def table(twins: ModuleType) -> Tensor:
    """A chain with some branches, of which 3 layers reach a part only."""
    chain = torch.stack([torch.arange(N - 3), torch.arange(N - 3) % R, torch.arange(1, N - 2)], 1)
    return torch.unique(torch.cat([chain, twins.random_triples(4, N - 2, R)]), dim=0)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows even where they do not pay."""
    monkeypatch.setattr(reach, "worth", lambda *args, **kwargs: True)
    monkeypatch.setattr(reach, "WORTH", float("inf"))


def both(net: GraphNetwork, score: object, *, grad: bool) -> tuple[Tensor, Tensor]:
    results = []
    for null_states in (True, False):
        net.null_states = null_states
        with torch.set_grad_enabled(grad):
            results.append(score())
    return results[0], results[1]


def gradients(net: GraphNetwork, scores: Tensor) -> list[Tensor]:
    outer = torch.sin(torch.arange(scores.numel(), dtype=scores.dtype)).view_as(scores)
    found = torch.autograd.grad((scores * outer).sum(), list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), found, strict=True)]


def close(got: object, want: object) -> None:
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize(("message", "aggregate"), FORMS)
def test_questions(message: str, aggregate: str, table: Tensor) -> None:
    net = network(message=message, aggregate=aggregate).double()
    graph = GraphTensors.from_triples(table, N, R)
    features, questions = torch.randn(2 * R, TEXT).double(), torch.randn(4, TEXT).double()
    seeds, weights = [[0, 5], [], [N - 1], [7]], torch.rand(N).double()

    def score() -> Tensor:
        return net.score_entities(graph, features, questions, seeds, weights)

    close(*both(net, score, grad=False))
    rows, dense = both(net, score, grad=True)
    close(rows, dense)
    close(gradients(net, rows), gradients(net, dense))


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize(("message", "aggregate"), [*FORMS[:4], FORMS[4], FORMS[8]])
def test_tails(message: str, aggregate: str, remove: bool, checkpointing: bool, table: Tensor) -> None:
    net = network(message=message, aggregate=aggregate).double()
    net.activation_checkpointing = checkpointing
    graph, features = GraphTensors.from_triples(table, N, R), torch.randn(2 * R, TEXT).double()
    head, relation, tail = table[[1, 9, 20]].unbind(1)
    removed = graph.own_edges(head, relation, tail) if remove else None
    for candidates in (None, torch.cat([tail[:, None], torch.randint(0, N, (3, 5))], 1)):

        def score(candidates: Tensor | None = candidates) -> Tensor:
            return net.score_tails(graph, features, head, relation, candidates, removed=removed)

        close(*both(net, score, grad=False))
        rows, dense = both(net, score, grad=True)
        close(rows, dense)
        close(gradients(net, rows), gradients(net, dense))


def test_pna_with_removed_edges_is_left_to_the_dense_pass(table: Tensor) -> None:
    """A removed edge changes the mean degree, and so the states of all entities."""
    graph = GraphTensors.from_triples(table, N, R)
    removed = graph.own_edges(*table[:1, [0, 1, 2]].T)
    assert len(removed) == 2
    assert not nullstate.exact(network(aggregate="pna"), removed)
    assert nullstate.exact(network(aggregate="pna"), None)
    assert nullstate.exact(network(aggregate="max"), removed)


def test_levels_are_distances(table: Tensor) -> None:
    graph = GraphTensors.from_triples(table, N, R)
    near = torch.eye(N, dtype=torch.bool)
    for head, _, tail in table.tolist():
        near[head, tail] = near[tail, head] = True
    seeds = [3, 17]
    level = reach.reached(graph, torch.tensor([3 * 2, 17 * 2 + 1]), 2, LAYERS).view(N, 2)
    state = torch.zeros(N, 2)
    state[seeds, [0, 1]] = 1
    for layer in range(LAYERS + 1):
        assert torch.equal(level <= layer, state > 0)
        state = near.float() @ state
    assert reach.worth(graph, 4, LAYERS, 512)
    assert not reach.worth(graph, 1, LAYERS, 512)
    assert reach.worth(graph, 1, LAYERS, 512, cached=True)
    assert not reach.worth(graph, 4, LAYERS, 8)  # looking up edges would cost more than messages
    full = GraphTensors.from_triples(
        torch.cartesian_prod(torch.arange(5), torch.zeros(1).long(), torch.arange(5)), 5, 1
    )
    assert not reach.worth(full, 64, LAYERS, 512)
    assert not reach.worth(full, 64, LAYERS, 512, some=4)


def test_only_what_candidates_need_is_computed(table: Tensor) -> None:
    graph = GraphTensors.from_triples(table, N, R)
    seeds = torch.tensor([0])
    level = reach.reached(graph, seeds, 1, LAYERS)
    every = reach.rows_of(graph, seeds, level, LAYERS)
    some = reach.rows_of(graph, seeds, level, LAYERS, wanted=torch.tensor([[N - 4]]))
    assert some.layers[-1].edges.n_out == 1
    assert some.cost < every.cost / 2


def test_null_states_are_kept_until_something_changes(table: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = nullstate.NullStates.of.__func__
    monkeypatch.setattr(
        nullstate.NullStates, "of", classmethod(lambda cls, *args: made.append(1) or original(cls, *args))
    )
    net, features, questions = network(), torch.randn(2 * R, TEXT), torch.randn(4, TEXT)
    graphs = [GraphTensors.from_triples(table[start:], N, R) for start in (0, 5)]

    @torch.no_grad()
    def check(graph: GraphTensors, expected: int) -> None:
        scores = net.score_entities(graph, features, questions, [[1], [5], [20], [30]])
        assert len(made) == expected
        net.null_states = False
        close(scores, net.score_entities(graph, features, questions, [[1], [5], [20], [30]]))
        net.null_states = True

    monkeypatch.setattr(reach, "worth", lambda *args, **kwargs: True)
    check(graphs[0], 1)
    check(graphs[0], 1)
    check(graphs[1], 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
    net.score_entities(graphs[1], features, questions, [[1], [5], [20], [30]]).sum().backward()
    optimizer.step()
    check(graphs[1], 3)
    net.layers[1].linear.weight.data[0, 0] += 1
    check(graphs[1], 4)
    features[0, 0] += 1
    check(graphs[1], 5)
    with torch.inference_mode():
        check(graphs[1], 5)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert copied.null_cache._states is None
    net.null_cache.clear()
    check(graphs[1], 6)
