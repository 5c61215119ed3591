"""The joint recipe as a user runs it: run folder, resuming, several processes, and what others can load."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ragtrain.config.commands import RagConfig
from ragtrain.config.load import load_config
from ragtrain.train import rag


def config_of(corner: Path, output: Path, **changes: object) -> RagConfig:
    settings = {
        "train_data": corner, "n_docs": 2, "batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 4,
        "save_steps": 2, "learning_rate": 1e-4, "logging_steps": 1, "output_dir": output, **changes,
    }  # fmt: skip
    return load_config(RagConfig, flags=settings).config


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final_model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(corner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with TensorBoard and an evaluation at the end."""
    run = tmp_path_factory.mktemp("runs") / "rag"
    result = rag.run(config_of(corner, run))
    assert result.steps == 4
    assert {"eval_loss", "eval_em", "eval_answer_recall@1"} <= result.evaluation.keys()
    return run


def test_a_run_folder_explains_itself(finished: Path, corner: Path) -> None:
    entries = {path.name for path in finished.iterdir()}
    assert entries == {
        "config.yaml", "env.json", "data.json", "metrics.jsonl", "train.log", "runs", "checkpoints", "final_model"
    }  # fmt: skip
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "best", "latest", "step-000002", "step-000004"
    ]  # fmt: skip
    data = json.loads((finished / "data.json").read_text())
    assert data["train"]["path"] == str(corner)
    assert data["index"]["count"] > 10
    assert data["test"]["path"] == str(corner / "test.jsonl")
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert any((finished / "runs").rglob("events.out.tfevents*"))


