"""Grouped sums against one message at a time, and against the kernel for all messages."""

from __future__ import annotations

import random

import pytest
import torch

from ragtrain.models.gfm import grouped
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.grouped import Groups, sum_products
from ragtrain.models.gfm.kernel import gather_messages

N, R, D = 11, 3, 4


def graph(n: int = 70) -> GraphTensors:
    draws = random.Random(0)
    triples = {(draws.randrange(N), draws.randrange(R), draws.randrange(N - 1)) for _ in range(n)}
    return GraphTensors.from_triples(torch.tensor(sorted(triples)), N + 1, R)  # the last entity has no edge


def slow(edges: GraphTensors, states: torch.Tensor, relations: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(edges.n_out, *states.shape[1:], dtype=states.dtype)
    walk = edges.into
    for target, source, relation in zip(walk.row.tolist(), walk.first.tolist(), walk.second.tolist(), strict=True):
        for row, own in enumerate(table.tolist()):
            out[target, row] += states[source, row] * relations[relation, own]
    return out


@pytest.mark.parametrize("cells", [64, 1 << 19])  # many chunks, that end within rows, and one
@pytest.mark.parametrize("table", [[0, 0, 0], [1, 0, 1], [0, 1, 2]])
def test_sums_and_gradients_are_those_of_single_messages(
    cells: int, table: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(grouped._CELLS, "cpu", cells)
    edges, which = graph(), torch.tensor(table)
    states = torch.randn(N + 1, 3, D, dtype=torch.float64, requires_grad=True)
    relations = torch.randn(2 * R, max(table) + 1, D, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(N + 1, 3, D, dtype=torch.float64)
    fast = sum_products(Groups(edges), states, relations, which)
    expected = slow(edges, states, relations, which)
    torch.testing.assert_close(fast, expected)
    for one, other in zip(
        torch.autograd.grad((fast * weights).sum(), (states, relations)),
        torch.autograd.grad((expected * weights).sum(), (states, relations)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_general_kernel_agrees() -> None:
    edges = graph()
    states, relations = torch.randn(N + 1, 5, D), torch.randn(2 * R, 5, D)
    mine = sum_products(Groups(edges), states, relations, torch.arange(5))
    torch.testing.assert_close(mine, gather_messages(edges, states, relations)[0])


def test_a_graph_without_edges_sends_nothing() -> None:
    edges = GraphTensors.from_triples(torch.zeros(0, 3, dtype=torch.long), 4, 1)
    sent = sum_products(Groups(edges), torch.randn(4, 2, D), torch.randn(2, 1, D), torch.zeros(2, dtype=torch.long))
    assert torch.equal(sent, torch.zeros(4, 2, D))
