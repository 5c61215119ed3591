"""The RAG model against transformers' RagSequenceForGeneration, and against what must hold of any such model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import RagSequenceForGeneration

from ragtrain import losses
from ragtrain.errors import ConfigError
from ragtrain.models import rag as rag_module
from ragtrain.models.rag import RagModel, RagOutput

PARTS = ("question_encoder", "generator")


def our_loss(model: RagModel, example, epsilon: float = 0.0) -> tuple[Tensor, RagOutput]:
    output = model(
        example.question_ids, example.question_mask, example.targets, example.retrieve, with_smooth=epsilon > 0
    )
    smoothing = None if output.smooth is None else losses.Smoothing(epsilon, output.smooth, output.vocab_size)
    result = losses.rag_sequence(
        output.loglik, output.scores, output.retrieved.mask, smoothing=smoothing, prior_counts=output.prior_counts
    )
    return result.loss, output


def reference(model: RagModel, epsilon: float) -> RagSequenceForGeneration:
    """transformers' model on copies of the same weights."""
    encoder, generator = (copy.deepcopy(part) for part in (model.question_encoder.model, model.generator))
    hf = RagSequenceForGeneration(question_encoder=encoder, generator=generator)
    hf.config.label_smoothing = epsilon
    if generator.config.model_type == "t5":
        hf.config.generator.bos_token_id = None  # transformers reads an attribute that its T5Config does not have
    return hf.train(model.training)


def reference_loss(hf: RagSequenceForGeneration, model: RagModel, example) -> Tensor:
    """Give transformers what it takes for the same target: pads, and for shift-right the start token before it."""
    labels = example.targets.masked_fill(example.targets == -100, model.pad_token_id)
    if model.settings.target_style == "shift-right":
        labels = torch.cat([labels.new_full((len(labels), 1), model.decoder_start_token_id), labels], dim=1)
    query = hf.question_encoder(example.question_ids, attention_mask=example.question_mask, return_dict=True)
    scores = torch.bmm(query.pooler_output.unsqueeze(1), example.retrieved.vectors.transpose(1, 2)).squeeze(1)
    return hf(
        context_input_ids=example.retrieved.input_ids,
        context_attention_mask=example.retrieved.attention_mask,
        doc_scores=scores,
        labels=labels,
        n_docs=scores.shape[1],
    ).loss


def gradients(encoder: nn.Module, generator: nn.Module) -> dict[str, Tensor | None]:
    parts = zip(PARTS, (encoder, generator), strict=True)
    return {f"{part}.{name}": p.grad for part, module in parts for name, p in module.named_parameters()}


def assert_equals_transformers(model: RagModel, example, epsilon: float) -> None:
    """Loss of each question, and every gradient, to 1e-5 of the largest entry of the tensor."""
    hf = reference(model, epsilon)
    expected = reference_loss(hf, model, example)
    expected.sum().backward()
    loss, _ = our_loss(model, example, epsilon)
    loss.sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert_gradients_equal(
        gradients(model.question_encoder.model, model.generator), gradients(hf.question_encoder, hf.generator)
    )


