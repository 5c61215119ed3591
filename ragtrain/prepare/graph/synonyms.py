"""Entities that mean the same, joined by a relation beside all others: by spelling, and by cosine of their vectors.

GFM-RAG and HippoRAG join entities whose names an encoder holds to be alike. Two things differ here: a real relation of the
pair is never replaced, and names with different numbers ("1990", "1991"; "Apollo 11", "Apollo 12") are never joined.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import regex

from ragtrain.prepare.graph.words import folded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ragtrain.prepare.graph.vectors import NameVectors

#: The relation, as GFM-RAG calls it.
EQUIVALENT = "equivalent"
_NUMBER = regex.compile(r"\p{N}+")
#: Entities whose neighbours are searched at a time.
_BLOCK = 4096
#: A spelling that more names than this share is no name.
_MOST_SPELLINGS = 8


def by_spelling(
    names: Sequence[str], fresh: Collection[int] | None = None, alive: Collection[int] | None = None
) -> Iterator[tuple[int, int]]:
    """Yield pairs (lower id, higher id) of names that differ in accents and punctuation only.

    Args:
        names: by id.
        fresh: only pairs with one of these.
        alive: only pairs of two of these.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        if (alive is None or number in alive) and (spelled := folded(name)):
            groups[spelled].append(number)
    for group in groups.values():
        if 1 < len(group) <= _MOST_SPELLINGS:
            first, *others = group
            yield from ((first, o) for o in others if fresh is None or first in fresh or o in fresh)


def by_vector(
    names: Sequence[str],
    vectors: NameVectors,
    *,
    threshold: float,
    most: int,
    fresh: Collection[int] | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield pairs (lower id, higher id) of names whose cosine is at least ``threshold``, each once, in order of the first id.

    Args:
        names: by id.
        vectors: theirs.
        threshold: least cosine.
        most: synonyms of a name, the nearest first.
        fresh: only pairs with one of these.
    """
    numbers = [_NUMBER.findall(name) for name in names]
    long = [sum(letter.isalpha() for letter in name) > 2 or not name.isascii() for name in names]
    asked = np.array(sorted(range(len(names)) if fresh is None else fresh), dtype=np.int64)
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(asked), _BLOCK):
        ids = asked[start : start + _BLOCK]
        places, scores = vectors.nearest(vectors.vectors[ids], most + 1)
        for here, near, cosines in zip(ids.tolist(), places.tolist(), scores.tolist(), strict=True):
            pairs.update(
                (min(here, other), max(here, other))
                for other, cosine in zip(near, cosines, strict=True)
                if other >= 0 and other != here and cosine >= threshold
                and long[here] and long[other] and numbers[here] == numbers[other]
            )  # fmt: skip
    yield from sorted(pairs)
