"""The numbers of a compressor."""

from __future__ import annotations

import json

import pytest

from ragtrain.config.commands.compress import CompressConfig, CompressContextConfig, CompressorConfig
from ragtrain.errors import ConfigError
from ragtrain.models.compress.settings import CompressSettings


def test_a_window_is_tokens_for_each_vector() -> None:
    settings = CompressSettings(num_memory_tokens=8, compression_rate=16, rates=(64, 16, 4, 100))
    assert settings.window_tokens == 128
    assert settings.all_rates == (16, 64, 4, 100)
    assert [settings.full_memory(rate) for rate in settings.all_rates] == [8, 2, 32, 2]
    assert settings.max_memory == 32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {1: 8, 16: 8, 17: 8, 128: 8}),
        ({"proportional": True}, {0: 1, 1: 1, 16: 1, 17: 2, 128: 8}),
        ({"pooling": "mean"}, {0: 1, 1: 1, 5: 5, 128: 8}),
        ({"pooling": "mean", "proportional": True}, {0: 1, 5: 1, 40: 3, 128: 8}),
    ],
)
def test_vectors_of_a_window(options: dict, expected: dict[int, int]) -> None:
    settings = CompressSettings(**options)
    assert {n: settings.memory_of(n, 16) for n in expected} == expected


def test_from_a_configuration_and_through_json() -> None:
    config = CompressConfig(
        compressor=CompressorConfig(
            compressor_type="small_lm", num_memory_tokens=4, compression_rate=8, rates=(2, 32), pooling="mean",
            proportional_memory=True, query_dependent=False, connector_hidden=7,
        ),
        context=CompressContextConfig(max_query_tokens=9, max_windows=3),
    )  # fmt: skip
    settings = CompressSettings.from_config(config)
    assert settings == CompressSettings("small_lm", 8, 4, 8, (2, 32), True, "mean", False, 9, 3, 7, True)
    assert CompressSettings.from_json({**json.loads(json.dumps(settings.to_json())), "later": 1}) == settings


def test_a_rate_that_was_not_trained_is_refused() -> None:
    settings = CompressSettings(rates=(4,))
    settings.check_rate(4)
    with pytest.raises(ConfigError, match="trained for 16, 4"):
        settings.check_rate(8)
