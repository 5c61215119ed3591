"""Overflows of the fp16 gradient scaler.

fp16 autocast needs a CUDA device. What the loop does about the scaler does not: here a scaler of the CPU stands where
Accelerate puts its own, and the gradients are made infinite by hand.
"""

from __future__ import annotations

import json

import pytest
import torch

from ragtrain import loop
from ragtrain.config.training import LoopConfig
from ragtrain.errors import NumericsError


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def with_scaler() -> torch.nn.Module:
    accelerator = loop.make_accelerator(LoopConfig(mixed_precision="no"))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return accelerator


def train(toy, out, overflow_in, **config):
    """Train with gradients that overflow in the given portions, counted over both micro-batches of a step."""
    model, accelerator = toy.Net(dropout=0.0), with_scaler()
    calls, seen = [], []

    def loss(model, batch):
        calls.append(batch.ids)
        output = toy.loss(model, batch)
        portion = (len(calls) - 1) // 2
        if portion not in overflow_in:
            seen.append(batch.ids)
            return output
        return type(output)(_Overflow.apply(output.total), output.weight, output.parts)

    training = toy.settings(out, optim={"warmup_steps": 0}, **config)
    steps = loop.steps(model, loss, toy.Source(), groups=toy.groups(model), training=training, accelerator=accelerator)
    return steps, model, accelerator, calls


def test_a_skipped_step_advances_the_data_and_nothing_else(toy, tmp_path):
    steps, _, accelerator, calls = train(toy, tmp_path / "run", {2, 3})
    done = list(steps)
    assert [step.index for step in done] == [1, 2, 3, 4, 5, 6]
    assert len(calls) == 2 * 8
    rates = [step.learning_rates["first"] for step in done]
    assert rates == pytest.approx([0.05 * (6 - i) / 6 for i in range(6)])
    assert accelerator.scaler.get_scale() == 1024.0 / 4
    assert all(torch.isfinite(torch.tensor([step.loss, step.grad_norm])).all() for step in done)
    # The third step is done with the fifth portion: its epoch says so.
    assert done[2].epoch == pytest.approx(5 / 3)


def test_the_norm_is_that_of_unscaled_gradients(toy, tmp_path):
    steps, *_ = train(toy, tmp_path / "scaled", set())
    model = toy.Net(dropout=0.0)
    training = toy.settings(tmp_path / "plain", optim={"warmup_steps": 0})
    plain = list(loop.steps(model, toy.loss, toy.Source(), groups=toy.groups(model), training=training))
    for a, b in zip(list(steps), plain, strict=True):
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)


def test_scale_and_place_are_resumed(toy, tmp_path):
    """Stopped after a step that came after an overflow, the run goes on with the scale and the place it had."""
    whole, model, _, _ = train(toy, tmp_path / "whole", {1})
    list(whole)
    first, _, _, _ = train(toy, tmp_path / "run", {1})
    assert [next(first).index for _ in range(3)] == [1, 2, 3]  # portions 0, 2, 3; saved after step 2
    first.close()
    state = json.loads((tmp_path / "run/checkpoints/latest/state.json").read_text())["state"]
    assert (state["step"], state["epoch"], state["position"]) == (2, 1, 0)
    rest, again, accelerator, _ = train(toy, tmp_path / "run", set())
    assert [step.index for step in rest] == [3, 4, 5, 6]
    assert accelerator.scaler.get_scale() == 512.0
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_overflows_without_end_are_an_error(toy, tmp_path):
    steps, model, _, _ = train(toy, tmp_path / "run", set(range(3, 100)))
    with pytest.raises(NumericsError, match="25 fp16 overflows in a row after step 3") as caught:
        list(steps)
    assert "bf16" in (caught.value.hint or "")
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_on_a_gpu(toy, tmp_path, precision):
    model = toy.Net(dropout=0.0)
    training = toy.settings(tmp_path / "run", mixed_precision=precision, max_steps=20)
    done = list(loop.steps(model, toy.loss, toy.Source(), groups=toy.groups(model), training=training))
    assert [step.index for step in done] == list(range(1, 21))
    assert done[-1].loss < done[0].loss
    content = torch.load(training.run.checkpoints / "latest" / "training.pt", weights_only=True)
    assert bool(content["scaler"]) == (precision == "fp16")
