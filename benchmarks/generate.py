"""Greedy answers of a fine-tuned model: the loop of ``ragtrain eval`` beside transformers' ``generate``.

    python benchmarks/generate.py RUN --num-samples 200 --batch-size 16

Both read the same prompts (the run's test questions, with what it was trained with) in the same batches, longest first, on
one thread unless OMP_NUM_THREADS says more; the best of three passes counts, on a CPU in seconds of the processor. Token ids
must be equal.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import torch

from ragtrain import prepare
from ragtrain.config.commands import EvalConfig
from ragtrain.data.sft.prompts import Prompter
from ragtrain.evaluate.resolve import precision_of, subject_of
from ragtrain.evaluate.rows import ask, read_rows
from ragtrain.evaluate.subjects import causal_of, load
from ragtrain.models import generate as room

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--checkpoint", default="final")
    parser.add_argument("--num-samples", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    config = EvalConfig(
        model_dir=options.run, checkpoint=options.checkpoint, num_samples=options.num_samples, device=options.device
    )
    subject, device = subject_of(config), prepare.resolve_device(options.device)
    causal = causal_of(subject)
    asked, _ = ask(config, causal, read_rows(config, causal).examples)
    model, tokenizer = load(causal, device, precision_of(subject, device))
    prompts = [
        row.ids
        for row in Prompter(tokenizer, causal.prompt).fitted_prompts(asked[0].samples, room=options.max_new_tokens)
    ]
    prompts.sort(key=len, reverse=True)
    batches = [prompts[start : start + options.batch_size] for start in range(0, len(prompts), options.batch_size)]
    ends, filler = room.end_tokens(model, tokenizer), room._filler(tokenizer)

    def ours() -> list[list[int]]:
        written = []
        for batch in batches:
            ids, mask = room._padded(batch, filler, device)
            written += room._greedy(model, {"input_ids": ids}, mask, [options.max_new_tokens] * len(batch), ends) or []
        return [one.ids for one in written]

    def theirs() -> list[list[int]]:
        written = []
        for batch in batches:
            ids, mask = room._padded(batch, filler, device)
            written += room._by_transformers(
                model, {"input_ids": ids}, mask, [options.max_new_tokens] * len(batch), ends, filler
            )
        return [one.ids for one in written]

    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with torch.no_grad():
        # In turn, so that what else the machine does is shared.
        passes = [(timed(ours, clock), timed(theirs, clock)) for _ in range(3)]
    (own, _), (reference, _) = passes[0]
    own_s, reference_s = (min(each[side][1] for each in passes) for side in (0, 1))
    same = sum(a == b for a, b in zip(own, reference, strict=True))
    lengths = [len(ids) for ids in own]
    print(f"{len(prompts)} prompts of {sum(map(len, prompts)) / len(prompts):.0f} tokens, answers of "
          f"{sum(lengths) / len(lengths):.1f} tokens, at most {max(lengths)}; batches of {options.batch_size}")  # fmt: skip
    print(f"ragtrain      {own_s:6.2f} s  {len(prompts) / own_s:6.1f} questions/s")
    print(f"transformers  {reference_s:6.2f} s  {len(prompts) / reference_s:6.1f} questions/s")
    print(f"ratio {reference_s / own_s:.2f}; equal answers: {same} of {len(prompts)}")


def timed(function: Callable[[], list[list[int]]], clock: Callable[[], float]) -> tuple[list[list[int]], float]:
    """Return what a function returns, and how long it took."""
    started = clock()
    result = function()
    return result, clock() - started


if __name__ == "__main__":
    main()
