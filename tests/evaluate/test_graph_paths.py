"""Paths of explanations: weights of edges against autograd on a slow twin, the search against all paths, edges that are taken out,
and the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ragtrain import prepare
from ragtrain.cli import main
from ragtrain.config.commands import EncoderConfig, PrepareConfig, SearchConfig
from ragtrain.config.commands.graph import GraphConfig
from ragtrain.data import demo
from ragtrain.errors import ConfigError
from ragtrain.evaluate import graph_picture
from ragtrain.evaluate.graph_paths import Explainer, LayerEdges, best_routes
from ragtrain.evaluate.graph_search import GraphSearchResult, search
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.export import save_gfm
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork
from ragtrain.models.gfm.ultra import UltraNetwork, UltraSettings, save_ultra
from ragtrain.records import write_json

N, R = 9, 3


def triples(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, top, (14,), generator=generator) for top in (N, R, N)]
    return torch.unique(torch.stack(columns, 1), dim=0)


def parts(message: str = "distmult", aggregate: str = "sum", n_layers: int = 3) -> tuple[GraphNetwork, Tensor, Tensor]:
    torch.manual_seed(0)
    settings = GfmSettings(hidden_dim=8, num_layers=n_layers, message=message, aggregate=aggregate, text_dim=5)
    return GraphNetwork(settings).double().eval(), torch.randn(2 * R, 5).double(), torch.randn(5).double()


def weighted_logits(
    net: GraphNetwork, graph: GraphTensors, features: Tensor, vector: Tensor, seeds: list[int], factors: list[Tensor]
) -> Tensor:
    """Slow twin: logits (N,) with a factor on each message of each layer, edges one after another in plain tensors."""
    query = net.question_mlp(vector)
    boundary = torch.zeros(graph.n_entities, len(query), dtype=query.dtype)
    boundary[seeds] = query
    walk, x, z0 = graph.into, boundary, net.relation_mlp(features)
    target, source, relation = walk.row.long(), walk.first.long(), walk.second.long()
    counts = torch.bincount(target, minlength=graph.n_entities).double() + 1
    for layer, factor in zip(net.layers, factors, strict=True):
        z = layer.relation_projection(z0)[relation]
        if layer.message == "distmult":
            sent = x[source] * z
        elif layer.message == "transe":
            sent = x[source] + z
        else:
            (a, b), (c, d) = x[source].chunk(2, -1), z.chunk(2, -1)
            sent = torch.cat([a * c - b * d, a * d + b * c], -1)
        sent = torch.cat([sent * factor.unsqueeze(1), boundary])
        where = torch.cat([target, torch.arange(graph.n_entities)])
        index = where.unsqueeze(1).expand_as(sent)
        zeros = torch.zeros_like(x)
        total = zeros.scatter_add(0, index, sent)
        largest = zeros.scatter_reduce(0, index, sent, "amax", include_self=False)
        smallest = zeros.scatter_reduce(0, index, sent, "amin", include_self=False)
        mean = total / counts.unsqueeze(1)
        if layer.aggregate == "pna":
            square = zeros.scatter_add(0, index, sent**2) / counts.unsqueeze(1)
            deviation = (square - mean**2).clamp(min=1e-6).sqrt()
            scale = counts.log() / counts.log().mean()
            scales = torch.stack([torch.ones_like(scale), scale, 1 / scale.clamp(min=1e-2)], 1)
            four = torch.stack([mean, largest, smallest, deviation], -1).flatten(-2)
            gathered = (four.unsqueeze(-1) * scales.unsqueeze(1)).flatten(-2)
        else:
            gathered = {"sum": total, "mean": mean, "max": largest}[layer.aggregate]
        y = F.linear(torch.cat([x, gathered], -1), layer.linear.weight, layer.linear.bias)
        x = F.relu(F.layer_norm(y, y.shape[-1:], layer.layer_norm.weight, layer.layer_norm.bias)) + x
    return net.head(torch.cat([x, query.expand_as(x)], -1)).squeeze(-1)


@pytest.mark.parametrize(
    ("message", "aggregate"),
    [("distmult", "sum"), ("transe", "mean"), ("rotate", "max"), ("distmult", "pna"), ("rotate", "sum")],
)
def test_weights_of_edges_are_gradients(message: str, aggregate: str) -> None:
    net, features, vector = parts(message, aggregate)
    graph = GraphTensors.from_triples(triples(), N, R)
    seeds = [0, 4]
    explainer = Explainer(net, graph, features, vector, seeds)
    factors = [torch.ones(len(graph), dtype=torch.double, requires_grad=True) for _ in net.layers]
    logits = weighted_logits(net, graph, features, vector, seeds, factors)
    torch.testing.assert_close(explainer.logits, logits)
    torch.testing.assert_close(
        net.score_entities(graph, features, vector.unsqueeze(0), [seeds])[0].detach(), explainer.logits
    )
    entity = int(torch.argmax(logits.detach()))
    expected = torch.autograd.grad(logits[entity], factors)
    distance = dict.fromkeys(seeds, 0)
    for step in range(1, N):
        for h, _, t in triples().tolist():
            for a, b in ((h, t), (t, h)):
                if distance.get(a) == step - 1:
                    distance.setdefault(b, step)
    for number, found in enumerate(explainer.edges(entity)):
        wanted = {
            (t, s, r): float(weight)
            for t, s, r, weight in zip(
                graph.into.row.tolist(), graph.into.first.tolist(), graph.into.second.tolist(), expected[number],
                strict=True,
            )
            if weight != 0 and s != entity and distance.get(s, N) <= number
        }  # fmt: skip
        got = zip(found.target.tolist(), found.source.tolist(), found.relation.tolist(), strict=True)
        assert dict(zip(got, found.weight.tolist(), strict=True)) == pytest.approx(wanted, rel=1e-8, abs=1e-12)


def all_paths(layers: list[LayerEdges], seeds: list[int], entity: int) -> dict[tuple[tuple[int, int], ...], float]:
    """Weights of all paths without repeated entities, each in its best layers."""
    best: dict[tuple[tuple[int, int], ...], float] = {}
    for length in range(1, len(layers) + 1):
        for numbers in itertools.combinations(range(len(layers)), length):
            choices = [
                list(zip(e.source, e.relation, e.target, e.weight, strict=True)) for e in (layers[n] for n in numbers)
            ]
            for steps in itertools.product(*choices):
                nodes = [int(steps[0][0]), *(int(step[2]) for step in steps)]
                joined = all(a[2] == b[0] for a, b in itertools.pairwise(steps))
                if joined and nodes[0] in seeds and nodes[-1] == entity and len(set(nodes)) == len(nodes):
                    key = tuple((int(step[0]), int(step[1])) for step in steps)
                    best[key] = max(best.get(key, -np.inf), float(sum(step[3] for step in steps)))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_the_best_of_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(3):
        edges = np.unique(rng.integers(0, (6, 6, 2), size=(12, 3)), axis=0)
        layers.append(LayerEdges(edges[:, 0], edges[:, 1], edges[:, 2], rng.normal(size=len(edges))))
    seeds, entity = [1, 4], 5
    every = all_paths(layers, seeds, entity)
    found = best_routes(layers, seeds, entity, 4, 6)
    expected = sorted((weight / len(key) for key, weight in every.items() if weight > 0), reverse=True)[:4]
    assert [route.mean for route in found] == pytest.approx(expected)
    for route in found:
        assert route.weight == pytest.approx(every[tuple((step.source, step.relation) for step in route.steps)])
        assert sorted({step.layer for step in route.steps}) == [step.layer for step in route.steps]


def test_an_entity_that_nothing_leads_to_has_no_paths() -> None:
    nothing = LayerEdges(*(np.zeros(0, dtype=np.int64) for _ in range(3)), np.zeros(0))
    assert best_routes([nothing, nothing], [0], 1, 3, 2) == []
    net, features, vector = parts()
    graph = GraphTensors.from_triples(torch.tensor([[0, 0, 1], [2, 1, 3]]), 5, R)
    explainer = Explainer(net, graph, features, vector, [0])
    assert explainer.routes(3) == []
    assert explainer.routes(4) == []


def towns() -> tuple[list[str], list[str], list[tuple[int, int, int]]]:
    """Persons live in towns, and towns lie in countries: the question is for a person's country."""
    names = [f"{kind}{i}" for kind, count in (("person", 6), ("town", 6), ("country", 3)) for i in range(count)]
    rows = [(i, 0, 6 + i) for i in range(6)] + [(6 + i, 1, 12 + i // 2) for i in range(6)]
    rows += [(i, 2, (i + 1) % 6) for i in range(6)]  # friends, who say nothing of it
    return names, ["lives in", "lies in", "knows"], rows


def test_paths_are_what_the_score_falls_without() -> None:
    """A trained network: of all edges, those of the path are the ones without which the answer loses most."""
    names, _, rows = towns()
    torch.manual_seed(0)
    net = GraphNetwork(GfmSettings(hidden_dim=16, num_layers=3, text_dim=4))
    features, vector = torch.randn(6, 4), torch.randn(4)
    graph = GraphTensors.from_triples(torch.tensor(rows), len(names), 3)
    answers = torch.tensor([12 + i // 2 for i in range(6)])
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        logits = net.score_entities(graph, features, vector.expand(6, -1), [[i] for i in range(6)])
        loss = F.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    assert float(loss.detach()) < 0.1
    for person in range(6):
        answer = int(answers[person])
        explainer = Explainer(net, graph, features, vector, [person])
        best = explainer.routes(answer, 1)[0]
        # Read as triples: the person lives in the town, and the town lies in the country.
        assert [(step.source, step.relation - 3, step.target) for step in best.steps] == [
            (person, 0, 6 + person), (6 + person, 1, answer)
        ]  # fmt: skip
        walk, lost = graph.into, {}
        for place in range(len(graph)):
            without = Explainer(net, graph.without(torch.tensor([place])), features, vector, [person])
            edge = (int(walk.first[place]), int(walk.second[place]), int(walk.row[place]))
            lost[edge] = float(explainer.logits[answer] - without.logits[answer])
        worst = sorted(lost, key=lambda edge: -lost[edge])[:2]
        assert set(worst) == {(step.source, step.relation, step.target) for step in best.steps}


# The picture


def test_tree_shares_beginnings() -> None:
    lives = graph_picture.Hop("ann", "lives in", forward=True, target="rome", weight=1.0)
    lies = graph_picture.Hop("rome", "capital of", forward=True, target="italy", weight=1.0)
    born = graph_picture.Hop("rome", "born in", forward=False, target="bob", weight=0.5)
    paths = [graph_picture.Path((lives, lies), 1.0), graph_picture.Path((lives, born), 0.75)]
    assert graph_picture.tree(paths, {"italy": 0.9, "bob": 0.5}).splitlines() == [
        "ann   (in the question)",
        "└─ —lives in→ rome",
        "   ├─ —capital of→ italy   0.900, path +1",
        "   └─ ←born in— bob   0.500, path +0.75",
    ]


def test_svg_is_well_formed_and_holds_everything() -> None:
    odd = graph_picture.Hop("<a & b>", 'r "1"', forward=False, target="維也納\x00", weight=1.0)
    twice = graph_picture.Hop("<a & b>", "s", forward=True, target="維也納\x00", weight=-1.0)
    drawing = graph_picture.svg(
        "Who <is> it?", [graph_picture.Path((odd,), 1.0), graph_picture.Path((twice,), 0.1)], {"維也納\x00": 0.5},
        {"A title of more than eight and twenty letters": ["維也納\x00"], "Elsewhere": []},
    )  # fmt: skip
    root = ElementTree.fromstring(drawing)
    texts = [element.text for element in root.iter() if element.text and element.text.strip()]
    assert {"Who <is> it?", "<a & b>", "維也納", 'r "1"', "A title of more than eight an…"[:27] + "…"} <= set(texts)
    assert "Elsewhere" not in texts
    assert ElementTree.fromstring(graph_picture.svg("Who?", [], {}, {})) is not None


# The command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    names, relations, rows = towns()
    folder = tmp_path / "towns"
    stage = folder / "processed" / "stage1"
    (folder / "raw").mkdir(parents=True)
    corpus = {f"About {names[i]}": f"{names[i]} lives in {names[6 + i]}." for i in range(6)}
    write_json(folder / "raw" / "dataset_corpus.json", corpus)
    write_json(stage / "document2entities.json", {f"About {names[i]}": [names[i], names[6 + i]] for i in range(6)})
    (stage / "kg.txt").write_text("".join(f"{names[h]},{relations[r]},{names[t]}\n" for h, r, t in rows))
    torch.manual_seed(1)  # with which some paths raise the score
    net = GraphNetwork(GfmSettings(hidden_dim=8, num_layers=2, text_dim=128))
    sidecar = {"stage": "finetune", "text_encoder": str(demo.ENCODER), "graphs": [{"path": str(folder)}],
               "ranking": {"ranker": "idf_topk", "ranker_top_k": 5, "fusion": "bm25"}}  # fmt: skip
    save_gfm(net, tmp_path / "model", sidecar=sidecar)
    return tmp_path / "model"


def test_search_finds_documents_entities_and_paths(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = tmp_path / "new" / "paths.svg"
    found = search(SearchConfig(question="Where does person3 live?", model_dir=str(model), n_docs=3, draw=drawing))
    assert isinstance(found, GraphSearchResult)
    assert [each["name"] for each in found.linked] == ["person3"]
    assert len(found.documents) == 3
    assert "About person3" in {row["id"] for row in found.documents}
    assert [each["score"] for each in found.entities] == sorted((e["score"] for e in found.entities), reverse=True)
    paths = [path for entity in found.entities for path in entity["paths"]]
    assert paths
    assert all(path["hops"][0]["source"] == "person3" for path in paths)
    known = {(h, r, t) for h, r, t in _named_triples()}
    for hop in (hop for path in paths for hop in path["hops"]):
        ends = (hop["source"], hop["target"]) if hop["forward"] else (hop["target"], hop["source"])
        assert (ends[0], hop["relation"], ends[1]) in known
    ElementTree.parse(drawing)
    shown = capsys.readouterr().err
    assert "person3   (in the question)" in shown
    json.dumps(found.to_json())


def _named_triples() -> list[tuple[str, str, str]]:
    names, relations, rows = towns()
    return [(names[h], relations[r], names[t]) for h, r, t in rows]


def test_search_on_the_command_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "search", "What of town1?", "--model-dir", str(model), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["entities"]
    assert document["documents"]


def test_search_without_an_entity_says_so(
    model: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    found = search(SearchConfig(question="what is it that happens in the end of all", model_dir=str(model)))
    assert isinstance(found, GraphSearchResult)
    assert "names no entity of the graph" in caplog.text
    assert len(found.documents) == 5
    assert not any(entity["paths"] for entity in found.entities)


def test_a_name_that_the_graph_does_not_have_is_linked_to_nothing(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The demo's encoder, which holds any two names to be alike, compares none."""
    for question in ("Who is Barack Obama of Kenya?", "what is it?"):
        found = search(SearchConfig(question=question, model_dir=str(model)))
        assert isinstance(found, GraphSearchResult)
        assert found.linked == ()
    assert caplog.text.count("names no entity of the graph") == 2


@pytest.mark.parametrize("encoder", [None, str(demo.ENCODER)])
def test_questions_are_linked_as_the_graph_was_made(encoder: str | None, model: Path, tmp_path: Path) -> None:
    """With the encoder that its manifest names, and by words alone where it names none."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "a", "title": "Oslo", "text": "Oslo is a city in Norway."}) + "\n")
    prepare.run(
        PrepareConfig(
            passages=corpus, output_dir=tmp_path / "made", graph_build=GraphConfig(graph=True),
            encoder=EncoderConfig(encoder=encoder),
        )
    )  # fmt: skip
    asked = SearchConfig(question="Who is Barack Obama of Kenya?", model_dir=str(model), graph=tmp_path / "made")
    found = search(asked)
    assert isinstance(found, GraphSearchResult)
    assert bool(found.linked) == (encoder is not None)


def test_documents_of_one_title_are_both_drawn(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    texts = ("Oslo is a city in Norway.", "Oslo is a town in Norway.")
    corpus.write_text(
        "".join(json.dumps({"id": f"o{n}", "title": "Oslo", "text": t}) + "\n" for n, t in enumerate(texts))
    )
    prepare.run(PrepareConfig(passages=corpus, output_dir=tmp_path / "made", graph_build=GraphConfig(graph=True)))
    drawing = tmp_path / "paths.svg"
    search(SearchConfig(question="Where is Oslo?", model_dir=str(model), graph=tmp_path / "made", draw=drawing))
    drawn = {element.text for element in ElementTree.parse(drawing).iter() if element.text}
    assert {"o0", "o1"} <= drawn


def test_search_refuses_what_means_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--retrieval means nothing to a search in a graph"):
        search(SearchConfig(question="x", model_dir=str(model), retrieval="bm25"))
    with pytest.raises(ConfigError, match="--draw means nothing to a search without --model-dir"):
        search(SearchConfig(question="x", draw=tmp_path / "x.svg"))
    with pytest.raises(ConfigError, match="no question"):
        search(SearchConfig(model_dir=str(model)))
    save_ultra(UltraNetwork(UltraSettings(hidden_dim=8, relation_layers=1, num_layers=1)), tmp_path / "ultra.pth")
    with pytest.raises(ConfigError, match="knows no questions"):
        search(SearchConfig(question="x", model_dir=str(tmp_path / "ultra.pth")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("kind: rag\n")
    with pytest.raises(ConfigError, match="run of kind 'rag'"):
        search(SearchConfig(question="x", model_dir=str(tmp_path / "run")))
