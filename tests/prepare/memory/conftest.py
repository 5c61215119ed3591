"""Runs of ``train compress`` as they end, with compressors that read no question, and passages of the demo set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ragtrain.config.commands.compress import CompressConfig, CompressorConfig
from ragtrain.config.training import LoraConfig
from ragtrain.data import demo
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.export import Tokenizers, save_compress
from ragtrain.models.flops import StackFlops
from ragtrain.prepare.memory import cost
from ragtrain.records import Passage, write_jsonl

COUNT = 23


def make_run(folder: Path, kind: str = "n_layers", **compressor: object) -> Path:
    given = {"num_layers": 1, "num_memory_tokens": 2, "compression_rate": 8, "query_dependent": False, **compressor}
    config = CompressConfig(compressor=CompressorConfig(compressor_type=kind, **given), lora=LoraConfig(lora_rank=2))
    steps = config.objective.model_copy(update={"pretrain_steps": 1})
    torch.manual_seed(3)
    model, *tokenizers = build_compress(
        config.model_copy(update={"objective": steps}), base_name=str(demo.CAUSAL), device="cpu"
    )
    torch.nn.init.normal_(model.memory, std=0.3)
    save_compress(model, Tokenizers(*tokenizers), folder / "final_model", sidecar={})
    return folder


_STACKS: dict[tuple[str, bool], StackFlops] = {}


@pytest.fixture(autouse=True)
def _counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the operations of each network once: that is most of what these tests would do."""

    def stack(config: Any, *, head: bool) -> StackFlops:
        key = config.to_json_string(), head
        if key not in _STACKS:
            _STACKS[key] = StackFlops(config, head=head)
        return _STACKS[key]

    monkeypatch.setattr(cost, "StackFlops", stack)


@pytest.fixture(scope="session")
def compressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), rates=(4,))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages of different lengths, one of several windows and one of a single word."""
    passages = demo.build().passages[: COUNT - 2]
    long = " ".join(passage.text for passage in passages[:4])
    passages += [Passage("long", "Long", long), Passage("short", "", "word")]
    file = tmp_path_factory.mktemp("corpus") / "passages.jsonl"
    write_jsonl(file, (passage.to_json() for passage in passages))
    return file


@pytest.fixture
def make(tmp_path: Path):
    return lambda kind="n_layers", **settings: make_run(tmp_path / f"run-{kind}", kind, **settings)
