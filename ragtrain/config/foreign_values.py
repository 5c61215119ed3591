"""Values of other programs' keys that a table alone cannot translate: one small function each.

Each takes a value as it was typed (a text, a list of texts, None for null) and returns the fields to set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ragtrain.config import aliases
from ragtrain.config.aliases import Alias, Copy, Give, Meaning, Reading, Refused
from ragtrain.config.training import LoraConfig

TARGETS = ("ragfit.models.hf.HFTrain", "ragfoundry.models.hf.HFTrain")
FULL = "null trains all weights (lora.lora_rank 0)"
#: What takes adapters back, their shape included: a rank of 0 with the rest of a preset's block would contradict itself.
_NO_ADAPTERS = tuple(Give(f"lora.{name}", value) for name, value in LoraConfig(lora_rank=0))


# --- values of foreign names -------------------------------------------------------------------------------------------


def target(value: object) -> Meaning:
    """Accept the one class of RAG-FiT that ``train sft`` stands for."""
    if str(value) not in TARGETS:
        raise Refused(f"ragtrain builds nothing by its name; accepted, as its own: {', '.join(TARGETS)}")
    return Meaning()


def lora(value: object) -> Meaning:
    """Read ``lora`` where it is not a mapping: null is full fine-tuning."""
    if not aliases.is_null(value):
        raise Refused("expected a mapping with r, lora_alpha, …, or null to train all weights")
    return Meaning(_NO_ADAPTERS, FULL)


def use_peft(value: object) -> Meaning:
    """Read TRL's switch of adapters; on, rank and targets stay what they are."""
    return Meaning() if aliases.truth(value) else Meaning(_NO_ADAPTERS)


def precision(name: str) -> Alias:
    """Declare ``bf16`` or ``fp16``: true decides, and false only says that it is not this one."""

    def convert(value: object) -> Meaning:
        if aliases.truth(value):
            return Meaning((Give("loop.mixed_precision", name),))
        return Meaning(
            (Give("loop.mixed_precision", "no", aliases.WEAK, unless=lambda now: now not in (name, "auto")),)
        )

    return Alias(("loop.mixed_precision",), convert)


def scheduler(value: object) -> Meaning:
    """Read the schedules that exist here."""
    name = aliases.word(value)
    if name == "constant":  # as transformers has it: no warm-up either
        return Meaning((Give("optim.lr_scheduler", "constant"), Give("optim.warmup_steps", 0, aliases.STRONG)))
    known = {"linear": "linear", "cosine": "cosine", "constant_with_warmup": "constant"}
    if name not in known:
        raise Refused("is not among what ragtrain has: linear, cosine, constant, constant_with_warmup")
    return Meaning((Give("optim.lr_scheduler", known[name]),))


def _number(value: object) -> float | None:
    try:
        return float(aliases.word(value))
    except ValueError:
        return None


def warmup_steps(value: object) -> Meaning:
    """Read transformers' ``warmup_steps``: 0 leaves it to the ratio, a number below 1 is a ratio."""
    number = _number(value)
    if number == 0:
        return Meaning((Give("optim.warmup_ratio", 0, aliases.WEAK, unless=aliases.anything),))
    return _own_warmup_steps(value) or Meaning((Give("optim.warmup_steps", value),))


def _own_warmup_steps(value: object) -> Meaning | None:
    number = _number(value)
    if number is None or not 0 < number < 1:
        return None
    return Meaning((Give("optim.warmup_ratio", value), Give("optim.warmup_steps", None, aliases.STRONG)))


def eval_strategy(value: object) -> Meaning:
    """Read when to evaluate; ``steps`` without a number is every ``logging_steps``, as in transformers."""
    name = aliases.word(value)
    if name in ("no", "false"):
        return Meaning((Give("loop.eval_steps", None, aliases.STRONG),))
    if name == "steps":
        return Meaning((Give("loop.eval_steps", Copy("loop.logging_steps"), aliases.WEAK, unless=aliases.anything),))
    if name == "epoch":
        remark = "evaluations are counted in steps (loop.eval_steps); without it there is one, at the end"
        return Meaning((Give("loop.eval_steps", None, aliases.STRONG),), remark)
    raise Refused("expected no, steps or epoch")


