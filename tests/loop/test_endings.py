"""Signals, numbers that are not finite, full devices, patience, and which checkpoints are kept."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time

import pytest
import torch

from ragtrain import loop
from ragtrain.errors import Interrupted, NumericsError, OutOfMemoryError
from ragtrain.loop import checkpoints
from ragtrain.loop.signals import Signals


def train(toy, out, *, model=None, loss=None, source=None, evaluate=None, **config):
    model = model or toy.Net()
    training = toy.settings(out, **config)
    return loop.steps(
        model, loss or toy.loss, source or toy.Source(), groups=toy.groups(model), training=training, evaluate=evaluate
    )


# ---- signals


def test_handlers_are_restored(toy, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen = [signal.getsignal(signal.SIGTERM) for _ in train(toy, tmp_path / "run")]
    assert before[1] not in seen
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    steps = train(toy, tmp_path / "other")
    next(steps)
    steps.close()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_in_this_process(toy, tmp_path):
    steps = train(toy, tmp_path / "run", save_steps=None)
    assert [next(steps).index for _ in range(3)] == [1, 2, 3]
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM after step 3 of 6") as caught:
        next(steps)
    assert caught.value.exit_code == 143
    assert [step.index for step in train(toy, tmp_path / "run", save_steps=None)] == [4, 5, 6]


def test_a_launcher_repeats_the_terminals_signal(monkeypatch):
    """torchrun hands Ctrl-C on to workers that got it from the terminal: that is one Ctrl-C and not two."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        later = time.monotonic() + 5
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(Interrupted, match="at once") as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.exit_code == 130


# ---- numbers that are not finite


def test_nonfinite_loss_names_the_batch_and_spares_the_checkpoints(start, tmp_path):
    out = tmp_path / "run"
    config = {"max_steps": 6, "save_steps": 1, "gradient_accumulation_steps": 2, "save_total_limit": None}
    ended = start(out=out, bad=17, config=config)
    assert ended.returncode == 4, ended.stderr
    record = json.loads((out / "nonfinite.json").read_text())
    (micro_batch,) = record["micro_batches"]
    assert "q17" in micro_batch["ids"]
    assert len(micro_batch["ids"]) == 4
    assert "q17" in ended.stderr
    assert "nan" in ended.stderr
    saved = checkpoints.listing(out / "checkpoints")
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert len(saved) == len(rows) < 3
    for path in saved.values():
        from safetensors.torch import load_file

        assert all(torch.isfinite(value).all() for value in load_file(path / "model.safetensors").values())


def test_nonfinite_on_one_rank_ends_all(start, tmp_path):
    config = {"max_steps": 6, "gradient_accumulation_steps": 1}
    ended = start(2, out=tmp_path / "run", bad=17, config=config)
    assert ended.returncode != 0
    (micro_batch,) = json.loads((tmp_path / "run" / "nonfinite.json").read_text())["micro_batches"]
    assert "q17" in micro_batch["ids"]
    assert ended.stderr.count("the loss is nan") == 2  # both ranks say so, with the ids
    assert "q17" in ended.stderr


class _Exploding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def test_nonfinite_gradient_of_a_finite_loss(toy, tmp_path):
    def explode(model, batch):
        output = toy.loss(model, batch)
        return type(output)(_Exploding.apply(output.total), output.weight, output.parts)

    model = toy.Line()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(NumericsError, match="gradient norm is"):
        next(train(toy, tmp_path / "run", model=model, loss=explode))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    record = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert sum(len(row["ids"]) for row in record["micro_batches"]) == 8


# ---- a full device