def assert_gradients_equal(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    """Compare to 1e-5 of a tensor's largest entry.

    Tensors whose gradient cancels to nothing (key biases) hold round-off of their network's largest gradient.
    """
    assert ours.keys() == theirs.keys()
    for part in PARTS:
        expected = {name: gradient for name, gradient in theirs.items() if name.startswith(part)}
        top = max((gradient.abs().max().item() for gradient in expected.values() if gradient is not None), default=0)
        assert top > 1e-2 or part == "question_encoder"
        for name, gradient in expected.items():
            assert (gradient is None) == (ours[name] is None), name
            if gradient is None:
                continue
            worst = (ours[name] - gradient).abs().max().item()
            assert worst <= 1e-5 * gradient.abs().max().item() + 1e-6 * max(top, 1e-6), f"{name}: {worst}"


@pytest.mark.reference
@pytest.mark.parametrize("n_docs", range(1, 9))
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("style", ["shift-right", "hf"])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_loss_and_gradients_equal_transformers(kind: str, style: str, epsilon: float, n_docs: int, tiny) -> None:
    model = tiny.rag(kind, style).train()
    lengths = (5, 3, 4, 7) if style == "hf" else (5, 3, 2, 7)
    bos, eos = (0, 2) if kind == "bart" else (None, 1)
    example = tiny.example(n_docs, lengths, bos, eos)
    assert_equals_transformers(model, example, epsilon)
    scored = model.question_encoder.model.question_encoder.bert_model.embeddings.word_embeddings.weight.grad
    assert (scored.abs().max() > 1e-3) == (n_docs > 1)


@pytest.mark.reference
def test_t5_of_version_1_1_is_not_scaled(tiny) -> None:
    model = tiny.rag("t5-v1.1").train()
    assert not model.generator.config.scale_decoder_outputs
    assert_equals_transformers(model, tiny.example(3, eos=1), 0.1)


@pytest.mark.reference
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_style_hf_loses_the_prior_where_transformers_does(kind: str, epsilon: float, tiny) -> None:
    """Targets of one scored token, and of none, among longer ones."""
    model = tiny.rag(kind, "hf").train()
    example = tiny.example(3, (2, 4, 1, 2), 0 if kind == "bart" else None, 2 if kind == "bart" else 1)
    assert_equals_transformers(model, example, epsilon)


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_one_token_targets_keep_their_prior(kind: str, tiny) -> None:
    """transformers loses it, so the reference is a loop over passages, written from the equation."""
    model = tiny.rag(kind).train()
    example = tiny.example(4, (1, 1, 1), eos=2 if kind == "bart" else 1)
    loss, output = our_loss(model, example)
    pad, start = model.pad_token_id, model.decoder_start_token_id
    for row in range(3):
        total = torch.zeros(())
        prior = torch.softmax(output.scores[row], dim=0)
        for doc in range(4):
            position = row * 4 + doc
            tokens = example.retrieved.attention_mask[position].sum()
            logits = model.generator(
                input_ids=example.retrieved.input_ids[position : position + 1, :tokens],
                decoder_input_ids=torch.tensor([[start]]),
            ).logits[0, 0]
            total = total + prior[doc] * torch.softmax(logits, dim=0)[example.targets[row, 0]]
        torch.testing.assert_close(loss[row], -total.log(), rtol=1e-5, atol=1e-5)
    lost = reference_loss(reference(model, 0.0), model, example)
    assert (lost - loss).abs().min() > 1e-2
    assert pad not in example.targets


def averaged(loglik: Tensor, scores: Tensor, mask: Tensor | None = None, **_: object) -> losses.RagSequenceLoss:
    """The bug of averaging: the mean of the passages' losses instead of the loss of their mixture."""
    prior = losses.log_prior(scores, mask)
    nll = -(prior.exp() * loglik).sum(1)
    return losses.RagSequenceLoss(nll, nll, prior.exp(), prior.exp())


def detached(query: Tensor, vectors: Tensor) -> Tensor:
    """The bug of scores that come out of a list: right numbers, no gradient."""
    return torch.bmm(vectors, query.unsqueeze(-1)).squeeze(-1).detach().requires_grad_()


def token_mean(token_loglik: Tensor) -> Tensor:
    """The bug of mixing probabilities of mean token log-likelihoods."""
    return token_loglik.sum(-1) / (token_loglik != 0).sum(-1).clamp(min=1)


@pytest.mark.parametrize("kind", ["bart", "t5"])
@pytest.mark.parametrize(
    ("module", "name", "bug"),
    [(losses, "rag_sequence", averaged), (rag_module, "doc_scores", detached), (rag_module, "summed", token_mean)],
)
def test_the_comparison_notices(
    module: object, name: str, bug: Callable[..., object], kind: str, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.rag(kind).train()
    example = tiny.example(3, (5, 3, 4), eos=2 if kind == "bart" else 1)
    assert_equals_transformers(model, example, 0.0)
    model.zero_grad()
    monkeypatch.setattr(module, name, bug)
    with pytest.raises(AssertionError):
        assert_equals_transformers(model, example, 0.0)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_one_passage_is_plain_sequence_to_sequence_training(kind: str, tiny) -> None:
    model = tiny.rag(kind)
    example = tiny.example(1)
    loss, output = our_loss(model, example)
    plain = model.generator(
        input_ids=example.retrieved.input_ids,
        attention_mask=example.retrieved.attention_mask,
        labels=example.targets,
    ).loss
    assert output.target_tokens.tolist() == [5, 3, 2, 7]
    torch.testing.assert_close(loss.sum() / output.target_tokens.sum(), plain, rtol=1e-5, atol=1e-5)


def test_gradient_of_the_scores_is_prior_minus_posterior(tiny) -> None:
    model = tiny.rag("bart")
    example = tiny.example(5)
    output = our_loss(model, example)[1]
    output.scores.retain_grad()
    result = losses.rag_sequence(output.loglik, output.scores)
    result.nll.sum().backward()
    torch.testing.assert_close(output.scores.grad, result.prior - result.posterior, rtol=1e-5, atol=1e-6)


def _change(example, **changes: Tensor):
    return dataclasses.replace(example, retrieved=dataclasses.replace(example.retrieved, **changes))


def test_order_of_passages_does_not_matter(tiny) -> None:
    model, example = tiny.rag("bart"), tiny.example(4)
    order = torch.tensor([2, 0, 3, 1])
    rows = (torch.arange(4)[:, None] * 4 + order).flatten()
    found = example.retrieved
    other = _change(
        example,
        vectors=found.vectors[:, order],
        input_ids=found.input_ids[rows],
        attention_mask=found.attention_mask[rows],
    )
    torch.testing.assert_close(our_loss(model, other)[0], our_loss(model, example)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", ["shift-right", "hf"])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_padding_does_not_matter(kind: str, style: str, tiny) -> None:
    """More padding anywhere, and pad tokens instead of -100."""
    model, example = tiny.rag(kind, style), tiny.example(3)
    pad = nn.functional.pad
    found = example.retrieved
    other = _change(
        example, input_ids=pad(found.input_ids, (0, 5), value=9), attention_mask=pad(found.attention_mask, (0, 5))
    )
    other = dataclasses.replace(
        other,
        question_ids=pad(example.question_ids, (0, 3), value=7),
        question_mask=pad(example.question_mask, (0, 3)),
        targets=pad(example.targets.masked_fill(example.targets == -100, model.pad_token_id), (0, 2), value=-100),
    )
    plain, padded = our_loss(model, example), our_loss(model, other)
    torch.testing.assert_close(padded[0], plain[0], rtol=1e-5, atol=1e-5)
    assert padded[1].target_tokens.tolist() == plain[1].target_tokens.tolist()


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_missing_passages_leave_loss_and_gradients_alone(kind: str, tiny) -> None:
    """Passages that are not there: whatever their rows hold, even nothing at all."""
    model, example = tiny.rag(kind), tiny.example(4)
    found = example.retrieved
    kept = torch.tensor([0, 2])
    rows = (torch.arange(4)[:, None] * 4 + kept).flatten()
    few = _change(
        example, vectors=found.vectors[:, kept], mask=found.mask[:, kept], ids=found.ids[:, kept],
        input_ids=found.input_ids[rows], attention_mask=found.attention_mask[rows],
    )  # fmt: skip
    mask = found.mask.clone()
    mask[:, [1, 3]] = False
    attention = found.attention_mask.clone().view(4, 4, -1)
    attention[:, [1, 3]] = 0
    vectors = found.vectors.clone()
    vectors[:, [1, 3]] = 0
    many = _change(example, mask=mask, attention_mask=attention.view(16, -1), vectors=vectors)
    results = []
    for case in (few, many):
        model.zero_grad()
        loss = our_loss(model, case)[0]
        loss.sum().backward()
        results.append((loss.detach(), gradients(model.question_encoder, model.generator)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    assert_gradients_equal(results[1][1], results[0][1])


def test_only_real_target_positions_meet_the_head(tiny) -> None:
    model, example = tiny.rag("bart"), tiny.example(3, (5, 1, 2))
    seen: list[int] = []
    model.generator.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[0]))
    our_loss(model, example)
    assert seen == [(5 + 1 + 2) * 3]


def test_passages_are_encoded_once(tiny) -> None:
    model, example = tiny.rag("bart"), tiny.example(3)
    rows: list[int] = []
    model.generator.model.encoder.layers[0].register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    our_loss(model, example)
    assert rows == [4 * 3]


def test_the_search_is_without_dropout_and_the_score_with_it(tiny) -> None:
    model = tiny.rag("bart", encoder=tiny.dpr(dropout=0.4)).train()
    example = tiny.example(3)
    searched: list[Tensor] = []

    def retrieve(query: Tensor):
        searched.append(query)
        return example.retrieve(query)

    arguments = (example.question_ids, example.question_mask, example.targets, retrieve)
    first, second = model(*arguments), model(*arguments)
    assert model.question_encoder.training
    assert all(part.training for part in model.question_encoder.modules())
    torch.testing.assert_close(searched[0], searched[1], rtol=0, atol=0)
    assert (first.scores - second.scores).abs().max() > 1e-2
    with torch.no_grad():
        clean = model.eval()(*arguments)
    torch.testing.assert_close(searched[2], searched[0])
    torch.testing.assert_close(clean.scores, rag_module.doc_scores(searched[0], example.retrieved.vectors))
    first.scores.sum().backward()
    assert any(p.grad is not None for p in model.question_encoder.parameters())


def test_a_question_encoder_without_dropout_runs_once(tiny) -> None:
    model, example = tiny.rag("bart").train(), tiny.example(2)
    runs: list[object] = []
    model.question_encoder.register_forward_hook(lambda *_: runs.append(None))
    our_loss(model, example)
    assert len(runs) == 1


def test_a_frozen_question_encoder_gets_no_gradient_and_no_dropout(tiny) -> None:
    encoder = tiny.dpr(dropout=0.4)
    model = tiny.rag("bart", encoder=encoder, train_question_encoder=False).train()
    example = tiny.example(3)
    assert model.generator.training
    assert not model.question_encoder.training
    first, output = our_loss(model, example)
    first.sum().backward()
    assert not output.scores.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in model.question_encoder.parameters())
    torch.testing.assert_close(our_loss(model, example)[0], first)


def test_scores_stay_float32_under_autocast(tiny) -> None:
    query, vectors = torch.full((1, 1), 81.3), torch.tensor([[[1.0], [1.001]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = rag_module.doc_scores(query, vectors)
        model, example = tiny.rag("bart"), tiny.example(3)
        output = our_loss(model, example)[1]
    assert scores.dtype == output.scores.dtype == output.loglik.dtype == torch.float32
    assert (scores[0, 1] - scores[0, 0]).item() == pytest.approx(0.0813, rel=1e-3)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_gradient_checkpointing_changes_nothing(kind: str, tiny) -> None:
    generator = tiny.generator(kind)
    example = tiny.example(2)
    results = []
    encoder = tiny.dpr()
    for checkpointing in (False, True):
        model = tiny.rag(
            copy.deepcopy(generator), encoder=copy.deepcopy(encoder), gradient_checkpointing=checkpointing
        ).train()
        loss = our_loss(model, example)[0]
        loss.sum().backward()
        results.append((loss.detach(), gradients(model.question_encoder, model.generator)))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert_gradients_equal(results[1][1], results[0][1])
    assert any(getattr(part, "gradient_checkpointing", False) for part in model.generator.modules())


def test_a_generator_of_another_kind_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match="bert") as caught:
        tiny.rag(tiny.bert())
    assert "BART or T5" in str(caught.value.hint)


def test_the_vocabulary_is_the_generators(tiny) -> None:
    model = tiny.rag("bart")
    assert model.vocab_size == tiny.vocab
    assert model.question_encoder.dim == tiny.width


def test_a_temperature_divides_the_scores_and_nothing_else(tiny) -> None:
    example = tiny.example(4)
    model = tiny.rag("bart").eval()
    plain = model(example.question_ids, example.question_mask, example.targets, example.retrieve)
    model.settings = dataclasses.replace(model.settings, score_temperature=0.25)
    sharp = model(example.question_ids, example.question_mask, example.targets, example.retrieve)
    torch.testing.assert_close(sharp.scores, plain.scores * 4)
    torch.testing.assert_close(sharp.loglik, plain.loglik)
    torch.testing.assert_close(
        losses.rag_sequence(sharp.loglik, sharp.scores).loss,
        losses.rag_sequence(plain.loglik, plain.scores / 0.25).loss,
    )
