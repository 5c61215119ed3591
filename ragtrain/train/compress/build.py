"""From a configuration to rows, passages, network and micro-batches."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any, cast

import torch

from ragtrain import loop, prepare
from ragtrain.data import demo
from ragtrain.data.compress.contexts import CompressContexts
from ragtrain.data.compress.pretraining import PretrainSource, passages_of
from ragtrain.data.compress.prompts import INSTRUCTION, CompressPrompter
from ragtrain.data.compress.rows import CompressRows, read_compress, with_passages
from ragtrain.data.compress.source import CompressSource, FullSource
from ragtrain.data.compress.windows import Windower
from ragtrain.data.sft.prompts import PromptSettings
from ragtrain.evaluate.compress.subject import Subject
from ragtrain.models.causal import compile_layers, positions_of
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.export import Tokenizers, is_compress, read_sidecar
from ragtrain.models.folders import local_folder, read_json
from ragtrain.prepare.contexts import with_contexts

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor, nn

    from ragtrain.config.commands import CompressConfig
    from ragtrain.config.compression import CompressSettings
    from ragtrain.data.compress.records import CompressExample
    from ragtrain.models.compress.model import CompressModel

log = logging.getLogger("ragtrain")

#: Peak learning rates: adapters, the generator's own layers, other compressors (OSCAR, table 7).
ADAPTER_LEARNING_RATE, LAYERS_LEARNING_RATE, COMPRESSOR_LEARNING_RATE = 1e-4, 5e-5, 1e-4
#: What memory tokens, connector and relevance head have more than the compressor: they begin from nothing.
CONNECTOR_FACTOR = 10
#: What the small demo models were tuned for: adapters, compressor, connector.
DEMO_LEARNING_RATES = (3e-3, 2e-3, 2e-3)
#: What the model card tells of the data.
CARD = ("path", "format", "sha256", "rows", "passages_sha256")


@dataclasses.dataclass(frozen=True)
class CompressParts:
    """What ``build`` makes of a configuration and its rows.

    Attributes:
        subject: the network with what asks it.
        tokenizers: of generator and compressor.
        train: micro-batches of questions.
        validation: likewise, of the evaluation rows at the nominal rate.
        evaluated: evaluation rows with the passages that they are asked with.
        pretraining: micro-batches of windows, where they are trained on first.
        full: micro-batches of questions with their full passages.
        first_adapters: of the generator, before anything was trained.
        base_name: folder or hub id of the generator.
        sidecar: what an evaluation must know of the training.
    """

    subject: Subject
    tokenizers: Tokenizers
    train: CompressSource
    validation: CompressSource
    evaluated: list[CompressExample]
    pretraining: PretrainSource | None
    full: FullSource
    first_adapters: dict[str, Tensor]
    base_name: str
    sidecar: dict[str, Any]

    @property
    def model(self) -> CompressModel:
        """The network."""
        return self.subject.model

    @property
    def settings(self) -> CompressSettings:
        """What its compressor is like."""
        return self.subject.model.settings


def read(config: CompressConfig, demo_folder: Path) -> CompressRows:
    """Read training and evaluation rows, and find their passages where there is an index.

    Raises:
        DataError: a file cannot be read, or holds no row to learn from, or no row has a passage.
    """
    path, index = config.data.train_data, config.context.index
    if path is None:
        path = prepare.demo_set(demo_folder, with_index=False)
    rows = read_compress(config.data, path, config.loop.seed)
    if index is None:
        return with_passages(rows)
    context = config.context
    found = [
        with_contexts(examples, index=index, depth=context.n_docs, retrieval=context.retrieval)
        for examples in (rows.train, rows.validation)
    ]
    rows.sources["index"] = found[0][1]
    # Rows keep their kind: only their passages are others.
    train, validation = (cast("list[CompressExample]", each) for each, _ in found)
    return with_passages(dataclasses.replace(rows, train=train, validation=validation))


def build(config: CompressConfig, rows: CompressRows, accelerator: Accelerator) -> CompressParts:
    """Load the networks, put adapters into the generator, and turn rows into micro-batches.

    Raises:
        ConfigError: a model cannot be loaded, or not be trained in this way.
        DataError: there is nothing to learn.
    """
    base_name = config.model.model_name_or_path or str(demo.CAUSAL)
    model, *both = build_compress(
        _scored(config, rows), base_name=base_name, precision=accelerator.mixed_precision, device=accelerator.device
    )
    tokenizers = Tokenizers(*both)
    if config.model.torch_compile:
        compile_layers(model.generator)
    settings = _prompt_of(config)
    prompter = CompressPrompter(tokenizers.generator, limit=positions_of(model.generator), settings=settings)
    windower = Windower(tokenizers.compressor, model.settings)
    each: dict[str, Any] = {"batch_size": config.loop.batch_size, "seed": config.loop.seed}
    choice = config.data.answer_choice
    train = CompressContexts(rows.train, config.context, seed=config.loop.seed, answer_choice=choice)
    held = CompressContexts(rows.validation, config.context, seed=config.loop.seed)
    steps = config.objective.pretrain_steps
    parts = CompressParts(
        subject=Subject(model, tokenizers.generator, windower, prompter),
        tokenizers=tokenizers,
        train=CompressSource(train, windower, prompter, full=config.objective.kd_weight > 0, **each),
        validation=CompressSource(held, windower, prompter, **each),
        evaluated=[dataclasses.replace(shown.example, documents=shown.documents) for shown in held.contexts()],
        pretraining=_pretraining(config, train, windower, prompter) if steps else None,
        full=FullSource(train, prompter, **each),
        first_adapters=adapter_weights(model.generator),
        base_name=model.names.generator,
        sidecar=_sidecar(config, rows, prompter),
    )
    _check_lengths(parts)
    return parts


def groups_of(config: CompressConfig, model: CompressModel) -> list[loop.ParamGroup]:
    """Return all that is trained, each part with its learning rate."""
    own = LAYERS_LEARNING_RATE if config.compressor.compressor_type == "n_layers" else COMPRESSOR_LEARNING_RATE
    adapters, usual, connector = (ADAPTER_LEARNING_RATE, own, None)
    if config.model.model_name_or_path is None:
        adapters, usual, connector = DEMO_LEARNING_RATES
    compressor = config.optim.compressor_learning_rate or usual
    rates = {
        "generator": config.optim.learning_rate or adapters,
        "compressor": compressor,
        "connector": config.optim.connector_learning_rate or connector or CONNECTOR_FACTOR * compressor,
    }
    return [loop.ParamGroup(name, parameters, rates[name]) for name, parameters in model.parts().items()]


def adapter_weights(generator: nn.Module) -> dict[str, Tensor]:
    """Return copies, in the host's memory, of what is trained in a generator."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in generator.named_parameters() if parameter.requires_grad
    }  # fmt: skip


