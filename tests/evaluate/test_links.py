"""Link prediction against ranks counted entity by entity, and against the figures of ULTRA's own code."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ragtrain import compare, evaluate
from ragtrain.config.commands import CompareConfig, EvalConfig, GfmConfig
from ragtrain.config.load import load_config
from ragtrain.errors import CheckpointError, ConfigError, DataError, OutOfMemoryError
from ragtrain.evaluate import link_ranks
from ragtrain.evaluate.link_ranks import TOP, batch_size, rank_links
from ragtrain.index.graph.read import read_graph
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.known import KnownTails
from ragtrain.models.gfm.ultra import UltraNetwork, UltraSettings, load_ultra, save_ultra
from ragtrain.train import gfm

N, R = 20, 3
#: Zero-shot figures of ``ultra_3g`` on the 203 test triples of Nations, by the dense equations of the test of the network.
NATIONS = {"mrr": 0.552423, "mr": 3.251232, "hits@1": 0.364532, "hits@3": 0.662562, "hits@10": 0.975369}


def run(**settings: object) -> Any:
    return evaluate.run(load_config(EvalConfig, flags=settings).config)


def random_triples(n: int, seed: int = 0) -> np.ndarray:
    draws = random.Random(seed)
    rows = {(draws.randrange(N), draws.randrange(R), draws.randrange(N)) for _ in range(n)}
    return np.array(sorted(rows))


class Table:
    """A network that has a score for every query and entity; of few values, so that many are equal."""

    def __init__(self, levels: int) -> None:
        self.settings = UltraSettings(hidden_dim=4)
        self.scores = torch.randint(levels, (N, 2 * R, N)).float()
        self.batches: list[int] = []

    def score_tails(
        self, graph: object, features: object, heads: torch.Tensor, relations: torch.Tensor
    ) -> torch.Tensor:
        self.batches.append(len(heads))
        return self.scores[heads, relations]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with all three splits."""
    path = tmp_path_factory.mktemp("graphs") / "toy"
    path.mkdir()
    rows = random_triples(120).tolist()
    random.Random(1).shuffle(rows)
    for name, part in (("train", rows[:80]), ("valid", rows[80:95]), ("test", rows[95:])):
        text = "".join(f"e{h}\tr{r}\te{t}\n" for h, r, t in part)
        (path / f"{name}.txt").write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("models") / "tiny.pth"
    save_ultra(UltraNetwork(UltraSettings(hidden_dim=8, relation_layers=2, num_layers=2)), path)
    return path


@pytest.mark.parametrize(("levels", "most"), [(3, 1), (3, 7), (10_000, None)])
def test_ranks_and_best_entities_are_those_of_counting(levels: int, most: int | None) -> None:
    triples = random_triples(90)
    facts, asked = triples[:60], triples[50:]  # ten are facts as well
    network, known = Table(levels), KnownTails(torch.from_numpy(triples[:80]), N, R)  # and ten nobody knows
    graph = GraphTensors.from_triples(facts, N, R)
    found = rank_links(network, graph, None, torch.from_numpy(asked), known, most=most)
    true = {(h, r, t) for h, r, t in triples[:80].tolist()}
    for number, (h, r, t) in enumerate(asked.tolist()):
        for column, (head, relation, target) in enumerate(((h, r, t), (t, r + R, h))):
            mine = {e for e in range(N) if ((head, r, e) if column == 0 else (e, r, head)) in true}
            others = [e for e in range(N) if e not in mine and e != target]
            scores = network.scores[head, relation].tolist()
            assert found.scores[number, column] == scores[target]
            assert found.negatives[number, column] == len(others)
            rank = 1 + sum(scores[e] >= scores[target] for e in others)
            assert found.ranks[number, column] == rank
            listed = found.top[number, column].tolist()
            expected = sorted([scores[e] for e in [*others, target]], reverse=True)[:TOP]
            assert found.top_scores[number, column].tolist()[: len(expected)] == expected
            assert set(listed) <= {*others, target, -1}
            assert len(set(listed)) == TOP
            assert (target in listed) == (rank <= TOP)
            if rank <= TOP:
                assert listed[rank - 1] == target
    assert found.queries == sum(network.batches)
    assert max(network.batches) <= (most or N * R * 2)
    assert found.queries < 2 * len(asked)


