"""Ranks against counting entity by entity, and their numbers against formulas written out."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

from ragtrain.errors import ConfigError, NumericsError
from ragtrain.models.gfm.known import KnownTails
from ragtrain.models.gfm.ranks import filtered, metrics


def slow_rank(scores: list[float], target: int, known: set[int]) -> int:
    return 1 + sum(
        value >= scores[target] for entity, value in enumerate(scores) if entity != target and entity not in known
    )


def random_triples(n: int, n_entities: int, n_relations: int, seed: int = 0) -> torch.Tensor:
    draws = random.Random(seed)
    return torch.tensor(
        [[draws.randrange(n_entities), draws.randrange(n_relations), draws.randrange(n_entities)] for _ in range(n)]
    )


@pytest.mark.parametrize("levels", [2, 5, 10_000])  # few levels: many ties
def test_filtered_ranks_are_those_of_counting(levels: int) -> None:
    n_entities, n_relations = 23, 3
    triples = random_triples(200, n_entities, n_relations)
    known = KnownTails(triples[:150], n_entities, n_relations)  # the last fifty are not known
    heads = torch.cat([triples[:, 0], triples[:, 2]])
    relations = torch.cat([triples[:, 1], triples[:, 1] + n_relations])
    targets = torch.cat([triples[:, 2], triples[:, 0]])
    scores = torch.randint(levels, (len(heads), n_entities)).float()
    ranks = filtered(scores, targets, known.pairs(heads, relations))
    true = {(h, r, t) for h, r, t in triples[:150].tolist()}
    true |= {(t, r + n_relations, h) for h, r, t in true}
    expected = [
        slow_rank(row, target, {t for t in range(n_entities) if (head, relation, t) in true})
        for row, head, relation, target in zip(
            scores.tolist(), heads.tolist(), relations.tolist(), targets.tolist(), strict=True
        )
    ]
    assert ranks.tolist() == expected
    assert len(set(expected)) > 3


def test_targets_that_share_a_query_share_its_scores() -> None:
    triples = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 0, 3], [4, 0, 1]])
    known = KnownTails(triples, 6, 1)
    scores = torch.tensor([[0.0, 3.0, 5.0, 5.0, 9.0, 3.0], [1.0, 0.0, 1.0, 0.0, 0.0, -1.0]])
    rows, targets = torch.tensor([1, 0, 0, 0]), torch.tensor([1, 1, 2, 3])
    ranks = filtered(scores, targets, known.pairs(torch.tensor([0, 4]), torch.tensor([0, 0])), rows)
    # Of query 0 entities 0, 4 and 5 are others, of query 1 all but entity 1.
    assert ranks.tolist() == [5, 3, 2, 2]


def test_a_constant_model_is_last_and_a_broken_one_is_refused() -> None:
    known = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert filtered(torch.zeros(1, 7), torch.tensor([3]), known).tolist() == [7]
    with pytest.raises(NumericsError, match="not a number"):
        filtered(torch.full((1, 7), math.nan), torch.tensor([3]), known)


def test_no_targets_have_no_ranks() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert filtered(torch.zeros(0, 7), none, (none, none)).tolist() == []
    assert all(math.isnan(value) for value in metrics([]).values())


def test_numbers_of_ranks() -> None:
    found = metrics([1, 2, 4, 20])
    assert found == pytest.approx(
        {"mr": 27 / 4, "mrr": (1 + 0.5 + 0.25 + 0.05) / 4, "hits@1": 0.25, "hits@3": 0.5, "hits@10": 0.75}
    )


def test_hits_among_a_sample_are_those_of_drawing() -> None:
    """hits@2_4: three of six entities are drawn with replacement, two of which are ahead of the true one."""
    draws = itertools.product(range(6), repeat=3)
    expected = np.mean([sum(entity < 2 for entity in drawn) < 2 for drawn in draws])
    assert metrics([3], [6], ["hits@2_4"])["hits@2_4"] == pytest.approx(expected)
    assert metrics([1], [0], ["hits@1_50"])["hits@1_50"] == 1.0


@pytest.mark.parametrize("name", ["hits", "hits@", "hits@0", "hits@x", "hits@3_", "mean"])
def test_a_metric_that_is_not_known_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no metric of ranks"):
        metrics([1], [1], [name])


def test_a_sampled_metric_needs_the_number_of_entities() -> None:
    with pytest.raises(ConfigError, match="ranked against"):
        metrics([1], None, ["hits@10_50"])
