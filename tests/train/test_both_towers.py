"""An index that follows its passage encoder: resuming, ending, evaluating, and beginning from such a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ragtrain import evaluate
from ragtrain.config.commands import EvalConfig, RagConfig
from ragtrain.config.load import load_config
from ragtrain.errors import IndexMismatchError
from ragtrain.index.bm25 import add_bm25
from ragtrain.index.search import DenseIndex
from ragtrain.train import rag
from ragtrain.train.rag.lookup import TrainingLookup
from ragtrain.train.rag.refresh import IndexRefresh


def config_of(corner: Path, output: Path, **changes: object) -> RagConfig:
    settings = {
        "train_data": corner, "n_docs": 2, "batch_size": 3, "gradient_accumulation_steps": 1, "max_steps": 4,
        "learning_rate": 1e-2, "retriever_learning_rate": 1e-2, "logging_steps": 1, "output_dir": output, "trackers": (),
        "train_context_encoder": True, "refresh_steps": 2, "save_steps": 1, "save_total_limit": None,
        "max_val_samples": 2, **changes,
    }  # fmt: skip
    return load_config(RagConfig, flags=settings).config


@pytest.fixture(scope="module")
def finished(corner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "both"
    rag.run(config_of(corner, run))
    return run


def test_a_complete_run_that_is_started_again_keeps_its_index(finished: Path, corner: Path, tmp_path: Path) -> None:
    """As a run does that was stopped between its last step and its index."""
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    before = np.load(run / "index" / "vectors.npy")
    shutil.rmtree(run / "index")
    result = rag.run(config_of(corner, run))
    assert result.steps == 4
    data = json.loads((run / "data.json").read_text())
    assert data["index"]["path"] == str(run / "index")
    assert data["index"]["original"] == str(corner / "index")
    np.testing.assert_allclose(np.load(run / "index" / "vectors.npy"), before, atol=1e-5)
    assert not list((run / "index").glob("vectors-*"))


def test_vectors_of_steps_that_are_done_again_are_not_searched(corner: Path, tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "run"
    config = config_of(corner, run, max_steps=5)
    finish = IndexRefresh.finish

    def crash(self: IndexRefresh) -> Path:
        raise OSError("the machine went away")

    monkeypatch.setattr(IndexRefresh, "finish", crash)
    with pytest.raises(OSError, match="went away"):
        rag.run(config)
    assert {path.name for path in (run / "index").iterdir()} == {"vectors-000002.npy", "vectors-000004.npy"}
    seen = []
    start = IndexRefresh.start

    def watched(self: IndexRefresh, resume: str) -> None:
        start(self, resume)
        seen.extend(path.name for path in self._kept())

    monkeypatch.setattr(IndexRefresh, "start", watched)
    monkeypatch.setattr(IndexRefresh, "finish", finish)
    rag.run(config_of(corner, run, max_steps=5, resume=str(run / "checkpoints" / "step-000003")))
    assert seen == ["vectors-000002.npy"]


def test_an_earlier_checkpoint_is_evaluated_with_vectors_of_its_own(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fingerprints = []
    for checkpoint in ("step-000001", "final"):
        caplog.clear()
        asked = EvalConfig(
            model_dir=str(finished), checkpoint=checkpoint, num_samples=3, num_beams=1, output_dir=tmp_path / checkpoint
        )
        result = evaluate.run(asked)
        fingerprints.append(result.summary["fingerprint"])
        assert ("encoded anew" in caplog.text) == (checkpoint != "final")
        row = json.loads((tmp_path / checkpoint / "predictions.jsonl").read_text().splitlines()[0])
        model = evaluate.rag.load_model_of(evaluate.subject_of(asked))
        index = DenseIndex.open(finished / "index")
        vectors = model.passage_encoder.encode_passages([index.passages.texts(i) for i in range(index.count)])
        query = model.question_encoder.encode_questions([row["question"]])[0]
        best = int((vectors @ query).argmax())
        assert row["documents"][0]["id"] == index.passages[best].id
        assert row["documents"][0]["score"] == pytest.approx(float(vectors[best] @ query), rel=2e-3)
    assert len(set(fingerprints)) == 2


def test_going_on_from_both_towers_asks_for_their_index(finished: Path, corner: Path, tmp_path: Path) -> None:
    changes = {"model_dir": str(finished), "train_context_encoder": False, "max_steps": 1}
    with pytest.raises(IndexMismatchError, match="passage encoder that was trained"):
        rag.run(config_of(corner, tmp_path / "run", **changes))
    rag.run(config_of(corner, tmp_path / "run", **changes, index_path=finished / "index"))


def test_adapters_alone_do_not_make_another_index(corner: Path, tmp_path: Path) -> None:
    config = config_of(corner, tmp_path, retriever_lora_rank=2)
    model = rag.build(config, rag.read(config, tmp_path)).model
    index = DenseIndex.open(corner / "index")
    assert model.passage_fingerprint == index.manifest["encoder"]["fingerprint"]
    assert model.passage_encoder.fingerprint() != model.passage_fingerprint


@pytest.mark.slow
def test_two_processes_refresh_one_index(corner: Path, tmp_path: Path, command) -> None:
    """With adapters, and one validation question for two processes."""
    changes = {"max_val_samples": 1, "lora_rank": 2, "retriever_lora_rank": 2, "save_steps": 4, "max_steps": 3,
               "learning_rate": 1e-3}  # fmt: skip
    rag.run(config_of(corner, tmp_path / "one", gradient_accumulation_steps=2, **changes))
    flags = [
        "--train-data", str(corner), "--n-docs", "2", "--batch-size", "3", "--gradient-accumulation-steps", "1",
        "--max-steps", "3", "--learning-rate", "1e-3", "--retriever-learning-rate", "1e-2", "--logging-steps", "1",
        "--train-context-encoder", "--refresh-steps", "2", "--save-steps", "4", "--max-val-samples", "1",
        "--lora-rank", "2", "--retriever-lora-rank", "2",
    ]  # fmt: skip
    code, _, err = command("train", "rag", *flags, "--output-dir", str(tmp_path / "two"), processes=2)
    assert code == 0, err
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], rel=1e-4)
    assert rows[1][-1]["evaluation"] == pytest.approx(rows[0][-1]["evaluation"], rel=1e-4)
    one, two = (np.load(tmp_path / name / "index" / "vectors.npy") for name in ("one", "two"))
    np.testing.assert_allclose(one, two, atol=3e-3)


def test_what_words_choose_is_not_put_in_another_order(corner: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(corner / "index", folder)
    index = DenseIndex.open(folder)
    add_bm25(folder, dict(index.manifest), (index.passages[i] for i in range(index.count)))
    config = config_of(corner, tmp_path, index_path=folder, retrieval="bm25", n_docs=3)
    parts = rag.build(config, rag.read(config, tmp_path))
    retriever = rag.Retriever.for_model(parts.index, parts.model, retrieval="bm25")
    batch = parts.train.collate(list(range(5)), 0)
    lookup = TrainingLookup(config, retriever, batch, parts.model.passage_encoder)
    with torch.no_grad():
        queries = parts.model.question_encoder.eval()(batch.question_ids, batch.question_mask)
        retrieved = lookup(queries)
        expected = retriever.search(queries, 3, texts=[question.question for question in batch.questions])
        assert torch.equal(retrieved.ids, expected.ids)
        vectors, _ = parts.model._passage_vectors(retrieved)
    fresh = torch.from_numpy(
        parts.model.passage_encoder.encode_passages([index.passages.texts(i) for i in range(index.count)])
    )
    torch.testing.assert_close(vectors, fresh[retrieved.ids], rtol=1e-4, atol=1e-4)
