"""Evaluation of graph retrievers: figures against slow loops, every question in them, the rankings beside, folders, refusals."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ragtrain import compare, prepare
from ragtrain.config.commands import CompareConfig, EncoderConfig, EvalConfig, GfmConfig, PrepareConfig
from ragtrain.config.load import load_config
from ragtrain.data import demo
from ragtrain.errors import CheckpointError, ConfigError, DataError, IndexMismatchError
from ragtrain.evaluate import graph_model, run
from ragtrain.evaluate.graph_model import Scorer, retriever_of
from ragtrain.evaluate.resolve import subject_of
from ragtrain.index.graph.pagerank import ppr
from ragtrain.index.graph.read import load_graph
from ragtrain.models.gfm.export import save_gfm
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork
from ragtrain.models.weights import save_weights
from ragtrain.records import write_json, write_jsonl
from ragtrain.runs import RunFolder

DIM = 128  # of the built-in encoder


def village(folder: Path, people: int = 12) -> Path:
    """A graph of people and houses in GFM-RAG's form, and one document that no entity is in."""
    rng = np.random.default_rng(people)
    corpus, members, lines, questions = {}, {}, [], []
    for i in range(people):
        person, house, work = f"person {i}", f"house {rng.integers(4)}", f"shop {rng.integers(3)}"
        lines += [f"{person},lives in,{house}", f"{person},works at,{work}"]
        corpus[person] = f"{person} lives in {house} and works at {work}."
        members[person] = [person, house, work]
        other = f"person {(i + 1) % people}"
        questions.append({
            "id": f"{2 + i % 2}hop__{i}", "question": f"Who knows {person}?", "answer": house,
            "supporting_facts": [person, other], "question_entities": [person], "supporting_entities": [house, other],
        })  # fmt: skip
    corpus["Nothing"] = "Nobody is named here."
    lost = {"id": "lost", "question": "Who lives in it?", "answer": "nobody", "supporting_facts": ["Nothing"],
            "question_entities": ["nobody"], "supporting_entities": []}  # fmt: skip
    missing = {**questions[0], "id": "missing", "supporting_facts": ["person 0", "person 99"]}
    goldless = {**questions[1], "id": "goldless", "supporting_facts": [], "supporting_entities": []}
    stage = folder / "processed" / "stage1"
    (folder / "raw").mkdir(parents=True)
    write_json(folder / "raw" / "dataset_corpus.json", corpus)
    write_json(stage / "document2entities.json", members)
    (stage / "kg.txt").write_text("\n".join(lines) + "\n")
    write_json(stage / "train.json", questions[4:])
    write_json(stage / "test.json", [*questions[:4], lost, missing, goldless])
    return folder


def network(seed: int = 0) -> GraphNetwork:
    torch.manual_seed(seed)
    return GraphNetwork(GfmSettings(hidden_dim=8, num_layers=2, text_dim=DIM)).eval()


def make_run(path: Path, *graphs: Path, seed: int = 0, stage: str = "finetune", **changes: Any) -> Path:
    """A run as ``train gfm`` leaves it, of a network that learnt nothing."""
    settings = {"graphs": graphs, "stage": stage, "hidden_dim": 8, "num_layers": 2, "output_dir": path, "trackers": (),
                "dev_split": 0.25, **changes}  # fmt: skip
    config = load_config(GfmConfig, flags=settings).config.model_dump(mode="json")
    folder = RunFolder.create(path, "gfm", config)
    found = [load_graph(graph) for graph in graphs]
    about = [{"path": str(each.folder), "fingerprint": each.graph.fingerprint} for each in found]
    folder.write_data({"graphs": about, "text_encoder": {"name": str(demo.ENCODER)}})
    sidecar = {"stage": stage, "text_encoder": str(demo.ENCODER), "graphs": about, "ranking": config["ranking"],
               "init_entity_weights": True}  # fmt: skip
    save_gfm(network(seed), folder.final_model, sidecar=sidecar)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return village(tmp_path / "village")


