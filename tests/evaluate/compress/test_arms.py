"""What arms there are, whose memory a question is given, and vectors of the same norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ragtrain.config.commands.compress import ARMS
from ragtrain.errors import ConfigError
from ragtrain.evaluate.compress.arms import TABLE, arms_of, derangement
from ragtrain.evaluate.compress.asked import random_like


def names(*arguments: object, **options: object) -> list[str]:
    return [arm.name for arm in arms_of(*arguments, **options)]


def test_every_configured_arm_is_measured_once_and_text_in_both_forms() -> None:
    before, after = names(ARMS, "before"), names(ARMS, "after")
    assert sorted(before + after) == sorted(TABLE)
    assert set(TABLE) == {*ARMS, "truncated-base", "best-sentences-base"}
    assert before == ["none-base", "full-base", "truncated-base", "best-sentences-base", "before"]
    assert names(["truncated", "compressed"], "before") == ["truncated-base"]
    assert names(["truncated", "compressed"], "after") == ["truncated", "compressed"]
    # Without adapters for full passages there is nothing to read them with but the base.
    assert names(ARMS, "after", full_adapters=False) == ["none", "compressed", "random", "shuffled"]
    with pytest.raises(ConfigError, match="there is no sentences"):
        arms_of(["full", "sentences"], "after")


@given(st.lists(st.sets(st.integers(0, 8), max_size=3).map(frozenset), min_size=2, max_size=12), st.integers(0, 5))
def test_a_shuffle_is_a_derangement(contents: list[frozenset[int]], seed: int) -> None:
    named = [frozenset(map(str, each)) for each in contents]
    donors = derangement(named, seed)
    assert sorted(donors) == list(range(len(named)))
    assert all(donor != place for place, donor in enumerate(donors))
    assert donors == derangement(named, seed)


@given(st.lists(st.integers(2, 5), min_size=3, max_size=8), st.integers(0, 5))
def test_nobody_is_given_memory_of_a_passage_of_their_own_where_that_can_be_avoided(
    sizes: list[int], seed: int
) -> None:
    """Groups of questions on one paragraph each, none of which has more than half of them."""
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    if max(sizes) * 2 > len(groups):
        return
    contents = [frozenset({f"paragraph {group}"}) for group in groups]
    donors = derangement(contents, seed)
    assert all(groups[place] != groups[donor] for place, donor in enumerate(donors))


def test_one_question_has_nobody_to_exchange_with() -> None:
    with pytest.raises(ValueError, match="two questions"):
        derangement([frozenset({"a"})], 0)


def test_random_vectors_have_the_norms_of_those_in_whose_place_they_stand() -> None:
    vectors = torch.randn(7, 16) * torch.arange(1.0, 8)[:, None]
    drawn = random_like(vectors, "0\0q1")
    assert drawn.shape == vectors.shape
    torch.testing.assert_close(drawn.norm(dim=-1), vectors.norm(dim=-1))
    cosines = torch.nn.functional.cosine_similarity(drawn, vectors)
    assert bool((cosines.abs() < 0.9).all())
    assert torch.equal(drawn, random_like(vectors, "0\0q1"))
    assert not torch.equal(drawn, random_like(vectors, "0\0q2"))
    half = random_like(vectors.bfloat16(), "0\0q1")
    assert half.dtype == torch.bfloat16
    # Directions are spread over all of the space: the mean of many is near nothing.
    many = random_like(torch.ones(4000, 16) / 4, "many")
    assert float(many.mean(0).norm()) < 0.1
