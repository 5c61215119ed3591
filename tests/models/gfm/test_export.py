"""Networks on the disk, ours and GFM-RAG's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.export import FILE, load_gfm, save_gfm, save_v1
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork

SETTINGS = GfmSettings(hidden_dim=4, num_layers=2, text_dim=6)
SIDECAR = {"kind": "gfm", "stage": "finetune", "text_encoder": "some/encoder", "graphs": [{"path": "a/graph"}]}

#: The names and shapes of GFM-RAG 1 for the settings above, written out.
LAYER = {
    "linear.weight": (4, 8), "linear.bias": (4,), "layer_norm.weight": (4,), "layer_norm.bias": (4,),
    "relation_projection.0.weight": (4, 4), "relation_projection.0.bias": (4,),
    "relation_projection.2.weight": (4, 4), "relation_projection.2.bias": (4,),
}  # fmt: skip
V1 = {
    "rel_mlp.weight": (4, 6), "rel_mlp.bias": (4,), "question_mlp.weight": (4, 6), "question_mlp.bias": (4,),
    **{f"entity_model.layers.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()},
    "entity_model.mlp.0.weight": (8, 8), "entity_model.mlp.0.bias": (8,),
    "entity_model.mlp.2.weight": (1, 8), "entity_model.mlp.2.bias": (1,),
}  # fmt: skip
CONFIG = {
    "text_emb_model_config": {
        "_target_": "gfmrag.text_emb_models.BaseTextEmbModel",
        "text_emb_model_name": "sentence-transformers/all-mpnet-base-v2",
        "normalize": False,
    },
    "model_config": {
        "_target_": "gfmrag.models.GNNRetriever",
        "entity_model": {
            "_target_": "gfmrag.ultra.models.QueryNBFNet",
            "input_dim": 4,
            "hidden_dims": [4, 4],
            "message_func": "distmult",
            "aggregate_func": "sum",
            "short_cut": True,
            "layer_norm": True,
        },
        "rel_emb_dim": 6,
    },
}


def scores(network: GraphNetwork) -> torch.Tensor:
    graph = GraphTensors.from_triples(torch.tensor([[0, 0, 1], [1, 1, 2], [2, 0, 3]]), 5, 2)
    features = torch.linspace(-1, 1, 24).view(4, 6)
    with torch.no_grad():
        return network.score_entities(graph, features, features[:2], [[0], [3]])


def write_v1(folder: Path, config: object = CONFIG, skip: str = "nothing") -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True)
    state = {name: torch.randn(shape) for name, shape in V1.items() if not name.startswith(skip)}
    torch.save({"model": state}, folder / "model.pth")
    (folder / "config.json").write_text(json.dumps(config))
    return state


def test_a_network_comes_back(tmp_path: Path) -> None:
    network = GraphNetwork(SETTINGS)
    network.question_mlp.requires_grad_(False)  # a pre-training has it frozen, and the file holds it all the same
    folder = save_gfm(network, tmp_path / "run" / "final_model", sidecar=SIDECAR)
    assert not network.question_mlp.weight.requires_grad
    for path in (folder, tmp_path / "run"):
        found = load_gfm(path)
        assert found.sidecar == SIDECAR
        assert found.network.settings == SETTINGS
        assert torch.equal(scores(found.network), scores(network))
    assert not found.network.training
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["final_model"]
    save_gfm(network, folder, sidecar=SIDECAR)
    assert "2 layers of 4" in (folder / "README.md").read_text()


def test_a_folder_of_gfm_rag_is_read_and_written(tmp_path: Path) -> None:
    state = write_v1(tmp_path / "out" / "pretrained")
    found = load_gfm(tmp_path / "out")
    assert found.sidecar["text_encoder"] == "sentence-transformers/all-mpnet-base-v2"
    assert found.sidecar["stage"] == "finetune"
    assert torch.equal(found.network.layers[1].linear.weight, state["entity_model.layers.1.linear.weight"])
    assert torch.equal(found.network.head[2].weight, state["entity_model.mlp.2.weight"])
    written = save_v1(found.network, tmp_path / "again", sidecar=found.sidecar)
    back = torch.load(written / "model.pth", weights_only=True)["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    config = json.loads((written / "config.json").read_text())
    assert config["model_config"]["entity_model"] == CONFIG["model_config"]["entity_model"]
    assert config["model_config"]["_target_"] == "gfmrag.models.GNNRetriever"
    assert config["text_emb_model_config"].items() >= CONFIG["text_emb_model_config"].items()
    assert torch.equal(scores(load_gfm(written).network), scores(found.network))


def test_a_pretrained_one_of_gfm_rag_has_no_map_of_questions(tmp_path: Path) -> None:
    state = write_v1(tmp_path / "a", skip="question_mlp")
    found = load_gfm(tmp_path / "a")
    assert found.sidecar["stage"] == "pretrain"
    assert torch.equal(found.network.question_mlp.weight, state["rel_mlp.weight"])
    written = save_v1(found.network, tmp_path / "b", sidecar=found.sidecar)
    assert torch.load(written / "model.pth", weights_only=True)["model"].keys() == state.keys()
    assert json.loads((written / "config.json").read_text())["model_config"]["_target_"] == "gfmrag.models.QueryGNN"


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        ("entity_model", None, "no model_config with an entity_model"),
        ("rel_emb_dim", None, "names no rel_emb_dim"),
        ("use_ent_emb", "early-fusion", "use_ent_emb='early-fusion'"),
    ],
)
def test_other_networks_of_gfm_rag_are_refused(tmp_path: Path, place: str, value: object, match: str) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["model_config"][place] = value
    write_v1(tmp_path / "a", config)
    with pytest.raises((ConfigError, DataError), match=match):
        load_gfm(tmp_path / "a")


def test_widths_must_be_one(tmp_path: Path) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["model_config"]["entity_model"]["hidden_dims"] = [4, 8]
    write_v1(tmp_path / "a", config)
    with pytest.raises(ConfigError, match="different widths"):
        load_gfm(tmp_path / "a")


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        load_gfm(tmp_path / "missing")
    with pytest.raises(ConfigError, match="holds no graph network"):
        load_gfm(tmp_path)
    with pytest.raises(ConfigError, match="the hub did not give it"):
        load_gfm("nobody/nothing")
    write_v1(tmp_path / "a")
    (tmp_path / "a" / "model.pth").write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_gfm(tmp_path / "a")
    write_v1(tmp_path / "b", skip="rel_mlp")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_gfm(tmp_path / "b")
    folder = save_gfm(GraphNetwork(SETTINGS), tmp_path / "c", sidecar={})
    (folder / FILE).write_text('{"kind": "sft"}')
    with pytest.raises(DataError, match="does not describe"):
        load_gfm(folder)
