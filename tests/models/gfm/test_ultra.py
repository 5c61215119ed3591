"""ULTRA against its equations written with whole matrices, and against the figures of its own code."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ragtrain.errors import CheckpointError, ConfigError
from ragtrain.models.gfm import ultra
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.ultra import META, UltraNetwork, UltraSettings, load_ultra, relation_graph, save_ultra

N, R = 15, 4


def triples() -> torch.Tensor:
    draws = random.Random(0)
    drawn = {(draws.randrange(N - 2), draws.randrange(R - 1), draws.randrange(N - 2)) for _ in range(50)}
    return torch.tensor(sorted(drawn))  # two entities and a relation that no triple names


def network(layers: int = 3, width: int = 6) -> UltraNetwork:
    made = UltraNetwork(UltraSettings(hidden_dim=width, relation_layers=2, num_layers=layers))
    for name, parameter in made.named_parameters():  # so that no sum is near zero and no bias is
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return made.double()


def slow_meetings(facts: torch.Tensor) -> set[tuple[int, int, str]]:
    """Return (relation that receives, relation that sends, in which way they meet), entity by entity."""
    heads: dict[int, set[int]] = {r: set() for r in range(2 * R)}
    tails: dict[int, set[int]] = {r: set() for r in range(2 * R)}
    for h, r, t in facts.tolist():
        heads[r].add(h)
        tails[r].add(t)
        heads[r + R].add(t)
        tails[r + R].add(h)
    ends = {"h": heads, "t": tails}
    return {
        (r, s, way) for r in range(2 * R) for s in range(2 * R) for way in META if ends[way[0]][r] & ends[way[2]][s]
    }


def layer(state: dict[str, torch.Tensor], name: str, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    hidden = F.linear(torch.cat([x, u], -1), state[f"{name}.linear.weight"], state[f"{name}.linear.bias"])
    norm = F.layer_norm(hidden, hidden.shape[-1:], state[f"{name}.layer_norm.weight"], state[f"{name}.layer_norm.bias"])
    return F.relu(norm) + x


def slow_scores(
    net: UltraNetwork, facts: torch.Tensor, size: tuple[int, int], triple: tuple[int, int, int], *, tail: bool = True,
    remove: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Return the scores of all entities as the tail (or head) of one triple, with dense matrices throughout."""
    state = dict(net.state_dict()) if not torch.is_grad_enabled() else dict(net.named_parameters())
    n, r = size
    every = torch.cat([facts, facts[:, [2, 1, 0]] + torch.tensor([0, r, 0])])
    incidence = {}
    for end, column in (("h", 0), ("t", 2)):
        incidence[end] = torch.zeros(2 * r, n)
        incidence[end][every[:, 1], every[:, column]] = 1
    meets = [(incidence[way[0]] @ incidence[way[2]].T > 0).to(net.entity_model.mlp[0].weight.dtype) for way in META]
    width, asked = net.settings.hidden_dim, triple[1]
    boundary = meets[0].new_zeros(2 * r, width)
    boundary[asked] = 1
    z = boundary
    for i in range(net.settings.relation_layers):
        name = f"relation_model.layers.{i}"
        vectors = state[f"{name}.relation.weight"]
        z = layer(state, name, z, sum(meet @ (z * vectors[k]) for k, meet in enumerate(meets)) + boundary)
    start, query = (triple[0], z[asked]) if tail else (triple[2], z[asked + r])
    if remove:
        own = torch.tensor([triple, (triple[2], triple[1] + r, triple[0])])
        every = every[~(every[:, None] == own).all(-1).any(1)]
    boundary = torch.zeros(n, width, dtype=z.dtype).index_copy(0, torch.tensor([start]), query[None])
    x = boundary
    for i in range(net.settings.num_layers):
        name = f"entity_model.layers.{i}"
        first, second = (f"{name}.relation_projection.{j}" for j in (0, 2))
        own = F.relu(F.linear(z, state[f"{first}.weight"], state[f"{first}.bias"]))
        own = F.linear(own, state[f"{second}.weight"], state[f"{second}.bias"])
        sent = x[every[:, 2]] * own[every[:, 1]]
        x = layer(state, name, x, boundary.index_add(0, every[:, 0], sent))
    whole = torch.cat([x, query.expand(n, -1)], -1)
    hidden = F.relu(F.linear(whole, state["entity_model.mlp.0.weight"], state["entity_model.mlp.0.bias"]))
    return F.linear(hidden, state["entity_model.mlp.2.weight"], state["entity_model.mlp.2.bias"])[:, 0]


@pytest.mark.parametrize("pairs", [1, 1 << 22])
def test_relations_meet_as_their_entities_say(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ultra, "_PAIRS", pairs)
    found = relation_graph(GraphTensors.from_triples(triples(), N, R)).into
    ways = [META[kind] for kind in found.second.tolist()]
    edges = list(zip(found.row.tolist(), found.first.tolist(), ways, strict=True))
    assert set(edges) == slow_meetings(triples())
    assert len(edges) == len(set(edges))


