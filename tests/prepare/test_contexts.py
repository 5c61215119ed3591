from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ragtrain import prepare
from ragtrain.config.commands import EncoderConfig, PrepareConfig
from ragtrain.config.commands.sft import SftContextConfig, SftDataConfig
from ragtrain.data import demo
from ragtrain.data.sft.contexts import ContextMaker
from ragtrain.data.sft.distractors import NOT_FOUND, gold_of, ranked
from ragtrain.data.sft.examples import read_examples
from ragtrain.data.sft.records import Example
from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.index import fusion
from ragtrain.index.search import DenseIndex
from ragtrain.models.encoder import TextEncoder, load_encoder
from ragtrain.prepare.contexts import open_source, with_contexts
from ragtrain.records import Document, Passage, content_id, write_jsonl

DEPTH = 6


def make_index(folder: Path, passages: list[Passage], encoder: Path = demo.ENCODER) -> Path:
    write_jsonl(folder / "passages.jsonl", (passage.to_json() for passage in passages))
    prepare.run(
        PrepareConfig(
            passages=folder / "passages.jsonl", output_dir=folder / "index", bm25=True,
            encoder=EncoderConfig(encoder=str(encoder)), device="cpu",
        )
    )  # fmt: skip
    return folder / "index"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, passages: list[Passage]) -> Path:
    return make_index(tmp_path_factory.mktemp("contexts"), passages)


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """A copy, with no cache in it."""
    shutil.copytree(made.parent, tmp_path / "set", ignore=shutil.ignore_patterns("contexts-*", ".contexts-*"))
    return tmp_path / "set" / "index"


@pytest.fixture(scope="session")
def examples(passages: list[Passage]) -> list[Example]:
    held = {passage.id for passage in passages}
    built = demo.build()
    asked = [question for question in (*built.train, *built.validation) if {d.id for d in question.documents} <= held]
    assert len(asked) > 20
    return [
        Example(
            q.id, q.question, q.answers, q.answers, q.documents, frozenset(d.id for d in q.documents if d.is_gold)
        )
        for q in asked[:40]
    ]  # fmt: skip


def found(examples: list[Example]) -> list[list[tuple[str, float | None]]]:
    return [[(document.id, document.score) for document in ranked(example)] for example in examples]


def names(examples: list[Example]) -> list[list[str]]:
    return [[name for name, _ in documents] for documents in found(examples)]


def caches(index: Path) -> list[Path]:
    return sorted(index.glob("contexts-*"))


def test_passages_are_the_nearest_ones_best_first(index: Path, examples: list[Example], encoder: TextEncoder) -> None:
    filled, about = with_contexts(examples, index=index, depth=DEPTH, device="cpu")
    opened = DenseIndex.open(index)
    vectors = np.asarray(opened.vectors, dtype=np.float64)
    for example, old in zip(filled, examples, strict=True):
        # The slow twin: one question at a time, all products, in float64.
        products = vectors @ encoder.encode_questions([old.question])[0].astype(np.float64)
        best = np.argsort(-products, kind="stable")[:DEPTH]
        documents = ranked(example)
        assert [document.id for document in documents] == [opened.passages[int(i)].id for i in best]
        np.testing.assert_allclose([document.score for document in documents], products[best], rtol=1e-5, atol=1e-5)
        assert dataclasses.replace(example, documents=(), gold=frozenset()) == dataclasses.replace(
            old, documents=(), gold=frozenset()
        )
        assert example.gold == old.gold
    assert about["cached"] is False
    assert (about["index"], about["depth"], about["count"]) == (str(index.resolve()), DEPTH, 200)


@pytest.mark.parametrize("retrieval", ["bm25", "hybrid"])
def test_words_and_both(
    index: Path, examples: list[Example], encoder: TextEncoder, retrieval: fusion.Retrieval
) -> None:
    filled, _ = with_contexts(examples, index=index, depth=DEPTH, retrieval=retrieval, device="cpu")
    opened = DenseIndex.open(index)
    searcher, words = opened.searcher(), opened.words()
    for example, documents in zip(examples, found(filled), strict=True):
        query = torch.from_numpy(encoder.encode_questions([example.question]))
        hits = fusion.search(searcher, words, retrieval, query, [example.question], DEPTH)
        assert [name for name, _ in documents] == [opened.passages[i].id for i in hits.ids[0].tolist()]
    # A shallower search is the beginning of a deeper one, whether the cache gives it or not.
    shallow, about = with_contexts(examples, index=index, depth=2, retrieval=retrieval, device="cpu")
    assert about["cached"]
    assert found(shallow) == [documents[:2] for documents in found(filled)]
    shutil.rmtree(caches(index)[0])
    assert found(with_contexts(examples, index=index, depth=2, retrieval=retrieval)[0]) == found(shallow)


