"""What ``train gfm`` makes of graphs and questions that are not as tidy as a benchmark's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ragtrain.config.commands import GfmConfig
from ragtrain.config.load import load_config
from ragtrain.errors import CheckpointError, ConfigError
from ragtrain.models.gfm.export import load_gfm
from ragtrain.models.gfm.ultra import UltraNetwork, UltraSettings, save_ultra
from ragtrain.train import gfm
from ragtrain.train.gfm import sources
from ragtrain.train.gfm.plan import describe

TRIPLES = [f"person {i},lives in,house {i % 3}" for i in range(9)]


def question(i: int, identifier: str, **changes: object) -> dict[str, object]:
    person, house = f"person {i}", f"house {i % 3}"
    return {
        "id": identifier, "question": f"Who lives with {person}?", "supporting_facts": [person],
        "question_entities": [person], "supporting_entities": [house], **changes,
    }  # fmt: skip


def write(folder: Path, **questions: list[dict[str, object]]) -> Path:
    """Write a folder of GFM-RAG with questions by split."""
    stage = folder / "processed" / "stage1"
    stage.mkdir(parents=True)
    (stage / "kg.txt").write_text("\n".join(TRIPLES) + "\n")
    members = {f"person {i}": [f"person {i}", f"house {i % 3}"] for i in range(9)}
    (stage / "document2entities.json").write_text(json.dumps(members))
    for split, rows in questions.items():
        (stage / f"{split}.json").write_text(json.dumps(rows))
    return folder


def config_of(output: Path, *graphs: Path, **changes: object) -> GfmConfig:
    settings = {
        "graphs": graphs, "stage": "finetune", "hidden_dim": 8, "num_layers": 2, "num_negatives": 4, "batch_size": 2,
        "max_steps": 2, "logging_steps": 1, "save_steps": None, "output_dir": output, "trackers": (), **changes,
    }  # fmt: skip
    return load_config(GfmConfig, flags=settings).config


def last(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_questions_of_two_files_with_one_id_keep_their_own_words(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "g", train=[question(i, str(i)) for i in range(4)], valid=[question(i + 4, str(i)) for i in range(4)]
    )
    data = gfm.read(config_of(tmp_path / "run", folder), tmp_path).train[0]
    for rows in (data.questions, data.validation):
        batch = sources.batch_of(data, 0, rows)
        alone = [sources.batch_of(data, 0, [row]).vectors[0] for row in rows]
        torch.testing.assert_close(batch.vectors, torch.stack(alone))
    train, valid = (sources.batch_of(data, 0, rows).vectors for rows in (data.questions, data.validation))
    assert not any(torch.equal(a, b) for a, b in zip(train, valid, strict=True))


def test_graphs_of_one_name_are_both_recorded(tmp_path: Path) -> None:
    folders = [write(tmp_path / name / "graph", train=[question(i, str(i)) for i in range(4)]) for name in "ab"]
    found = gfm.read(config_of(tmp_path / "run", *folders), tmp_path).sources["questions"]
    assert {Path(each["path"]).parents[2] for each in found.values()} == set(folders)


def test_supporting_documents_that_the_graph_lacks_are_not_found(tmp_path: Path) -> None:
    """Validation counts as evaluation does: of two supporting documents of which the graph has one, half is found at most."""
    lacking = question(0, "v", supporting_facts=["person 0", "nobody"])
    lost = question(1, "w", supporting_facts=["nobody"])
    folder = write(tmp_path / "g", train=[question(i, str(i)) for i in range(4)], valid=[lacking, lost])
    gfm.run(config_of(tmp_path / "run", folder))
    found = last(tmp_path / "run")["evaluation"]
    assert found["eval_recall@10"] == pytest.approx(0.25)
    assert 0 < found["eval_mrr"] <= 0.5


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_without_anything_to_validate_on_ends(stage: str, tmp_path: Path, caplog) -> None:
    unlabelled = question(0, "v", supporting_facts=[], supporting_entities=[])
    folder = write(tmp_path / "g", train=[question(i, str(i)) for i in range(4)], valid=[unlabelled])
    changes = {"stage": stage, **({"dev_split": 0} if stage == "pretrain" else {})}
    gfm.run(config_of(tmp_path / "run", folder, **changes))
    assert not last(tmp_path / "run").get("evaluation")
    assert "nothing is validated" in caplog.text


def test_epochs_of_the_plan_count_accumulation(tmp_path: Path) -> None:
    folder = write(tmp_path / "g", train=[question(i, str(i)) for i in range(8)])
    config = config_of(tmp_path / "run", folder, dev_split=0, gradient_accumulation_steps=2, max_steps=4)
    data = gfm.read(config, tmp_path)
    assert describe(config, data, gfm.build(config, data))["steps"] == "4 (2.0 epochs)"


def test_ultra_reads_no_texts(tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    save_ultra(UltraNetwork(UltraSettings(hidden_dim=8, relation_layers=1, num_layers=1)), start)
    folder = write(tmp_path / "g")
    plan = gfm.run(config_of(tmp_path / "run", folder, stage="pretrain", model_dir=str(start))).plan
    assert plan["text encoder"].startswith("none")
    assert not list(folder.glob("relations-*"))
    assert json.loads((tmp_path / "run" / "final_model" / "ragtrain.json").read_text())["text_encoder"] is None


def test_a_missing_checkpoint_is_told_before_a_graph_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", tmp_path / "nowhere", stage="pretrain", model_dir=str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match=r"none\.pth: there is no such file"):
        gfm.run(config)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_writes_what_gfm_rag_loads_also_when_it_is_complete(stage: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "g", train=[question(i, str(i)) for i in range(6)])
    gfm.run(config_of(tmp_path / "run", folder, stage=stage))
    assert not (tmp_path / "run" / "pretrained").exists()
    gfm.run(config_of(tmp_path / "run", folder, stage=stage, save_pretrained=True))
    ours, theirs = load_gfm(tmp_path / "run" / "final_model"), load_gfm(tmp_path / "run" / "pretrained")
    assert theirs.sidecar["stage"] == stage
    assert theirs.sidecar["text_encoder"] == ours.sidecar["text_encoder"]
    state = theirs.network.state_dict()
    names = [name for name in state if stage == "finetune" or not name.startswith("question_mlp")]
    assert all(torch.equal(ours.network.state_dict()[name], state[name]) for name in names)


def test_ultra_is_not_written_for_gfm_rag(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", stage="pretrain", model_dir="x.pth", save_pretrained=True)
    with pytest.raises(ConfigError, match="one of ULTRA"):
        gfm.run(config)


@pytest.mark.parametrize("changed", ["graph", "questions"])
def test_a_run_does_not_go_on_with_other_data(changed: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "g", train=[question(i, str(i)) for i in range(6)])
    config = config_of(tmp_path / "run", folder, save_steps=1)
    gfm.run(config)
    gfm.run(config)  # as it was
    stage = folder / "processed" / "stage1"
    if changed == "graph":
        (stage / "kg.txt").write_text("\n".join([*TRIPLES, "person 0,knows,person 1"]) + "\n")
    else:
        (stage / "train.json").write_text(json.dumps([question(i + 1, str(i)) for i in range(6)]))
    longer = config_of(tmp_path / "run", folder, save_steps=1, max_steps=4)
    with pytest.raises(CheckpointError, match=f"began with other {changed}"):
        gfm.run(longer)
    gfm.run(config_of(tmp_path / "run", folder, save_steps=1, resume="never"))
    gfm.run(config_of(tmp_path / "other", folder, save_steps=1, model_dir=str(tmp_path / "run")))
