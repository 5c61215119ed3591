from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from ragtrain.errors import DataError
from ragtrain.graphs import KnowledgeGraph
from ragtrain.index.graph.builder import GraphBuilder
from ragtrain.index.graph.read import load_graph, read_graph
from ragtrain.index.graph.read_v2 import parse_attributes


def members(graph: KnowledgeGraph, document: int) -> list[str]:
    start, stop = graph.document_offsets[document : document + 2]
    return [graph.entities[i] for i in graph.document_entities[start:stop]]


def named(graph: KnowledgeGraph, triples: np.ndarray) -> list[tuple[str, str, str]]:
    return [(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in triples.tolist()]


class TestGfmRag:
    def test_ids_are_given_by_first_appearance_and_all_relations_of_a_pair_stay(self, v1: Path) -> None:
        read = load_graph(v1)
        graph = read.graph
        assert graph.entities == ("vienna", "austria", "virginia", "維也納", "奧地利", "alû", "démon", "lonely")
        assert graph.relations == ("capital of", "located in", "首都", "is")
        assert graph.triples.tolist() == [[0, 0, 1], [0, 1, 2], [0, 1, 1], [3, 2, 4], [5, 3, 6]]
        assert graph.triples.dtype == np.int32
        assert read.about["form"] == "gfm-rag"
        assert read.about["repeated_triples"] == 1
        assert len(read.about["files"]) == 3

    def test_every_document_stays_and_repeated_titles_keep_apart(self, v1: Path) -> None:
        graph = read_graph(v1)
        assert [document.id for document in graph.documents] == ["Vienna", "Austria", "Empty", "Vienna#2", "維也納"]
        assert [document.title for document in graph.documents] == ["Vienna", "Austria", "Empty", "Vienna", "維也納"]
        assert members(graph, 1) == ["austria", "lonely"]
        assert members(graph, 2) == []
        assert members(graph, 3) == ["vienna", "virginia"]
        assert graph.document_offsets.tolist() == [0, 2, 4, 4, 6, 8]

    @pytest.mark.parametrize("inside", ["processed/stage1", "processed", "processed/stage1/kg.txt"])
    def test_a_part_of_the_folder_names_the_graph_too(self, v1: Path, inside: str) -> None:
        assert read_graph(v1 / inside).fingerprint == read_graph(v1).fingerprint

    @pytest.mark.parametrize(
        ("line", "what"), [("a,b", "2 parts"), ("a,b,c,d", "4 parts"), ("a,,c", "is empty"), ("a b c", "1 parts")]
    )
    def test_a_line_of_other_than_three_parts_is_named_or_counted(self, v1: Path, line: str, what: str) -> None:
        path = v1 / "processed" / "stage1" / "kg.txt"
        whole = read_graph(v1)
        path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
        with pytest.raises(DataError, match=what) as error:
            read_graph(v1)
        assert (error.value.path, error.value.line) == (path, 8)
        read = load_graph(v1, skip_bad_lines=True)
        assert read.graph.fingerprint == whole.fingerprint
        assert read.about["skipped_lines"] == 1

    def test_keys_that_a_file_repeats_are_documents_of_their_own(self, v1: Path) -> None:
        (v1 / "raw" / "dataset_corpus.json").write_text('{"Vienna": "one", "Vienna": "two", "Austria": "x"}')
        stage = v1 / "processed" / "stage1"
        (stage / "document2entities.json").write_text('{"Vienna": ["vienna"], "Vienna": ["virginia"], "Other": []}')
        graph = read_graph(v1)
        assert [(d.id, d.text) for d in graph.documents] == [
            ("Vienna", "one"), ("Vienna#2", "two"), ("Austria", "x"), ("Other", ""),
        ]  # fmt: skip
        assert (members(graph, 0), members(graph, 1)) == (["vienna"], ["virginia"])

    def test_triples_alone_are_a_graph(self, v1: Path) -> None:
        (v1 / "raw" / "dataset_corpus.json").unlink()
        (v1 / "processed" / "stage1" / "document2entities.json").unlink()
        assert len(read_graph(v1).triples) == 5
        assert read_graph(v1).documents == ()

    @pytest.mark.parametrize(
        ("name", "content", "field"),
        [
            ("document2entities.json", '{"Vienna": "vienna"}', "Vienna"),
            ("document2entities.json", "[1]", None),
            ("document2entities.json", '{"Vienna": [', None),
        ],
    )
    def test_bad_json_is_named(self, v1: Path, name: str, content: str, field: str | None) -> None:
        (v1 / "processed" / "stage1" / name).write_text(content)
        with pytest.raises(DataError, match=name) as error:
            read_graph(v1)
        assert error.value.field == field
        assert error.value.hint or content == "[1]"

    def test_a_line_that_is_not_utf8_is_named(self, v1: Path) -> None:
        (v1 / "processed" / "stage1" / "kg.txt").write_bytes(b"a,b,c\nal\xfb,is,x\n")
        with pytest.raises(DataError, match="UTF-8") as error:
            read_graph(v1)
        assert error.value.line == 2

    def test_documents_without_triples_say_what_is_missing(self, v1: Path) -> None:
        (v1 / "processed" / "stage1" / "kg.txt").unlink()
        with pytest.raises(DataError, match="no graph of them") as error:
            read_graph(v1)
        assert "index prepare --graph" in (error.value.hint or "")

    def test_musique(self, real_data: Path) -> None:
        read = load_graph(real_data / "graph" / "musique_train_hipporag")
        graph = read.graph
        assert (graph.n_entities, graph.n_relations, len(graph.triples), len(graph.documents)) == (
            16234, 5034, 17035, 1890,
        )  # fmt: skip
        assert sum("#" in document.id and "#" not in document.title for document in graph.documents) == 126
        assert read.about["documents_without_entities"] == 2
        entities: dict[str, int] = {}
        relations: dict[str, int] = {}
        lines = (real_data / "graph/musique_train_hipporag/processed/stage1/kg.txt").read_text().splitlines()
        for line, row in zip(lines, graph.triples.tolist(), strict=True):
            u, r, v = line.split(",")
            ids = [entities.setdefault(u, len(entities)), entities.setdefault(v, len(entities))]
            assert row == [ids[0], relations.setdefault(r, len(relations)), ids[1]]
        assert (tuple(entities), tuple(relations)) == (graph.entities, graph.relations)


class TestTriples:
    def test_splits_are_held_out_and_never_in_the_graph(self, tmp_path: Path) -> None:
        (tmp_path / "train.tsv").write_text("a b\tr\tc\nc\tr\td\nc\tr\td\n")
        (tmp_path / "dev.tsv").write_text("x\tr\ta b\nc\tr\td\n")
        (tmp_path / "test.txt").write_text("c s d\n")
        (tmp_path / "valid_negatives.txt").write_text("not a line of triples\n")
        read = load_graph(tmp_path)
        assert named(read.graph, read.graph.triples) == [("a b", "r", "c"), ("c", "r", "d")]
        assert named(read.graph, read.graph.held_out["valid"]) == [("x", "r", "a b")]
        assert named(read.graph, read.graph.held_out["test"]) == [("c", "s", "d")]
        assert read.graph.entities == ("a b", "c", "d", "x")
        assert (read.about["repeated_triples"], read.about["held_out_in_graph"]) == (1, 1)

    def test_names_that_training_does_not_have_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "train.txt").write_text("a\tr\tb\n")
        (tmp_path / "valid.txt").write_text("b\tr\ta\n")
        (tmp_path / "test.txt").write_text("a\tr\tnew\na\tother\tb\nb\tr\tb\n")
        with caplog.at_level("WARNING", logger="ragtrain"):
            found = load_graph(tmp_path)
        assert found.about["held_out_unseen"] == {"valid": 0, "test": 2}
        assert len(found.graph.held_out["test"]) == 3
        assert "in test triples that are asked for all the same: 2 of 3" in caplog.text

    def test_a_relation_in_the_first_column_is_recognised(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "train.txt").write_text("likes anna bob\nknows bob anna\nlikes bob carl\n")
        with caplog.at_level(logging.INFO, "ragtrain"):
            read = load_graph(tmp_path)
        assert named(read.graph, read.graph.triples)[0] == ("anna", "likes", "bob")
        assert read.about["columns"] == "rht"
        assert "column 1 holds the relation" in caplog.text

    def test_users_and_items_are_taken_as_they_stand(self, tmp_path: Path) -> None:
        (tmp_path / "train.txt").write_text("anna likes tea\nbob buys milk\n")
        assert load_graph(tmp_path).about["columns"] == "hrt"

    @pytest.mark.parametrize("line", ["a\tb", "a\tb\tc\td", "a\t\tc", "a b c"])
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "train.tsv").write_text(f"a\tb\tc\n{line}\n")
        with pytest.raises(DataError) as error:
            read_graph(tmp_path)
        assert (error.value.line, error.value.path) == (2, tmp_path / "train.tsv")
        assert load_graph(tmp_path, skip_bad_lines=True).about["skipped_lines"] == 1

    def test_an_empty_file_has_no_triple(self, tmp_path: Path) -> None:
        (tmp_path / "train.tsv").write_text("\n")
        with pytest.raises(DataError, match="no triple"):
            read_graph(tmp_path)

    @pytest.mark.parametrize(
        ("name", "sizes", "columns"),
        [
            ("umls", (135, 46, 5216, 652, 661), "hrt"),
            ("kinship", (104, 25, 8548, 1069, 1069), "rht"),
            ("codex-s", (2034, 42, 32888, 1827, 1828), "hrt"),
        ],
    )
    def test_published_sets(self, real_data: Path, name: str, sizes: tuple[int, ...], columns: str) -> None:
        read = load_graph(real_data / "graph" / "kg" / name)
        graph, held_out = read.graph, read.graph.held_out
        found = (graph.n_entities, graph.n_relations, len(graph.triples), len(held_out["valid"]), len(held_out["test"]))
        assert found == sizes
        assert read.about["columns"] == columns


