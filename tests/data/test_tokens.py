from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from transformers import BartTokenizer, T5Tokenizer

from ragtrain.data.prompts import bare_ids, layout_for, passage_string
from ragtrain.data.tokens import BATCH, TokenStore, tokenizer_fingerprint
from ragtrain.errors import DataError
from ragtrain.records import Passage

PASSAGES = [
    Passage("a", "Oslo", "Oslo is the capital of Norway."),
    Passage("b", "", "No title here"),
    Passage("c", "Helium", '"Helium" is a gas ' * 300),
    Passage("d", "Title only", ""),
]


def expected(tokenizer: BartTokenizer | T5Tokenizer, passages: list[Passage], before: str = "") -> list[list[int]]:
    return [
        tokenizer(before + passage_string(p.title, p.text), add_special_tokens=False)["input_ids"] for p in passages
    ]


@pytest.fixture(params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> BartTokenizer | T5Tokenizer:
    return request.getfixturevalue(request.param)


def test_round_trip(tokenizer: BartTokenizer | T5Tokenizer, tmp_path: Path) -> None:
    TokenStore.build(PASSAGES, tokenizer, tmp_path / "tokens")
    store = TokenStore.open(tmp_path / "tokens")
    assert len(store) == 4
    tokens = store.gather(np.arange(4))
    assert [row.tolist() for row in tokens] == expected(tokenizer, PASSAGES)
    assert store.lengths.tolist() == [len(row) for row in tokens]
    assert tokens[0].dtype == np.uint16
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"], "nothing is left aside"


def test_gather_order_shape_and_missing(bpe: BartTokenizer, tmp_path: Path) -> None:
    store = TokenStore.build(PASSAGES, bpe, tmp_path / "tokens")
    reference = [*expected(bpe, PASSAGES), []]
    ids = np.array([[3, -1], [0, 0]])
    assert [row.tolist() for row in store.gather(ids)] == [reference[3], [], reference[0], reference[0]]
    assert store.gather(np.empty((0, 2), np.int64)) == []
    with pytest.raises(IndexError, match="passage 4 of 4"):
        store.gather(np.array([4]))


def test_more_passages_than_a_batch(bpe: BartTokenizer, tmp_path: Path) -> None:
    passages = [Passage(str(i), "t", f"number {i}") for i in range(BATCH + 3)]
    store = TokenStore.build(iter(passages), bpe, tmp_path / "tokens")
    last = store.gather(np.array([BATCH - 1, BATCH, BATCH + 2]))
    assert [row.tolist() for row in last] == expected(bpe, [passages[i] for i in (BATCH - 1, BATCH, BATCH + 2)])


def test_wide_vocabulary(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "x": 70_000}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    wide = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    store = TokenStore.build([Passage("a", "", "x y x")], wide, tmp_path / "tokens")
    assert store.gather(np.array([0]))[0].tolist() == [70_000, 0, 70_000]


def test_pickles_and_reopens(bpe: BartTokenizer, tmp_path: Path) -> None:
    store = TokenStore.build(PASSAGES, bpe, tmp_path / "tokens")
    raw = pickle.dumps(store)
    assert len(raw) < 1000
    again = pickle.loads(raw)
    assert again.gather(np.array([2]))[0].tolist() == store.gather(np.array([2]))[0].tolist()


def test_fingerprint(bpe: BartTokenizer, unigram: T5Tokenizer) -> None:
    first = tokenizer_fingerprint(bpe)
    bpe(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(bpe) == first, "padding and truncation of the last call do not enter"
    assert len({first, tokenizer_fingerprint(unigram), tokenizer_fingerprint(bpe, leading_space=True)}) == 3


def test_built_once_beside_the_index(bpe: BartTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore.for_index(tmp_path, PASSAGES, bpe, passages_sha256="one")
    assert store.folder.parent == tmp_path
    assert store.folder.name == f"tokens-{tokenizer_fingerprint(bpe)}"
    with monkeypatch.context() as patched:
        patched.setattr(TokenStore, "build", classmethod(lambda *_, **__: pytest.fail("built twice")))
        assert len(TokenStore.for_index(tmp_path, PASSAGES, bpe, passages_sha256="one")) == 4
    assert len(TokenStore.for_index(tmp_path, PASSAGES[:2], bpe, passages_sha256="two")) == 2


def test_prefix_layout_has_a_store_of_its_own(bpe: BartTokenizer, tmp_path: Path) -> None:
    plain = TokenStore.for_index(tmp_path, PASSAGES, bpe, layout=layout_for(bpe))
    prefixed = TokenStore.for_index(tmp_path, PASSAGES, bpe, layout=layout_for(bpe, "answer: "))
    assert plain.folder != prefixed.folder
    assert prefixed.gather(np.array([0]))[0].tolist() == expected(bpe, PASSAGES[:1], " ")[0]
    assert prefixed.gather(np.array([0]))[0].tolist() != plain.gather(np.array([0]))[0].tolist()


def test_a_cut_store_is_named_and_built_again(
    bpe: BartTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = TokenStore.for_index(tmp_path, PASSAGES, bpe)
    path = store.folder / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"tokens\.bin: has \d+ bytes"):
        TokenStore.open(store.folder)
    again = TokenStore.for_index(tmp_path, PASSAGES, bpe)
    assert "built again" in caplog.text
    assert [row.tolist() for row in again.gather(np.arange(4))] == expected(bpe, PASSAGES)


def test_not_a_store(tmp_path: Path, bpe: BartTokenizer) -> None:
    with pytest.raises(DataError, match="no store of tokens"):
        TokenStore.open(tmp_path)
    with pytest.raises(DataError, match="no passage"):
        TokenStore.build([], bpe, tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_build_leaves_nothing(bpe: BartTokenizer, tmp_path: Path) -> None:
    def stopping() -> object:
        yield PASSAGES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TokenStore.build(stopping(), bpe, tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []


def test_read_only_index(bpe: BartTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / "index").mkdir()
    store = TokenStore.for_index(tmp_path / "index", PASSAGES, bpe, passages_sha256="f" * 64)
    assert store.folder.is_relative_to(tmp_path / "cache" / "ragtrain" / ("f" * 16))


def _build_in_process(folder: str, vocab: dict, merges: list, queue: multiprocessing.Queue) -> None:
    tokenizer = BartTokenizer(vocab=vocab, merges=merges)
    passages = [Passage(str(i), "t", f"number {i} " * 50) for i in range(1500)]
    builds: list[int] = []
    original = TokenStore.build.__func__
    TokenStore.build = classmethod(lambda cls, *a, **k: (builds.append(1), original(cls, *a, **k))[1])
    store = TokenStore.for_index(Path(folder), passages, tokenizer)
    queue.put((len(builds), len(store), int(store.gather(np.array([1499]))[0].sum())))


def test_several_processes_build_once(bpe: BartTokenizer, tmp_path: Path) -> None:
    state = json.loads(bpe.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [
        context.Process(target=_build_in_process, args=(str(tmp_path), state["vocab"], merges, queue)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(builds for builds, *_ in results) == 1
    assert len({result[1:] for result in results}) == 1
    assert results[0][1] == 1500


def test_bare_ids_of_nothing(bpe: BartTokenizer) -> None:
    assert bare_ids(bpe, []) == []
