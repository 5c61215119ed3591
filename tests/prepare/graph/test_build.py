from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragtrain.cli import main
from ragtrain.config.commands import PrepareConfig
from ragtrain.config.commands.graph import GraphConfig
from ragtrain.data.graph_questions import read_graph_questions
from ragtrain.errors import ConfigError, DataError
from ragtrain.index.graph.read import read_graph
from ragtrain.index.graph.store import read_manifest
from ragtrain.prepare import run
from ragtrain.prepare.graph import provenance


def config(out: Path, passages: Path | None = None, overwrite: bool = False, dry_run: bool = False, **graph):
    settings = GraphConfig(graph=True, **graph)
    return PrepareConfig(passages=passages, output_dir=out, overwrite=overwrite, dry_run=dry_run, graph_build=settings)


def named(graph) -> set[tuple[str, str, str]]:
    return {(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.triples.tolist()}


OPENIE = {
    "docs": [
        {
            "idx": "a", "passage": "Alû\nAlû is a demon.", "extracted_entities": ["Alû", "AL"],
            "extracted_triples": [["Alû", "is a", "demon"], ["alû", "IS  A", "Demon"], ["Alû", "haunts", "demon"], ["x", "y"]],
        },
        {"idx": "b", "passage": "北京\n北京是首都。", "extracted_entities": [], "extracted_triples": [["北京", "是", "首都"]]},
        {"idx": "c", "passage": "Silent\nNothing.", "extracted_entities": [], "extracted_triples": []},
        {"idx": "d", "passage": "Alu\nAn accent less.", "extracted_entities": ["Alu"], "extracted_triples": []},
    ]
}  # fmt: skip


@pytest.fixture
def openie(tmp_path: Path) -> Path:
    path = tmp_path / "openie.json"
    path.write_text(json.dumps(OPENIE), encoding="utf-8")
    return path


def test_a_graph_is_made_once(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "graph"
    made = run(config(out, corpus))
    assert (made.documents, made.documents_without_entities, made.how, made.reused) == (5, 1, "mentions", False)
    graph = read_graph(out)
    assert (graph.n_entities, graph.n_relations, len(graph.triples)) == (made.entities, made.relations, made.triples)
    before = (out / "graph.json").read_bytes()
    assert run(config(out, corpus)).reused
    assert (out / "graph.json").read_bytes() == before
    with pytest.raises(ConfigError, match="holds another graph, of 5 documents"):
        run(config(out, corpus, max_mentions=1))
    again = run(config(out, corpus, overwrite=True, max_mentions=1))
    assert again.triples < made.triples
    assert len(list(out.glob("sources-*.npz"))) == 1


def test_a_plan_writes_nothing(corpus: Path, tmp_path: Path, capsys) -> None:
    planned = run(config(tmp_path / "graph", corpus, dry_run=True))
    assert planned.plan["passages"] == 5
    assert planned.plan["entities"] > 5
    assert not (tmp_path / "graph").exists()
    assert "triples from" in capsys.readouterr().err


def test_the_command_line(corpus: Path, tmp_path: Path, asked, capsys) -> None:
    questions = asked(
        {"id": "q", "question": "Who founded the capital of Norway?", "answers": ["Harald Hardrada"],
         "documents": [{"id": "oslo", "title": "Oslo", "text": "…", "is_gold": True}]},
    )  # fmt: skip
    words = ["index", "prepare", "--graph", "--passages", str(corpus), "--graph-questions", str(questions), "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["path"] == str(tmp_path / "graph")
    assert said["questions"]["train"]["unlinked"] == 0
    graph = read_graph(tmp_path / "graph")
    (question,) = read_graph_questions(tmp_path / "graph", graph, "train").questions
    assert [graph.entities[i] for i in question.entities] == ["Norway"]
    assert [graph.documents[i].id for i in question.supporting_documents] == ["oslo"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index_path": Path("x.faiss")}, "graph and index_path"),
        ({"bm25": True}, "bm25 cannot be had with graph"),
        ({"graph_build": GraphConfig(graph=True, openie=Path("a.json"), llm="b")}, "openie and llm"),
        ({"graph_build": GraphConfig(openie=Path("a.json"))}, "openie: only a knowledge graph has that"),
    ],
)
def test_what_does_not_go_together(changes, message: str, corpus: Path) -> None:
    settings = {"passages": corpus, "graph_build": GraphConfig(graph=True), **changes}
    with pytest.raises(ConfigError, match=message):
        run(PrepareConfig(**settings))


def test_one_process_makes_a_graph(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        run(config(tmp_path / "graph", corpus))


def test_passages_that_mention_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "a", "title": "", "text": "nothing here"}\n')
    with pytest.raises(DataError, match="mention nothing"):
        run(config(tmp_path / "graph", tmp_path / "p.jsonl"))


def test_what_was_extracted_before(openie: Path, tmp_path: Path) -> None:
    made = run(config(tmp_path / "graph", openie=openie))
    graph = read_graph(tmp_path / "graph")
    # Case and spacing make one name, accents make two, both relations of a pair stay, and spelling joins.
    assert named(graph) == {
        ("Alû", "is a", "demon"), ("Alû", "haunts", "demon"), ("北京", "是", "首都"), ("Alû", "equivalent", "Alu"),
    }  # fmt: skip
    assert "AL" in graph.entities
    assert [document.id for document in graph.documents] == ["a", "b", "c", "d"]
    assert made.documents_without_entities == 1
    assert made.about == {"malformed": 1, "synonyms": {"spelling": 1, "vectors": 0}}
    sources = provenance.read(tmp_path / "graph", read_manifest(tmp_path / "graph")["extra"]["sources"], graph)
    assert sources == [[0], [0], [1], []]


def test_passages_beside_what_was_extracted(openie: Path, tmp_path: Path) -> None:
    rows = [{"id": "a", "title": "Alû", "text": "Alû is a demon."}, {"id": "new", "title": "New", "text": "More."}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(config(tmp_path / "graph", tmp_path / "p.jsonl", openie=openie))
    assert [d.id for d in read_graph(tmp_path / "graph").documents] == ["a", "b", "c", "d", "new"]
    rows[1]["id"] = "b"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="'b' has another text here"):
        run(config(tmp_path / "other", tmp_path / "p.jsonl", openie=openie))


def test_a_folder_of_gfm_rag(real_data, tmp_path: Path) -> None:
    folder = real_data / "graph" / "musique_train_hipporag"
    made = run(config(tmp_path / "graph", openie=folder, graph_questions=(folder / "processed/stage1/train.json",)))
    graph, theirs = read_graph(tmp_path / "graph"), read_graph(folder)
    assert len(graph.documents) == len(theirs.documents) == 1890
    assert len(theirs.triples) - 5 <= len(graph.triples) <= len(theirs.triples) + 50
    assert made.questions["train"]["questions"] == 100
    assert made.questions["train"]["unlinked"] <= 4
    assert made.questions["train"]["missing_documents"] == 0
    sources = provenance.read(tmp_path / "graph", read_manifest(tmp_path / "graph")["extra"]["sources"], graph)
    assert sum(map(bool, sources)) > 0.99 * len(theirs.triples)


def test_a_changed_file_of_sources_is_noticed(corpus: Path, tmp_path: Path) -> None:
    run(config(tmp_path / "graph", corpus))
    graph = read_graph(tmp_path / "graph")
    entry = read_manifest(tmp_path / "graph")["extra"]["sources"]
    (tmp_path / "graph" / entry["file"]).write_bytes(b"PK")
    with pytest.raises(DataError, match="not what was written"):
        provenance.read(tmp_path / "graph", entry, graph)


def test_other_sources_of_the_same_graph_leave_those_that_are_there(corpus: Path, tmp_path: Path) -> None:
    """A kill before the description is renamed leaves a graph that is whole."""
    run(config(tmp_path / "graph", corpus))
    graph = read_graph(tmp_path / "graph")
    entry = read_manifest(tmp_path / "graph")["extra"]["sources"]
    before = provenance.read(tmp_path / "graph", entry, graph)
    provenance.write(tmp_path / "graph", graph.fingerprint, [[] for _ in before])
    assert provenance.read(tmp_path / "graph", entry, graph) == before


def test_a_graph_is_explained(corpus: Path, tmp_path: Path, asked, capsys) -> None:
    out = tmp_path / "graph"
    file = asked({"id": "1", "question": "Where is Oslo?", "answers": ["Norway"]})
    made = run(config(out, corpus, graph_questions=(file,)))
    capsys.readouterr()
    assert main(["index", "info", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["triples_from"]) == ("knowledge graph of ragtrain", "titles and mentions")
    assert (said["documents"], said["triples"], said["questions"]) == (5, made.triples, {"train": 1})
    assert said["verification"]["status"] == "ok"
    assert said["next_step"].startswith("ragtrain train gfm --graphs")
    triples = next(out.glob("graph-*/triples.npy"))
    triples.write_bytes(triples.read_bytes()[:-1] + b"\x07")
    assert main(["index", "info", str(out), "--json"]) == 3
    assert "SHA-256 is another" in json.loads(capsys.readouterr().out)["verification"]["checks"][0]["message"]


def test_a_graph_of_another_tool_is_explained(real_data, capsys) -> None:
    assert main(["index", "info", str(real_data / "graph" / "musique_train_hipporag"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["documents_without_entities"]) == ("graph of another tool: gfm-rag", 2)
    assert said["next_step"].startswith("ragtrain index prepare --graph --openie")


def test_synonyms_stand_beside_what_there_is(openie: Path, tmp_path: Path) -> None:
    value = json.loads(openie.read_text(encoding="utf-8"))
    value["docs"][0]["extracted_triples"] += [["Alu", "is", "Alû"], ["Alû", "equivalent", "AL"]]
    openie.write_text(json.dumps(value), encoding="utf-8")
    run(config(tmp_path / "graph", openie=openie))
    found = named(read_graph(tmp_path / "graph"))
    assert {("Alu", "is", "Alû"), ("Alû", "equivalent", "AL"), ("Alû", "equivalent", "Alu")} <= found


def test_synonyms_by_an_encoder(corpus: Path, tmp_path: Path) -> None:
    from ragtrain.config.commands import EncoderConfig
    from ragtrain.data import demo

    asked = config(tmp_path / "graph", corpus, synonym_threshold=0.1, max_synonyms=2)
    asked = asked.model_copy(update={"encoder": EncoderConfig(encoder=str(demo.ENCODER)), "device": "cpu"})
    made = run(asked)
    assert made.about["synonyms"]["vectors"] > 0
    assert run(asked).reused
    assert read_manifest(tmp_path / "graph")["extra"]["encoder"]["fingerprint"]
    assert main(["index", "info", str(tmp_path / "graph"), "--quiet"]) == 0