def test_a_second_run_reads_the_cache(
    index: Path, examples: list[Example], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "ragtrain")
    first, _ = with_contexts(examples, index=index, depth=DEPTH)
    assert "Retrieving passages: 40 of 40" in caplog.text
    assert "contexts from the cache" not in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode_questions", None)
        second, about = with_contexts(examples, index=index, depth=DEPTH)
        shallow, _ = with_contexts(examples, index=index, depth=2)
    assert second == first
    assert about["cached"] is True
    assert "passages for 40 questions: contexts from the cache" in caplog.text
    assert found(shallow) == [documents[:2] for documents in found(first)]
    deeper, about = with_contexts(examples, index=index, depth=DEPTH + 2)
    assert about["cached"] is False
    assert [documents[:DEPTH] for documents in found(deeper)] == found(first)
    assert len(caches(index)) == 1
    assert not list(index.glob(".contexts-*.tmp-*"))


def test_other_questions_are_searched_anew(index: Path, examples: list[Example]) -> None:
    with_contexts(examples, index=index, depth=DEPTH)
    changed = [dataclasses.replace(examples[0], question="Something else?"), *examples[1:]]
    renamed = [dataclasses.replace(examples[0], id="another"), *examples[1:]]
    for others in (changed, renamed, examples[::-1], examples[:-1]):
        filled, about = with_contexts(others, index=index, depth=DEPTH)
        assert about["cached"] is False
        alone = [with_contexts([each], index=index, depth=DEPTH)[0][0] for each in others[:2]]
        assert names(filled[:2]) == names(alone)
    # Answers and the rows' own passages decide nothing of what is found.
    bare = [dataclasses.replace(example, answers=("x",), documents=(), gold=frozenset()) for example in examples]
    assert with_contexts(bare, index=index, depth=DEPTH)[1]["cached"] is True


def test_another_index_in_the_same_place_is_searched_anew(
    index: Path, examples: list[Example], passages: list[Passage]
) -> None:
    before, _ = with_contexts(examples, index=index, depth=DEPTH)
    kept = caches(index)
    shutil.copytree(kept[0], index.parent / "kept")
    shutil.rmtree(index)
    make_index(index.parent, passages[::-1])
    shutil.copytree(index.parent / "kept", index / kept[0].name)
    after, about = with_contexts(examples, index=index, depth=DEPTH)
    assert about["cached"] is False
    # The same passages at other positions: an old result would name the wrong ones.
    assert names(after) == names(before)


@pytest.mark.parametrize("field", ["passages_sha256", "vectors_sha256", "bm25"])
def test_each_part_of_an_index_alone_makes_it_another_one(index: Path, examples: list[Example], field: str) -> None:
    with_contexts(examples, index=index, depth=DEPTH, retrieval="hybrid")
    manifest = json.loads((index / "manifest.json").read_text())
    words = json.loads((index / "bm25" / "words.json").read_text())
    manifest[field] = {**manifest[field], "b": 0.7} if field == "bm25" else "0" * 64
    words["passages_sha256"] = manifest["passages_sha256"]
    (index / "manifest.json").write_text(json.dumps(manifest))
    text = json.dumps(words)
    size = (index / "bm25" / "words.json").stat().st_size
    (index / "bm25" / "words.json").write_text(text + " " * (size - len(text)))
    assert with_contexts(examples, index=index, depth=DEPTH, retrieval="hybrid")[1]["cached"] is False
    assert with_contexts(examples, index=index, depth=DEPTH, retrieval="hybrid")[1]["cached"] is True
    assert with_contexts(examples, index=index, depth=DEPTH, retrieval="dense")[1]["cached"] is False


def save_run(folder: Path, index: Path, encoder: TextEncoder | None, kind: str = "rag") -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"kind": kind}))
    (folder / "data.json").write_text(json.dumps({"index": {"path": str(index)}}))
    if encoder is not None:
        encoder.save_pretrained(folder / "final_model")
    return folder