def save_strategy(value: object) -> Meaning:
    """Read when to save."""
    name = aliases.word(value)
    if name in ("no", "false"):
        return Meaning((Give("loop.save_steps", None, aliases.STRONG),))
    remarks = {
        "steps": "",
        "epoch": "checkpoints are counted in steps (loop.save_steps); the final one is always kept",
        "best": "the best checkpoint is kept at every evaluation anyway",
    }
    if name not in remarks:
        raise Refused("expected no, steps, epoch or best")
    return Meaning(remark=remarks[name])


def sampling(value: object) -> Meaning:
    """Read transformers 5's word for shuffling and length grouping."""
    name = aliases.word(value)
    if name == "sequential":
        return Meaning((Give("data.shuffle", False), Give("batches.length_grouping", False)))
    if name not in ("random", "group_by_length", "batch_rebalance"):
        raise Refused("expected random, sequential, group_by_length or batch_rebalance")
    return Meaning((Give("batches.length_grouping", name != "random"),))


def report_to(value: object) -> Meaning:
    """Read one tracker, several, or none."""
    names = [name.lower() for name in aliases.words(value)]
    if "all" in names:
        raise Refused("expected the names of trackers, or none")
    return Meaning((Give("run.trackers", [] if names == ["none"] else names),))


def use_wandb(value: object) -> Meaning:
    """Add wandb to the trackers, unless it is among them."""
    if not aliases.truth(value):
        return Meaning()

    def there(now: object) -> bool:
        return isinstance(now, Sequence) and "wandb" in now

    return Meaning((Give("run.trackers", ["tensorboard", "wandb"], aliases.STRONG, unless=there),))


def limit(value: object) -> Meaning:
    """Read RAG-FiT's ``limit``: the first rows, unless they are shuffled."""
    first = Give("data.shuffle", False, aliases.WEAK, unless=aliases.anything)
    return Meaning((Give("data.max_train_samples", value), first))


def auto_batch(value: object) -> Meaning:
    """Read ``auto_find_batch_size``: micro-batches are halved when the device is full."""
    return Meaning((Give("loop.on_out_of_memory", "halve"),) if aliases.truth(value) else ())


def quantized(field: str) -> Alias:
    """Declare a switch of a block that counts more than the same switch outside it."""

    def convert(value: object) -> Meaning:
        return Meaning((Give(field, aliases.truth(value), aliases.STRONG),))

    return Alias((field,), convert)


# --- values of our own names -------------------------------------------------------------------------------------------


def _max_steps(value: object) -> Meaning | None:
    return Meaning((Give("loop.max_steps", None),)) if aliases.word(value) == "-1" else None


def _checkpointing(value: object) -> Meaning | None:
    if aliases.word(value) in ("on", "off"):
        return None
    found = aliases.as_truth(value)
    return None if found is None else Meaning((Give("model.gradient_checkpointing", "on" if found else "off"),))


def _push(value: object) -> Meaning | None:
    found = aliases.as_truth(value)
    if found:
        raise Refused("expected the repository to push to, as push_to_hub=OWNER/NAME")
    return Meaning() if found is False else None


def _resume(value: object) -> Meaning | None:
    found = aliases.as_truth(value)
    return None if found is None else Meaning((Give("loop.resume", "latest" if found else "never"),))


def _shuffle(value: object) -> Meaning | None:
    """Read RAG-FiT's ``shuffle``, which is null or a seed."""
    text = aliases.word(value)
    if aliases.is_null(value):
        return Meaning()
    if text in aliases.TRUE or text in aliases.FALSE or not text.isdigit():
        return None
    return Meaning((Give("data.shuffle", True), Give("loop.seed", text, aliases.WEAK, unless=aliases.anything)))


def _null_is_absent(value: object) -> Meaning | None:
    return Meaning() if aliases.is_null(value) else None


READINGS: Mapping[str, Reading] = {
    "loop.max_steps": _max_steps,
    "loop.resume": _resume,
    "optim.warmup_steps": _own_warmup_steps,
    "model.gradient_checkpointing": _checkpointing,
    "model.load_in_4bit": _null_is_absent,
    "model.load_in_8bit": _null_is_absent,
    "export.push_to_hub": _push,
    "data.shuffle": _shuffle,
}
"""Values of our own fields as other programs write them."""
