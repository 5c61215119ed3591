"""final_model: loads in transformers, part by part and whole, and answers the same there and here."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, RagSequenceForGeneration, RagTokenizer

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.decoding import decode
from ragtrain.models.encoder import load_encoder
from ragtrain.models.export import load_rag, save_rag
from ragtrain.models.rag import RagModel, RagSettings, load_generator

TOKENS = 8


def build(tiny, encoder: str, generator: str, **settings: object) -> RagModel:
    if encoder == "dpr":
        tower = tiny.encoder(tiny.dpr(dropout=0.1))
    elif encoder == "dpr-projected":
        tower = tiny.encoder(tiny.dpr(projection=12))
    else:
        tower = tiny.encoder(tiny.bert(), encoder)
    model = tiny.rag(generator, encoder=tower)
    model.settings = RagSettings(**{"n_docs": 3, "max_input_tokens": 77, **settings})
    return model


def strings(model: RagModel, example) -> list[str]:
    found = decode(
        model, example.question_ids, example.question_mask, example.retrieve, num_beams=3, max_new_tokens=TOKENS
    )
    assert all(len(answer.token_ids) > 1 for answer in found)
    return [answer.text for answer in found]


def transformers_strings(rag: RagSequenceForGeneration, folder: Path, example) -> list[str]:
    """Everything from the folder, nothing patched."""
    tokenizer = RagTokenizer.from_pretrained(folder)
    found = example.retrieved
    pad = rag.config.generator.pad_token_id
    with torch.no_grad():
        query = rag.question_encoder(example.question_ids, attention_mask=example.question_mask)[0]
        scores = torch.bmm(query.unsqueeze(1), found.vectors.transpose(1, 2)).squeeze(1)
        sequences = rag.generate(
            context_input_ids=found.input_ids.masked_fill(found.attention_mask == 0, pad),
            context_attention_mask=found.attention_mask, doc_scores=scores, num_beams=3, max_new_tokens=TOKENS,
        )  # fmt: skip
    return [text.strip() for text in tokenizer.batch_decode(sequences, skip_special_tokens=True)]


@pytest.mark.reference
@pytest.mark.parametrize("generator", ["bart", "t5", "t5-v1.1"])
@pytest.mark.parametrize("encoder", ["dpr", "dpr-projected", "cls"])
def test_transformers_loads_it_whole_and_answers_the_same(encoder: str, generator: str, tiny, tmp_path: Path) -> None:
    model = build(tiny, encoder, generator)
    # Passages of one length: transformers' generate reads the padding of shorter ones.
    example = tiny.example(3, dim=model.question_encoder.dim, ragged=False)
    before = strings(model, example)
    folder = save_rag(model, tmp_path / "final_model")
    rag, info = RagSequenceForGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert rag.config.n_docs == 3
    assert rag.config.max_combined_length == 77
    assert rag.config.retrieval_vector_size == model.question_encoder.dim
    assert rag.config.reduce_loss is False
    assert rag.config.label_smoothing == 0
    assert transformers_strings(rag.eval(), folder, example) == before
    assert strings(load_rag(folder), example) == before
    assert strings(model, example) == before


@pytest.mark.parametrize("encoder", ["dpr", "cls", "mean"])
def test_it_comes_back_as_it_was(encoder: str, tiny, tmp_path: Path) -> None:
    model = build(tiny, encoder, "bart", doc_sep=" ? ", max_target_tokens=9)
    folder = save_rag(model, tmp_path / "run" / "final_model")
    for path in (folder, tmp_path / "run"):  # a run folder stands for its final model
        again = load_rag(path)
        assert again.settings == model.settings
        assert again.question_encoder.fingerprint() == model.question_encoder.fingerprint()
        weights = model.state_dict()
        assert again.state_dict().keys() == weights.keys()
        for name, tensor in again.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
        assert not again.training or again.question_encoder.training


@pytest.mark.parametrize("encoder", ["dpr", "mean"])
def test_the_parts_load_alone(encoder: str, tiny, tmp_path: Path) -> None:
    model = build(tiny, encoder, "bart")
    folder = save_rag(model, tmp_path / "final_model")
    words = " ".join(tiny.words[:5])
    expected = model.question_encoder.eval().encode_questions([words])
    ours = load_encoder(folder / "question_encoder", role="question")
    torch.testing.assert_close(torch.from_numpy(ours.encode_questions([words])), torch.from_numpy(expected))
    whole = load_encoder(folder, role="question")  # the RAG folder stands for its question encoder
    assert whole.fingerprint() == ours.fingerprint()
    theirs = AutoModel.from_pretrained(folder / "question_encoder").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "question_encoder")
    with torch.no_grad():
        output = theirs(**tokenizer(words, return_tensors="pt"), return_dict=True)
    vector = output.pooler_output if encoder == "dpr" else output.last_hidden_state.mean(1)
    torch.testing.assert_close(vector, torch.from_numpy(expected))
    generator, _ = load_generator(folder / "generator")
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder / "generator")
    for name, tensor in model.generator.state_dict().items():
        torch.testing.assert_close(generator.state_dict()[name], tensor)
        torch.testing.assert_close(plain.state_dict()[name], tensor)


def test_what_transformers_cannot_express_is_said(tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build(tiny, "mean", "bart")
    with caplog.at_level(logging.WARNING, logger="ragtrain"):
        folder = save_rag(model, tmp_path / "final_model")
    assert "pooling mean" in caplog.text
    assert not (folder / "config.json").exists()
    assert json.loads((folder / "ragtrain.json").read_text())["hf_rag"] is False
    assert load_rag(folder).question_encoder.settings.pooling == "mean"


def test_saving_touches_neither_model_nor_random_state(tiny, tmp_path: Path) -> None:
    model = build(tiny, "cls", "bart").train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.question_encoder.settings
    state = torch.get_rng_state()
    save_rag(model, tmp_path / "final_model")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())
    assert model.question_encoder.settings == settings
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_saving_again_replaces_what_was_there(tiny, tmp_path: Path) -> None:
    save_rag(build(tiny, "dpr", "bart"), tmp_path / "final_model")
    second = build(tiny, "mean", "t5")
    folder = save_rag(second, tmp_path / "final_model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final_model"]
    assert not (folder / "model.safetensors").exists()
    assert load_rag(folder).generator.config.model_type == "t5"


@pytest.mark.parametrize("generator", ["bart", "t5"])
def test_a_folder_of_transformers_own_rag_loads(generator: str, tiny, tmp_path: Path) -> None:
    model = build(tiny, "dpr", generator)
    rag = RagSequenceForGeneration(question_encoder=model.question_encoder.model, generator=model.generator)
    rag.config.n_docs = 4
    rag.save_pretrained(tmp_path)
    RagTokenizer(model.question_encoder.tokenizer, model.generator_tokenizer).save_pretrained(tmp_path)
    loaded = load_rag(tmp_path)
    assert loaded.settings.target_style == "hf"
    assert loaded.settings.n_docs == 4
    assert loaded.settings.max_input_tokens == 300
    assert loaded.question_encoder.settings.passage_format == "pair"
    example = tiny.example(3)
    assert strings(loaded, example) == strings(model, example)
    assert load_encoder(tmp_path, role="question").fingerprint() == loaded.question_encoder.fingerprint()


def test_what_is_no_rag_model_is_refused(tiny, tmp_path: Path) -> None:
    tiny.encoder(tiny.bert(), "cls").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no RAG model"):
        load_rag(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        load_rag(tmp_path / "nothing")


def test_a_damaged_folder_is_a_data_error(tiny, tmp_path: Path) -> None:
    folder = save_rag(build(tiny, "dpr", "bart"), tmp_path / "final_model")
    (folder / "generator" / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(DataError, match="weights cannot be loaded"):
        load_rag(folder)


def test_a_temperature_is_kept_and_transformers_is_not_misled(tiny, tmp_path: Path, caplog) -> None:
    model = build(tiny, "dpr", "bart", score_temperature=0.05)
    with caplog.at_level("WARNING"):
        save_rag(model, tmp_path / "final_model")
    assert "temperature 0.05" in caplog.text
    assert not (tmp_path / "final_model" / "config.json").exists()
    loaded, example = load_rag(tmp_path / "final_model"), tiny.example(2)
    assert loaded.settings.score_temperature == 0.05
    assert strings(loaded, example) == strings(model, example)
