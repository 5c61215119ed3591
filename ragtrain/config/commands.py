"""One model per command. The command line, the YAML keys, ``--print-config`` and the reference are made of these.

Field names are unique within a command, so that a flag needs no section and a YAML file may leave it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ragtrain.config.base import (
    Command,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from ragtrain.config.training import LoopConfig, OptimConfig, RunConfig

DATASETS = ("demo", "squad", "nq", "trivia_qa", "hotpot_qa", "ms_marco", "all")


class FetchConfig(Command):
    """Get a question set and its passages into one record format."""

    name: ClassVar[str] = "data fetch"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain data fetch demo",
        "ragtrain data fetch squad --source train-v1.1.json --output-dir data/squad",
        "ragtrain data fetch --dataset hotpot_qa --num-examples 500 --output-file small.json",
    )
    title: ClassVar[str] = "Data"
    positional: ClassVar[str | None] = "dataset"
    positional_metavar: ClassVar[str] = "[NAME]"

    dataset: Literal["demo", "squad", "nq", "trivia_qa", "hotpot_qa", "ms_marco", "all"] = "demo"
    """Data set to get; ``demo`` is built in and needs no network."""
    source: tuple[Path, ...] = ()
    """Raw files of the set (gz included) to read instead of the hub; with two, the second is the evaluation split."""
    num_examples: PositiveInt | None = None
    """Questions to keep, drawn with the seed; without it, all."""
    split: Literal["train", "validation", "test"] | None = None
    """Keep this official split only; without it, train stays train and validation stays validation."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the groups (articles, question families) set aside where a set has one split only."""
    seed: NonNegativeInt = 0
    """Seed of every draw."""
    output_dir: Path | None = None
    """Dataset folder to write; without it ``data/NAME``."""
    output_file: Path | None = None
    """Write this JSON file and NAME_eval.json beside it instead of a dataset folder."""
    overwrite: bool = False
    """Replace an existing dataset folder or file."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""


class EncoderConfig(Section):
    """How text becomes a vector. What is not given is taken from the encoder's own folder."""

    title: ClassVar[str] = "Encoder"

    encoder: str | None = None
    """Folder or hub id: a DPR encoder, a sentence-transformers folder, or any AutoModel; without it, the built-in
    demo encoder."""
    pooling: Literal["cls", "mean", "pooler", "last"] | None = None
    """How token vectors become one vector; needed only where the folder does not say."""
    normalize: bool | None = None
    """Scale vectors to unit length; without it, as the encoder's folder says, else no."""
    query_prompt: str | None = None
    """Text put before each question."""
    passage_prompt: str | None = None
    """Text put before each passage."""
    passage_format: Literal["pair", "joined"] | None = None
    """Title and text as two segments (DPR), or joined by a space; without it, as the encoder's folder says."""
    passage_max_tokens: PositiveInt | None = None
    """Tokens of a passage the encoder reads; without it, as the encoder's folder says, at most 512."""


