from __future__ import annotations

import pytest

from ragtrain.index.graph.names import EntityNames

NAMES = [
    "vienna",
    "Vienna",
    "capital of austria",
    "austria",
    "the",
    "us",
    "U.S.",
    "奧地利",
    "維也納",
    "café",
    "of austria hungary",
    "",
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Is VIENNA the capital of Austria?", [0, 1, 2]),
        ("Austria and the viennas", [3]),
        # Two names that overlap and of which none lies inside the other both count.
        ("capital of Austria Hungary", [2, 10]),
        ("Is it in the US?", [5]),
        ("the", []),
        ("維也納是奧地利的首都嗎", [8, 7]),
        ("Cafe\u0301 Austria's", [9, 3]),
        ("", []),
        ("Austria, austria and Austria", [3]),
    ],
)
def test_whole_words_and_the_longest_of_nested_names(text: str, found: list[int]) -> None:
    assert list(EntityNames(NAMES).mentions(text)) == found


def test_against_every_span() -> None:
    """All spans of words that are names, less those that lie inside another one."""
    names = EntityNames([*"abcd", "a b", "b c", "a b c d", "c d a", "d a"])
    words = "a b c a b c d a b d a x c d a b"
    spans = [
        (i, j)
        for i in range(16)
        for j in range(i + 1, 17)
        if " ".join(words.split()[i:j]) in {*"bcd", "a b", "b c", "a b c d", "c d a", "d a"}
    ]
    outer = [s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans)]
    order = [*"abcd", "a b", "b c", "a b c d", "c d a", "d a"]
    expected = dict.fromkeys(order.index(" ".join(words.split()[i:j])) for i, j in outer)
    assert list(names.mentions(words)) == list(expected)


def test_a_graph_without_names() -> None:
    assert EntityNames([]).mentions("anything") == ()
