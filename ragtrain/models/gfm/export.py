"""The saved form of a graph network, and that of GFM-RAG.

final_model/
├── model.safetensors   the weights
├── gfm.json            the form of the network (``settings``), and what the run says of itself: stage, text encoder, …
└── README.md           what it is, for people

pretrained/             as GFM-RAG 1 writes and reads it
├── config.json         ``model_config`` and ``text_emb_model_config``
└── model.pth           ``{"model": weights}``, read as tensors and nothing else
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.models import weights
from ragtrain.models.folders import read_json, written_aside
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

KIND = "gfm"
FILE = "gfm.json"
V1_FILES = ("config.json", "model.pth")

#: Beginnings of our names of weights, and of GFM-RAG's.
_NAMES = (
    ("relation_mlp.", "rel_mlp."),
    ("question_mlp.", "question_mlp."),
    ("layers.", "entity_model.layers."),
    ("head.", "entity_model.mlp."),
)
_QUESTIONS = "question_mlp."
#: What of GFM-RAG's networks has no counterpart here, with the value that means its absence.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "concat_hidden": (False, None), "dependent": (False, None), "activation": ("relu", None), "num_mlp_layer": (2, None),
    "num_mlp_layers": (2, None), "use_ent_emb": (None,), "return_hidden": (False, None),
}  # fmt: skip
_ENCODER_TARGET = "gfmrag.text_emb_models.BaseTextEmbModel"


@dataclasses.dataclass(frozen=True)
class LoadedGfm:
    """A network and what its folder says of it.

    Attributes:
        network: in evaluation mode.
        sidecar: the contents of ``gfm.json``; of a folder of GFM-RAG its stage, text encoder and ``gfm_rag``, its
            configuration.
        folder: where it was found.
    """

    network: GraphNetwork
    sidecar: dict[str, Any]
    folder: Path


def save_gfm(model: GraphNetwork, folder: str | Path, *, sidecar: Mapping[str, Any]) -> Path:
    """Write a network, aside and then in place of what stands there.

    Args:
        model: the network, as it is.
        folder: where it goes.
        sidecar: what else ``gfm.json`` says: ``stage``, ``text_encoder``, ``graphs``, ``ranking``.

    Returns:
        The folder.
    """
    about = {**sidecar, "kind": KIND, "settings": model.settings.to_json()}
    with written_aside(Path(folder)) as path:
        # Frozen parameters too: there is no base from which they could be had.
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            weights.save_weights(model, path)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        write_json(path / FILE, about)
        (path / "README.md").write_text(_card(about, model), encoding="utf-8")
    return Path(folder)


def load_gfm(name_or_path: str | Path) -> LoadedGfm:
    """Load a network: our folder, a run that ends in it, a folder of GFM-RAG, or a hub id of either.

    Raises:
        ConfigError: there is no such folder, or it holds no graph network.
        DataError: its description cannot be read.
        CheckpointError: its weights do not fit its description.
    """
    folder = _folder(name_or_path)
    if (folder / FILE).is_file():
        about = read_json(folder / FILE)
        if about.get("kind") != KIND or not isinstance(about.get("settings"), dict):
            raise DataError("does not describe a graph network", path=folder / FILE)
        network = GraphNetwork(GfmSettings.from_json(about["settings"]))
        weights.load_weights(network, folder)
        return LoadedGfm(network.eval(), {k: v for k, v in about.items() if k != "settings"}, folder)
    return _load_v1(folder)


def save_v1(model: GraphNetwork, folder: str | Path, *, sidecar: Mapping[str, Any]) -> Path:
    """Write a network as GFM-RAG 1 loads it (``load_model_from_pretrained``).

    A network that was only pre-trained becomes a ``QueryGNN``, which has no map of questions, any other a
    ``GNNRetriever``.

    Args:
        model: the network.
        folder: where it goes.
        sidecar: of ``save_gfm`` or ``load_gfm``: ``stage``, ``text_encoder``, and ``gfm_rag`` where it came from there.
    """
    pretrained = sidecar.get("stage") == "pretrain"
    settings, given = model.settings, sidecar.get("gfm_rag") or {}
    encoder = {
        "_target_": _ENCODER_TARGET, "normalize": False, "batch_size": 32, "query_instruct": None,
        "passage_instruct": None, "model_kwargs": None, **given.get("text_emb_model_config", {}),
        "text_emb_model_name": sidecar.get("text_encoder"),
    }  # fmt: skip
    config = {
        "text_emb_model_config": encoder,
        "model_config": {
            "_target_": f"gfmrag.models.{'QueryGNN' if pretrained else 'GNNRetriever'}",
            "entity_model": {
                "_target_": "gfmrag.ultra.models.QueryNBFNet",
                "input_dim": settings.hidden_dim,
                "hidden_dims": [settings.hidden_dim] * settings.num_layers,
                "message_func": settings.message,
                "aggregate_func": settings.aggregate,
                "short_cut": settings.short_cut,
                "layer_norm": settings.layer_norm,
            },
            "rel_emb_dim": settings.text_dim,
            "feat_dim": settings.text_dim,
        },
    }
    state = {
        _renamed(name, ours=0): tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if not (pretrained and name.startswith(_QUESTIONS))
    }
    with written_aside(Path(folder)) as path:
        write_json(path / V1_FILES[0], config)
        torch.save({"model": state}, path / V1_FILES[1])
    return Path(folder)


def _load_v1(folder: Path) -> LoadedGfm:
    config_file, file = (folder / name for name in V1_FILES)
    config = read_json(config_file)
    settings = _v1_settings(config, config_file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes make it raise
        raise CheckpointError(f"cannot be read as weights: {error}", path=file) from error
    found = content.get("model") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise CheckpointError("holds no weights under 'model'", path=file)
    state: dict[str, Tensor] = {_renamed(name.removeprefix("module."), ours=1): t for name, t in found.items()}
    network = GraphNetwork(settings)
    asks = any(name.startswith(_QUESTIONS) for name in state)
    if not asks:  # of pre-training, which asks with relations
        state |= {_QUESTIONS + name: tensor for name, tensor in network.question_mlp.state_dict().items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"its weights do not fit {config_file.name}: {error}", path=file) from error
    if not asks:
        network.questions_from_relations()
    sidecar: dict[str, Any] = {"kind": KIND, "stage": "finetune" if asks else "pretrain", "gfm_rag": config}
    encoder = config.get("text_emb_model_config") or {}
    name = encoder.get("text_emb_model_name") if isinstance(encoder, dict) else None
    name = name or config.get("text_emb_model")  # of the first releases
    if isinstance(name, str):
        sidecar["text_encoder"] = name
    return LoadedGfm(network.eval(), sidecar, folder)


def _v1_settings(config: Mapping[str, Any], path: Path) -> GfmSettings:
    """Return the form of a network of GFM-RAG 1.

    Raises:
        DataError: the configuration is another's.
        ConfigError: the network has parts that there are not here.
    """
    outer = config.get("model_config")
    inner = outer.get("entity_model") if isinstance(outer, dict) else None
    if not isinstance(outer, dict) or not isinstance(inner, dict):
        raise DataError("has no model_config with an entity_model", path=path)
    for name, accepted in _ABSENT.items():
        value = inner.get(name, outer.get(name))
        if value not in accepted:
            raise ConfigError(f"{path}: {name}={value!r} of GFM-RAG is not supported",
                              hint="Of version 1, networks as in its paper load.")  # fmt: skip
    text_dim = outer.get("rel_emb_dim", outer.get("feat_dim"))
    dims = inner.get("hidden_dims")
    width = inner.get("input_dim")
    if not isinstance(text_dim, int) or not isinstance(dims, list) or not isinstance(width, int) or not dims:
        raise DataError("names no rel_emb_dim, input_dim or hidden_dims", path=path)
    if set(dims) != {width}:
        raise ConfigError(f"{path}: layers of different widths, {[width, *dims]}, are not supported")
    return GfmSettings(
        hidden_dim=width, num_layers=len(dims), message=inner.get("message_func", "distmult"),
        aggregate=inner.get("aggregate_func", "sum"), short_cut=bool(inner.get("short_cut", False)),
        layer_norm=bool(inner.get("layer_norm", False)), text_dim=text_dim,
    )  # fmt: skip


def _renamed(name: str, *, ours: int) -> str:
    """Return the other name of a weight: GFM-RAG's of ours (0), or ours of GFM-RAG's (1)."""
    for pair in _NAMES:
        if name.startswith(pair[ours]):
            return pair[1 - ours] + name.removeprefix(pair[ours])
    return name


def _folder(name_or_path: str | Path) -> Path:
    """Return the folder that holds a network: the one given, that of a run, or a snapshot of a hub id."""
    path, name = Path(name_or_path), str(name_or_path)
    if not path.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        path = _from_hub(name)
    for folder in (path, path / "final_model", path / "pretrained"):
        if (folder / FILE).is_file() or all((folder / file).is_file() for file in V1_FILES):
            return folder
    what = "holds no graph network" if path.is_dir() else "is no folder"
    raise ConfigError(f"{name} {what}: there is neither {FILE} nor {' and '.join(V1_FILES)}",
                      hint="Pass a run of train gfm, its final_model, or a pretrained folder of GFM-RAG.")  # fmt: skip


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and needed for hub ids only

    try:
        return Path(snapshot_download(name, allow_patterns=[FILE, weights.FILE, *V1_FILES]))
    except Exception as error:  # the hub's errors have no common class: offline, not found, gated, bad name
        raise ConfigError(
            f"{name!r} is no folder, and the hub did not give it: {type(error).__name__}",
            hint="Check the spelling and the network, or download the model and pass its folder.",
        ) from error


def _card(about: Mapping[str, Any], model: GraphNetwork) -> str:
    """Return a short description for people."""
    settings = model.settings
    count = sum(parameter.numel() for parameter in model.parameters())
    graphs = [f"- graph: {Path(str(graph.get('path', '?'))).name}" for graph in about.get("graphs") or []]
    lines = [
        "---", "library_name: ragtrain", "tags: [rag, graph, ragtrain]", "---", "",
        "# A graph foundation model for retrieval", "",
        f"{count:,} parameters: {settings.num_layers} layers of {settings.hidden_dim}, message {settings.message}, "
        f"aggregate {settings.aggregate}.", "",
        f"- stage: {about.get('stage', 'unknown')}", f"- text encoder: {about.get('text_encoder', 'unknown')}", *graphs,
        "", f"The form and the training stand in `{FILE}`:", "", "```json", json.dumps(settings.to_json()), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
