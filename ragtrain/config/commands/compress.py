"""``ragtrain train compress``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from ragtrain.config.aliases import Alias, Reading
from ragtrain.config.base import (
    Command,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from ragtrain.config.commands.sft import SftModelConfig
from ragtrain.config.foreign_compress import COMPRESS_ALIASES, COMPRESS_READINGS
from ragtrain.config.training import LoopConfig, LoraConfig, OptimConfig, RunConfig

#: What the generator reads at evaluation, in the order of tables and plots.
ARMS = (
    "none-base", "none", "full-base", "full", "truncated", "best-sentences", "before", "compressed", "random", "shuffled",
)  # fmt: skip


class CompressDataConfig(Section):
    """What to train and to measure on."""

    title: ClassVar[str] = "Data"

    train_data: Path | None = None
    """Questions with answers and passages in any known format, or a dataset folder; without it, the built-in demo set."""
    eval_data: Path | None = None
    """Questions of the evaluations; without it ``NAME_eval.json`` or ``validation.jsonl`` beside the training file, or what
    ``dev_split`` holds out."""
    dev_split: Fraction | None = None
    """Share of the training rows held out for evaluation, whole groups, drawn with the seed, where there is no file of them."""
    question_key: str | None = None
    """Field that holds the question in a format that is not recognised."""
    answer_key: str | None = None
    """Field that holds the answers in a format that is not recognised."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    max_train_samples: PositiveInt | None = None
    """Training rows to use, drawn with the seed."""
    max_eval_samples: PositiveInt | None = 500
    """Evaluation rows to use, drawn with the seed."""
    answers: Literal["gold", "teacher", "teacher-or-gold"] = "teacher-or-gold"
    """What is learnt: the reference answers, the teacher's of ``ragtrain data teach`` (rows without are left out), or the
    teacher's where there is one."""
    answer_choice: Literal["first", "random"] = "first"
    """Which reference answer is the target: always the first, or one drawn anew each epoch."""


class CompressContextConfig(Section):
    """Which passages are compressed, and in which windows."""

    title: ClassVar[str] = "Passages"

    index: Path | None = None
    """Index folder, or a run with one, that passages are retrieved from; without it, the passages of the rows themselves."""
    retrieval: Literal["dense", "bm25", "hybrid"] = "dense"
    """What chooses passages: vectors, words, or both by reciprocal rank fusion."""
    n_docs: PositiveInt = 5
    """Most passages a question; gold ones are never those that give way."""
    n_distractors: NonNegativeInt = 0
    """Passages of other rows added to each question, drawn with the seed: a model trained on one passage learns no selection."""
    shuffle_docs: bool = True
    """Put the passages of a training question into a new order each epoch."""
    max_query_tokens: PositiveInt = 64
    """Longest question that the compressor reads beside a passage, in its own tokens; the generator always reads all of it."""
    max_windows: PositiveInt | None = None
    """Most windows of a passage; what is cut by it is counted and told. Without it, nothing is cut."""


class CompressorConfig(Section):
    """What turns passages into memory."""

    title: ClassVar[str] = "Compressor"

    compressor_type: Literal["n_layers", "modernbert", "small_lm"] = "n_layers"
    """A copy of the generator's first layers (OSCAR), an encoder (ModernBERT, BERT), or a small causal language model; the last
    two have a two-layer connector, and need pre-training to be at their best."""
    compressor_model: str | None = None
    """Encoder or small language model, folder or hub id; a folder with ``config.json`` alone begins with random weights. Without it
    answerdotai/ModernBERT-base or meta-llama/Llama-3.2-1B, or small random ones beside the built-in demo generator."""
    num_layers: PositiveInt = 8
    """``n_layers``: layers of the copy."""
    num_memory_tokens: PositiveInt = 8
    """Memory vectors of a full window."""
    compression_rate: PositiveInt = 16
    """Tokens of a passage for each memory vector: a window is as many tokens as this times ``num_memory_tokens``, and longer
    passages are several windows."""
    rates: tuple[PositiveInt, ...] = ()
    """Further compression rates of the same windows, one drawn for each micro-batch, so that one model serves them all."""
    proportional_memory: bool = False
    """Give a shorter window fewer vectors: its tokens divided by the rate, rounded up."""
    pooling: Literal["memory", "mean"] = "memory"
    """Memory vectors are the states of learnt tokens after the passage, or means over stretches of the passage's states."""
    query_dependent: bool = True
    """Show the question to the compressor; without it, vectors of a corpus can be stored."""
    connector_hidden: PositiveInt | None = None
    """Width of the connector's hidden layer; without it four times the compressor's, 4096 at most."""
    compressor_checkpointing: bool = False
    """Recompute the compressor's activations in the backward pass."""


