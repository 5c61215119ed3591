"""What measures runs: ``ragtrain eval`` and ``ragtrain compare``; and ``ragtrain doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ragtrain.config.base import Command, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class EvalConfig(Command):
    """Answer questions with a trained run and measure quality, retrieval and speed."""

    name: ClassVar[str] = "eval"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain eval --model-dir runs/rag --num-samples 500",
        "ragtrain eval --model-dir runs/sft --conditions closed-book,gold,retrieved --also-base",
        "ragtrain eval --model-dir training_with_eval --compression-rate 32",
        "ragtrain eval --model-dir runs/before --contexts-from runs/after",
        "ragtrain eval --model-dir runs/rag --judge Qwen/Qwen2.5-7B-Instruct --judge-retest 50",
        "ragtrain eval --model-dir runs/gfm --graph data/musique --fusion bm25",
        "ragtrain eval --model-dir facebook/rag-sequence-nq --test-data NQ-open.dev.jsonl --index-path data/index",
        "ragtrain eval --model-dir ultra_3g.pth --graph data/codex-s",
    )
    title: ClassVar[str] = "Evaluation"

    model_dir: str | None = None
    """Run folder, RAG folder, causal language model, graph model or hub id; without it the untrained demo models."""
    test_data: Path | None = None
    """Questions to answer; without it the run's own test or validation questions."""
    graph: Path | None = None
    """Networks over graphs: the graph to complete or to retrieve from; without it, that of the training."""
    index_path: Path | None = None
    """Index folder; without it the run's own, or (runs on the passages of their rows) none. Graph models: vectors of
    the graph's documents, to rank by beside the network and together with it."""
    passages_path: Path | None = None
    """RAG models: passages of the index, where the index folder does not hold them."""
    question_key: str | None = None
    """Field that holds the question in a format that is not recognised."""
    answer_key: str | None = None
    """Field that holds the answers in a format that is not recognised."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    num_samples: PositiveInt | None = None
    """Questions to answer, drawn with the seed; without it, all."""
    seed: NonNegativeInt = 0
    """Seed of the draws and of the bootstrap."""
    n_docs: PositiveInt | None = None
    """Passages to marginalise over, or in a prompt; without it as in training. Graph models: documents to write of each question;
    without it 20."""
    recall_at: tuple[PositiveInt, ...] = (1, 5, 20)
    """Depths k at which answer-recall is reported; of graph models, at which recall is, without it 2, 5, 10 and 20."""
    fusion: Literal["none", "bm25", "dense"] | None = None
    """Graph models: what is added to the network's ranking; without it, as in training."""
    num_beams: PositiveInt = 4
    """RAG models: beams of the decoder for each passage. Causal language models answer greedily."""
    decoding: Literal["thorough", "fast"] = "thorough"
    """RAG models: score every candidate answer under every passage, or only under those that proposed it (much cheaper with many
    passages)."""
    retrieval: Literal["dense", "bm25", "hybrid"] | None = None
    """What chooses passages: vectors, words, or both by reciprocal rank fusion; without it, as in training."""
    search_index: Literal["flat", "faiss"] | None = None
    """RAG models: search the vectors exactly, or ``index.faiss`` of the index folder as it is; without it, as in training."""
    max_new_tokens: PositiveInt = 32
    """Longest answer generated, in tokens; runs of train sft and compress: without it, as in training's evaluations."""
    batch_size: PositiveInt = 16
    """Questions answered at a time; of prompts, halved where the device is full."""
    device: str | None = None
    """Device to run on; without it a GPU if there is one."""
    compression_rate: PositiveInt | None = None
    """Runs of train compress: tokens of a passage for each vector, one of those it was trained for; without it the nominal
    one."""
    compat: Literal["squad", "kilt", "ragfit"] = "squad"
    """Whose rules exact match and F1 follow: SQuAD's (v2.0), KILT's or RAG-FiT's; docs/evaluation.md says where they differ."""
    conditions: tuple[Literal["closed-book", "gold", "retrieved", "gold+distractors", "distractors-only"], ...] = ()
    """Runs of train sft and causal language models: what the prompts hold: nothing, the gold passages, what the index finds,
    the gold passages among what it finds wrongly, or that alone; without it, what the run was trained with."""
    contexts_from: Path | None = None
    """RAG models, runs of train sft and causal language models: answer from exactly the passages that another evaluated run read,
    for ``ragtrain compare A B --swapped``; a run folder, an evaluation folder or predictions."""
    also_base: bool = False
    """Runs of train sft and causal language models: answer with the base model as well, from the same load, with the adapters
    switched off."""
    n_docs_sweep: tuple[PositiveInt, ...] = ()
    """RAG models and causal language models: answer with each of these numbers of passages, under every condition that has any."""
    gold_position_sweep: tuple[PositiveInt, ...] = ()
    """Runs of train sft and causal language models: answer with the gold passage at each of these places, from 1, among the same
    distractors, ``n_docs`` passages in all."""
    judge: str | None = None
    """Causal language model that says of each answer whether it is correct and whether it is faithful to what was read: folder, hub id
    or, with an endpoint, its name there; also of an evaluation that is there already."""
    judge_endpoint: str | None = None
    """Address of an OpenAI-compatible server that has the judge, such as http://localhost:8000/v1."""
    judge_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key."""
    judge_timeout_s: PositiveFloat = 120.0
    """Longest wait for a reply of the server."""
    judge_retest: NonNegativeInt = 0
    """Answers, drawn with the seed, that are judged a second time, to tell how often the judge agrees with itself."""
    judge_max_new_tokens: PositiveInt = 128
    """Longest reply of the judge, in tokens."""
    checkpoint: str = "final"
    """Which weights of a run: final, best, latest or a checkpoint's name."""
    output_dir: Path | None = None
    """Folder for ``metrics.json`` and ``predictions.jsonl``, or for one such folder a condition; without it ``eval`` in the run
    folder."""
    output_file: Path | None = None
    """One JSON file with metrics and predictions, in addition to the folder."""
    dpr_file: Path | None = None
    """RAG models and causal language models: predictions with the passages read, as one JSON file in the form of DPR and FiD; several
    evaluations have a file each, with the condition in its name."""
    overwrite: bool = False
    """Replace earlier results in the output folder."""


