"""Tiny random generators of five architectures, compressors for them, and batches of random passages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ragtrain.config.commands.compress import CompressConfig, CompressContextConfig, CompressorConfig
from ragtrain.config.commands.sft import SftModelConfig
from ragtrain.config.training import LoraConfig
from ragtrain.data.compress.batches import CompressBatch, WindowBatch, collate_prompts
from ragtrain.data.compress.records import Prompted
from ragtrain.data.compress.windows import Windower
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.export import Tokenizers
from ragtrain.models.compress.model import CompressModel
from ragtrain.records import Document

KINDS = ("llama", "qwen3", "gemma3", "gpt2", "opt")
LAYERS = 3


def make_generator(kind: str, vocab: int) -> PreTrainedModel:
    # Untied, or a random model repeats the token that it read last.
    common = {
        "vocab_size": vocab,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    settings = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "head_dim": 8,
    }  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, **settings))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**common, **settings))
    if kind == "gemma3":
        more = {"sliding_window": 16, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention",
                "sliding_attention"]}  # fmt: skip
        return Gemma3ForCausalLM(Gemma3TextConfig(**common, **settings, **more))
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(**common, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=256, initializer_range=0.2)
        )
    return OPTForCausalLM(
        OPTConfig(
            **common, hidden_size=32, ffn_dim=64, num_hidden_layers=LAYERS, num_attention_heads=4, init_std=0.2,
            max_position_embeddings=256, word_embed_proj_dim=32,
        )
    )  # fmt: skip


@pytest.fixture(scope="session")
def generators(causal: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture, with a tokenizer of 60 words."""
    folders = {}
    for kind in KINDS:
        torch.manual_seed(1)
        folders[kind] = tmp_path_factory.mktemp(kind)
        network = make_generator(kind, causal.vocab)
        for name, parameter in network.named_parameters():
            if "norm" in name or "ln_" in name:  # ones and zeros, of which an omission might not show
                nn.init.normal_(parameter, mean=0.5, std=0.5)
        network.save_pretrained(folders[kind])
        causal.tokenizer(pad=True).save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def encoder_folder(causal: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ModernBERT's configuration alone."""
    folder = tmp_path_factory.mktemp("modernbert")
    tokens = dict.fromkeys(("bos_token_id", "cls_token_id"), 0) | dict.fromkeys(("eos_token_id", "sep_token_id"), 2)
    ModernBertConfig(
        vocab_size=causal.vocab, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.3, pad_token_id=1, **tokens,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_config(
    folder: Path, lora: dict | None = None, model: dict | None = None, **compressor: object
) -> CompressConfig:
    context = {name: compressor.pop(name) for name in ("max_query_tokens", "max_windows") if name in compressor}
    given = {"num_layers": 2, "num_memory_tokens": 3, "compression_rate": 4, **compressor}
    config = CompressConfig(
        compressor=CompressorConfig(**given), context=CompressContextConfig(**context),
        model=SftModelConfig(**{"model_name_or_path": str(folder), **(model or {})}),
        lora=LoraConfig(**{"lora_rank": 4, "lora_dropout": 0.0, **(lora or {})}),
    )  # fmt: skip
    steps = config.objective.model_copy(update={"pretrain_steps": 1})  # or the compressor says what it lacks
    return config.model_copy(update={"objective": steps})


class Made:
    """A network with its tokenizers, and what makes batches for it."""

    def __init__(self, model: CompressModel, tokenizers: Tokenizers) -> None:
        self.model, self.tokenizers = model, tokenizers
        self.windower = Windower(tokenizers.compressor, model.settings)

    def windows(self, *lengths: tuple[int, ...], rate: int | None = None, seed: int = 0) -> WindowBatch:
        """Passages of random words: for each row, the words of each of its passages."""
        return self.windower.collate(self.windowed(*lengths, seed=seed), rate)

    def windowed(self, *lengths: tuple[int, ...], seed: int = 0) -> list:
        draw = np.random.default_rng(seed)

        def text(n: int) -> str:
            return " ".join(f"w{i}" for i in draw.integers(0, 50, n))

        rows = [
            (text(3), [Document(f"{i}-{j}", "", text(n)) for j, n in enumerate(each)])
            for i, each in enumerate(lengths)
        ]  # fmt: skip
        return self.windower.windows(rows)

    def prompted(self, count: int, answer: int = 3, seed: int = 0, words: int = 4) -> Prompted:
        """A prompt: some words, the vectors, some words, the answer."""
        draw = np.random.default_rng(seed)
        ids = draw.integers(8, 58, 2 * words + count + answer).astype(np.int32)
        slots = np.full(len(ids), -1, dtype=np.int32)
        slots[words : words + count] = np.arange(count)
        labels = np.where(np.arange(len(ids)) >= len(ids) - answer, ids, -100).astype(np.int32)
        return Prompted(ids, slots, labels)

    def batch(self, *lengths: tuple[int, ...], rate: int | None = None, seed: int = 0) -> CompressBatch:
        rows = self.windowed(*lengths, seed=seed)
        windows = self.windower.collate(rows, rate)
        prompts = [
            self.prompted(sum(self.windower.counts(row, rate)), seed=seed + i, words=4 + i)
            for i, row in enumerate(rows)
        ]  # fmt: skip
        return collate_prompts(prompts, [str(i) for i in range(len(rows))], windows, 1)


@pytest.fixture
def make(generators: dict[str, Path], encoder_folder: Path) -> SimpleNamespace:
    """``make.config`` of a generator, ``make.model`` of it, its adapters doing something."""

    def config(kind: str = "llama", compressor: str = "n_layers", **options: object) -> CompressConfig:
        if compressor == "modernbert":
            options = {"compressor_model": str(encoder_folder), **options}
        if compressor == "small_lm":
            options = {"compressor_model": str(generators["gpt2"]), **options}
        return make_config(generators[kind], compressor_type=compressor, **options)

    def model(kind: str = "llama", compressor: str = "n_layers", **options: object) -> Made:
        torch.manual_seed(2)
        network, *tokenizers = build_compress(config(kind, compressor, **options))
        for name, parameter in network.generator.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
        nn.init.normal_(network.rank_head.weight, std=0.2)
        return Made(network, Tokenizers(*tokenizers))

    return SimpleNamespace(config=config, model=model, made=Made, folders=generators, kinds=KINDS, layers=LAYERS)
