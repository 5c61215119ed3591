"""Tiny random models and tokenizers, made from configurations: 2 layers, width 16, 60 words."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ragtrain.data.sft.records import Encoded
from ragtrain.models.encoder import TextEncoder
from ragtrain.models.folders import EncoderSpec
from ragtrain.models.rag import RagModel, RagSettings, Retrieved

VOCAB = 60
WIDTH = 16
WORDS = [f"w{i}" for i in range(VOCAB - 8)]


def _tokenizer(special: list[str], single: str, pair: str, **options: object) -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [(token, vocab[token]) for token in special]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", model_max_length=32, **options)


@pytest.fixture(scope="session")
def bert_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = _tokenizer(
        ["<pad>", "<unk>", "<cls>", "<sep>"], "<cls> $A <sep>", "<cls> $A <sep> $B:1 <sep>:1",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.add_special_tokens({"pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"})
    return tokenizer


@pytest.fixture(scope="session")
def bart_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = _tokenizer(["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", "<s> $A </s> $B </s>")
    tokenizer.add_special_tokens({"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"})
    return tokenizer


@pytest.fixture(scope="session")
def t5_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = _tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>", "$A </s> $B </s>")
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "</s>"})
    return tokenizer


def make_bart(dropout: float = 0.0, init_std: float = 0.3) -> BartForConditionalGeneration:
    config = BartConfig(
        vocab_size=VOCAB, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64, dropout=dropout,
        init_std=init_std, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()  # zero in most checkpoints, where an omission would not show
    return model


def make_t5(dropout: float = 0.0, **changes: object) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=dropout,
        initializer_factor=2.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **changes,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def make_generator(kind: str) -> PreTrainedModel:
    if kind == "bart":
        return make_bart()
    return make_t5() if kind == "t5" else make_t5(tie_word_embeddings=False, feed_forward_proj="gated-gelu")


def bert_settings(dropout: float = 0.0) -> dict[str, object]:
    return {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 32, "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout, "initializer_range": 0.3, "pad_token_id": 0,
    }  # fmt: skip


def make_dpr(role: str = "question", dropout: float = 0.0, projection: int = 0) -> PreTrainedModel:
    config = DPRConfig(**bert_settings(dropout), projection_dim=projection)
    return (DPRQuestionEncoder if role == "question" else DPRContextEncoder)(config)


def make_bert(dropout: float = 0.0) -> BertModel:
    return BertModel(BertConfig(**bert_settings(dropout)))


def text_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pooling: str = "pooler", **settings: object
) -> TextEncoder:
    given = {"max_tokens": 32, "passage_format": "pair" if pooling == "pooler" else "joined", **settings}
    return TextEncoder(model, copy.deepcopy(tokenizer), EncoderSpec(name="tiny", pooling=pooling, **given))


@dataclass(frozen=True)
class Example:
    """A batch as training has it, and the passages that a search would return."""

    question_ids: Tensor
    question_mask: Tensor
    targets: Tensor
    retrieved: Retrieved

    def retrieve(self, query: Tensor) -> Retrieved:
        assert query.dtype == torch.float32
        assert not query.requires_grad
        return self.retrieved


def make_example(
    n_docs: int,
    lengths: tuple[int, ...] = (5, 3, 2, 7),
    bos: int | None = None,
    eos: int = 2,
    *,
    dim: int = WIDTH,
    ragged: bool = True,
) -> Example:
    """Questions, passages and targets of random words; ``lengths`` are those of the targets, EOS included."""
    batch = len(lengths)
    targets = torch.full((batch, max(lengths)), -100)
    for row, length in enumerate(lengths):
        targets[row, :length] = torch.randint(8, VOCAB, (length,))
        targets[row, length - 1] = eos
        if bos is not None and length > 1:
            targets[row, 0] = bos
    question_ids, question_mask = _ragged(batch, 6, 2)
    input_ids, attention_mask = _ragged(batch * n_docs, 11, 4 if ragged else 11)
    retrieved = Retrieved(
        vectors=torch.randn(batch, n_docs, dim),
        mask=torch.ones(batch, n_docs, dtype=torch.bool),
        ids=torch.arange(batch * n_docs).view(batch, n_docs),
        input_ids=input_ids,
        attention_mask=attention_mask,
    )
    return Example(question_ids, question_mask, targets, retrieved)


def _ragged(rows: int, longest: int, shortest: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(8, VOCAB, (rows, longest))
    lengths = torch.randint(shortest, longest + 1, (rows,))
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return ids, mask


@pytest.fixture
def tiny(bert_tokenizer, bart_tokenizer, t5_tokenizer) -> SimpleNamespace:
    """What the tests build with; a fixture because test modules cannot import this file."""

    def rag(generator: PreTrainedModel | str, style: str = "shift-right", *, encoder=None, **options) -> RagModel:
        if isinstance(generator, str):
            generator = make_generator(generator)
        if not isinstance(encoder, TextEncoder):
            encoder = text_encoder(encoder or make_dpr(), bert_tokenizer)
        tokenizer = bart_tokenizer if generator.config.model_type == "bart" else t5_tokenizer
        return RagModel(encoder, generator, tokenizer, RagSettings(target_style=style), **options)

    def encoder(model: PreTrainedModel, pooling: str = "pooler", **settings) -> TextEncoder:
        return text_encoder(model, bert_tokenizer, pooling, **settings)

    return SimpleNamespace(
        rag=rag, encoder=encoder, example=make_example, bart=make_bart, t5=make_t5, generator=make_generator,
        dpr=make_dpr, bert=make_bert, words=WORDS, vocab=VOCAB, width=WIDTH, bert_tokenizer=bert_tokenizer,
        bart_tokenizer=bart_tokenizer,
    )  # fmt: skip


CAUSAL = {
    "gpt2": (GPT2LMHeadModel, GPT2Config), "llama": (LlamaForCausalLM, LlamaConfig),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config), "cohere": (CohereForCausalLM, CohereConfig),
    "cohere2": (Cohere2ForCausalLM, Cohere2Config), "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "phi3": (Phi3ForCausalLM, Phi3Config), "mistral": (MistralForCausalLM, MistralConfig),
    "bloom": (BloomForCausalLM, BloomConfig),
}  # fmt: skip


def make_causal(kind: str, attention: str | None = None, width: int = 32, **changes: object) -> PreTrainedModel:
    """A random causal language model whose logits are far enough apart for a fault to show."""
    if kind == "gpt2":
        settings = {"n_embd": width, "n_layer": 2, "n_head": 4, "n_positions": 128, "attn_pdrop": 0.0,
                    "embd_pdrop": 0.0, "resid_pdrop": 0.0}  # fmt: skip
    elif kind == "bloom":
        settings = {"hidden_size": width, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    else:
        settings = {
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128,
        }  # fmt: skip
    if kind == "gemma2":
        settings |= {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0, "sliding_window": 64}
    given = {"vocab_size": VOCAB, "initializer_range": 0.2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
             "attn_implementation": attention, **settings, **changes}  # fmt: skip
    network, config = CAUSAL[kind]
    return network(config(**given)).eval()


def causal_tokenizer(pad: bool = False) -> PreTrainedTokenizerFast:
    """Words, an end token, and a padding token only where it is asked for."""
    vocab = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **({"pad_token": "<pad>"} if pad else {})}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def make_encoded(*lengths: tuple[int, int], common: int = 0, seed: int = 0) -> list[Encoded]:
    """Samples of random words: (tokens, trained tokens at their end) each, after ``common`` equal ones."""
    draw = np.random.default_rng(seed)
    start = draw.integers(8, VOCAB, common)
    rows = []
    for n, trained in lengths:
        ids = np.concatenate([start, draw.integers(8, VOCAB, n - common)]).astype(np.int32)
        labels = np.where(np.arange(n) >= n - trained, ids, -100).astype(np.int32)
        rows.append(Encoded(ids, labels))
    return rows


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Tiny causal language models: made, or saved in a folder with a tokenizer."""
    folders: dict[str, Path] = {}

    def folder(kind: str = "llama") -> Path:
        if kind not in folders:
            torch.manual_seed(1)
            folders[kind] = tmp_path_factory.mktemp(kind)
            make_causal(kind).save_pretrained(folders[kind])
            causal_tokenizer().save_pretrained(folders[kind])
        return folders[kind]

    return SimpleNamespace(
        model=make_causal, tokenizer=causal_tokenizer, encoded=make_encoded, folder=folder, kinds=tuple(CAUSAL),
        vocab=VOCAB,
    )  # fmt: skip
