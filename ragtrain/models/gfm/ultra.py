"""ULTRA: link prediction on any graph, with relations known by how they meet and not by their names.

Two relations meet where an entity is head of one and head of the other, head and tail, and so on: a graph of relations with
four meta relations. A query (h, r, ?) is first sent through that graph from r, which gives every relation a state *relative to
r*; these are the relations of a second network over the entities, which starts from h. A query (?, r, t) starts from t with the
state of the inverse of r, still relative to r itself. So there is nothing to learn for a new graph, and a checkpoint scores one
it has never seen.

Source: Galkin et al. 2024, arXiv:2310.04562, and its code (DeepGraphLearning/ULTRA, MIT), whose checkpoints load: names and
shapes of weights, the order of meta relations and the direction of messages (``edges``) are its own. What differs: queries
of a batch with one relation share its states; an edge that a training query must not see is removed for that query only.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ragtrain.errors import CheckpointError, ConfigError
from ragtrain.models.gfm.edges import Edges, GraphTensors, Removed, ranges
from ragtrain.models.gfm.grouped import Groups, sum_products

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

#: Name of a network's file in the folder of a final model.
FILE = "ultra.pth"
#: Ways in which two relations meet at an entity, by id: head and head, tail and tail, head and tail, tail and head.
META = ("h2h", "t2t", "h2t", "t2h")

#: Pairs of relations that are looked at at a time, so that hubs of many relations do not fill the memory.
_PAIRS = 1 << 22
_HEAD_BYTES = 64 << 20
"""Hidden values of the head that exist at a time where no gradient is wanted."""


@dataclasses.dataclass(frozen=True)
class UltraSettings:
    """The form of an ULTRA network.

    Attributes:
        hidden_dim: D, width of states of relations and entities.
        relation_layers: rounds of messages between relations.
        num_layers: rounds of messages between entities.
    """

    hidden_dim: int = 64
    relation_layers: int = 6
    num_layers: int = 6

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> UltraSettings:
        """Return the settings of their JSON form.

        Raises:
            ConfigError: a key that there is not.
        """
        if unknown := value.keys() - {field.name for field in dataclasses.fields(cls)}:
            raise ConfigError(f"an ULTRA network has no setting {', '.join(sorted(unknown))}")
        return cls(**value)


def relation_graph(graph: GraphTensors) -> Edges:
    """Return the graph of relations: an edge of type ``META[k]`` from s to r where r and s meet in that way.

    Entities are heads and tails of the direct triples and of their inverses; a relation meets itself. It has up to
    4 (2R)^2 edges. ULTRA's weights of these edges are all 1.

    Returns:
        Edges between 2R relations, with four relations.
    """
    n_relations = graph.n_relations
    heads = Groups(graph).into  # pairs of an entity and a relation that it is a head of, each once
    degree = heads.row_starts.diff()[heads.rows]
    met = degree.new_zeros(0)
    ends = torch.searchsorted(degree.cumsum(0), torch.arange(0, int(degree.sum()), _PAIRS, device=degree.device))
    bounds = [*ends.tolist(), len(degree)]
    for start, stop in itertools.pairwise(bounds):
        places, group = ranges(heads.row_starts, heads.rows[start:stop])
        met = torch.unique(torch.cat([met, heads.factor[start:stop][group] * n_relations + heads.factor[places]]))
    r, s = met // n_relations, met % n_relations
    # Tails of a relation are heads of its inverse.
    target = torch.cat([r, graph.inverse(r), r, graph.inverse(r)])
    source = torch.cat([s, graph.inverse(s), graph.inverse(s), s])
    kind = torch.arange(len(META), device=graph.device).repeat_interleave(len(r))
    return Edges(target, source, kind, (n_relations, n_relations, len(META)))


class _Layer(nn.Module):
    """``ReLU(LayerNorm(W [x; u] + b)) + x`` of states x and what was received u (NBFNet, arXiv:2106.06935)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.linear = nn.Linear(2 * width, width)

    def update(self, states: Tensor, received: Tensor) -> Tensor:
        """Return the new states, (rows, B, D); W is applied in halves, so that nothing is copied beside each other."""
        width, weight = states.shape[-1], self.linear.weight
        hidden = F.linear(states, weight[:, :width], self.linear.bias).add_(F.linear(received, weight[:, width:]))
        hidden = F.relu_(self.layer_norm(hidden)).to(states.dtype)
        return hidden + states if torch.is_grad_enabled() else hidden.add_(states)


