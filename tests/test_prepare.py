from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ragtrain import prepare
from ragtrain.config.commands import EncoderConfig, PrepareConfig, SearchConfig
from ragtrain.data import demo
from ragtrain.errors import ConfigError, DataError, IndexMismatchError, OutOfMemoryError
from ragtrain.index.search import DenseIndex
from ragtrain.prepare import encoders, source
from ragtrain.records import Passage, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Sequence

PASSAGES = [
    Passage("oslo", "Oslo", "Oslo is the capital of Norway and lies on a fjord"),
    Passage("rome", "Rome", "Rome is the capital of Italy and was founded long ago by twins"),
    Passage("helium", "Helium", "Helium is a noble gas with the symbol He", {"kind": "chemistry"}),
]


class FakeEncoder:
    """Counts words: what shares words with a question is near it."""

    def __init__(self, dim: int = 64, mark: str = "one", normalize: bool = False) -> None:
        self.dim, self.mark, self.normalize = dim, mark, normalize
        self.encoded: list[tuple[str, str]] = []

    def to(self, device: torch.device) -> FakeEncoder:
        return self

    def fingerprint(self) -> str:
        return f"fingerprint-{self.mark}"

    def spec(self) -> dict[str, Any]:
        return {"name": "/some/where", "pooling": "mean", "normalize": self.normalize, "model_class": "Fake"}

    def max_tokens(self, role: str) -> int:
        return 10

    def tokenize_passages(self, pairs: Sequence[tuple[str, str]], max_tokens: int) -> dict[str, torch.Tensor]:
        return {"attention_mask": torch.ones(1, min(max_tokens, len(" ".join(pairs[0]).split())))}

    def passage_batches(
        self, pairs: Sequence[tuple[str, str]], batch_size: int, device: object
    ) -> Sequence[tuple[str, str]]:
        return pairs

    def encode_passages(
        self, pairs: Sequence[tuple[str, str]], batch_size: int, device: object, *, precision: str, progress: object
    ) -> np.ndarray:
        self.encoded += pairs
        return self.encode_questions([f"{title} {text}" for title, text in pairs])

    def encode_questions(self, texts: Sequence[str], device: object = None) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, zlib.crc32(word.encode()) % self.dim] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if self.normalize else vectors


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    fake = FakeEncoder()
    loaded: list[tuple] = []
    fake.loaded = loaded

    def load(name: object, *, config: object = None, role: str = "passage") -> FakeEncoder:
        loaded.append((name, config, role))
        return fake

    monkeypatch.setattr(encoders, "load_encoder", load)
    return fake


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "passages.jsonl"
    write_jsonl(path, [passage.to_json() for passage in PASSAGES])
    return path


def test_makes_an_index(encoder: FakeEncoder, passages: Path) -> None:
    result = prepare.run(PrepareConfig(passages=passages, passage_words=8, overlap=2))
    assert result.path == passages.parent / "index"
    index = DenseIndex.open(result.path)
    ids = ["oslo#0", "oslo#1", "rome#0", "rome#1", "helium#0", "helium#1"]
    assert [passage.id for passage in index.passages] == ids
    assert (result.count, result.dim, result.passages_read, result.skipped) == (6, 64, 3, 0)
    assert not result.reused
    assert encoder.encoded == [(p.title, p.text) for p in index.passages]
    assert (
        np.asarray(index.vectors) == encoder.encode_questions([f"{p.title} {p.text}" for p in index.passages])
    ).all()
    manifest = index.manifest
    assert manifest["splitting"] == {"passage_words": 8, "overlap": 2}
    assert manifest["source"]["path"] == str(passages)
    assert manifest["source"]["passages"] == 3
    assert manifest["encoder"]["fingerprint"] == "fingerprint-one"
    assert manifest["encoder"]["name"] is None, "the built-in encoder has no fixed place"
    assert "name" not in manifest["encoder"]["spec"]
    assert json.loads(json.dumps(result.to_json()))["path"] == str(result.path)


