from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ragtrain import losses
from ragtrain.errors import RagtrainError

BATCH, PASSAGES, DIM = 5, 9, 6


def slow(
    query: list[float], passages: list[list[float]], positive: list[bool], candidate: list[bool], t: float
) -> float:
    """-log of the share of the candidates' exponentials that the positives have."""
    exponentials = [math.exp(sum(a * b for a, b in zip(query, passage, strict=True)) / t) for passage in passages]
    found = sum(e for e, p, c in zip(exponentials, positive, candidate, strict=True) if p and c)
    return -math.log(found / sum(e for e, c in zip(exponentials, candidate, strict=True) if c))


def random_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One positive in the first row, several in the others, some passages that are no candidates."""
    candidate = torch.rand(BATCH, PASSAGES) < 0.7
    positive = torch.rand(BATCH, PASSAGES) < 0.3
    positive[0] = False
    diagonal = torch.arange(BATCH)
    candidate[diagonal, diagonal] = positive[diagonal, diagonal] = True
    return torch.randn(BATCH, DIM), torch.randn(PASSAGES, DIM), positive & candidate, candidate


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_equals_its_definition(temperature: float) -> None:
    case = random_case()
    queries, passages, positive, candidate = (part.tolist() for part in case)
    assert any(sum(row) > 1 for row in positive)
    expected = [
        slow(query, passages, row, among, temperature)
        for query, row, among in zip(queries, positive, candidate, strict=True)
    ]
    torch.testing.assert_close(losses.info_nce(*case, temperature), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_gradients_equal_those_of_the_definition() -> None:
    queries, passages, positive, candidate = random_case()
    leaves = [queries.requires_grad_(), passages.requires_grad_()]
    ours = torch.autograd.grad(losses.info_nce(*leaves, positive, candidate, 0.5).sum(), leaves)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(BATCH):
        weights = (passages.double() @ queries[row].double() / 0.5).exp()
        total = total - (weights[positive[row]].sum() / weights[candidate[row]].sum()).log()
    for mine, expected in zip(ours, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.reference
def test_with_in_batch_negatives_it_is_the_cross_entropy_of_dpr() -> None:
    queries, passages = torch.randn(BATCH, DIM), torch.randn(BATCH, DIM)
    everyone = torch.ones(BATCH, BATCH, dtype=torch.bool)
    expected = torch.nn.functional.cross_entropy(queries @ passages.T, torch.arange(BATCH), reduction="none")
    ours = losses.info_nce(queries, passages, torch.eye(BATCH, dtype=torch.bool), everyone, 1.0)
    torch.testing.assert_close(ours, expected)


def test_order_of_passages_does_not_matter() -> None:
    queries, passages, positive, candidate = random_case()
    order = torch.randperm(PASSAGES)
    torch.testing.assert_close(
        losses.info_nce(queries, passages[order], positive[:, order], candidate[:, order], 1.0),
        losses.info_nce(queries, passages, positive, candidate, 1.0),
    )


def test_a_question_without_a_positive_gives_nothing() -> None:
    queries, passages, positive, candidate = random_case()
    positive[1] = False
    candidate[2] = False  # its positive is no candidate
    kept = [0, 3, 4]
    expected = losses.info_nce(queries[kept], passages, positive[kept], candidate[kept], 1.0)
    queries[1] = math.nan
    leaves = [queries.requires_grad_(), passages.requires_grad_()]
    loss = losses.info_nce(*leaves, positive, candidate, 1.0)
    assert loss[1] == loss[2] == 0
    torch.testing.assert_close(loss[kept], expected)
    of_queries, of_passages = torch.autograd.grad(loss.sum(), leaves)
    assert (of_queries[[1, 2]] == 0).all()
    assert of_passages.isfinite().all()


def test_what_is_nobodys_candidate_counts_for_nothing_even_if_it_is_nan() -> None:
    queries, passages, positive, candidate = random_case()
    candidate[:, -2:] = positive[:, -2:] = False
    expected = losses.info_nce(queries, passages[:-2], positive[:, :-2], candidate[:, :-2], 1.0)
    passages[-2:] = math.nan
    leaves = [queries.requires_grad_(), passages.requires_grad_()]
    loss = losses.info_nce(*leaves, positive, candidate, 1.0)
    torch.testing.assert_close(loss, expected)
    of_queries, of_passages = torch.autograd.grad(loss.sum(), leaves)
    assert of_queries.isfinite().all()
    assert (of_passages[-2:] == 0).all()
    assert of_passages[:-2].abs().max() > 0.05


def test_no_passages_at_all_give_nothing() -> None:
    queries, none = torch.randn(2, DIM, requires_grad=True), torch.zeros(2, 0, dtype=torch.bool)
    loss = losses.info_nce(queries, torch.zeros(0, DIM), none, none, 1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), queries)
    assert loss.tolist() == [0, 0]
    assert (gradient == 0).all()


def test_bfloat16_is_computed_in_float32_under_autocast_too() -> None:
    queries, passages, positive, candidate = random_case()
    queries, passages = (queries * 6).bfloat16(), (passages * 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.info_nce(queries, passages, positive, candidate, 1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, losses.info_nce(queries.float(), passages.float(), positive, candidate, 1.0))


def test_shapes_and_temperatures_that_cannot_be_are_refused() -> None:
    queries, passages, positive, candidate = random_case()
    with pytest.raises(RagtrainError, match=r"expected vectors of one width"):
        losses.info_nce(queries, passages[:-1], positive, candidate, 1.0)
    with pytest.raises(RagtrainError, match=r"expected vectors of one width"):
        losses.info_nce(queries[:, :-1], passages, positive, candidate, 1.0)
    with pytest.raises(RagtrainError, match="positive"):
        losses.info_nce(queries, passages, positive, candidate, 0.0)
