"""Questions and target answers as micro-batches: which ones, in what order, padded to their own longest.

Everything here is a function of (seed, epoch, example), so that a resumed run, or one on another number of devices,
meets the same batches.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ragtrain.data.prompts import bare_ids
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ragtrain.records import Question

log = logging.getLogger("ragtrain")

#: Micro-batches that are sorted by length together: long enough to save padding, short enough to stay random.
BUCKET_BATCHES = 32
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class RagBatch:
    """A micro-batch of questions.

    Attributes:
        ids: question ids, for messages.
        questions: the records themselves, for measuring what was retrieved.
        question_ids: (batch, question tokens) of the question encoder's tokenizer.
        question_mask: (batch, question tokens), 1 where there is a token.
        generator_questions: the same questions in the generator's tokens, without special ones.
        targets: (batch, target tokens) in the generator's tokens, -100 where there is none.
        weight: what the summed loss is divided by: real target tokens, or questions.
    """

    ids: tuple[str, ...]
    questions: tuple[Question, ...]
    question_ids: Tensor
    question_mask: Tensor
    generator_questions: tuple[np.ndarray, ...]
    targets: Tensor
    weight: float

    def to(self, device: torch.device | str) -> RagBatch:
        """Return the batch with its tensors on a device."""
        return dataclasses.replace(
            self,
            question_ids=self.question_ids.to(device),
            question_mask=self.question_mask.to(device),
            targets=self.targets.to(device),
        )


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """How questions become micro-batches.

    Attributes:
        max_question_tokens: longest question, in the question encoder's tokens.
        max_target_tokens: longest target, in the generator's tokens, end token included.
        batch_size: questions in a micro-batch.
        seed: of the order and of the choice among answers.
        prompt: what the question encoder wants before a question.
        normalize_by: whether a batch weighs its real target tokens or its questions.
        answer_choice: the first reference is the target, or one drawn anew each epoch.
        unscored_tokens: target tokens of each answer that the model only reads (its first, in style ``hf``).
        causal: the generator is a causal language model, whose targets have no special token but the end token.
    """

    max_question_tokens: int = 64
    max_target_tokens: int = 32
    batch_size: int = 8
    seed: int = 0
    prompt: str = ""
    normalize_by: Literal["token", "answer"] = "token"
    answer_choice: Literal["first", "random"] = "random"
    unscored_tokens: int = 0
    causal: bool = False


class QuestionSource:
    """Micro-batches of one question set, in an order that depends on the seed and the epoch only."""

    def __init__(
        self,
        questions: Sequence[Question],
        encoder_tokenizer: Any,  # noqa: ANN401 - transformers tokenizers have no common type that says enough
        generator_tokenizer: Any,  # noqa: ANN401
        settings: BatchSettings,
    ) -> None:
        """Tokenise questions, each with at least one answer, in the tokens of both networks."""
        self.questions, self.settings = questions, settings
        texts = [question.question for question in questions]
        prompted = [settings.prompt + text for text in texts]
        self._question_ids: list[list[int]] = (
            encoder_tokenizer(prompted, truncation=True, max_length=settings.max_question_tokens)["input_ids"]
            if questions
            else []
        )
        self._pad = encoder_tokenizer.pad_token_id
        self._generator_questions = question_tokens(generator_tokenizer, texts)
        answers = [question.answers for question in questions]
        self._targets = target_tokens(generator_tokenizer, answers, settings.max_target_tokens, causal=settings.causal)
        self._lengths = np.asarray(
            [len(text) + max(map(len, targets)) for text, targets in zip(texts, self._targets, strict=True)]
        )

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def target_token_count(self) -> int:
        """Real target tokens of one pass over the set, counting the first answer of each question."""
        return sum(len(answers[0]) for answers in self._targets)

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the micro-batches of an epoch as indices: shuffled, similar lengths together."""
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.questions))
        width = self.settings.batch_size * BUCKET_BATCHES
        batches: list[list[int]] = []
        for start in range(0, len(order), width):
            bucket = order[start : start + width]
            bucket = bucket[np.argsort(self._lengths[bucket], kind="stable")]
            batches += [
                bucket[i : i + self.settings.batch_size].tolist()
                for i in range(0, len(bucket), self.settings.batch_size)
            ]
        shuffled = np.random.default_rng((self.settings.seed, epoch, 1)).permutation(len(batches))
        return [batches[i] for i in shuffled]

    def ordered(self) -> list[list[int]]:
        """Return micro-batches that visit every question once, longest first: for evaluation."""
        order = np.argsort(-self._lengths, kind="stable")
        return [
            order[i : i + self.settings.batch_size].tolist() for i in range(0, len(order), self.settings.batch_size)
        ]

    def collate(self, indices: Sequence[int], epoch: int) -> RagBatch:
        """Assemble one micro-batch, padded on the right to its own longest question and target."""
        targets = [self._target(index, epoch) for index in indices]
        question_ids, question_mask = _pad([self._question_ids[i] for i in indices], self._pad)
        labels, _ = _pad(targets, IGNORED)
        tokens = sum(max(1, len(target) - self.settings.unscored_tokens) for target in targets)
        return RagBatch(
            ids=tuple(self.questions[i].id for i in indices),
            questions=tuple(self.questions[i] for i in indices),
            question_ids=question_ids,
            question_mask=question_mask,
            generator_questions=tuple(self._generator_questions[i] for i in indices),
            targets=labels,
            weight=float(tokens if self.settings.normalize_by == "token" else len(indices)),
        )

    def _target(self, index: int, epoch: int) -> list[int]:
        answers = self._targets[index]
        if self.settings.answer_choice == "first" or len(answers) == 1:
            return answers[0]
        return random.Random(f"{self.settings.seed}-{epoch}-{index}").choice(answers)


