from __future__ import annotations

import json
import pickle
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.errors import ConfigError, DataError
from ragtrain.index.passages import PassageDigest, PassageStore, split_passages, write_passages
from ragtrain.records import Passage, sha256_file

if TYPE_CHECKING:
    from pathlib import Path


def split(text: str, words: int | None, overlap: int = 0) -> list[Passage]:
    return list(split_passages([Passage("a", "T", text, {"source": "s"})], words, overlap))


def test_short_texts_are_untouched() -> None:
    passage = Passage("a", "T", "  one  two\nthree ", {"k": 1})
    assert list(split_passages([passage], 3)) == [passage]
    assert list(split_passages([passage], None)) == [passage]
    assert split("", 5)[0].id == "a"


def test_pieces() -> None:
    pieces = split("a b  c\nd e f g", 3)
    assert [(p.id, p.text) for p in pieces] == [("a#0", "a b  c"), ("a#1", "d e f"), ("a#2", "g")]
    assert all(p.title == "T" and p.meta == {"source": "s"} for p in pieces)
    assert [p.text for p in split("a b c d e", 3, 1)] == ["a b c", "c d e"]
    assert [p.text for p in split("a b c d e f", 3, 1)] == ["a b c", "c d e", "e f"]


def test_text_without_spaces_is_split_by_character() -> None:
    assert [p.text for p in split("東京は日本の首都。" * 2, 10)] == ["東京は日本の首都。東", "京は日本の首都。"]


@given(st.lists(st.sampled_from(["a", "bb", "c.", "\n", "\t ", "é"]), max_size=60), st.integers(1, 9), st.data())
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost(parts: list[str], words: int, data: st.DataObject) -> None:
    text = " ".join(parts)
    overlap = data.draw(st.integers(0, words - 1))
    pieces = split(text, words, overlap)
    if len(text.split()) <= words:
        assert [p.text for p in pieces] == [text]
        return
    joined: list[str] = []
    for number, piece in enumerate(pieces):
        assert piece.text in text, "a piece is a substring: nothing in it was changed"
        assert piece.id == f"a#{number}"
        own = piece.text.split()
        assert overlap < len(own) <= words
        assert joined[len(joined) - overlap :] == own[:overlap] or not joined
        joined += own[overlap:] if joined else own
    assert joined == text.split()


def test_overlap_must_be_smaller() -> None:
    with pytest.raises(ConfigError, match="overlap is 3 words where a piece has passage_words=3"):
        split_passages([], 3, 3)


PASSAGES = [
    Passage("a", "Zoë", "line\u2028one\nline two 🙂"),
    Passage("b", "", "text", {"section": "S", "n": [1, {"x": None}]}),
    Passage("c", "title", ""),
]


@pytest.fixture
def store(tmp_path: Path) -> PassageStore:
    write_passages(tmp_path, iter(PASSAGES))
    return PassageStore(tmp_path)


def test_store_round_trip(store: PassageStore, tmp_path: Path) -> None:
    assert len(store) == 3
    assert list(store) == PASSAGES
    assert [store[2], store[0], store[-2], store[np.int64(1)]] == [PASSAGES[i] for i in (2, 0, 1, 1)]
    assert store[1:] == PASSAGES[1:]
    assert store.texts(0) == (PASSAGES[0].title, PASSAGES[0].text)
    for bad in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            store[bad]
    assert len((tmp_path / "passages.jsonl").read_bytes().splitlines()) == 3


def test_digest_is_what_is_written(tmp_path: Path) -> None:
    written = write_passages(tmp_path, PASSAGES)
    digest = PassageDigest()
    for passage in PASSAGES:
        digest.add(passage)
    path = tmp_path / "passages.jsonl"
    assert digest.written() == written
    assert (written.count, written.size, written.sha256) == (3, path.stat().st_size, sha256_file(path))


def test_store_is_shared_by_threads_and_processes(store: PassageStore) -> None:
    assert list(pickle.loads(pickle.dumps(store))) == PASSAGES
    wrong: list[int] = []

    def read(seed: int) -> None:
        positions = np.random.default_rng(seed).integers(0, 3, 300)
        wrong.extend(int(i) for i in positions if store[i] != PASSAGES[i])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_store_reads_only_what_is_asked_for(store: PassageStore, tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    raw = bytearray(path.read_bytes())
    raw[2:6] = b"\xff\xff\xff\xff"  # inside the first line
    path.write_bytes(raw)
    damaged = PassageStore(tmp_path)
    assert damaged[1] == PASSAGES[1]
    with pytest.raises(DataError, match=r"passages\.jsonl:1: no passage in our form"):
        damaged[0]


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([], "there is no passage"),
        ([Passage("a", "", "x"), Passage("b", " ", "\n")], "passage 'b' \\(number 1\\) has neither title nor text"),
        (
            [Passage("a", "", "x"), Passage("b", "", "y"), Passage("a", "", "z")],
            "passages number 0 and 2 have the same id 'a'",
        ),
    ],
)
def test_unusable_passages(tmp_path: Path, passages: list[Passage], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_passages(tmp_path, passages)


def test_ids_of_equal_hash_are_no_duplicates(tmp_path: Path) -> None:
    class Collides(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return 7

        __eq__ = str.__eq__

    written = write_passages(tmp_path, [Passage(Collides(name), "", name) for name in "abc"])
    assert written.count == 3
    with pytest.raises(DataError, match="number 1 and 2 have the same id 'b'"):
        write_passages(tmp_path, [Passage(Collides(name), "", name) for name in "abb"])


def test_metadata_cannot_replace_a_field(tmp_path: Path) -> None:
    write_passages(tmp_path, [Passage("a", "T", "x", {"text": "other", "id": "b", "kept": 1})])
    assert json.loads((tmp_path / "passages.jsonl").read_text()) == {"id": "a", "title": "T", "text": "x", "kept": 1}


def test_missing_and_cut_files(store: PassageStore, tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=rf"passages\.jsonl: has {len(whole) - 5} bytes where .* expects {len(whole)}"):
        PassageStore(tmp_path)
    path.write_bytes(whole)
    offsets = tmp_path / "passages.idx.npy"
    offsets.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"passages\.idx\.npy: not an array of byte offsets"):
        PassageStore(tmp_path)
    offsets.unlink()
    with pytest.raises(DataError, match=r"passages\.idx\.npy: this file of the index is missing"):
        PassageStore(tmp_path)


def test_lines_are_read_without_the_map(tmp_path: Path) -> None:
    write_passages(tmp_path, PASSAGES)
    store = PassageStore(tmp_path)
    for start, stop in ((0, 1), (0, len(PASSAGES)), (1, len(PASSAGES)), (len(PASSAGES) - 1, len(PASSAGES)), (1, 1)):
        assert store.lines(start, stop) == PASSAGES[start:stop]
