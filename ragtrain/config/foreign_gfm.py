"""What the keys of GFM-RAG's YAML mean here (its versions 0.2 to 2, and its published guide).

Most keys are aliases. What is spread over several keys is put together first (``reshape``), on the nodes of the file, so that
lines stay known: names of data sets under a root, a list of losses, what Hydra composes or interpolates.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from ragtrain.config import aliases
from ragtrain.config.aliases import Alias, Give, Meaning, Refused, choice, ignored, only, refused, rename

STAGES = {"gfmrag.models.QueryGNN": "pretrain", "gfmrag.models.GNNRetriever": "finetune"}
TARGETS = {
    "datasets._target_": ("gfmrag.datasets.KGDataset", "gfmrag.datasets.QADataset"),
    "model.entity_model._target_": ("gfmrag.ultra.models.EntityNBFNet", "gfmrag.ultra.models.QueryNBFNet"),
    "optimizer._target_": ("torch.optim.AdamW",),
    "task._target_": ("torch.optim.AdamW",),  # where the guide's indentation puts it
    "task.optimizer._target_": ("torch.optim.AdamW",),
}
LOSSES = {"gfmrag.losses.BCELoss": "bce_weight", "gfmrag.losses.ListCELoss": "list_weight"}
ENCODERS = {
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
RANKERS = {
    "simple_ranker": "simple", "idf_ranker": "idf", "topk_ranker": "topk", "idf_topk_ranker": "idf_topk",
}  # fmt: skip
_NOW = datetime.datetime.now().astimezone()
"""Of the whole process: one run has one folder."""
_REFERENCE = re.compile(r"\$\{([^${}]+)\}")


def _stage(value: object) -> Meaning:
    if str(value) not in STAGES:
        raise Refused(f"ragtrain builds nothing by its name; accepted, as its own: {', '.join(STAGES)}")
    return Meaning((Give("data.stage", STAGES[str(value)]),))


def _target(names: tuple[str, ...]) -> Alias:
    def convert(value: object) -> Meaning:
        if str(value) not in names:
            raise Refused(f"ragtrain builds nothing by its name; accepted, as its own: {', '.join(names)}")
        return Meaning()

    return Alias(convert=convert, remark=f"only {' or '.join(names)}", silent=True)


def _hidden_dims(value: object) -> Meaning:
    widths = aliases.words(value)
    if not widths or len(set(widths)) > 1:
        raise Refused("expected one width for all layers, as [512, 512, 512]")
    return Meaning((Give("model.hidden_dim", widths[0]), Give("model.num_layers", str(len(widths)))))


def _input_dim(value: object) -> Meaning:
    return Meaning((Give("model.hidden_dim", str(value), aliases.WEAK, unless=aliases.anything),))


def _encoder(value: object) -> Meaning:
    return Meaning((Give("model.text_encoder", ENCODERS.get(aliases.word(value), str(value))),))


def _encoder_again(value: object) -> Meaning:
    (give,) = _encoder(value).gives
    return Meaning((Give(give.field, give.value, aliases.WEAK, unless=aliases.anything),))


def _names(value: object) -> Meaning:
    """Read names of data sets that stand without a root: they are folders."""
    return Meaning((Give("data.graphs", tuple(aliases.words(value))),))


def _valid_names(value: object) -> Meaning:
    return Meaning((Give("data.val_graphs", tuple(aliases.words(value))),))


def _root(value: object) -> Meaning:
    raise Refused(
        f"it goes before the names in the file that has them; here name whole folders, as --graphs {value}/NAME"
    )


_LOADING = "ragtrain loads graphs as it needs them"
_DOTTED: Mapping[str, Alias] = {
    **{name: _target(names) for name, names in TARGETS.items()},
    "seed": rename("loop.seed"),
    "model._target_": Alias(("data.stage",), _stage),
    "model.entity_model.input_dim": Alias(("model.hidden_dim",), _input_dim, silent=True),
    "model.entity_model.hidden_dims": Alias(("model.hidden_dim", "model.num_layers"), _hidden_dims),
    "model.entity_model.message_func": rename("model.message"),
    "model.entity_model.aggregate_func": rename("model.aggregate"),
    "model.entity_model.short_cut": rename("model.short_cut"),
    "model.entity_model.layer_norm": rename("model.layer_norm"),
    "model.feat_dim": ignored("the text encoder says how wide its vectors are"),
    "model.rel_emb_dim": ignored("the text encoder says how wide its vectors are"),
    "datasets.train_names": Alias(("data.graphs",), _names),
    "datasets.valid_names": Alias(("data.val_graphs",), _valid_names),
    "datasets.cfgs.root": Alias(("data.graphs",), _root, remark="counts in the file that has the names"),
    "datasets.cfgs.force_rebuild": ignored("vectors are kept by the content they were made of"),
    "datasets.cfgs.text_emb_model_cfgs": Alias(("model.text_encoder",), _encoder_again, silent=True),
    "datasets.init_datasets": ignored(_LOADING),
    "datasets.feat_dim": ignored(_LOADING),
    "datasets.max_datasets_in_memory": ignored(_LOADING),
    "datasets.data_loading_workers": ignored(_LOADING),
    "text_emb_model": Alias(("model.text_encoder",), _encoder),
    "doc_ranker": choice("ranking.ranker", RANKERS),
    "task.num_negative": rename("objective.num_negatives"),
    "task.strict_negative": rename("objective.strict_negatives"),
    "task.adversarial_temperature": rename("objective.adversarial_temperature"),
    "task.metric": ignored("all metrics are measured"),
    "task.lr": rename("optim.learning_rate"),
    "task.optimizer": Alias(remark="its keys stand beside it", silent=True),
    "task.optimizer.lr": rename("optim.learning_rate"),
    "optimizer.lr": rename("optim.learning_rate"),
    "optimizer.weight_decay": rename("optim.weight_decay"),
    "train.batch_size": rename("loop.batch_size"),
    "train.num_epoch": rename("loop.num_epochs"),
    "train.log_interval": rename("loop.logging_steps"),
    "train.batch_per_epoch": Alias(remark="an epoch is all examples; --max-triples limits it", silent=True),
    "train.fast_test": rename("data.max_val_samples"),
    "train.save_best_only": ignored("the best and the latest checkpoints are kept (save_total_limit)"),
    "train.save_pretrained": rename("model.save_pretrained"),
    "train.do_eval": only("true", "yes", why="what is held out is validated on"),
    "train.timeout": ignored("processes wait for each other as torch.distributed says"),
    "train.init_entities_weight": rename("model.init_entity_weights"),
    "train.checkpoint": rename("model.model_dir"),
    "checkpoint": rename("model.model_dir"),
    "load_model_from_pretrained": rename("model.model_dir"),
    "train.save_pretrained_folder": refused("pretrained of the run folder is where it goes"),
}
_ALONE = {
    "train.fast_test", "train.log_interval", "train.num_epoch", "task.num_negative", "task.strict_negative", "task.lr",
    "train.init_entities_weight", "model.entity_model.message_func", "model.entity_model.aggregate_func",
    "model.entity_model.hidden_dims", "datasets.train_names", "datasets.valid_names",
}  # fmt: skip
GFM_ALIASES: Mapping[str, Alias] = {**_DOTTED, **{name.rpartition(".")[2]: _DOTTED[name] for name in sorted(_ALONE)}}
"""Everything that ``train gfm`` understands besides its own names; some without their section, as flags."""


# --- what is spread over several keys ----------------------------------------------------------------------------------


def reshape(root: yaml.MappingNode, fail: Callable[[str, yaml.Node, str], None]) -> yaml.MappingNode:
    """Return a GFM-RAG file with what is spread over several keys put together; any other file as it is.

    Args:
        root: the file's mapping.
        fail: told of key, node and message where something cannot be understood.
    """
    flat = dict(_flat(root, ""))
    if not {"datasets", "model.entity_model", "task"} & {name for path in flat for name in _prefixes(path)}:
        return root
    composed = _composed(flat)
    flat = {name: _resolved(name, node, flat, composed, fail) for name, node in flat.items()}
    kept: dict[str, yaml.Node] = {}
    for name, node in flat.items():
        if name == "task.losses":
            kept.update(_losses(node, fail))
        elif name in ("datasets.train_names", "datasets.valid_names"):
            kept[name] = _rooted(node, flat.get("datasets.cfgs.root"))
        elif name == "hydra.run.dir":
            kept.setdefault("run.output_dir", node)
        elif name != "datasets.cfgs.root" and not _is_composition(name):
            kept[name] = node
    for name, node in composed.items():
        kept.setdefault(name, node)
    value = [(_scalar(name, node), node) for name, node in kept.items()]
    return yaml.MappingNode("tag:yaml.org,2002:map", value, root.start_mark, root.end_mark)


def _flat(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    for length in range(1, len(parts)):
        yield ".".join(parts[:length])


def _is_composition(name: str) -> bool:
    return name.rpartition(".")[2] == "defaults" or name.startswith("hydra.")


def _composed(flat: Mapping[str, yaml.Node]) -> dict[str, yaml.Node]:
    """Return what lists of defaults choose, by group: the guide has them at the top and under ``hydra``."""
    found: dict[str, yaml.Node] = {}
    for name, node in flat.items():
        if name.rpartition(".")[2] == "defaults" and isinstance(node, yaml.SequenceNode):
            for item in node.value:
                if isinstance(item, yaml.MappingNode):
                    found.update({str(key.value): value for key, value in item.value})
    return found


def _resolved(
    name: str, node: yaml.Node, flat: Mapping[str, yaml.Node], composed: Mapping[str, yaml.Node],
    fail: Callable[[str, yaml.Node, str], None],
) -> yaml.Node:  # fmt: skip
    """Return a node with its references replaced: the file's own keys, what is composed, and the time."""
    if not isinstance(node, yaml.ScalarNode) or "${" not in node.value:
        return node

    def value(found: re.Match[str]) -> str:
        what = found[1].strip()
        if what.startswith("now:"):
            return _NOW.strftime(what.removeprefix("now:"))
        other = flat.get(what) or composed.get(what)
        if not isinstance(other, yaml.ScalarNode) or "${" in other.value:
            fail(name, node, f"{found[0]} is no key of this file: write the value")
            return ""
        return str(other.value)

    return _scalar(_REFERENCE.sub(value, node.value), node)


