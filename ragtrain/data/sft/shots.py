"""Solved examples that stand before a question: drawn from the training rows, never the row itself."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from ragtrain.data.sft.distractors import first_with_answer, gold_of, key_of, ranked, shown
from ragtrain.data.sft.records import Shot
from ragtrain.data.splits import question_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.sft.records import Example
    from ragtrain.records import Document

log = logging.getLogger("ragtrain")

#: Passages of a solved example, at most: its gold ones. More would take the room of the question's own.
PASSAGES = 2


class Shots:
    """Draws solved examples for a row."""

    def __init__(self, examples: Sequence[Example], n_shots: int, seed: int, *, n_docs: int) -> None:
        """Take the training rows.

        Args:
            examples: what is drawn from.
            n_shots: how many for a row.
            seed: of the draws.
            n_docs: passages in a prompt; with 0, solved examples have none either, else at most ``PASSAGES``.
        """
        self.n_shots, self.seed = n_shots, seed
        self._most = min(PASSAGES, n_docs)
        self._usable = (
            [example for example in examples if example.targets and example.finished is None] if n_shots else []
        )
        self._words = [question_words(example.question) for example in self._usable]
        if n_shots and len(self._usable) <= n_shots:
            log.warning("%d training rows do not give %d solved examples to each question", len(self._usable), n_shots)

    def draw(self, example: Example, epoch: int | None = None) -> tuple[Shot, ...]:
        """Return the solved examples for a row; the same in all epochs where none is given.

        Rows of the same question or with the same gold passage are left out. Rows of the same group (an article) come only
        where there are too few others.
        """
        if not self.n_shots:
            return ()
        rng = random.Random(f"shots/{self.seed}/{epoch}/{example.id}")
        count = len(self._usable)
        order = rng.sample(range(count), min(count, 200 + 20 * self.n_shots))
        asked = {question_words(example.question)}
        own = {key_of(document) for document in gold_of(example)}
        chosen: list[Example] = []
        near: list[int] = []
        for i in order:
            if len(chosen) == self.n_shots:
                break
            if self._repeats(example, i, asked, own):
                continue
            if example.group and self._usable[i].group == example.group:
                near.append(i)
                continue
            asked.add(self._words[i])
            chosen.append(self._usable[i])
        for i in near:
            if len(chosen) < self.n_shots and not self._repeats(example, i, asked, own):
                asked.add(self._words[i])
                chosen.append(self._usable[i])
        return tuple(Shot(each.question, self._passages(each), each.targets[0]) for each in chosen)

    def _repeats(self, example: Example, i: int, asked: set[str], own: set[str]) -> bool:
        other = self._usable[i]
        if other.id == example.id or self._words[i] in asked:
            return True
        return bool(own) and any(key_of(document) in own for document in gold_of(other))

    def _passages(self, example: Example) -> tuple[Document, ...]:
        if not self._most:
            return ()
        found = gold_of(example) or first_with_answer(example) or ranked(example)[:1]
        return tuple(map(shown, found[: self._most]))