class RelationLayer(_Layer):
    """A round of messages between relations; meta relations are vectors of the layer."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.relation = nn.Embedding(len(META), width)

    def forward(self, states: Tensor, boundary: Tensor, groups: Groups) -> Tensor:
        """Return the new states of relations, (2R, U, D)."""
        shared = torch.zeros(states.shape[1], dtype=torch.long, device=states.device)
        return self.update(states, sum_products(groups, states, self.relation.weight[:, None], shared) + boundary)


class EntityLayer(_Layer):
    """A round of messages between entities; relations are those of the query, through a map of the layer."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.relation_projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class RelationModel(nn.Module):
    """States of all relations relative to that of a query."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(RelationLayer(width) for _ in range(layers))

    def forward(self, groups: Groups, n_relations: int, queries: Tensor) -> Tensor:
        """Return states of relations relative to each of ``queries`` (U,): (2R, U, D)."""
        boundary = self.layers[0].linear.weight.new_zeros(n_relations, len(queries), self.width)  # type: ignore[union-attr,operator]
        boundary[queries, torch.arange(len(queries), device=queries.device)] = 1.0
        states = boundary
        for layer in self.layers:
            states = layer(states, boundary, groups)
        return states


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A batch of queries: entity, relation (B,), which table of relations each has, and the relations' states."""

    graph: GraphTensors
    groups: Groups
    heads: Tensor
    relations: Tensor
    table: Tensor
    states: Tensor
    removed: Removed | None

    @property
    def query(self) -> Tensor:
        """(B, D)."""
        return self.states[self.relations, self.table]


class EntityModel(nn.Module):
    """Scores of entities, from the states of relations."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(EntityLayer(width) for _ in range(layers))
        self.mlp = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1))
        self.activation_checkpointing = False

    def forward(self, asked: _Asked, candidates: Tensor | None) -> Tensor:
        """Return logits of candidates (B, C), or of all entities (B, N)."""
        query = asked.query
        rows = torch.arange(len(query), device=query.device)
        places = asked.heads * len(query) + rows
        states = query.new_zeros(asked.graph.n_entities * len(query), self.width).index_copy(0, places, query)
        states = states.view(asked.graph.n_entities, len(query), self.width)
        for number, layer in enumerate(self.layers):
            arguments = (cast("EntityLayer", layer), states, asked, query, places, number == 0)
            if self.activation_checkpointing and torch.is_grad_enabled():
                states = checkpoint(_step, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                states = _step(*arguments)
        first = cast("nn.Linear", self.mlp[0])
        half = F.linear(query, first.weight[:, self.width :], first.bias)  # the query's half of [x; q], once a query
        if candidates is not None:
            return self._logits(states[candidates.long(), rows[:, None]], half[:, None])
        size = len(states) if torch.is_grad_enabled() else max(1, _HEAD_BYTES // (8 * self.width * max(1, len(query))))
        return torch.cat([self._logits(part, half) for part in torch.split(states, size)]).T

    def _logits(self, states: Tensor, half: Tensor) -> Tensor:
        first = cast("nn.Linear", self.mlp[0])
        hidden = F.linear(states, first.weight[:, : self.width])
        logits: Tensor = self.mlp[2](F.relu_(hidden + half))
        return logits.squeeze(-1)


def _step(layer: EntityLayer, states: Tensor, asked: _Asked, query: Tensor, places: Tensor, first: bool) -> Tensor:
    """Return the states of entities after one layer, (N, B, D)."""
    table = layer.relation_projection(asked.states).to(states.dtype)
    received = _from_heads(asked, query, table) if first else None
    if received is None:
        received = sum_products(asked.groups, states, table, asked.table)
    flat = received.view(-1, received.shape[-1])
    if asked.removed is not None and len(asked.removed):
        (target, source, relation), row = asked.removed.ends, asked.removed.rows
        sent = states[source, row] * table[relation, asked.table[row]]
        flat.index_add_(0, target * len(query) + row, -sent)
    flat.index_add_(0, places, query)
    return layer.update(states, received)


def _from_heads(asked: _Asked, query: Tensor, table: Tensor) -> Tensor | None:
    """Return what is received in the first layer, where only heads have a state; None where most edges start there."""
    walk = asked.graph.out_of
    degree = walk.offsets[asked.heads + 1] - walk.offsets[asked.heads]
    if int(degree.sum()) * 4 > len(asked.graph):
        return None
    places, row = ranges(walk.offsets, asked.heads)
    target, relation = walk.first[places].long(), walk.second[places].long()
    sent = query[row] * table[relation, asked.table[row]]
    rows, batch = asked.graph.n_entities, len(query)
    received = sent.new_zeros(rows * batch, sent.shape[-1]).index_add(0, target * batch + row, sent)
    return received.view(rows, batch, sent.shape[-1])


class UltraNetwork(nn.Module):
    """ULTRA, asked as ``GraphNetwork`` is.

    Args:
        settings: form of the network.

    Attributes:
        settings: the same.
    """

    def __init__(self, settings: UltraSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or UltraSettings()
        width = self.settings.hidden_dim
        self.relation_model = RelationModel(width, self.settings.relation_layers)
        self.entity_model = EntityModel(width, self.settings.num_layers)
        self._made: weakref.WeakKeyDictionary[GraphTensors, tuple[Groups, Groups]] = weakref.WeakKeyDictionary()

    @property
    def activation_checkpointing(self) -> bool:
        """Recompute layers of the entity model in the backward pass instead of keeping their insides."""
        return self.entity_model.activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: bool) -> None:
        self.entity_model.activation_checkpointing = on

    def score_tails(
        self,
        graph: GraphTensors,
        relation_features: Tensor | None,
        heads: Tensor,
        relations: Tensor,
        candidates: Tensor | None = None,
        *,
        removed: Removed | None = None,
    ) -> Tensor:
        """Return logits of tails for queries (head, relation, ?); a query for a head asks with the inverse relation.

        Args:
            graph: the edges; what is made of it (groups, the graph of relations) is kept as long as it is.
            relation_features: of no use here.
            heads: (B,) int.
            relations: (B,) int in [0, 2R).
            candidates: (B, C) entities to score, or all of them.
            removed: edges that single queries do without; the graph of relations stays whole, as in ULTRA.

        Returns:
            (B, C), or (B, N).
        """
        del relation_features
        groups, meetings = self._of(graph)
        direct = relations.long() % (graph.n_relations // 2)  # also where a head is asked for: ULTRA was trained so
        queries, table = torch.unique(direct, return_inverse=True)
        states = self.relation_model(meetings, graph.n_relations, queries)
        asked = _Asked(graph, groups, heads.long(), relations.long(), table, states, removed)
        logits: Tensor = self.entity_model(asked, candidates)
        return logits

    def _of(self, graph: GraphTensors) -> tuple[Groups, Groups]:
        if graph not in self._made:
            self._made[graph] = (Groups(graph), Groups(relation_graph(graph)))
        return self._made[graph]


def is_ultra(path: Path | str | None) -> bool:
    """Return whether a path is one of ULTRA's checkpoints (``.pth``), or a final model or run that has one."""
    return path is not None and (Path(path).suffix in (".pth", ".pt") or checkpoint_of(path) != Path(path))