@torch.no_grad()
def put_adapter_weights(generator: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put into a generator what ``adapter_weights`` returned."""
    parameters = dict(generator.named_parameters())
    for name, tensor in weights.items():
        parameters[name].copy_(tensor)


def _scored(config: CompressConfig, rows: CompressRows) -> CompressConfig:
    """Return the configuration without a relevance head where no row has a score that it could learn."""
    if not config.objective.rank_weight or rows.sources["train"]["with_scores"]:
        return config
    log.info("no row has a reranker's scores: there is no relevance head (ragtrain data teach writes them)")
    return config.model_copy(update={"objective": config.objective.model_copy(update={"rank_weight": 0.0})})


def _prompt_of(config: CompressConfig) -> PromptSettings:
    """Return how prompts are written: as in the run with which training goes on, if it goes on with one."""
    name = config.model.model_name_or_path
    if name is not None and is_compress(name):
        settings = PromptSettings.from_json(read_sidecar(local_folder(name, kind="model")).get("prompt") or {})
    else:
        # The built-in model knows no instructions, and one would be a third of the prompt.
        settings = PromptSettings(instruction=None if name is None else INSTRUCTION)
    return dataclasses.replace(settings, date=_date_of(config))


def _date_of(config: CompressConfig) -> str | None:
    """Return the date that a run which goes on has in its prompts: some chat templates write today's."""
    file, resume = config.run.output_dir / "data.json", config.loop.resume
    if resume == "never" or (config.run.overwrite and resume == "auto") or not file.is_file():
        return None
    prompt = read_json(file).get("prompt")
    return prompt.get("date") if isinstance(prompt, dict) else None


def _pretraining(
    config: CompressConfig, contexts: CompressContexts, windower: Windower, prompter: CompressPrompter
) -> PretrainSource:
    return PretrainSource(
        passages_of(contexts.examples), windower, prompter, batch_size=config.loop.batch_size, seed=config.loop.seed,
        reconstruction_share=config.objective.reconstruction_share,
    )  # fmt: skip


def _check_lengths(parts: CompressParts) -> None:
    """Write the prompts of the rows with the most passages, at the rate with the most memory: they must have room.

    Raises:
        DataError: the generator has not as many positions.
    """
    for source in (parts.train, parts.validation):
        for places in source.ordered()[:1]:
            source.evaluation(places, min(parts.settings.all_rates))


def _sidecar(config: CompressConfig, rows: CompressRows, prompter: CompressPrompter) -> dict[str, Any]:
    """Return what an evaluation must know of how the model was trained."""
    data = {
        name: {key: rows.sources[name][key] for key in CARD if key in rows.sources[name]}
        for name in ("train", "validation", "index") if name in rows.sources
    }  # fmt: skip
    rows.sources["prompt"] = prompter.settings.to_json()
    return {
        "prompt": prompter.settings.to_json(), "data": data, "context": config.context.model_dump(mode="json"),
        "max_new_tokens": config.evaluation.max_new_tokens,
    }  # fmt: skip