def test_a_run_brings_its_index_and_the_encoder_it_trained(
    index: Path, examples: list[Example], tmp_path: Path
) -> None:
    untrained, _ = with_contexts(examples, index=index, depth=DEPTH)
    trained = load_encoder(demo.ENCODER, role="question")
    with torch.no_grad():
        for weights in trained.parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    run = save_run(tmp_path / "run", index, trained)
    opened, name = open_source(run)
    assert (opened.path, name) == (index, str(run / "final_model"))
    filled, about = with_contexts(examples, index=run, depth=DEPTH)
    assert about["cached"] is False
    assert about["path"] == str(run.resolve())
    assert found(filled) != found(untrained)
    vectors = np.asarray(opened.vectors, dtype=np.float64)
    products = vectors @ trained.encode_questions([examples[3].question])[0].astype(np.float64)
    best = [opened.passages[int(i)].id for i in np.argsort(-products, kind="stable")[:DEPTH]]
    assert [document.id for document in ranked(filled[3])] == best
    # A run of train sft that retrieved from that run, the path that completion types, and training that went on.
    sft = save_run(tmp_path / "sft", run, None, kind="sft")
    for path in (sft, run / "final_model"):
        assert found(with_contexts(examples, index=path, depth=DEPTH)[0]) == found(filled)
    with torch.no_grad():
        next(trained.parameters()).add_(0.5)
    trained.save_pretrained(run / "final_model")
    assert with_contexts(examples, index=run, depth=DEPTH)[1]["cached"] is False


def test_a_whole_rag_model_is_searched_with_its_question_encoder(
    index: Path, examples: list[Example], tmp_path: Path
) -> None:
    from ragtrain.models.export import save_rag
    from ragtrain.models.rag import RagModel, load_generator

    run = save_run(tmp_path / "run", index, None)
    save_rag(
        RagModel(load_encoder(demo.ENCODER, role="question"), *load_generator(demo.GENERATOR)), run / "final_model"
    )
    plain, _ = with_contexts(examples[:5], index=index, depth=2)
    assert found(with_contexts(examples[:5], index=run, depth=2)[0]) == found(plain)


def test_a_run_without_model_or_index_is_refused(index: Path, tmp_path: Path, examples: list[Example]) -> None:
    run = save_run(tmp_path / "run", index, None)
    with pytest.raises(CheckpointError, match="no final model") as caught:
        with_contexts(examples, index=run, depth=1)
    assert f"--index {index}" in caught.value.hint
    lost = save_run(tmp_path / "lost", tmp_path / "gone", load_encoder(demo.ENCODER))
    with pytest.raises(DataError, match="says of no index that is still there"):
        with_contexts(examples, index=lost, depth=1)
    shutil.copytree(index, lost / "index")  # a run that was moved, with the index that it left
    assert open_source(lost)[0].path == lost / "index"
    with pytest.raises(DataError, match="no such folder"):
        with_contexts(examples, index=tmp_path / "gone", depth=1)
    with pytest.raises(ConfigError, match="finished prompts have their passages in them"):
        with_contexts([dataclasses.replace(examples[0], finished="p")], index=index, depth=1)


def test_a_dataset_folder_brings_its_index(index: Path) -> None:
    assert open_source(index.parent)[0].path == index


