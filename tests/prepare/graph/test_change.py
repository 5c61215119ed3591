from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ragtrain.config.commands import InfoConfig, PrepareConfig
from ragtrain.config.commands.graph import GraphConfig
from ragtrain.data.graph_questions import read_graph_questions
from ragtrain.errors import ConfigError, DataError
from ragtrain.index.graph.read import read_graph
from ragtrain.index.graph.store import read_manifest
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.model import GfmSettings, GraphNetwork
from ragtrain.prepare import info, run
from ragtrain.prepare.graph import link_entities, provenance
from ragtrain.prepare.graph.lock import changing
from ragtrain.records import Passage

NEW = (
    Passage("bergen", "Bergen", "Bergen lies west of Oslo and was founded by Olaf Kyrre."),
    Passage("dog", "Dog", "The home of the dog is called a kennel."),
)


@pytest.fixture
def made(corpus: Path, tmp_path: Path) -> Path:
    run(PrepareConfig(passages=corpus, output_dir=tmp_path / "graph", graph_build=GraphConfig(graph=True)))
    return tmp_path / "graph"


def change(graph: Path, add=(), delete=(), **more):
    folder = graph.parent
    (folder / "add.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in add), encoding="utf-8")
    (folder / "delete.txt").write_text("\n".join(delete), encoding="utf-8")
    settings = GraphConfig(graph=True, add=bool(add), delete_ids=folder / "delete.txt" if delete else None,
                           **more.pop("graph", {}))  # fmt: skip
    passages = folder / "add.jsonl" if add else None
    return run(PrepareConfig(passages=passages, output_dir=graph, graph_build=settings, **more))


def named(graph) -> set[tuple[str, str, str]]:
    return {(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.triples.tolist()}


def held(graph) -> dict[str, set[str]]:
    return {
        d.id: {graph.entities[i] for i in graph.document_entities[graph.document_offsets[n] : graph.document_offsets[n + 1]]}
        for n, d in enumerate(graph.documents)
    }  # fmt: skip


def test_added_passages(made: Path) -> None:
    before = read_graph(made)
    result = change(made, NEW)
    after = read_graph(made)
    assert (result.added, result.deleted, result.documents) == (2, 0, 7)
    assert after.entities[: before.n_entities] == before.entities
    assert after.relations[: before.n_relations] == before.relations
    assert (after.triples[: len(before.triples)] == before.triples).all()
    assert ("Bergen", "lies west of", "Oslo") in named(after)
    assert held(after)["bergen"] >= {"Bergen", "Oslo", "Olaf Kyrre"}
    # "Bergen" was a name in a passage before, and is one entity now.
    assert after.entities.count("Bergen") == 1
    assert {d for d, entities in held(after).items() if "Bergen" in entities} == {"brother", "bergen"}
    assert change(made, NEW).reused
    with pytest.raises(DataError, match="another passage with the id 'dog'"):
        change(made, [Passage("dog", "Dog", "Another text.")])


def test_adding_gives_what_making_gives(made: Path, passages, tmp_path: Path) -> None:
    change(made, NEW)
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in (*passages, *NEW)))
    run(
        PrepareConfig(
            passages=tmp_path / "all.jsonl", output_dir=tmp_path / "anew", graph_build=GraphConfig(graph=True)
        )
    )
    anew, grown = read_graph(tmp_path / "anew"), read_graph(made)
    assert named(grown) == named(anew)
    assert held(grown) == held(anew)


def test_old_passages_mention_new_titles(made: Path) -> None:
    change(made, [Passage("jam", "Pearl Jam", "Pearl Jam is a band."), Passage("k", "Kitten", "A kitten is young.")])
    after = read_graph(made)
    assert "Pearl Jam" in held(after)["brother"]
    assert ("Cat", "young of is called", "kitten") in named(after)
    assert [name for name in after.entities if name.lower() == "kitten"] == ["kitten"]


def test_deleted_passages_leave_tombstones(made: Path) -> None:
    before = read_graph(made)
    result = change(made, delete=["norway", "cat", "unknown"])
    after = read_graph(made)
    assert (result.deleted, result.documents) == (2, 3)
    assert after.entities == before.entities
    assert after.relations == before.relations
    names = {name for triple in named(after) for name in (triple[0], triple[2])}
    assert not names & {"Cat", "kitten", "Fredrik Meltzer", "1821", "Europe"}
    # Another passage speaks of Norway as well.
    assert "Norway" in names
    assert link_entities(["Cat", "Norway"], after)[0] == []
    assert info(InfoConfig(index_path=made)).facts["entities_of_deleted_passages"] >= 4
    assert change(made, delete=["norway"]).reused
    with pytest.raises(DataError, match="nothing would be left"):
        change(made, delete=["oslo", "brother", "lower"])


