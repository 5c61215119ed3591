"""Greedy and beam search, as transformers' ``generate`` does them, over anything that says how tokens go on.

The same hypotheses come out as of ``generate`` (length penalty and early stopping included), but with the exact
log-likelihood of every token, and rows that are done stop costing. One thing differs: behind the end of a hypothesis of
a model whose padding is token 0 (T5), ``generate`` writes end tokens; here stands padding, always.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import ForcedBOSTokenLogitsProcessor, ForcedEOSTokenLogitsProcessor

if TYPE_CHECKING:
    from torch import FloatTensor, LongTensor
    from transformers import PreTrainedModel

_NEVER = -1.0e9
#: Entries of the vocabulary whose maximum is looked at first when the best are sought.
_BLOCK = 64


class Stepper(Protocol):
    """Says how sequences go on; ``rows`` are what is searched for independently: passages, or questions."""

    def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """Return logits (rows, beams, vocabulary) of what follows.

        Args:
            tokens: (rows, beams) the latest tokens.
            origin: (rows, beams) which of the beams before each one continues; None at the first call.
        """

    def select(self, rows: Tensor) -> None:
        """Keep some rows; the others are done."""


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        num_beams: beams of each row; 1 is greedy.
        max_new_tokens: longest answer.
        start: token that sequences begin with.
        pad: what stands behind the end.
        ends: tokens that end a sequence.
        length_penalty: exponent of the length by which a hypothesis' log-likelihood is divided.
        early_stopping: as in transformers' ``GenerationConfig``.
        processors: what changes the scores of tokens; mostly empty.
        processor_steps: steps at which they change anything; None for all.
    """

    num_beams: int
    max_new_tokens: int
    start: int
    pad: int
    ends: tuple[int, ...]
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    processors: LogitsProcessorList | None = None
    processor_steps: frozenset[int] | None = None

    @classmethod
    def of(cls, generator: PreTrainedModel, inputs: Tensor, num_beams: int, max_new_tokens: int) -> SearchSettings:
        """Return what a generator's generation settings say, as ``generate`` reads them.

        Args:
            generator: an encoder-decoder model.
            inputs: (rows, tokens) that the encoder reads; some processors look at them.
            num_beams: beams of each row.
            max_new_tokens: longest answer.
        """
        chosen: Any = GenerationConfig.from_dict(generator.generation_config.to_dict())
        chosen.update(
            num_beams=num_beams, max_new_tokens=max_new_tokens, max_length=max_new_tokens + 1, do_sample=False
        )
        model: Any = generator
        model._prepare_special_tokens(chosen, True, device=inputs.device)
        processors = model._get_logits_processor(
            generation_config=chosen, input_ids_seq_length=1, encoder_input_ids=inputs, device=inputs.device,
            prefix_allowed_tokens_fn=None, logits_processor=LogitsProcessorList(),
        )  # fmt: skip
        ends = chosen.eos_token_id
        return cls(
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            start=chosen.decoder_start_token_id,
            pad=chosen.pad_token_id,
            ends=tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,),
            length_penalty=1.0 if chosen.length_penalty is None else chosen.length_penalty,
            early_stopping=chosen.early_stopping or False,
            processors=processors if len(processors) else None,
            processor_steps=_steps(processors, max_new_tokens),
        )


def _steps(processors: LogitsProcessorList, max_new_tokens: int) -> frozenset[int] | None:
    """Return the steps at which processors do anything: a forced first or last token, which BART has, is of one step."""
    known = {ForcedBOSTokenLogitsProcessor: 0, ForcedEOSTokenLogitsProcessor: max_new_tokens - 1}
    if all(type(processor) in known for processor in processors):
        return frozenset(known[type(processor)] for processor in processors)
    return None


@dataclasses.dataclass
class Hypotheses:
    """What was found, the best first.

    Attributes:
        tokens: (rows, hypotheses, tokens) from the start token on, padded behind the end.
        token_loglik: (rows, hypotheses, tokens - 1) float32 log p(token | tokens before), 0 at padding; before any
            processor.
        scores: (rows, hypotheses) float32 log-likelihood over the length penalty, after the processors.
    """

    tokens: Tensor
    token_loglik: Tensor
    scores: Tensor

    def select(self, rows: Tensor) -> Hypotheses:
        """Return some rows."""
        return Hypotheses(self.tokens[rows], self.token_loglik[rows], self.scores[rows])

    def pick(self, places: Tensor) -> Hypotheses:
        """Return the hypotheses at places (rows, n) of each row."""
        wide = places[..., None]
        return Hypotheses(
            self.tokens.take_along_dim(wide, 1),
            self.token_loglik.take_along_dim(wide, 1),
            self.scores.gather(1, places),
        )

    def join(self, other: Hypotheses) -> Hypotheses:
        """Return both, one after the other."""
        return Hypotheses(
            torch.cat([self.tokens, other.tokens], 1),
            torch.cat([self.token_loglik, other.token_loglik], 1),
            torch.cat([self.scores, other.scores], 1),
        )


