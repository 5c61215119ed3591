"""The graph foundation model: relations and a question as text vectors, scores of all entities as the answer.

Relations do not depend on the question: their vectors, from the text of their names, are one table for the graph, and each
layer projects it. A question enters at the boundary, the entities it starts from, and in the head.

Source: GFM-RAG (Luo et al. 2025, arXiv:2502.01113) and its code of version 1, whose checkpoints load.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ragtrain.errors import ConfigError, RagtrainError
from ragtrain.models.gfm import nullstate, reach
from ragtrain.models.gfm.edges import GraphTensors, Removed, unique_seeds
from ragtrain.models.gfm.kernel import Message
from ragtrain.models.gfm.layers import Aggregate, Boundary, Degrees, NBFLayer
from ragtrain.models.gfm.nullstate import NullCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from ragtrain.models.gfm.nullstate import NullStates
    from ragtrain.models.gfm.reach import Rows

__all__ = ["GfmSettings", "GraphNetwork", "GraphTensors", "Removed"]

_HEAD_BYTES = 64 << 20
"""Hidden values of the head that exist at a time where no gradient is wanted."""


@dataclasses.dataclass(frozen=True)
class GfmSettings:
    """The form of a graph network.

    Attributes:
        hidden_dim: D, width of states.
        num_layers: rounds of messages.
        message: how a neighbour's state and a relation become a message.
        aggregate: how messages are gathered.
        short_cut: add each layer's input to its output.
        layer_norm: normalise each layer before its activation.
        text_dim: width of the text vectors of relations and questions.
    """

    hidden_dim: int = 512
    num_layers: int = 6
    message: Message = "distmult"
    aggregate: Aggregate = "sum"
    short_cut: bool = True
    layer_norm: bool = True
    text_dim: int = 768

    def __post_init__(self) -> None:
        for name, choices in (("message", get_args(Message)), ("aggregate", get_args(Aggregate))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}: there is no {getattr(self, name)!r}; there are {', '.join(choices)}")
        if min(self.hidden_dim, self.num_layers, self.text_dim) < 1:
            raise ConfigError("a graph network needs a width, a layer and a width of texts of at least 1")
        if self.message == "rotate" and self.hidden_dim % 2:
            raise ConfigError(f"message rotate needs an even hidden_dim, not {self.hidden_dim}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GfmSettings:
        """Return the settings of their JSON form; keys it does not know are an error.

        Raises:
            ConfigError: a key that there is not, or a value that cannot be.
        """
        unknown = value.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"a graph network has no setting {', '.join(sorted(unknown))}")
        return cls(**value)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Queries over a graph: (2R, D) relations, (B, D) vectors, where they start, and null states where they are kept."""

    graph: GraphTensors
    relation_states: Tensor
    query: Tensor
    boundary: Boundary
    removed: Removed | None
    known: NullStates | None


