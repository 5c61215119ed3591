"""How long an answer takes from memory, and how long from the full passages, stage by stage.

Both are timed on the same questions, with the same network as it is now and with the adapters that are in it: what is compared
is memory with text, never a network with itself before training. Each batch is answered in every arm before the next one, in
an order that goes round, so that what else the machine does is shared. The device is waited for after each stage::

    tokenise   text → windows and prompts, on the host
    compress   windows → vectors; nothing where text is read
    prefill    prompt → first token
    decode     the other tokens, as many in every arm

Every answer is made to have the same length, which says what a token costs; the time until the answers of a batch came to their
own end is kept beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ragtrain import metrics
from ragtrain.errors import ConfigError
from ragtrain.evaluate.compress.peak import PeakBytes
from ragtrain.models.compress.generate import CompressPrompt, padded
from ragtrain.models.compress.model import evaluating
from ragtrain.models.generate import end_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from ragtrain.data.compress.batches import WindowBatch
    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.subject import Subject

log = logging.getLogger("ragtrain")

STAGES = ("tokenise", "compress", "prefill", "decode")
FULL, MEMORY = "full", "compressed"


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One batch answered.

    Attributes:
        seconds: of each stage.
        natural: until every answer of the batch had come to its own end, or to the limit.
        prompt_tokens: positions read, padding aside.
        vectors: of memory, over the batch.
        cache_bytes: keys and values at the end, over the batch.
        tokens: written, each row's in its order.
    """

    seconds: dict[str, float]
    natural: float
    prompt_tokens: int
    vectors: int
    cache_bytes: int
    tokens: list[list[int]]

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return math.fsum(self.seconds.values())

    @property
    def first_token(self) -> float:
        """Seconds until the first token."""
        return self.total - self.seconds["decode"]


def measure_speed(
    subject: Subject,
    rows: Sequence[CompressExample],
    *,
    repeats: int = 20,
    batch_sizes: Sequence[int] = (1, 8),
    max_new_tokens: int = 32,
    precision: Literal["no", "bf16", "fp16"] = "no",
) -> dict[str, Any]:
    """Time tokenising, compressing, reading and writing, for memory and for full passages in turn.

    Args:
        subject: the network; it is left as it was.
        rows: questions with their passages, as they are to be read; gone through from the beginning, again and again.
        repeats: batches that are timed, of each size.
        batch_sizes: questions at a time.
        max_new_tokens: tokens that every answer is made to have.
        precision: arithmetic of the network.

    Returns:
        What it ran on, ``repeats``, ``new_tokens`` and ``batches``: for each size (as text) ``arms`` by name (``full``,
        ``compressed``, and ``compressed@RATE`` for further rates) and ``full_over_compressed``. Of an arm: ``seconds`` (of each stage,
        ``first_token``, ``total`` and ``natural``: ``mean``, ``p50``, ``p90`` and ``all``), ``questions_per_s`` and
        ``tokens_per_s`` (means over all repeats), means of ``prompt_tokens`` and ``vectors`` a question, ``cache_bytes`` a question
        and ``peak_bytes`` of a batch, above the weights. ``full_over_compressed``: geometric mean of how many times full passages took
        as long, by pairs of the same questions, with a 95 % interval, for ``total``, ``first_token`` and ``natural``. An arm that
        does not fit on the device is ``None``.

    Raises:
        ConfigError: there is no question, or the generator keeps no cache of keys and values.
    """
    if not rows:
        raise ConfigError("no questions to time answers with", hint="give evaluation rows (--eval-data)")
    timer = _Timer(subject, max_new_tokens)
    cuts = subject.prompter.cut_rows, subject.prompter.cut_tokens
    with timer.computing(precision):
        batches = {str(size): _measure(timer, rows, size, repeats) for size in dict.fromkeys(batch_sizes)}
    subject.prompter.cut_rows, subject.prompter.cut_tokens = cuts
    return {**_machine(subject, precision), "repeats": repeats, "new_tokens": max_new_tokens, "batches": batches}


