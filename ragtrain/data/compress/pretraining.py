"""Micro-batches of pretraining: say again what a window said, or go on with the text after it, from its memory alone.

The decoder reads ``[memory] [task] text`` and learns the text, as in COCOM and PISCO (autoencoding and continuation), without
a question and without an instruction. Texts are the passages of the rows, each once. A passage without anything after the
window is cut in two: the first half is compressed, the second one learnt; one too short for that is said again.

An epoch has about as many samples as there are windows. Which window, which task and which rate depends on the seed, the
epoch and the sample only.
"""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING

import numpy as np

from ragtrain.data.compress.batches import collate_prompts
from ragtrain.data.compress.records import CONTINUE, RECONSTRUCT, Window, Windowed, passage_text
from ragtrain.data.compress.source import RatedPlans
from ragtrain.records import content_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ragtrain.data.compress.batches import CompressBatch
    from ragtrain.data.compress.prompts import CompressPrompter
    from ragtrain.data.compress.records import CompressExample
    from ragtrain.data.compress.windows import Tokens, Windower

#: Characters of English text for each token of a usual vocabulary; decides how many samples a passage gives, nothing else.
_CHARACTERS = 4
#: Shortest window that is cut in two.
_SHORTEST = 16


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    """A window, a task, and the text that is learnt; ``ended`` where the passage ends with it."""

    window: Window
    task: int
    text: str
    ended: bool


def passages_of(examples: Iterable[CompressExample]) -> list[str]:
    """Return the texts of all passages of rows, each once."""
    texts = (passage_text(document) for example in examples for document in example.documents)
    return list({content_id(text): text for text in texts if text}.values())


class PretrainSource:
    """Micro-batches of reconstruction and continuation."""

    def __init__(
        self,
        texts: Sequence[str],
        windower: Windower,
        prompter: CompressPrompter,
        *,
        batch_size: int,
        seed: int,
        reconstruction_share: float = 0.5,
    ) -> None:
        """Take the passages.

        Args:
            texts: to be compressed.
            windower: of the compressor.
            prompter: of the generator.
            batch_size: windows in a micro-batch.
            seed: of every draw.
            reconstruction_share: probability that a sample is reconstruction.
        """
        self.texts, self.windower, self.prompter = texts, windower, prompter
        self.seed, self.reconstruction_share = seed, reconstruction_share
        window = windower.settings.window_tokens * _CHARACTERS
        #: The text that each sample is drawn from.
        self._of = [i for i, text in enumerate(texts) for _ in range(max(1, round(len(text) / window)))]
        costs = [min(len(texts[i]), window) for i in self._of]
        self._plans = RatedPlans(costs, windower.settings.all_rates, batch_size=batch_size, seed=seed)

    def __len__(self) -> int:
        return len(self._of)

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the micro-batches of an epoch as places of samples."""
        return self._plans.of(epoch).batches

    def collate(self, indices: Sequence[int], epoch: int) -> CompressBatch:
        """Assemble one micro-batch."""
        tokens = self.windower.tokens([self.texts[self._of[i]] for i in indices])
        samples = [self._sample(each, i, epoch) for each, i in zip(tokens, indices, strict=True)]
        rows = [Windowed(np.empty(0, dtype=np.int32), (sample.window,), 1) for sample in samples]
        windows = self.windower.collate(rows, self._plans.of(epoch).rates[indices[0]])
        learnt = self.prompter.text_ids([sample.text for sample in samples])
        prompts = [
            self.prompter.task(sample.task, count, ids, ended=sample.ended)
            for sample, count, ids in zip(samples, windows.counts.tolist(), learnt, strict=True)
        ]
        names = [f"{self._of[i]}-{i}" for i in indices]
        return collate_prompts(prompts, names, windows, self.prompter.pad_id)

    def _sample(self, passage: Tokens, place: int, epoch: int) -> _Sample:
        """Draw a window of a passage and what is learnt from it."""
        rng = random.Random(f"pretraining/{self.seed}/{epoch}/{place}")
        windows = self.windower.cut(passage)
        window = windows[rng.randrange(len(windows))]
        n, most = len(passage.ids), self.windower.settings.window_tokens
        if rng.random() < self.reconstruction_share:
            return _Sample(
                window, RECONSTRUCT, self._text(passage, window.start, window.start + len(window.ids)), ended=True
            )
        end = window.start + len(window.ids)
        if end >= n:
            if len(window.ids) < _SHORTEST:
                return _Sample(window, RECONSTRUCT, self._text(passage, window.start, end), ended=True)
            end = window.start + len(window.ids) // 2
            window = Window(window.ids[: end - window.start], window.document, window.start)
        last = min(n, end + most)
        return _Sample(window, CONTINUE, self._text(passage, end, last), ended=last == n)

    def _text(self, passage: Tokens, start: int, end: int) -> str:
        """Return the text of the tokens from ``start`` to ``end``."""
        if not len(passage.ids):
            return passage.text
        if passage.spans is None:
            return str(self.windower.tokenizer.decode(passage.ids[start:end], skip_special_tokens=False))
        return passage.text[int(passage.spans[start, 0]) : int(passage.spans[end - 1, 1])]
