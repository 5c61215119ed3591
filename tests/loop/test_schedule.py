from __future__ import annotations

import math

import pytest
import torch
import transformers

from ragtrain.config.training import LoopConfig, OptimConfig
from ragtrain.errors import ConfigError
from ragtrain.loop import schedule

THEIRS = {
    "linear": lambda o, w, t: transformers.get_linear_schedule_with_warmup(o, w, t),
    "cosine": lambda o, w, t: transformers.get_cosine_schedule_with_warmup(o, w, t),
    "constant": lambda o, w, t: transformers.get_constant_schedule_with_warmup(o, w),
}


@pytest.mark.reference
@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
def test_factors_are_those_of_transformers(shape, warmup):
    total = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = THEIRS[shape](optimizer, warmup, total)
    for completed in range(total):
        assert schedule.lr_factor(shape, completed, warmup, total) == pytest.approx(
            theirs.get_last_lr()[0], rel=1e-12, abs=1e-12
        )
        optimizer.step()
        theirs.step()


def test_closed_forms():
    assert schedule.lr_factor("linear", 0, 10, 110) == 0.0
    assert schedule.lr_factor("linear", 10, 10, 110) == 1.0
    assert schedule.lr_factor("linear", 60, 10, 110) == 0.5
    assert schedule.lr_factor("linear", 110, 10, 110) == 0.0
    assert schedule.lr_factor("cosine", 35, 10, 110) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert schedule.lr_factor("constant", 109, 10, 110) == 1.0


@pytest.mark.parametrize(
    ("config", "micro_batches", "world", "expected"),
    [
        ({"max_steps": 7, "num_epochs": 100}, 10, 1, 7),
        ({"num_epochs": 3, "gradient_accumulation_steps": 4}, 10, 1, 9),
        ({"num_epochs": 3, "gradient_accumulation_steps": 4}, 10, 2, 6),
        ({"num_epochs": 0.5, "gradient_accumulation_steps": 2}, 10, 1, 3),
        ({"num_epochs": 0.01, "gradient_accumulation_steps": 2}, 10, 1, 1),
        ({"num_epochs": 0.07, "gradient_accumulation_steps": 1}, 100, 1, 7),  # 0.07 * 100 is 7.000000000000001
    ],
)
def test_total_steps(config, micro_batches, world, expected):
    assert schedule.total_steps(LoopConfig(**config), micro_batches, world) == expected


def test_warmup_is_five_percent_where_not_given():
    assert schedule.warmup_steps(OptimConfig(), 1000) == 50
    assert schedule.warmup_steps(OptimConfig(warmup_steps=0), 1000) == 0
    assert schedule.warmup_steps(OptimConfig(warmup_steps=3), 1000) == 3


def test_precision_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert schedule.resolve_precision("auto") == "no"
    assert schedule.resolve_precision("bf16") == "bf16"
    assert schedule.resolve_precision("no") == "no"
    with pytest.raises(ConfigError, match="needs a CUDA device") as caught:
        schedule.resolve_precision("fp16")
    assert "--mixed-precision no" in (caught.value.hint or "")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert schedule.resolve_precision("auto") == expected
