"""The decoder of a BART or T5 over trees of tokens, which is what beams and candidate answers are.

transformers' decoders read rows: every beam and every candidate has its own copy of its passage's cross-attention keys
and values, and beams copy their cache at every step. Here all tokens that belong to one passage (a *group*) are nodes
of one tree: they share the passage's keys and values, a beam that forks shares its past, and a mask says which nodes a
node sees. The weights and the arithmetic are those of the generator's own modules.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ragtrain.models.readers import Seq2SeqReader

KeyValue = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Source:
    """What the decoder attends to.

    Attributes:
        layers: for each layer, keys and values (groups, heads, tokens, head width).
        mask: (groups, 1, 1, tokens) bool.
    """

    layers: tuple[KeyValue, ...]
    mask: Tensor

    def select(self, groups: Tensor) -> Source:
        """Return some of the groups."""
        layers = tuple((key[groups], value[groups]) for key, value in self.layers)
        return Source(layers, self.mask[groups])


class Tree:
    """Keys and values of the nodes read so far, with room for ``capacity`` of them in each group.

    Attributes:
        depth: (groups, nodes) tokens before each node.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size = capacity, 0
        self._layers: list[KeyValue] = []
        self._depth: Tensor | None = None

    @property
    def depth(self) -> Tensor:
        """(groups, nodes) tokens before each node."""
        return self._depth[:, : self.size] if self._depth is not None else torch.zeros(0, 0)

    def grow(self, depth: Tensor) -> None:
        """Take in the next nodes, whose depths are (groups, new nodes)."""
        if self._depth is None:
            self._depth = depth.new_zeros(len(depth), self.capacity)
        self.size += depth.shape[1]
        self._depth[:, self.size - depth.shape[1] : self.size] = depth

    def extend(self, layer: int, key: Tensor, value: Tensor) -> KeyValue:
        """Store keys and values (groups, heads, new nodes, head width) of a layer and return those of all nodes."""
        if len(self._layers) == layer:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._layers.append((key.new_empty(shape), value.new_empty(shape)))
        keys, values = self._layers[layer]
        start = self.size - key.shape[2]
        keys[:, :, start : self.size], values[:, :, start : self.size] = key, value
        return keys[:, :, : self.size], values[:, :, : self.size]

    def select(self, groups: Tensor) -> None:
        """Keep some of the groups."""
        self._layers = [(key[groups], value[groups]) for key, value in self._layers]
        self._depth = None if self._depth is None else self._depth[groups]


class Decoder(ABC):
    """A generator's decoder and language-model head.

    Attributes:
        heads: attention heads.
        scale: what inner products of queries and keys are multiplied by.
    """

    heads: int
    scale: float

    def __init__(self, reader: Seq2SeqReader) -> None:
        self.reader = reader
        self.generator: Any = reader.generator
        self.config: Any = reader.generator.config

    @abstractmethod
    def project_source(self, states: Tensor) -> tuple[KeyValue, ...]:
        """Return each layer's keys and values (groups, heads, tokens, head width) of encoder states."""

    def source(self, states: Tensor, attention_mask: Tensor) -> Source:
        """Return what is attended to of encoder states (groups, tokens, width) with a mask (groups, tokens)."""
        return Source(self.project_source(states), attention_mask[:, None, None].bool())

    @abstractmethod
    def __call__(self, ids: Tensor, depth: Tensor, visible: Tensor, source: Source, tree: Tree | None = None) -> Tensor:
        """Return the states (groups, nodes, width) of new nodes.

        Args:
            ids: (groups, nodes) tokens.
            depth: (groups, nodes) tokens before each of them.
            visible: (groups, nodes, all nodes) bool, which nodes of the tree, itself included, each of them sees.
            source: what the groups attend to.
            tree: the nodes before, which the new ones join; without it there are none.
        """

    def logits(self, states: Tensor) -> Tensor:
        """Return logits (..., vocabulary) of states (..., width), as the generator makes them."""
        return self.reader.head(states)

    def project(self, attention: Any, names: tuple[str, str], states: Tensor) -> KeyValue:  # noqa: ANN401
        """Return keys and values (groups, heads, tokens, head width) of states (groups, tokens, width)."""
        key, value = (split(getattr(attention, name)(states), self.heads) for name in names)
        return key, value

    def attend(self, query: Tensor, key_value: KeyValue, mask: Tensor) -> Tensor:
        """Return (groups, nodes, width) attention of queries (groups, nodes, width); a float mask is added."""
        found = nn.functional.scaled_dot_product_attention(
            split(query, self.heads), *key_value, attn_mask=mask, scale=self.scale
        )
        return found.transpose(1, 2).flatten(2)