def checkpoint_of(path: Path | str) -> Path:
    """Return the file that a path stands for: itself, or that of a final model or of a run."""
    path = Path(path)
    return next((file for file in (path / FILE, path / "final_model" / FILE) if file.is_file()), path)


def load_ultra(path: Path | str) -> UltraNetwork:
    """Return the network of one of ULTRA's checkpoints, or of a final model or run; its form follows from the shapes.

    Raises:
        CheckpointError: the file cannot be read safely, or holds another network.
    """
    path = checkpoint_of(path)
    if not path.is_file():
        raise CheckpointError("there is no such file", path=path, hint="check the path of the checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes make it raise
        raise CheckpointError(f"cannot be read as weights: {error}", path=path,
                              hint="fetch the file again; it is to hold tensors and nothing else") from error  # fmt: skip
    state = content.get("model", content) if isinstance(content, dict) else {}
    if not isinstance(state, dict) or "relation_model.layers.0.relation.weight" not in state:
        raise CheckpointError("holds no ULTRA network (no relation_model.layers.0.relation.weight)", path=path,
                              hint="give a checkpoint of DeepGraphLearning/ULTRA, or a run of train gfm")  # fmt: skip
    network = UltraNetwork(
        UltraSettings(
            hidden_dim=int(state["relation_model.layers.0.relation.weight"].shape[1]),
            relation_layers=_count(state, "relation_model"),
            num_layers=_count(state, "entity_model"),
        )
    )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"its weights are not those of ULTRA with sums of products: {error}", path=path
        ) from error
    return network


def save_ultra(network: UltraNetwork, path: Path) -> None:
    """Write a network as ULTRA's own code reads it: a dictionary with ``model``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        torch.save({"model": state}, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _count(state: Mapping[str, Tensor], part: str) -> int:
    """Return the number of layers of a part of the network."""
    return next(i for i in itertools.count() if f"{part}.layers.{i}.linear.weight" not in state)
