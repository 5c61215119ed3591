"""From a configuration to rows, passages, network and micro-batches."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from ragtrain import loop, prepare
from ragtrain.data import demo
from ragtrain.data.sft.batches import collate_rows
from ragtrain.data.sft.contexts import ContextMaker
from ragtrain.data.sft.examples import SftRows, read_sft
from ragtrain.data.sft.overflow import check_trained
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.source import SftSource, SourceSettings
from ragtrain.errors import ConfigError
from ragtrain.models.causal import (
    bits,
    check_shared,
    compile_layers,
    load_causal,
    positions_of,
    set_checkpointing,
    supports_packing,
    supports_shared,
)
from ragtrain.models.folders import read_json
from ragtrain.prepare.contexts import with_contexts

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.config.commands import SftConfig
    from ragtrain.data.sft.records import Example

log = logging.getLogger("ragtrain")

#: Peak learning rates: adapters, whole models (both TRL's), and what the small demo model was tuned for.
ADAPTER_LEARNING_RATE, LEARNING_RATE, DEMO_LEARNING_RATE = 2e-4, 2e-5, 1e-3
#: Passages searched for each passage of a RAFT prompt: hard negatives are those that hold no answer.
RAFT_DEPTH = 4
#: Rows whose losses are compared with those of rows apart before the first step.
CHECKED = 4
#: What the model card tells of the data.
CARD = ("path", "format", "sha256", "rows", "passages_sha256")


@dataclasses.dataclass(frozen=True)
class SftParts:
    """What ``build`` makes of a configuration and its rows."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: SftSource
    validation: SftSource
    base_name: str
    sidecar: dict[str, Any]


def read(config: SftConfig, demo_folder: Path) -> SftRows:
    """Read training and validation rows, and find their passages where there is an index.

    Raises:
        DataError: a file cannot be read, or holds no row to learn from.
    """
    path, index = config.data.train_data, config.context.index
    if path is None:
        path = prepare.demo_set(demo_folder, with_index=index is None)
        index = index or demo_folder / "index"
    rows = read_sft(config.data, path, config.loop.seed, max_empty=config.prompt.max_untrained_share)
    if index is None or config.context.n_docs == 0:
        return rows
    context = config.context
    depth = context.n_docs * RAFT_DEPTH if context.raft else context.n_docs
    found = [
        with_contexts(examples, index=index, depth=depth, retrieval=context.retrieval)
        for examples in (rows.train, rows.validation)
    ]
    rows.sources["index"] = found[0][1]
    return dataclasses.replace(rows, train=found[0][0], validation=found[1][0])


def build(config: SftConfig, rows: SftRows, accelerator: Accelerator) -> SftParts:
    """Load the network, put adapters into it, and turn rows into samples.

    Raises:
        ConfigError: the model cannot be loaded, or not be trained in this way.
        DataError: too many rows have nothing to learn.
    """
    base_name = config.model.model_name_or_path or str(demo.CAUSAL)
    model, tokenizer = load_causal(
        base_name, config.model, config.lora,
        precision=loop.resolve_precision(config.loop.mixed_precision), device=accelerator.device,
    )  # fmt: skip
    if config.model.gradient_checkpointing == "on":
        set_checkpointing(model, on=True)
    if config.model.torch_compile:
        compile_layers(model)
    if bits(model) is None:
        model.to(accelerator.device)
    asked = dataclasses.replace(PromptSettings.from_config(config.prompt), date=_date_of(config))
    most = positions_of(model)
    if most is not None and most < asked.max_length:
        log.info("max_length %d is %d: the model has %d positions", asked.max_length, most, most)
        asked = dataclasses.replace(asked, max_length=most)
    sources = {
        name: SftSource(
            _maker(config, examples, rows.train, training=name == "train"), Prompter(tokenizer, asked),
            _settings(config, training=name == "train"), int(tokenizer.pad_token_id),
        )
        for name, examples in (("train", rows.train), ("validation", rows.validation))
    }  # fmt: skip
    for name, source in sources.items():
        first, report = source.rows(0), source.prompter.report
        check_trained(first.encoded, [each.id for each in first.samples], config.prompt.max_untrained_share, report)
        if name in rows.sources:
            rows.sources[name]["overflow"] = report.to_json()
    if config.batches.packing or config.batches.shared_context:
        _check_sharing(config, model, sources["train"], accelerator)
    rows.sources["prompt"] = sources["train"].prompter.settings.to_json()
    sidecar = _sidecar(config, rows, sources["train"].prompter.settings, base_name)
    return SftParts(model, tokenizer, sources["train"], sources["validation"], base_name, sidecar)


