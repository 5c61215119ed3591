"""Which rows share a sequence."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from ragtrain.data.formats import read_questions
from ragtrain.data.sft.packing import best_fit_decreasing, shared_groups, token_ratio
from ragtrain.data.sft.records import IGNORED, Encoded
from ragtrain.errors import RagtrainError


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The textbook's: look at every open bin. Returns how full bins are."""
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, full in enumerate(bins) if full + length <= capacity]
        if fitting:
            bins[max(fitting, key=lambda i: bins[i])] += length
        else:
            bins.append(length)
    return bins


@pytest.mark.parametrize("seed", range(8))
def test_bins_are_those_of_the_textbook(seed: int) -> None:
    draw = np.random.default_rng(seed)
    capacity = int(draw.integers(50, 400))
    lengths = draw.integers(1, capacity + 1, 300).tolist()
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(itertools.chain(*bins)) == list(range(300))
    assert sorted(sum(lengths[i] for i in members) for members in bins) == sorted(slow_best_fit(lengths, capacity))


def test_sequences_are_full() -> None:
    lengths = np.random.default_rng(0).integers(20, 900, 5000).tolist()
    bins = best_fit_decreasing(lengths, 2048)
    assert sum(lengths) / (2048 * len(bins)) > 0.98
    assert best_fit_decreasing([], 8) == []
    assert best_fit_decreasing([8, 8], 8) == [[0], [1]]
    with pytest.raises(RagtrainError, match="9 tokens does not fit into sequences of 8"):
        best_fit_decreasing([3, 9], 8)


def row(ids: list[int], first_trained: int | None = None) -> Encoded:
    array = np.array(ids, dtype=np.int32)
    first = len(ids) if first_trained is None else first_trained
    return Encoded(array, np.where(np.arange(len(ids)) >= first, array, IGNORED).astype(np.int32))


def test_rows_are_grouped_by_their_tokens() -> None:
    start, other = list(range(10, 20)), list(range(30, 40))
    rows = [row([*start, 1, 2], 11), row([*other, 3, 4], 11), row([*start, 5, 6, 7], 11), row([], 0), row([9, 8], 1)]
    groups = shared_groups(rows)
    assert [(group.members, group.prefix) for group in groups] == [((0, 2), 10), ((1,), 0), ((4,), 0)]
    lengths = [len(each.ids) for each in rows]
    assert [group.tokens(lengths) for group in groups] == [15, 12, 2]
    assert token_ratio(lengths, groups) == pytest.approx(39 / 29)
    assert token_ratio([], []) == 1.0


def test_a_branch_begins_before_its_first_trained_token() -> None:
    same = [row([*range(10), 5], 10), row([*range(10), 6], 10), row([*range(10), 6], 10)]
    (group,) = shared_groups(same)
    assert (group.members, group.prefix) == ((0, 1, 2), 9)
    (group,) = shared_groups([*same[:1], row([*range(10), 7], 6)])
    assert (group.members, group.prefix) == ((0, 1), 5)
    alone = shared_groups([*same, row([*range(10), 7], 6)])  # three that share nine save more than four that share five
    assert [(group.members, group.prefix) for group in alone] == [((0, 1, 2), 9), ((3,), 0)]
    assert [group.prefix for group in shared_groups([row([1, 2, 3], 1), row([1, 2, 4], 1)])] == [0, 0]
    # Without a trained token a branch is one token at least; the label of a first token never counts.
    (group,) = shared_groups([row([1, 2, 3, 4]), row([1, 2, 3, 4])])
    assert group.prefix == 3
    trained_first = Encoded(np.arange(4, dtype=np.int32), np.array([0, IGNORED, IGNORED, 3], dtype=np.int32))
    assert shared_groups([trained_first, trained_first])[0].prefix == 2


def test_limits_of_a_group() -> None:
    rows = [row([*range(20), 50 + i, 60 + i], 21) for i in range(6)]
    sizes = [len(group.members) for group in shared_groups(rows, most_members=4)]
    assert sorted(sizes) == [2, 4]
    lengths = [22] * 6
    groups = shared_groups(rows, most_tokens=26)
    assert max(group.tokens(lengths) for group in groups) <= 26
    assert [len(group.members) for group in groups] == [3, 3]
    long = [row([1, 2, 3, *range(100 + i, 130 + i)], 30) for i in (0, 40)]
    assert [group.prefix for group in shared_groups(long)] == [0, 0]
    assert [group.prefix for group in shared_groups(long, least_share=0.05)] == [3]


@pytest.mark.parametrize("seed", range(6))
def test_no_cut_of_the_order_saves_more(seed: int) -> None:
    """All ways of cutting a few sorted rows into stretches, one by one."""
    draw = np.random.default_rng(seed)
    rows = [row([*draw.integers(1, 3, int(draw.integers(4, 9))), 7], None) for _ in range(9)]
    order = sorted(range(len(rows)), key=lambda i: rows[i].ids.tobytes())

    def saved(stretch: list[int]) -> int:
        if len(stretch) == 1:
            return 0
        first, *others = [rows[i].ids.tolist() for i in stretch]
        n = min(len(ids) - 1 for ids in [first, *others])
        prefix = next((k for k in range(n) if any(ids[k] != first[k] for ids in others)), n)
        longest = max(len(ids) for ids in [first, *others])
        return (len(stretch) - 1) * prefix if prefix >= 0.25 * longest and prefix else -1

    best = 0
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        stretches: list[list[int]] = [[order[0]]]
        for place, cut in zip(order[1:], cuts, strict=True):
            if cut:
                stretches.append([])
            stretches[-1].append(place)
        gains = [saved(stretch) for stretch in stretches]
        if min(gains) >= 0:
            best = max(best, sum(gains))
    lengths = [len(each.ids) for each in rows]
    groups = shared_groups(rows)
    assert sorted(itertools.chain(*(group.members for group in groups))) == list(range(9))
    assert sum(lengths) - sum(group.tokens(lengths) for group in groups) == best


def test_real_squad_shares_its_paragraphs(real_data: Path, capsys) -> None:
    """One passage a question, a word a token: what questions on the same paragraph need not read again."""
    questions = read_questions(real_data / "squad/squad_v1.1_train44articles.json.gz").questions[:2000]
    words: dict[str, int] = {}
    rows = []
    for question in questions:
        prompt = f"Answer the question. Passage : {question.documents[0].text} Question : {question.question} Answer :"
        tokens, answer = prompt.split(), question.answers[0].split()
        rows.append(row([words.setdefault(word, len(words)) for word in [*tokens, *answer]], len(tokens)))
    lengths = [len(each.ids) for each in rows]
    groups = shared_groups(rows, most_members=8)
    ratio = token_ratio(lengths, groups)
    with capsys.disabled():
        print(f"\n{len(rows)} SQuAD questions in {len(groups)} rows: {ratio:.2f} times fewer tokens")  # noqa: T201 - to read
    assert ratio >= 2.5