def _measure(timer: _Timer, rows: Sequence[CompressExample], size: int, repeats: int) -> dict[str, Any]:
    """Return all arms at one batch size."""
    first = _batch(rows, 0, size)
    peaks: dict[str, int] = {}
    for name in timer.arms:
        # The first pass of a shape pays for what is kept afterwards: it warms up, and is measured for memory.
        with contextlib.suppress(torch.OutOfMemoryError):
            timer.answer(first, name)
            peaks[name] = timer.peak(first, name)
    names = [name for name in timer.arms if name in peaks]
    for name in timer.arms:
        if name not in peaks:
            log.warning("%s does not fit on the device for %d questions at once: it is not timed", name, size)
    passes: dict[str, list[_Pass]] = {name: [] for name in names}
    for number in range(repeats):
        batch = _batch(rows, number, size)
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            passes[name].append(timer.answer(batch, name))
    arms = {name: _summary(passes[name], size, peaks[name]) if name in peaks else None for name in timer.arms}
    return {"arms": arms, "full_over_compressed": _ratios(passes) if {FULL, MEMORY} <= passes.keys() else None}


def _batch(rows: Sequence[CompressExample], number: int, size: int) -> list[CompressExample]:
    return [rows[(number * size + place) % len(rows)] for place in range(size)]


