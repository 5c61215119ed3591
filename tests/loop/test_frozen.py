"""Groups that join later, and checkpoints of models that are mostly frozen."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from ragtrain import loop
from ragtrain.config.training import LoopConfig
from ragtrain.errors import CheckpointError, RagtrainError

OPTIM = {"warmup_steps": 0, "max_grad_norm": 0.5, "weight_decay": 0.2}


def groups(model, frozen_steps=3, rate=0.05):
    return [
        loop.ParamGroup("first", list(model.first.parameters()), rate, frozen_steps),
        loop.ParamGroup("rest", [*model.second.parameters(), *model.unused.parameters()], rate),
    ]


def train(toy, out, *, dropout=0.0, frozen_steps=3, optim=OPTIM, **config):
    model = toy.Net(dropout)
    training = toy.settings(out, optim, **config)
    return loop.steps(model, toy.loss, toy.Source(), groups=groups(model, frozen_steps), training=training), model


def slow_twin(toy, frozen_steps, steps):
    """Plain torch: two optimizers, of which the second begins later, and clipping over what takes part."""
    model, source = toy.Net(0.0), toy.Source(micro=8)
    decay = {"lr": 0.05, "eps": 1e-8}
    late, early = (
        torch.optim.AdamW(
            [
                {"params": [p for p in part if p.ndim > 1], "weight_decay": 0.2},
                {"params": [p for p in part if p.ndim < 2], "weight_decay": 0.0},
            ],
            **decay,
        )
        for part in (list(model.first.parameters()), [*model.second.parameters(), *model.unused.parameters()])
    )
    norms = []
    for number in range(steps):
        batch = source.collate(source.plan(number // 3)[number % 3], 0)
        model.zero_grad()
        ((batch.weights * (model(batch.x) - batch.y) ** 2).sum() / batch.weights.sum()).backward()
        own = torch.nn.utils.get_total_norm([p.grad for p in model.first.parameters()]).item()
        taking_part = [early] if number < frozen_steps else [early, late]
        parameters = [p for optimizer in taking_part for group in optimizer.param_groups for p in group["params"]]
        norms.append((torch.nn.utils.clip_grad_norm_(parameters, 0.5).item(), own))
        for optimizer in taking_part:
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (steps - number) / steps
            optimizer.step()
    return model, norms


@pytest.mark.reference
def test_a_frozen_group_takes_no_part(toy, tmp_path):
    expected, norms = slow_twin(toy, 3, 6)
    steps, model = train(toy, tmp_path / "run")
    done = list(steps)
    for step, (norm, own) in zip(done, norms, strict=True):
        assert step.grad_norm == pytest.approx(norm, rel=1e-6)
        assert step.group_grad_norms["first"] == pytest.approx(own, rel=1e-6)
    assert [step.learning_rates["first"] for step in done][:3] == [0.0] * 3
    assert [step.learning_rates["rest"] for step in done] == pytest.approx([0.05 * (6 - i) / 6 for i in range(6)])
    assert done[3].learning_rates["first"] == done[3].learning_rates["rest"]
    assert done[3].grad_norm == pytest.approx(math.hypot(*done[3].group_grad_norms.values()))
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_it_is_not_touched_and_has_no_optimizer_state(toy, tmp_path):
    before = toy.Net(0.0).first.weight.clone()
    steps, model = train(toy, tmp_path / "run", max_steps=6, save_steps=1, save_total_limit=None)
    unchanged = [torch.equal(model.first.weight, before) for _ in steps]
    assert unchanged == [True, True, True, False, False, False]
    counts = []
    for number in (3, 5):
        path = tmp_path / f"run/checkpoints/step-{number:06d}/training.pt"
        state = torch.load(path, weights_only=True)["optimizer"]["state"]
        counts.append(sorted(int(each["step"]) for each in state.values()))
    assert counts == [[3, 3], [2, 2, 5, 5]]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_resumed_it_is_the_same_run(toy, tmp_path, stop_after):
    whole, expected = train(toy, tmp_path / "whole", dropout=0.4, save_steps=1)
    list(whole)
    first, _ = train(toy, tmp_path / "run", dropout=0.4, save_steps=1)
    for _ in range(stop_after):
        next(first)
    first.close()
    rest, model = train(toy, tmp_path / "run", dropout=0.4, save_steps=1)
    assert [step.index for step in rest] == list(range(stop_after + 1, 7))
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_overflow_in_a_frozen_group_skips_no_step(toy, tmp_path):
    """The gradients of the first layer are infinite under a scaler, and the second learns."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    accelerator = loop.make_accelerator(LoopConfig(mixed_precision="no"))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = toy.Net(0.0)
    model.first.register_forward_hook(lambda module, args, output: Overflow.apply(output))
    training = toy.settings(tmp_path / "run", OPTIM, max_steps=2)
    done = list(
        loop.steps(model, toy.loss, toy.Source(), groups=groups(model, 2), training=training, accelerator=accelerator)
    )
    assert [step.index for step in done] == [1, 2]
    assert accelerator.scaler.get_scale() == 1024.0
    assert all(math.isfinite(step.grad_norm) and step.grad_norm > 0 for step in done)
    assert not math.isfinite(done[0].group_grad_norms["first"])


def test_norms_under_a_scaler_are_unscaled(toy, tmp_path):
    norms = []
    for scale in (None, 512.0):
        accelerator = loop.make_accelerator(LoopConfig(mixed_precision="no"))
        if scale:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        model = toy.Net(0.0)
        training = toy.settings(tmp_path / f"run-{scale}", OPTIM, max_steps=1)
        (step,) = loop.steps(
            model, toy.loss, toy.Source(), groups=groups(model, 2), training=training, accelerator=accelerator
        )
        norms.append(step.group_grad_norms)
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_something_must_learn_from_the_first_step(toy, tmp_path):
    model = toy.Net()
    every = [loop.ParamGroup(group.name, group.parameters, 0.1, 2) for group in groups(model)]
    with pytest.raises(RagtrainError, match="in the first steps nothing learns"):
        next(loop.steps(model, toy.loss, toy.Source(), groups=every, training=toy.settings(tmp_path / "run")))


# ---- only what is trained is saved


def half_frozen(toy, out, *, shift=0.0, **config):
    model = toy.Net(0.4)
    with torch.no_grad():
        model.first.weight += shift
    model.first.requires_grad_(False)
    training = toy.settings(out, **config)
    return loop.steps(model, toy.loss, toy.Source(), groups=toy.groups(model), training=training), model


def test_a_checkpoint_holds_what_is_trained_and_resumes_exactly(toy, tmp_path):
    whole, expected = half_frozen(toy, tmp_path / "whole")
    list(whole)
    first, _ = half_frozen(toy, tmp_path / "run")
    for _ in range(3):
        next(first)
    first.close()
    saved = load_file(tmp_path / "run/checkpoints/step-000002/model.safetensors")
    assert set(saved) == {"second.weight", "second.bias", "unused.weight", "unused.bias"}
    rest, model = half_frozen(toy, tmp_path / "run")
    assert [step.index for step in rest] == [3, 4, 5, 6]
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_another_base_is_refused(toy, tmp_path):
    first, _ = half_frozen(toy, tmp_path / "run")
    list(first)
    with pytest.raises(CheckpointError, match="trained on another base: the 2 frozen weights"):
        next(half_frozen(toy, tmp_path / "run", shift=0.01, max_steps=9)[0])
