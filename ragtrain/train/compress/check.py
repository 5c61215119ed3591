"""Settings that do not go together, refused before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ragtrain import loop
from ragtrain.config.commands.compress import ARMS
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ragtrain.config.commands import CompressConfig


def check(config: CompressConfig) -> None:
    """Refuse what does not go together, all of it at once.

    Raises:
        ConfigError: naming each pair of settings.
    """
    if problems := [message for wrong, message in [*_inputs(config), *_networks(config)] if wrong]:
        raise ConfigError("; ".join(problems), hint="change one of the settings named")


def _inputs(config: CompressConfig) -> list[tuple[bool, str]]:
    data, evaluation, pretrain_steps = config.data, config.evaluation, config.objective.pretrain_steps
    unknown = [arm for arm in evaluation.arms if arm not in ARMS]
    full = evaluation.full_context_steps
    return [
        (
            data.eval_data is not None and data.dev_split is not None,
            "data.eval_data and data.dev_split both say what is evaluated on",
        ),
        (
            data.answers == "teacher" and data.answer_choice == "random",
            "data.answers=teacher has one answer a row, and data.answer_choice=random draws among references",
        ),
        (bool(unknown), f"evaluation.arms: there is no {', '.join(unknown)}; known are {', '.join(ARMS)}"),
        (
            full == 0 and "full" in evaluation.arms and evaluation.arms != ARMS,
            "evaluation.arms has full, whose adapters evaluation.full_context_steps=0 does not train",
        ),
        (
            evaluation.eval_samples == 0 and config.loop.best_metric in ("eval_em", "eval_f1", "eval_rouge_l"),
            f"loop.best_metric={config.loop.best_metric} is measured on answers, and evaluation.eval_samples is 0",
        ),
        (
            config.compressor.compression_rate in config.compressor.rates,
            f"compressor.rates are further ones, and {config.compressor.compression_rate} is compressor.compression_rate",
        ),
        (
            pretrain_steps == 0
            and config.objective.reconstruction_share != type(config.objective)().reconstruction_share,
            "objective.reconstruction_share is of pre-training, and objective.pretrain_steps is 0",
        ),
    ]


def _networks(config: CompressConfig) -> list[tuple[bool, str]]:
    model, compressor = config.model, config.compressor
    own = compressor.compressor_type == "n_layers"
    quantised = model.load_in_8bit or model.load_in_4bit
    return [
        (model.load_in_8bit and model.load_in_4bit, "model.load_in_8bit and model.load_in_4bit exclude each other"),
        (
            quantised and model.dtype != "auto",
            "model.dtype says how a base is held that is not in 8 or 4 bits",
        ),
        (
            config.lora.lora_rank == 0,
            "lora.lora_rank=0 trains the generator as a whole, and the base is read as well: as teacher, and in the "
            "comparison; it must be above 0",
        ),
        (
            own and compressor.compressor_model is not None,
            "compressor.compressor_model is an encoder or a small language model, and compressor.compressor_type=n_layers "
            "copies layers of the generator",
        ),
    ]


def make_accelerator(config: CompressConfig) -> Accelerator:
    """Return the Accelerator of a run on the device that was asked for.

    Raises:
        ConfigError: a GPU was asked for, and there is none.
    """
    asked = config.loop.device
    if asked == "gpu" and not torch.accelerator.is_available():
        raise ConfigError(
            "loop.device=gpu: there is no GPU that torch can use", hint="--device cpu; ragtrain doctor tells why"
        )
    settings = config.loop
    if asked == "cpu" and settings.mixed_precision == "auto":  # which is what the GPU has
        settings = settings.model_copy(update={"mixed_precision": "no"})
    return loop.make_accelerator(settings, cpu=asked == "cpu")