def test_the_same_again_does_nothing(encoder: FakeEncoder, passages: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = prepare.run(PrepareConfig(passages=passages))
    before = {path.name: path.stat().st_mtime_ns for path in first.path.iterdir()}
    encoder.encoded.clear()
    with caplog.at_level(logging.INFO, "ragtrain"):
        again = prepare.run(PrepareConfig(passages=passages, encode_batch_size=7))
    assert again.reused
    assert (again.count, again.dim) == (first.count, first.dim)
    assert encoder.encoded == []
    assert {path.name: path.stat().st_mtime_ns for path in first.path.iterdir()} == before
    assert "nothing to do" in caplog.text


@pytest.mark.parametrize("what", ["passages", "encoder", "storage", "splitting"])
def test_another_index_is_not_replaced_unasked(encoder: FakeEncoder, passages: Path, what: str) -> None:
    prepare.run(PrepareConfig(passages=passages))
    changes: dict[str, Any] = {}
    if what == "passages":
        write_jsonl(passages, [passage.to_json() for passage in PASSAGES[:2]])
    elif what == "encoder":
        encoder.mark = "two"
    elif what == "storage":
        changes = {"storage": "float32"}
    else:
        what, changes = "passages", {"passage_words": 5}
    with pytest.raises(ConfigError, match=rf"holds another index, which differs in {what} \(") as caught:
        prepare.run(PrepareConfig(passages=passages, **changes))
    assert "--overwrite" in str(caught.value.hint)
    result = prepare.run(PrepareConfig(passages=passages, overwrite=True, **changes))
    assert not result.reused
    assert prepare.run(PrepareConfig(passages=passages, **changes)).reused


def test_a_damaged_index_is_made_again_only_when_asked(encoder: FakeEncoder, passages: Path) -> None:
    result = prepare.run(PrepareConfig(passages=passages))
    vectors = result.path / "vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"vectors\.npy: was cut"):
        prepare.run(PrepareConfig(passages=passages))
    assert not prepare.run(PrepareConfig(passages=passages, overwrite=True)).reused
    DenseIndex.open(result.path)


def test_overwriting_does_not_delete_the_passages(encoder: FakeEncoder, passages: Path) -> None:
    index = prepare.run(PrepareConfig(passages=passages)).path
    inside = index / "mine.jsonl"
    write_jsonl(inside, [passage.to_json() for passage in PASSAGES[:2]])
    with pytest.raises(ConfigError, match=r"mine\.jsonl would be lost"):
        prepare.run(PrepareConfig(passages=inside, output_dir=index, overwrite=True))
    assert inside.is_file()
    # Those of the index itself are copied.
    encoder.mark = "two"
    prepare.run(PrepareConfig(passages=index / "passages.jsonl", output_dir=index, overwrite=True))
    assert len(DenseIndex.open(index).passages) == len(PASSAGES)


def test_plan_writes_nothing(encoder: FakeEncoder, passages: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = prepare.run(PrepareConfig(passages=passages, passage_words=8, dry_run=True))
    assert sorted(tmp_path.rglob("*")) == before
    plan = result.plan
    assert plan is not None
    made = prepare.run(PrepareConfig(passages=passages, passage_words=8))
    assert (plan["passages"], plan["pieces"], result.count) == (3, made.count, made.count)
    assert plan["words"] == sum(len(passage.text.split()) for passage in PASSAGES)
    # A title word before each piece; the lengths of all pieces are known here, since there are fewer than a sample.
    assert plan["tokens_estimated"] == plan["words"] + plan["pieces"]
    sizes = json.loads((made.path / "manifest.json").read_text())["files"]
    header = 128
    assert plan["bytes"] == sum(entry["size"] for entry in sizes.values()) - 2 * header
    assert plan["seconds_estimated"] >= 0
    json.dumps(result.to_json())


def test_a_large_corpus_is_planned_on_a_sample(encoder: FakeEncoder, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", ({"id": str(i), "title": "t", "text": f"word{i}"} for i in range(500)))
    result = prepare.run(PrepareConfig(passages=tmp_path / "p.jsonl", dry_run=True))
    assert result.plan is not None
    assert result.plan["tokens_estimated"] == 1000
    drawn = {text for _, text in encoder.encoded}
    assert len(drawn) == source.SAMPLE
    assert any(int(text.removeprefix("word")) > 250 for text in drawn), "drawn from the whole corpus"


def test_demo_passages_by_default(
    encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = prepare.run(PrepareConfig(dry_run=True)).plan
    assert plan is not None
    assert list(tmp_path.iterdir()) == [], "a plan fetches nothing"
    with caplog.at_level(logging.INFO, "ragtrain"):
        result = prepare.run(PrepareConfig())
    assert "no passages were given" in caplog.text
    assert result.path == Path("data/demo/index")
    assert result.count == plan["pieces"] > 1500
    assert encoder.loaded[-1][0] == demo.ENCODER


def test_normalised_encoders_make_a_cosine_index(encoder: FakeEncoder, passages: Path) -> None:
    encoder.normalize = True
    result = prepare.run(PrepareConfig(passages=passages))
    assert result.metric == DenseIndex.open(result.path).metric == "cosine"


def test_where_the_index_goes(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "passages.jsonl").touch()
    (tmp_path / "notes").mkdir()
    assert source.default_output(tmp_path / "set" / "passages.jsonl") == tmp_path / "set" / "index"
    assert source.default_output(tmp_path / "set") == tmp_path / "set" / "index"
    assert source.default_output(tmp_path / "notes") == tmp_path / "notes-index"


def test_a_folder_of_texts(encoder: FakeEncoder, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("one two three")
    (tmp_path / "notes" / "b.md").write_text("four five six")
    result = prepare.run(PrepareConfig(passages=tmp_path / "notes"))
    assert result.count == 2
    assert prepare.run(PrepareConfig(passages=tmp_path / "notes")).reused


def test_bad_lines(encoder: FakeEncoder, passages: Path) -> None:
    passages.write_text(passages.read_text() + "{broken\n")
    with pytest.raises(DataError, match=r"passages\.jsonl:4"):
        prepare.run(PrepareConfig(passages=passages))
    assert not (passages.parent / "index").exists()
    result = prepare.run(PrepareConfig(passages=passages, skip_bad_lines=True))
    assert (result.count, result.skipped) == (3, 1)


def test_faiss_is_added_to_a_finished_index(encoder: FakeEncoder, passages: Path) -> None:
    pytest.importorskip("faiss", reason="the extra [cpu] is not installed")
    prepare.run(PrepareConfig(passages=passages))
    encoder.encoded.clear()
    result = prepare.run(PrepareConfig(passages=passages, index_type="faiss-flat"))
    assert result.reused
    assert encoder.encoded == []
    query = torch.from_numpy(encoder.encode_questions(["capital of Norway"]))
    index = DenseIndex.open(result.path)
    assert torch.equal(index.searcher(backend="faiss-flat").search(query, 3).ids, index.searcher().search(query, 3).ids)


def test_faiss_missing_is_said_before_any_work(
    encoder: FakeEncoder, passages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="faiss is not installed"):
        prepare.run(PrepareConfig(passages=passages, index_type="faiss-flat"))
    assert encoder.encoded == []


def test_out_of_memory_names_a_remedy(encoder: FakeEncoder, passages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> np.ndarray:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(encoder, "encode_passages", full)
    with pytest.raises(OutOfMemoryError) as caught:
        prepare.run(PrepareConfig(passages=passages, encode_batch_size=64))
    assert caught.value.hint == "try --encode-batch-size 32"
    assert [path.name for path in passages.parent.iterdir()] == ["passages.jsonl"]


def test_unknown_device(encoder: FakeEncoder, passages: Path) -> None:
    for name in ("gpu", "cuda:77"):
        with pytest.raises(ConfigError, match=f"there is no '{name}' here"):
            prepare.run(PrepareConfig(passages=passages, device=name))


def test_search(encoder: FakeEncoder, passages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = EncoderConfig(query_prompt="query: ", pooling="mean")
    path = prepare.run(PrepareConfig(passages=passages, encoder=asked)).path
    capsys.readouterr()
    result = prepare.search(SearchConfig(question="capital of Norway", index_path=path, n_docs=5))
    assert [hit["id"] for hit in result.hits] == ["oslo", "rome", "helium"], (
        "three passages, though five were asked for"
    )
    assert [hit["rank"] for hit in result.hits] == [1, 2, 3]
    assert result.hits[2]["kind"] == "chemistry"
    assert result.hits[0]["score"] > result.hits[1]["score"]
    shown = capsys.readouterr()
    assert shown.out == "", "stdout is for data"
    assert "Oslo is the capital of Norway" in shown.err
    assert encoder.loaded[-1] == (demo.ENCODER, asked, "question"), "questions get the settings of the index"
    json.dumps(result.to_json())


def test_search_by_words_and_through_faiss(
    encoder: FakeEncoder, passages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="the extra [cpu] is not installed")
    path = prepare.run(PrepareConfig(passages=passages, index_type="hnsw", bm25=True)).path
    assert "hnsw against exact search" in capsys.readouterr().err
    question = SearchConfig(question="the HELIUM balloon", index_path=path, n_docs=2)
    dense = prepare.search(question)
    for settings in ({"retrieval": "bm25"}, {"retrieval": "hybrid", "search_index": "faiss"}):
        found = prepare.search(question.model_copy(update=settings))
        assert f"{found.retrieval}, {found.search_index}, scores: inner_product" in capsys.readouterr().err
        scores = {hit["id"]: hit["score"] for hit in prepare.search(question.model_copy(update={"n_docs": 3})).hits}
        assert {hit["id"]: hit["score"] for hit in found.hits}.items() <= scores.items(), "scores are inner products"
        if found.retrieval == "bm25":
            assert found.hits[0]["id"] == "helium"
    assert (dense.retrieval, dense.search_index) == ("dense", "flat")


def test_what_is_not_there_is_searched_for_in_vain(encoder: FakeEncoder, passages: Path) -> None:
    path = prepare.run(PrepareConfig(passages=passages)).path
    question = SearchConfig(question="helium", index_path=path)
    for settings, flags in (({"retrieval": "hybrid"}, "--bm25"), ({"search_index": "faiss"}, "--index-type hnsw")):
        with pytest.raises(DataError) as caught:
            prepare.search(question.model_copy(update=settings))
        assert f"ragtrain index prepare --index-path {path} {flags}" in str(caught.value.hint)
    assert prepare.run(PrepareConfig(index_path=path, bm25=True)).reused
    assert prepare.search(question.model_copy(update={"retrieval": "bm25"})).hits[0]["id"] == "helium"


def test_search_with_another_encoder(encoder: FakeEncoder, passages: Path) -> None:
    path = prepare.run(PrepareConfig(passages=passages)).path
    prepare.search(SearchConfig(question="x", index_path=path, encoder="runs/rag"))
    assert encoder.loaded[-1] == ("runs/rag", None, "question")
    encoder.dim = 32
    with pytest.raises(IndexMismatchError, match="vectors of 64 dimensions, and the question encoder makes 32"):
        prepare.search(SearchConfig(question="x", index_path=path, encoder="runs/rag"))


def test_search_without_question_or_index(encoder: FakeEncoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no question"):
        prepare.search(SearchConfig(question=" ", index_path=tmp_path))
    with pytest.raises(DataError, match=r"no manifest\.json"):
        prepare.search(SearchConfig(question="x", index_path=tmp_path))


def test_a_real_encoder(passages: Path, tmp_path: Path) -> None:
    """A random BERT from a folder: an index of it finds each passage by its own text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({word for passage in PASSAGES for word in f"{passage.title} {passage.text}".split()})
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    folder = tmp_path / "encoder"
    BertModel(BertConfig(vocab_size=len(words) + 2, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    asked = EncoderConfig(encoder=str(folder), pooling="mean", normalize=True)
    result = prepare.run(PrepareConfig(passages=passages, encoder=asked, encode_batch_size=2))
    assert (result.count, result.dim, result.metric) == (3, 16, "cosine")
    assert prepare.run(PrepareConfig(passages=passages, encoder=asked)).reused
    for passage in PASSAGES:
        found = prepare.search(SearchConfig(question=f"{passage.title} {passage.text}", index_path=result.path))
        assert found.hits[0]["id"] == passage.id
        assert found.hits[0]["score"] == pytest.approx(1, abs=2e-3), "unit vectors in float16"
    assert prepare.run(PrepareConfig(passages=passages, encoder=asked, dry_run=True)).plan is not None