@pytest.mark.parametrize("removed", [False, True])
def test_scores_are_those_of_the_equations(removed: bool) -> None:
    net, facts = network(), triples()
    graph = GraphTensors.from_triples(facts, N, R)
    batch = facts[[0, 7, 7, 20, 33]]
    tail = torch.tensor([True, True, False, False, True])
    heads, tails = torch.where(tail, batch[:, 0], batch[:, 2]), torch.where(tail, batch[:, 2], batch[:, 0])
    relations = torch.where(tail, batch[:, 1], batch[:, 1] + R)
    with torch.no_grad():
        own = graph.own_edges(heads, relations, tails) if removed else None
        scores = net.score_tails(graph, None, heads, relations, removed=own)
        chosen = net.score_tails(graph, None, heads, relations, tails[:, None], removed=own)
        expected = torch.stack(
            [
                slow_scores(net, facts, (N, R), (h, r, t), tail=direct, remove=removed)
                for (h, r, t), direct in zip(batch.tolist(), tail.tolist(), strict=True)
            ]
        )
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(chosen, expected.gather(1, tails[:, None]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_both_networks_and_are_those_of_the_equations(checkpointing: bool) -> None:
    net, facts = network(), triples()
    net.activation_checkpointing = checkpointing
    graph, (h, r, t) = GraphTensors.from_triples(facts, N, R), facts[12].tolist()
    candidates = torch.tensor([[t, 1, 5]])
    heads, relations = torch.tensor([h]), torch.tensor([r])
    own = graph.own_edges(heads, relations, torch.tensor([t]))
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    fast = net.score_tails(graph, None, heads, relations, candidates, removed=own)[0] @ weights
    slow = slow_scores(net, facts, (N, R), (h, r, t), remove=True)[candidates[0]] @ weights
    for (name, _), one, other in zip(
        net.named_parameters(),
        torch.autograd.grad(fast, list(net.parameters())),
        torch.autograd.grad(slow, list(net.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, msg=name)
        if name.endswith("weight"):
            assert other.abs().max() > 0, name


def test_the_first_layer_is_the_same_from_heads_and_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    net, graph = network(), GraphTensors.from_triples(triples(), N, R)
    heads, relations = torch.tensor([0]), torch.tensor([1])
    sparse = net.score_tails(graph, None, heads, relations)
    monkeypatch.setattr(ultra, "_from_heads", lambda *_: None)
    torch.testing.assert_close(sparse, net.score_tails(graph, None, heads, relations))


def test_a_batch_scores_as_its_queries_alone() -> None:
    net, graph = network(), GraphTensors.from_triples(triples(), N, R)
    heads, relations = torch.tensor([0, 3, 3, 14, 8]), torch.tensor([1, 1, 5, 3, 2])
    with torch.no_grad():
        together = net.score_tails(graph, None, heads, relations)
        alone = [net.score_tails(graph, None, heads[i, None], relations[i, None])[0] for i in range(5)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_what_is_made_of_a_graph_goes_with_it() -> None:
    net = network()
    graph = GraphTensors.from_triples(triples(), N, R)
    net.score_tails(graph, None, torch.tensor([0]), torch.tensor([0]))
    assert len(net._made) == 1
    copy.deepcopy(net)
    del graph
    assert len(net._made) == 0


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    net, graph = network(), GraphTensors.from_triples(triples(), N, R)
    save_ultra(net, tmp_path / "new" / "ultra.pth")
    again = load_ultra(tmp_path / "new" / "ultra.pth").double()
    assert again.settings == net.settings
    heads, relations = torch.tensor([0, 3]), torch.tensor([1, 5])
    ours, theirs = (each.score_tails(graph, None, heads, relations) for each in (net, again))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert UltraSettings.from_json(json.loads(json.dumps(net.settings.to_json()))) == net.settings


def test_what_is_no_checkpoint_of_ultra_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_ultra(path)
    torch.save({"model": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="holds no ULTRA network"):
        load_ultra(path)
    state = network().state_dict()
    state["entity_model.layers.0.linear.weight"] = torch.zeros(6, 13 * 6)  # PNA
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match="not those of ULTRA with sums"):
        load_ultra(path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_ultra(tmp_path / "absent.pth")


def test_a_setting_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="no setting depth"):
        UltraSettings.from_json({"depth": 3})


def test_the_public_checkpoint_scores_as_the_equations(real_data: Path) -> None:
    """Three real triples of CoDEx-S in both directions, with the weights that ULTRA's authors published."""
    net = load_ultra(real_data / "graph" / "ultra" / "ultra_3g.pth")
    assert sum(parameter.numel() for parameter in net.parameters()) == 168_705
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}
    lines = (real_data / "graph" / "kg" / "codex-s" / "train.txt").read_text(encoding="utf-8").splitlines()
    facts = torch.tensor(
        [
            [entities.setdefault(h, len(entities)), relations.setdefault(r, len(relations)), entities.setdefault(t, len(entities))]
            for h, r, t in map(str.split, lines)
        ]
    )  # fmt: skip
    size = (len(entities), len(relations))
    graph = GraphTensors.from_triples(facts, *size)
    batch = facts[[5, 400, 9000]]
    heads = torch.cat([batch[:, 0], batch[:, 2]])
    asked = torch.cat([batch[:, 1], batch[:, 1] + size[1]])
    with torch.no_grad():
        scores = net.score_tails(graph, None, heads, asked)
        for row, (triple, tail) in enumerate([*((each, True) for each in batch), *((each, False) for each in batch)]):
            expected = slow_scores(net, facts, size, tuple(triple.tolist()), tail=tail)
            torch.testing.assert_close(scores[row], expected, rtol=1e-4, atol=1e-4)