class BartDecoder(Decoder):
    """Layer normalisation after each part, learned positions."""

    def __init__(self, reader: Seq2SeqReader) -> None:
        super().__init__(reader)
        self.stack: Any = self.generator.model.decoder
        self.heads = self.config.decoder_attention_heads
        self.scale = (self.config.d_model // self.heads) ** -0.5

    def project_source(self, states: Tensor) -> tuple[KeyValue, ...]:
        """Project the encoder states once for each layer."""
        return tuple(self.project(layer.encoder_attn, ("k_proj", "v_proj"), states) for layer in self.stack.layers)

    def __call__(self, ids: Tensor, depth: Tensor, visible: Tensor, source: Source, tree: Tree | None = None) -> Tensor:
        """Read the new nodes; the positions are their depths."""
        tree = tree or Tree(ids.shape[1])
        tree.grow(depth)
        table = self.stack.embed_positions
        positions = nn.functional.embedding(depth + table.offset, table.weight)
        hidden: Tensor = self.stack.layernorm_embedding(self.stack.embed_tokens(ids) + positions)
        for place, layer in enumerate(self.stack.layers):
            own, cross = layer.self_attn, layer.encoder_attn
            past = tree.extend(place, *self.project(own, ("k_proj", "v_proj"), hidden))
            found = own.out_proj(self.attend(own.q_proj(hidden), past, visible[:, None]))
            hidden = layer.self_attn_layer_norm(hidden + found)
            found = cross.out_proj(self.attend(cross.q_proj(hidden), source.layers[place], source.mask))
            hidden = layer.encoder_attn_layer_norm(hidden + found)
            hidden = layer.final_layer_norm(hidden + layer.fc2(layer.activation_fn(layer.fc1(hidden))))
        return hidden


class T5Decoder(Decoder):
    """Layer normalisation before each part, a bias for relative positions, no scaling."""

    scale = 1.0

    def __init__(self, reader: Seq2SeqReader) -> None:
        super().__init__(reader)
        self.stack: Any = self.generator.decoder
        self.heads = self.config.num_heads

    def project_source(self, states: Tensor) -> tuple[KeyValue, ...]:
        """Project the encoder states once for each layer."""
        return tuple(self.project(block.layer[1].EncDecAttention, ("k", "v"), states) for block in self.stack.block)

    def __call__(self, ids: Tensor, depth: Tensor, visible: Tensor, source: Source, tree: Tree | None = None) -> Tensor:
        """Read the new nodes; distances between nodes are differences of their depths."""
        tree = tree or Tree(ids.shape[1])
        tree.grow(depth)
        bias = self._bias(depth, tree.depth).masked_fill(~visible[:, None], -torch.inf)
        hidden = self.stack.embed_tokens(ids)
        for place, block in enumerate(self.stack.block):
            part = block.layer[0]
            own, normed = part.SelfAttention, part.layer_norm(hidden)
            past = tree.extend(place, *self.project(own, ("k", "v"), normed))
            hidden = _clamp(hidden + own.o(self.attend(own.q(normed), past, bias.to(past[0].dtype))))
            part = block.layer[1]
            cross, normed = part.EncDecAttention, part.layer_norm(hidden)
            hidden = _clamp(hidden + cross.o(self.attend(cross.q(normed), source.layers[place], source.mask)))
            hidden = _clamp(block.layer[2](hidden))
        states: Tensor = self.stack.final_layer_norm(hidden)
        return states

    def _bias(self, depth: Tensor, past: Tensor) -> Tensor:
        """Return (groups, heads, nodes, all nodes) biases of the distances between nodes."""
        own: Any = self.stack.block[0].layer[0].SelfAttention
        longest = int(depth.max()) + 1
        # Nodes that are not before a node are masked, whatever bias is looked up for them.
        table: Tensor = own.compute_bias(1, longest, device=depth.device, past_seen_tokens=longest - 1)[0, :, 0]
        distance = (depth[:, :, None] - past[:, None, :]).clamp(min=0)
        return table.flip(-1).T[distance].permute(0, 3, 1, 2)


def decoder_of(reader: Seq2SeqReader) -> Decoder:
    """Return the tree decoder of a BART, T5 or mT5."""
    return BartDecoder(reader) if reader.generator.config.model_type == "bart" else T5Decoder(reader)


def split(states: Tensor, heads: int) -> Tensor:
    """Turn (groups, tokens, width) into (groups, heads, tokens, head width), without a copy."""
    return states.view(*states.shape[:2], heads, -1).transpose(1, 2)


def _clamp(hidden: Tensor) -> Tensor:
    """Keep float16 finite, as transformers' T5 does."""
    if hidden.dtype != torch.float16:
        return hidden
    largest = torch.finfo(hidden.dtype).max
    bound = torch.where(torch.isinf(hidden).any(), largest - 1000, largest)
    return torch.clamp(hidden, min=-bound, max=bound)
