"""What processes exchange, with another process that is an echo of this one; real ones are in test_steps and test_oom."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ragtrain.loop import exchange

TWO = SimpleNamespace(num_processes=2, device=torch.device("cpu"))


@pytest.fixture
def echo(monkeypatch):
    """The sum over two processes that have the same is twice what one has; the messages are kept."""
    sent = []

    def all_reduce(tensor):
        assert tensor.is_contiguous()
        sent.append((tensor.dtype, tensor.numel()))
        tensor.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return sent


def parameter(*shape, dtype=torch.float32, grad=True, transposed=False):
    value = torch.nn.Parameter(torch.zeros(*shape, dtype=dtype))
    if grad:
        value.grad = torch.randn(*shape[::-1]).to(dtype).T if transposed else torch.randn(*shape).to(dtype)
    return value


def test_gradients_are_summed_in_buckets(echo, monkeypatch):
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 100)
    parameters = [
        parameter(3), parameter(2, 5), parameter(40), parameter(30, 2, transposed=True),
        parameter(4, dtype=torch.bfloat16), parameter(4), parameter(7, grad=False), parameter(6, grad=False),
    ]  # fmt: skip
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    used = [True] * 6 + [True, False]  # of the two without a gradient here, the other process used the first
    exchange.exchange_gradients(TWO, parameters, used)
    f32, bf16 = torch.float32, torch.bfloat16
    assert echo == [(f32, 13), (f32, 40), (f32, 60), (bf16, 4), (f32, 4 + 7)]
    for p, grad in zip(parameters[:6], before, strict=False):
        assert torch.equal(p.grad, 2 * grad)
    assert torch.equal(parameters[6].grad, torch.zeros(7))
    assert parameters[7].grad is None


def test_one_process_keeps_its_gradients(echo):
    one = parameter(3)
    before = one.grad
    exchange.exchange_gradients(SimpleNamespace(num_processes=1), [one], [True])
    assert one.grad is before
    assert echo == []


@pytest.mark.parametrize(
    ("theirs", "full_with", "expected"),
    [
        ((["a", "b"], None), None, (0, 0, ["a", "b"])),
        ((["b", "c"], None), None, (0, 0, ["a", "b", "c"])),
        (([], 4), None, (1, 0, None)),
        (([], 1), 4, (2, 1, None)),
        (([], None), None, (0, 0, ["a", "b"])),  # a process without a micro-batch
    ],
)
def test_agreement(monkeypatch, theirs, full_with, expected):
    """The other process's message is made with the same code, and the sum is taken here."""
    names, their_full = theirs
    parameters = [parameter(2), parameter(2, grad=False)]
    messages = []

    def first(accelerator, values):
        messages.append(torch.tensor([float(v) for v in values], dtype=torch.float64))
        return messages[-1]

    monkeypatch.setattr(exchange, "sum_over_ranks", first)
    monkeypatch.setattr(exchange, "gather_object", lambda own: own)
    exchange.agree(TWO, parameters[::-1], names, their_full)
    monkeypatch.setattr(exchange, "sum_over_ranks", lambda a, values: first(a, values) + messages[0])
    monkeypatch.setattr(exchange, "gather_object", lambda own: [*own, *names])
    agreed = exchange.agree(TWO, parameters, ["a", "b"], full_with)
    full, at_one, shared = expected
    assert (agreed.full, agreed.full_at_one) == (full, at_one)
    assert list(agreed.used) == [True, True]
    if shared is not None:
        assert list(agreed.names) == shared


def test_differences_between_processes_are_named(monkeypatch):
    own = {"models": [1, 2], "training examples": "x"}
    monkeypatch.setattr(exchange, "gather_object", lambda values: [*values, {**own, "training examples": "y"}])
    with pytest.raises(exchange.RagtrainError, match=r"have different training examples$"):
        exchange.check_same(own)
    monkeypatch.setattr(exchange, "gather_object", lambda values: [*values, dict(own)])
    exchange.check_same(own)
