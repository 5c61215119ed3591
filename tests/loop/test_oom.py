"""A full device: the step is done again in smaller micro-batches and is the same step."""

from __future__ import annotations

import json
import logging
import weakref

import pytest
import torch

from ragtrain import loop
from ragtrain.errors import OutOfMemoryError, RagtrainError
from ragtrain.loop import oom


def train(toy, out, loss, *, dropout=0.0, source=None, indivisible="", model=None, **config):
    model = model or toy.Net(dropout)
    training = toy.settings(out, **{"batch_size": 4, **config})
    training = loop.Training(training.config, training.optim, training.run, indivisible=indivisible)
    return loop.steps(model, loss, source or toy.Source(), groups=toy.groups(model), training=training), model


@pytest.mark.parametrize(("n", "halvings"), [(8, 0), (8, 1), (7, 1), (7, 2), (5, 2), (3, 3), (1, 4)])
def test_pieces_hold_the_same_examples(n, halvings):
    pieces = oom.cut(list(range(n)), halvings)
    assert [index for piece in pieces for index in piece] == list(range(n))
    assert max(map(len, pieces)) == -(-n // min(2**halvings, n))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@pytest.mark.parametrize("call", [0, 1, 6])
@pytest.mark.parametrize(("size", "where"), [(3, "forward"), (1, "forward"), (2, "backward")])
def test_the_gradient_is_that_of_the_undisturbed_step(toy, tmp_path, size, where, call):
    """The device is full in the first micro-batch, in the second of a step, and some steps later."""
    runs = []
    for name, loss in (("calm", toy.loss), ("full", toy.full_above(size, where, call=call))):
        steps, model = train(toy, tmp_path / name, loss)
        done, gradients = [], []
        for step in steps:
            done.append(step)
            gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
        runs.append((done, gradients, list(model.parameters())))
    (calm, calm_gradients, calm_weights), (full, full_gradients, full_weights) = runs
    for a, b in zip(calm, full, strict=True):
        assert (a.examples, a.weight, a.epoch) == (b.examples, b.weight, b.epoch)
        assert b.loss == pytest.approx(a.loss, rel=1e-6)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-6)
        assert b.parts["per_example"] == pytest.approx(a.parts["per_example"], rel=1e-6)
    for before, after in zip(calm_gradients, full_gradients, strict=True):
        for p, q in zip(before, after, strict=True):
            assert (p is None) == (q is None)
            if p is not None:
                torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-6)
    for p, q in zip(calm_weights, full_weights, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-6)
    assert [step.micro_batch_size for step in calm] == [4] * 6
    sizes = [step.micro_batch_size for step in full]
    assert sizes == [4] * (call // 2) + [2 if size > 1 else 1] * (6 - call // 2)


def test_random_states_are_those_of_the_steps_beginning(toy, tmp_path):
    """With dropout the repeated steps are, bit for bit, those of a run that had small micro-batches from the start."""
    full, model = train(toy, tmp_path / "full", toy.full_above(2, call=1), dropout=0.4)
    list(full)
    small, expected = train(
        toy, tmp_path / "small", toy.loss, dropout=0.4, source=toy.Source(micro=2), gradient_accumulation_steps=4
    )
    list(small)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_it_says_so_once_and_stays_halved(toy, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ragtrain"):
        steps, _ = train(toy, tmp_path / "run", toy.full_above(2, call=2))
        list(steps)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["step 2: cpu has no memory left; micro-batches of 4 → 2, accumulation 2 → 4; the step is the same"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["micro_batch_size"] for row in rows] == [4, 2, 2, 2, 2, 2]


def test_everything_is_freed_before_the_step_is_repeated(toy, tmp_path):
    alive, seen = [], []

    def loss(model, batch):
        if alive and len(batch.ids) == 2 and not seen:
            seen.append([reference() is not None for reference in alive])
            seen.append([p.grad is not None for p in model.parameters()])
        hidden = torch.tanh(model.first(batch.x))
        output = toy.loss(model, batch)
        if len(batch.ids) > 2:
            alive.append(weakref.ref(hidden))
            if len(alive) == 2:
                raise torch.OutOfMemoryError("full")
        return output

    steps, _ = train(toy, tmp_path / "run", loss)
    next(steps)
    assert seen == [[False, False], [False] * 6]


def test_a_resumed_run_stays_halved(toy, tmp_path):
    whole, expected = train(toy, tmp_path / "whole", toy.full_above(2), dropout=0.4)
    list(whole)
    first, _ = train(toy, tmp_path / "run", toy.full_above(2), dropout=0.4)
    assert [next(first).index for _ in range(3)] == [1, 2, 3]  # saved after step 2
    first.close()
    sizes = []

    def watched(model, batch):
        sizes.append(len(batch.ids))
        return toy.loss(model, batch)

    rest, model = train(toy, tmp_path / "run", watched, dropout=0.4)
    assert [step.index for step in rest] == [3, 4, 5, 6]
    assert sizes == [2] * 16
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_run_that_stopped_may_go_on_halving(toy, tmp_path):
    """How a step is cut is not what a run is: the same folder is continued."""
    first, _ = train(toy, tmp_path / "run", toy.full_above(2, call=4), on_out_of_memory="stop")
    with pytest.raises(OutOfMemoryError) as caught:
        list(first)
    assert "--on-out-of-memory halve" in (caught.value.hint or "")
    rest, _ = train(toy, tmp_path / "run", toy.full_above(2))
    assert [step.index for step in rest] == [3, 4, 5, 6]


def test_a_single_example_that_does_not_fit_is_the_end(toy, tmp_path, caplog):
    steps, _ = train(toy, tmp_path / "run", toy.full_above(0))
    with caplog.at_level(logging.WARNING, "ragtrain"), pytest.raises(OutOfMemoryError, match="of 1 example: ") as err:
        next(steps)
    assert "Tried to allocate 2.00 GiB." in err.value.message
    assert "more" not in err.value.message
    assert "--batch-size" not in (err.value.hint or "")
    assert "--gradient-checkpointing" in (err.value.hint or "")
    assert len(caplog.records) == 2


def test_examples_that_depend_on_each_other_are_not_halved(toy, tmp_path):
    calls = []

    def loss(model, batch):
        calls.append(len(batch.ids))
        raise torch.OutOfMemoryError("full")

    steps, _ = train(toy, tmp_path / "run", loss, indivisible="in-batch negatives would be fewer")
    with pytest.raises(OutOfMemoryError, match=r"not halved: in-batch negatives would be fewer") as caught:
        next(steps)
    assert calls == [4]
    assert "--batch-size 2 --gradient-accumulation-steps 4 (another loss" in (caught.value.hint or "")


def test_weights_that_do_not_add_up_are_refused(toy, tmp_path):
    class Uneven(toy.Source):
        def collate(self, indices, epoch):
            batch = super().collate(indices, epoch)
            return batch if len(indices) == 4 else type(batch)(batch.ids, batch.x, batch.y, batch.weights, 1.0)

    steps, _ = train(toy, tmp_path / "run", toy.full_above(2), source=Uneven())
    with pytest.raises(RagtrainError, match=r"cannot be halved: the weights of the parts sum to 4\.0"):
        next(steps)


def test_other_errors_are_not_repeated(toy, tmp_path):
    calls = []

    def broken(model, batch):
        calls.append(1)
        raise RuntimeError("shapes (2, 3) and (4,)")

    steps, _ = train(toy, tmp_path / "run", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        next(steps)
    assert len(calls) == 1


def test_an_allocation_that_really_fails(toy, tmp_path):
    def greedy(model, batch):
        if len(batch.ids) > 1:
            torch.empty(2**52)
        return toy.loss(model, batch)

    steps, _ = train(toy, tmp_path / "run", greedy)
    assert [step.micro_batch_size for step in steps] == [1] * 6


def test_words_of_libraries():
    assert oom.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    assert not oom.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE"))
    assert not oom.is_out_of_memory(ValueError("can't allocate memory"))


# ---- several processes


CONFIG = {"max_steps": 6, "save_steps": None, "batch_size": 4}


@pytest.mark.parametrize(
    ("n", "full"),
    [
        (24, {"size": 2, "where": "forward", "rank": 1, "call": 2}),
        (20, {"size": 1, "where": "backward", "rank": 0}),
        (13, {"size": 2, "where": "backward", "call": 1}),  # one micro-batch for two ranks at an epoch's end
    ],
)
def test_one_process_that_is_full_halves_all(toy, tmp_path, start, n, full):
    calm = start(out=tmp_path / "calm", n=n, dropout=0.0, config={**CONFIG, "gradient_accumulation_steps": 4})
    two = start(
        2, out=tmp_path / "two", n=n, dropout=0.0, full_above=full, config={**CONFIG, "gradient_accumulation_steps": 2}
    )
    assert (calm.returncode, two.returncode) == (0, 0), calm.stderr + two.stderr
    assert two.stderr.count("→") == 2 * (2 if full["size"] == 1 else 1), two.stderr  # the first process says so
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("calm", "two")
    ]
    for a, b in zip(*rows, strict=True):
        assert (a["examples"], a["weight"]) == (b["examples"], b["weight"])
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    assert rows[1][-1]["micro_batch_size"] <= 2
    weights = [torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("calm", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_all_processes_end_where_one_cannot_go_on(tmp_path, start):
    ended = start(2, out=tmp_path / "run", full_above={"size": 0, "rank": 1}, config=CONFIG)
    assert ended.returncode == 5, ended.stderr
    assert "the device of another process is full" in ended.stderr  # rank 0, whose own is not
    assert "Tried to allocate" in ended.stderr


def test_figures_that_only_some_processes_have(tmp_path, start):
    config = {"max_steps": 3, "save_steps": None, "gradient_accumulation_steps": 1}
    done = start(2, out=tmp_path / "run", parts_by_rank=True, config=config)
    assert done.returncode == 0, done.stderr
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        parts = json.loads(line)["parts"]
        assert (parts["of_rank_0"], parts["of_rank_1"]) == (1.0, 2.0)
        assert parts["per_example"] > 0


def test_processes_with_different_data_are_refused(tmp_path, start):
    config = {"max_steps": 3, "save_steps": None, "gradient_accumulation_steps": 1}
    ended = start(2, out=tmp_path / "run", more_by_rank=4, config=config)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("the processes of this run have different training examples") == 2


@pytest.mark.parametrize("divide", ["halve", "stop"])
def test_a_relief_comes_before_halving(toy, tmp_path, caplog, divide):
    """What frees memory without smaller micro-batches is tried first, once; the step is then the undisturbed one."""
    relieved = []

    def relief():
        relieved.append(1)
        return "" if len(relieved) > 1 else "activations are recomputed"

    def loss(model, batch):
        return toy.loss(model, batch) if relieved else toy.full_above(1, "forward")(model, batch)

    calm, calm_model = train(toy, tmp_path / "calm", toy.loss)
    list(calm)
    model = toy.Net(0.0)
    settings = toy.settings(tmp_path / "full", batch_size=4, on_out_of_memory=divide)
    training = loop.Training(settings.config, settings.optim, settings.run, relief=relief)
    with caplog.at_level(logging.WARNING, "ragtrain"):
        done = list(loop.steps(model, loss, toy.Source(), groups=toy.groups(model), training=training))
    assert [step.micro_batch_size for step in done] == [4] * len(done)
    assert len(relieved) == 1
    assert "activations are recomputed" in caplog.text
    for p, q in zip(calm_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("divide", ["halve", "stop"])
def test_a_relief_that_is_used_up(toy, tmp_path, divide):
    """Where it is not enough, micro-batches are halved, or the run stops with the error that names what to change."""
    left = ["activations are recomputed"]
    model = toy.Net(0.0)
    settings = toy.settings(tmp_path, batch_size=4, on_out_of_memory=divide)
    relief = lambda: left.pop() if left else ""  # noqa: E731
    training = loop.Training(settings.config, settings.optim, settings.run, relief=relief)
    steps = loop.steps(model, toy.full_above(2, "forward"), toy.Source(), groups=toy.groups(model), training=training)
    if divide == "stop":
        with pytest.raises(OutOfMemoryError, match="4 examples"):
            list(steps)
    else:
        assert {step.micro_batch_size for step in steps} == {2}
    assert not left
