"""Tokenizers of the built-in demo models, those of the tests of fine-tuning, and rows written by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ragtrain.data import demo
from ragtrain.data.compress.records import CompressExample
from ragtrain.records import Document

_TOKENIZERS = Path(__file__).parents[1] / "sft" / "conftest.py"


@pytest.fixture(scope="session")
def causal() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.CAUSAL)


@pytest.fixture(scope="session")
def encoder() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.ENCODER)


@pytest.fixture(scope="session")
def chats() -> SimpleNamespace:
    spec = importlib.util.spec_from_file_location("tokenizers_of_fine_tuning", _TOKENIZERS)
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(
        bpe=module.bpe, metaspace=module.metaspace, chatml=module.CHATML, gemma=module.GEMMA, qwen3=module.QWEN3,
        llama3=module.LLAMA3, phi=module.PHI,
    )  # fmt: skip


@pytest.fixture
def row() -> Any:
    """Make rows: ``row("q1", 3, gold=(1,))`` has three passages, of which the second is gold and holds the answer."""

    def make(name: str, n_documents: int, *, gold: tuple[int, ...] = (0,), **fields: Any) -> CompressExample:
        documents = tuple(
            Document(
                f"{name}-{i}", f"Title {i}",
                f"Passage {i} of {name} says {'that it is ' + name + 'answer' if i in gold else 'nothing'}. " * 3, i in gold,
            )
            for i in range(n_documents)
        )  # fmt: skip
        answers = (f"{name}answer",)
        given = {"answers": answers, "targets": answers, **fields}
        return CompressExample(
            name, f"What is {name}?", documents=documents, gold=frozenset(f"{name}-{i}" for i in gold), **given
        )

    return make
