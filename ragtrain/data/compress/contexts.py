"""Which passages of a row are compressed, in which order, epoch by epoch.

Of the passages of a row at most ``n_docs`` are shown: the gold ones, and the best of the others by a reranker's score, else
by their order. Passages found in an index are taken by their rank, gold or not, except in training. Passages of other rows
(``n_distractors``) come on top; none of them holds an answer. Every choice depends on the seed, the epoch and the row's id
only, so that a resumed run and several processes agree. Evaluations have one choice of their own, the same each time.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Literal

from ragtrain.data.compress.records import Context, passage_text
from ragtrain.data.sft.distractors import NOT_FOUND, Distractors, gold_of, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands.compress import CompressContextConfig
    from ragtrain.data.compress.records import CompressExample
    from ragtrain.records import Document


class CompressContexts:
    """Makes contexts out of rows and their passages.

    Attributes:
        examples: the rows.
        static: every epoch is the same.
    """

    def __init__(
        self,
        examples: Sequence[CompressExample],
        config: CompressContextConfig,
        *,
        seed: int,
        answer_choice: Literal["first", "random"] = "first",
    ) -> None:
        """Take the rows.

        Args:
            examples: with their passages; found in an index where ``config`` names one, best first.
            config: how many passages.
            seed: of every draw.
            answer_choice: which of several targets is learnt.
        """
        self.examples, self.config, self.seed, self.answer_choice = examples, config, seed, answer_choice
        several = answer_choice == "random" and any(len(example.targets) > 1 for example in examples)
        self.static = not (config.n_distractors or config.shuffle_docs or several)
        self._distractors = Distractors(examples, 0) if config.n_distractors else None
        self._gold = [{each.id for each in gold_of(example)} for example in examples]

    def __len__(self) -> int:
        return len(self.examples)

    def context(self, place: int, epoch: int | None = None) -> Context:
        """Return what is shown of the row at a place.

        Args:
            place: of the row.
            epoch: of training; None for evaluations.
        """
        example, config = self.examples[place], self.config
        name = "evaluation" if epoch is None else str(0 if self.static else epoch)
        rng = random.Random(f"compress/{self.seed}/{name}/{example.id}")
        documents = self._chosen(place, training=epoch is not None)
        if self._distractors is not None:
            documents += self._distractors.draw(place, config.n_distractors, rng, beside=documents)
        # Ranks of a search stay as they are in evaluations; an order that has the gold passage first gives it away.
        if config.shuffle_docs and (epoch is not None or config.index is None or config.n_distractors):
            rng.shuffle(documents)
        scores = tuple(example.scores.get(document.id) for document in documents)
        return Context(example, tuple(map(shown, documents)), scores, self._target(example, rng))

    def contexts(self, epoch: int | None = None) -> list[Context]:
        """Return the contexts of all rows, in their order."""
        return [self.context(place, epoch) for place in range(len(self))]

    def lengths(self) -> list[int]:
        """Return the characters of each row's passages: what it costs, without a tokenizer."""
        return [
            sum(len(passage_text(document)) for document in self._chosen(place, training=True))
            for place in range(len(self))
        ]

    def _chosen(self, place: int, *, training: bool) -> list[Document]:
        """Return the row's own passages that are shown, in the order of the file or by rank."""
        example, most = self.examples[place], self.config.n_docs
        documents = [each for each in example.documents if each.score != NOT_FOUND and passage_text(each)]
        if len(documents) <= most:
            return documents
        kept = self._gold[place] if training or self.config.index is None else set[str]()
        scores = example.scores

        def rank(i: int) -> tuple[bool, float, int]:
            return documents[i].id not in kept, -scores.get(documents[i].id, -math.inf), i

        best = sorted(range(len(documents)), key=rank)[: max(most, sum(each.id in kept for each in documents))]
        return [documents[i] for i in sorted(best)]

    def _target(self, example: CompressExample, rng: random.Random) -> str:
        if not example.targets:
            return ""
        return example.targets[0] if self.answer_choice == "first" else rng.choice(example.targets)
