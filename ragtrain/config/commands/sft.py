"""``ragtrain train sft``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from ragtrain.config.aliases import Alias, Reading
from ragtrain.config.base import Command, Fraction, NonNegativeInt, PositiveInt, Section
from ragtrain.config.foreign import SFT_ALIASES
from ragtrain.config.foreign_values import READINGS
from ragtrain.config.training import LoopConfig, LoraConfig, OptimConfig, RunConfig


class SftDataConfig(Section):
    """What to train on."""

    title: ClassVar[str] = "Data"

    train_data: Path | None = None
    """Questions with answers in any known format, rows of finished prompts, or a dataset folder; without it, the built-in
    demo set."""
    val_data: Path | None = None
    """Validation rows; without it ``validation.jsonl`` beside the training file, or what ``dev_split`` holds out."""
    dev_split: Fraction | None = None
    """Share of the training rows held out for validation, drawn with the seed, where there is no file of them."""
    input_key: str | None = None
    """Field that holds the finished prompt of a row, passages and all; without it, prompts are made of question and
    passages."""
    output_key: str | None = None
    """Field that holds the text to learn: a string, or a list whose first item counts; without it, the answers."""
    question_key: str | None = None
    """Field that holds the question in a format that is not recognised."""
    answer_key: str | None = None
    """Field that holds the answers in a format that is not recognised."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    max_train_samples: PositiveInt | None = None
    """Training rows to use: drawn with the seed, or the first ones without ``shuffle``."""
    max_val_samples: PositiveInt | None = 500
    """Validation rows to use, drawn with the seed."""
    shuffle: bool = True
    """Draw rows in an order of their own in each epoch; without it, in the order of the file."""
    answer_choice: Literal["first", "random"] = "first"
    """Which reference answer is the target: always the first, or one drawn anew each epoch."""


class SftContextConfig(Section):
    """Which passages stand in a prompt."""

    title: ClassVar[str] = "Passages"

    index: Path | None = None
    """Index folder, or a run with one, that passages are retrieved from; without it, the passages of the rows
    themselves."""
    n_docs: NonNegativeInt = 5
    """Passages in a prompt, best first; 0 trains closed-book."""
    retrieval: Literal["dense", "bm25", "hybrid"] = "dense"
    """What chooses passages: vectors, words, or both by reciprocal rank fusion."""
    context_mode: Literal["concat", "separate"] = "concat"
    """All passages in one prompt, or one sample a passage, as RA-DIT has it."""
    raft: bool = False
    """Train on the gold passage among hard negatives, shuffled anew each epoch (RAFT)."""
    raft_p: Fraction = 0.8
    """``raft``: probability that the gold passage stays among the ``n_docs``; their number is the same without it."""
    abstain_target: str | None = None
    """``raft``: what to answer where the gold passage was left out; without it, the answer all the same."""
    n_shots: NonNegativeInt = 0
    """Solved examples before the question, drawn with the seed from the training rows, never the row itself."""


class SftPromptConfig(Section):
    """How a prompt is written, which tokens are trained, and what gives way where it is too long."""

    title: ClassVar[str] = "Prompt"

    instruction: str | None = "qa-short"
    """Instruction: a file, or one of qa, qa-short, yes-no, yes-no-maybe, cot, cot-fewshot, reason_before_answer; null for
    none."""
    instruction_in_prompt: bool | None = None
    """Put the instruction before the question instead of into a system message; without it, only where the chat template
    has no system role."""
    template: Path | None = None
    """File with the whole text of an example, for models without chat template: {query} and {output}, or jinja."""
    mask_mode: Literal["trl", "ragfit"] = "trl"
    """Which tokens are trained: what follows the common prefix of prompt and example (TRL), or what follows the last
    ``completion_start`` (RAG-FiT)."""
    completion_start: str | None = None
    """``mask_mode`` ragfit: text after which training begins, as <|assistant|>."""
    max_length: PositiveInt = 2048
    """Longest example in tokens, answer included."""
    on_overflow: Literal["drop-docs", "truncate-docs", "drop-row", "error"] = "drop-docs"
    """What a longer example loses: its lowest-ranked passages, the ends of its passages, itself, or the run stops."""
    max_untrained_share: Fraction = 0.05
    """Share of rows without a trained token above which the run is refused."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer within what the model writes, as '<ANSWER>: (.*)' for chains of
    thought."""
    preview: NonNegativeInt = 0
    """Rows to show as the model will see them, in colours, before training."""


