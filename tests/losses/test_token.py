from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ragtrain import losses
from ragtrain.errors import RagtrainError

LENGTHS = (4, 1, 3, 5)


def slow(token_loglik: list[list[float]], scores: list[float], length: int) -> float:
    """-sum_t log sum_z p(z|q) p(y_t|q,z,y_<t), written as the paper has it."""
    normaliser = sum(math.exp(score) for score in scores)
    prior = [math.exp(score) / normaliser for score in scores]
    return -sum(
        math.log(sum(p * math.exp(passage[t]) for p, passage in zip(prior, token_loglik, strict=True)))
        for t in range(length)
    )


def random_case(n_docs: int, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihoods, 0 at ignored positions, scores, and which positions count."""
    token_mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    token_loglik = -torch.rand(len(lengths), n_docs, max(lengths)) * 8
    return token_loglik.masked_fill(~token_mask[:, None], 0.0), torch.randn(len(lengths), n_docs) * 3, token_mask


@pytest.mark.parametrize("n_docs", range(1, 9))
def test_equals_the_papers_sum(n_docs: int) -> None:
    token_loglik, scores, token_mask = random_case(n_docs)
    result = losses.rag_token(token_loglik, scores, token_mask)
    expected = [slow(*row) for row in zip(token_loglik.tolist(), scores.tolist(), LENGTHS, strict=True)]
    torch.testing.assert_close(result.nll, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.prior.sum(1), torch.ones(4))
    torch.testing.assert_close(result.posterior.sum(1), torch.ones(4))


@pytest.mark.parametrize("n_docs", [2, 5])
def test_gradients_equal_those_of_the_loop(n_docs: int) -> None:
    token_loglik, scores, token_mask = random_case(n_docs)
    leaves = [token_loglik.requires_grad_(), scores.requires_grad_()]
    result = losses.rag_token(token_loglik, scores, token_mask)
    ours = torch.autograd.grad(result.nll.sum(), leaves)
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        prior = torch.softmax(scores[row].double(), dim=0)
        for t in range(length):
            total = total - (prior * token_loglik[row, :, t].double().exp()).sum().log()
    theirs = torch.autograd.grad(total, leaves)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
    tokens = torch.tensor(LENGTHS)[:, None]
    torch.testing.assert_close(ours[1], tokens * (result.prior - result.posterior), rtol=1e-5, atol=1e-5)
    assert ours[1].abs().max() > 0.05


def test_one_passage_or_one_token_is_rag_sequence() -> None:
    token_loglik, scores, token_mask = random_case(1)
    torch.testing.assert_close(
        losses.rag_token(token_loglik, scores, token_mask).nll, losses.rag_sequence(token_loglik.sum(-1), scores).nll
    )
    token_loglik, scores, token_mask = random_case(5, (1, 1, 1))
    ours, sequence = (
        losses.rag_token(token_loglik, scores, token_mask),
        losses.rag_sequence(token_loglik[..., 0], scores),
    )
    torch.testing.assert_close(ours.nll, sequence.nll)
    torch.testing.assert_close(ours.posterior, sequence.posterior)
    token_loglik, scores, token_mask = random_case(5)
    several = (
        losses.rag_token(token_loglik, scores, token_mask).nll - losses.rag_sequence(token_loglik.sum(-1), scores).nll
    )
    assert several.abs().max() > 0.1


def test_order_of_passages_and_a_constant_do_not_matter() -> None:
    token_loglik, scores, token_mask = random_case(5)
    plain = losses.rag_token(token_loglik, scores, token_mask).nll
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(losses.rag_token(token_loglik[:, order], scores[:, order], token_mask).nll, plain)
    torch.testing.assert_close(
        losses.rag_token(token_loglik, scores + 7.5, token_mask).nll, plain, rtol=1e-5, atol=1e-5
    )


def test_missing_passages_and_ignored_positions_count_for_nothing_even_if_they_are_nan() -> None:
    token_loglik, scores, token_mask = random_case(5)
    mask = torch.tensor([True, True, False, True, False])
    kept = losses.rag_token(token_loglik[:, mask], scores[:, mask], token_mask)
    token_loglik[:, ~mask] = scores[:, ~mask] = math.nan
    token_loglik[~token_mask[:, None].expand_as(token_loglik)] = math.nan
    leaves = [token_loglik.requires_grad_(), scores.requires_grad_()]
    result = losses.rag_token(token_loglik, scores, token_mask, mask.expand(4, 5))
    torch.testing.assert_close(result.nll, kept.nll)
    torch.testing.assert_close(result.posterior[:, mask], kept.posterior)
    assert (result.prior[:, ~mask] == 0).all()
    assert (result.posterior[:, ~mask] == 0).all()
    of_tokens, of_scores = torch.autograd.grad(result.nll.sum(), leaves)
    assert of_tokens.isfinite().all()
    assert of_scores.isfinite().all()
    assert (of_tokens[:, ~mask] == 0).all()
    assert (of_tokens.transpose(1, 2)[~token_mask] == 0).all()
    assert (of_scores[:, ~mask] == 0).all()
    assert (of_scores[:, mask].abs().sum(1) > 0).all()


def test_a_target_without_tokens_gives_nothing() -> None:
    token_loglik, scores, token_mask = random_case(3, (2, 0))
    scores.requires_grad_()
    result = losses.rag_token(token_loglik, scores, token_mask)
    assert result.nll[1] == 0
    torch.testing.assert_close(result.posterior[1], result.prior[1])
    (gradient,) = torch.autograd.grad(result.nll.sum(), scores)
    assert (gradient[1] == 0).all()


def test_a_question_without_passages_shows_as_nan() -> None:
    token_loglik, scores, token_mask = random_case(2)
    mask = torch.ones(4, 2, dtype=torch.bool)
    mask[2] = False
    assert losses.rag_token(token_loglik, scores, token_mask, mask).nll.isnan().tolist() == [False, False, True, False]


def test_bfloat16_is_computed_in_float32() -> None:
    token_loglik, scores, token_mask = random_case(3)
    token_loglik, scores = token_loglik.bfloat16(), (scores + 80).bfloat16()
    result = losses.rag_token(token_loglik, scores, token_mask)
    assert result.nll.dtype == result.prior.dtype == result.posterior.dtype == torch.float32
    expected = [slow(*row) for row in zip(token_loglik.tolist(), scores.tolist(), LENGTHS, strict=True)]
    torch.testing.assert_close(result.nll, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_entropies_are_those_of_the_distributions() -> None:
    result = losses.rag_token(*random_case(4))
    torch.testing.assert_close(result.prior_entropy, losses.entropy(result.prior))
    torch.testing.assert_close(result.posterior_entropy, losses.entropy(result.posterior))


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 4), (2, 4)), ((2, 3, 4), (2, 3), (2, 5)), ((2, 3), (2, 3), (2, 3))])
def test_shapes_that_do_not_belong_together_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    token_loglik, scores, token_mask = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(RagtrainError, match=r"expected \(batch, n_docs, tokens\)"):
        losses.rag_token(token_loglik, scores, token_mask.bool())
