"""Which passages stand in a prompt, epoch by epoch.

concat      the best ``n_docs`` passages, in order of rank; none is closed-book
separate    a sample for each of them, as RA-DIT trains its language model (Lin et al. 2023, section 2.3)
raft        the gold passages among distractors in any order, or, with probability 1 - ``raft_p``, distractors alone
            (Zhang et al. 2024, section 3)

Every choice depends on the seed, the epoch and the row's id only, so that a resumed run and several processes agree.

What differs from RAFT as it is published (gorilla) and from RAG-FiT's ``RAFTStep``: passages are shuffled anew in each
epoch; there are as many of them with the gold passage as without; a passage that replaces it is none of those that stand
there already; and distractors hold no answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import TYPE_CHECKING, Any, Literal

from ragtrain import metrics
from ragtrain.data.sft.distractors import Distractors, first_with_answer, gold_of, ranked, shown
from ragtrain.data.sft.records import Sample
from ragtrain.data.sft.shots import Shots
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands.sft import SftContextConfig
    from ragtrain.data.sft.records import Example
    from ragtrain.records import Document

#: Hard negatives of a row to draw from, for each passage of a prompt.
HARD = 4
#: Samples that ``describe`` looks at, evenly spread over the set.
DESCRIBED = 1000


class ContextMaker:
    """Makes the samples of an epoch out of rows and their passages.

    Attributes:
        static: every epoch is the same.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: SftContextConfig,
        *,
        seed: int,
        answer_choice: Literal["first", "random"] = "first",
        shots_from: Sequence[Example] | None = None,
    ) -> None:
        """Take the rows.

        Args:
            examples: with their passages, best first.
            config: how many passages, and in which way.
            seed: of every draw.
            answer_choice: which reference is the target.
            shots_from: rows that solved examples are drawn from, the training rows; without it, ``examples``.

        Raises:
            ConfigError: rows with finished prompts, and a setting that makes prompts; RAFT without gold passages.
        """
        _refuse(examples, config)
        self.examples, self.config, self.seed, self.answer_choice = examples, config, seed, answer_choice
        several = any(len(example.targets) > 1 for example in examples)
        self.static = not config.raft and not (answer_choice == "random" and several)
        drawn_from = examples if shots_from is None else shots_from
        self._shots = Shots(drawn_from, config.n_shots, seed, n_docs=config.n_docs)
        self._distractors = Distractors(examples, HARD * config.n_docs)
        self._gold = [gold_of(example) or first_with_answer(example) for example in examples] if config.raft else []
        if config.raft and not any(self._gold):
            raise ConfigError("--raft needs gold passages, and no row has one, nor a passage that holds an answer",
                              hint="give --index, or data that says which passages are gold")  # fmt: skip
        self._origins = [place for place, example in enumerate(examples) for _ in range(self._copies(example))]

    def _copies(self, example: Example) -> int:
        """Return the number of samples of a row."""
        if self.config.context_mode == "concat" or example.finished is not None:
            return 1
        return max(1, min(self.config.n_docs, len(ranked(example))))

    def __len__(self) -> int:
        return len(self._origins)

    def origin(self, i: int) -> int:
        """Return the place of the row that sample ``i`` is made of."""
        return self._origins[i]

    def samples(self, epoch: int) -> list[Sample]:
        """Return the samples of an epoch: in each as many, in the order of the rows."""
        made = [sample for place in range(len(self.examples)) for sample in self._of_row(place, epoch)]
        if self.config.context_mode == "separate":
            _make_unique(made)
        return made

    def _of_row(self, place: int, epoch: int) -> list[Sample]:
        example, config = self.examples[place], self.config
        rng = random.Random(f"context/{self.seed}/{epoch}/{example.id}")
        target = self._target(example, epoch)
        if example.finished is not None:
            # Its passages say which parts of the prompt may give way; their order there is that of their rank.
            return [_sample(example, example.documents, target)]
        shots = self._shots.draw(example, None if self.static else epoch)
        if config.raft:
            gold_left_out, documents, ranks = self._raft(place, rng)
            if gold_left_out and config.abstain_target is not None:
                target = config.abstain_target
            return [dataclasses.replace(_sample(example, documents, target, ranks), shots=shots)]
        best = ranked(example)[: config.n_docs]
        if config.context_mode == "concat" or not best:
            return [dataclasses.replace(_sample(example, best, target), shots=shots)]
        return [
            dataclasses.replace(_sample(example, (document,), target), id=f"{example.id}#{rank}", shots=shots)
            for rank, document in enumerate(best)
        ]

    def _target(self, example: Example, epoch: int) -> str:
        if not example.targets:
            return ""
        if self.answer_choice == "first":
            return example.targets[0]
        return random.Random(f"answer/{self.seed}/{epoch}/{example.id}").choice(example.targets)

    def _raft(self, place: int, rng: random.Random) -> tuple[bool, list[Document], list[int]]:
        """Return whether the gold passages were left out, and passages and ranks in the order of the prompt."""
        gold = self._gold[place][: self.config.n_docs]
        stays = rng.random() < self.config.raft_p
        # As many are drawn in both cases: what a row has too few of, it has too few of with the gold passage, too.
        drawn = self._distractors.draw(place, self.config.n_docs, rng, beside=gold)
        count = len(drawn) or len(gold)
        left_out = not gold or (bool(drawn) and not stays)
        documents = drawn[:count] if left_out else [*gold[:count], *drawn[: max(0, count - len(gold))]]
        order = rng.sample(range(len(documents)), len(documents))
        return left_out, [documents[i] for i in order], order

    def describe(self) -> dict[str, Any]:
        """Return what stands in the prompts of the first epoch, for the plan: shares of at most ``DESCRIBED`` samples.

        ``passages`` is the mean number in a prompt, ``gold`` the share of prompts with a gold passage, ``gold_first`` that
        with one in the first place, ``answer`` that with an answer in a passage; shares of gold are of rows that have a gold
        passage, and None where none has. With RAFT ``stand_ins`` counts rows whose gold passage is the best one that holds
        an answer, and ``without_gold`` those that have none.
        """
        step = max(1, len(self.examples) // DESCRIBED)
        looked = range(0, len(self.examples), step)
        counted: list[tuple[int, bool, bool, bool]] = []
        with_gold = 0
        for place in looked:
            example = self.examples[place]
            gold = {document.id for document in self._gold[place]} if self._gold else example.gold
            for sample in self._of_row(place, 0):
                held = [document.id in gold for document in sample.documents]
                answered = any(metrics.has_answer(example.answers, document.text) for document in sample.documents)
                counted.append((len(held), any(held), held[:1] == [True], answered))
                with_gold += bool(gold)
        about: dict[str, Any] = {"rows": len(self.examples), "samples": len(self), "looked_at": len(counted)}
        if counted:
            passages, inside, first, answer = (sum(column) for column in zip(*counted, strict=True))
            about["passages"] = passages / len(counted)
            about["gold"] = inside / with_gold if with_gold else None
            about["gold_first"] = first / with_gold if with_gold else None
            about["answer"] = answer / len(counted)
        if self.config.raft:
            pairs = list(zip(self.examples, self._gold, strict=True))
            about["stand_ins"] = sum(bool(gold) and not gold_of(example) for example, gold in pairs)
            about["without_gold"] = sum(not gold for _, gold in pairs)
        return about


def _sample(example: Example, documents: Sequence[Document], target: str, ranks: Sequence[int] | None = None) -> Sample:
    order = range(len(documents)) if ranks is None else ranks
    return Sample(
        example.id,
        example.question,
        tuple(map(shown, documents)),
        target,
        finished=example.finished,
        ranks=tuple(order),
    )


def _make_unique(samples: list[Sample]) -> None:
    """Rename samples whose id, with the number of the passage, is that of another row."""
    taken: set[str] = set()
    for i, sample in enumerate(samples):
        name = sample.id
        if name in taken:
            name = next(other for n in itertools.count(2) if (other := f"{sample.id}-{n}") not in taken)
            samples[i] = dataclasses.replace(sample, id=name)
        taken.add(name)


def _refuse(examples: Sequence[Example], config: SftContextConfig) -> None:
    """Refuse settings that do not go together, or not with these rows, all at once."""
    finished = sum(example.finished is not None for example in examples)
    given = {
        "raft": config.raft, "context_mode=separate": config.context_mode == "separate", "n_shots": config.n_shots > 0,
        "index": config.index is not None,
    }  # fmt: skip
    asked = [name for name, value in given.items() if value]
    problems = [
        (config.raft and not config.n_docs, "raft mixes passages, and n_docs is 0"),
        (
            config.raft and config.context_mode == "separate",
            "raft mixes passages, and context_mode=separate parts them",
        ),
        (
            bool(finished and asked),
            f"{finished} rows bring a finished prompt, which {', '.join(asked)} cannot change any more",
        ),
    ]
    if found := [message for wrong, message in problems if wrong]:
        raise ConfigError("; ".join(found), hint="change one of the settings named")