def search(stepper: Stepper, rows: int, settings: SearchSettings, device: torch.device) -> Hypotheses:
    """Return ``num_beams`` hypotheses of each row (one where the search is greedy).

    Args:
        stepper: how tokens go on.
        rows: how many searches there are.
        settings: how to search.
        device: where.
    """
    width = settings.max_new_tokens
    blank = Hypotheses(
        torch.full((rows, settings.num_beams, width + 1), settings.pad, device=device),
        torch.zeros(rows, settings.num_beams, width, device=device),
        torch.full((rows, settings.num_beams), _NEVER, device=device),
    )
    blank.tokens[..., 0] = settings.start
    walk = (_Greedy if settings.num_beams == 1 else _Beams)(stepper, blank, settings)
    return walk.run()


class _Walk:
    """One step after the other over the rows that are still open; those that are done are put aside."""

    def __init__(self, stepper: Stepper, blank: Hypotheses, settings: SearchSettings) -> None:
        self.stepper, self.settings = stepper, settings
        self.done = blank
        self.places = torch.arange(len(blank.tokens), device=blank.tokens.device)
        self.open = torch.ones_like(self.places, dtype=torch.bool)
        self.ends = torch.tensor(settings.ends, device=blank.tokens.device)
        # All beams are alike before the first token: one of them is enough.
        self.running = blank.pick(torch.zeros(len(blank.tokens), 1, dtype=torch.long, device=blank.tokens.device))
        self.running.scores = torch.zeros_like(self.running.scores)
        self.origin: Tensor | None = None
        self.longest = 0

    def run(self) -> Hypotheses:
        """Walk to the end of all rows."""
        for step in range(self.settings.max_new_tokens):
            logits = self.stepper(self.running.tokens[..., step], self.origin).float()
            self.longest = step + 1
            self.advance(step, logits)
            left = int(self.open.sum())
            if not left or step + 1 == self.settings.max_new_tokens:
                break
            # Dropping rows copies what the stepper remembers: worth it where it halves the work.
            if 2 * left <= len(self.open):
                self._put_aside()
        self._put_aside()
        tokens, loglik = self.done.tokens[..., : self.longest + 1], self.done.token_loglik[..., : self.longest]
        return Hypotheses(tokens, loglik.masked_fill(tokens[..., 1:] == self.settings.pad, 0.0), self.done.scores)

    def advance(self, step: int, logits: Tensor) -> None:
        """Take the next token of each beam; says in ``open`` which rows go on."""
        raise NotImplementedError

    def result(self) -> Hypotheses:
        """Return the hypotheses of the rows at hand."""
        raise NotImplementedError

    def _put_aside(self) -> None:
        found = self.result()
        self.done.tokens[self.places], self.done.token_loglik[self.places] = found.tokens, found.token_loglik
        self.done.scores[self.places] = found.scores
        if not self.open.any():
            return
        rows = self.open.nonzero().flatten()
        self.keep(rows)
        self.stepper.select(rows)
        self.places, self.open = self.places[rows], self.open[rows]

    def keep(self, rows: Tensor) -> None:
        """Keep some rows of what is remembered."""
        self.running = self.running.select(rows)
        self.origin = None if self.origin is None else self.origin[rows]

    def changes(self, step: int) -> bool:
        """Say whether the processors do anything at a step."""
        steps = self.settings.processor_steps
        return self.settings.processors is not None and (steps is None or step in steps)

    def processed(self, step: int, values: Tensor) -> Tensor:
        """Return (rows, beams, vocabulary) after the processors."""
        if self.settings.processors is None or not self.changes(step):
            return values
        prefixes = self.running.tokens[..., : step + 1].flatten(0, 1)
        changed = self.settings.processors(
            cast("LongTensor", prefixes), cast("FloatTensor", values.flatten(0, 1).clone())
        )
        return changed.view_as(values)


