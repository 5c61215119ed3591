"""Flags of ScaleDown's data preparation."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragtrain.config.commands import TeachConfig
from ragtrain.config.foreign_teach import RERANKER
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError


def load(*flags: tuple[str, str | None]) -> TeachConfig:
    return load_config(TeachConfig, flags=dict(flags)).config


def test_every_flag_has_its_place():
    config = load(
        ("--queries_file", "q.txt"), ("--corpus_path", "c.json"), ("--max_corpus_size", "7"), ("--top_k_retrieval", "9"),
        ("--enable_reranking", None), ("--top_k_reranking", "3"), ("--teacher_8bit", None), ("teacher_model", "t"),
        ("output_file", "o.json"),
    )  # fmt: skip
    assert (config.questions, config.passages, config.output_file) == (Path("q.txt"), Path("c.json"), Path("o.json"))
    assert (config.max_passages, config.n_docs, config.keep_docs) == (7, 9, 3)
    assert config.rerank.reranker_model == RERANKER
    assert config.teacher.load_in_8bit
    assert config.teacher.teacher_model == "t"


def test_a_named_reranker_stays_and_a_number_kept_means_reranking():
    assert load(("--enable_reranking", None), ("reranker_model", "own")).rerank.reranker_model == "own"
    assert load(("reranker_model", "own"), ("--top_k_reranking", "3")).rerank.reranker_model == "own"
    assert load(("--top_k_reranking", "3")).rerank.reranker_model == RERANKER
    assert load(("--enable_reranking", "false")).rerank.reranker_model is None
    assert load().rerank.reranker_model is None


def test_where_questions_come_from():
    made_up = load(("--num_synthetic_queries", "40"))
    assert (made_up.dataset, made_up.max_questions) == ("demo", 40)
    fetched = load(("--download_ms_marco", None))
    assert (fetched.dataset, fetched.split) == ("ms_marco", "validation")
    assert load(("--download_ms_marco", None), ("split", "train")).split == "train"
    assert load(("--download_ms_marco", "false")).dataset == "demo"
    with pytest.raises(ConfigError, match="max_questions"):
        load(("--num_synthetic_queries", "many"))
