"""Settings that do not go together, refused before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from ragtrain.config.commands import SftConfig


def check(config: SftConfig) -> None:
    """Refuse what does not go together, all of it at once.

    Raises:
        ConfigError: naming each pair of settings.
    """
    if problems := [message for wrong, message in [*_inputs(config), *_networks(config)] if wrong]:
        raise ConfigError("; ".join(problems), hint="change one of the settings named")


def _inputs(config: SftConfig) -> list[tuple[bool, str]]:
    data, context, prompt = config.data, config.context, config.prompt
    return [
        (
            data.val_data is not None and data.dev_split is not None,
            "data.val_data and data.dev_split both say what is validated on",
        ),
        (
            data.input_key is not None and (context.index is not None or context.raft or context.n_shots > 0),
            "data.input_key names finished prompts, into which context.index, context.raft and context.n_shots put nothing",
        ),
        (
            data.input_key is not None and context.context_mode == "separate",
            "data.input_key names finished prompts, which context.context_mode=separate cannot take apart",
        ),
        (
            data.output_key is not None and data.answer_choice == "random",
            "data.output_key names one text to learn, and data.answer_choice=random draws among references",
        ),
        (
            context.n_docs == 0 and (context.raft or context.context_mode == "separate"),
            "context.n_docs is 0: there are no passages for context.raft or context.context_mode=separate",
        ),
        (
            context.raft and context.context_mode == "separate",
            "context.raft puts the gold passage among others, and context.context_mode=separate keeps passages apart",
        ),
        (
            context.abstain_target is not None and not context.raft,
            "context.abstain_target is what context.raft answers without the gold passage",
        ),
        (
            prompt.mask_mode == "ragfit" and not prompt.completion_start,
            "prompt.mask_mode=ragfit needs prompt.completion_start, the text after which training begins",
        ),
    ]


def _networks(config: SftConfig) -> list[tuple[bool, str]]:
    model, lora, batches = config.model, config.lora, config.batches
    quantised = model.load_in_8bit or model.load_in_4bit
    untouched = lora.model_copy(update={"lora_rank": 0}) == type(lora)()
    return [
        (model.load_in_8bit and model.load_in_4bit, "model.load_in_8bit and model.load_in_4bit exclude each other"),
        (
            quantised and lora.lora_rank == 0,
            "a base in 8 or 4 bits cannot be trained itself: lora.lora_rank must be above 0",
        ),
        (
            quantised and model.dtype != "auto",
            "model.dtype says how a base is held that is not in 8 or 4 bits",
        ),
        (
            lora.lora_rank == 0 and not untouched,
            "lora.lora_alpha, lora_dropout, lora_targets, use_rslora and use_dora shape adapters, and lora.lora_rank is 0 "
            "(lora=null takes all of them back)",
        ),
        (
            lora.lora_rank == 0 and config.export.merge,
            "export.merge adds adapters to the base, and lora.lora_rank is 0",
        ),
        (
            batches.packing and batches.shared_context,
            "batches.packing and batches.shared_context both say how rows share a sequence",
        ),
        (
            config.evaluation.eval_samples == 0 and config.loop.best_metric in ("eval_em", "eval_f1"),
            f"loop.best_metric={config.loop.best_metric} is measured on answers, and evaluation.eval_samples is 0",
        ),
    ]
