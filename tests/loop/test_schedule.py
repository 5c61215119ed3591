from __future__ import annotations

import math
import sys

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


@pytest.mark.parametrize("name", ["paged_adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_optimizers_of_bitsandbytes(name):
    """They take our groups, decay matrices only, and move weights as AdamW does, within eight bits."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra")

    def trained(optim):
        torch.manual_seed(0)
        net = torch.nn.Linear(64, 96)
        group = schedule.ParamGroup("net", list(net.parameters()), 1e-2)
        optimizer = schedule.make_optimizer([group], optim)
        assert [(g["name"], g["weight_decay"]) for g in optimizer.param_groups] == [("net", 0.01), ("net", 0.0)]
        torch.manual_seed(1)
        for _ in range(3):
            for p in net.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        return net.weight.detach()

    ours, theirs = trained(OptimConfig()), trained(OptimConfig(optimizer=name))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6 if name == "paged_adamw" else 1e-2)


def test_without_bitsandbytes_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    group = schedule.ParamGroup("net", list(torch.nn.Linear(2, 2).parameters()), 1e-2)
    with pytest.raises(ConfigError) as error:
        schedule.make_optimizer([group], OptimConfig(optimizer="adamw_8bit"))
    assert "ragtrain[quant]" in error.value.hint
