"""RAG-Token over the likelihoods of a generator, against transformers' RagTokenForGeneration on the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, RagTokenForGeneration

from ragtrain import losses

IGNORED = -100


def token_logliks(generator: PreTrainedModel, example, decoder_input_ids: Tensor, labels: Tensor) -> Tensor:
    """(batch, n_docs, tokens) log p(y_t|q,z,y_<t), 0 at ignored positions, by the generator's own forward."""
    batch, n_docs = example.retrieved.mask.shape
    logits = generator(
        input_ids=example.retrieved.input_ids,
        attention_mask=example.retrieved.attention_mask,
        decoder_input_ids=decoder_input_ids.repeat_interleave(n_docs, dim=0),
    ).logits
    real = labels.repeat_interleave(n_docs, dim=0)
    loglik = torch.log_softmax(logits, -1).gather(-1, real.clamp(min=0)[..., None])[..., 0]
    return loglik.masked_fill(real == IGNORED, 0.0).view(batch, n_docs, -1)


@pytest.mark.reference
@pytest.mark.parametrize("n_docs", [1, 2, 5])
@pytest.mark.parametrize("style", ["shift-right", "hf"])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_loss_and_gradients_equal_transformers(kind: str, style: str, n_docs: int, tiny) -> None:
    """Targets of several tokens and of one: transformers counts the prior of every token, as the paper does."""
    model = tiny.rag(kind, style).train()
    example = tiny.example(n_docs, (5, 3, 2, 7), 0 if kind == "bart" else None, 2 if kind == "bart" else 1)
    scores = torch.randn(4, n_docs, requires_grad=True)

    hf = RagTokenForGeneration(
        question_encoder=copy.deepcopy(model.question_encoder.model), generator=copy.deepcopy(model.generator)
    ).train()
    labels = example.targets.masked_fill(example.targets == IGNORED, model.pad_token_id)
    if style == "shift-right":
        labels = torch.cat([labels.new_full((4, 1), model.decoder_start_token_id), labels], dim=1)
    expected = hf(
        context_input_ids=example.retrieved.input_ids,
        context_attention_mask=example.retrieved.attention_mask,
        doc_scores=scores,
        labels=labels,
        n_docs=n_docs,
    ).loss
    (of_scores,) = torch.autograd.grad(expected.sum(), scores, retain_graph=True)
    expected.sum().backward()

    decoder_input_ids, real, _ = model.decoder_inputs(example.targets)
    token_loglik = token_logliks(model.generator, example, decoder_input_ids, real)
    result = losses.rag_token(token_loglik, scores, real != IGNORED, example.retrieved.mask)
    torch.testing.assert_close(result.nll, expected, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(result.nll.sum(), scores, retain_graph=True)
    torch.testing.assert_close(ours, of_scores, rtol=1e-5, atol=1e-5)
    assert (ours.abs().max() > 1e-2) == (n_docs > 1)
    result.nll.sum().backward()
    theirs = dict(hf.generator.named_parameters())
    top = max(parameter.grad.abs().max() for parameter in theirs.values() if parameter.grad is not None)
    for name, parameter in model.generator.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        if parameter.grad is not None:
            # Gradients that cancel to nothing (key biases) hold round-off of the network's largest one.
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-5, atol=2e-6 * top.item())