@pytest.mark.parametrize(
    "cause",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_three_flags(toy, tmp_path, cause):
    def full(model, batch):
        raise cause

    config = {"batch_size": 6, "gradient_accumulation_steps": 4, "on_out_of_memory": "stop"}
    with pytest.raises(OutOfMemoryError) as caught:
        next(train(toy, tmp_path / "run", loss=full, source=toy.Source(micro=6), **config))
    hint = caught.value.hint or ""
    assert "--batch-size 3 --gradient-accumulation-steps 8" in hint
    assert "--gradient-checkpointing" in hint
    assert "--mixed-precision bf16" in hint
    assert caught.value.exit_code == 5


def test_other_runtime_errors_stay_what_they_are(toy, tmp_path):
    def broken(model, batch):
        raise RuntimeError("shapes (2, 3) and (4,)")

    with pytest.raises(RuntimeError, match="shapes"):
        next(train(toy, tmp_path / "run", loss=broken))


# ---- patience, best, and what is kept


def test_early_stopping(toy, tmp_path, caplog):
    values = iter([0.3, 0.5, 0.5, 0.4, 0.9, 0.9])
    with caplog.at_level("INFO", "ragtrain"):
        done = list(
            train(
                toy, tmp_path / "run", evaluate=lambda _: {"exact_match": next(values)}, max_steps=20, eval_steps=2,
                best_metric="exact_match", early_stopping_patience=2, save_steps=None,
            )
        )  # fmt: skip
    assert [step.index for step in done if step.is_best] == [2, 4]  # the earliest of equals
    assert done[-1].index == 8
    assert done[-1].is_last
    assert "stopping early: 2 evaluations without a better exact_match" in caplog.text
    assert re.search(r"step 8/20 ", caplog.text), "the last step is logged"
    again = train(
        toy, tmp_path / "run", evaluate=lambda _: {"exact_match": next(values)}, max_steps=20, eval_steps=2,
        best_metric="exact_match", early_stopping_patience=2, save_steps=None,
    )  # fmt: skip
    assert list(again) == [], "a run that was stopped early stays so"


def test_patience_counts_across_a_resume(toy, tmp_path):
    values = iter([0.5, 0.4, 0.3, 0.2])
    options = {
        "max_steps": 20, "eval_steps": 1, "best_metric": "f1", "early_stopping_patience": 2, "save_steps": 1,
    }  # fmt: skip

    def evaluate(model):
        return {"f1": next(values)}

    for step in (first := train(toy, tmp_path / "run", evaluate=evaluate, **options)):
        if step.index == 2:
            first.close()
            break
    rest = list(train(toy, tmp_path / "run", evaluate=evaluate, **options))
    assert [step.index for step in rest] == [3]
    assert rest[0].is_last


def test_a_nan_metric_is_never_the_best(toy, tmp_path):
    values = iter([float("nan"), 2.0, float("nan")])
    done = list(train(toy, tmp_path / "run", evaluate=lambda _: {"eval_loss": next(values)}, max_steps=3, eval_steps=1))
    assert [step.is_best for step in done] == [False, True, False]


@pytest.mark.parametrize(
    ("limit", "values", "expected"),
    [
        (2, [5, 1, 2, 3, 4, 5], [4, 10, 12]),  # the two newest and the best one besides
        (1, [5, 4, 3, 2, 1, 0], [12]),  # the best one is the newest
        (None, [5, 1, 2, 3, 4, 5], [2, 4, 6, 8, 10, 12]),
    ],
)
def test_keep_n_and_the_best(toy, tmp_path, limit, values, expected):
    figures = iter(map(float, values))
    config = {"max_steps": 12, "eval_steps": 2, "save_steps": 2, "save_total_limit": limit}
    done = list(train(toy, tmp_path / "run", evaluate=lambda _: {"eval_loss": next(figures)}, **config))
    folder = tmp_path / "run" / "checkpoints"
    assert list(checkpoints.listing(folder)) == expected
    best = max(step.index for step in done if step.is_best)
    assert str((folder / "best").readlink()) == f"step-{best:06d}"
    assert str((folder / "latest").readlink()) == "step-000012"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_best_is_saved_although_no_save_is_due(toy, tmp_path):
    figures = iter([1.0, 2.0, 3.0])
    config = {"max_steps": 6, "eval_steps": 2, "save_steps": None}
    list(train(toy, tmp_path / "run", evaluate=lambda _: {"eval_loss": next(figures)}, **config))
    assert list(checkpoints.listing(tmp_path / "run" / "checkpoints")) == [2, 6]


def test_load_weights_of_the_best(toy, tmp_path):
    seen = {}
    figures = iter([3.0, 1.0, 2.0])

    def evaluate(model):
        value = next(figures)
        seen[value] = model.second.bias.item()
        return {"eval_loss": value}

    model = toy.Net()
    list(train(toy, tmp_path / "run", model=model, evaluate=evaluate, max_steps=6, eval_steps=2))
    assert model.second.bias.item() == seen[2.0]
    loop.load_weights(model, tmp_path / "run" / "checkpoints" / "best")
    assert model.second.bias.item() == seen[1.0] != seen[2.0]


# ---- the log


def logged_steps(caplog):
    return [int(match[1]) for match in re.finditer(r"step (\d+)/", caplog.text)]


@pytest.mark.parametrize(("every", "expected"), [(4, [1, 4, 8, 10]), (100, [1, 10]), (1, list(range(1, 11)))])
def test_first_and_last_step_are_always_logged(toy, tmp_path, caplog, every, expected):
    with caplog.at_level(logging.INFO, "ragtrain"):
        list(train(toy, tmp_path / "run", max_steps=10, logging_steps=every))
    assert logged_steps(caplog) == expected


def test_a_log_line_says_everything(toy, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "ragtrain"):
        done = list(train(toy, tmp_path / "run", max_steps=3, logging_steps=100))
    line = next(record.getMessage() for record in caplog.records if "step 3/3" in record.getMessage())
    pattern = (
        r"step 3/3  epoch 1\.00  loss (\d+\.\d{4})  per_example \S+  lr first \S+, rest \S+  grad norm \S+  "
        r"\S+ examples/s  ETA 0:00:00"
    )
    match = re.fullmatch(pattern, line)
    assert match, line
    # The loss since the line before: of steps 2 and 3, by weight.
    rest = done[1:]
    smooth = sum(step.loss * step.weight for step in rest) / sum(step.weight for step in rest)
    assert float(match[1]) == pytest.approx(smooth, abs=1e-4)
