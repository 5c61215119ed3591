"""A corner of the demo set, its index, and the command line that trains on them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ragtrain import prepare
from ragtrain.config.commands import EncoderConfig, PrepareConfig
from ragtrain.data import demo
from ragtrain.records import write_jsonl

ENTITIES = 24


@pytest.fixture(scope="session")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of a few entities with its index in ``index``."""
    folder = tmp_path_factory.mktemp("corner")
    built = demo.build(0)
    kept = {question.group for question in built.train[:200]}
    kept = set(sorted(kept)[:ENTITIES])
    train = [question for question in built.train if question.group in kept]
    gold = {document.id for question in train for document in question.documents}
    write_jsonl(folder / "train.jsonl", (question.to_json() for question in train[12:]))
    write_jsonl(folder / "validation.jsonl", (question.to_json() for question in train[:6]))
    write_jsonl(folder / "test.jsonl", (question.to_json() for question in train[6:12]))
    write_jsonl(folder / "passages.jsonl", (p.to_json() for p in built.passages if p.id in gold))
    prepare.run(
        PrepareConfig(
            passages=folder / "passages.jsonl",
            output_dir=folder / "index",
            encoder=EncoderConfig(encoder=str(demo.ENCODER)),
        )
    )
    return folder


@pytest.fixture
def flags(corner: Path) -> list[str]:
    """Flags of a short run on the corner, without an output folder."""
    return [
        "--train-data", str(corner), "--n-docs", "2", "--batch-size", "3", "--gradient-accumulation-steps", "2",
        "--max-steps", "6", "--save-steps", "2", "--learning-rate", "1e-4", "--logging-steps", "1",
    ]  # fmt: skip


@pytest.fixture
def spawn() -> Callable[..., subprocess.Popen[str]]:
    """Start ``ragtrain …`` as a user does, in a process of its own (or several)."""

    def start(*arguments: str, processes: int = 1, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*launcher(processes), *arguments],
            cwd=cwd, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture
def command(spawn: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    """Run ``ragtrain …`` to its end: exit code, stdout, stderr."""

    def run(*arguments: str, **how: object) -> tuple[int, str, str]:
        process = spawn(*arguments, **how)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    return run


CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="session")
def causal_lm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make the folder of a tiny random causal language model (llama, gpt2, qwen2) with a byte-level tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    built: dict[tuple[str, bool], Path] = {}
    shapes = {
        "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "qwen2": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 2},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                 "attn_pdrop": 0.0},
    }  # fmt: skip

    def make(kind: str = "llama", *, chat: bool = False) -> Path:
        if (kind, chat) in built:
            return built[kind, chat]
        passages = demo.build(0).passages[:300]
        bpe = ByteLevelBPETokenizer()
        special = ["<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        bpe.train_from_iterator((p.text for p in passages), vocab_size=600, special_tokens=special)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>", model_max_length=4096,
        )  # fmt: skip
        if chat:
            tokenizer.chat_template = CHAT
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            kind, vocab_size=len(tokenizer), max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **shapes[kind],
        )  # fmt: skip
        folder = tmp_path_factory.mktemp(f"{kind}{'-chat' if chat else ''}")
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        built[kind, chat] = folder
        return folder

    return make


def launcher(processes: int = 1) -> list[str]:
    """Return how the command starts: plainly, or under torchrun."""
    if processes == 1:
        return [sys.executable, "-m", "ragtrain"]
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "ragtrain",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Return an environment in which the command computes on one thread, the same way every time."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "NO_COLOR": "1"}
