"""A corner of the demo set with its index, and tiny runs of ``train sft`` on it, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ragtrain import prepare
from ragtrain.config.commands import EncoderConfig, PrepareConfig, SftConfig
from ragtrain.config.load import load_config
from ragtrain.data import demo
from ragtrain.records import write_jsonl
from ragtrain.train import sft


@pytest.fixture(scope="session")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of a few entities with its index in ``index``."""
    folder = tmp_path_factory.mktemp("corner")
    built = demo.build(0)
    kept = set(sorted({question.group for question in built.train[:200]})[:16])
    rows = [question for question in built.train if question.group in kept]
    gold = {document.id for question in rows for document in question.documents}
    for name, some in (("train", rows[16:]), ("validation", rows[:6]), ("test", rows[6:16])):
        write_jsonl(folder / f"{name}.jsonl", (question.to_json() for question in some))
    write_jsonl(folder / "passages.jsonl", (p.to_json() for p in built.passages if p.id in gold))
    prepare.run(
        PrepareConfig(
            passages=folder / "passages.jsonl",
            output_dir=folder / "index",
            encoder=EncoderConfig(encoder=str(demo.ENCODER)),
        )
    )
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    bpe = ByteLevelBPETokenizer()
    texts = (passage.text for passage in demo.build(0).passages[:300])
    bpe.train_from_iterator(texts, vocab_size=600, special_tokens=["<end>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<pad>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, initializer_range=0.2, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(corner: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a run of two steps with some settings, once for each, and return its folder, which must not be changed."""
    made: dict[str, Path] = {}

    def make(**changes: object) -> Path:
        key = repr(sorted(changes.items()))
        if key not in made:
            settings = {
                "model_name_or_path": str(base), "train_data": corner, "index": corner / "index", "n_docs": 2,
                "batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 2, "learning_rate": 0.1,
                "warmup_steps": 0, "max_length": 512, "eval_samples": 0, "max_new_tokens": 6, "save_steps": 1,
                "output_dir": tmp_path_factory.mktemp("runs") / "run", "trackers": (), **changes,
            }  # fmt: skip
            made[key] = sft.run(load_config(SftConfig, flags=settings).config).path
        return made[key]

    return make


@pytest.fixture
def run_of(trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a copy of a run, in a working folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def make(**changes: object) -> Path:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*'))) or ''}"
        shutil.copytree(trained(**changes), folder, symlinks=True)
        return folder

    return make
