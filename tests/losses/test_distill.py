from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ragtrain import losses
from ragtrain.errors import RagtrainError

TEMPERATURES = (0.1, 1.0, 5.0)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    total = sum(math.exp(value - top) for value in values)
    return [math.exp(value - top) / total for value in values]


def slow_pdist(loglik: list[float], scores: list[float], temperature: float) -> float:
    """KL(target || prior), written as Atlas has it."""
    target, prior = softmax([value / temperature for value in loglik]), softmax(scores)
    return sum(t * math.log(t / p) for t, p in zip(target, prior, strict=True) if t > 0)


def slow_emdr(loglik: list[float], scores: list[float]) -> float:
    """-log sum_z p(z|q) SG[p(y|q,z)], written as EMDR² has it."""
    return -math.log(sum(p * math.exp(value) for p, value in zip(softmax(scores), loglik, strict=True)))


def random_case(n_docs: int, batch: int = 6) -> tuple[Tensor, Tensor]:
    return -torch.rand(batch, n_docs) * 8, torch.randn(batch, n_docs) * 3


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("n_docs", [1, 2, 5, 8])
def test_pdist_equals_its_definition(n_docs: int, temperature: float) -> None:
    loglik, scores = random_case(n_docs)
    rows = zip(loglik.tolist(), scores.tolist(), strict=True)
    expected = [slow_pdist(*row, temperature) for row in rows]
    ours = losses.pdist(loglik, scores, temperature=temperature)
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_docs", [1, 2, 5, 8])
def test_emdr_equals_its_definition(n_docs: int) -> None:
    loglik, scores = random_case(n_docs)
    expected = [slow_emdr(*row) for row in zip(loglik.tolist(), scores.tolist(), strict=True)]
    torch.testing.assert_close(losses.emdr(loglik, scores), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.reference
def test_pdist_is_torchs_kl_divergence_and_atlas_mean_of_it_over_passages() -> None:
    loglik, scores = random_case(5)
    prior, target = torch.log_softmax(scores, 1), torch.softmax(loglik / 0.5, 1)
    ours = losses.pdist(loglik, scores, temperature=0.5)
    torch.testing.assert_close(ours.mean(), torch.nn.KLDivLoss(reduction="batchmean")(prior, target))
    with pytest.warns(UserWarning, match="batchmean"):
        atlas = torch.nn.KLDivLoss()(prior, target)
    torch.testing.assert_close(ours.mean() / 5, atlas)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_of_pdist_is_prior_minus_target_and_the_generator_gets_none(temperature: float) -> None:
    loglik, scores = random_case(5)
    loglik.requires_grad_()
    scores.requires_grad_()
    loss = losses.pdist(loglik, scores, temperature=temperature).sum()
    of_loglik, of_scores = torch.autograd.grad(loss, [loglik, scores], allow_unused=True)
    assert of_loglik is None
    expected = torch.softmax(scores, 1) - torch.softmax(loglik / temperature, 1)
    torch.testing.assert_close(of_scores, expected.detach(), rtol=1e-5, atol=1e-6)
    assert of_scores.abs().max() > 0.05


def test_gradient_of_emdr_is_that_of_rag_sequence_and_the_generator_gets_none() -> None:
    loglik, scores = random_case(5)
    loglik.requires_grad_()
    scores.requires_grad_()
    sequence = losses.rag_sequence(loglik, scores)
    loss = losses.emdr(loglik, scores)
    torch.testing.assert_close(loss, sequence.nll)
    of_loglik, of_scores = torch.autograd.grad(loss.sum(), [loglik, scores], allow_unused=True)
    assert of_loglik is None
    (expected,) = torch.autograd.grad(sequence.nll.sum(), scores)
    torch.testing.assert_close(of_scores, expected)
    assert of_scores.abs().max() > 0.05


OBJECTIVES = {"pdist": losses.pdist, "emdr": losses.emdr}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_order_of_passages_and_a_constant_do_not_matter(name: str) -> None:
    objective = OBJECTIVES[name]
    loglik, scores = random_case(5)
    plain = objective(loglik, scores)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(objective(loglik[:, order], scores[:, order]), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(objective(loglik, scores + 7.5), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_missing_passages_count_for_nothing_even_if_they_are_nan(name: str) -> None:
    objective = OBJECTIVES[name]
    loglik, scores = random_case(5)
    mask = torch.tensor([True, True, False, True, False])
    kept = objective(loglik[:, mask], scores[:, mask])
    loglik[:, ~mask] = scores[:, ~mask] = math.nan
    scores.requires_grad_()
    loss = objective(loglik, scores, mask.expand(6, 5))
    torch.testing.assert_close(loss, kept)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert gradient.isfinite().all()
    assert (gradient[:, ~mask] == 0).all()
    assert (gradient[:, mask].abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_question_without_passages_shows_as_nan(name: str) -> None:
    loglik, scores = random_case(2)
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[3] = False
    assert OBJECTIVES[name](loglik, scores, mask).isnan().tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_passage_teaches_nothing(name: str) -> None:
    loglik, scores = random_case(1)
    scores.requires_grad_()
    loss = OBJECTIVES[name](loglik, scores)
    torch.testing.assert_close(loss, torch.zeros(6) if name == "pdist" else -loglik[:, 0])
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_is_computed_in_float32(name: str) -> None:
    loglik, scores = (
        part.bfloat16() for part in (torch.tensor([[-3.0, -1.0, -2.0]]), torch.tensor([[80.0, 79.5, 60]]))
    )
    loss = OBJECTIVES[name](loglik, scores)
    assert loss.dtype == torch.float32
    row = [-3.0, -1.0, -2.0], [80.0, 79.5, 60.0]
    expected = slow_pdist(*row, 1.0) if name == "pdist" else slow_emdr(*row)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_likelihood_of_zero_is_no_target() -> None:
    loglik, scores = random_case(3, batch=1)
    loglik[0, 1] = -math.inf
    assert losses.pdist(loglik, scores).isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shapes_that_differ_are_refused(name: str) -> None:
    with pytest.raises(RagtrainError, match=r"\(2, 3\).*\(2, 4\)"):
        OBJECTIVES[name](torch.zeros(2, 3), torch.zeros(2, 4))


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(RagtrainError, match="positive"):
        losses.pdist(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0)