def test_what_comes_back_has_its_id_again(made: Path, passages) -> None:
    before = read_graph(made)
    change(made, delete=["cat"])
    change(made, [passages[3]])
    after = read_graph(made)
    assert after.entities == before.entities
    assert named(after) == named(before)
    assert held(after) == held(before)
    assert read_manifest(made)["extra"]["changes"] == {"added": 1, "deleted": 1, "times": 2}


def test_a_passage_is_replaced_in_one_command(made: Path) -> None:
    result = change(made, [Passage("cat", "Cat", "The cat sleeps in Rome.")], ["cat"])
    assert (result.added, result.deleted, result.documents) == (1, 1, 5)
    assert held(read_graph(made))["cat"] == {"Cat", "Rome"}


def test_a_plan_changes_nothing(made: Path) -> None:
    before = (made / "graph.json").read_bytes()
    plan = change(made, NEW, ["cat"], dry_run=True).plan
    assert (plan["to add"], plan["to delete"]) == (2, 1)
    assert (made / "graph.json").read_bytes() == before


def test_settings_of_the_making_are_kept(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "graph"
    run(PrepareConfig(passages=corpus, output_dir=out, graph_build=GraphConfig(graph=True, max_mentions=1)))
    change(out, NEW)
    assert held(read_graph(out))["bergen"] <= {"Bergen", "Oslo", "Olaf Kyrre"}
    assert len(held(read_graph(out))["bergen"]) == 2
    assert read_manifest(out)["extra"]["settings"]["max_mentions"] == 1
    # No configuration makes this graph, so none finds it finished.
    with pytest.raises(ConfigError, match="holds another graph"):
        run(PrepareConfig(passages=corpus, output_dir=out, graph_build=GraphConfig(graph=True, max_mentions=1)))


def test_what_was_extracted_is_added(made: Path, tmp_path: Path) -> None:
    docs = [{"idx": "x", "passage": "Oslo fjord\nIt is at Oslo.", "extracted_entities": ["OSLO"],
             "extracted_triples": [["Oslo fjord", "is at", "oslo"]]}]  # fmt: skip
    (tmp_path / "openie.json").write_text(json.dumps({"docs": docs}))
    settings = GraphConfig(graph=True, add=True, openie=tmp_path / "openie.json")
    assert run(PrepareConfig(output_dir=made, graph_build=settings)).added == 1
    graph = read_graph(made)
    assert ("Oslo fjord", "is at", "Oslo") in named(graph)
    assert held(graph)["x"] == {"Oslo fjord", "Oslo"}


def test_questions_are_linked_again(corpus: Path, tmp_path: Path, asked) -> None:
    out = tmp_path / "graph"
    file = asked(
        {"id": "1", "question": "Who founded Bergen, Norway?", "answers": ["x"], "supporting_facts": ["Bergen"]}
    )
    run(PrepareConfig(passages=corpus, output_dir=out, graph_build=GraphConfig(graph=True, graph_questions=(file,))))
    result = change(out, NEW)
    graph = read_graph(out)
    (question,) = read_graph_questions(out, graph).questions
    assert (question.missing_documents, len(question.supporting_documents)) == (0, 1)
    assert result.questions["train"]["unsupported"] == 0
    file.unlink()
    change(out, delete=["bergen"])
    assert info(InfoConfig(index_path=out)).checks["status"] == "warning"
    assert read_graph_questions(out, read_graph(out)).counts.missing_documents == 1


@pytest.mark.parametrize(
    ("graph", "more", "message"),
    [
        ({"add": True}, {"output_dir": Path("g")}, "no passages are named"),
        ({"add": True}, {"passages": Path("p")}, "no graph is named"),
        ({"delete_ids": Path("d")}, {"output_dir": Path("g"), "overwrite": True}, "do not go together"),
    ],
)
def test_what_cannot_be_changed(graph, more, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(PrepareConfig(graph_build=GraphConfig(graph=True, **graph), **more))


def test_a_folder_without_a_graph(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no graph is here"):
        change(tmp_path / "nothing", delete=["a"])


def test_sources_stay_with_their_triples(made: Path) -> None:
    change(made, NEW, ["norway"])
    graph = read_graph(made)
    sources = provenance.read(made, read_manifest(made)["extra"]["sources"], graph)
    members = list(held(graph).values())
    for (head, _, tail), said in zip(graph.triples.tolist(), sources, strict=True):
        assert said
        assert all({graph.entities[head], graph.entities[tail]} <= members[document] for document in said)


def scores(graph, network, text: dict[str, torch.Tensor], seed: str) -> dict[str, float]:
    """Return the scores of entities by name; relation features are those of their names."""
    torch.manual_seed(0)
    names = [*graph.relations, *(f"inverse {name}" for name in graph.relations)]
    features = torch.stack([text.setdefault(name, torch.randn(16)) for name in names])
    question = torch.ones(1, 16)
    seeds = [np.array([graph.entities.index(seed)])]
    with torch.no_grad():
        found = network.score_entities(GraphTensors.from_graph(graph), features, question, seeds, None)[0]
    return dict(zip(graph.entities, found.tolist(), strict=True))


def test_a_trained_network_gives_what_is_not_touched_the_same_scores(made: Path) -> None:
    torch.manual_seed(3)
    network = GraphNetwork(GfmSettings(hidden_dim=8, num_layers=3, text_dim=16)).eval()
    text: dict[str, torch.Tensor] = {}
    before = scores(read_graph(made), network, text, "Oslo")
    change(made, [NEW[1]], ["cat"])
    after = scores(read_graph(made), network, text, "Oslo")
    kept = [name for name in before if name not in ("Cat", "kitten")]
    assert len(kept) > 8
    assert [after[name] for name in kept] == pytest.approx([before[name] for name in kept], abs=1e-6)


def test_two_processes_do_not_change_one_graph(made: Path, corpus: Path) -> None:
    with changing(made):
        for attempt in (
            lambda: change(made, NEW),
            lambda: change(made, delete=["oslo"]),
            lambda: run(PrepareConfig(passages=corpus, output_dir=made, graph_build=GraphConfig(graph=True))),
        ):
            with pytest.raises(ConfigError, match=r"changed by another process \(process \d+\)"):
                attempt()
        change(made, NEW, dry_run=True)
    assert change(made, NEW).added == 2
    assert not list(made.parent.glob(".*.lock"))


def alive(graph) -> set[str]:
    held_by_documents = {name for names in held(graph).values() for name in names}
    return held_by_documents | {name for head, _, tail in named(graph) for name in (head, tail)}


def test_what_only_deleted_passages_had_is_no_synonym(made: Path) -> None:
    change(made, [Passage("zurich", "Zurich", "Zurich is a city.")])
    change(made, delete=["zurich"])
    change(made, [Passage("zürich", "Zürich", "Zürich is a city.")])
    graph = read_graph(made)
    assert "Zurich" in graph.entities
    assert "Zurich" not in alive(graph)


def test_synonyms_of_a_deleted_name_stay_synonyms_of_each_other(made: Path) -> None:
    spellings = ("Malmo", "Malmö", "Målmo")
    change(made, [Passage(name, name, f"{name} is a city.") for name in spellings])
    joined = {(h, t) for h, r, t in named(read_graph(made)) if r == "equivalent"}
    assert joined == {("Malmo", "Malmö"), ("Malmo", "Målmo")}
    change(made, delete=["Malmo"])
    joined = {(h, t) for h, r, t in named(read_graph(made)) if r == "equivalent"}
    assert joined == {("Malmö", "Målmo")}


def test_what_a_new_passage_says_is_no_longer_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "triples"
    folder.mkdir()
    (folder / "train.txt").write_text("a\tr\tb\nb\tr\tc\n")
    (folder / "test.txt").write_text("a\tr\tc\n")
    (folder / "corpus.jsonl").write_text(json.dumps({"id": "a", "title": "A", "text": "a"}) + "\n")
    graph = GraphConfig(graph=True, openie=folder)
    run(PrepareConfig(passages=folder / "corpus.jsonl", output_dir=tmp_path / "graph", graph_build=graph))
    said = {"docs": [{"idx": "new", "passage": "New\ntext", "extracted_triples": [["a", "r", "c"]]}]}
    (tmp_path / "openie.json").write_text(json.dumps(said))
    change = GraphConfig(graph=True, add=True, openie=tmp_path / "openie.json")
    run(PrepareConfig(output_dir=tmp_path / "graph", graph_build=change))
    found = read_graph(tmp_path / "graph")
    assert ("a", "r", "c") in named(found)
    assert len(found.held_out["test"]) == 0
