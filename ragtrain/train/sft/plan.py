"""The plan of a run and a look at its rows, shown before it starts; all there is to a dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState

from ragtrain import loop
from ragtrain.data.sft.packing import token_ratio
from ragtrain.data.sft.preview import length_report, preview
from ragtrain.models import memory
from ragtrain.train.sft.build import group_of

if TYPE_CHECKING:
    from ragtrain.config.commands import SftConfig
    from ragtrain.data.sft.examples import SftRows
    from ragtrain.train.sft.build import SftParts


def show_rows(config: SftConfig, parts: SftParts) -> None:
    """Show how long the rows are and what happened to those that are too long; and, where asked for, some of them."""
    rows = parts.train.rows(0)
    length_report(rows.encoded, parts.train.prompter.settings)
    if config.prompt.preview:
        shown = [int(i) for i in rows.usable[: config.prompt.preview]]
        preview(parts.train.prompter, [rows.samples[i] for i in shown], [rows.encoded[i] for i in shown])


def describe(config: SftConfig, rows: SftRows, parts: SftParts) -> dict[str, Any]:
    """Return the plan: what is read, for how many steps, and what it takes; nothing is written."""
    source, first, world = parts.train, parts.train.rows(0), PartialState().num_processes
    plan = source.plan(0)
    steps = loop.total_steps(config.loop, len(plan), world)
    lengths = first.lengths[first.usable]
    trained = sum(first.encoded[i].trained for i in first.usable)
    per_step = config.loop.gradient_accumulation_steps * world
    held = _activation_bytes(config, parts, int(np.percentile(lengths, 95)))
    state = memory.state_bytes(parts.model)
    count = sum(p.numel() for p in parts.model.parameters())
    learning = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    group = group_of(config, parts.model)
    described = {
        "training rows": f"{len(rows.train)}, {len(first.samples)} samples, {len(first.usable)} of them with an answer to "
        "learn",
        "validation rows": len(rows.validation),
        "passages": _passages(parts.train.maker.describe()),
        "tokens an epoch": f"{int(lengths.sum()):,}, of which {trained:,} are trained "
        f"({100 * trained / max(1, int(lengths.sum())):.1f} %)",
        "steps": f"{steps} ({steps * per_step / max(1, len(plan)):.1f} epochs)",
        "step": f"{per_step} micro-batches = {config.loop.gradient_accumulation_steps} accumulated x {world} processes, "
        f"{len(first.usable) / max(1, len(plan)):.1f} samples each",
        "learning rate": f"{group.learning_rate:g}",
        "trained parameters": f"{learning:,} of {count:,}",
        "memory estimate": f"{memory.readable(state + held)} a process: {memory.readable(state)} weights, gradients and "
        f"optimizer, about {memory.readable(held)} activations",
        "output": str(config.run.output_dir),
    }
    if config.batches.shared_context:
        ratio = token_ratio(first.lengths.tolist(), source.groups(0))
        described["shared context"] = f"{ratio:.2f} times fewer tokens than rows apart"
    return described


def _passages(about: dict[str, Any]) -> str:
    """Say how many passages stand in a prompt, and how often they hold what is asked for."""
    if not about["passages"]:
        return "none: closed-book, or prompts that are finished"
    shares = {"a gold one": about["gold"], "it stands first": about["gold_first"], "an answer": about["answer"]}
    told = ", ".join(f"{name} in {share:.0%}" for name, share in shares.items() if share is not None)
    return f"{about['passages']:.1f} a prompt; {told}"


def _activation_bytes(config: SftConfig, parts: SftParts, length: int) -> int:
    """Return an estimate of what a micro-batch keeps for the backward pass; ``length``: tokens of a long row."""
    text = parts.model.config.get_text_config()
    capacity = config.prompt.max_length if config.batches.packing else length
    layers = memory.activation_bytes(
        text, config.loop.batch_size, capacity,
        half=loop.resolve_precision(config.loop.mixed_precision) != "no",
        checkpointing=config.model.gradient_checkpointing == "on",
    )  # fmt: skip
    first = parts.train.rows(0)
    answer = max((first.encoded[i].trained for i in first.usable), default=0)
    return layers + memory.logit_bytes(config.loop.batch_size, answer, int(text.vocab_size))