class CompressObjectiveConfig(Section):
    """What is minimised, and what is trained before that."""

    title: ClassVar[str] = "Objective"

    kd_weight: NonNegativeFloat = 0.0
    """Weight of the divergence from the same base reading the full passages, per token of the answer."""
    kd_temperature: PositiveFloat = 1.0
    """Temperature of both distributions of ``kd_weight``."""
    rank_weight: NonNegativeFloat = 0.05
    """Weight of the squared error of the relevance head on reranker scores (OSCAR), where the rows have them."""
    pretrain_steps: NonNegativeInt = 0
    """Steps of reconstruction and continuation on the passages of the training rows, before the questions."""
    reconstruction_share: Fraction = 0.5
    """Share of reconstruction among them; the rest goes on with the text after the window."""


class CompressLoopConfig(LoopConfig):
    """How long to train and in which portions. A step is one optimizer update, everywhere."""

    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to train: on a GPU if there is one, on a GPU and nowhere else, or on the CPU."""


class CompressOptimConfig(OptimConfig):
    """The optimizer and its schedule; ``learning_rate`` is that of the generator's adapters."""

    compressor_learning_rate: PositiveFloat | None = None
    """Peak learning rate of the compressor; without it 5e-5 for ``n_layers`` and 1e-4 for others, as in OSCAR (one rate for
    all did poorly there), or what the built-in demo models were tuned for."""
    connector_learning_rate: PositiveFloat | None = None
    """Peak learning rate of memory tokens, connector and relevance head; without it ten times that of the compressor, or what
    the built-in demo models were tuned for."""


class CompressEvaluationConfig(Section):
    """What is measured before and after."""

    title: ClassVar[str] = "Evaluation"

    arms: tuple[str, ...] = ARMS
    """What the generator is given: nothing (untrained, trained), full passages (untrained; with adapters of their own trained on
    the same data), the first tokens or the best sentences within the budget of the memory, memory before and after
    training, random memory, memory of other questions."""
    full_context_steps: NonNegativeInt | None = None
    """Steps in which adapters for full passages are trained for the comparison; without it as many as the compressor's, 0 for
    none."""
    eval_samples: NonNegativeInt = 50
    """Evaluation rows answered at each evaluation during training; 0 measures the loss only."""
    eval_batch_size: PositiveInt = 16
    """Questions answered at a time."""
    max_new_tokens: PositiveInt = 32
    """Longest answer generated."""
    speed_repeats: NonNegativeInt = 20
    """Times that each stage is timed; 0 measures no speed."""
    speed_batch_size: PositiveInt = 8
    """Questions of the throughput batch, beside single questions."""


class CompressConfig(Command):
    """Train a compressor that turns passages into a few memory tokens for a causal language model."""

    name: ClassVar[str] = "train compress"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain train compress --train-data small.json --compressor-type n_layers --num-layers 8 --num-memory-tokens 8 "
        "--compression-rate 16",
        "ragtrain train compress --model-name-or-path Qwen/Qwen2.5-0.5B-Instruct --train-data small.json --compressor-type "
        "modernbert --pretrain-steps 2000 --batch-size 4 --num-epochs 1",
    )
    aliases: ClassVar[Mapping[str, Alias]] = COMPRESS_ALIASES
    readings: ClassVar[Mapping[str, Reading]] = COMPRESS_READINGS

    data: CompressDataConfig = CompressDataConfig()
    context: CompressContextConfig = CompressContextConfig()
    compressor: CompressorConfig = CompressorConfig()
    model: SftModelConfig = SftModelConfig()
    lora: LoraConfig = LoraConfig(lora_rank=16, lora_alpha=32, lora_dropout=0.1)
    objective: CompressObjectiveConfig = CompressObjectiveConfig()
    evaluation: CompressEvaluationConfig = CompressEvaluationConfig()
    loop: CompressLoopConfig = CompressLoopConfig(num_epochs=1.0, batch_size=4, gradient_accumulation_steps=4)
    optim: CompressOptimConfig = CompressOptimConfig(weight_decay=0.1)
    run: RunConfig = RunConfig(output_dir=Path("training_with_eval"))