def test_a_full_device_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    triples = random_triples(40)
    network, known = Table(9), KnownTails(torch.from_numpy(triples), N, R)
    graph = GraphTensors.from_triples(triples[:30], N, R)
    whole = rank_links(network, graph, None, torch.from_numpy(triples[30:]), known)
    score, room = network.score_tails, 3

    def full(*arguments: Any) -> torch.Tensor:
        if len(arguments[2]) > room:
            raise torch.OutOfMemoryError("full")
        return score(*arguments)

    monkeypatch.setattr(network, "score_tails", full)
    again = rank_links(network, graph, None, torch.from_numpy(triples[30:]), known)
    assert np.array_equal(whole.ranks, again.ranks)
    room = 0
    with pytest.raises(OutOfMemoryError, match="one query on 20 entities"):
        rank_links(network, graph, None, torch.from_numpy(triples[30:]), known)


def test_batches_fit_the_memory_they_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = GraphTensors.from_triples(random_triples(40), N, R)
    assert batch_size(graph, 8) == link_ranks._MOST
    monkeypatch.setattr(link_ranks, "_CPU_BYTES", 1)
    assert batch_size(graph, 8) == 1


def test_a_checkpoint_is_evaluated_on_a_folder_of_triples(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = run(model_dir=str(checkpoint), graph=folder, output_dir=tmp_path / "eval", batch_size=4)
    graph, network = read_graph(folder), load_ultra(checkpoint)
    tensors = GraphTensors.from_graph(graph)
    everything = {tuple(row) for rows in (graph.triples, *graph.held_out.values()) for row in rows.tolist()}
    lines = [json.loads(line) for line in (tmp_path / "eval" / "predictions.jsonl").read_text("utf-8").splitlines()]
    ranks = []
    names, relations = {n: i for i, n in enumerate(graph.entities)}, {n: i for i, n in enumerate(graph.relations)}
    for line in lines:
        h, r, t = names[line["triple"][0]], relations[line["triple"][1]], names[line["triple"][2]]
        tail = line["direction"] == "tail"
        start, asked, target = (h, r, t) if tail else (t, r + graph.n_relations, h)
        with torch.no_grad():
            scores = network.score_tails(tensors, None, torch.tensor([start]), torch.tensor([asked]))[0].tolist()
        mine = {e for e in range(graph.n_entities) if ((h, r, e) if tail else (e, r, t)) in everything}
        ranks.append(1 + sum(s >= scores[target] for e, s in enumerate(scores) if e not in mine))
        assert line["rank"] == ranks[-1]
        assert line["candidates"] == graph.n_entities - len(mine) + 1
        assert len(line["top"]) == min(TOP, line["candidates"])
    assert len(lines) == 2 * len(graph.held_out["test"])
    assert result.summary["n"] == len(graph.held_out["test"])
    assert result.metrics["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
    assert result.metrics["hits@3"] == pytest.approx(np.mean(np.array(ranks) <= 3))
    assert result.metrics["tail_mrr"] == pytest.approx(np.mean(1 / np.array(ranks[::2])))
    low, high = result.summary["intervals"]["mrr"]
    assert low < result.metrics["mrr"] < high


def test_the_same_evaluation_is_not_made_twice_and_another_has_a_folder_of_its_own(
    folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = run(model_dir=str(checkpoint), graph=folder, num_samples=5)
    assert first.path == Path("runs/tiny/eval-toy")
    assert first.summary["n"] == 5
    assert run(model_dir=str(checkpoint), graph=folder, num_samples=5, batch_size=2).reused
    with pytest.raises(ConfigError, match="holds another evaluation"):
        run(model_dir=str(checkpoint), graph=folder, num_samples=6)
    assert run(model_dir=str(checkpoint), graph=folder, num_samples=6, overwrite=True).summary["n"] == 6
    document = tmp_path / "one.json"
    found = run(model_dir=str(checkpoint), graph=folder, output_file=document)
    assert len(json.loads(document.read_text("utf-8"))["predictions"]) == 2 * found.summary["n"]


def test_without_a_test_file_the_validation_triples_are_asked_and_without_both_some_are_held_out(
    folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_bytes((folder / f"{name}.txt").read_bytes())
    found = run(model_dir=str(checkpoint), graph=tmp_path, output_dir=tmp_path / "a")
    assert [found.summary["graphs"][0][name] for name in ("split", "asked", "facts")] == ["valid", 15, 80]
    (tmp_path / "valid.txt").unlink()
    found = run(model_dir=str(checkpoint), graph=tmp_path, output_dir=tmp_path / "b")
    assert [found.summary["graphs"][0][name] for name in ("split", "asked", "facts")] == ["held-out", 8, 72]
    (tmp_path / "train.txt").write_text("a\tr\tb\n", encoding="utf-8")
    with pytest.raises(DataError, match="no triple that could be held out"):
        run(model_dir=str(checkpoint), graph=tmp_path, output_dir=tmp_path / "c")


def test_what_means_nothing_here_is_refused(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--test-data, --n-docs means nothing to a network that completes graphs"):
        run(model_dir=str(checkpoint), graph=folder, test_data=folder, n_docs=3)
    with pytest.raises(ConfigError, match="says of no graph"):
        run(model_dir=str(checkpoint))
    with pytest.raises(ConfigError, match="there is no graph"):
        run(model_dir=str(checkpoint), graph=tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"--graph means nothing to a RAG model"):
        run(graph=folder)
    with pytest.raises(ConfigError, match="no run or model folder"):
        run(model_dir=str(tmp_path / "absent.pth"), graph=folder)
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        run(model_dir=str(tmp_path / "broken.pth"), graph=folder)


def pretrained(folder: Path, output: Path, **settings: object) -> gfm.GfmResult:
    flags = {
        "stage": "pretrain", "graphs": (folder,), "output_dir": output, "max_steps": 2, "eval_steps": 1, "batch_size": 4,
        "num_negatives": 5, "hidden_dim": 8, "num_layers": 2, "learning_rate": 0.01, "trackers": (), **settings,
    }  # fmt: skip
    return gfm.run(load_config(GfmConfig, flags=flags).config)


@pytest.mark.parametrize("ours", [True, False])
def test_a_run_is_asked_for_what_it_held_out(ours: bool, folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The figures are those of the training's last evaluation, which goes a way of its own."""
    graph = tmp_path / "graph"
    graph.mkdir()
    (graph / "train.txt").write_bytes((folder / "train.txt").read_bytes())
    trained = pretrained(graph, tmp_path / "run", **({} if ours else {"model_dir": str(checkpoint)}))
    found = run(model_dir=str(tmp_path / "run"))
    assert found.path == tmp_path / "run" / "eval"
    assert [found.summary["graphs"][0][name] for name in ("split", "asked", "facts")] == ["held-out", 8, 72]
    for name in ("mrr", "mr", "hits@3"):
        assert found.metrics[name] == pytest.approx(trained.evaluation[f"eval_{name}"], rel=1e-5)
    first = run(model_dir=str(tmp_path / "run" / "checkpoints" / "step-000001"), output_dir=tmp_path / "first")
    assert first.summary["model"]["fingerprint"] != found.summary["model"]["fingerprint"]
    final = (tmp_path / "run" / "final_model").rename(tmp_path / "moved")
    if not ours:  # without the final model a checkpoint is read into what the run began with
        last = run(model_dir=str(tmp_path / "run"), checkpoint="latest", output_dir=tmp_path / "last")
        assert last.metrics["mrr"] == pytest.approx(found.metrics["mrr"])
    with pytest.raises(CheckpointError, match="has not ended"):
        run(model_dir=str(tmp_path / "run"), output_dir=tmp_path / "none")
    # The final model by itself says the same, wherever it is.
    alone = run(model_dir=str(final), graph=folder, output_dir=tmp_path / "alone")
    assert alone.summary["graphs"][0]["split"] == "test"


def test_graphs_of_a_run_are_asked_together(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train", "test"):
        (other / f"{name}.txt").write_bytes((folder / f"{name}.txt").read_bytes())
    pretrained(folder, tmp_path / "run", graphs=(folder, other), model_dir=str(checkpoint))
    found = run(model_dir=str(tmp_path / "run"))
    one, two = (found.summary["by_graph"][str(path.resolve())]["mrr"] for path in (folder, other))
    assert found.metrics["mrr"] == pytest.approx((one + two) / 2)
    assert found.summary["n"] == 2 * found.summary["graphs"][0]["asked"]
    lines = (tmp_path / "run" / "eval" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == 2 * found.summary["n"]


def test_nothing_is_asked_that_was_trained_on(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    text = (folder / "train.txt").read_text()
    (own / "train.txt").write_text(text)
    pretrained(own, tmp_path / "all", model_dir=str(checkpoint), dev_split=0)
    with pytest.raises(DataError, match="trained on all"):
        run(model_dir=str(tmp_path / "all"))
    pretrained(own, tmp_path / "some", model_dir=str(checkpoint))
    assert run(model_dir=str(tmp_path / "some")).summary["graphs"][0]["split"] == "held-out"
    (own / "train.txt").write_text(text + "e0\tr0\tnew\n")
    with pytest.raises(DataError, match="changed since it was trained on"):
        run(model_dir=str(tmp_path / "some"), overwrite=True)
    # A graph that nobody was trained on has its own draw.
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "train.txt").write_text(text)
    for name in ("all", "some"):
        assert run(model_dir=str(tmp_path / name), graph=tmp_path / "else").summary["graphs"][0]["asked"] == 8


def test_runs_compare_by_triple(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    save_ultra(UltraNetwork(UltraSettings(hidden_dim=8, relation_layers=2, num_layers=2)), tmp_path / "other.pth")
    ends = {name: tmp_path / name for name in ("a", "b")}
    for path, output in zip((checkpoint, tmp_path / "other.pth"), ends.values(), strict=True):
        run(model_dir=str(path), graph=folder, output_dir=output, output_file=output.with_suffix(".json"))
    files = tuple(each.with_suffix(".json") for each in ends.values())
    for paths in (tuple(ends.values()), files):
        (found,) = compare.run(CompareConfig(runs=paths)).comparisons
        summaries = [json.loads((each / "metrics.json").read_text()) for each in ends.values()]
        assert found.n == summaries[0]["n"]
        assert [each.metric for each in found.differences] == ["mrr", "hits@1", "hits@3", "hits@10"]
        for each in found.differences:
            assert (each.a, each.b) == tuple(pytest.approx(summary[each.metric]) for summary in summaries)
        assert "reciprocal rank" in found.differences[0].sentence
    # Under one id other triples: they are no pair.
    lines = (ends["b"] / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "cut.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="one direction alone"):
        compare.run(CompareConfig(runs=(ends["a"], tmp_path / "cut.jsonl")))
    first = json.loads(lines[0])["triple"][0]
    (tmp_path / "other.jsonl").write_text("\n".join(lines).replace(f'["{first}"', '["another"'))
    with pytest.raises(DataError, match="reference answers"):
        compare.run(CompareConfig(runs=(ends["a"], tmp_path / "other.jsonl")))


def test_graphs_of_one_name_have_ids_of_their_own(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    twins = [tmp_path / name / "toy" for name in "ab"]
    for each in twins:
        each.mkdir(parents=True)
        for name in ("train", "test"):
            (each / f"{name}.txt").write_bytes((folder / f"{name}.txt").read_bytes())
    pretrained(folder, tmp_path / "run", graphs=tuple(twins), model_dir=str(checkpoint))
    found = run(model_dir=str(tmp_path / "run"))
    lines = (tmp_path / "run" / "eval" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 2 * found.summary["n"]


def test_the_public_checkpoint_on_nations(real_data: Path, tmp_path: Path) -> None:
    graphs = real_data / "graph"
    found = run(
        model_dir=str(graphs / "ultra" / "ultra_3g.pth"), graph=graphs / "kg" / "nations", output_dir=tmp_path / "eval"
    )
    assert found.summary["n"] == 203
    assert {name: found.metrics[name] for name in NATIONS} == pytest.approx(NATIONS, abs=1e-4)


@pytest.mark.slow  # 2,015 queries: half a minute on a processor's core
@pytest.mark.reference
def test_the_figures_of_ultra_on_codex_s(real_data: Path, tmp_path: Path) -> None:
    graphs = real_data / "graph"
    found = run(
        model_dir=str(graphs / "ultra" / "ultra_3g.pth"), graph=graphs / "kg" / "codex-s", output_dir=tmp_path / "eval"
    )
    (golden,) = json.loads((graphs / "ultra" / "golden.json").read_text("utf-8"))["results"]
    names = {"mrr": "mrr", "mr": "mr", "hits@1": "h1", "hits@3": "h3", "hits@10": "h10"}
    assert {ours: found.metrics[ours] for ours in names} == pytest.approx(
        {ours: golden[theirs] for ours, theirs in names.items()}, abs=1e-4
    )
    assert found.summary["n"] == golden["n"]
