"""Two tiny generators' tokenizers, trained on the spot: byte-level BPE as BART has it, Unigram as T5 has it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BartTokenizer, T5Tokenizer

TEXTS = [
    "Oslo / Oslo is the capital of Norway; it lies on a fjord. // what is the capital of Norway?",
    "The River Glomma / The Glomma (621 km) is Norway's longest river. // how long is the Glomma?",
    'Helium / "Helium" is a gas with symbol He and number 2, isn\'t it? // which gas has number 2?',
    "Python is a programming language by Guido van Rossum. // who made Python in 1991?",
] * 20


def train_bpe() -> BartTokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    import json

    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    return BartTokenizer(vocab=state["vocab"], merges=merges, model_max_length=512)


def train_unigram() -> T5Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    import json

    vocab = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocab, extra_ids=4, model_max_length=512)


@pytest.fixture(scope="session")
def bpe() -> BartTokenizer:
    return train_bpe()


@pytest.fixture(scope="session")
def unigram() -> T5Tokenizer:
    return train_unigram()


@pytest.fixture(params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> BartTokenizer | T5Tokenizer:
    return request.getfixturevalue(request.param)