class GraphNetwork(nn.Module):
    """Scores of entities for queries over a graph.

    Args:
        settings: form of the network.
        text_dim: width of the text vectors, in place of that of the settings.

    Attributes:
        activation_checkpointing: recompute layers in the backward pass instead of keeping their insides.
        null_states: compute states that no query has reached once for the batch, and keep them where no gradient is wanted;
            exact.
        null_cache: those that are kept; ``null_cache.clear()`` frees their memory.
    """

    def __init__(self, settings: GfmSettings, text_dim: int | None = None) -> None:
        super().__init__()
        if text_dim is not None:
            settings = dataclasses.replace(settings, text_dim=text_dim)
        self.settings = settings
        width = settings.hidden_dim
        self.relation_mlp = nn.Linear(settings.text_dim, width)
        self.question_mlp = nn.Linear(settings.text_dim, width)
        self.layers = nn.ModuleList(
            NBFLayer(
                width,
                settings.message,
                settings.aggregate,
                layer_norm=settings.layer_norm,
                short_cut=settings.short_cut,
            )
            for _ in range(settings.num_layers)
        )
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1))
        self.activation_checkpointing = False
        self.null_states = True
        self.null_cache = NullCache()

    def questions_from_relations(self) -> None:
        """Begin the map of questions with that of relations: both read vectors of one text encoder.

        Pretraining asks with relations and never trains the map of questions.
        """
        self.question_mlp.load_state_dict(self.relation_mlp.state_dict())

    def forget_questions(self) -> None:
        """Set the map of questions to zero: of a network that only pretraining made, it has nothing to say."""
        nn.init.zeros_(self.question_mlp.weight)
        nn.init.zeros_(self.question_mlp.bias)

    def relation_states(self, relation_features: Tensor) -> Tensor:
        """Return the relations of a graph, (2R, D), from the text vectors of their names, (2R, text_dim)."""
        states: Tensor = self.relation_mlp(relation_features)
        return states

    def score_tails(
        self,
        graph: GraphTensors,
        relation_features: Tensor,
        heads: Tensor,
        relations: Tensor,
        candidates: Tensor | None = None,
        *,
        removed: Removed | None = None,
    ) -> Tensor:
        """Return logits of tails for queries (head, relation, ?); a query for a head asks with the inverse relation.

        Args:
            graph: the edges.
            relation_features: (2R, text_dim) text vectors of relations and of inverse relations.
            heads: (B,) int.
            relations: (B,) int in [0, 2R).
            candidates: (B, C) entities to score, or all of them.
            removed: edges that single queries do without, as ``graph.own_edges`` of a training batch.

        Returns:
            (B, C), or (B, N).
        """
        known = self._known(graph, relation_features, len(heads), removed)
        relation_states = self.relation_states(relation_features) if known is None else known.relation_states
        query = relation_states[relations.long()]
        rows = torch.arange(len(query), device=query.device)
        boundary = Boundary(heads.long() * len(query) + rows, query)
        asked = _Asked(graph, relation_states, query, boundary, removed, known)
        return self._answer(asked, candidates)

    def score_entities(
        self,
        graph: GraphTensors,
        relation_features: Tensor,
        question_vectors: Tensor,
        seeds: Sequence[Tensor | np.ndarray | Sequence[int]],
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return logits of all entities for questions.

        Args:
            graph: the edges.
            relation_features: (2R, text_dim) text vectors of relations and of inverse relations.
            question_vectors: (B, text_dim).
            seeds: the entities of each question; one without any is scored by the question's vector alone.
            weights: (N,) how much each entity counts as a seed; without it 1.

        Returns:
            (B, N).
        """
        if len(seeds) != len(question_vectors):
            raise RagtrainError(f"there are {len(question_vectors)} questions and seeds of {len(seeds)}")
        known = self._known(graph, relation_features, len(seeds), None)
        relation_states = self.relation_states(relation_features) if known is None else known.relation_states
        query, boundary = self.boundary_of(question_vectors, seeds, weights)
        return self._answer(_Asked(graph, relation_states, query, boundary, None, known), None)

    def boundary_of(
        self,
        question_vectors: Tensor,
        seeds: Sequence[Tensor | np.ndarray | Sequence[int]],
        weights: Tensor | None,
    ) -> tuple[Tensor, Boundary]:
        """Return the queries (B, D) of questions, and what they put into their entities."""
        query = self.question_mlp(question_vectors)
        nodes, rows = unique_seeds(seeds, query.device)
        values = query[rows]
        if weights is not None:
            values = values * weights[nodes].unsqueeze(1).to(values.dtype)
        return query, Boundary(nodes * len(query) + rows, values)

    def _known(
        self, graph: GraphTensors, relation_features: Tensor, batch: int, removed: Removed | None
    ) -> NullStates | None:
        """Return the null states of a graph, where no gradient is wanted and queries reach little of it."""
        if torch.is_grad_enabled() or not self.null_states or not nullstate.exact(self, removed):
            return None
        if not reach.worth(graph, batch, self.settings.num_layers, self.settings.hidden_dim, cached=True):
            return None
        return self.null_cache.get(self, graph, relation_features)

    def _answer(self, asked: _Asked, candidates: Tensor | None) -> Tensor:
        """Return logits of candidates (B, C), or of all entities (B, N)."""
        rows = self._rows(asked, candidates)
        if rows is None:
            return self._score(self._run(asked), asked.query, candidates)
        states = nullstate.run_rows(self, asked.graph, rows, asked.boundary, asked.relation_states, asked.known)
        if asked.known is None:
            return nullstate.pair_logits(self, states, asked.query, rows.wanted)
        return nullstate.logits_on(self, asked.known, states, asked.query, rows, candidates)

    def _rows(self, asked: _Asked, candidates: Tensor | None) -> Rows | None:
        """Return which states are to be computed, or None where that is the better part of all."""
        graph, batch, n_layers = asked.graph, len(asked.query), self.settings.num_layers
        cached, width = asked.known is not None, self.settings.hidden_dim
        if not cached:
            if not self.null_states or not nullstate.exact(self, asked.removed):
                return None
            if not reach.worth(graph, batch, n_layers, width, some=None if candidates is None else candidates.shape[1]):
                return None
        level = reach.reached(graph, asked.boundary.places, batch, n_layers, asked.removed)
        rows = reach.rows_of(
            graph, asked.boundary.places, level, n_layers, removed=asked.removed, wanted=candidates, cached=cached
        )
        most = reach.WORTH * n_layers * graph.n_entities * batch
        return rows if cached or rows.cost * reach.overhead(width) < most else None

    def _run(self, asked: _Asked) -> Tensor:
        """Return the states of all entities after the last layer, (N, B, D)."""
        graph, removed = asked.graph, asked.removed
        states = asked.boundary.dense(graph.n_entities, len(asked.query))
        degrees = Degrees.of(graph, removed, dtype=torch.promote_types(states.dtype, torch.float32))
        for module in self.layers:
            arguments = (
                cast("NBFLayer", module), states, asked.relation_states, graph, asked.boundary, degrees, removed
            )  # fmt: skip
            if self.activation_checkpointing and torch.is_grad_enabled():
                states = checkpoint(_step, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                states = _step(*arguments)
        return states

    def _score(self, states: Tensor, query: Tensor, candidates: Tensor | None) -> Tensor:
        """Return logits of candidates (B, C), or of all entities (B, N), from states (N, B, D)."""
        asked = self.query_hidden(query)
        if candidates is not None:
            rows = torch.arange(len(query), device=query.device).unsqueeze(1)
            return self._logits(states[candidates.long(), rows], asked.unsqueeze(1))
        whole = torch.is_grad_enabled()
        if whole and not self.activation_checkpointing:
            return self._logits(states, asked).T
        size = max(1, _HEAD_BYTES // (8 * max(1, states.shape[1]) * states.shape[2]))
        parts = []
        for part in torch.split(states, size):
            if whole:
                parts.append(checkpoint(self._logits, part, asked, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._logits(part, asked))
        return torch.cat(parts).T

    def _logits(self, states: Tensor, asked: Tensor) -> Tensor:
        """Return logits (…,) of states (…, D) with the query's half of the hidden values, which is broadcast."""
        logits: Tensor = self.head_output(F.relu_(self.entity_hidden(states) + asked))
        return logits.squeeze(-1)

    def entity_hidden(self, states: Tensor) -> Tensor:
        """Return the entity's half of the head's hidden values, (…, 2D) from (…, D)."""
        first = cast("nn.Linear", self.head[0])
        return F.linear(states, first.weight[:, : self.settings.hidden_dim])

    def query_hidden(self, query: Tensor) -> Tensor:
        """Return the query's half of the head's hidden values, (B, 2D), computed once for each query."""
        first = cast("nn.Linear", self.head[0])
        return F.linear(query, first.weight[:, self.settings.hidden_dim :], first.bias)

    @property
    def head_output(self) -> nn.Linear:
        """The last layer of the head, from hidden values to a logit."""
        return cast("nn.Linear", self.head[2])


def _step(
    layer: NBFLayer,
    states: Tensor,
    relation_states: Tensor,
    graph: GraphTensors,
    boundary: Boundary,
    degrees: Degrees,
    removed: Removed | None,
) -> Tensor:
    """Return the states after one layer over the whole graph."""
    gathered = layer.gather(states, layer.relations(relation_states), graph, removed)
    return layer.update(states, gathered, boundary, degrees)
