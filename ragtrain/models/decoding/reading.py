"""Passages read once, so that answers can be found in them and scored under them: encoder-decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from ragtrain.models.decoding.beams import SearchSettings, Stepper
from ragtrain.models.decoding.decoder import KeyValue, Source, decoder_of
from ragtrain.models.decoding.steppers import PassageStepper
from ragtrain.models.decoding.tries import Trie, score
from ragtrain.models.readers import fuse, never_empty

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragtrain.models.rag import RagModel, Retrieved
    from ragtrain.models.readers import Seq2SeqReader

#: Tokens encoded at a time, padding included.
ENCODED_TOKENS = 8192


class Reading(Protocol):
    """The (question, passage) rows of a batch, read."""

    def settings(self, num_beams: int, max_new_tokens: int) -> SearchSettings:
        """Return how to search."""

    def stepper(self, settings: SearchSettings) -> Stepper:
        """Return how beams of each row go on; may be called once."""

    def score(self, rows: Sequence[int], sequences: Sequence[Sequence[tuple[int, ...]]]) -> list[Tensor]:
        """Return log p(token | row, tokens before) of sequences, without start token, under rows.

        Args:
            rows: which rows.
            sequences: of each of them, the sequences to score.

        Returns:
            For each row (sequences, longest) float32, 0 behind the end.
        """


class Seq2SeqReading:
    """Rows of an encoder-decoder: encoded once, projected once for each layer of the decoder."""

    def __init__(self, model: RagModel, retrieved: Retrieved) -> None:
        self.model, self.inputs = model, retrieved.input_ids
        self.decoder = decoder_of(cast("Seq2SeqReader", model.reader))
        self.source = self._read(retrieved)

    def settings(self, num_beams: int, max_new_tokens: int) -> SearchSettings:
        """Return what the generator's generation settings say."""
        return SearchSettings.of(self.model.generator, self.inputs, num_beams, max_new_tokens)

    def stepper(self, settings: SearchSettings) -> PassageStepper:
        """Return how beams of each row go on."""
        return PassageStepper(self.decoder, self.source, settings)

    def score(self, rows: Sequence[int], sequences: Sequence[Sequence[tuple[int, ...]]]) -> list[Tensor]:
        """Return log p(token | row, tokens before); sequences that begin alike are read together."""
        tries = [Trie(self.model.decoder_start_token_id) for _ in rows]
        paths = [[trie.add(sequence) for sequence in some] for trie, some in zip(tries, sequences, strict=True)]
        found = score(self.decoder, self.source, rows, tries)
        results = []
        for values, some in zip(found, paths, strict=True):
            table = torch.zeros(len(some), max(map(len, some)), device=values.device)
            lengths = torch.tensor([len(path) for path in some], device=values.device)
            mask = torch.arange(table.shape[1], device=values.device) < lengths[:, None]
            edges = torch.tensor([edge for path in some for edge in path], dtype=torch.long, device=values.device)
            results.append(table.masked_scatter(mask, values[edges]))
        return results

    def _read(self, retrieved: Retrieved) -> Source:
        layers: list[KeyValue] = []
        tokens = retrieved.attention_mask.shape[1]
        for rows, states in encode(self.model, retrieved):
            for place, (key, value) in enumerate(self.decoder.project_source(states)):
                if len(layers) == place:
                    shape = (len(retrieved.input_ids), key.shape[1], tokens, key.shape[3])
                    layers.append((key.new_zeros(shape), value.new_zeros(shape)))
                for whole, part in zip(layers[place], (key, value), strict=True):
                    whole[rows, :, : part.shape[2]] = part
        return Source(tuple(layers), never_empty(retrieved.attention_mask)[:, None, None].bool())


def encode(model: RagModel, retrieved: Retrieved) -> Iterator[tuple[Tensor, Tensor]]:
    """Encode inputs of like length together: yields places of rows and their states (rows, their longest, width)."""
    lengths = retrieved.attention_mask.sum(1)
    order = lengths.argsort(descending=True, stable=True)
    counts = lengths[order].tolist()
    start = 0
    while start < len(counts):
        end = start + max(1, ENCODED_TOKENS // max(1, counts[start]))
        rows = order[start:end]
        inputs = model.reader.trim(retrieved.input_ids[rows], retrieved.attention_mask[rows])
        yield rows, model.encode(*inputs)
        start = end


def encode_fused(model: RagModel, retrieved: Retrieved) -> tuple[Tensor, Tensor]:
    """Return the states (batch, n_docs * tokens, width) of all passages of each question, and their mask."""
    mask = retrieved.attention_mask * retrieved.mask.reshape(-1, 1)
    states: Tensor | None = None
    for rows, part in encode(model, retrieved):
        if states is None:
            states = part.new_zeros(*mask.shape, part.shape[2])
        states[rows, : part.shape[1]] = part
    fused, fused_mask = fuse(cast("Tensor", states), mask, retrieved.mask.shape[1])
    return fused, never_empty(fused_mask)
