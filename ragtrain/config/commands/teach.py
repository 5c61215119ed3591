"""``ragtrain data teach``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from ragtrain.config.aliases import Alias
from ragtrain.config.base import Command, Fraction, NonNegativeInt, PositiveInt, Section
from ragtrain.config.foreign_teach import TEACH_ALIASES


class RerankConfig(Section):
    """What scores passages beside their question."""

    title: ClassVar[str] = "Reranker"

    reranker_model: str | None = None
    """Cross-encoder, folder or hub id of a sequence classifier, as naver/trecdl22-crossencoder-debertav3 (OSCAR's) or
    cross-encoder/ms-marco-MiniLM-L-6-v2; without it, nothing is scored."""
    reranker_max_tokens: PositiveInt = 512
    """Longest question with passage in tokens; a longer passage is scored in windows, and the best one counts."""
    rerank_batch_size: PositiveInt = 32
    """Pairs of question and passage scored at a time."""


class TeacherConfig(Section):
    """What answers the questions, and which answers are kept."""

    title: ClassVar[str] = "Teacher"

    teach: bool = True
    """Have a teacher answer; without it, passages and scores only."""
    teacher_model: str | None = None
    """Causal language model, folder or hub id, or a run of ``train sft``, which is asked as it was trained; without it, the
    built-in demo model."""
    load_in_8bit: bool = False
    """Hold the teacher in 8 bits (bitsandbytes)."""
    instruction: str | None = "qa-short"
    """Instruction: a file, or one of qa, qa-short, cot, …; null for none. A run of ``train sft`` has its own."""
    max_length: PositiveInt | None = None
    """Longest prompt with its answer in tokens; without it, as many as the teacher has positions, 8192 at most. A longer
    prompt loses its lowest-ranked passages, which is counted."""
    max_new_tokens: PositiveInt = 128
    """Longest answer in tokens."""
    batch_size: PositiveInt = 8
    """Questions answered at a time."""
    agreement: Literal["none", "contains", "f1"] = "none"
    """Which answers are kept, where there is a reference: all, those that contain one, or those with a token F1 of at least
    ``min_f1``."""
    min_f1: Fraction = 0.5
    """``agreement`` f1: least token F1 with any reference."""
    disagreeing: Literal["drop", "gold"] = "drop"
    """What becomes of a row whose answer is not kept: it is left out, or stays with its reference answers alone."""


class TeachConfig(Command):
    """Have passages found and reranked and questions answered by larger models, to train on what they say."""

    name: ClassVar[str] = "data teach"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain data teach small.json --reranker-model cross-encoder/ms-marco-MiniLM-L-6-v2 --teacher-model "
        "Qwen/Qwen2.5-7B-Instruct --agreement contains",
        "ragtrain data teach queries.txt --passages kilt_knowledgesource.json --n-docs 20 --keep-docs 5 --reranker-model "
        "naver/trecdl22-crossencoder-debertav3 --teacher-model mistralai/Mistral-7B-Instruct-v0.2 --load-in-8bit",
    )
    title: ClassVar[str] = "Questions and passages"
    positional: ClassVar[str | None] = "questions"
    positional_metavar: ClassVar[str] = "[FILE]"
    aliases: ClassVar[Mapping[str, Alias]] = TEACH_ALIASES

    questions: Path | None = None
    """Questions in any known format, with or without answers, one a line in a text file, or a dataset folder; without it,
    those of ``dataset``."""
    dataset: Literal["demo", "squad", "nq", "trivia_qa", "hotpot_qa", "ms_marco"] = "demo"
    """Set to fetch into ``data/NAME`` where no file of questions is given (``ragtrain data fetch``)."""
    split: Literal["train", "validation", "test"] = "train"
    """Which questions of a dataset folder."""
    max_questions: PositiveInt | None = None
    """Questions to use, drawn with the seed from every group in turn."""
    question_key: str | None = None
    """Field that holds the question in a format that is not recognised."""
    answer_key: str | None = None
    """Field that holds the answers in a format that is not recognised."""
    passages: Path | None = None
    """Passages in any known format, searched by words (BM25); without it and without ``index``, the questions' own."""
    max_passages: PositiveInt | None = None
    """Passages to read, from the beginning."""
    passage_words: PositiveInt | None = 100
    """Words after which a longer one of ``passages`` is split; null keeps them whole."""
    index: Path | None = None
    """Index folder, or a run with one, to search instead."""
    retrieval: Literal["dense", "bm25", "hybrid"] = "dense"
    """What chooses passages from ``index``: vectors, words, or both by reciprocal rank fusion."""
    n_docs: PositiveInt = 20
    """Passages found for a question."""
    keep_docs: PositiveInt | None = 5
    """Passages kept of those found or reranked, best first; null keeps all."""
    keep_gold: bool = True
    """Keep passages that are known to answer the question, in place of the last, where search or reranker leave them out."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    seed: NonNegativeInt = 0
    """Seed of the draw."""
    rerank: RerankConfig = RerankConfig()
    teacher: TeacherConfig = TeacherConfig()
    output_file: Path = Path("train_data.json")
    """File to write: a JSON array, or JSON lines by the suffix ``.jsonl``. Scores and answers gather in ``NAME.teach/`` beside
    it, from where a stopped command goes on."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights of both models; ``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    device: str | None = None
    """Device to compute on; without it a GPU if there is one."""
    overwrite: bool = False
    """Replace the file."""