def _rooted(node: yaml.Node, root: yaml.Node | None) -> yaml.Node:
    """Return names of data sets as folders under their root."""
    if not isinstance(node, yaml.SequenceNode) or not isinstance(root, yaml.ScalarNode):
        return node
    items = [_scalar(f"{root.value.rstrip('/')}/{item.value}", item) for item in node.value]
    return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)


def _losses(node: yaml.Node, fail: Callable[[str, yaml.Node, str], None]) -> Iterator[tuple[str, yaml.Node]]:
    """Yield the weights of a list of losses; one that is not in it has none."""
    weights: dict[str, yaml.Node] = {}
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        if not isinstance(item, yaml.MappingNode):
            fail("task.losses", item, "expected a mapping with loss and cfg")
            continue
        about = dict(_flat(item, ""))
        target = about.get("loss._target_")
        name = str(target.value) if isinstance(target, yaml.ScalarNode) else ""
        if name not in LOSSES:
            fail("task.losses", target or item, f"ragtrain has no loss {name!r}; it has {', '.join(LOSSES)}")
            continue
        field = "document_weight" if _true(about.get("cfg.is_doc_loss")) else LOSSES[name]
        weights[field] = about.get("cfg.weight") or _scalar("1", item)
        temperature = about.get("loss.adversarial_temperature")
        if temperature is not None:
            yield "objective.adversarial_temperature", temperature
    for field in ("bce_weight", "list_weight", "document_weight"):
        yield f"objective.{field}", weights.get(field) or _scalar("0", node)


def _true(node: yaml.Node | None) -> bool:
    return isinstance(node, yaml.ScalarNode) and bool(aliases.as_truth(node.value))


def _scalar(text: str, like: Any) -> yaml.ScalarNode:  # noqa: ANN401 - any node
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, like.start_mark, like.end_mark)
