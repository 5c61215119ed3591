"""ScaleDown's flags and keys: what each becomes in ``train compress``, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ragtrain.config import fields
from ragtrain.config.commands import CompressConfig
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError


def test_every_alias_means_fields_that_there_are_and_hides_none() -> None:
    table = fields.leaves(CompressConfig)
    own = {leaf.name for leaf in table.values()}
    for name, alias in CompressConfig.aliases.items():
        assert set(alias.fields) <= table.keys(), name
        assert name not in own
    assert CompressConfig.readings.keys() <= table.keys()


# What the published guide types.
GUIDE = (
    "--train_data small.json --eval_data small_eval.json --compressor_type n_layers --num_layers 8 --num_memory_tokens 4 "
    "--compression_rate 8 --batch_size 2 --num_epochs 3 --learning_rate 5e-5 --max_steps 100 --output_dir ./out "
    "--logging_steps 5 --eval_steps 50 --device cpu"
)


def test_flags_of_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    """As they are typed, underscores and all."""
    from ragtrain.cli import main

    assert main(["train", "compress", *GUIDE.split(), "--print-config"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "train_data: small.json", "eval_data: small_eval.json", "compressor_type: n_layers", "num_layers: 8",
        "num_memory_tokens: 4", "compression_rate: 8", "batch_size: 2", "num_epochs: 3.0", "learning_rate: 5.0e-05",
        "max_steps: 100", "output_dir: out", "logging_steps: 5", "eval_steps: 50", "device: cpu",
    ):  # fmt: skip
        assert re.search(rf"^\s*{re.escape(line)}\s*(#.*)?$", printed, re.MULTILINE), (line, printed)


@pytest.mark.parametrize(
    ("key", "value", "field", "meant"),
    [
        ("generator_model", "m/x", "model.model_name_or_path", "m/x"),
        ("generator_model_name", "m/x", "model.model_name_or_path", "m/x"),
        ("modernbert_model_name", "m/y", "compressor.compressor_model", "m/y"),
        ("num_compressor_layers", "5", "compressor.num_layers", 5),
        ("learning_rate_generator", "1e-3", "optim.learning_rate", 1e-3),
        ("learning_rate_compressor", "1e-3", "optim.compressor_learning_rate", 1e-3),
        ("lora_r", "4", "lora.lora_rank", 4),
        ("lora_target_modules", "[q_proj,v_proj]", "lora.lora_targets", ("q_proj", "v_proj")),
        ("enable_reranking", "false", "objective.rank_weight", 0.0),
        ("reranking_loss_weight", "0.1", "objective.rank_weight", 0.1),
        ("projection_hidden_size", "64", "compressor.connector_hidden", 64),
        ("num_documents_train", "3", "context.n_docs", 3),
        ("use_bf16", "true", "loop.mixed_precision", "bf16"),
        ("device", "cuda", "loop.device", "gpu"),
        ("device", "gpu", "loop.device", "gpu"),
        ("device_type", "gpu", "loop.device", "gpu"),
        ("num_train_epochs", "2", "loop.num_epochs", 2.0),
        ("per_device_train_batch_size", "2", "loop.batch_size", 2),
    ],
)
def test_keys(key: str, value: str, field: str, meant: object) -> None:
    config = load_config(CompressConfig, overrides=[f"{key}={value}"]).config
    section, _, name = field.partition(".")
    assert getattr(getattr(config, section), name) == meant


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("device=trainium", "Trainium is not supported"),
        ("device=tpu", "expected one of auto, gpu, cpu"),
        ("use_lora=false", "trained by adapters"),
    ],
)
def test_what_cannot_be_had_is_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(CompressConfig, overrides=[word])


def test_an_arm_named_none_is_not_the_empty_list() -> None:
    """Alone it is, as everywhere: ``trackers=none``."""
    for flags in ({"arms": ["none", "compressed"]}, {"arms": "none,compressed"}, {"arms": ("none,compressed",)}):
        assert load_config(CompressConfig, flags=flags).config.evaluation.arms == ("none", "compressed")
    assert load_config(CompressConfig, flags={"arms": ["none"]}).config.evaluation.arms == ()


def test_the_defaults_are_those_of_the_guide_where_it_has_some() -> None:
    config = CompressConfig()
    assert config.run.output_dir == Path("training_with_eval")
    assert (config.loop.batch_size, config.loop.num_epochs) == (4, 1.0)
    assert (config.compressor.num_memory_tokens, config.compressor.compression_rate) == (8, 16)
    assert (config.lora.lora_rank, config.lora.lora_alpha, config.lora.lora_dropout) == (16, 32, 0.1)
