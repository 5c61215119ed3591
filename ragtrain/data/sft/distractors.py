"""Passages that look right and answer nothing: hard negatives first, other rows' passages where those do not suffice.

A distractor of a row is neither its gold passage nor a copy of it, holds none of its answers (``metrics.has_answer``), and
no two of a prompt have the same text.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from ragtrain import metrics
from ragtrain.records import content_id

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from ragtrain.data.sft.records import Example
    from ragtrain.records import Document

#: The score of a gold passage that a search did not find and that was added behind what it found.
NOT_FOUND = -math.inf
#: Passages of other rows that are looked at for each one wanted, and in any case.
_TRIES, _LEAST_TRIES = 16, 64


def ranked(example: Example) -> tuple[Document, ...]:
    """Return the passages that stand for a row, best first: not the gold ones that a search should have found."""
    return tuple(document for document in example.documents if document.score != NOT_FOUND)


def shown(document: Document) -> Document:
    """Return a passage as it stands in a sample: without the mark of not having been found."""
    return dataclasses.replace(document, score=None) if document.score == NOT_FOUND else document


def gold_of(example: Example) -> tuple[Document, ...]:
    """Return the gold passages of a row, each text once."""
    return _different(document for document in example.documents if document.id in example.gold)


def first_with_answer(example: Example) -> tuple[Document, ...]:
    """Return the best passage that holds an answer, as a tuple of one or none.

    It stands for the gold passage where the data names none, as in the training of DPR (Karpukhin et al. 2020, section 4.2).
    """
    found = next((each for each in ranked(example) if metrics.has_answer(example.answers, each.text)), None)
    return () if found is None else (found,)


def _different(documents: Iterable[Document]) -> tuple[Document, ...]:
    kept: dict[str, Document] = {}
    for document in documents:
        kept.setdefault(key_of(document), document)
    return tuple(kept.values())


def key_of(document: Document) -> str:
    """Return what two passages of the same text have in common."""
    return content_id(document.text or document.title)


class Distractors:
    """Wrong passages for the rows of a set."""

    def __init__(self, examples: Sequence[Example], most: int) -> None:
        """Take the rows.

        Args:
            examples: whose passages are drawn from.
            most: hard negatives of a row to draw from: its best ones.
        """
        self.examples, self.most = examples, most
        self._hard: dict[int, tuple[Document, ...]] = {}
        self._pool: list[Document] = []
        self._keys: dict[str, str] = {}

    def hard(self, place: int) -> tuple[Document, ...]:
        """Return the hard negatives of the row at a place, best first."""
        if place not in self._hard:
            self._hard[place] = tuple(self._find(self.examples[place]))
        return self._hard[place]

    def _find(self, example: Example) -> list[Document]:
        taken = {self._key(document) for document in gold_of(example)}
        found: list[Document] = []
        for document in ranked(example):
            if len(found) == self.most:
                break
            key = self._key(document)
            if key not in taken and not metrics.has_answer(example.answers, document.text):
                taken.add(key)
                found.append(document)
        return found

    def draw(self, place: int, count: int, rng: random.Random, *, beside: Sequence[Document] = ()) -> list[Document]:
        """Return ``count`` distractors, the hardest first; fewer only where no more are to be found.

        Args:
            place: of the row.
            count: how many.
            rng: what draws.
            beside: passages that stand in the prompt besides.
        """
        kept = {self._key(document) for document in beside}
        hard = [document for document in self.hard(place) if self._key(document) not in kept]
        chosen = sorted(rng.sample(range(len(hard)), min(count, len(hard))))
        drawn = [hard[i] for i in chosen]
        if len(drawn) < count:
            drawn += self._fill(self.examples[place], count - len(drawn), rng, [*beside, *drawn])
        return drawn

    def _fill(self, example: Example, count: int, rng: random.Random, beside: Sequence[Document]) -> list[Document]:
        pool = self._all()
        taken = {self._key(document) for document in (*beside, *gold_of(example))}
        ids = {document.id for document in (*beside, *example.documents)}
        filled: list[Document] = []
        for i in rng.sample(range(len(pool)), min(len(pool), max(_LEAST_TRIES, _TRIES * count))):
            if len(filled) == count:
                break
            key = self._key(pool[i])
            if key in taken or metrics.has_answer(example.answers, pool[i].text):
                continue
            # What another row calls its passage 3 is not what this one calls so.
            own = content_id(pool[i].title, pool[i].text) if pool[i].id in ids else pool[i].id
            filled.append(dataclasses.replace(pool[i], id=own, is_gold=False, score=None))
            taken.add(key)
            ids.add(own)
        return filled

    def _all(self) -> list[Document]:
        if not self._pool:
            different: dict[str, Document] = {}
            for example in self.examples:
                for document in example.documents:
                    different.setdefault(self._key(document), document)
            self._pool = list(different.values())
        return self._pool

    def _key(self, document: Document) -> str:
        text = document.text or document.title
        if text not in self._keys:
            self._keys[text] = content_id(text)
        return self._keys[text]
