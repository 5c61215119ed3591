"""Causal generators, fusion in the decoder and chunks of passages against slow loops, one passage at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
)

from ragtrain import losses
from ragtrain.errors import ConfigError
from ragtrain.models.rag import RagModel, RagOutput, RagSettings
from ragtrain.models.readers import fuse, is_causal
from ragtrain.models.retrieved import Retrieved

if TYPE_CHECKING:
    from collections.abc import Callable

VOCAB, WIDTH = 60, 16
SPECIAL = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def make_gpt2(dropout: float = 0.0) -> GPT2LMHeadModel:
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, **drop, **SPECIAL
    )
    return GPT2LMHeadModel(config)


def make_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.3, **SPECIAL,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_gemma2() -> Gemma2ForCausalLM:
    """Its head caps logits, which a head taken by itself would leave out."""
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, intermediate_size=32, initializer_range=0.5, final_logit_softcapping=2.0, **SPECIAL,
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def make_bloom() -> BloomForCausalLM:
    """Its positions come from the attention mask: it takes none."""
    config = BloomConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, n_layer=2, n_head=2, initializer_range=0.3, hidden_dropout=0.0,
        attention_dropout=0.0, **SPECIAL,
    )  # fmt: skip
    return BloomForCausalLM(config)


CAUSAL: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": make_gpt2, "llama": make_llama, "gemma2": make_gemma2, "bloom": make_bloom,
}  # fmt: skip


def causal_model(tiny, generator: PreTrainedModel, **options) -> RagModel:
    encoder = tiny.encoder(tiny.dpr())
    return RagModel(encoder, generator, tiny.bart_tokenizer, RagSettings(), **options)


def causal_example(tiny, n_docs: int = 3, lengths: tuple[int, ...] = (4, 2, 1)):
    """An example whose inputs are padded on the left, as a causal model's are; targets end in eos, which pads too."""
    example = tiny.example(n_docs, lengths, eos=2)
    mask = example.retrieved.attention_mask
    order = mask.argsort(dim=1, stable=True)  # zeros first
    left = Retrieved(
        vectors=example.retrieved.vectors, mask=example.retrieved.mask, ids=example.retrieved.ids,
        input_ids=example.retrieved.input_ids.gather(1, order), attention_mask=mask.gather(1, order),
    )  # fmt: skip
    return type(example)(example.question_ids, example.question_mask, example.targets, left)


def run(model: RagModel, example, **options) -> RagOutput:
    return model(example.question_ids, example.question_mask, example.targets, example.retrieve, **options)


def marginal(output: RagOutput) -> Tensor:
    return losses.rag_sequence(output.loglik, output.scores, output.retrieved.mask).loss


def alone(generator: PreTrainedModel, prompt: Tensor, answer: Tensor) -> Tensor:
    """log p(answer | prompt) of one unpadded text, token after token, from the model's own full logits."""
    total = torch.zeros(())
    text = prompt
    for token in answer:
        logits = generator(input_ids=text[None], use_cache=False).logits[0, -1].float()
        total = total + torch.log_softmax(logits, dim=-1)[token]
        text = torch.cat([text, token[None]])
    return total


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    top = max(gradient.abs().max() for gradient in theirs.values())
    assert top > 1e-3
    for name, gradient in theirs.items():
        worst = (ours[name] - gradient).abs().max().item()
        assert worst <= 1e-5 * float(top), f"{name}: {worst} of {top}"


@pytest.mark.reference
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_generators_marginal_equals_a_loop_over_documents(kind: str, tiny) -> None:
    model = causal_model(tiny, CAUSAL[kind]()).eval()
    example = causal_example(tiny)
    output = run(model, example)
    loss = marginal(output)
    loss.sum().backward()
    ours = gradients(model)
    model.zero_grad()

    query, _ = model.retrieve(example.question_ids, example.question_mask, example.retrieve)
    scores = model.scores(query, example.retrieved)
    expected = []
    for row in range(3):
        answer = example.targets[row][example.targets[row] != -100]
        joint = []
        for doc in range(3):
            place = row * 3 + doc
            keep = example.retrieved.attention_mask[place].bool()
            joint.append(alone(model.generator, example.retrieved.input_ids[place][keep], answer))
        prior = torch.log_softmax(scores[row], dim=0)
        expected.append(-torch.logsumexp(prior + torch.stack(joint), dim=0))
    torch.testing.assert_close(loss, torch.stack(expected), rtol=1e-5, atol=1e-5)
    torch.stack(expected).sum().backward()
    assert_close(ours, gradients(model))
    assert output.target_tokens.tolist() == [4, 2, 1], "the end token is predicted although it pads as well"


def test_which_models_are_causal() -> None:
    assert is_causal(GPT2Config())
    assert not is_causal(T5Config())
    assert is_causal(BertConfig(is_decoder=True))
    with pytest.raises(ConfigError, match="bert"):
        is_causal(BertConfig())


