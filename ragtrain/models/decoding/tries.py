"""The likelihood of many sequences under one source: those that begin alike share what they share.

All sequences of a group form a prefix tree. Each of its nodes is read once, against the one copy of the group's keys and
values, and its logits give the log-probability of every token that follows it in some sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.models.decoding.decoder import Decoder, Source

#: Nodes read at a time, padding included, and nodes whose logits are held at a time.
READ_NODES = 2048
HEAD_NODES = 512


class Trie:
    """The prefix tree of one group's sequences.

    Attributes:
        tokens: token of each node; the root is the start token.
        depths: tokens before each node.
        parents: node before each node; the root's is itself.
        edges: (node, token) of each token that is to be scored.
    """

    def __init__(self, start: int) -> None:
        self.tokens, self.depths, self.parents = [start], [0], [0]
        self.edges: list[tuple[int, int]] = []
        self._edge_of: dict[tuple[int, int], int] = {}
        self._node_of: dict[tuple[int, int], int] = {}

    def add(self, sequence: Sequence[int]) -> list[int]:
        """Add a sequence, without its start token; return the edges of its tokens."""
        node, path = 0, []
        for place, token in enumerate(sequence):
            key = (node, token)
            if key not in self._edge_of:
                self._edge_of[key] = len(self.edges)
                self.edges.append(key)
            path.append(self._edge_of[key])
            if place + 1 == len(sequence):
                break
            if key not in self._node_of:
                self._node_of[key] = len(self.tokens)
                self.tokens.append(token)
                self.depths.append(place + 1)
                self.parents.append(node)
            node = self._node_of[key]
        return path

    def visible(self) -> np.ndarray:
        """Return (nodes, nodes) bool: which nodes each node sees, itself and those before it."""
        seen = np.eye(len(self.tokens), dtype=bool)
        # A parent stands before its children.
        for node, parent in enumerate(self.parents):
            seen[node] |= seen[parent]
        return seen


def score(decoder: Decoder, source: Source, groups: Sequence[int], tries: Sequence[Trie]) -> list[Tensor]:
    """Return the log-probability of each edge of each trie: (edges,) float32.

    Args:
        decoder: what reads.
        source: what the groups attend to.
        groups: the group in ``source`` of each trie.
        tries: what is to be scored.
    """
    results: list[Tensor] = [torch.empty(0)] * len(tries)
    order = sorted(range(len(tries)), key=lambda place: -len(tries[place].tokens))
    start = 0
    while start < len(order):
        # Longest first: the first of a portion says how wide it is.
        rows = max(1, READ_NODES // len(tries[order[start]].tokens))
        portion = order[start : start + rows]
        start += rows
        chosen = [tries[place] for place in portion]
        where = torch.tensor([groups[place] for place in portion], device=source.mask.device)
        values = _score_portion(decoder, source.select(where), chosen)
        for place, trie in zip(portion, chosen, strict=True):
            results[place], values = values[: len(trie.edges)], values[len(trie.edges) :]
    return results


def _score_portion(decoder: Decoder, source: Source, tries: Sequence[Trie]) -> Tensor:
    """Return the log-probabilities of all edges of some tries, one trie after the other."""
    device = source.mask.device
    counts = [len(trie.tokens) for trie in tries]
    widest = max(counts)
    ids, depth = (np.zeros((len(tries), widest), dtype=np.int64) for _ in range(2))
    visible = np.zeros((len(tries), widest, widest), dtype=bool)
    visible[:, range(widest), range(widest)] = True  # what is padding sees itself: attention over nothing is NaN
    for row, trie in enumerate(tries):
        ids[row, : counts[row]], depth[row, : counts[row]] = trie.tokens, trie.depths
        visible[row, : counts[row], : counts[row]] = trie.visible()
    ids_there, depth_there, visible_there = (torch.from_numpy(part).to(device) for part in (ids, depth, visible))
    states = decoder(ids_there, depth_there, visible_there, source)
    real = torch.arange(widest, device=device) < torch.tensor(counts, device=device)[:, None]
    states = states[real]

    offsets = np.cumsum([0, *counts[:-1]])
    pairs = zip(offsets, tries, strict=True)
    nodes = np.array([offset + node for offset, trie in pairs for node, _ in trie.edges], dtype=np.int64)
    labels = np.array([token for trie in tries for _, token in trie.edges], dtype=np.int64)
    order = np.argsort(nodes, kind="stable")
    nodes, labels = nodes[order], labels[order]
    found = []
    for start in range(0, len(states), HEAD_NODES):
        low, high = np.searchsorted(nodes, [start, start + HEAD_NODES])
        logits = decoder.logits(states[start : start + HEAD_NODES]).float()
        node = torch.from_numpy(nodes[low:high] - start).to(device)
        found.append(logits[node, torch.from_numpy(labels[low:high]).to(device)] - logits.logsumexp(-1)[node])
    values = torch.empty(len(labels), device=device)
    values[torch.from_numpy(order).to(device)] = torch.cat(found)
    return values
