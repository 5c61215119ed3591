"""Thorough and fast decoding against transformers' RagSequenceForGeneration.generate, and against its definition."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor
from transformers import RagSequenceForGeneration

from ragtrain.errors import DataError
from ragtrain.models.decoding import Answer, decode, reading, sequence, tries
from ragtrain.models.rag import RagModel

BEAMS, TOKENS = 3, 8


def answers(model: RagModel, example, **options: int | str) -> list[Answer]:
    settings = {"num_beams": BEAMS, "max_new_tokens": TOKENS, **options}
    return decode(model, example.question_ids, example.question_mask, example.retrieve, **settings)


def transformers_answers(
    model: RagModel, example, num_beams: int = BEAMS, *, with_mask: bool = False
) -> list[tuple[int, ...]]:
    """Token ids of transformers' best answers, without start token and padding.

    Its beam search gets no attention mask and so reads the padding of passages; ``with_mask`` gives it one. Where the
    padding token is 0 (T5), it fills hypotheses up with end tokens and then scores them; here they become padding.
    """
    encoder, generator = (copy.deepcopy(part) for part in (model.question_encoder.model, model.generator))
    hf = RagSequenceForGeneration(question_encoder=encoder, generator=generator).eval()
    if generator.config.model_type == "t5":
        hf.config.generator.bos_token_id = None
    generate = hf.generator.generate

    def patched(input_ids: Tensor, **options: object) -> Tensor:
        if with_mask:
            options["attention_mask"] = input_ids.ne(model.pad_token_id).long()
        sequences = generate(input_ids, **options)
        ended = sequences.eq(generator.config.eos_token_id)
        ended[:, 0] = False  # BART starts with the token that it ends with
        return sequences.masked_fill((ended.cumsum(1) - ended.long()) > 0, model.pad_token_id)

    hf.generator.generate = patched
    found = example.retrieved
    hf.config.n_docs = found.mask.shape[1]  # as an argument it does not reach the rescoring
    with torch.no_grad():
        query = hf.question_encoder(example.question_ids, attention_mask=example.question_mask, return_dict=True)
        scores = torch.bmm(query.pooler_output.unsqueeze(1), found.vectors.transpose(1, 2)).squeeze(1)
        input_ids = found.input_ids.masked_fill(found.attention_mask == 0, model.pad_token_id)
        sequences = hf.generate(
            context_input_ids=input_ids,
            context_attention_mask=found.attention_mask,
            doc_scores=scores,
            do_deduplication=True,
            num_beams=num_beams,
            max_new_tokens=TOKENS,
        )
    return [_trim(row, model.pad_token_id) for row in sequences.tolist()]


def _trim(row: list[int], pad: int) -> tuple[int, ...]:
    row = row[1:]
    while row and row[-1] == pad:
        row.pop()
    return tuple(row)


@pytest.mark.reference
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_answers_are_those_of_transformers(kind: str, num_beams: int, ragged: bool, tiny) -> None:
    compared = 0
    for seed in range(4):
        torch.manual_seed(seed)
        model, example = tiny.rag(kind), tiny.example(3, ragged=ragged)
        ours = answers(model, example, num_beams=num_beams)
        theirs = transformers_answers(model, example, num_beams, with_mask=ragged)
        for answer, expected in zip(ours, theirs, strict=True):
            if len(expected) == 1 and answer.token_ids != expected:
                continue  # an answer of one token, overrated there: see the next test
            assert answer.token_ids == expected
            text = model.generator_tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)
            assert answer.text == text.strip()
            compared += len(answer.text) > 0 and answer.candidates > 1
    assert compared >= 12


@pytest.mark.reference
def test_style_hf_ranks_one_token_answers_as_transformers_does(tiny) -> None:
    """An EOS at once loses its prior there, and so is overrated."""
    overrated = 0
    for seed in range(8):
        torch.manual_seed(seed)
        model = tiny.rag("bart", "hf")
        model.generator.final_logits_bias[0, 2] = 1.0 + seed / 2  # EOS
        example = tiny.example(4, ragged=False)
        ours = answers(model, example)
        assert [answer.token_ids for answer in ours] == transformers_answers(model, example)
        proper = tiny.rag(model.generator, encoder=model.question_encoder)
        for one, other in zip(ours, answers(proper, example), strict=True):
            if len(one.token_ids) == 1:
                assert one.log_likelihood > other.log_likelihood
                overrated += 1
    assert overrated > 4


@pytest.mark.reference
def test_a_shared_opening_bos_is_not_scored(tiny) -> None:
    """A BART that always opens with BOS: transformers leaves that token out of the score."""
    model = tiny.rag("bart")
    model.generator.generation_config.forced_bos_token_id = 0
    example = tiny.example(3, ragged=False)
    ours = answers(model, example)
    assert all(answer.token_ids[0] == 0 for answer in ours)
    assert [answer.token_ids for answer in ours] == transformers_answers(model, example)
    assert ours[0].log_likelihood == pytest.approx(slow_log_likelihood(model, example, 0, ours[0], skip=1), rel=1e-4)


def slow_log_likelihood(model: RagModel, example, row: int, answer: Answer, skip: int = 0) -> float:
    """log sum_z p(z|q) prod_t p(y_t|q,z,y_<t), one passage and one token at a time."""
    tokens = [model.decoder_start_token_id, *answer.token_ids]
    n_docs = example.retrieved.mask.shape[1]
    prior = torch.softmax(torch.tensor(answer.scores), dim=0)
    total = 0.0
    for doc in range(n_docs):
        if not example.retrieved.mask[row, doc]:
            continue
        position = row * n_docs + doc
        probability = prior[doc].item()
        for t in range(1 + skip, len(tokens)):
            with torch.no_grad():
                logits = model.generator(
                    input_ids=example.retrieved.input_ids[position : position + 1],
                    attention_mask=example.retrieved.attention_mask[position : position + 1],
                    decoder_input_ids=torch.tensor([tokens[:t]]),
                ).logits[0, -1]
            probability *= torch.softmax(logits, 0)[tokens[t]].item()
        total += probability
    return torch.tensor(total).log().item()


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_the_likelihood_is_the_marginal_one(kind: str, tiny) -> None:
    model = tiny.rag(kind).eval()
    example = tiny.example(3)
    for row, answer in enumerate(answers(model, example)):
        assert answer.log_likelihood == pytest.approx(slow_log_likelihood(model, example, row, answer), rel=1e-4)
        assert sum(answer.prior) == pytest.approx(1, abs=1e-5)
        assert sum(answer.posterior) == pytest.approx(1, abs=1e-5)
        assert answer.passage_ids == tuple(example.retrieved.ids[row].tolist())


def test_no_result_depends_on_the_other_questions_of_the_batch(tiny) -> None:
    model, example = tiny.rag("bart"), tiny.example(3)
    together = answers(model, example)
    for row in range(4):
        part, found = slice(row * 3, row * 3 + 3), example.retrieved
        alone = dataclasses.replace(
            example,
            question_ids=example.question_ids[row : row + 1],
            question_mask=example.question_mask[row : row + 1],
            retrieved=dataclasses.replace(
                found, vectors=found.vectors[row : row + 1], mask=found.mask[row : row + 1],
                ids=found.ids[row : row + 1], input_ids=found.input_ids[part],
                attention_mask=found.attention_mask[part],
            ),
        )  # fmt: skip
        (answer,) = answers(model, alone)
        assert answer.token_ids == together[row].token_ids
        assert answer.log_likelihood == pytest.approx(together[row].log_likelihood, rel=1e-4)


def test_scoring_in_portions_changes_nothing(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = tiny.rag("bart"), tiny.example(3)
    whole = answers(model, example)
    monkeypatch.setattr(tries, "READ_NODES", 1)
    monkeypatch.setattr(tries, "HEAD_NODES", 2)
    for one, other in zip(answers(model, example), whole, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_passages_are_encoded_once_and_with_others_of_their_length(
    kind: str, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, example = tiny.rag(kind), tiny.example(3)
    whole = answers(model, example)
    monkeypatch.setattr(reading, "ENCODED_TOKENS", 30)
    stack = model.generator.model.encoder if kind == "bart" else model.generator.encoder
    shapes: list[torch.Size] = []
    stack.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.last_hidden_state.shape))
    for one, other in zip(answers(model, example), whole, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)
    assert sum(shape[0] for shape in shapes) == 12
    assert len({shape[1] for shape in shapes}) > 1


@pytest.mark.parametrize("style", ["shift-right", "hf"])
def test_what_cannot_win_is_not_read_to_its_end_and_nothing_changes(
    style: str, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against scoring every candidate whole under every passage."""
    read: list[int] = []
    saved: list[float] = []
    score = reading.Seq2SeqReading.score

    def counted(self, rows, sequences):
        read.append(sum(len(one) for some in sequences for one in some))
        return score(self, rows, sequences)

    monkeypatch.setattr(reading.Seq2SeqReading, "score", counted)
    for seed in range(6):
        torch.manual_seed(seed)
        # Large weights, so that passages disagree as those of a trained model do.
        model, example = tiny.rag(tiny.bart(init_std=1.0), style), tiny.example(3)
        read.clear()
        ours, spent = answers(model, example, max_new_tokens=24), sum(read)
        with monkeypatch.context() as patch:
            patch.setattr(sequence, "STAGES", ())
            patch.setattr(sequence, "NEGLIGIBLE", -math.inf)
            patch.setattr(sequence, "_SLACK", math.inf)
            read.clear()
            whole = answers(model, example, max_new_tokens=24)
        saved.append(1 - spent / sum(read))
        for one, other in zip(ours, whole, strict=True):
            assert (one.token_ids, one.candidates) == (other.token_ids, other.candidates)
            assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-6, abs=1e-5)
            assert one.posterior == pytest.approx(other.posterior, abs=1e-6)
    assert min(saved) > 0
    assert max(saved) > 0.5


