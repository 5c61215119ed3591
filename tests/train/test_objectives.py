"""Every objective and both towers through the recipe, and what holds between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ragtrain import evaluate, metrics
from ragtrain.config.commands import EvalConfig, RagConfig
from ragtrain.config.load import load_config
from ragtrain.data import demo
from ragtrain.errors import ConfigError
from ragtrain.index.search import DenseIndex
from ragtrain.models.encoder import load_encoder
from ragtrain.models.export import load_rag
from ragtrain.train import rag
from ragtrain.train.rag.lookup import TrainingLookup
from ragtrain.train.rag.refresh import IndexRefresh


def config_of(corner: Path, output: Path, **changes: object) -> RagConfig:
    settings = {
        "train_data": corner, "n_docs": 2, "batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 2,
        "learning_rate": 1e-4, "logging_steps": 1, "output_dir": output, "trackers": (), **changes,
    }  # fmt: skip
    return load_config(RagConfig, flags=settings).config


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(demo.GENERATOR)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=256, **special)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


RUNS: dict[str, dict[str, object]] = {
    "rag-token": {"objective": "rag-token"},
    "pdist": {"objective": "pdist"},
    "emdr, chunked": {"objective": "emdr", "doc_chunk": 1},
    "pdist, frozen generator": {"objective": "pdist", "train_generator": False, "target_temperature": 2.0},
    "FiD, pdist": {"reader": "fid", "objective": "pdist", "doc_chunk": 1},
    "FiD, emdr": {"reader": "fid", "objective": "emdr"},
    "FiD, frozen retriever": {"reader": "fid", "train_question_encoder": False},
    "InfoNCE": {"infonce_weight": 0.5, "infonce_temperature": 0.5},
    "LoRA on both": {"lora_rank": 2, "retriever_lora_rank": 2},
    "both towers": {"train_context_encoder": True, "refresh_steps": 1, "infonce_weight": 0.1},
    "both towers, LoRA, FiD": {
        "train_context_encoder": True, "retriever_lora_rank": 2, "reader": "fid", "objective": "pdist",
    },
    "passage tower alone": {"train_context_encoder": True, "train_question_encoder": False},
}  # fmt: skip
TEACHES = {"pdist", "emdr"}


def trained(run: Path, name: str, tmp_path: Path, corner: Path) -> bool:
    """Say whether a network of a final model differs from the one the run began with."""
    built = rag.build(config_of(corner, tmp_path / "again"), rag.read(config_of(corner, tmp_path), tmp_path)).model
    after = load_rag(run / "final_model")
    before = built.question_encoder if name == "passage_encoder" else getattr(built, name)
    weights = dict(getattr(after, name).named_parameters())
    return any((weights[key] != value).any() for key, value in before.named_parameters() if key in weights)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_what_it_says(name: str, corner: Path, tmp_path: Path) -> None:
    changes = RUNS[name]
    result = rag.run(config_of(corner, tmp_path / "run", **changes))
    assert result.steps == 2
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(row["loss"])
    if (objective := changes.get("objective")) in TEACHES:
        assert row["parts"][objective] > 0
    if "infonce_weight" in changes:
        assert row["parts"]["infonce"] > 0
    assert trained(tmp_path / "run", "generator", tmp_path, corner) == changes.get("train_generator", True)
    assert trained(tmp_path / "run", "question_encoder", tmp_path, corner) == changes.get(
        "train_question_encoder", True
    )
    if changes.get("train_context_encoder"):
        assert trained(tmp_path / "run", "passage_encoder", tmp_path, corner)
        index = DenseIndex.open(tmp_path / "run" / "index")
        encoder = load_encoder(tmp_path / "run" / "final_model" / "passage_encoder")
        assert index.manifest["encoder"]["fingerprint"] == encoder.fingerprint()
        fresh = encoder.encode_passages([index.passages.texts(place) for place in range(8)])
        np.testing.assert_allclose(np.asarray(index.vectors[:8], dtype=np.float32), fresh, atol=2e-3)
        assert np.abs(fresh - DenseIndex.open(corner / "index").vectors[:8]).max() > 1e-4


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"objective": "rag-token"}, {"objective": "pdist"}], ids=str)
def test_a_causal_generator_is_trained(changes: dict[str, object], causal: Path, corner: Path, tmp_path: Path) -> None:
    result = rag.run(config_of(corner, tmp_path / "run", generator=str(causal), max_target_tokens=8, **changes))
    assert result.steps == 2
    assert np.isfinite(result.loss)
    assert load_rag(tmp_path / "run" / "final_model").reader.causal
    assert (tmp_path / "run" / "final_model" / "generator_adapter").is_dir() == ("lora_rank" in changes)


@pytest.mark.parametrize("both_towers", [False, True])
def test_a_checkpoint_with_adapters_answers_as_its_final_model(both_towers: bool, corner: Path, tmp_path: Path) -> None:
    changes = {"lora_rank": 2, "retriever_lora_rank": 2, "train_context_encoder": both_towers}
    path = rag.run(config_of(corner, tmp_path / "run", learning_rate=1e-2, **changes)).path
    answers = {}
    for checkpoint in ("final", "latest"):
        asked = EvalConfig(
            model_dir=str(path), num_samples=4, num_beams=1, checkpoint=checkpoint, output_dir=tmp_path / checkpoint
        )
        evaluate.run(asked)
        rows = [json.loads(line) for line in (tmp_path / checkpoint / "predictions.jsonl").read_text().splitlines()]
        answers[checkpoint] = [(row["prediction"], row["documents"][0]["id"]) for row in rows]
    assert answers["final"] == answers["latest"]


@pytest.mark.parametrize("decoding", ["thorough", "fast"])
def test_a_causal_run_is_evaluated(decoding: str, causal: Path, corner: Path, tmp_path: Path) -> None:
    path = rag.run(config_of(corner, tmp_path / "run", generator=str(causal), max_target_tokens=8)).path
    result = evaluate.run(EvalConfig(model_dir=str(path), num_samples=4, num_beams=2, decoding=decoding))
    assert result.summary["n"] == 4
    assert 0 <= result.metrics["em"] <= 1


def gradients(corner: Path, tmp_path: Path, **changes: object) -> dict[str, Tensor]:
    config = config_of(corner, tmp_path / "run", **changes)
    torch.manual_seed(0)  # adapters begin at random
    parts = rag.build(config, rag.read(config, tmp_path))
    parts.model.eval()
    loss = rag.loss_of(config, rag.Retriever.for_model(parts.index, parts.model), parts.model)
    batch = parts.train.collate(list(range(6)), 0)
    loss(parts.model, batch).total.backward()
    return {name: p.grad for name, p in parts.model.named_parameters() if p.grad is not None}


def test_emdr_with_passages_read_one_by_one_is_the_marginal_likelihood(corner: Path, tmp_path: Path) -> None:
    marginal, emdr = gradients(corner, tmp_path), gradients(corner, tmp_path, objective="emdr")
    assert marginal.keys() == emdr.keys()
    for name, gradient in marginal.items():
        torch.testing.assert_close(emdr[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max() + 1e-3))


def test_what_does_not_go_together_is_refused_at_once(corner: Path, tmp_path: Path) -> None:
    config = config_of(
        corner, tmp_path / "run", reader="fid", label_smoothing=0.1, train_context_encoder=True, search_index="faiss"
    )
    with pytest.raises(ConfigError) as caught:
        rag.run(config)
    for words in ("take pdist or emdr", "label_smoothing", "search_index=flat"):
        assert words in caught.value.message
    with pytest.raises(ConfigError, match="nothing to train"):
        rag.run(config_of(corner, tmp_path / "run", train_generator=False, train_question_encoder=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora_dropout": 0.1}, "lora.lora_rank is 0"),
        ({"lora_targets": ("q_proj",)}, "lora.lora_rank is 0"),
        ({"context_encoder": "somewhere"}, "retriever.train_context_encoder is off"),
        ({"freeze_retriever_steps": 5, "train_generator": False}, "only one is trained"),
        ({"freeze_retriever_steps": 5, "train_question_encoder": False}, "only one is trained"),
        ({"infonce_weight": 0.1, "train_question_encoder": False}, "none is trained"),
        ({"objective": "pdist", "train_generator": False, "label_smoothing": 0.1}, "the generator is frozen"),
    ],
    ids=str,
)
def test_what_would_be_ignored_is_refused(changes: dict[str, object], named: str, corner: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        rag.check(config_of(corner, tmp_path / "run", **changes))


def test_settings_without_effect_are_told(corner: Path, tmp_path: Path) -> None:
    changes = {"hard_negatives": 2, "target_temperature": 2.0, "refresh_steps": 7, "train_question_encoder": False}
    config = config_of(corner, tmp_path / "run", retriever_learning_rate=1e-4, **changes)
    assert rag.idle(config) == ["hard_negatives", "target_temperature", "refresh_steps", "retriever_learning_rate"]
    used = {"infonce_weight": 0.1, "objective": "pdist", "train_context_encoder": True, "train_question_encoder": True}
    assert not rag.idle(config_of(corner, tmp_path / "run", retriever_learning_rate=1e-4, **{**changes, **used}))


@pytest.mark.parametrize("reader", ["rag", "fid"])
@pytest.mark.parametrize("objective", ["pdist", "emdr"])
def test_a_frozen_retriever_is_not_taught(objective: str, reader: str, corner: Path, tmp_path: Path) -> None:
    """The loss is the generator's alone, and passages have no likelihoods of their own where only FiD reads them."""
    frozen = {"train_question_encoder": False, "reader": reader}
    plain = gradients(corner, tmp_path, objective="rag-sequence", **frozen)
    taught = gradients(corner, tmp_path, objective=objective, **frozen)
    assert plain.keys() == taught.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(taught[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_causal_generator_has_no_unshifted_targets(causal: Path, corner: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target_style=hf"):
        rag.run(config_of(corner, tmp_path / "run", generator=str(causal), target_style="hf"))


@pytest.mark.parametrize(("asked", "expected"), [(300, 224), (250, 224), (225, 224), (100, 100)])
def test_a_causal_input_leaves_its_answer_room(
    asked: int, expected: int, causal: Path, corner: Path, tmp_path: Path
) -> None:
    config = config_of(corner, tmp_path, generator=str(causal), max_input_tokens=asked, max_target_tokens=32)
    model = rag.build(config, rag.read(config, tmp_path)).model
    assert model.settings.max_input_tokens == expected  # of 256 positions


CHUNKED = {
    "rag-token, checkpointed": {"objective": "rag-token", "gradient_checkpointing": True},
    "smoothed, LoRA": {"label_smoothing": 0.1, "lora_rank": 2, "retriever_lora_rank": 2},
    "FiD": {"reader": "fid", "objective": "pdist"},
}


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_no_gradient(name: str, corner: Path, tmp_path: Path) -> None:
    whole = gradients(corner, tmp_path, n_docs=3, **CHUNKED[name])
    parts = gradients(corner, tmp_path, n_docs=3, doc_chunk=2, **CHUNKED[name])
    assert whole.keys() == parts.keys()
    for key, gradient in whole.items():  # that of a key's bias is nought and round-off
        torch.testing.assert_close(parts[key], gradient, rtol=1e-4, atol=1e-5 + 1e-4 * float(gradient.abs().max()))


def test_the_plan_counts_what_is_held(corner: Path, tmp_path: Path) -> None:
    def held(**changes: object) -> float:
        config = config_of(corner, tmp_path, n_docs=8, **changes)
        data = rag.read(config, tmp_path)
        text = str(rag.describe(config, data, rag.build(config, data))["memory estimate"])
        value, unit = text.split("about ")[1].split(" activations")[0].split()
        return float(value) * {"KiB": 1, "MiB": 1024, "GiB": 1024**2}[unit]

    plain = held()
    assert held(doc_chunk=2) < 0.35 * plain
    assert held(doc_chunk=9) == plain
    assert held(gradient_checkpointing=True) < plain
    assert held(train_generator=False) < 0.5 * plain
    assert held(train_question_encoder=False) < plain
    both = held(train_context_encoder=True)
    assert both > plain
    assert held(train_context_encoder=True, infonce_weight=0.1) > both


def lookup_of(corner: Path, tmp_path: Path, **changes: object) -> tuple[TrainingLookup, Tensor, rag.RagParts]:
    config = config_of(corner, tmp_path / "run", **changes)
    parts = rag.build(config, rag.read(config, tmp_path))
    retriever = rag.Retriever.for_model(parts.index, parts.model)
    batch = parts.train.collate(list(range(12)), 0)
    encoder = parts.model.passage_encoder
    with torch.no_grad():
        queries = parts.model.question_encoder.eval()(batch.question_ids, batch.question_mask)
    return TrainingLookup(config, retriever, batch, encoder), queries, parts


def test_the_pool_holds_positives_and_no_false_negatives(corner: Path, tmp_path: Path) -> None:
    lookup, queries, parts = lookup_of(corner, tmp_path, infonce_weight=1.0, hard_negatives=3, n_docs=2)
    retrieved = lookup(queries)
    pool = retrieved.pool
    assert torch.equal(pool.vectors[pool.place], retrieved.vectors)
    texts = [parts.index.passages[place].text for place in _ids(pool.vectors, parts)]
    found = lookup.first_hits
    for row, question in enumerate(lookup.batch.questions):
        held = torch.tensor([metrics.has_answer(question.answers, text) for text in texts])
        assert pool.positive[row].sum() == (found[row] > 0), "one positive, wherever one was found"
        assert (held | ~pool.positive[row]).all()
        assert torch.equal(pool.candidate[row], pool.positive[row] | ~held)
    assert (found > 2).any(), "some positives lie deeper than what is read"
    assert pool.candidate.sum(1).min() >= 3


def _ids(vectors: Tensor, parts: rag.RagParts) -> list[int]:
    everything = torch.from_numpy(np.asarray(parts.index.vectors, dtype=np.float32))
    return [int((everything - vector).abs().sum(1).argmin()) for vector in vectors]


def test_fresh_vectors_decide_the_order_between_refreshes(corner: Path, tmp_path: Path) -> None:
    lookup, queries, parts = lookup_of(corner, tmp_path, train_context_encoder=True, over_retrieve=3)
    encoder = parts.model.passage_encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    retrieved = lookup(queries)
    old = lookup.retriever.search(queries, 6)
    fresh = torch.from_numpy(encoder.encode_passages([parts.index.passages.texts(i) for i in range(parts.index.count)]))
    moved = 0
    for row in range(len(queries)):
        scores = fresh[old.ids[row]] @ queries[row]
        expected = old.ids[row][scores.argsort(descending=True)][:2]
        assert retrieved.ids[row].tolist() == expected.tolist()
        moved += expected.tolist() != old.ids[row][:2].tolist()
    assert moved
    with torch.no_grad():
        vectors, _ = parts.model._passage_vectors(retrieved)
    torch.testing.assert_close(vectors, fresh[retrieved.ids], rtol=1e-4, atol=1e-4)


def test_a_run_with_refreshes_resumes_exactly(corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"train_context_encoder": True, "refresh_steps": 2, "save_steps": 3, "save_total_limit": None,
               "retriever_learning_rate": 1e-2, "max_val_samples": 2}  # fmt: skip
    rag.run(config_of(corner, tmp_path / "whole", max_steps=6, **changes))
    after = IndexRefresh.after

    def crash(self: IndexRefresh, step: int) -> None:
        after(self, step)
        if step == 4:
            raise OSError("the machine went away")

    config = config_of(corner, tmp_path / "parts", max_steps=6, **changes)
    monkeypatch.setattr(IndexRefresh, "after", crash)
    with pytest.raises(OSError, match="went away"):
        rag.run(config)
    monkeypatch.setattr(IndexRefresh, "after", after)
    steps = tmp_path / "parts"
    assert (steps / "index" / "vectors-000002.npy").is_file()
    rag.run(config_of(corner, steps, max_steps=6, resume="latest", **changes))
    whole, again = (load_file(path / "final_model" / "model.safetensors") for path in (tmp_path / "whole", steps))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