def test_a_builder_keeps_each_triple_once() -> None:
    generator = np.random.default_rng(5)
    for _ in range(50):
        builder = GraphBuilder()
        kept: dict[str | None, dict[tuple[str, ...], None]] = {None: {}, "valid": {}, "test": {}}
        repeated = 0
        for _ in range(30):
            triple = tuple(str(i) for i in generator.integers(0, 3, 3))
            split = [None, "valid", "test"][int(generator.choice(3, p=[0.6, 0.3, 0.1]))]
            repeated += triple in kept[split]
            kept[split][triple] = None
            builder.triple(*triple, split=split)
        graph = builder.finish()
        assert named(graph, graph.triples) == list(kept[None])
        assert builder.repeated == repeated
        doubled = 0
        for split, triples in graph.held_out.items():
            assert named(graph, triples) == [triple for triple in kept[split] if triple not in kept[None]]
            doubled += len(kept[split]) - len(triples)
        assert builder.held_out_in_graph == doubled


class TestCsv:
    @pytest.fixture
    def v2(self, tmp_path: Path) -> Path:
        stage = tmp_path / "v2" / "processed" / "stage1"
        stage.mkdir(parents=True)
        (stage / "nodes.csv").write_text(
            "name,type,attributes\n"
            'France,document,"{""text"": ""France,\na country"", ""year"": null}"\n'
            "Paris,document,\"{'text': 'Paris\\nis a city', 'old': true}\"\n"
            'capital,entity,"{}"\n'
            "seine,entity,\n"
        )
        (stage / "relations.csv").write_text('name,attributes\nunused,"{}"\nmentions,"{""description"": null}"\n')
        (stage / "edges.csv").write_text(
            'source,relation,target,attributes\nFrance,mentions,capital,"{}"\nseine,mentions,Paris,"{""w"": 0.5}"\n'
        )
        return tmp_path / "v2"

    def test_nodes_are_entities_and_documents_hold_their_neighbours(self, v2: Path) -> None:
        graph = read_graph(v2)
        assert graph.entities == ("France", "Paris", "capital", "seine")
        assert graph.relations == ("unused", "mentions")
        assert graph.triples.tolist() == [[0, 1, 2], [3, 1, 1]]
        assert [(d.id, d.text) for d in graph.documents] == [
            ("France", "France,\na country"), ("Paris", "Paris\nis a city"),
        ]  # fmt: skip
        assert (members(graph, 0), members(graph, 1)) == (["France", "capital"], ["Paris", "seine"])

    def test_texts_come_from_the_raw_folder_where_there_is_one(self, v2: Path) -> None:
        (v2 / "raw").mkdir()
        (v2 / "raw" / "documents.json").write_text('{"France": "raw text", "Rome": "no node"}')
        graph = read_graph(v2)
        assert [(d.id, d.text) for d in graph.documents][::2] == [("France", "raw text"), ("Rome", "no node")]
        assert members(graph, 2) == []

    @pytest.mark.parametrize(
        ("file", "line", "field"),
        [
            ("nodes.csv", 'x,entity,"{open(1)}"', "attributes"),
            ("nodes.csv", "x,entity,__import__('os')", "attributes"),
            ("nodes.csv", "x,entity,[1]", "attributes"),
            ("nodes.csv", "capital,entity,{}", "name"),
            ("nodes.csv", "x,entity", None),
            ("relations.csv", "mentions,{}", "name"),
            ("edges.csv", "France,mentions,nowhere,{}", "target"),
            ("edges.csv", "France,never,capital,{}", "relation"),
        ],
    )
    def test_a_bad_row_is_named_or_counted(self, v2: Path, file: str, line: str, field: str | None) -> None:
        whole = read_graph(v2).fingerprint
        path = v2 / "processed" / "stage1" / file
        path.write_text(path.read_text() + line + "\n")
        with pytest.raises(DataError) as error:
            read_graph(v2)
        assert (error.value.path, error.value.field) == (path, field)
        assert error.value.line == len(path.read_text().splitlines())
        read = load_graph(v2, skip_bad_lines=True)
        assert (read.graph.fingerprint, read.about["skipped_lines"]) == (whole, 1)

    def test_a_header_without_a_column_is_named(self, v2: Path) -> None:
        path = v2 / "processed" / "stage1" / "edges.csv"
        path.write_text("source,target\na,b\n")
        with pytest.raises(DataError, match="source, target") as error:
            read_graph(v2)
        assert error.value.field == "relation"

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ('{"a": null, "b": [true]}', {"a": None, "b": [True]}),
            ("{'a': None, 'b': (1, 2)}", {"a": None, "b": (1, 2)}),
            ("{'a': null, 'b': true, 'c': false}", {"a": None, "b": True, "c": False}),
            ("{'a': \"it's\"}", {"a": "it's"}),
            ("null", {}),
        ],
    )
    def test_attributes_of_all_spellings(self, text: str, value: object) -> None:
        assert parse_attributes(text) == value

    @pytest.mark.parametrize("text", ["{'a': print(1)}", "{'a': b}", "{'a'", "(" * 5000, "1"])
    def test_attributes_are_never_evaluated(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected"):
            parse_attributes(text)


class TestOpenIE:
    def test_names_of_one_spelling_join_and_other_scripts_survive(self, tmp_path: Path) -> None:
        docs = [
            {
                "idx": "chunk-1",
                "passage": "Vienna\nVienna is the capital of Austria.",
                "extracted_entities": ["Vienna", "Habsburg", ""],
                "extracted_triples": [["Vienna", "Capital of", "Austria"], ["vienna", "capital  of", "AUSTRIA"]],
            },
            {
                "idx": "chunk-1",
                "title": "維也納",
                "text": "維也納是首都。",
                "passage": "維也納\n維也納是首都。",
                "extracted_entities": ["維也納"],
                "extracted_triples": [
                    ["維也納", "首都", "奧地利"],
                    ["a", "b"],
                    "x",
                    [["a"], "b", "c"],
                    ["1990", 3, "x"],
                ],
            },
            {"idx": 7, "passage": "one line without title"},
        ]
        path = tmp_path / "openie_results_ner_model.json"
        path.write_text(json.dumps({"docs": docs, "avg_ent_chars": 3.0}))
        read = load_graph(tmp_path)
        graph = read.graph
        assert graph.entities == ("Vienna", "Austria", "Habsburg", "維也納", "奧地利", "1990", "x")
        assert graph.relations == ("Capital of", "首都", "3")
        assert len(graph.triples) == 3
        assert [(d.id, d.title) for d in graph.documents] == [("chunk-1", "Vienna"), ("chunk-1#2", "維也納"), ("7", "")]
        assert members(graph, 0) == ["Vienna", "Austria", "Habsburg"]
        assert (read.about["malformed"], read.about["repeated_triples"]) == (4, 1)
        assert read.folder == tmp_path
        assert load_graph(path).graph.fingerprint == graph.fingerprint

    @pytest.mark.parametrize(
        ("content", "field"),
        [
            ('{"documents": []}', "docs"),
            ('{"docs": [3]}', "docs[0]"),
            ('{"docs": [{"passage": 3}]}', "docs[0].passage"),
            ('{"docs": [{"passage": "a", "extracted_triples": "x"}]}', "docs[0].extracted_triples"),
        ],
    )
    def test_another_shape_is_named(self, tmp_path: Path, content: str, field: str) -> None:
        (tmp_path / "openie.json").write_text(content)
        with pytest.raises(DataError) as error:
            read_graph(tmp_path)
        assert error.value.field == field

    def test_two_results_have_to_be_told_apart(self, tmp_path: Path) -> None:
        for name in ("openie_a.json", "openie_b.json"):
            (tmp_path / name).write_text("{}")
        with pytest.raises(DataError, match=r"openie_a.json, openie_b.json"):
            read_graph(tmp_path)


class TestRecognition:
    def test_an_unknown_folder_says_what_it_holds_and_what_is_accepted(self, tmp_path: Path) -> None:
        (tmp_path / "notes.md").touch()
        with pytest.raises(DataError, match=r"notes.md") as error:
            read_graph(tmp_path)
        assert "kg.txt" in (error.value.hint or "")

    @pytest.mark.parametrize("name", ["missing", "graph.bin"])
    def test_another_file_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "graph.bin").touch()
        with pytest.raises(DataError):
            read_graph(tmp_path / name)