def question_tokens(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:  # noqa: ANN401
    """Return the generator's tokens of each question as they stand after ``//``: no special tokens."""
    return [np.asarray(ids, dtype=np.int64) for ids in bare_ids(tokenizer, [f" {text}" for text in texts])]


def target_tokens(
    tokenizer: Any,  # noqa: ANN401
    answers: Sequence[Sequence[str]],
    max_tokens: int,
    *,
    causal: bool = False,
) -> list[list[list[int]]]:
    """Return every answer's target tokens, end token included, cut to ``max_tokens``; empty answers are left out.

    Answers are written with a space before them, as they stand in a passage: a byte-level tokenizer then gives the
    same pieces in both places, which is what copying needs. Special tokens are the tokenizer's own; of a causal
    language model, whose answer goes on from its input, only the end token.

    Raises:
        ConfigError: a causal language model has no end token.
    """
    kept = [[answer.strip() for answer in references if answer.strip()] for references in answers]
    flat = [f" {answer}" for references in kept for answer in references]
    if not flat:
        return []
    end = tokenizer.eos_token_id
    if causal and end is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end token, without which answers never end",
            hint="set eos_token in its tokenizer_config.json",
        )
    encoded: list[list[int]] = (
        [[*ids, end] for ids in bare_ids(tokenizer, flat)] if causal else tokenizer(flat, verbose=False)["input_ids"]
    )
    cut = sum(len(ids) > max_tokens for ids in encoded)
    if cut:
        log.warning("%d of %d answers are longer than %d tokens (max_target_tokens) and are cut", cut, len(flat),
                    max_tokens)  # fmt: skip
    rows = iter(encoded)
    return [[_cut(next(rows), max_tokens, end) for _ in references] for references in kept]


def _cut(ids: list[int], limit: int, end: int) -> list[int]:
    return ids if len(ids) <= limit else [*ids[: limit - 1], end]


def _pad(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Return (rows, longest) token ids and a mask of the same shape."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