def _date_of(config: SftConfig) -> str | None:
    """Return the date that a run which goes on has in its prompts: some chat templates write today's."""
    file, resume = config.run.output_dir / "data.json", config.loop.resume
    if resume == "never" or (config.run.overwrite and resume == "auto") or not file.is_file():
        return None
    prompt = read_json(file).get("prompt")
    return prompt.get("date") if isinstance(prompt, dict) else None


def _check_sharing(config: SftConfig, model: PreTrainedModel, source: SftSource, accelerator: Accelerator) -> None:
    """Refuse rows that share a sequence where the network would let them see each other; a few rows are the proof.

    Raises:
        ConfigError: naming what the network cannot do.
    """
    shared = config.batches.shared_context
    reason = supports_shared(model, config.prompt.max_length) if shared else supports_packing(model)
    if reason:
        raise ConfigError(reason, hint=f"leave {'--shared-context' if shared else '--packing'} out")
    # Rows that do share, where there are any.
    groups = source.groups(0) if shared else []
    some = list(next((group.members for group in groups if group.prefix), source.plan(0)[0]))[:CHECKED]
    encoded, ids = [source.rows(0).encoded[i] for i in some], [source.rows(0).samples[i].id for i in some]
    alone = collate_rows(encoded, ids, source.pad_id).to(accelerator.device)
    with accelerator.autocast():
        check_shared(model, alone, source.collate(some, 0).to(accelerator.device))


def _maker(config: SftConfig, examples: list[Example], pool: list[Example], *, training: bool) -> ContextMaker:
    """Return what gives examples their passages: of validation rows in the same way in every epoch, without RAFT."""
    context = config.context if training else config.context.model_copy(update={"raft": False, "abstain_target": None})
    choice = config.data.answer_choice if training else "first"
    return ContextMaker(examples, context, seed=config.loop.seed, answer_choice=choice, shots_from=pool)


def _settings(config: SftConfig, *, training: bool) -> SourceSettings:
    batches = config.batches
    return SourceSettings(
        batch_size=config.loop.batch_size, seed=config.loop.seed, shuffle=config.data.shuffle,
        length_grouping=batches.length_grouping,
        capacity=config.prompt.max_length if batches.packing and training else 0,
        shared_context=batches.shared_context and training,
    )  # fmt: skip


def group_of(config: SftConfig, model: PreTrainedModel) -> loop.ParamGroup:
    """Return all that is trained, with its learning rate."""
    usual = ADAPTER_LEARNING_RATE if config.lora.lora_rank else LEARNING_RATE
    if config.model.model_name_or_path is None:
        usual = DEMO_LEARNING_RATE
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return loop.ParamGroup("model", parameters, config.optim.learning_rate or usual)


def _sidecar(config: SftConfig, rows: SftRows, prompt: PromptSettings, base_name: str) -> dict[str, Any]:
    """Return what an evaluation must know of how the model was trained."""
    context = config.context.model_dump(mode="json")
    index = rows.sources.get("index")
    data = {
        name: {key: rows.sources[name][key] for key in CARD if key in rows.sources[name]}
        for name in ("train", "validation", "index") if name in rows.sources
    }  # fmt: skip
    return {
        "kind": "sft", "base": base_name, "prompt": prompt.to_json(), "data": data,
        "context": {**context, "index": index}, "max_new_tokens": config.evaluation.max_new_tokens,
        "load_in_8bit": config.model.load_in_8bit, "load_in_4bit": config.model.load_in_4bit,
    }  # fmt: skip