class _Timer:
    """Answers batches stage by stage and looks at the clock in between.

    Attributes:
        arms: what is timed: None for full passages, else the rate of their memory.
    """

    def __init__(self, subject: Subject, new_tokens: int) -> None:
        self._subject, self._new = subject, new_tokens
        self._model, self._generator = subject.model, subject.model.generator
        self._device = subject.model.device
        self._known = inspect.signature(type(self._generator).forward).parameters
        self._ends = end_tokens(self._generator, subject.tokenizer)
        nominal, *others = subject.model.settings.all_rates
        self.arms: dict[str, int | None] = {
            FULL: None,
            MEMORY: nominal,
            **{f"{MEMORY}@{rate}": rate for rate in others},
        }

    @contextlib.contextmanager
    def computing(self, precision: Literal["no", "bf16", "fp16"]) -> Iterator[None]:
        """Compute in the arithmetic asked for, without gradients or dropout."""
        kind = torch.float16 if precision == "fp16" else torch.bfloat16
        with (
            torch.no_grad(),
            evaluating(self._model),
            torch.autocast(self._device.type, dtype=kind, enabled=precision != "no"),
        ):
            yield

    def answer(self, batch: Sequence[CompressExample], name: str) -> _Pass:
        """Answer a batch in one arm."""
        rate = self.arms[name]
        marks = [self._now()]
        windows, prompts = self._text(batch) if rate is None else self._memory(batch, rate)
        marks.append(self._now())
        if windows is not None:
            vectors = self._model.compress(windows.to(self._device)).vectors
            own = torch.split(vectors, [max(prompt.slots, default=-1) + 1 for prompt in prompts])
            prompts = [dataclasses.replace(prompt, vectors=part) for prompt, part in zip(prompts, own, strict=True)]
        marks.append(self._now())
        first, mask = padded(self._model, prompts)
        inputs: dict[str, Any] = {**first, "attention_mask": mask, "use_cache": True}
        if "position_ids" in self._known:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "logits_to_keep" in self._known:
            inputs["logits_to_keep"] = 1
        output = self._generator(**inputs)
        tokens = output.logits[:, -1].argmax(-1)
        written = [tokens.tolist()]
        marks.append(self._now())
        natural = self._decode(output.past_key_values, tokens, mask, written) or None
        marks.append(self._now())
        seconds = {stage: end - start for stage, (start, end) in zip(STAGES, itertools.pairwise(marks), strict=True)}
        return _Pass(
            seconds,
            (marks[-1] if natural is None else natural) - marks[0],
            sum(len(prompt.ids) for prompt in prompts),
            0 if windows is None else int(windows.counts.sum()),
            _held(output.past_key_values),
            [list(row) for row in zip(*written, strict=True)],
        )

    def peak(self, batch: Sequence[CompressExample], name: str) -> int:
        """Return the bytes that answering a batch takes at most, above the weights."""
        known = [*self._model.parameters(), *self._model.buffers()]
        with PeakBytes(self._device, known) as peak:
            self.answer(batch, name)
        return peak.bytes

    def _decode(self, cache: Any, tokens: Tensor, mask: Tensor, written: list[list[int]]) -> float:  # noqa: ANN401
        """Write the other tokens; return when every answer had come to its own end, 0 where one did not."""
        if cache is None:
            raise ConfigError(f"{type(self._generator).__name__} keeps no cache of keys and values",
                              hint="--speed-repeats 0 measures no speed")  # fmt: skip
        rows, longest = mask.shape
        seen = torch.cat([mask, mask.new_ones(rows, self._new)], dim=1)
        positions = mask.sum(1, keepdim=True)
        open_rows = {row for row, token in enumerate(written[0]) if token not in self._ends}
        natural = 0.0 if open_rows else self._now()
        for step in range(1, self._new):
            inputs: dict[str, Any] = {
                "input_ids": tokens[:, None], "attention_mask": seen[:, : longest + step], "use_cache": True,
                "past_key_values": cache,
            }  # fmt: skip
            if "position_ids" in self._known:
                inputs["position_ids"] = positions + step - 1
            tokens = self._generator(**inputs).logits[:, -1].argmax(-1)
            written.append(tokens.tolist())
            if open_rows:
                open_rows -= {row for row in open_rows if written[-1][row] in self._ends}
                natural = 0.0 if open_rows else self._now()
        return natural

    def _text(self, batch: Sequence[CompressExample]) -> tuple[None, list[CompressPrompt]]:
        made = [self._subject.prompter.text(row.question, row.documents, room=self._new) for row in batch]
        return None, [CompressPrompt(prompt.ids.tolist(), prompt.slots.tolist()) for prompt in made]

    def _memory(self, batch: Sequence[CompressExample], rate: int) -> tuple[WindowBatch, list[CompressPrompt]]:
        windower = self._subject.windower
        windowed = windower.windows([(row.question, row.documents) for row in batch])
        windows = windower.collate(windowed, rate)
        made = [
            self._subject.prompter.memory(row.question, windower.counts(each, rate))
            for row, each in zip(batch, windowed, strict=True)
        ]
        return windows, [CompressPrompt(prompt.ids.tolist(), prompt.slots.tolist()) for prompt in made]

    def _now(self) -> float:
        """Return the time once the device has done all that it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


def _held(cache: Any) -> int:  # noqa: ANN401
    """Return the bytes of keys and values."""
    tensors = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _summary(passes: Sequence[_Pass], size: int, peak: int) -> dict[str, Any]:
    """Return one arm at one batch size."""
    times = {
        **{stage: [each.seconds[stage] for each in passes] for stage in STAGES},
        "first_token": [each.first_token for each in passes],
        "total": [each.total for each in passes],
        "natural": [each.natural for each in passes],
    }
    spent, questions = math.fsum(times["total"]), size * len(passes)
    tokens = sum(len(row) for each in passes for row in each.tokens)
    return {
        "seconds": {name: _spread(values) for name, values in times.items()},
        "questions_per_s": questions / spent,
        "tokens_per_s": tokens / spent,
        "prompt_tokens": sum(each.prompt_tokens for each in passes) / questions,
        "vectors": sum(each.vectors for each in passes) / questions,
        "cache_bytes": sum(each.cache_bytes for each in passes) / questions,
        "peak_bytes": peak,
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    p50, p90 = np.quantile(values, [0.5, 0.9])
    return {"mean": math.fsum(values) / len(values), "p50": float(p50), "p90": float(p90), "all": list(values)}


def _ratios(passes: dict[str, list[_Pass]]) -> dict[str, dict[str, float]]:
    """Return how many times full passages took as long as memory, by pairs."""
    found = {}
    for name in ("total", "first_token", "natural"):
        logs = [
            math.log(getattr(full, name) / getattr(memory, name))
            for full, memory in zip(passes[FULL], passes[MEMORY], strict=True)
        ]
        low, high = metrics.bootstrap_mean(logs)
        found[name] = {"ratio": math.exp(math.fsum(logs) / len(logs)), "low": math.exp(low), "high": math.exp(high)}
    return found


def _machine(subject: Subject, precision: str) -> dict[str, Any]:
    """Return what the times depend on."""
    model = subject.model
    name = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None
    return {
        "device": model.device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "dtype": str(model.generator.dtype).removeprefix("torch."),
        "precision": precision,
        "attention": str(model.generator.config.get_text_config()._attn_implementation),
        "peak_is_of": PeakBytes(model.device).how,
    }
