"""From passages to memory vectors, some passages at a time."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from ragtrain.config.commands.sft import SftModelConfig
from ragtrain.data.compress.records import Windowed, passage_text
from ragtrain.data.compress.windows import Windower
from ragtrain.models.compress.export import load_compress, read_sidecar
from ragtrain.models.compress.generate import vectors_of
from ragtrain.models.folders import local_folder
from ragtrain.records import Document

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.data.compress.batches import WindowBatch
    from ragtrain.models.compress.model import CompressModel
    from ragtrain.records import Passage

_NO_QUESTION = np.empty(0, dtype=np.int32)
_ARITHMETIC = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Passages as vectors.

    Attributes:
        vectors: (vectors, width) float32, passage by passage.
        counts: vectors of each passage.
        tokens: of each passage, that the compressor read.
        cut: tokens that it did not read (``max_windows``).
        fed: tokens that went through the compressor, its own among them.
    """

    vectors: np.ndarray
    counts: list[int]
    tokens: list[int]
    cut: int
    fed: int


class Compressor:
    """The compressor of a run, without its generator.

    Attributes:
        model: on its device.
        generator_config: sizes of the generator, which is not kept.
        generator_tokenizer: of it.
        windower: cuts passages.
        rate: tokens for each vector.
    """

    def __init__(self, model_dir: Path | str, rate: int, device: torch.device, precision: str = "no") -> None:
        """Load a compressor.

        Raises:
            ConfigError: there is no such model.
            DataError: something is missing from it.
        """
        network = read_sidecar(local_folder(model_dir, kind="model"))["network"]
        # A base of few bits is not wanted in them: it is only looked at.
        plain = SftModelConfig(dtype="bfloat16") if network.get("bits") else None
        model, tokenizers, _ = load_compress(model_dir, config=plain)
        self.generator_config: Any = model.generator.config
        self.generator_tokenizer: PreTrainedTokenizerBase = tokenizers.generator
        # Only the compressor computes here, and the generator may be the larger part by far.
        model.generator = cast("PreTrainedModel", nn.Identity())
        self.model: CompressModel = model.to(device)
        self.windower = Windower(tokenizers.compressor, model.settings)
        self.rate, self._dtype = rate, _ARITHMETIC[precision]

    def __call__(self, passages: Sequence[Passage], batch_size: int) -> Compressed:
        """Return the vectors of passages; passages of similar length are computed together.

        Args:
            passages: in any order.
            batch_size: windows at a time.

        Raises:
            OutOfMemoryError: one window alone does not fit on the device.
        """
        rows, cut = self.windowed(passages)
        order = sorted(range(len(rows)), key=lambda place: -max(len(window.ids) for window in rows[place].windows))
        fed = 0

        def batches() -> Iterator[WindowBatch]:
            nonlocal fed
            for places in _batches(rows, order, batch_size):
                batch = self.windower.collate([rows[place] for place in places], self.rate)
                fed += int(batch.attention_mask.sum())
                yield batch

        with torch.autocast(self.model.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            found = vectors_of(self.model, batches()).float().numpy()
        counts = [self.windower.counts(row, self.rate)[0] for row in rows]
        starts = np.concatenate([[0], np.cumsum([counts[place] for place in order])])
        where = {place: int(starts[number]) for number, place in enumerate(order)}
        index = [np.arange(where[place], where[place] + counts[place]) for place in range(len(rows))]
        tokens = [sum(len(window.ids) for window in row.windows) for row in rows]
        return Compressed(found[np.concatenate(index)], counts, tokens, cut, fed)

    def windowed(self, passages: Sequence[Passage]) -> tuple[list[Windowed], int]:
        """Return the windows of each passage, and how many tokens none of them holds."""
        texts = [passage_text(Document(p.id, p.title, p.text)) for p in passages]
        rows, cut = [], 0
        for tokens in self.windower.tokens(texts):
            windows = tuple(self.windower.cut(tokens))
            cut += max(0, len(tokens.ids) - sum(len(window.ids) for window in windows))
            rows.append(Windowed(_NO_QUESTION, windows, 1))
        return rows, cut


def _batches(rows: Sequence[Windowed], order: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield places of rows in order, with about so many windows each."""
    batch: list[int] = []
    count = 0
    for place in order:
        windows = len(rows[place].windows)
        if batch and count + windows > most:
            yield batch
            batch, count = [], 0
        batch.append(place)
        count += windows
    if batch:
        yield batch