class PrepareConfig(Command):
    """Turn passages into a verified dense index."""

    name: ClassVar[str] = "index prepare"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain index prepare --passages data/demo/passages.jsonl --output-dir data/demo/index",
        "ragtrain index prepare --passages psgs_w100.tsv.gz --encoder facebook/dpr-ctx_encoder-single-nq-base",
    )
    title: ClassVar[str] = "Passages"

    passages: Path | None = None
    """Passages in any known format: a file, a folder of text files or a dataset folder; without it, the demo's."""
    output_dir: Path | None = None
    """Index folder to write; without it ``index`` beside the passages."""
    passage_words: PositiveInt | None = 100
    """Words after which a longer text is split; null keeps texts whole."""
    overlap: NonNegativeInt = 0
    """Words that two neighbouring pieces share."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    encoder: EncoderConfig = EncoderConfig()
    index_type: Literal["flat", "faiss-flat"] = "flat"
    """``flat`` searches exactly by matrix product; ``faiss-flat`` writes ``index.faiss`` as well."""
    storage: Literal["float16", "float32"] = "float16"
    """Precision in which vectors are stored."""
    encode_batch_size: PositiveInt = 64
    """Passages encoded at a time."""
    device: str | None = None
    """Device to encode on; without it a GPU if there is one."""
    overwrite: bool = False
    """Replace an existing index folder."""
    dry_run: bool = False
    """Read the passages, load the encoder, print the plan and write nothing."""


class SearchConfig(Command):
    """Search an index with a question."""

    name: ClassVar[str] = "index search"
    examples: ClassVar[tuple[str, ...]] = ('ragtrain index search "capital of Norway" --index-path data/demo/index',)
    title: ClassVar[str] = "Search"
    positional: ClassVar[str | None] = "question"
    positional_metavar: ClassVar[str] = "[QUESTION]"

    question: str = ""
    """Question to search with."""
    index_path: Path = Path("data/demo/index")
    """Index folder."""
    encoder: str | None = None
    """Question encoder; without it, the one the index was made for. A run folder stands for its trained one."""
    n_docs: PositiveInt = 5
    """Passages to show."""
    device: str | None = None
    """Device to search on; without it a GPU if there is one."""


class RagDataConfig(Section):
    """What to train on."""

    title: ClassVar[str] = "Data"

    train_data: Path | None = None
    """Training questions in any known format, or a dataset folder; without it, the built-in demo set."""
    val_data: Path | None = None
    """Validation questions; without it ``validation.jsonl`` beside the training file."""
    index_path: Path | None = None
    """Index folder of ``ragtrain index prepare``, or an index file beside its passages; without it ``index`` beside
    the training file."""
    passages_path: Path | None = None
    """Passages of the index, where the index folder does not hold them."""
    question_key: str | None = None
    """Field that holds the question in a format that is not recognised."""
    answer_key: str | None = None
    """Field that holds the answers in a format that is not recognised."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    max_train_samples: PositiveInt | None = None
    """Training questions to use, drawn with the seed."""
    max_val_samples: PositiveInt | None = 500
    """Validation questions to use, drawn with the seed."""


class RagModelConfig(Section):
    """The two networks and what they read."""

    title: ClassVar[str] = "Model"

    model_dir: str | None = None
    """Run folder, RAG folder or hub id (``facebook/rag-sequence-nq``) to start from, instead of two parts."""
    question_encoder: str | None = None
    """Question encoder folder or hub id; without it, the encoder the index was made with."""
    generator: str | None = None
    """Generator folder or hub id, BART or T5; without it, the built-in demo generator."""
    train_question_encoder: bool = True
    """Train the question encoder through the marginal likelihood; without it, the retriever stays frozen."""
    n_docs: PositiveInt = 5
    """Passages retrieved and marginalised over for each question."""
    max_input_tokens: PositiveInt = 300
    """Generator input: passage and question together; the passage gives way, never the question."""
    max_question_tokens: PositiveInt = 64
    """Longest question read by the question encoder."""
    max_target_tokens: PositiveInt = 32
    """Longest answer, end token included."""
    score_temperature: PositiveFloat | None = None
    """What retrieval scores are divided by before they become a prior; without it 1, or 0.05 for an index of cosines."""
    target_style: Literal["shift-right", "hf"] = "shift-right"
    """How targets meet decoder inputs: properly shifted, or unshifted as ``facebook/rag-*`` was trained."""
    gradient_checkpointing: bool = False
    """Recompute the generator's activations in the backward pass: less memory, about a third more time."""


class RagObjectiveConfig(Section):
    """The loss."""

    title: ClassVar[str] = "Objective"

    label_smoothing: Fraction = 0.0
    """Share of the target probability spread over the vocabulary."""
    normalize_by: Literal["token", "answer"] = "token"
    """What the summed loss of a step is divided by: real target tokens, or questions."""
    answer_choice: Literal["first", "random"] = "random"
    """Which reference answer is the target: always the first, or one drawn anew each epoch."""


