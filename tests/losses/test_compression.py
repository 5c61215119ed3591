from __future__ import annotations

import math

import pytest
import torch

from ragtrain import losses
from ragtrain.errors import RagtrainError


def slow_divergence(logits: list[float], teacher: list[float], temperature: float) -> float:
    """The divergence of one token, entry by entry."""
    p = [math.exp(value / temperature) for value in logits]
    q = [math.exp(value / temperature) for value in teacher]
    p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
    return temperature**2 * sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_equals_its_definition(temperature: float) -> None:
    logits, teacher = torch.randn(5, 7), torch.randn(5, 7) * 2
    result = losses.token_divergence(logits, teacher, temperature=temperature)
    expected = [slow_divergence(*pair, temperature) for pair in zip(logits.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_divergence_vanishes_where_both_are_the_same_and_teaches_the_student_only() -> None:
    logits, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    assert losses.token_divergence(teacher, teacher).abs().max() < 1e-6
    losses.token_divergence(logits, teacher).sum().backward()
    assert teacher.grad is None
    # The gradient of the cross-entropy with soft targets.
    torch.testing.assert_close(logits.grad, logits.softmax(-1) - teacher.softmax(-1), atol=1e-6, rtol=1e-5)


def test_divergence_of_half_precision_is_computed_in_float32() -> None:
    logits, teacher = torch.randn(2, 50).bfloat16(), torch.randn(2, 50).bfloat16()
    result = losses.token_divergence(logits, teacher)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, losses.token_divergence(logits.float(), teacher.float()))


@pytest.mark.parametrize(
    ("shapes", "temperature"), [(((2, 3), (3, 2)), 1.0), (((2,), (2,)), 1.0), (((2, 3), (2, 3)), 0.0)]
)
def test_divergence_refuses_what_it_cannot_compare(shapes: tuple[tuple[int, ...], ...], temperature: float) -> None:
    with pytest.raises(RagtrainError, match="expected"):
        losses.token_divergence(*(torch.zeros(shape) for shape in shapes), temperature=temperature)


def test_squared_error_equals_its_definition_and_leaves_out_what_has_no_target() -> None:
    scores = torch.tensor([1.0, -2.0, math.nan, 0.5], requires_grad=True)
    targets = torch.tensor([3.0, -2.0, math.nan, math.nan])
    result = losses.score_squared_error(scores, targets)
    expected = [
        (s - t) ** 2 if not math.isnan(t) else 0.0 for s, t in zip(scores.tolist(), targets.tolist(), strict=True)
    ]
    assert result.tolist() == expected
    result.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [-4.0, 0.0, 0.0, 0.0]


def test_squared_error_refuses_other_shapes() -> None:
    with pytest.raises(RagtrainError, match="expected the same"):
        losses.score_squared_error(torch.zeros(2), torch.zeros(3))