class _Greedy(_Walk):
    """The likeliest token, then the next."""

    def advance(self, step: int, logits: Tensor) -> None:
        """Append the best token of each row; one that is done gets padding."""
        token = self.processed(step, logits).argmax(-1)
        loglik = logits.gather(2, token[..., None])[..., 0] - logits.logsumexp(-1)
        token = torch.where(self.open[:, None], token, self.settings.pad)
        self.running.tokens[..., step + 1] = token
        self.running.token_loglik[..., step] = loglik.masked_fill(~self.open[:, None], 0.0)
        self.running.scores += self.running.token_loglik[..., step]
        self.open = self.open & ~torch.isin(token[:, 0], self.ends)
        self.origin = torch.zeros_like(token)

    def result(self) -> Hypotheses:
        """Return the only hypothesis of each row."""
        return self.running


class _Beams(_Walk):
    """The hypotheses that ended best, and the beams that may still end better."""

    def __init__(self, stepper: Stepper, blank: Hypotheses, settings: SearchSettings) -> None:
        super().__init__(stepper, blank, settings)
        self.finished = Hypotheses(blank.tokens.clone(), blank.token_loglik.clone(), blank.scores.clone())

    def advance(self, step: int, logits: Tensor) -> None:
        """Extend the beams, put those that end among the finished, and close rows that cannot get better."""
        settings, beams = self.settings, self.settings.num_beams
        following, source, token = self._continue(step, logits, max(2, 1 + len(settings.ends)) * beams)
        ending = torch.isin(token, self.ends) | (step + 1 == settings.max_new_tokens)

        chosen = (following.scores + ending * _NEVER).topk(beams).indices
        before = self.finished
        ended = Hypotheses(following.tokens, following.token_loglik, following.scores.clone())
        ended.scores /= (step + 1) ** settings.length_penalty
        # Only an end among the best ``num_beams`` continuations counts: the others are spare.
        counts = ending & (torch.arange(token.shape[1], device=token.device) < beams) & self.open[:, None]
        ended.scores += ~counts * _NEVER
        merged = before.join(ended)
        self.finished = merged.pick(merged.scores.topk(beams).indices)
        self.running = following.pick(chosen)
        self.running.scores += ending.gather(1, chosen) * _NEVER
        self.origin = source.gather(1, chosen)

        full = (self.finished.scores > _NEVER / 2).all(1)
        length = step + 1
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = settings.max_new_tokens
        hope = self.running.scores[:, 0] / length**settings.length_penalty > self.finished.scores.amin(1)
        self.open = self.open & ~(full if settings.early_stopping is True else full & ~hope)

    def keep(self, rows: Tensor) -> None:
        """Keep some rows of beams and finished hypotheses."""
        super().keep(rows)
        self.finished = self.finished.select(rows)

    def result(self) -> Hypotheses:
        """Return the finished hypotheses."""
        return self.finished

    def _continue(self, step: int, logits: Tensor, count: int) -> tuple[Hypotheses, Tensor, Tensor]:
        """Return the best ``count`` continuations of each row, the beams they come from, and their last tokens."""
        total = logits.logsumexp(-1, keepdim=True)
        if not self.changes(step):
            values, ids = best(logits, min(count, logits.shape[2]))
            values = values - total
        else:
            values, ids = best(self.processed(step, logits - total), min(count, logits.shape[2]))
        scores, places = (values + self.running.scores[..., None]).flatten(1).topk(min(count, values[0].numel()))
        source, token = places // ids.shape[2], ids.flatten(1).gather(1, places)
        loglik = logits.flatten(1).gather(1, source * logits.shape[2] + token) - total[..., 0].gather(1, source)
        following = self.running.pick(source)
        following.tokens[..., step + 1], following.token_loglik[..., step] = token, loglik
        following.scores = scores
        return following, source, token


def best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest ``count`` of (..., vocabulary) and their places, as ``topk`` does.

    The largest lie in the blocks with the largest maxima: on a CPU, looking for these first is several times as fast.
    """
    vocab = values.shape[-1]
    blocks = vocab // _BLOCK
    if values.device.type != "cpu" or blocks < 4 * count:
        found = values.topk(count)
        return found.values, found.indices
    whole = values[..., : blocks * _BLOCK].reshape(*values.shape[:-1], blocks, _BLOCK)
    chosen = whole.amax(-1).topk(count).indices
    inside = whole.take_along_dim(chosen[..., None], -2).flatten(-2)
    places = (chosen[..., None] * _BLOCK + torch.arange(_BLOCK)).flatten(-2)
    if blocks * _BLOCK < vocab:
        rest = torch.arange(blocks * _BLOCK, vocab).expand(*values.shape[:-1], -1)
        inside, places = torch.cat([inside, values[..., blocks * _BLOCK :]], -1), torch.cat([places, rest], -1)
    found = inside.topk(count)
    return found.values, places.gather(-1, found.indices)