@pytest.fixture
def trained(graph: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", graph)


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def without_test(graph: Path) -> None:
    (graph / "processed" / "stage1" / "test.json").unlink()


# Figures


def test_figures_are_those_of_a_slow_loop(trained: Path) -> None:
    result = run(EvalConfig(model_dir=str(trained), n_docs=100))
    summary, rows = result.summary, predictions(result.path)
    assert [row["id"] for row in rows] == ["2hop__0", "3hop__1", "2hop__2", "3hop__3", "lost", "missing", "goldless"]
    assert (summary["n"], summary["without_gold"], summary["unlinked"], summary["missing_documents"]) == (7, 1, 1, 1)
    scored = [row for row in rows if row["gold"]]
    for k in (2, 5, 10, 20):
        found = [sum(d["is_gold"] for d in row["documents"][:k]) / row["gold"] for row in scored]
        assert summary[f"recall@{k}"] == pytest.approx(np.mean(found))
        low, high = summary["intervals"][f"recall@{k}"]
        assert low <= summary[f"recall@{k}"] <= high
        filtered = []
        for row in scored:
            above, hits = 0, 0
            for document in row["documents"]:
                if document["is_gold"]:
                    hits += above < k
                else:
                    above += 1
            filtered.append(hits / row["gold"])
        assert summary[f"filtered_hits@{k}"] == pytest.approx(np.mean(filtered))
    first = [next(i for i, d in enumerate(row["documents"], 1) if d["is_gold"]) for row in scored]
    assert summary["mrr"] == pytest.approx(np.mean([1 / rank for rank in first]))
    assert summary["entity_recall@20"] <= 1
    assert rows[0]["first_hit"] == 1 + next(
        i for i, d in enumerate(rows[0]["documents"]) if rows[0]["answers"][0] in d["text"]
    )


def test_missing_and_unlinked_count(trained: Path) -> None:
    rows = {row["id"]: row for row in predictions(run(EvalConfig(model_dir=str(trained))).path)}
    assert rows["missing"]["gold"] == 2
    assert len(rows["missing"]["gold_ranks"]) == 1
    assert rows["lost"]["linked"] == 0
    assert rows["lost"]["documents"]
    assert rows["goldless"]["gold"] == 0


def test_scores_are_those_of_the_network_with_and_without_null_states(trained: Path, graph: Path) -> None:
    retriever = retriever_of(subject_of(EvalConfig(model_dir=str(trained))))
    scorer = Scorer.open(retriever, graph, torch.device("cpu"))
    from ragtrain.data.graph_questions import read_graph_questions

    questions = read_graph_questions(graph, scorer.found.graph, "test").questions
    vectors = scorer.vectors([question.question for question in questions])
    fast = scorer.entities(questions, vectors)
    scorer.network.null_states = False
    torch.testing.assert_close(scorer.entities(questions, vectors), fast, rtol=1e-5, atol=1e-6)
    frequency = np.bincount(scorer.found.graph.document_entities, minlength=scorer.found.graph.n_entities)
    torch.testing.assert_close(scorer.weights, torch.from_numpy(1 / frequency).float())


def test_rankings_beside_the_network(trained: Path, graph: Path) -> None:
    result = run(EvalConfig(model_dir=str(trained)))
    systems = result.summary["systems"]
    assert list(systems) == ["bm25", "ppr", "bm25+ppr", "model", "model+bm25"]
    rows = predictions(result.path)
    # A question of words alone: the person's own document is first.
    assert rows[0]["ranks"]["bm25"][0] == 1
    found = load_graph(graph).graph
    walked = ppr(found, [found.entities.index("person 0")])
    bounds = zip(found.document_offsets[:-1], found.document_offsets[1:], strict=True)
    sums = [walked[found.document_entities[start:stop]].sum() for start, stop in bounds]
    order = sorted(range(len(sums)), key=lambda d: (-sums[d], d))
    titles = [found.documents[d].title for d in order]
    assert rows[0]["ranks"]["ppr"] == sorted(1 + titles.index(title) for title in ("person 0", "person 1"))
    assert "difference" not in systems["model"]
    delta, low, high = systems["bm25"]["difference"]["recall@5"]
    assert delta == pytest.approx(systems["model"]["metrics"]["recall@5"] - systems["bm25"]["metrics"]["recall@5"])
    assert low <= delta <= high


def test_hops(trained: Path) -> None:
    summary = run(EvalConfig(model_dir=str(trained))).summary
    assert {hops: group["n"] for hops, group in summary["hops"].items()} == {"unknown": 2, "2": 2, "3": 2}
    weighted = sum(g["n"] * g["systems"]["model"]["metrics"]["recall@5"] for g in summary["hops"].values())
    assert weighted / 6 == pytest.approx(summary["recall@5"])


def test_fusion_changes_what_is_evaluated(trained: Path, tmp_path: Path) -> None:
    plain = run(EvalConfig(model_dir=str(trained), output_dir=tmp_path / "plain")).summary
    fused = run(EvalConfig(model_dir=str(trained), output_dir=tmp_path / "fused", fusion="bm25")).summary
    assert (plain["evaluated"], fused["evaluated"]) == ("model", "model+bm25")
    assert fused["mrr"] == plain["systems"]["model+bm25"]["metrics"]["mrr"]
    assert "difference" in fused["systems"]["model"]


def test_dense_by_an_index_whose_documents_were_split(trained: Path, graph: Path, tmp_path: Path) -> None:
    documents = load_graph(graph).graph.documents
    write_jsonl(tmp_path / "passages.jsonl", (document.to_json() for document in documents[:-2]))
    config = PrepareConfig(passages=tmp_path / "passages.jsonl", output_dir=tmp_path / "index", passage_words=4,
                           encoder=EncoderConfig(encoder=str(demo.ENCODER)))  # fmt: skip
    prepare.run(config)
    settings = {"model_dir": str(trained), "index_path": tmp_path / "index", "fusion": "dense"}
    result = run(EvalConfig(**settings))
    assert result.summary["evaluated"] == "model+dense"
    assert list(result.summary["systems"])[-4:] == ["dense", "model", "model+bm25", "model+dense"]
    other = village(tmp_path / "other", 5)
    corpus = {f"strange {i}": "text" for i in range(5)}
    write_json(other / "raw" / "dataset_corpus.json", corpus)
    write_json(other / "processed" / "stage1" / "document2entities.json", {title: ["person 0"] for title in corpus})
    with pytest.raises(IndexMismatchError, match="none of the graph's documents"):
        run(EvalConfig(**settings, graph=other, output_dir=tmp_path / "out"))


# What is asked


def test_without_test_questions_those_held_out_are_asked(
    trained: Path, graph: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_test(graph)
    with caplog.at_level(logging.WARNING, "ragtrain"):
        summary = run(EvalConfig(model_dir=str(trained))).summary
    assert "the 2 that the run held out of its 8 training questions, by which its best checkpoint" in caplog.text
    assert (summary["n"], summary["data"]["split"]) == (2, "validation")


def test_validation_files_and_none_at_all(
    trained: Path, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = graph / "processed" / "stage1"
    (stage / "test.json").rename(stage / "valid.json")
    with caplog.at_level(logging.WARNING, "ragtrain"):
        assert run(EvalConfig(model_dir=str(trained))).summary["n"] == 7
    assert "these are its validation questions" in caplog.text
    (stage / "valid.json").unlink()
    (stage / "train.json").unlink()
    with pytest.raises(DataError, match="neither test nor validation questions"):
        run(EvalConfig(model_dir=str(trained / "final_model"), output_dir=tmp_path / "out"))


def test_training_questions_are_told(trained: Path, graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ragtrain.data.graph_questions import read_graph_questions

    file = graph / "processed" / "stage1" / "train.json"
    digest = read_graph_questions(file, load_graph(graph).graph).sha256
    write_json(trained / "data.json", {"questions": {"train": {"sha256": digest}}})
    with caplog.at_level(logging.WARNING, "ragtrain"):
        run(EvalConfig(model_dir=str(trained), test_data=file, num_samples=3))
    assert "how well it remembers them" in caplog.text


def test_questions_without_entities_are_linked_by_name(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    rows = [{"id": "a", "question": "Where does Person 3 live?", "supporting_facts": ["person 3"]},
            {"id": "b", "question": "Where is it that nobody wants to be in the end?", "supporting_facts": ["person 3"]}]  # fmt: skip
    write_json(file, rows)
    result = run(EvalConfig(model_dir=str(trained), test_data=file))
    assert [row["linked"] for row in predictions(result.path)] == [1, 0]
    assert result.summary["data"]["linked_here"] is True
    assert result.summary["unlinked"] == 1


def test_questions_of_a_dataset_are_measured_and_those_without_documents_are_told(
    trained: Path, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = load_graph(graph).graph.documents[0]
    gold = [{"id": document.id, "title": document.title, "text": document.text, "is_gold": True}]
    for name, documents in (("gold", gold), ("none", [])):
        row = {"id": "1", "question": f"What of {document.title}?", "answers": ["x"], "documents": documents}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    found = run(EvalConfig(model_dir=str(trained), test_data=tmp_path / "gold.jsonl", output_dir=tmp_path / "gold"))
    assert found.metrics["recall@20"] == 1.0
    assert "nothing is measured" not in caplog.text
    run(EvalConfig(model_dir=str(trained), test_data=tmp_path / "none.jsonl", output_dir=tmp_path / "none"))
    assert "nothing is measured" in caplog.text


def test_another_graph(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = village(tmp_path / "other", 5)
    with caplog.at_level(logging.INFO, "ragtrain"):
        summary = run(EvalConfig(model_dir=str(trained), graph=other)).summary
    assert "is not a graph that" in caplog.text
    assert summary["graph"]["documents"] == 6


def test_several_graphs_or_none_are_to_be_named(graph: Path, tmp_path: Path) -> None:
    both = make_run(tmp_path / "both", graph, village(tmp_path / "second", 5))
    with pytest.raises(ConfigError, match="was trained on 2 graphs"):
        run(EvalConfig(model_dir=str(both)))
    save_gfm(network(), tmp_path / "bare", sidecar={"stage": "finetune", "text_encoder": str(demo.ENCODER)})
    with pytest.raises(ConfigError, match="says of no graph"):
        run(EvalConfig(model_dir=str(tmp_path / "bare"), output_dir=tmp_path / "out"))
    save_gfm(network(), tmp_path / "mute", sidecar={})
    with pytest.raises(ConfigError, match="which text encoder"):
        run(EvalConfig(model_dir=str(tmp_path / "mute"), graph=graph, output_dir=tmp_path / "out"))


# Weights


def test_checkpoints_and_unfinished_runs(trained: Path, graph: Path, tmp_path: Path) -> None:
    final = run(EvalConfig(model_dir=str(trained), output_dir=tmp_path / "final")).summary
    folder = trained / "checkpoints" / "step-000001"
    folder.mkdir(parents=True)
    save_weights(graph_model._Saved(network(1)), folder)
    settings = {"model_dir": str(trained), "checkpoint": "step-000001"}
    early = run(EvalConfig(**settings, output_dir=tmp_path / "early")).summary
    assert early["model"]["fingerprint"] != final["model"]["fingerprint"]
    (trained / "final_model").rename(tmp_path / "aside")
    unfinished = run(EvalConfig(**settings, output_dir=tmp_path / "early")).summary
    assert unfinished["model"] == early["model"]
    with pytest.raises(CheckpointError, match="no final model"):
        run(EvalConfig(model_dir=str(trained)))
    with pytest.raises(CheckpointError, match="no checkpoint 'best'"):
        run(EvalConfig(model_dir=str(trained), checkpoint="best"))


# The folder


def test_the_same_evaluation_is_not_made_twice(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(EvalConfig(model_dir=str(trained)))
    assert first.path == trained / "eval"
    monkeypatch.setattr(Scorer, "entities", None)
    again = run(EvalConfig(model_dir=str(trained), batch_size=1))
    assert again.reused
    assert again.metrics == first.metrics
    with pytest.raises(ConfigError, match="another evaluation"):
        run(EvalConfig(model_dir=str(trained), fusion="bm25"))


def test_runs_compare(trained: Path, graph: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", graph, seed=1)
    for folder in (trained, other):
        run(EvalConfig(model_dir=str(folder), output_file=folder.with_suffix(".json")))
    for paths in ((trained, other), (trained.with_suffix(".json"), other.with_suffix(".json"))):
        (found,) = compare.run(CompareConfig(runs=paths)).comparisons
        names = [difference.metric for difference in found.differences]
        assert names == [f"{kind}@{k}" for kind in ("answer_recall", "recall") for k in (1, 2, 5, 10)]
        recall = next(difference for difference in found.differences if difference.metric == "recall@5")
        summary = json.loads((trained / "eval" / "metrics.json").read_text())
        assert recall.a == pytest.approx(summary["recall@5"])
        assert recall.sentence.startswith(("B's recall of gold passages within 5 is", "recall@5: no question changed"))


def test_what_makes_no_sense_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--contexts-from means nothing to a graph model"):
        run(EvalConfig(model_dir=str(trained), contexts_from=trained))
    with pytest.raises(ConfigError, match="--num-beams, --max-new-tokens means nothing to a graph model"):
        run(EvalConfig(model_dir=str(trained), num_beams=2, max_new_tokens=3))
    with pytest.raises(ConfigError, match="needs vectors of the graph's documents"):
        run(EvalConfig(model_dir=str(trained), fusion="dense"))
    triples = tmp_path / "triples"
    triples.mkdir()
    (triples / "train.txt").write_text("a\tr\tb\n")
    with pytest.raises(DataError, match="no documents to retrieve"):
        run(EvalConfig(model_dir=str(trained), graph=triples))


def test_the_baselines_of_musique(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README of the folder says of words and of the walk comes out here; the network learnt nothing."""

    def vectors(texts: Any, encoder: object, folder: object = None, **_: object) -> np.ndarray:
        count = 2 * texts.n_relations if hasattr(texts, "n_relations") else len(texts)
        return np.random.default_rng(0).standard_normal((count, DIM), dtype=np.float32)

    monkeypatch.setattr(graph_model, "relation_features", vectors)
    monkeypatch.setattr(graph_model, "question_features", vectors)
    folder = real_data / "graph" / "musique_train_hipporag"
    save_gfm(network(), tmp_path / "model", sidecar={"stage": "finetune", "text_encoder": str(demo.ENCODER)})
    settings = {"model_dir": str(tmp_path / "model"), "graph": folder, "output_dir": tmp_path / "out"}
    summary = run(EvalConfig(**settings, test_data=folder / "processed" / "stage1" / "train.json")).summary
    assert (summary["n"], summary["unlinked"], summary["without_gold"]) == (100, 1, 0)
    said = {
        "ppr": (0.352, 0.450, 0.561, 0.604),
        "bm25": (0.404, 0.488, 0.590, 0.689),
        "bm25+ppr": (0.417, 0.541, 0.624, 0.702),
    }
    for name, values in said.items():
        found = [summary["systems"][name]["metrics"][f"recall@{k}"] for k in (2, 5, 10, 20)]
        assert found == pytest.approx(values, abs=0.0006 if name == "ppr" else 0.015)
    assert {hops: group["n"] for hops, group in summary["hops"].items()} == {"2": 68, "3": 27, "4": 5}
