"""The plan of a run, shown before it starts; all there is to a dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ragtrain import loop
from ragtrain.data.compress.coverage import coverage
from ragtrain.models import memory
from ragtrain.train.compress.build import groups_of

if TYPE_CHECKING:
    from ragtrain.config.commands import CompressConfig
    from ragtrain.data.compress.rows import CompressRows
    from ragtrain.train.compress.build import CompressParts

#: Training rows whose passages are looked at for what windows cut and split, evenly spread.
LOOKED_AT = 500


def describe(config: CompressConfig, rows: CompressRows, parts: CompressParts) -> dict[str, Any]:
    """Return the plan: what is read, for how many steps, and what it takes; nothing is written."""
    world = PartialState().num_processes
    plan, settings = parts.train.plan(0), parts.settings
    steps = loop.total_steps(config.loop, len(plan), world)
    per_step = config.loop.gradient_accumulation_steps * world
    model = parts.model
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dearest = parts.train.evaluation(parts.train.ordered()[0]) if rows.train else None
    every = range(0, len(rows.train), max(1, -(-len(rows.train) // LOOKED_AT)))
    shown = [parts.train.contexts.context(place) for place in every]
    # What is read: --n-docs leaves some of a row's out, an index or distractors add others.
    documents = sum(len(context.documents) for context in shown) / max(1, len(shown))
    full = config.evaluation.full_context_steps
    described = {
        "training rows": f"{len(rows.train)}, {documents:.1f} passages each on average",
        "evaluation rows": f"{len(rows.validation)}",
        "window": f"{settings.window_tokens} tokens into {settings.num_memory_tokens} vectors"
        + "".join(f", or {settings.full_memory(rate)}" for rate in settings.all_rates[1:])
        + ("" if settings.query_dependent else "; the compressor does not read the question"),
        "compressor": f"{config.compressor.compressor_type}, {settings.num_layers} layers, "
        f"{sum(p.numel() for p in model.compressor.parameters()):,} parameters",
        "relevance head": "on reranker scores" if settings.rank_head else "none",
        "pre-training": f"{config.objective.pretrain_steps} steps" if parts.pretraining is not None else "none",
        "steps": f"{steps} ({steps * per_step / max(1, len(plan)):.1f} epochs), and "
        f"{steps if full is None else full} of the generator on full passages",
        "step": f"{per_step} micro-batches = {config.loop.gradient_accumulation_steps} accumulated x {world} processes, "
        f"{config.loop.batch_size} questions each",
        "learning rates": ", ".join(f"{each.name} {each.learning_rate:g}" for each in groups_of(config, model)),
        "trained parameters": f"{learning:,} of {sum(p.numel() for p in model.parameters()):,}",
        "memory estimate": f"{memory.readable(memory.state_bytes(model))} a process for weights, gradients and optimizer",
        "output": str(config.run.output_dir),
    }
    if shown:
        some = "" if len(shown) == len(rows.train) else f"of {len(shown)} rows looked at: "
        described["windows"] = some + coverage(shown, parts.train.windower).summary()
    if dearest is not None:
        described["largest micro-batch"] = (
            f"{len(dearest.windows.counts)} windows of {dearest.windows.input_ids.shape[1]} tokens, "
            f"prompts of {dearest.input_ids.shape[1]} with {int((dearest.slot >= 0).sum())} vectors in all"
        )
    return described
