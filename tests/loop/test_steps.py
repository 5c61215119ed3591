"""What an optimizer step is: the same one however its examples are cut into micro-batches and spread over ranks."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ragtrain import loop
from ragtrain.errors import ConfigError, DataError, RagtrainError
from ragtrain.losses import LossOutput


def reference(toy, model, *, steps: int, rate: float = 0.05, clip: float = 1.0, warmup: int = 1):
    """Plain torch: whole batches of 8, sum of losses over sum of weights, transformers' schedule."""
    source = toy.Source(micro=8)
    groups = [
        {"params": [p], "lr": g.learning_rate, "weight_decay": 0.01 if p.ndim > 1 else 0.0}
        for g in toy.groups(model, rate)
        for p in g.parameters
    ]
    optimizer = torch.optim.AdamW(groups, eps=1e-8)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    norms, losses = [], []
    for number in range(steps):
        indices = source.plan(number // 3)[number % 3]
        batch = source.collate(indices, 0)
        value = (batch.weights * (model(batch.x) - batch.y) ** 2).sum() / batch.weights.sum()
        optimizer.zero_grad()
        value.backward()
        losses.append(value.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        optimizer.step()
        scheduler.step()
    return losses, norms


@pytest.mark.parametrize(("micro", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("kind", ["Line", "Net"])
@pytest.mark.reference
def test_micro_batches_do_not_change_the_step(toy, tmp_path, kind, micro, accumulation):
    make = toy.Line if kind == "Line" else lambda: toy.Net(dropout=0.0)
    expected = make()
    losses, norms = reference(toy, expected, steps=6)
    model = make()
    training = toy.settings(tmp_path / "run", gradient_accumulation_steps=accumulation)
    done = list(loop.steps(model, toy.loss, toy.Source(micro=micro), groups=toy.groups(model), training=training))
    assert [s.index for s in done] == [1, 2, 3, 4, 5, 6]
    assert [s.loss for s in done] == pytest.approx(losses, rel=1e-6)
    assert [s.grad_norm for s in done] == pytest.approx(norms, rel=1e-6)
    assert [s.examples for s in done] == [8] * 6
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6, msg=name)


def test_a_mean_of_means_would_be_noticed(toy, tmp_path):
    """The weights are ragged enough for the wrong normalisation to differ by far more than the tolerance."""
    source = toy.Source(micro=4)
    first, second = (source.collate(i, 0) for i in source.plan(0)[:2])
    model = toy.Line()

    def mean(batch):
        return ((batch.weights * (model(batch.x) - batch.y) ** 2).sum() / batch.weight).item()

    training = toy.settings(tmp_path / "run", max_steps=1)
    (step,) = loop.steps(model, toy.loss, source, groups=toy.groups(model), training=training)
    model = toy.Line()
    assert abs(step.loss - (mean(first) + mean(second)) / 2) > 1e-2


@pytest.mark.parametrize(("n", "launcher"), [(24, "torchrun"), (20, "start"), (13, "start")])
def test_two_processes_are_one(toy, tmp_path, start, request, n, launcher):
    """Also where the last step of an epoch has fewer micro-batches than ranks (n = 13: one for two ranks)."""
    config = {"max_steps": 8, "save_steps": None}
    one = start(out=tmp_path / "one", n=n, dropout=0.0, config={**config, "gradient_accumulation_steps": 2})
    launch = request.getfixturevalue(launcher)
    two = launch(2, out=tmp_path / "two", n=n, dropout=0.0, config={**config, "gradient_accumulation_steps": 1})
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(rows[0]) == len(rows[1]) == 8
    for a, b in zip(*rows, strict=True):
        assert (a["step"], a["epoch"], a["examples"], a["weight"]) == (
            b["step"],
            b["epoch"],
            b["examples"],
            b["weight"],
        )
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
        assert b["parts"]["per_example"] == pytest.approx(a["parts"]["per_example"], rel=1e-5)
    weights = [torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-5, msg=name)
    # Only the first process logs and writes.
    assert two.stderr.count("step 8/8") == 1


def test_figures_of_a_step(toy, tmp_path):
    model = toy.Net(dropout=0.0)
    training = toy.settings(tmp_path / "run", num_epochs=2, max_steps=None, trackers=("tensorboard",))
    done = list(loop.steps(model, toy.loss, toy.Source(n=20), groups=toy.groups(model), training=training))
    assert len(done) == 6  # 5 micro-batches, 2 a step: 3 steps an epoch, of 8, 8 and 4 examples
    assert [s.examples for s in done] == [8, 8, 4] * 2
    assert [s.epoch for s in done] == pytest.approx([0.4, 0.8, 1.0, 1.4, 1.8, 2.0])
    assert [s.is_last for s in done] == [False] * 5 + [True]
    for step in done:
        groups = step.group_grad_norms
        assert groups["first"] ** 2 + groups["rest"] ** 2 == pytest.approx(step.grad_norm**2, rel=1e-6)
        assert step.learning_rates["first"] == pytest.approx(2 * step.learning_rates["rest"])
        assert step.parts["per_example"] * step.examples == pytest.approx(step.loss * step.weight, rel=1e-6)
    rows = training.run.read_metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1] == done[-1].to_json()
    assert list((tmp_path / "run" / "runs").glob("events.out.tfevents.*"))


def test_tensorboard_has_every_figure(toy, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = toy.Line()
    training = toy.settings(tmp_path / "run", max_steps=3, eval_steps=2, trackers=("tensorboard",))
    done = list(
        loop.steps(
            model, toy.loss, toy.Source(), groups=toy.groups(model), training=training,
            evaluate=lambda _: {"eval_loss": 1.0, "exact_match": 0.25},
        )
    )  # fmt: skip
    events = EventAccumulator(str(training.run.tensorboard))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "train/loss", "train/per_example", "learning_rate/slope", "learning_rate/offset", "grad_norm/all",
        "grad_norm/slope", "grad_norm/offset", "eval/loss", "eval/exact_match",
    } <= tags  # fmt: skip
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3]
    assert events.Scalars("train/loss")[2].value == pytest.approx(done[2].loss, rel=1e-6)
    assert [e.step for e in events.Scalars("eval/loss")] == [2, 3]


def test_weight_decay_on_matrices_only(toy):
    model = toy.Net()
    optimizer = loop.schedule.make_optimizer(toy.groups(model), toy.OptimConfig(weight_decay=0.25))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == 6
    assert all(decay[id(p)] == (0.25 if p.ndim == 2 else 0.0) for p in model.parameters())


def test_frozen_parameters_stay(toy, tmp_path):
    model = toy.Net()
    model.first.requires_grad_(False)
    before = model.first.weight.clone()
    training = toy.settings(tmp_path / "run", max_steps=3)
    done = list(loop.steps(model, toy.loss, toy.Source(), groups=toy.groups(model), training=training))
    assert torch.equal(model.first.weight, before)
    assert done[0].group_grad_norms["first"] == 0.0
    assert done[0].group_grad_norms["rest"] > 0.0


def test_groups_must_cover_the_model_once(toy, tmp_path):
    model = toy.Net()
    training = toy.settings(tmp_path / "run")
    whole = toy.groups(model)
    with pytest.raises(RagtrainError, match=r"second\.weight is trainable and in no parameter group"):
        next(loop.steps(model, toy.loss, toy.Source(), groups=whole[:1], training=training))
    foreign = [*whole, loop.ParamGroup("other", [torch.nn.Parameter(torch.ones(1))], 1.0)]
    with pytest.raises(RagtrainError, match="parameter group other has a parameter that is not the model's"):
        next(loop.steps(model, toy.loss, toy.Source(), groups=foreign, training=training))
    twice = [*whole, loop.ParamGroup("again", [model.second.bias], 1.0)]
    with pytest.raises(RagtrainError, match=r"second\.bias is in two parameter groups: rest and again"):
        next(loop.steps(model, toy.loss, toy.Source(), groups=twice, training=training))


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(toy, tmp_path):
    """fp16 needs a CUDA device (its refusal elsewhere is tested with the schedules); bf16 runs on the CPU."""
    seen = []
    model = toy.Net(dropout=0.0)
    model.first.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    training = toy.settings(tmp_path / "run", mixed_precision="bf16", max_steps=2)
    done = list(loop.steps(model, toy.loss, toy.Source(), groups=toy.groups(model), training=training))
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model(torch.zeros(1, 3)).dtype == torch.float32
    plain = toy.Net(dropout=0.0)
    again = toy.settings(tmp_path / "plain", mixed_precision="no", max_steps=2)
    exact = list(loop.steps(plain, toy.loss, toy.Source(), groups=toy.groups(plain), training=again))
    # bfloat16 has 8 bits of mantissa: it is near, and it is not the same.
    assert done[0].loss == pytest.approx(exact[0].loss, rel=2e-2)
    assert done[0].loss != exact[0].loss
    seen.clear()
    model(torch.zeros(1, 3))
    assert seen == [torch.float32], "Accelerate's autocast stayed on the model"


def test_clipping_reports_the_norm_before(toy, tmp_path):
    norms = []
    for clip in (0.0, 1e-3):
        model = toy.Line()
        optim = {"max_grad_norm": clip, "warmup_steps": 0}
        training = toy.settings(tmp_path / f"run-{clip}", optim, max_steps=1)
        (step,) = loop.steps(model, toy.loss, toy.Source(), groups=toy.groups(model), training=training)
        norms.append(step.grad_norm)
        last = torch.stack([model.a.grad, model.b.grad]).norm().item()
        assert last == pytest.approx(1e-3 if clip else step.grad_norm, rel=1e-4)
    assert norms[0] == norms[1] > 1


def test_a_step_without_weight_is_an_error(toy, tmp_path):
    source = toy.Source()
    source.weights.zero_()
    model = toy.Line()
    training = toy.settings(tmp_path / "run")
    with pytest.raises(DataError, match="no weight"):
        next(loop.steps(model, toy.loss, source, groups=toy.groups(model), training=training))


def test_the_loss_must_have_the_batch_weight(toy, tmp_path):
    def wrong(model, batch):
        right = toy.loss(model, batch)
        return LossOutput(right.total, right.weight + 1)

    model = toy.Line()
    training = toy.settings(tmp_path / "run")
    with pytest.raises(RagtrainError, match="its batch said"):
        next(loop.steps(model, wrong, toy.Source(), groups=toy.groups(model), training=training))


def test_an_empty_plan_is_an_error(toy, tmp_path):
    model = toy.Line()
    training = toy.settings(tmp_path / "run")
    with pytest.raises(DataError, match="nothing to train on"):
        next(loop.steps(model, toy.loss, toy.Source(n=0), groups=toy.groups(model), training=training))


def test_evaluation_sees_the_model_in_eval_mode_and_leaves_no_trace(toy, tmp_path):
    finals = []
    for every in (None, 1):
        torch.manual_seed(0)
        model = toy.Net(dropout=0.5)
        modes = []

        def evaluate(bare, modes=modes, model=model):
            assert bare is model
            assert not torch.is_grad_enabled()
            modes.append(bare.dropout.training)
            torch.rand(7)
            return {"eval_loss": 1.0}

        training = toy.settings(tmp_path / f"run-{every}", eval_steps=every)
        done = list(
            loop.steps(model, toy.loss, toy.Source(), groups=toy.groups(model), training=training, evaluate=evaluate)
        )
        assert modes == [False] * (6 if every else 1)
        assert model.dropout.training
        assert [s.evaluation is not None for s in done] == [bool(every)] * 5 + [True]
        finals.append(load_file(training.run.checkpoints / "latest" / "model.safetensors"))
    assert finals[0].keys() == finals[1].keys()
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_best_metric_must_exist(toy, tmp_path):
    model = toy.Line()
    training = toy.settings(tmp_path / "run", best_metric="exact_mach", eval_steps=1)
    with pytest.raises(ConfigError, match="exact_mach") as caught:
        list(
            loop.steps(
                model, toy.loss, toy.Source(), groups=toy.groups(model), training=training,
                evaluate=lambda _: {"exact_match": 0.5, "f1": 0.6},
            )
        )  # fmt: skip
    assert caught.value.hint == "it has exact_match, f1"


def test_unknown_tracker(toy, tmp_path):
    model = toy.Line()
    training = toy.settings(tmp_path / "run", trackers=("tensorbord",))
    with pytest.raises(ConfigError, match="there is no tracker 'tensorbord'"):
        next(loop.steps(model, toy.loss, toy.Source(), groups=toy.groups(model), training=training))
    assert not training.run.metrics_file.exists()
