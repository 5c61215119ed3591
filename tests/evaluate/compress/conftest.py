"""A tiny random network with adapters that do something, and questions of the demo set to ask it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ragtrain.config.commands import CompressConfig
from ragtrain.config.load import load_config
from ragtrain.data import demo
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.records import CompressExample
from ragtrain.data.compress.rows import example_of
from ragtrain.data.compress.windows import Windower
from ragtrain.evaluate.compress.arms import TABLE
from ragtrain.evaluate.compress.measure import ArmRecord, ArmResult, ArmSettings, summarise
from ragtrain.evaluate.compress.subject import Subject
from ragtrain.models.adapters import save_adapters
from ragtrain.models.compress.build import build_compress
from ragtrain.records import Document

FORM = {
    "num_layers": 1,
    "num_memory_tokens": 3,
    "compression_rate": 6,
    "rates": (9,),
    "lora_rank": 2,
    "lora_alpha": 8.0,
}


def moved(model: torch.nn.Module, seed: int) -> None:
    """Give adapters weights that change what the generator writes."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)


@pytest.fixture(scope="session")
def rows() -> list[CompressExample]:
    """Seven questions, of which some are on the same passage, some with two passages."""
    questions = demo.build(0).train[:7]
    made = [example_of(question) for question in questions]
    other = Document("other", "Elsewhere", "Nothing of it is here. It is a long way off, and nobody asks.")
    return [
        CompressExample(**{**{name: getattr(row, name) for name in row.__dataclass_fields__}, "documents": (*row.documents, other)})
        if place % 3 == 1 else row
        for place, row in enumerate(made)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def build(base: Path) -> Callable[..., tuple]:
    """Build a network of a tiny generator, with some settings."""

    def make(**changes: object) -> tuple:
        torch.manual_seed(0)
        flags = {"model_name_or_path": str(base), **FORM, **changes}
        return build_compress(load_config(CompressConfig, flags=flags).config)

    return make


@pytest.fixture
def subject(build: Callable[..., tuple], tmp_path: Path) -> Subject:
    """A network with adapters for memory in it, and others for full passages in a folder."""
    model, tokenizer, own = build()
    moved(model.generator, 1)
    save_adapters(model.generator, tmp_path / "full", "base")
    moved(model.generator, 2)
    return Subject(model, tokenizer, Windower(own, model.settings), CompressPrompter(tokenizer), tmp_path / "full")


@pytest.fixture
def results() -> SimpleNamespace:
    """Make results of arms out of F1 scores of their questions."""

    def of(name: str, scores: list[float], **how: object) -> ArmResult:
        settings = ArmSettings(**how)
        records = [
            ArmRecord(f"q{i}", "x", float(score == 1), float(score == 1), score, score, 8, 20, 3, True, 0.1, True, 0,
                      f"q{(i + 1) % len(scores)}" if name == "shuffled" else None)
            for i, score in enumerate(scores)
        ]  # fmt: skip
        return summarise(TABLE[name], records, 1.0, settings)

    def rows(n: int) -> list[CompressExample]:
        return [
            CompressExample(f"q{i}", f"question {i}?", (f"answer {i % 3}",), (), (Document(f"d{i}", "", f"text {i}"),))
            for i in range(n)
        ]

    return SimpleNamespace(of=of, rows=rows)
