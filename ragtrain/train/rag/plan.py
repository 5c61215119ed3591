"""The plan of a run, printed before it starts; all there is to a dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ragtrain import loop
from ragtrain.data.prompts import bare_ids, passage_string
from ragtrain.models import memory
from ragtrain.train.rag.build import groups_of

if TYPE_CHECKING:
    from ragtrain.config.commands import RagConfig
    from ragtrain.data.training import TrainingQuestions
    from ragtrain.train.rag.build import RagParts


def describe(config: RagConfig, data: TrainingQuestions, parts: RagParts) -> dict[str, Any]:
    """Return the plan: what is read, for how many steps, and what it takes; nothing is written."""
    per_epoch, world = len(parts.train.plan(0)), PartialState().num_processes
    steps = loop.total_steps(config.loop, per_epoch, world)
    effective = config.loop.batch_size * config.loop.gradient_accumulation_steps * world
    sample = [passage_string(*parts.index.passages.texts(i)) for i in range(min(512, parts.index.count))]
    lengths = sorted(map(len, bare_ids(parts.model.generator_tokenizer, sample)))
    longest = min(lengths[int(0.95 * (len(lengths) - 1))] + 24, parts.model.settings.max_input_tokens)
    rows, vocab = config.loop.batch_size * config.model.n_docs, parts.model.vocab_size
    half = loop.resolve_precision(config.loop.mixed_precision) != "no"
    held = memory.activation_bytes(
        parts.model.generator.config, rows, longest, half=half, checkpointing=config.model.gradient_checkpointing
    ) + memory.logit_bytes(rows, parts.train.target_token_count // len(data.train) + 1, vocab)
    state = memory.state_bytes(parts.model)
    trained = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    return {
        "training questions": len(data.train),
        "validation questions": len(data.validation),
        "target tokens an epoch": parts.train.target_token_count,
        "passages": parts.index.count,
        "tokens a passage": f"{sum(lengths) / len(lengths):.0f} on average, 95 % up to {longest - 24}",
        "steps": f"{steps} ({steps * effective / len(data.train):.1f} epochs)",
        "effective batch": f"{effective} questions = {config.loop.batch_size} x "
        f"{config.loop.gradient_accumulation_steps} accumulated x {world} processes, {config.model.n_docs} passages each",
        "learning rate": ", ".join(f"{g.name} {g.learning_rate:g}" for g in groups_of(config, parts.model)),
        "trained parameters": f"{trained:,}",
        "memory estimate": f"{memory.readable(state + held)} a process: {memory.readable(state)} weights, gradients "
        f"and optimizer, about {memory.readable(held)} activations",
        "output": str(config.run.output_dir),
    }
