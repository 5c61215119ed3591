"""The sections that all four trainers share: the loop, the optimizer, and where a run goes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from ragtrain.config.base import Decay, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class LoopConfig(Section):
    """How long to train and in which portions. A step is one optimizer update, everywhere."""

    title: ClassVar[str] = "Loop"

    max_steps: PositiveInt | None = None
    """Optimizer steps to train for; without it, ``num_epochs`` decides."""
    num_epochs: PositiveFloat = 3.0
    """Passes over the training questions when ``max_steps`` is not given."""
    batch_size: PositiveInt = 8
    """Examples in a micro-batch on each device."""
    gradient_accumulation_steps: PositiveInt = 4
    """Micro-batches summed into one optimizer step on each device."""
    mixed_precision: Literal["no", "fp16", "bf16", "auto"] = "auto"
    """Arithmetic of the forward pass; ``auto`` is bf16 on a GPU that has it, fp16 on one that does not, and no
    elsewhere."""
    on_out_of_memory: Literal["halve", "stop"] = "halve"
    """When the device is full: do the step again with micro-batches of half the size and twice the accumulation, which
    is the same step, or stop."""
    seed: NonNegativeInt = 0
    """Seed of initialisation, shuffling and dropout."""
    logging_steps: PositiveInt = 10
    """Steps between two lines of the log; the first and the last step are always logged."""
    eval_steps: PositiveInt | None = None
    """Steps between two evaluations on the validation questions; without it, only at the end of training."""
    save_steps: PositiveInt | None = 500
    """Steps between two checkpoints; null keeps only the final one."""
    save_total_limit: PositiveInt | None = 2
    """Newest checkpoints to keep, apart from the best one; null keeps all."""
    best_metric: str = "eval_loss"
    """Validation metric that decides which checkpoint is the best one."""
    early_stopping_patience: PositiveInt | None = None
    """Evaluations without improvement of ``best_metric`` after which training stops."""
    resume: str = "auto"
    """Where to go on from: auto, latest, best, never or a checkpoint's path; ``auto`` continues a run of the same
    configuration in the output directory."""


class OptimConfig(Section):
    """The optimizer and its schedule."""

    title: ClassVar[str] = "Optimizer"

    learning_rate: PositiveFloat | None = None
    """Peak learning rate; without it the trainer's own (docs/guide.md), or what the built-in demo models were tuned
    for."""
    optimizer: Literal["adamw", "paged_adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW of torch, or of bitsandbytes with moments that move to the host when the device is full (paged), or in 8
    bits."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW weight decay, on weight matrices only: not on biases and norms."""
    adam_beta1: Decay = 0.9
    """AdamW's decay of the mean of gradients, per step."""
    adam_beta2: Decay = 0.999
    """AdamW's decay of the mean of squared gradients, per step."""
    adam_epsilon: PositiveFloat = 1e-8
    """What AdamW adds to the denominator."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm, clipped above; 0 switches clipping off."""
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up; without it, ``warmup_ratio``."""
    warmup_ratio: Fraction = 0.05
    """Share of all steps that warms up, rounded up, where ``warmup_steps`` does not say."""


class LoraConfig(Section):
    """Low-rank adapters instead of whole weights (Hu et al. 2021)."""

    title: ClassVar[str] = "LoRA"

    lora_rank: NonNegativeInt = 0
    """Rank of the adapters; 0 trains all weights."""
    lora_alpha: PositiveFloat | None = None
    """Scale of the adapters, divided by their rank; without it, twice the rank."""
    lora_dropout: Fraction = 0.0
    """Dropout before the adapters."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the layers that get adapters."""
    use_rslora: bool = False
    """Divide the scale by the square root of the rank (rsLoRA, Kalajdzievski 2023)."""
    use_dora: bool = False
    """Train the length of each weight column beside its direction (DoRA, Liu et al. 2024)."""


class RunConfig(Section):
    """Where the run folder goes and who is told of its progress."""

    title: ClassVar[str] = "Run"

    output_dir: Path = Path("runs/rag")
    """Run folder: configuration, logs, checkpoints and the final model."""
    overwrite: bool = False
    """Start afresh although the run folder holds another run, which is removed."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Experiment trackers by Accelerate's names; TensorBoard writes to ``runs`` in the run folder."""
    on_alarm: Literal["warn", "stop"] = "warn"
    """When training shows a way of going wrong that ruins it (retrieval collapse, no retriever gradient, an exploding
    loss): say so with a remedy and go on, or stop with the checkpoints that are there."""
    dry_run: bool = False
    """Read everything, build the model, print the plan and write nothing."""
