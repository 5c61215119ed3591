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
    held = _generator_bytes(config, parts, longest) + _tower_bytes(config, parts)
    state = memory.state_bytes(parts.model)
    # Refreshed, there are the old, the new, and those that are searched.
    copies = 3 if parts.model.passage_encoder is not None else 1
    vectors = copies * parts.index.vectors.nbytes
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
        f"and optimizer, about {memory.readable(held)} activations; besides, {memory.readable(vectors)} of vectors",
        "output": str(config.run.output_dir),
    }


def _generator_bytes(config: RagConfig, parts: RagParts, longest: int) -> int:
    """Return an estimate of what the generator holds for the backward pass; ``longest``: tokens of an input."""
    asked, reader = config.model, parts.model.reader
    batch = config.loop.batch_size
    rows = batch * min(asked.n_docs, asked.doc_chunk or asked.n_docs)
    # What a portion computes is thrown away but for its inputs and results, and made anew when its gradient is due.
    targets = parts.train.target_token_count // max(1, len(parts.train)) + 1
    # Fused, the answer is predicted once for all passages; each passage's own prediction has no gradient.
    logits = memory.logit_bytes(batch if asked.reader == "fid" else rows, targets, parts.model.vocab_size)
    if not asked.train_generator:
        return logits
    own = parts.model.generator.config
    layers = memory.activation_bytes(
        own.get_text_config() if reader.causal else own,
        rows,
        longest + (targets if reader.causal else 0),
        half=loop.resolve_precision(config.loop.mixed_precision) != "no",
        checkpointing=asked.gradient_checkpointing,
    )
    return layers + logits


def _tower_bytes(config: RagConfig, parts: RagParts) -> int:
    """Return an estimate of what the encoders that are trained hold for the backward pass."""
    model, batch = parts.model, config.loop.batch_size
    half = loop.resolve_precision(config.loop.mixed_precision) != "no"
    held = 0
    if config.model.train_question_encoder:
        held += memory.activation_bytes(
            model.question_encoder.model.config, batch, config.model.max_question_tokens, half=half, checkpointing=False
        )
    if model.passage_encoder is not None:
        # At most: questions of a micro-batch share passages.
        each = config.model.n_docs + (config.objective.hard_negatives + 1 if config.objective.infonce_weight > 0 else 0)
        sample = [parts.index.passages.texts(i) for i in range(min(64, parts.index.count))]
        longest = model.passage_encoder.tokenize_passages(sample)["input_ids"].shape[1]
        held += memory.activation_bytes(
            model.passage_encoder.model.config, batch * each, longest, half=half, checkpointing=False
        )
    return held