@pytest.mark.parametrize("kind", ["bart", "t5", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_of_passages_change_nothing(kind: str, chunk: int, tiny) -> None:
    model = causal_model(tiny, make_gpt2()) if kind == "gpt2" else tiny.rag(kind)
    model.generator.double()  # T5's unscaled attention turns the round-off of another order of rows into 3e-5
    example = causal_example(tiny, 5) if kind == "gpt2" else tiny.example(5, (4, 2, 3))
    results = []
    for doc_chunk in (None, chunk):
        model.zero_grad()
        model.doc_chunk = doc_chunk
        loss = marginal(run(model.train(), example))
        loss.sum().backward()
        results.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    assert_close(results[1][1], results[0][1])


@pytest.mark.parametrize("kind", ["bart", "gpt2"])
def test_portions_of_similar_length_change_nothing(kind: str, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal_model(tiny, make_gpt2()) if kind == "gpt2" else tiny.rag(kind)
    example = causal_example(tiny, 5) if kind == "gpt2" else tiny.example(5, (4, 2, 3))
    results, calls = [], []
    read = model.reader.read
    for least in (10_000, 1):
        monkeypatch.setattr("ragtrain.models.readers.LEAST_TOKENS", {"cpu": least, "gpu": least})
        seen: list[int] = []
        monkeypatch.setattr(model.reader, "read", lambda *a, s=seen, **k: (s.append(a[0].shape[1]), read(*a, **k))[1])
        model.zero_grad()
        loss = marginal(run(model.train(), example))
        loss.sum().backward()
        results.append((loss.detach(), gradients(model)))
        calls.append(seen)
    assert len(calls[0]) == 1
    assert calls[1] == sorted(calls[1], reverse=True)
    assert len(calls[1]) > 3
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    assert_close(results[1][1], results[0][1])


@pytest.mark.parametrize("kind", ["bart", "t5", "gpt2"])
def test_dropout_is_replayed_in_chunks(kind: str, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same portions, once with every activation kept and once made anew, draw the same dropout."""
    if kind == "gpt2":
        model, example = causal_model(tiny, make_gpt2(0.3)), causal_example(tiny, 4)
    else:
        generator = tiny.bart(0.3) if kind == "bart" else tiny.t5(0.3)
        model, example = tiny.rag(generator), tiny.example(4, (4, 2, 3))
    model.doc_chunk = 1
    results = []
    for replay in (True, False):
        with monkeypatch.context() as patch:
            if not replay:
                patch.setattr("ragtrain.models.rag.checkpoint", lambda read, *given, use_reentrant: read(*given))
            model.zero_grad()
            torch.manual_seed(5)
            loss = marginal(run(model.train(), example))
            loss.sum().backward()
            results.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    assert_close(results[0][1], results[1][1])
    torch.manual_seed(6)
    assert (marginal(run(model, example)) - results[0][0]).abs().max() > 1e-3, "there is dropout"


@pytest.mark.reference
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_fusion_equals_a_loop_over_questions(kind: str, chunk: int | None, tiny) -> None:
    model = tiny.rag(kind)
    model.settings = RagSettings(likelihood="fid")
    model.doc_chunk = chunk
    model.generator.double()  # as above
    example = tiny.example(3, (4, 2, 3), eos=2 if kind == "bart" else 1)
    example.retrieved.mask[1, 2] = False
    output = run(model.train(), example)
    (-output.fused_loglik.sum()).backward()
    ours = gradients(model.generator)
    model.zero_grad()

    encoder, total = model.generator.get_encoder(), torch.zeros((), dtype=torch.float64)
    for row in range(3):
        states = []
        for doc in range(3):
            place = row * 3 + doc
            if example.retrieved.mask[row, doc]:
                keep = example.retrieved.attention_mask[place].bool()
                states.append(encoder(input_ids=example.retrieved.input_ids[place][keep][None]).last_hidden_state)
        answer = example.targets[row][example.targets[row] != -100]
        given = torch.cat([torch.tensor([model.decoder_start_token_id]), answer[:-1]])
        logits = model.generator(
            encoder_outputs=(torch.cat(states, dim=1),), decoder_input_ids=given[None], use_cache=False
        ).logits[0]
        loglik = torch.log_softmax(logits, dim=-1)[torch.arange(len(answer)), answer]
        torch.testing.assert_close(output.fused_loglik[row, : len(answer)].double(), loglik, rtol=1e-5, atol=1e-5)
        assert output.fused_loglik[row, len(answer) :].eq(0).all()
        total = total + loglik.sum()
    (-total).backward()
    assert_close(ours, gradients(model.generator))


def test_fused_passages_also_speak_for_themselves_without_gradient_or_dropout(tiny) -> None:
    generator = tiny.bart(0.5)
    fused, apart = tiny.rag(generator), tiny.rag(generator)
    fused.settings = RagSettings(likelihood="fid")
    example = tiny.example(3, (4, 2, 3))
    output = run(fused.train(), example)
    assert not output.token_loglik.requires_grad
    assert output.token_loglik.shape == (3, 3, 4)
    # The encoder's states are those of the training pass, dropout included; only the decoder runs without it.
    fused.eval()
    apart.eval()
    torch.testing.assert_close(run(fused, example).token_loglik, run(apart, example).token_loglik)
    assert run(fused, example, with_documents=False).token_loglik.shape == (3, 3, 0)


def test_fuse_lays_passages_end_to_end() -> None:
    states = torch.arange(2 * 3 * 4 * 2.0).view(6, 4, 2)
    mask = torch.arange(24).view(6, 4)
    fused, fused_mask = fuse(states, mask, 3)
    assert fused.shape == (2, 12, 2)
    assert torch.equal(fused[1, 4:8], states[4])
    assert fused_mask[0].tolist() == list(range(12))


def test_a_causal_generator_cannot_fuse(tiny) -> None:
    with pytest.raises(ConfigError, match="no encoder") as caught:
        RagModel(tiny.encoder(tiny.dpr()), make_gpt2(), tiny.bart_tokenizer, RagSettings(likelihood="fid"))
    assert "--reader" in str(caught.value.hint)


def test_a_frozen_generator_stays_without_dropout(tiny) -> None:
    model = tiny.rag(tiny.bart(0.5))
    model.generator.requires_grad_(False)
    model.train()
    assert not model.generator.training
    assert model.question_encoder.training