@pytest.mark.parametrize("damage", ["scores.npy", "positions.npy", "meta.json", "missing", "swapped"])
def test_a_damaged_cache_is_built_again(
    index: Path, examples: list[Example], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = with_contexts(examples, index=index, depth=DEPTH)
    (folder,) = caches(index)
    if damage == "missing":
        (folder / "scores.npy").unlink()
    elif damage == "swapped":
        np.save(folder / "positions.npy", np.load(folder / "positions.npy")[::-1])
    else:
        content = (folder / damage).read_bytes()
        (folder / damage).write_bytes(content[: len(content) // 2])
    second, about = with_contexts(examples, index=index, depth=DEPTH)
    assert second == first
    assert about["cached"] is False
    assert "searching again" in caplog.text
    assert with_contexts(examples, index=index, depth=DEPTH)[1]["cached"] is True


def test_beside_an_index_that_cannot_be_written_the_users_cache_serves(
    index: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with_contexts(examples, index=index, depth=DEPTH)
    assert not caches(index)
    assert len(list((tmp_path / "cache" / "ragtrain").glob("*/contexts-*"))) == 1
    assert with_contexts(examples, index=index, depth=DEPTH)[1]["cached"] is True


def test_gold_passages_are_known_by_their_text(index: Path, passages: list[Passage], examples: list[Example]) -> None:
    target = ranked(with_contexts(examples[:1], index=index, depth=1)[0][0])[0]
    other = passages[0] if passages[0].id != target.id else passages[1]
    far = Document("far", "", "Nothing in the index says this.", True)

    def filled(*documents: Document) -> Example:
        gold = frozenset(document.id for document in documents)
        return with_contexts(
            [dataclasses.replace(examples[0], documents=documents, gold=gold)], index=index, depth=3
        )[0][0]  # fmt: skip

    # Another id, the same text but for case and spacing.
    example = filled(Document("theirs", "", f"  {target.text.upper()} ", True))
    assert example.gold == {target.id}
    assert [document.is_gold for document in example.documents] == [True, False, False]
    # The id of a passage in the index, and another text: that passage is not gold.
    example = filled(dataclasses.replace(far, id=target.id))
    own = content_id("", far.text)
    assert example.gold == {own}
    assert [document.is_gold for document in example.documents] == [False, False, False, True]
    assert example.documents[-1].score == NOT_FOUND
    assert gold_of(example)[0].text == far.text
    assert len(ranked(example)) == 3
    # Two gold passages, one of them found.
    example = filled(far, Document(target.id, target.title, target.text, True))
    assert example.gold == {"far", target.id}
    assert [document.id in example.gold for document in example.documents] == [True, False, False, True]
    # Nothing is known of gold where the row has none.
    bare = filled()
    assert (bare.gold, {document.is_gold for document in bare.documents}) == (frozenset(), {None})
    assert other.id not in example.gold


LONG = " ".join([*(f"word{i}" for i in range(150)), "Nidaros", *(f"word{i}" for i in range(150, 300))])


@pytest.mark.parametrize("identifier", ["p", "theirs"])
def test_of_a_split_gold_passage_the_pieces_with_an_answer_are_gold(tmp_path: Path, identifier: str) -> None:
    index = make_index(tmp_path / "split", [Passage("p", "T", LONG), Passage("q", "U", "Something else.")])
    document = Document(identifier, "T", LONG, True)
    row = Example("1", "Which town?", ("Nidaros",), ("Nidaros",), (document,), frozenset({identifier}))
    (example,), _ = with_contexts([row], index=index, depth=9)
    assert example.gold == {"p#1"}
    assert {each.id for each in example.documents} == {"p#0", "p#1", "p#2", "p#3", "q"}
    # What is not found comes in pieces, too: a whole page among them would be known by its length.
    shallow = [with_contexts([row], index=index, depth=depth)[0][0] for depth in (1, 2, 3)]
    lost = [each for each in shallow if each.documents[-1].score == NOT_FOUND]
    assert lost
    for each in lost:
        (piece,) = gold_of(each)
        assert len(piece.text.split()) == 100
        assert "Nidaros" in piece.text
    # Where no piece holds an answer, each is gold.
    (example,), _ = with_contexts([dataclasses.replace(row, answers=("nowhere",))], index=index, depth=9)
    assert example.gold == {"p#0", "p#1", "p#2", "p#3"}


def test_an_index_that_does_not_say_how_it_was_split(tmp_path: Path) -> None:
    index = make_index(tmp_path / "split", [Passage("p", "T", LONG), Passage("q", "U", "Something else.")])
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps({**manifest, "splitting": {}}))
    document = Document("p", "T", LONG, True)
    row = Example("1", "Which town?", ("Nidaros",), ("Nidaros",), (document,), frozenset({"p"}))
    (example,), _ = with_contexts([row], index=index, depth=9)
    assert example.gold == {"p#1"}


def test_fewer_passages_than_asked_and_no_rows(tmp_path: Path) -> None:
    index = make_index(tmp_path / "few", [Passage("p", "T", "One text."), Passage("q", "U", "Another text.")])
    (example,), _ = with_contexts([Example("1", "What?", ("a",), ("a",))], index=index, depth=5)
    assert len(example.documents) == 2
    assert with_contexts([], index=index, depth=5)[0] == []
    assert len(caches(index)) == 1


def test_real_data(real_data: Path, tmp_path: Path) -> None:
    hotpot = read_examples(SftDataConfig(), real_data / "hotpotqa" / "hotpot_train_mixed_100.json.gz").examples[:15]
    texts = {each.text: each for example in hotpot for each in example.documents}
    # Numbered anew, so that no id of the data is one of the index.
    index = make_index(tmp_path / "hotpot", [Passage(f"p{i}", d.title, d.text) for i, d in enumerate(texts.values())])
    filled, _ = with_contexts(hotpot, index=index, depth=10, retrieval="hybrid")
    found_gold = 0
    for example, old in zip(filled, hotpot, strict=True):
        inside = [document for document in ranked(example) if document.id in example.gold]
        found_gold += bool(inside)
        whole = " ".join(document.text for document in gold_of(old))
        assert all(" ".join(document.text.split()) in " ".join(whole.split()) for document in gold_of(example))
        assert len(gold_of(example)) >= len(old.gold)
    assert found_gold >= 12
    made = ContextMaker(filled, SftContextConfig(raft=True, n_docs=4, raft_p=0.5), seed=0)
    for epoch in range(3):
        for example, sample in zip(filled, made.samples(epoch), strict=True):
            assert len(sample.documents) == len({document.text for document in sample.documents}) == 4
            assert sum(document.id in example.gold for document in sample.documents) in (0, min(4, len(example.gold)))
    bare = read_examples(SftDataConfig(), real_data / "nq" / "NQ-open.dev.jsonl", most=5).examples
    assert all(len(example.documents) == 3 for example in with_contexts(bare, index=index, depth=3)[0])
