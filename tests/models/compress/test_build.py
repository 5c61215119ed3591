"""From a configuration to a network: what is chosen, what is told, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, T5Config

from ragtrain.config.commands.compress import CompressConfig, CompressorConfig
from ragtrain.data import demo
from ragtrain.errors import ConfigError, DataError
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.export import Tokenizers


def of(compressor: CompressorConfig, **model: object) -> CompressConfig:
    config = CompressConfig(compressor=compressor)
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


@pytest.mark.parametrize("kind", ["n_layers", "modernbert", "small_lm"])
def test_the_built_in_generator(kind: str, make: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, *tokenizers = build_compress(of(CompressorConfig(compressor_type=kind)), base_name=str(demo.CAUSAL))
    assert tokenizers[0] is tokenizers[1]
    assert model.settings.num_layers == (5 if kind == "n_layers" else 4)
    told = caplog.text
    assert ("num_layers 8 is 5" in told) == (kind == "n_layers")
    assert ("random weights" in told) == ("--pretrain-steps" in told) == (kind != "n_layers")
    assert isinstance(model.connector, nn.Identity) == (kind == "n_layers")
    made = make.made(model, Tokenizers(*tokenizers))
    batch = made.batch((5, 200), (30,))
    assert model(batch).logits.shape == (len(batch.targets), 2048)


def test_more_layers_than_there_are(make: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="num_layers 4: the generator has 3"):
        make.model(num_layers=4)
    default = CompressorConfig(num_memory_tokens=2, compression_rate=4)
    model, *_ = build_compress(of(default, model_name_or_path=str(make.folders["llama"])))
    assert model.settings.num_layers == 3
    assert "num_layers 8 is 3" in caplog.text
    # What the run wrote down as its own may be given again, and so may it to the built-in model.
    again = CompressorConfig(num_layers=8, num_memory_tokens=2, compression_rate=4)
    assert build_compress(of(again, model_name_or_path=str(make.folders["llama"])))[0].settings.num_layers == 3
    assert build_compress(of(CompressorConfig(num_layers=7)), base_name=str(demo.CAUSAL))[0].settings.num_layers == 5


def test_what_is_learnt_begins_where_embeddings_are(make: SimpleNamespace) -> None:
    model = make.model("gemma3").model
    for learnt, network in ((model.memory, model.compressor), (model.tasks, model.generator)):
        known = network.get_input_embeddings()(torch.arange(60))
        ratio = float(learnt.detach().std() / known.detach().std())
        assert 0.5 < ratio < 2
    one, other = make.model().model, make.model().model
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_an_encoder_with_a_pooler(make: SimpleNamespace, tmp_path: Path, causal: SimpleNamespace) -> None:
    bert = BertConfig(
        vocab_size=causal.vocab, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    network = BertModel(bert, add_pooling_layer=False)
    network.save_pretrained(tmp_path)
    made = make.model(compressor="modernbert", compressor_model=str(tmp_path))
    assert torch.equal(
        made.model.compressor.embeddings.word_embeddings.weight, network.embeddings.word_embeddings.weight
    )
    made.model(made.batch((5, 30))).logits.sum().backward()
    assert all(p.grad is not None for p in made.model.compressor.parameters())
    with pytest.raises(ConfigError, match="take 161 positions, and the compressor has 128"):
        make.model(compressor="modernbert", compressor_model=str(tmp_path), num_memory_tokens=16)
    make.model(compressor="modernbert", compressor_model=str(tmp_path), num_memory_tokens=16, max_query_tokens=8)


def test_compressors_of_the_wrong_kind(make: SimpleNamespace, tmp_path: Path, encoder_folder: Path) -> None:
    T5Config(vocab_size=60).save_pretrained(tmp_path)
    cases = [
        ("modernbert", make.folders["llama"], "a llama model, not an encoder", "small_lm"),
        ("small_lm", encoder_folder, "a modernbert model, not a causal", "modernbert"),
        ("modernbert", tmp_path, "a t5 model", "another"),
        ("modernbert", tmp_path / "none", "no folder", "existing"),
    ]
    for kind, folder, message, hint in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            make.model(compressor=kind, compressor_model=str(folder))
        assert hint in caught.value.hint


def test_tokens_that_a_compressor_has_not(make: SimpleNamespace, tmp_path: Path, encoder_folder: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "few")
    file = tmp_path / "few" / "config.json"
    file.write_text(file.read_text().replace('"vocab_size": 60', '"vocab_size": 50'))
    with pytest.raises(DataError, match="tokens go up to 55, and its embeddings end at 49"):
        make.model(compressor="modernbert", compressor_model=str(tmp_path / "few"))


def test_a_generator_is_needed() -> None:
    with pytest.raises(ConfigError, match="no generator"):
        build_compress(CompressConfig())


def test_a_compressor_may_have_its_activations_recomputed(make: SimpleNamespace) -> None:
    model = make.model(compressor_checkpointing=True, model={"gradient_checkpointing": "on"}).model
    assert model.compressor.is_activation_checkpointing
    assert model.generator.is_activation_checkpointing