@pytest.mark.parametrize("kind", ["bart", "t5"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_fast_decoding_sums_over_the_passages_that_proposed(num_beams: int, kind: str, tiny) -> None:
    """A slow twin: each passage by itself proposes, and only its own proposals are scored under it."""
    torch.manual_seed(1)
    model, example = tiny.rag(kind).eval(), tiny.example(3)
    fast = answers(model, example, num_beams=num_beams, method="fast")
    for row, answer in enumerate(fast):
        joint: dict[tuple[int, ...], list[float]] = {}
        for doc in range(3):
            for tokens in proposals(model, example, row * 3 + doc, num_beams):
                loglik = token_loglik(model, example, row * 3 + doc, tokens).sum()
                joint.setdefault(tokens, []).append(float(loglik) + math.log(answer.prior[doc]))
        expected = {tokens: math.log(sum(map(math.exp, parts))) for tokens, parts in joint.items()}
        assert answer.candidates == len(expected)
        assert answer.token_ids == max(expected, key=lambda tokens: expected[tokens])
        assert answer.log_likelihood == pytest.approx(expected[answer.token_ids], rel=1e-4)
        assert sum(answer.posterior) == pytest.approx(1, abs=1e-5)


def test_fast_decoding_reads_no_candidate_again(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = tiny.rag("bart"), tiny.example(3)
    thorough = answers(model, example)
    monkeypatch.setattr(reading, "score", None)
    for one, other in zip(answers(model, example, method="fast"), thorough, strict=True):
        assert one.candidates == other.candidates
        assert one.log_likelihood <= other.log_likelihood + 1e-4


def proposals(model: RagModel, example, place: int, num_beams: int) -> set[tuple[int, ...]]:
    """What ``generate`` finds under one passage, cut behind its end token."""
    found = example.retrieved
    mask = found.attention_mask[place].bool()
    sequences = model.generator.generate(
        found.input_ids[place][mask][None], attention_mask=torch.ones(1, int(mask.sum())), num_beams=num_beams,
        num_return_sequences=num_beams, max_new_tokens=TOKENS, do_sample=False,
    )  # fmt: skip
    eos, rows = model.generator.config.eos_token_id, set()
    for row in sequences.tolist():
        end = row.index(eos, 1) + 1 if eos in row[1:] else len(row)
        rows.add(_trim(row[:end], model.pad_token_id))
    return rows


def token_loglik(model: RagModel, example, place: int, tokens: tuple[int, ...]) -> Tensor:
    """log p of each token under one passage, 0 at padding."""
    with torch.no_grad():
        logits = model.generator(
            input_ids=example.retrieved.input_ids[place : place + 1],
            attention_mask=example.retrieved.attention_mask[place : place + 1],
            decoder_input_ids=torch.tensor([[model.decoder_start_token_id, *tokens[:-1]]]),
        ).logits[0]
    values = torch.log_softmax(logits, -1)[torch.arange(len(tokens)), list(tokens)]
    return values.masked_fill(torch.tensor(tokens) == model.pad_token_id, 0.0)


def test_missing_passages_propose_nothing_and_count_for_nothing(tiny) -> None:
    model, example = tiny.rag("bart"), tiny.example(3)
    found = example.retrieved
    mask = found.mask.clone()
    mask[:, 2] = False
    attention = found.attention_mask.view(4, 3, -1).clone()
    attention[:, 2] = 0
    rows = (torch.arange(4)[:, None] * 3 + torch.arange(2)).flatten()
    few = dataclasses.replace(
        found, vectors=found.vectors[:, :2], mask=found.mask[:, :2], ids=found.ids[:, :2],
        input_ids=found.input_ids[rows], attention_mask=found.attention_mask[rows],
    )  # fmt: skip
    gaps = dataclasses.replace(found, mask=mask, attention_mask=attention.view(12, -1))
    expected = answers(model, dataclasses.replace(example, retrieved=few))
    for one, other in zip(answers(model, dataclasses.replace(example, retrieved=gaps)), expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.candidates == other.candidates
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-4)
        assert one.posterior[2] == one.prior[2] == 0


def test_a_question_without_passages_is_an_error(tiny) -> None:
    model, example = tiny.rag("bart"), tiny.example(2)
    example.retrieved.mask[1] = False
    with pytest.raises(DataError, match="question 1 of the batch"):
        answers(model, example)


def test_the_mode_of_the_model_is_left_alone_and_dropout_is_off(tiny) -> None:
    model = tiny.rag(tiny.bart(dropout=0.5), encoder=tiny.dpr(dropout=0.5)).train()
    example = tiny.example(2)
    first, second = answers(model, example), answers(model, example)
    assert first == second
    assert all(part.training for part in model.modules())


def test_generation_settings_made_for_summarising_are_dropped(tiny) -> None:
    generator = tiny.bart()
    generator.generation_config.no_repeat_ngram_size = 3
    generator.generation_config.min_length = 20
    model = tiny.rag(generator)
    assert not model.generator.generation_config.no_repeat_ngram_size
    assert not model.generator.generation_config.min_length


def test_float_of_a_tensor_reaches_no_answer(tiny) -> None:
    """Answers are plain numbers: they are written as JSON."""
    answer = answers(tiny.rag("bart"), tiny.example(2))[0]
    for value in dataclasses.asdict(answer).values():
        assert not isinstance(value, Tensor)
        assert isinstance(value, str | int | float | tuple)
