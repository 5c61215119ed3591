from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ragtrain import losses
from ragtrain.errors import RagtrainError

EPSILONS = (0.0, 0.1)


def slow(loglik: list[float], scores: list[float]) -> float:
    """-log sum_z p(z|q) p(y|q,z), written as the paper has it."""
    normaliser = sum(math.exp(score) for score in scores)
    return -math.log(sum(math.exp(score) / normaliser * math.exp(ll) for score, ll in zip(scores, loglik, strict=True)))


def random_case(n_docs: int, batch: int = 6) -> tuple[Tensor, Tensor]:
    return -torch.rand(batch, n_docs) * 8, torch.randn(batch, n_docs) * 3


@pytest.mark.parametrize("n_docs", range(1, 9))
def test_equals_the_papers_sum(n_docs: int) -> None:
    loglik, scores = random_case(n_docs)
    expected = [slow(*row) for row in zip(loglik.tolist(), scores.tolist(), strict=True)]
    result = losses.rag_sequence(loglik, scores)
    torch.testing.assert_close(result.nll, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.loss, result.nll, rtol=0, atol=0)
    torch.testing.assert_close(result.prior.sum(1), torch.ones(6))
    torch.testing.assert_close(result.posterior.sum(1), torch.ones(6))


@pytest.mark.parametrize("n_docs", [2, 5, 8])
def test_gradient_of_a_score_is_prior_minus_posterior(n_docs: int) -> None:
    loglik, scores = random_case(n_docs)
    scores.requires_grad_()
    result = losses.rag_sequence(loglik, scores)
    (gradient,) = torch.autograd.grad(result.nll.sum(), scores)
    torch.testing.assert_close(gradient, result.prior - result.posterior, rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() > 0.05


def test_gradient_agrees_with_finite_differences() -> None:
    loglik, scores = random_case(4)
    result = losses.rag_sequence(loglik, scores)
    step = 1e-2
    for doc in range(4):
        moved = torch.zeros_like(scores)
        moved[:, doc] = step
        up, down = (losses.rag_sequence(loglik, scores + sign * moved).nll for sign in (1, -1))
        difference = (up - down) / (2 * step)
        # float32 differences over a step of 0.01: round-off near 1e-5, curvature near 1e-5
        torch.testing.assert_close(difference, (result.prior - result.posterior)[:, doc], rtol=0, atol=2e-4)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_order_of_passages_and_a_constant_do_not_matter(epsilon: float) -> None:
    loglik, scores = random_case(5)
    smooth = -torch.rand(6, 5) * 100

    def loss(order: Tensor, shift: float) -> Tensor:
        smoothing = losses.Smoothing(epsilon, smooth[:, order], 60)
        return losses.rag_sequence(loglik[:, order], scores[:, order] + shift, smoothing=smoothing).loss

    plain = loss(torch.arange(5), 0.0)
    torch.testing.assert_close(loss(torch.tensor([3, 0, 4, 1, 2]), 0.0), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss(torch.arange(5), 7.5), plain, rtol=1e-5, atol=1e-4)


def test_identical_passages_leave_no_trace_of_the_prior() -> None:
    loglik, scores = random_case(1)
    many = losses.rag_sequence(loglik.expand(6, 5), scores.expand(6, 5) + torch.randn(6, 5))
    torch.testing.assert_close(many.nll, -loglik[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(many.prior, many.posterior)


def test_one_passage_is_plain_likelihood() -> None:
    loglik, scores = random_case(1)
    result = losses.rag_sequence(loglik, scores)
    torch.testing.assert_close(result.nll, -loglik[:, 0])
    assert result.prior_entropy.abs().max() == 0


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_missing_passages_count_for_nothing_even_if_they_are_nan(epsilon: float) -> None:
    loglik, scores = random_case(5)
    smooth = -torch.rand(6, 5) * 100
    mask = torch.tensor([True, True, False, True, False])
    kept = losses.rag_sequence(
        loglik[:, mask], scores[:, mask], smoothing=losses.Smoothing(epsilon, smooth[:, mask], 60)
    )
    for tensor in (loglik, smooth, scores):
        tensor[:, ~mask] = math.nan
    loglik.requires_grad_()
    scores.requires_grad_()
    result = losses.rag_sequence(loglik, scores, mask.expand(6, 5), smoothing=losses.Smoothing(epsilon, smooth, 60))
    torch.testing.assert_close(result.loss, kept.loss)
    torch.testing.assert_close(result.prior[:, mask], kept.prior)
    assert (result.prior[:, ~mask] == 0).all()
    assert (result.posterior[:, ~mask] == 0).all()
    gradients = torch.autograd.grad(result.loss.sum(), [loglik, scores])
    for gradient in gradients:
        assert gradient[:, mask].isfinite().all()
        assert (gradient[:, ~mask] == 0).all()


def test_a_question_without_passages_shows_as_nan() -> None:
    loglik, scores = random_case(2)
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[3] = False
    nll = losses.rag_sequence(loglik, scores, mask).nll
    assert nll.isnan().tolist() == [False, False, False, True, False, False]


def test_smoothing_equals_its_definition() -> None:
    loglik, scores = random_case(3)
    smooth = -torch.rand(6, 3) * 100
    result = losses.rag_sequence(loglik, scores, smoothing=losses.Smoothing(0.2, smooth, 50))
    prior = torch.log_softmax(scores, dim=1)
    expected = 0.8 * -torch.logsumexp(loglik + prior, 1) + 0.2 / 50 * -torch.logsumexp(smooth + 50 * prior, 1)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.nll, -torch.logsumexp(loglik + prior, 1))


def test_a_prior_that_does_not_count_gives_no_gradient() -> None:
    loglik, scores = random_case(3)
    scores.requires_grad_()
    counts = torch.tensor([True, False] * 3)
    result = losses.rag_sequence(loglik, scores, prior_counts=counts)
    torch.testing.assert_close(result.nll[~counts], -torch.logsumexp(loglik[~counts], 1))
    (gradient,) = torch.autograd.grad(result.nll.sum(), scores)
    assert (gradient[~counts] == 0).all()
    assert (gradient[counts].abs().sum(1) > 0).all()


def test_scores_of_the_size_of_dprs_are_computed_in_float32() -> None:
    scores = torch.tensor([[80.0, 79.5, 60.0]])
    loglik = torch.tensor([[-3.0, -1.0, -2.0]])
    half = losses.rag_sequence(loglik.bfloat16(), scores.bfloat16())
    assert half.nll.dtype == torch.float32
    assert half.nll.item() == pytest.approx(slow([-3.0, -1.0, -2.0], [80.0, 79.5, 60.0]), rel=1e-5)


def test_entropy() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(losses.entropy(probabilities), torch.tensor([0.0, math.log(2)]))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(RagtrainError, match=r"\(2, 3\).*\(2, 4\)"):
        losses.rag_sequence(torch.zeros(2, 3), torch.zeros(2, 4))
