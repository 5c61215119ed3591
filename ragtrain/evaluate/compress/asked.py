"""From an arm to prompts: nothing, text, or memory in the place of the passages of each question."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import TYPE_CHECKING

import torch

from ragtrain import metrics
from ragtrain.data.compress.records import passage_text
from ragtrain.evaluate.compress.arms import derangement
from ragtrain.evaluate.compress.budgets import SentenceRanker, count_tokens, first_tokens
from ragtrain.models.compress.generate import vectors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from ragtrain.data.compress.batches import WindowBatch
    from ragtrain.data.compress.records import CompressExample, Prompted, Windowed
    from ragtrain.evaluate.compress.arms import Arm
    from ragtrain.evaluate.compress.subject import Subject


@dataclasses.dataclass(frozen=True)
class ArmPrompt:
    """One question as an arm asks it.

    Attributes:
        prompted: tokens, and the places of vectors.
        vectors: (vectors, width) what stands there; None where none does.
        context_tokens: positions that passages or memory take.
        answer_given: whether an answer stands in the text that is read or was compressed.
        memory_of: the question whose memory it is, where that is another.
    """

    prompted: Prompted
    vectors: Tensor | None
    context_tokens: int
    answer_given: bool
    memory_of: str | None = None


class Asked:
    """Questions with their passages in windows, and whatever arms need of them, made once.

    Attributes:
        rows: the questions.
        windowed: their passages in windows.
        counts: memory vectors of each passage of each question.
        budgets: memory vectors of each question: what text arms may spend.
    """

    def __init__(
        self, subject: Subject, rows: Sequence[CompressExample], *, rate: int | None, seed: int, room: int
    ) -> None:
        """Cut passages into windows.

        Args:
            subject: whose windows and prompts.
            rows: the questions.
            rate: compression rate; None for the nominal one.
            seed: of random vectors and of the exchange of memories.
            room: tokens that an answer may have.
        """
        self.rows, self._subject, self._rate, self._seed, self._room = list(rows), subject, rate, seed, room
        self.windowed: list[Windowed] = subject.windower.windows([(r.question, r.documents) for r in rows])
        self.counts = [subject.windower.counts(row, rate) for row in self.windowed]
        self.budgets = [sum(counts) for counts in self.counts]

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of all that is asked and expected."""
        return self.hash_of(self.rows)

    @staticmethod
    def hash_of(rows: Sequence[CompressExample]) -> str:
        """Return a hash of questions, passages and answers, in their order."""
        digest = hashlib.sha256()
        for row in rows:
            shown = [[document.id, document.title, document.text] for document in row.documents]
            digest.update(json.dumps([row.id, row.question, row.answers, shown]).encode())
        return digest.hexdigest()

    @functools.cached_property
    def donors(self) -> list[int]:
        """For each question the one whose memory it is given."""
        contents = [frozenset(map(passage_text, row.documents)) for row in self.rows]
        return derangement(contents, self._seed)

    @functools.cached_property
    def ranker(self) -> SentenceRanker:
        """Ranks sentences for ``best-sentences``."""
        return SentenceRanker([row.documents for row in self.rows], self._subject.tokenizer)

    @functools.cached_property
    def fed(self) -> list[list[str]]:
        """The text of each question's passages that is compressed."""
        return [[fed_text(row, windowed, place) for place in range(windowed.n_documents)]
                for row, windowed in zip(self.rows, self.windowed, strict=True)]  # fmt: skip

    def vectors(self, batch_size: int, advance: Callable[[int], None] | None = None) -> list[Tensor]:
        """Return (vectors, width) memory of each question, on the host; compressed in batches of similar length.

        Args:
            batch_size: questions at a time; a batch is halved where the device is full.
            advance: called with the number of questions that are done after each batch.
        """
        # Longest first: neighbours are padded little, and a batch that does not fit fails at once.
        order = sorted(
            range(len(self.rows)), key=lambda i: -sum(len(window.ids) for window in self.windowed[i].windows)
        )
        shares = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

        def batches() -> Iterator[WindowBatch]:
            for share in shares:
                yield self._subject.windower.collate([self.windowed[i] for i in share], self._rate)
                if advance is not None:
                    advance(len(share))

        flat = vectors_of(self._subject.model, batches())
        found = dict(zip(order, torch.split(flat, [self.budgets[i] for i in order]), strict=True))
        return [found[i] for i in range(len(self.rows))]

    def prompts(self, arm: Arm, memory: Sequence[Tensor] | None) -> list[ArmPrompt]:
        """Return every question as an arm asks it.

        Args:
            arm: which one.
            memory: of ``vectors``, for arms of memory.
        """
        if not arm.of_memory:
            return [self._text_prompt(arm, place) for place in range(len(self.rows))]
        if memory is None:
            raise ValueError(f"{arm.name} reads memory, and none is given")
        return [self._memory_prompt(arm, place, memory) for place in range(len(self.rows))]

    def _text_prompt(self, arm: Arm, place: int) -> ArmPrompt:
        row, budget, subject = self.rows[place], self.budgets[place], self._subject
        question, answers = row.question, row.answers
        if arm.reads == "nothing":
            return ArmPrompt(subject.prompter.nothing(question), None, 0, answer_given=False)
        if arm.reads == "passages":
            prompted = subject.prompter.text(question, row.documents, room=self._room)
            texts = [passage_text(document) for document in row.documents]
            spent = count_tokens(texts, subject.tokenizer) - prompted.cut
            # Of a prompt that was cut, what is left is known by its tokens only.
            left = [str(subject.tokenizer.decode(prompted.ids))] if prompted.cut else texts
            return ArmPrompt(prompted, None, spent, any(metrics.has_answer(answers, text) for text in left))
        if arm.reads == "first tokens":
            texts = first_tokens(row.documents, budget, subject.tokenizer)
        else:
            texts = self.ranker.best(question, row.documents, budget)
        prompted = subject.prompter.passages(question, texts, room=self._room)
        given = any(metrics.has_answer(answers, text) for text in texts)
        return ArmPrompt(prompted, None, count_tokens(texts, subject.tokenizer), given)

    def _memory_prompt(self, arm: Arm, place: int, memory: Sequence[Tensor]) -> ArmPrompt:
        example = self.rows[place]
        source = self.donors[place] if arm.reads == "other memory" else place
        vectors = memory[source]
        given = any(metrics.has_answer(example.answers, text) for text in self.fed[source])
        if arm.reads == "random memory":
            vectors, given = random_like(vectors, f"{self._seed}\0{example.id}"), False
        prompted = self._subject.prompter.memory(example.question, self.counts[source])
        other = self.rows[source].id if source != place else None
        return ArmPrompt(prompted, vectors, len(vectors), given, other)


def random_like(vectors: Tensor, seed: str) -> Tensor:
    """Return vectors of random directions, each as long as the one in its place.

    Args:
        vectors: (vectors, width).
        seed: any text; of a question, so that what it is given does not depend on its neighbours.
    """
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) >> 1
    drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(number))
    lengths = vectors.float().norm(dim=-1, keepdim=True)
    scaled: Tensor = drawn / drawn.norm(dim=-1, keepdim=True) * lengths
    return scaled.to(vectors.dtype)


def fed_text(row: CompressExample, windowed: Windowed, place: int) -> str:
    """Return the text of a passage that its windows hold: all of it, as far as the tokenizer says."""
    text = passage_text(row.documents[place])
    end = max((window.end for window in windowed.windows if window.document == place), default=-1)
    return text[:end] if end >= 0 else text