def test_plain_transformers_loads_the_final_model_and_answers_the_same(finished: Path, corner: Path) -> None:
    from transformers import AutoTokenizer, RagSequenceForGeneration

    from ragtrain.data.formats import read_questions
    from ragtrain.evaluate.answers import AnswerSettings, evaluate_questions
    from ragtrain.index.search import DenseIndex
    from ragtrain.models.export import load_rag
    from ragtrain.retrieve import Retriever

    model = load_rag(finished / "final_model")
    retriever = Retriever.for_model(DenseIndex.open(corner / "index"), model)
    questions = read_questions(corner / "test.jsonl").questions
    settings = AnswerSettings(n_docs=2, recall_at=(1,), num_beams=2, max_new_tokens=12)
    ours = [record.prediction for record in evaluate_questions(model, retriever, questions, settings).records]

    theirs, report = RagSequenceForGeneration.from_pretrained(finished / "final_model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    # Its ``generate`` hands ``attention_mask=None`` on, which transformers 5 takes at its word: every passage but the
    # longest is then read with its padding. The mask is put back here, so that the models are compared.
    generate, pad = theirs.generator.generate, theirs.generator.config.pad_token_id
    theirs.generator.generate = lambda ids, **how: generate(ids, **{**how, "attention_mask": ids.ne(pad).long()})
    encoder_tokenizer = AutoTokenizer.from_pretrained(finished / "final_model" / "question_encoder_tokenizer")
    generator_tokenizer = AutoTokenizer.from_pretrained(finished / "final_model" / "generator_tokenizer")
    answers = []
    for question in questions:
        asked = encoder_tokenizer(question.question, return_tensors="pt")
        query = theirs.question_encoder(asked["input_ids"], attention_mask=asked["attention_mask"])[0]
        tokens = generator_tokenizer(" " + question.question, add_special_tokens=False)["input_ids"]
        found = retriever.for_questions([torch.tensor(tokens).numpy()])(query.detach())
        scores = torch.einsum("bd,bnd->bn", query, found.vectors)
        ids = theirs.generate(
            context_input_ids=found.input_ids, context_attention_mask=found.attention_mask, doc_scores=scores,
            n_docs=2, num_beams=2, max_new_tokens=12, do_deduplication=True,
        )  # fmt: skip
        answers.append(generator_tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    assert ours == answers


def test_the_parts_load_alone(finished: Path) -> None:
    from transformers import AutoModel, AutoModelForSeq2SeqLM

    AutoModelForSeq2SeqLM.from_pretrained(finished / "final_model" / "generator")
    AutoModel.from_pretrained(finished / "final_model" / "question_encoder")


def test_micro_batches_are_one_batch(corner: Path, tmp_path: Path) -> None:
    config = config_of(corner, tmp_path / "run")
    parts = rag.build(config, rag.read(config, tmp_path))
    retriever = rag.Retriever.for_model(parts.index, parts.model)
    loss, indices = rag.loss_of(config, retriever, parts.model), list(range(8))

    def gradients(portions: list[list[int]]) -> torch.Tensor:
        parts.model.zero_grad()
        batches = [parts.train.collate(portion, 0) for portion in portions]
        weight = sum(batch.weight for batch in batches)
        for batch in batches:
            (loss(parts.model, batch).total / weight).backward()
        return torch.cat([p.grad.flatten() for p in parts.model.parameters() if p.grad is not None])

    whole = gradients([indices])
    assert whole.norm() > 0
    for size in (1, 2, 3):
        split = gradients([indices[start : start + size] for start in range(0, 8, size)])
        torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(corner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run that others are held against."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    rag.run(config_of(corner, run, max_steps=6))
    return run


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(
    whole: Path, flags: list[str], tmp_path: Path, spawn, command
) -> None:
    run = tmp_path / "run"
    process = spawn("train", "rag", *flags, "--output-dir", str(run))
    wait_for(run / "checkpoints" / "step-000002" / "state.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "final_model").exists()
    code, out, err = command("train", "rag", *flags, "--output-dir", str(run))
    assert code == 0, err
    assert out == ""
    assert "resuming" in err
    assert same(whole, run)
    assert losses(whole) == losses(run)


def test_sigterm_saves_says_how_to_go_on_and_exits_143(
    flags: list[str], whole: Path, tmp_path: Path, spawn, command
) -> None:
    run = tmp_path / "run"
    process = spawn("train", "rag", *flags, "--output-dir", str(run))
    wait_for(run / "checkpoints" / "step-000002" / "state.json", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    (resume,) = {line.split("go on with: ")[1].strip() for line in err.splitlines() if "go on with: " in line}
    code, _, err = command(*resume.split()[1:])
    assert code == 0, err
    assert same(whole, run)


def test_two_processes_are_one(whole: Path, flags: list[str], tmp_path: Path, command) -> None:
    run = tmp_path / "run"
    code, _, err = command(
        "train", "rag", *flags, "--gradient-accumulation-steps", "1", "--output-dir", str(run), processes=2
    )
    assert code == 0, err
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_dry_run_prints_the_plan_and_writes_nothing(flags: list[str], corner: Path, tmp_path: Path, command) -> None:
    before = sorted(corner.rglob("*"))
    code, out, err = command("train", "rag", *flags, "--dry-run", "--json", cwd=tmp_path)
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert plan["steps"].startswith("6 ")
    assert plan["effective batch"].startswith("6 questions")
    assert "MiB" in plan["memory estimate"]
    assert list(tmp_path.iterdir()) == []
    assert sorted(corner.rglob("*")) == before


def test_without_any_data_the_demo_set_is_trained_on(tmp_path: Path, command) -> None:
    code, _, err = command(
        "train", "rag", "--max-steps", "1", "--batch-size", "2", "--max-val-samples", "4", cwd=tmp_path
    )
    assert code == 0, err
    assert "built-in demo set" in err
    assert (tmp_path / "runs" / "rag" / "final_model" / "config.json").is_file()
    assert (tmp_path / "data" / "demo" / "dataset.json").is_file()


def test_a_bad_line_is_named_with_file_line_and_field(corner: Path, tmp_path: Path, command) -> None:
    broken = tmp_path / "train.jsonl"
    lines = (corner / "train.jsonl").read_text().splitlines()
    broken.write_text("\n".join([*lines[:3], json.dumps({"id": "x", "question": "Where?"}), *lines[3:]]) + "\n")
    code, _, err = command(
        "train", "rag", "--train-data", str(broken), "--index-path", str(corner / "index"), cwd=tmp_path
    )
    assert code == 3, err
    assert f"{broken}:4" in err
    assert "answers" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl"]


def test_a_missing_index_says_how_to_make_one(corner: Path, tmp_path: Path, command) -> None:
    code, _, err = command("train", "rag", "--train-data", str(corner), "--index-path", "nowhere", cwd=tmp_path)
    assert code == 3, err
    assert "ragtrain index prepare" in err


def test_a_loss_that_is_not_finite_names_the_questions(corner: Path, tmp_path: Path) -> None:
    from ragtrain.errors import NumericsError

    with pytest.raises(NumericsError, match="demo-"):
        rag.run(config_of(corner, tmp_path / "run", learning_rate=1e30, max_grad_norm=0, max_steps=5))