class SftModelConfig(Section):
    """The network."""

    title: ClassVar[str] = "Model"

    model_name_or_path: str | None = None
    """Causal language model, folder or hub id, or a run of this kind to go on from; without it, the built-in demo model."""
    load_in_8bit: bool = False
    """Hold the base in 8 bits (bitsandbytes)."""
    load_in_4bit: bool = False
    """Hold the base in 4 bits, NF4 with double quantisation (bitsandbytes)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights of the base; ``auto`` is the arithmetic of ``mixed_precision`` where adapters are trained and float32 where all
    weights are."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Implementation of attention, by transformers' names."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass; ``auto`` only once the device was full without."""
    torch_compile: bool = False
    """Compile the network: slow to begin, faster later."""


class SftBatchConfig(Section):
    """How rows share the forward pass."""

    title: ClassVar[str] = "Batches"

    length_grouping: bool = True
    """Put rows of similar length into a micro-batch."""
    packing: bool = False
    """Fill sequences of ``max_length`` with whole rows (best fit, decreasing); a micro-batch is then ``batch_size``
    such sequences."""
    shared_context: bool = False
    """Read the common beginning of rows on the same passages once (tree attention): the same loss, fewer tokens."""


class SftEvaluationConfig(Section):
    """What is generated while training goes on."""

    title: ClassVar[str] = "Evaluation"

    eval_samples: NonNegativeInt = 100
    """Validation rows answered at each evaluation for exact match and F1; 0 measures the loss only."""
    max_new_tokens: PositiveInt = 64
    """Longest answer generated."""
    show_samples: NonNegativeInt = 3
    """Answers written to the log at each evaluation."""


class SftExportConfig(Section):
    """What is left at the end, besides the adapter or the model."""

    title: ClassVar[str] = "Export"

    merge: bool = False
    """Write the base with the adapters added to its weights as well, to ``merged_model``."""
    push_to_hub: str | None = None
    """Hub repository, private, that the final model is pushed to."""


class SftConfig(Command):
    """Fine-tune a causal language model on retrieval-augmented prompts."""

    name: ClassVar[str] = "train sft"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain train sft --model-name-or-path Qwen/Qwen2.5-0.5B-Instruct --train-data data/squad --index data/squad/index",
        "ragtrain train sft -cp configs/paper -cn training-asqa data_file=asqa-prefix-train.jsonl output_key=answers "
        "train.output_dir=./trained_models_context/",
        "ragtrain train sft --train-data data/squad --preview 3 --dry-run",
    )
    aliases: ClassVar[Mapping[str, Alias]] = SFT_ALIASES
    readings: ClassVar[Mapping[str, Reading]] = READINGS

    data: SftDataConfig = SftDataConfig()
    context: SftContextConfig = SftContextConfig()
    prompt: SftPromptConfig = SftPromptConfig()
    model: SftModelConfig = SftModelConfig()
    lora: LoraConfig = LoraConfig(lora_rank=16)
    batches: SftBatchConfig = SftBatchConfig()
    evaluation: SftEvaluationConfig = SftEvaluationConfig()
    loop: LoopConfig = LoopConfig()
    optim: OptimConfig = OptimConfig(lr_scheduler="cosine")
    export: SftExportConfig = SftExportConfig()
    run: RunConfig = RunConfig(output_dir=Path("runs/sft"))
