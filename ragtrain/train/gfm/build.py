"""From a configuration to graphs, network and micro-batches."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragtrain import loop, prepare
from ragtrain.data import demo
from ragtrain.data.graph_questions import cut_questions, find_graph_questions, read_graph_questions
from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.index.graph.read import load_graph
from ragtrain.models.encoder import load_encoder
from ragtrain.models.gfm.export import load_gfm
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork
from ragtrain.models.gfm.ultra import checkpoint_of, is_ultra, load_ultra
from ragtrain.prepare.relations import question_features, relation_features
from ragtrain.train.gfm.data import GfmData, GraphData, hold_out
from ragtrain.train.gfm.sources import QuestionSource, SourceSettings, TripleSource
from ragtrain.train.gfm.task import GraphModel

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.config.commands import GfmConfig
    from ragtrain.graphs import GraphQuestion, KnowledgeGraph
    from ragtrain.models.encoder import TextEncoder
    from ragtrain.models.gfm.ultra import UltraNetwork

log = logging.getLogger("ragtrain")

#: Peak learning rate: GFM-RAG's in both stages.
LEARNING_RATE = 5e-4


@dataclasses.dataclass(frozen=True)
class GfmParts:
    """What ``build`` makes of a configuration and its graphs."""

    model: GraphModel
    train: TripleSource | QuestionSource
    validation: list[int]
    group: loop.ParamGroup
    sidecar: dict[str, Any]

    @property
    def has_validation(self) -> bool:
        """Whether anything was held out."""
        return bool(self.validation)


def check(config: GfmConfig) -> None:
    """Refuse what does not go together, all of it at once.

    Raises:
        ConfigError: naming each pair of settings.
    """
    data, model, objective = config.data, config.model, config.objective
    pretrain = data.stage == "pretrain"
    bad = [
        (pretrain and (data.train_data is not None or data.val_data is not None),
         "data.train_data and data.val_data are questions, which data.stage=finetune learns from"),
        (pretrain and bool(data.val_graphs),
         "data.val_graphs have questions to validate data.stage=finetune on; pretrain holds out triples"),
        (not pretrain and data.max_triples is not None, "data.max_triples counts triples of data.stage=pretrain"),
        (data.train_data is not None and len(data.graphs) > 1,
         "data.train_data are questions of one graph, and data.graphs names several"),
        (data.val_data is not None and len(data.graphs) > 1,
         "data.val_data are questions of one graph, and data.graphs names several"),
        (data.val_data is not None and bool(data.val_graphs),
         "data.val_data and data.val_graphs both say what to validate on"),
        (not pretrain and objective.bce_weight + objective.list_weight + objective.document_weight == 0,
         "objective.bce_weight, list_weight and document_weight are all 0: there is nothing to learn"),
        (model.refit and (model.model_dir is None or model.text_encoder is None),
         "model.refit fits model.model_dir to another model.text_encoder: name both"),
        (model.message == "rotate" and model.hidden_dim % 2 == 1,
         "model.message=rotate turns pairs of values: model.hidden_dim must be even"),
    ]  # fmt: skip
    if problems := [message for wrong, message in bad if wrong]:
        raise ConfigError("; ".join(problems), hint="change one of the settings named")


def read(config: GfmConfig, demo_folder: Path) -> GfmData:
    """Read graphs and questions, and encode relations and questions.

    Raises:
        DataError: a graph or a question file cannot be read.
    """
    paths, asked = list(config.data.graphs), config.model
    ultra = is_ultra(asked.model_dir)
    if ultra:
        _check_ultra(config)
    if not paths:
        paths = [prepare.demo_graph(demo_folder)]
    sources: dict[str, Any] = {"graphs": [], "questions": {}}
    name = None if ultra else asked.text_encoder or _encoder_of(asked.model_dir) or str(demo.ENCODER)
    encoder = None if name is None else load_encoder(name, role="passage")
    train = [_read_one(config, path, encoder, sources, with_train=True) for path in paths]
    validation = [_read_one(config, path, encoder, sources, with_train=False) for path in config.data.val_graphs]
    if encoder is not None:
        sources["text_encoder"] = {"name": name, "fingerprint": encoder.fingerprint()}
    return GfmData(train, validation or train, name, 0 if encoder is None else encoder.dim, sources)


def _check_ultra(config: GfmConfig) -> None:
    """Refuse what ULTRA cannot do, before a graph is read.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: questions are asked of it.
    """
    asked = config.model
    if config.data.stage == "finetune":
        raise ConfigError(f"{asked.model_dir} is of ULTRA, which knows no questions: it completes graphs",
                          hint="--stage pretrain goes on with its training on your graphs")  # fmt: skip
    if asked.save_pretrained:
        raise ConfigError("model.save_pretrained writes a network of GFM-RAG, and this is one of ULTRA",
                          hint="leave it out: final_model/ultra.pth is what ULTRA's own code reads")  # fmt: skip
    if not (path := checkpoint_of(str(asked.model_dir))).is_file():
        raise CheckpointError("there is no such file", path=path, hint="check --model-dir")
    if asked.text_encoder is not None:
        log.warning("%s is of ULTRA, which reads no names of relations: %s is not used", path, asked.text_encoder)


def _read_one(
    config: GfmConfig, path: Path, encoder: TextEncoder | None, sources: dict[str, Any], *, with_train: bool
) -> GraphData:
    asked, seed = config.data, config.loop.seed
    found = load_graph(path, skip_bad_lines=asked.skip_bad_lines)
    graph = found.graph
    sources["graphs"].append(found.about)
    triples = graph.triples
    held = np.asarray(graph.held_out.get("valid", graph.triples[:0]))
    if asked.stage == "pretrain" and with_train and not len(held):
        triples, held = hold_out(triples, asked.dev_split, seed)
    train, validation = ((), ()) if asked.stage == "pretrain" else _questions(config, path, graph, sources, with_train)
    data = GraphData(
        path=found.folder, graph=graph, triples=torch.from_numpy(np.asarray(triples, dtype=np.int64)),
        held_out=torch.from_numpy(_some(held, asked.max_val_samples, seed)).long(),
        features=_features(graph, encoder, found.folder),
        questions=train, validation=validation,
    )  # fmt: skip
    everything = [*train, *validation]
    if encoder is None:
        return data
    vectors = question_features([each.question for each in everything], encoder, found.folder)
    data.vectors.update({each.question: torch.from_numpy(row) for each, row in zip(everything, vectors, strict=True)})
    return data


def _features(graph: KnowledgeGraph, encoder: TextEncoder | None, folder: Path) -> Tensor:
    """Return the text vectors of relations, (2R, dim); of no width for a network that reads none."""
    if encoder is None:
        return torch.zeros(2 * graph.n_relations, 0)
    return torch.from_numpy(relation_features(graph, encoder, folder))


def _some(rows: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    if most is None or len(rows) <= most:
        return np.asarray(rows, dtype=np.int64)
    places = np.random.default_rng((seed, 11)).permutation(len(rows))[:most]
    return np.asarray(rows[np.sort(places)], dtype=np.int64)


def _questions(
    config: GfmConfig, path: Path, graph: KnowledgeGraph, sources: dict[str, Any], with_train: bool
) -> tuple[list[GraphQuestion], list[GraphQuestion]]:
    """Return questions to train on and to validate on; a graph that is only validated on has the latter alone."""
    asked, seed = config.data, config.loop.seed

    def questions(file: Path, split: str) -> list[GraphQuestion]:
        found = read_graph_questions(file, graph, split, skip_bad_lines=asked.skip_bad_lines)
        known = f"{path.name}/{split}" in sources["questions"]  # of another folder with this name
        sources["questions"][f"{path if known else path.name}/{split}"] = found.about()
        return found.questions

    own = find_graph_questions(path, "valid")
    if not with_train:
        validation = questions(own or path, "valid" if own is not None else "test")
        return [], _few(validation, asked.max_val_samples, seed)
    train = questions(asked.train_data or path, "train")
    if asked.val_graphs:
        return train, []
    if asked.val_data is not None or own is not None:
        validation = questions(asked.val_data or path, "valid")
    elif asked.dev_split:
        train, validation = cut_questions(train, asked.dev_split, seed)
    else:
        validation = []
    if not train:
        raise DataError("holds no question to train on", path=path)
    return train, _few(validation, asked.max_val_samples, seed)


def _few(questions: list[GraphQuestion], most: int | None, seed: int) -> list[GraphQuestion]:
    if most is None or len(questions) <= most:
        return questions
    places = np.random.default_rng((seed, 12)).permutation(len(questions))[:most]
    return [questions[i] for i in sorted(places)]


def _encoder_of(model_dir: str | None) -> str | None:
    """Return the text encoder that a model was trained with, where it says so."""
    if model_dir is None:
        return None
    encoder = load_gfm(model_dir).sidecar.get("text_encoder")
    return encoder if isinstance(encoder, str) else None


def build(config: GfmConfig, data: GfmData) -> GfmParts:
    """Build the network, or load the one to go on from, and the micro-batches.

    Raises:
        ConfigError: the model's width of texts is not the encoder's.
        DataError: there is nothing to learn from.
    """
    network = _network(config, data)
    network.activation_checkpointing = config.model.activation_checkpointing
    if isinstance(network, GraphNetwork):
        network.null_states = config.model.null_states
    pretrain = config.data.stage == "pretrain"
    graphs = [*data.train, *(each for each in data.validation if each not in data.train)]
    model = GraphModel(network, graphs, weighted_seeds=config.model.init_entity_weights and not pretrain)
    settings = SourceSettings(
        batch_size=config.loop.batch_size, seed=config.loop.seed, by_step=config.data.sampling == "step",
        most=config.data.max_triples if pretrain else None, num_negatives=config.objective.num_negatives,
        strict=config.objective.strict_negatives,
    )  # fmt: skip
    source: TripleSource | QuestionSource = (TripleSource if pretrain else QuestionSource)(data.train, settings)
    if not len(source):
        raise DataError("there is nothing to learn from: no question has entities of the graph and supporting entities",
                        hint="link its questions with `ragtrain index prepare --graph --graph-questions`")  # fmt: skip
    validation = [
        number for number, each in enumerate(graphs) if each in data.validation and _measurable(each, pretrain)
    ]
    if not validation:
        log.warning("nothing is validated, so no checkpoint is the best: %s", "no triple could be held out" if pretrain else
                    "no question that is held out says which documents answer it")  # fmt: skip
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    group = loop.ParamGroup("network", parameters, config.optim.learning_rate or LEARNING_RATE)
    return GfmParts(model, source, validation, group, _sidecar(config, data))


def _measurable(data: GraphData, pretrain: bool) -> bool:
    """Return whether anything that is held out of a graph has an answer."""
    if pretrain:
        return len(data.held_out) > 0
    return any(q.supporting_documents or q.missing_documents or q.supporting_entities for q in data.validation)


def _network(config: GfmConfig, data: GfmData) -> GraphNetwork | UltraNetwork:
    asked, pretrain = config.model, config.data.stage == "pretrain"
    if asked.model_dir is not None and is_ultra(asked.model_dir):
        return load_ultra(asked.model_dir)
    if asked.model_dir is None:
        network = GraphNetwork(
            GfmSettings(
                hidden_dim=asked.hidden_dim, num_layers=asked.num_layers, message=asked.message,
                aggregate=asked.aggregate, short_cut=asked.short_cut, layer_norm=asked.layer_norm,
            ),
            data.text_dim,
        )  # fmt: skip
    else:
        found = load_gfm(asked.model_dir)
        network = found.network
        if network.settings.text_dim != data.text_dim and not asked.refit:
            raise ConfigError(
                f"{asked.model_dir} reads texts of {network.settings.text_dim} dimensions, and {data.text_encoder} has "
                f"{data.text_dim}",
                hint="name the --text-encoder it was trained with, or give --refit to fit it to this one",
            )
        if asked.refit:
            network = _refitted(network, data.text_dim)
        elif not pretrain and found.sidecar.get("stage") == "pretrain":
            network.questions_from_relations()
    if pretrain and asked.model_dir is None:
        network.forget_questions()  # it is frozen, and so must be what any process makes of the configuration
    # Pre-training never asks in words; the map of questions would decay without a gradient.
    network.question_mlp.requires_grad_(not pretrain)
    return network


def _refitted(network: GraphNetwork, text_dim: int) -> GraphNetwork:
    """Return the same layers behind input maps of another width, which alone are trained."""
    fresh = GraphNetwork(network.settings, text_dim)
    fresh.layers, fresh.head = network.layers, network.head
    fresh.layers.requires_grad_(False)
    fresh.head.requires_grad_(False)
    return fresh


def _sidecar(config: GfmConfig, data: GfmData) -> dict[str, Any]:
    encoder = data.text_encoder
    return {
        "kind": "gfm", "stage": config.data.stage,
        "text_encoder": str(Path(encoder).resolve()) if encoder is not None and Path(encoder).is_dir() else encoder,
        "graphs": [{"path": str(each.path.resolve()), "fingerprint": each.graph.fingerprint} for each in data.train],
        "ranking": config.ranking.model_dump(mode="json"),
        "init_entity_weights": config.model.init_entity_weights,
    }  # fmt: skip
