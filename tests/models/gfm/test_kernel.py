"""Messages against one-hot matrices and einsum, gradients against finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ragtrain.errors import RagtrainError
from ragtrain.models.gfm import kernel
from ragtrain.models.gfm.edges import Edges, GraphTensors, ranges
from ragtrain.models.gfm.kernel import edge_gradients, gather_messages

MESSAGES = ("distmult", "transe", "rotate")
N, R, D = 7, 3, 4


def triples(n: int = 14, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, top, (n,), generator=generator) for top in (N - 1, R, N - 1)]  # the last has no edge
    return torch.unique(torch.stack(columns, 1), dim=0)


def slow(edges: Edges, x: Tensor, z: Tensor, message: str, kind: str, weights: Tensor | None = None) -> Tensor:
    """Messages one by one, straight from the triples' meaning of an edge."""
    half = x.shape[-1] // 2
    walk = edges.into
    received: list[list[Tensor]] = [[] for _ in range(edges.n_out)]
    for e in range(len(edges)):
        a, b = x[int(walk.first[e])], z[int(walk.second[e])]
        if message == "distmult":
            sent = a * b
        elif message == "transe":
            sent = a + b
        else:
            b = b.expand_as(a)
            product = torch.complex(a[..., :half], a[..., half:]) * torch.complex(b[..., :half], b[..., half:])
            sent = torch.cat([product.real, product.imag], -1)
        received[int(walk.row[e])].append(sent if weights is None else sent * weights[e])
    rows = []
    for own in received:
        if not own:
            rows.append(torch.full_like(x[0], {"max": -torch.inf, "min": torch.inf}.get(kind, 0.0)))
            continue
        every = torch.stack(own)
        rows.append(
            {
                "sum": lambda t: t.sum(0),
                "square": lambda t: t.square().sum(0),
                "max": lambda t: t.amax(0),
                "min": lambda t: t.amin(0),
            }[kind](every)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("size", [3, 1000])
@pytest.mark.parametrize("kind", ["sum", "square", "max", "min"])
@pytest.mark.parametrize("message", MESSAGES)
def test_messages_and_their_gradients(message: str, kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_size", lambda states: size)
    graph = GraphTensors.from_triples(triples(), N, R)
    x = torch.randn(N, 2, D, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2 * R, D, dtype=torch.float64, requires_grad=True)
    (result,) = gather_messages(graph, x, z, message=message, kinds=(kind,))
    expected = slow(graph, x, z, message, kind)
    torch.testing.assert_close(result, expected)
    outer = torch.randn_like(result)
    finite = expected.isfinite()
    got = torch.autograd.grad(result[finite] @ outer[finite], (x, z), retain_graph=True)
    want = torch.autograd.grad(expected[finite] @ outer[finite], (x, z))
    torch.testing.assert_close(got, want)
    assert gradcheck(lambda a, b: gather_messages(graph, a, b, message=message, kinds=(kind,))[0][finite], (x, z))


def test_equal_messages_share_the_gradient_as_amax_does() -> None:
    graph = GraphTensors.from_triples(triples(), N, R)
    x = torch.zeros(N, 1, D, requires_grad=True)
    z = torch.randint(0, 2, (2 * R, D)).float().requires_grad_()
    for message, kind in itertools.product(MESSAGES, ("max", "min")):
        (result,) = gather_messages(graph, x, z, message=message, kinds=(kind,))
        expected = slow(graph, x, z, message, kind)
        finite = expected.isfinite()
        got = torch.autograd.grad(result[finite].sum(), (x, z))
        torch.testing.assert_close(got, torch.autograd.grad(expected[finite].sum(), (x, z)))


def test_relations_of_each_query() -> None:
    """ULTRA's relations depend on the query: a table of (2R, B, D)."""
    graph = GraphTensors.from_triples(triples(), N, R)
    x = torch.randn(N, 2, D, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2 * R, 2, D, dtype=torch.float64, requires_grad=True)
    for kind in ("sum", "max"):
        (result,) = gather_messages(graph, x, z, kinds=(kind,))
        for row in range(2):
            (one,) = gather_messages(graph, x[:, row : row + 1], z[:, row], kinds=(kind,))
            torch.testing.assert_close(result[:, row : row + 1], one)
        assert gradcheck(lambda a, b: gather_messages(graph, a, b, kinds=(kind,))[0][:4], (x, z))  # noqa: B023


@pytest.mark.parametrize("kinds", [("sum",), ("max",), ("sum", "square", "max", "min")])
@pytest.mark.parametrize("message", MESSAGES)
def test_edges_removed_from_one_query_are_removed_from_no_other(message: str, kinds: tuple[str, ...]) -> None:
    table = triples(18)
    graph = GraphTensors.from_triples(table, N, R)
    head, relation, tail = table[[0, 3, 5]].unbind(1)
    relation = torch.stack([relation[0], relation[1] + R, relation[2]])  # the second asks for the head
    head[1], tail[1] = table[3, 2], table[3, 0]
    removed = graph.own_edges(head, relation, tail)
    x = torch.randn(N, 3, D, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2 * R, D, dtype=torch.float64, requires_grad=True)
    results = gather_messages(graph, x, z, message=message, kinds=kinds, removed=removed)
    outer = [torch.randn_like(result) for result in results]
    finite = [result.isfinite() for result in results]
    total = sum((r[f] * o[f]).sum() for r, o, f in zip(results, outer, finite, strict=True))
    got = torch.autograd.grad(total, (x, z))
    want = [torch.zeros_like(x), torch.zeros_like(z)]
    for row, triple in enumerate(table[[0, 3, 5]]):
        rest = GraphTensors.from_triples(table[~(table == triple).all(1)], N, R)
        assert len(rest) == len(graph) - 2
        own = gather_messages(rest, x[:, row : row + 1], z, message=message, kinds=kinds)
        for result, one in zip(results, own, strict=True):
            torch.testing.assert_close(result[:, row : row + 1], one)
        total = sum(
            (r[f[:, row : row + 1]] * o[:, row : row + 1][f[:, row : row + 1]]).sum()
            for r, o, f in zip(own, outer, finite, strict=True)
        )
        for sum_, gradient in zip(want, torch.autograd.grad(total, (x, z)), strict=True):
            sum_ += gradient
    torch.testing.assert_close(list(got), want)


def test_a_removed_triple_that_the_graph_has_not_changes_nothing() -> None:
    graph = GraphTensors.from_triples(torch.tensor([[0, 0, 1]]), 3, 1)
    removed = graph.own_edges(torch.tensor([0, 2]), torch.tensor([0, 0]), torch.tensor([2, 2]))
    assert len(removed) == 0
    loop = GraphTensors.from_triples(torch.tensor([[2, 0, 2], [0, 0, 2]]), 3, 1)
    assert len(loop.own_edges(torch.tensor([2]), torch.tensor([0]), torch.tensor([2]))) == 2


@pytest.mark.parametrize("message", MESSAGES)
def test_half_precision_sums_in_float32(message: str) -> None:
    """256 messages of 1 and one of 1/256: in bfloat16 sums the last, and half of the others, would be lost."""
    star = torch.tensor([[0, 0, node] for node in range(1, 301)])
    graph = GraphTensors.from_triples(star, 301, 1)
    x, z = torch.randn(301, 1, 8).bfloat16(), torch.randn(2, 8).bfloat16()
    (result,) = gather_messages(graph, x, z, message=message)
    (exact,) = gather_messages(graph, x.float(), z.float(), message=message)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, exact.bfloat16())


@pytest.mark.parametrize("message", MESSAGES)
def test_half_precision_finds_its_largest_messages_again(message: str) -> None:
    graph = GraphTensors.from_triples(triples(), N, R)
    x, z = torch.randn(N, 2, D).bfloat16().requires_grad_(), torch.randn(2 * R, D).bfloat16()
    (result,) = gather_messages(graph, x, z, message="transe" if message == "transe" else message, kinds=("max",))
    finite = result.isfinite()
    result[finite].float().sum().backward()
    if message == "transe":  # each largest message gives all of its gradient to its state
        assert x.grad.float().sum().item() == pytest.approx(finite.sum().item(), rel=1e-2)
    assert (x.grad != 0).any()


def test_relations_in_another_type_follow_the_states() -> None:
    graph = GraphTensors.from_triples(triples(), N, R)
    z = torch.randn(2 * R, D, requires_grad=True)
    (result,) = gather_messages(graph, torch.randn(N, 1, D).bfloat16(), z)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert z.grad.dtype == torch.float32


@pytest.mark.parametrize("kinds", [("sum",), ("max",), ("sum", "square", "max", "min")])
def test_gradients_of_the_weights_of_edges(kinds: tuple[str, ...]) -> None:
    graph = GraphTensors.from_triples(triples(), N, R)
    x, z = torch.randn(N, 2, D, dtype=torch.float64), torch.randn(2 * R, D, dtype=torch.float64)
    results = gather_messages(graph, x, z, kinds=kinds)
    outer = tuple(torch.where(r.isfinite(), torch.randn_like(r), 0) for r in results)
    got = edge_gradients(graph, x, z, outer, kinds=kinds, results=results)
    weights = torch.ones(len(graph), dtype=torch.float64, requires_grad=True)
    total = sum(
        torch.where(o == 0, 0, slow(graph, x, z, "distmult", kind, weights) * o).sum()
        for kind, o in zip(kinds, outer, strict=True)
    )
    torch.testing.assert_close(got, torch.autograd.grad(total, weights)[0])


def test_direction() -> None:
    """The head of (h, r, t) receives x(t) * z(r), the tail x(h) * z(r + R)."""
    graph = GraphTensors.from_triples(torch.tensor([[0, 1, 2]]), 3, 2)
    x, z = torch.randn(3, 1, D), torch.randn(4, D)
    (result,) = gather_messages(graph, x, z)
    torch.testing.assert_close(result[0, 0], x[2, 0] * z[1])
    torch.testing.assert_close(result[2, 0], x[0, 0] * z[3])
    assert not result[1].any()


def test_edges_are_found_removed_and_kept() -> None:
    table = triples(30)
    graph = GraphTensors.from_triples(table, N, R)
    head, relation, tail = table.unbind(1)
    places = graph.find(head, tail, relation)
    walk = graph.into
    assert torch.equal(torch.stack([walk.row, walk.second, walk.first], 1)[places].long(), table)
    assert int(graph.find(torch.tensor([N - 1]), torch.tensor([0]), torch.tensor([0]))) == -1
    fewer = graph.without(places)
    assert len(fewer) == len(table)
    assert (fewer.into.second >= R).all()
    mask = torch.zeros(len(graph), dtype=torch.bool)
    mask[places] = True
    assert torch.equal(graph.without(mask).into.row, fewer.into.row)
    assert graph.to("cpu") is graph
    assert graph.degrees.sum() == len(graph)


def test_plans_cover_every_edge_once() -> None:
    offsets = torch.tensor([0, 0, 3, 3, 20, 21, 22, 22, 30])
    row = torch.repeat_interleave(torch.arange(8), offsets.diff())
    edges = Edges(row, torch.zeros_like(row), torch.zeros_like(row), (8, 1, 1))
    for size in (1, 2, 4, 7, 100):
        chunks = edges.into.plan(size)
        assert [e for _, _, pieces in chunks for a, b in pieces for e in range(a, b)] == list(range(30))
        for r0, r1, pieces in chunks:
            assert (pieces[0][0], pieces[-1][1]) == (int(offsets[r0]), int(offsets[r1]))
            assert all(b - a <= size for a, b in pieces)
            assert len(pieces) == 1 or r1 == r0 + 1
    places, group = ranges(offsets, torch.tensor([4, 0, 1]))
    assert (places.tolist(), group.tolist()) == ([20, 0, 1, 2], [0, 2, 2, 2])


def test_what_does_not_fit_is_refused() -> None:
    graph = GraphTensors.from_triples(triples(), N, R)
    x, z = torch.zeros(N, 1, D), torch.zeros(2 * R, D)
    with pytest.raises(RagtrainError, match="no message"):
        gather_messages(graph, x, z, message="complex")
    with pytest.raises(RagtrainError, match="states have shape"):
        gather_messages(graph, x[1:], z)
    with pytest.raises(RagtrainError, match="relations have shape"):
        gather_messages(graph, x, z[1:])
    with pytest.raises(RagtrainError, match="even width"):
        gather_messages(graph, x[..., :3], z[..., :3], message="rotate")
    with pytest.raises(RagtrainError, match="outside"):
        GraphTensors.from_triples(torch.tensor([[0, 0, 9]]), 3, 1)
    removed = graph.own_edges(*triples()[:2, [0, 1, 2]].unbind(1))
    with pytest.raises(RagtrainError, match="removed from 2 rows"):
        gather_messages(graph, x, z, removed=removed)