class CompareConfig(Command):
    """Say what changed between evaluated runs, and whether it is real."""

    name: ClassVar[str] = "compare"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain compare runs/before runs/after",
        "ragtrain compare runs/before runs/after --show broken --html comparison.html",
        "ragtrain compare runs/before runs/after --gate 'em>=0' --gate 'latency_p95<=1.1x'",
        "ragtrain compare runs/a-seed0 runs/a-seed1 runs/b-seed0 runs/b-seed1 --group-seeds",
    )
    title: ClassVar[str] = "Comparison"
    positional: ClassVar[str | None] = "runs"
    positional_metavar: ClassVar[str] = "RUN..."

    runs: tuple[Path, ...] = ()
    """Two or more run folders, evaluation folders or prediction files, the first of which is the baseline. Files may be RAG-FiT's,
    FlashRAG's intermediate_data.json, lm-eval's samples, or tables with the columns id and prediction."""
    intersect: bool = False
    """Compare the questions that all runs answered instead of refusing runs on different questions."""
    swapped: Path | None = None
    """Evaluation of the first run on the passages of the second (``ragtrain eval --model-dir A --contexts-from B``): says how much
    of the difference is retrieval's and how much the reader's."""
    group_seeds: bool = False
    """Take runs whose configurations agree but for the seed as one method, and keep the chance of seeds apart from that of
    questions."""
    show: Literal["none", "fixed", "broken", "both-wrong"] = "none"
    """Print questions that became right, became wrong, or stayed wrong, with the answers and passages of both runs."""
    show_limit: PositiveInt = 20
    """Most questions printed by ``show``."""
    gate: tuple[str, ...] = ()
    """Conditions on B - A in points, on an end of its interval, or on B / A, as 'em>=0', 'em.low>=-1', 'latency_p95<=1.1x'; where
    one is not met the exit code is 6."""
    bootstrap_samples: PositiveInt = 10000
    """Resamples of the paired bootstrap, and draws of the permutation test."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the intervals."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap."""
    output_file: Path | None = None
    """Write the comparison to this JSON file as well."""
    md: Path | None = None
    """Write it as Markdown."""
    html: Path | None = None
    """Write it as one page that needs nothing else, with every question."""
    plots: Path | None = None
    """Write its plots, as PNG files, to this folder."""
    tolerance: NonNegativeFloat = 1e-12
    """Differences up to this count as ties."""


class RunsConfig(Command):
    """List run folders: kind, state, step, best evaluation, and when each wrote last."""

    name: ClassVar[str] = "runs"
    examples: ClassVar[tuple[str, ...]] = ("ragtrain runs", "ragtrain runs experiments --json")
    title: ClassVar[str] = "Runs"
    positional: ClassVar[str | None] = "folder"
    positional_metavar: ClassVar[str] = "[DIR]"

    folder: Path = Path("runs")
    """Folder that holds run folders, or folders of them."""


class StatusConfig(Command):
    """Show how a run goes that works in the background: state, step, time left, best evaluation, the end of its log."""

    name: ClassVar[str] = "status"
    examples: ClassVar[tuple[str, ...]] = ("ragtrain status runs/rag", "ragtrain status runs/rag --json")
    title: ClassVar[str] = "Status"
    positional: ClassVar[str | None] = "run"
    positional_metavar: ClassVar[str] = "[RUN]"

    run: Path = Path("runs/rag")
    """Run folder."""
    lines: NonNegativeInt = 5
    """Lines of the log to show."""


class DoctorConfig(Command):
    """Show versions, devices and extras, and say how to repair an installation that conflicts."""

    name: ClassVar[str] = "doctor"
    examples: ClassVar[tuple[str, ...]] = ("ragtrain doctor", "ragtrain doctor --json")
    title: ClassVar[str] = "Check"

    path: Path = Path()
    """Folder whose file system is asked for its free space."""
