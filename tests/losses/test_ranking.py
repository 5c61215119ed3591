from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ragtrain import losses
from ragtrain.errors import RagtrainError


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def slow_bce(scores: list[float], positive: list[bool], temperature: float) -> float:
    """The loss of one row, entry by entry: weights of positives and of negatives sum to 1 each."""
    negatives = [s for s, p in zip(scores, positive, strict=True) if not p]
    n_positives = len(scores) - len(negatives)
    total = weight = 0.0
    for score, is_positive in zip(scores, positive, strict=True):
        if is_positive:
            w, loss = 1 / n_positives, -math.log(sigmoid(score))
        else:
            loss = -math.log(1 - sigmoid(score))
            if temperature > 0:
                w = math.exp(score / temperature) / sum(math.exp(s / temperature) for s in negatives)
            else:
                w = 1 / len(negatives)
        total, weight = total + w * loss, weight + w
    return total / weight


def slow_list(scores: list[float], positive: list[bool]) -> float:
    """ListCE without what is added to keep logarithms finite."""
    whole = sum(sigmoid(s) for s in scores)
    losses_ = [-math.log(sigmoid(s) / whole) for s, p in zip(scores, positive, strict=True) if p]
    return sum(losses_) / len(losses_) if losses_ else 0.0


def case(rows: int = 6, width: int = 9) -> tuple[Tensor, Tensor]:
    positives = torch.rand(rows, width) < 0.3
    positives[:, 0], positives[:, -1] = True, False
    return torch.randn(rows, width) * 2, positives


@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0])
def test_bce_equals_its_definition(temperature: float) -> None:
    logits, positives = case()
    positives[1] = False
    positives[2] = True
    result = losses.self_adversarial_bce(logits, positives, temperature=temperature)
    expected = [slow_bce(s, p, temperature) for s, p in zip(logits.tolist(), positives.tolist(), strict=True)]
    torch.testing.assert_close(result, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_bce_of_pretraining_has_its_positive_in_column_0() -> None:
    logits, _ = case()
    first = torch.zeros_like(logits, dtype=torch.bool)
    first[:, 0] = True
    assert torch.equal(losses.self_adversarial_bce(logits), losses.self_adversarial_bce(logits, first))


def test_weights_of_negatives_have_no_gradient() -> None:
    logits = torch.randn(1, 4, dtype=torch.float64).float().requires_grad_()
    losses.self_adversarial_bce(logits, temperature=0.5).sum().backward()
    weights = torch.softmax(logits[0, 1:].detach() / 0.5, 0)
    expected = torch.cat([torch.sigmoid(logits[0, :1]) - 1, weights * torch.sigmoid(logits[0, 1:])]).detach() / 2
    torch.testing.assert_close(logits.grad[0], expected)


def test_list_cross_entropy_equals_its_definition() -> None:
    logits, positives = case()
    positives[3] = False
    result = losses.list_cross_entropy(logits, positives)
    expected = [slow_list(s, p) for s, p in zip(logits.tolist(), positives.tolist(), strict=True)]
    torch.testing.assert_close(result, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert result[3] == 0


def test_list_cross_entropy_keeps_the_gradient_of_hard_positives() -> None:
    """With 1e-5 inside the logarithm, as GFM-RAG has it, this gradient is bounded and all but gone."""
    logits = torch.cat([torch.tensor([-40.0]), torch.zeros(100_000)])[None].requires_grad_()
    positives = torch.zeros(1, 100_001, dtype=torch.bool)
    positives[0, 0] = True
    loss = losses.list_cross_entropy(logits, positives)
    loss.sum().backward()
    assert loss.item() == pytest.approx(40 + math.log(50_000), rel=1e-5)
    assert logits.grad[0, 0].item() == pytest.approx(-1, abs=1e-4)


def documents(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *(len(entities) for entities in lists)]).cumsum(0)
    return torch.tensor([e for entities in lists for e in entities], dtype=torch.int32), offsets


@pytest.mark.parametrize("weighted", [False, True])
def test_document_loss_equals_its_definition(weighted: bool) -> None:
    lists = [[0, 1], [2], [], [3, 4, 5, 6], [1, 6], [7]]
    entities, offsets = documents(lists)
    logits = torch.randn(5, 8) * 2
    weights = torch.tensor([1, 0.5, 1, 1, 0.25, 1, 0.5, 0]) if weighted else None
    w = weights.tolist() if weighted else [1.0] * 8
    positives = torch.rand(5, 6) < 0.5
    positives[:, 0], positives[2] = True, False
    scored = [d for d, own in enumerate(lists) if sum(w[e] for e in own) > 0]
    for row, result in enumerate(losses.document_cross_entropy(logits, entities, offsets, positives, weights)):
        score = [sigmoid(s) for s in logits[row].tolist()]
        p = {d: sum(w[e] * score[e] for e in lists[d]) / sum(w[e] for e in lists[d]) for d in scored}
        own = [-math.log(p[d] / sum(p.values())) for d in scored if positives[row, d]]
        assert result.item() == pytest.approx(sum(own) / len(own) if own else 0, abs=1e-5)
    there = losses.scored_documents(entities, offsets, weights)
    assert there.nonzero().flatten().tolist() == scored


def test_long_documents_do_not_win() -> None:
    entities, offsets = documents([[0], list(range(1, 40))])
    scores = losses.document_scores(torch.full((1, 40), 1.5), entities, offsets)
    assert scores[0, 0].item() == pytest.approx(scores[0, 1].item())


def test_document_loss_has_gradients_where_nothing_has_a_score() -> None:
    entities, offsets = documents([[], [0, 1], []])
    logits = torch.randn(2, 3, requires_grad=True)
    positives = torch.tensor([[True, False, False], [False, True, False]])
    losses.document_cross_entropy(logits, entities, offsets, positives).sum().backward()
    assert logits.grad.isfinite().all()
    nothing = losses.document_cross_entropy(logits, *documents([[], []]), positives[:, :2])
    nothing.sum().backward()
    assert nothing.tolist() == [0, 0]
    assert logits.grad.isfinite().all()


def test_scores_far_from_each_other_stay_finite() -> None:
    entities, offsets = documents([[0, 1], [2]])
    logits = torch.tensor([[-500.0, -900.0, 80.0]], requires_grad=True)
    loss = losses.document_cross_entropy(logits, entities, offsets, torch.tensor([[True, False]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(500 + math.log(2), rel=1e-5)
    assert logits.grad.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RagtrainError, match="the same"):
        losses.list_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(RagtrainError, match="temperature"):
        losses.self_adversarial_bce(torch.zeros(2, 3), temperature=-1.0)
    with pytest.raises(RagtrainError, match="document"):
        losses.document_cross_entropy(torch.zeros(1, 2), *documents([[0], [1]]), torch.zeros(1, 3, dtype=torch.bool))
