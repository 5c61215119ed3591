"""The plan of a run, printed before it starts; all there is to a dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ragtrain import loop
from ragtrain.models import memory

if TYPE_CHECKING:
    from ragtrain.config.commands import GfmConfig
    from ragtrain.train.gfm.build import GfmParts
    from ragtrain.train.gfm.data import GfmData, GraphData


def describe(config: GfmConfig, data: GfmData, parts: GfmParts) -> dict[str, Any]:
    """Return the plan: what is read, for how many steps, and what it takes; nothing is written."""
    world, per_epoch = PartialState().num_processes, len(parts.train.plan(0))
    steps = loop.total_steps(config.loop, per_epoch, world)
    per_step = config.loop.gradient_accumulation_steps * world
    effective = config.loop.batch_size * per_step
    trained = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    state = memory.state_bytes(parts.model)
    held = max(_held(config, parts, each) for each in data.train)
    pretrain, settings = config.data.stage == "pretrain", parts.model.network.settings
    return {
        "stage": config.data.stage,
        "graphs": "; ".join(_told(each) for each in data.train),
        "training " + ("triples" if pretrain else "questions"): _count(parts, data, pretrain=pretrain),
        "validation": sum(len(each.held_out) if pretrain else len(each.validation) for each in data.validation),
        "network": f"{settings.num_layers} layers of {settings.hidden_dim}"
        + (f", from {config.model.model_dir}" if config.model.model_dir is not None else ""),
        "text encoder": f"{data.text_encoder} ({data.text_dim} dimensions)"
        if data.text_encoder
        else "none: ULTRA reads no names",
        "steps": f"{steps} ({steps * per_step / max(1, per_epoch):.1f} epochs)",
        "step": f"{effective} queries = {config.loop.batch_size} x {config.loop.gradient_accumulation_steps} accumulated x "
        f"{world} processes",
        "learning rate": f"{parts.group.learning_rate:g}",
        "trained parameters": f"{trained:,}",
        "memory estimate": f"{memory.readable(state + held)} a process: {memory.readable(state)} weights, gradients and "
        f"optimizer, about {memory.readable(held)} states",
        "output": str(config.run.output_dir),
    }


def _told(data: GraphData) -> str:
    graph = data.graph
    return (
        f"{data.path.name}: {graph.n_entities:,} entities, {graph.n_relations:,} relations, {len(data.triples):,} triples, "
        f"{len(graph.documents):,} documents"
    )


def _count(parts: GfmParts, data: GfmData, *, pretrain: bool) -> str:
    if pretrain:
        return f"{len(parts.train):,}"
    read = sum(len(each.questions) for each in data.train)
    left = read - len(parts.train)
    return f"{len(parts.train):,}" + (f"; {left} of {read} start at no entity or lead to none" if left else "")


def _held(config: GfmConfig, parts: GfmParts, data: GraphData) -> int:
    """Return an estimate of what a micro-batch keeps: some six states a layer, two where layers are recomputed."""
    settings = parts.model.network.settings
    half = loop.resolve_precision(config.loop.mixed_precision) != "no"
    states = data.graph.n_entities * config.loop.batch_size * settings.hidden_dim * (2 if half else 4)
    return states * settings.num_layers * (2 if config.model.activation_checkpointing else 6)
