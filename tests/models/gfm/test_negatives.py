"""Negatives against lists of candidates made one by one."""

from __future__ import annotations

import random

import pytest
import torch

from ragtrain.errors import RagtrainError
from ragtrain.models.gfm.known import KnownTails
from ragtrain.models.gfm.negatives import draw, tail_queries

N, R = 13, 3


def triples(n: int = 60, seed: int = 1) -> torch.Tensor:
    draws = random.Random(seed)
    return torch.tensor([[draws.randrange(N), draws.randrange(R), draws.randrange(N)] for _ in range(n)])


def true_tails(graph: torch.Tensor, head: int, relation: int) -> set[int]:
    """The slow twin: every triple is looked at, in the direction that the relation asks for."""
    if relation < R:
        return {t for h, r, t in graph.tolist() if (h, r) == (head, relation)}
    return {h for h, r, t in graph.tolist() if (t, r) == (head, relation - R)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_known_tails_are_those_of_looking_at_every_triple() -> None:
    graph = triples()
    known = KnownTails(torch.cat([graph, graph[:7]]), N, R)
    heads, relations = torch.cartesian_prod(torch.arange(N), torch.arange(2 * R)).unbind(1)
    rows, tails = known.pairs(heads, relations)
    found: dict[int, list[int]] = {row: [] for row in range(len(heads))}
    for row, tail in zip(rows.tolist(), tails.tolist(), strict=True):
        found[row].append(tail)
    for row, (head, relation) in enumerate(zip(heads.tolist(), relations.tolist(), strict=True)):
        assert found[row] == sorted(true_tails(graph, head, relation))
        for tail in range(N):
            below, own = known.below(heads[row, None], relations[row, None], torch.tensor([tail]))
            assert below.item() == sum(other < tail for other in found[row])
            assert own.item() == (tail in found[row])


@pytest.mark.parametrize("held_out", [False, True])
def test_strict_negatives_are_exactly_what_no_triple_says(held_out: bool) -> None:
    graph = triples()
    batch = triples(20, seed=2) if held_out else graph[:20]
    drawn = draw(KnownTails(graph, N, R), batch, 600, generator())
    for row, (head, relation, tail) in enumerate(zip(*(each.tolist() for each in tail_queries(batch, R)), strict=True)):
        assert (drawn.heads[row].item(), drawn.relations[row].item()) == (head, relation)
        assert drawn.candidates[row, 0].item() == tail
        allowed = set(range(N)) - true_tails(graph, head, relation) - {tail}
        # 600 draws miss one of at most 12 entities with a probability below 1e-21.
        assert set(drawn.candidates[row, 1:].tolist()) == allowed


def test_the_first_half_asks_for_tails_and_the_rest_for_heads() -> None:
    batch = triples(6)
    heads, relations, tails = tail_queries(batch, R)
    assert heads.tolist() == [*batch[:3, 0].tolist(), *batch[3:, 2].tolist()]
    assert relations.tolist() == [*batch[:3, 1].tolist(), *(batch[3:, 1] + R).tolist()]
    assert tails.tolist() == [*batch[:3, 2].tolist(), *batch[3:, 0].tolist()]


@pytest.mark.parametrize("size", [1, 5])
def test_an_odd_batch_takes_turns(size: int) -> None:
    direct = [int((tail_queries(triples(size), R, turn)[1] < R).sum()) for turn in range(4)]
    assert direct == [size // 2, size // 2 + 1, size // 2, size // 2 + 1]


def test_draws_are_uniform() -> None:
    """Chi-squared over the candidates of one query each; the generator is seeded, so this cannot fail by chance."""
    graph = triples()
    batch = graph[[0, 30, 45, 59]]
    drawn = draw(KnownTails(graph, N, R), batch, 24_000, generator(3)).candidates[:, 1:]
    for row in drawn:
        counts = torch.bincount(row, minlength=N).double()
        counts = counts[counts > 0]
        expected = len(row) / len(counts)
        statistic = ((counts - expected) ** 2 / expected).sum().item()
        assert statistic < 34.5  # 0.9995 quantile with 12 degrees of freedom: 34.8; fewer have a smaller one
        assert len(counts) >= 5


def test_draws_that_are_not_strict_take_any_entity() -> None:
    drawn = draw(KnownTails(triples(), N, R), triples()[:4], 600, generator(), strict=False)
    assert all(set(row.tolist()) == set(range(N)) for row in drawn.candidates[:, 1:])


def test_the_generator_decides() -> None:
    known, batch = KnownTails(triples(), N, R), triples()[:5]
    first, again, other = (draw(known, batch, 9, generator(seed)).candidates for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_where_everything_is_true_all_but_the_own_tail_is_drawn() -> None:
    graph = torch.tensor([[0, 0, tail] for tail in range(4)] + [[1, 0, 2]])
    drawn = draw(KnownTails(graph, 4, 1), graph[[1, 4]], 200, generator(), turn=0)
    batch = draw(KnownTails(graph, 4, 1), graph[[1, 1, 4, 4]], 200, generator())
    assert set(drawn.candidates[0, 1:].tolist()) == {0, 2, 3}
    assert set(batch.candidates[2, 1:].tolist()) == {2, 3}  # heads of (?, 0, 2) are 0 and 1


def test_a_graph_without_triples_draws_from_all_others() -> None:
    drawn = draw(KnownTails(torch.zeros(0, 3), 5, 1), torch.tensor([[0, 0, 1], [0, 0, 1]]), 300, generator())
    assert [set(row.tolist()) for row in drawn.candidates[:, 1:]] == [{0, 2, 3, 4}, {1, 2, 3, 4}]


def test_triples_out_of_range_are_refused() -> None:
    with pytest.raises(RagtrainError, match="beyond 3 and 1"):
        KnownTails(torch.tensor([[0, 0, 3]]), 3, 1)