class RagConfig(Command):
    """Train question encoder and generator jointly, through exact marginalisation over retrieved passages."""

    name: ClassVar[str] = "train rag"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain train rag --max-steps 15000 --batch-size 2",
        "ragtrain train rag --train-data data/squad --index-path data/squad/index --generator facebook/bart-base "
        "--output-dir runs/squad",
    )

    data: RagDataConfig = RagDataConfig()
    model: RagModelConfig = RagModelConfig()
    objective: RagObjectiveConfig = RagObjectiveConfig()
    loop: LoopConfig = LoopConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()


class EvalConfig(Command):
    """Answer questions with a trained run and measure quality, retrieval and speed."""

    name: ClassVar[str] = "eval"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain eval --model-dir runs/rag --num-samples 500",
        "ragtrain eval --model-dir facebook/rag-sequence-nq --test-data NQ-open.dev.jsonl --index-path data/index",
    )
    title: ClassVar[str] = "Evaluation"

    model_dir: str | None = None
    """Run folder, RAG folder or hub id; without it the untrained demo models."""
    test_data: Path | None = None
    """Questions to answer; without it the run's own test or validation questions."""
    index_path: Path | None = None
    """Index folder; without it the run's own."""
    passages_path: Path | None = None
    """Passages of the index, where the index folder does not hold them."""
    question_key: str | None = None
    """Field that holds the question in a format that is not recognised."""
    answer_key: str | None = None
    """Field that holds the answers in a format that is not recognised."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    num_samples: PositiveInt | None = None
    """Questions to answer, drawn with the seed; without it, all."""
    seed: NonNegativeInt = 0
    """Seed of the draw and of the bootstrap."""
    n_docs: PositiveInt | None = None
    """Passages to marginalise over; without it as in training."""
    recall_at: tuple[PositiveInt, ...] = (1, 5, 20)
    """Depths k at which answer-recall is reported."""
    num_beams: PositiveInt = 4
    """Beams of the decoder for each passage."""
    max_new_tokens: PositiveInt = 32
    """Longest answer generated."""
    batch_size: PositiveInt = 16
    """Questions answered at a time."""
    device: str | None = None
    """Device to run on; without it a GPU if there is one."""
    checkpoint: str = "final"
    """Which weights of a run: final, best, latest or a checkpoint's name."""
    output_dir: Path | None = None
    """Folder for ``metrics.json`` and ``predictions.jsonl``; without it ``eval`` in the run folder."""
    output_file: Path | None = None
    """One JSON file with metrics and predictions, in addition to the folder."""
    overwrite: bool = False
    """Replace earlier results in the output folder."""


class CompareConfig(Command):
    """Say what changed between evaluated runs, and whether it is real."""

    name: ClassVar[str] = "compare"
    examples: ClassVar[tuple[str, ...]] = ("ragtrain compare runs/before runs/after",)
    title: ClassVar[str] = "Comparison"
    positional: ClassVar[str | None] = "runs"
    positional_metavar: ClassVar[str] = "RUN..."

    runs: tuple[Path, ...] = ()
    """Two or more run folders, evaluation folders or prediction files; the first is the baseline."""
    intersect: bool = False
    """Compare the questions that all runs answered instead of refusing runs on different questions."""
    bootstrap_samples: PositiveInt = 10000
    """Resamples of the paired bootstrap."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the intervals."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap."""
    output_file: Path | None = None
    """Write the comparison to this JSON file as well."""
    tolerance: NonNegativeFloat = 1e-12
    """Differences up to this count as ties."""


class DoctorConfig(Command):
    """Show versions, devices and extras, and say how to repair an installation that conflicts."""

    name: ClassVar[str] = "doctor"
    examples: ClassVar[tuple[str, ...]] = ("ragtrain doctor", "ragtrain doctor --json")
    title: ClassVar[str] = "Check"

    path: Path = Path()
    """Folder whose file system is asked for its free space."""
