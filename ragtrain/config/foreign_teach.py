"""What the flags of ScaleDown's data preparation (``scaledown.data.prepare_dataset``) mean to ``ragtrain data teach``."""

from __future__ import annotations

from collections.abc import Mapping

from ragtrain.config import aliases
from ragtrain.config.aliases import WEAK, Alias, Give, Meaning, rename

RERANKER = "cross-encoder/ms-marco-MiniLM-L-6-v2"
"""What is reranked with there where no other model is named."""


def _synthetic(value: object) -> Meaning:
    """Read how many questions are made up there: here they come from the built-in set, and have answers."""
    return Meaning(
        (Give("dataset", "demo", WEAK, unless=aliases.anything), Give("max_questions", str(value))),
        "so many questions of the built-in demo set",
    )


def _ms_marco(value: object) -> Meaning:
    gives = (Give("dataset", "ms_marco"), Give("split", "validation", WEAK, unless=aliases.anything))
    return Meaning(gives if aliases.truth(value) else ())


def _reranking(value: object) -> Meaning:
    if not aliases.truth(value):
        return Meaning()
    return Meaning((Give("rerank.reranker_model", RERANKER, WEAK, unless=aliases.anything),))


def _top_k_reranking(value: object) -> Meaning:
    """Read how many are kept; there, that alone means that they are reranked."""
    return Meaning((Give("keep_docs", str(value)), *_reranking("true").gives))


TEACH_ALIASES: Mapping[str, Alias] = {
    "queries_file": rename("questions"),
    "num_synthetic_queries": Alias(("max_questions", "dataset"), _synthetic),
    "download_ms_marco": Alias(("dataset", "split"), _ms_marco),
    "corpus_path": rename("passages"),
    "max_corpus_size": rename("max_passages"),
    "top_k_retrieval": rename("n_docs"),
    "enable_reranking": Alias(("rerank.reranker_model",), _reranking),
    "top_k_reranking": Alias(("keep_docs", "rerank.reranker_model"), _top_k_reranking),
    "teacher_8bit": rename("teacher.load_in_8bit"),
}
