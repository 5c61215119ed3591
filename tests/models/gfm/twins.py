"""Slow twins: everything edge by edge or as dense tensors, from the equations and not from the code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ragtrain.models.gfm.model import GraphNetwork


def random_triples(n: int, n_entities: int, n_relations: int, seed: int = 0) -> Tensor:
    """Triples without repetition, loops included."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, top, (n,), generator=generator) for top in (n_entities, n_relations, n_entities)]
    return torch.unique(torch.stack(columns, 1), dim=0)


def edges_of(triples: Tensor, n_relations: int) -> list[tuple[int, int, int]]:
    """(receiver, sender, relation) of each triple and of its inverse."""
    edges = []
    for head, relation, tail in triples.tolist():
        edges.append((head, tail, relation))
        edges.append((tail, head, relation + n_relations))
    return edges


def message_of(x: Tensor, z: Tensor, message: str) -> Tensor:
    if message == "distmult":
        return x * z
    if message == "transe":
        return x + z
    half = x.shape[-1] // 2
    product = torch.complex(x[..., :half], x[..., half:]) * torch.complex(z[..., :half], z[..., half:])
    return torch.cat([product.real, product.imag], -1)


def dense_gather(
    x: Tensor, z: Tensor, boundary: Tensor, edges: list[tuple[int, int, int]], message: str, aggregate: str
) -> Tensor:
    """u of one query, (N, D) or for pna (N, 12 D), with one-hot matrices and einsum: x, boundary (N, D), z (2R, D)."""
    n = len(x)
    receives, sends = torch.zeros(len(edges), n, dtype=x.dtype), torch.zeros(len(edges), n, dtype=x.dtype)
    kind = torch.zeros(len(edges), len(z), dtype=x.dtype)
    for e, (target, source, relation) in enumerate(edges):
        receives[e, target] = sends[e, source] = kind[e, relation] = 1
    sent = message_of(torch.einsum("en,nd->ed", sends, x), torch.einsum("er,rd->ed", kind, z), message)
    sent = torch.cat([sent, boundary])  # the boundary is a message of each entity to itself
    receives = torch.cat([receives, torch.eye(n, dtype=x.dtype)])
    counts = receives.sum(0).unsqueeze(1)
    total = torch.einsum("en,ed->nd", receives, sent)
    if aggregate == "sum":
        return total
    mean = total / counts
    if aggregate == "mean":
        return mean
    where = receives.T.bool().unsqueeze(-1)
    largest = torch.where(where, sent, -torch.inf).amax(1)
    if aggregate == "max":
        return largest
    smallest = torch.where(where, sent, torch.inf).amin(1)
    deviation = (torch.einsum("en,ed->nd", receives, sent**2) / counts - mean**2).clamp(min=1e-6).sqrt()
    scale = counts.log()
    scale = scale / scale.mean()
    scales = torch.cat([torch.ones_like(scale), scale, 1 / scale.clamp(min=1e-2)], 1)
    parts = torch.stack([mean, largest, smallest, deviation], -1).flatten(-2)
    return (parts.unsqueeze(-1) * scales.unsqueeze(-2)).flatten(-2)


def plain_states(
    net: GraphNetwork, relation_states: Tensor, boundary: Tensor, edges: list[tuple[int, int, int]]
) -> Tensor:
    """States of one query after all layers, (N, D), with W on [x; u] put beside each other."""
    settings, x = net.settings, boundary
    for layer in net.layers:
        z = layer.relation_projection(relation_states)
        u = dense_gather(x, z, boundary, edges, settings.message, settings.aggregate)
        y = F.linear(torch.cat([x, u], -1), layer.linear.weight, layer.linear.bias)
        if settings.layer_norm:
            y = F.layer_norm(y, y.shape[-1:], layer.layer_norm.weight, layer.layer_norm.bias)
        y = F.relu(y)
        x = y + x if settings.short_cut else y
    return x


def plain_scores(
    net: GraphNetwork, relation_states: Tensor, query: Tensor, boundary: Tensor, edges: list[tuple[int, int, int]]
) -> Tensor:
    """Logits of all entities of one query, (N,)."""
    x = plain_states(net, relation_states, boundary, edges)
    return net.head(torch.cat([x, query.expand_as(x)], -1)).squeeze(-1)


def plain_tails(
    net: GraphNetwork, features: Tensor, heads: Tensor, relations: Tensor, graphs: list[list[tuple[int, int, int]]],
    n_entities: int,
) -> Tensor:  # fmt: skip
    """Logits (B, N) of tails, each query on a graph of its own."""
    z = net.relation_mlp(features)
    rows = []
    for head, relation, edges in zip(heads.tolist(), relations.tolist(), graphs, strict=True):
        boundary = torch.zeros(n_entities, z.shape[1], dtype=z.dtype)
        boundary[head] = z[relation]
        rows.append(plain_scores(net, z, z[relation], boundary, edges))
    return torch.stack(rows)


def plain_entities(
    net: GraphNetwork, features: Tensor, questions: Tensor, seeds: list[list[int]], weights: Tensor,
    edges: list[tuple[int, int, int]],
) -> Tensor:  # fmt: skip
    """Logits (B, N) of entities for questions."""
    rows = []
    for question, own in zip(questions, seeds, strict=True):
        query = net.question_mlp(question)
        mask = torch.zeros(len(weights), dtype=query.dtype)
        mask[own] = 1
        rows.append(plain_scores(net, net.relation_mlp(features), query, torch.outer(mask * weights, query), edges))
    return torch.stack(rows)
