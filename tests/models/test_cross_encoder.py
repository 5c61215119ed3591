"""Scores of pairs: independent of their batch, the best window of a long passage, and what is no reranker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from ragtrain.errors import ConfigError, DataError, NumericsError, OutOfMemoryError
from ragtrain.models.cross_encoder import load_cross_encoder

LENGTHS = (3, 9, 1, 6, 4)


@pytest.fixture
def save(tmp_path: Path, bert_tokenizer, tiny):
    def make(labels: int = 1, **changes: object) -> Path:
        settings = {
            "vocab_size": tiny.vocab, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 32, "num_labels": labels, "initializer_range": 0.5,
        }  # fmt: skip
        BertForSequenceClassification(BertConfig(**{**settings, **changes})).save_pretrained(tmp_path)
        bert_tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return make


def texts(tiny, lengths=LENGTHS) -> list[str]:
    return [" ".join(tiny.words[(7 * i + j) % len(tiny.words)] for j in range(n)) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("labels", [1, 2])
def test_scores_are_logits_and_do_not_depend_on_the_batch(save, tiny, bert_tokenizer, labels: int):
    folder = save(labels)
    encoder = load_cross_encoder(folder)
    asked = [("w1 w2", texts(tiny)), ("w3", texts(tiny)[:2]), ("w4", [])]
    together, alone = encoder.scores(asked, 7), encoder.scores(asked, 1)
    assert [len(row) for row in together] == [5, 2, 0]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for (question, passages), row, other in zip(asked, together, alone, strict=True):
        for passage, score, single in zip(passages, row, other, strict=True):
            with torch.no_grad():
                logits = model(**bert_tokenizer(question, passage, return_tensors="pt")).logits[0]
            expected = float(logits[0]) if labels == 1 else float(logits[1] - logits[0])
            assert score == pytest.approx(expected, abs=1e-5)
            assert single == pytest.approx(expected, abs=1e-5)


def test_a_long_passage_counts_by_its_best_window(save, tiny):
    folder = save()
    encoder = load_cross_encoder(folder, max_tokens=16)
    long = " ".join(tiny.words[:40])
    (scores,) = encoder.scores([("w1 w2", [long, "w5"])], 4)
    assert encoder.split_passages == 1
    assert encoder.cut_questions == 0
    # Two tokens of the question and three special ones leave eleven; windows share two.
    windows = [" ".join(tiny.words[:40][start : start + 11]) for start in range(0, 40, 9)]
    (each,) = load_cross_encoder(folder).scores([("w1 w2", windows)], 4)
    assert scores[0] == pytest.approx(max(each), abs=1e-5)


def test_a_long_question_leaves_half_of_the_room(save, tiny):
    encoder = load_cross_encoder(save(), max_tokens=16)
    (scores,) = encoder.scores([(" ".join(tiny.words), ["w5 w6"])], 4)
    assert len(scores) == 1
    assert encoder.cut_questions == 1


def test_a_full_device_halves_the_batch(save, tiny, monkeypatch: pytest.MonkeyPatch):
    encoder = load_cross_encoder(save())
    forward, sizes = encoder.model.forward, []

    def small(**batch):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("full")
        return forward(**batch)

    expected = encoder.scores([("w1", texts(tiny))], 5)
    monkeypatch.setattr(encoder.model, "forward", small)
    assert encoder.scores([("w1", texts(tiny))], 5)[0] == pytest.approx(expected[0], abs=1e-5)
    assert max(sizes) == 5
    assert sizes.count(2) >= 2
    monkeypatch.setattr(encoder.model, "forward", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(OutOfMemoryError, match="by itself"):
        encoder.scores([("w1", ["w2"])], 1)


def test_decoders_with_a_classifier_score_too(tmp_path: Path, bert_tokenizer, tiny):
    config = LlamaConfig(
        vocab_size=tiny.vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, num_labels=1, initializer_range=0.5,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    bert_tokenizer.save_pretrained(tmp_path)
    encoder = load_cross_encoder(tmp_path)
    asked = [("w1 w2", texts(tiny))]
    assert encoder.scores(asked, 5)[0] == pytest.approx(encoder.scores(asked, 1)[0], abs=1e-5)


def test_what_is_no_reranker_is_refused(save, tmp_path: Path, bert_tokenizer, tiny):
    with pytest.raises(ConfigError, match="3 classes"):
        load_cross_encoder(save(3))
    bare = tmp_path / "bare"
    config = BertConfig(vocab_size=tiny.vocab, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, num_labels=1)  # fmt: skip
    BertModel(config).save_pretrained(bare)
    bert_tokenizer.save_pretrained(bare)
    with pytest.raises(DataError, match="missing"):
        load_cross_encoder(bare)
    encoder = load_cross_encoder(save(1))
    encoder.model.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        encoder.scores([("w1", ["w2"])], 1)
