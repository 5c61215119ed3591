"""Search by words: BM25 through the library bm25s (Lù 2024), which scores every word of every passage in advance.

::

    bm25/                          in the index folder
    ├── data.csc.index.npy  indices.csc.index.npy  indptr.csc.index.npy     read from the disk as they are needed
    ├── vocab.index.json  params.index.json
    └── words.json                 how text becomes words

The scores are Lucene's (Kamphuis et al. 2020), k1 = 1.5, b = 0.75:
``sum over words w of the question: idf(w) tf / (tf + k1 (1 - b + b |passage| / mean length))``. Words are runs of letters
and digits, casefolded; nothing is stemmed, and each Chinese or Japanese character is a word, as in ``passage_words``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.errors import ConfigError, DataError, IndexMismatchError
from ragtrain.index.encode import MANIFEST_FILE, file_entry
from ragtrain.index.passages import _UNSPACED
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")

BM25_FOLDER = "bm25"
WORDS_FILE = "words.json"
HINT = "write it with `ragtrain index prepare --bm25`"
K1, B = 1.5, 0.75
#: Passages read at a time.
CHUNK = 4096
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words_of(text: str, leave_out: frozenset[str] = frozenset()) -> list[str]:
    """Return the words of a text, casefolded, without those to leave out."""
    words = _WORD.findall(text.casefold())
    return [word for word in words if word not in leave_out] if leave_out else words


class BM25Index:
    """The words of an index's passages, opened without reading their scores."""

    def __init__(self, retriever: Any, leave_out: frozenset[str]) -> None:  # noqa: ANN401 - bm25s has no types
        self._retriever, self._leave_out = retriever, leave_out
        self.count = int(retriever.scores["num_docs"])

    @classmethod
    def open(cls, folder: Path, manifest: Mapping[str, Any], hint: str = HINT) -> BM25Index:
        """Open the BM25 index of an index folder.

        Args:
            folder: of the index.
            manifest: of the index.
            hint: what to do where there is none.

        Raises:
            ConfigError: bm25s is not installed.
            DataError: it is missing or cannot be read.
            IndexMismatchError: it was made from other passages.
        """
        bm25s = import_bm25s()
        path = folder / BM25_FOLDER
        if not (path / WORDS_FILE).is_file():
            raise DataError("this index has no BM25 index", path=path, hint=hint)
        try:
            words = json.loads((path / WORDS_FILE).read_text(encoding="utf-8"))
            retriever = bm25s.BM25.load(path, mmap=True, load_corpus=False)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"no BM25 index: {error}", path=path, hint=hint) from error
        if words["passages_sha256"] != manifest["passages_sha256"] or retriever.scores["num_docs"] != manifest["count"]:
            raise IndexMismatchError("was made from other passages than the index holds", path=path, hint=hint)
        return cls(retriever, frozenset(words["leave_out"]))

    @classmethod
    def of(cls, passages: Iterable[Passage]) -> BM25Index:
        """Return the index of some passages, held in memory alone; where none has a word, nothing is found.

        Raises:
            ConfigError: bm25s is not installed.
        """
        ids, vocabulary = _numbered(passages, frozenset(), None)
        retriever = _retriever(import_bm25s())
        with np.errstate(invalid="ignore"):  # the mean length of passages without words
            retriever.index((ids, vocabulary or {"": 0}), create_empty_token=False, show_progress=False)
        return cls(retriever, frozenset())

    def scores(self, question: str) -> np.ndarray:
        """Return (count,) float32 BM25 scores; 0 where a passage shares no word with the question."""
        vocabulary = self._retriever.vocab_dict
        known = [vocabulary[word] for word in words_of(question, self._leave_out) if word in vocabulary]
        if not known:
            return np.zeros(self.count, dtype=np.float32)
        scores: np.ndarray = self._retriever.get_scores_from_ids(known)
        return scores

    def search(self, questions: Sequence[str], n_docs: int) -> np.ndarray:
        """Return (batch, n_docs) int64 positions by falling score, then rising position.

        Only passages that share a word with the question are found; the other places hold -1.
        """
        found = np.full((len(questions), n_docs), -1, dtype=np.int64)
        for row, question in enumerate(questions):
            best = highest(self.scores(question), min(n_docs, self.count))
            found[row, : len(best)] = best
        return found


def highest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the k highest scores above 0, best first; equal scores by position."""
    least = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: k - len(above)] if least > 0 else np.empty(0, dtype=np.int64)
    chosen = np.concatenate([above[scores[above] > 0], equal])
    return chosen[np.lexsort((chosen, -scores[chosen]))]


def add_bm25(
    folder: Path,
    manifest: Mapping[str, Any],
    passages: Iterable[Passage],
    *,
    stopwords: bool = False,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Write the BM25 index of a finished index folder and return the new manifest.

    The words of all passages are held in memory while it is written: some 4 bytes a word, then 12 for each different word
    of a passage.

    Args:
        folder: of the index.
        manifest: of the index.
        passages: those of the index, in order.
        stopwords: leave out the commonest English words (bm25s' list).
        progress: called with the number of passages read, now and then.

    Raises:
        ConfigError: bm25s is not installed.
        DataError: no passage has a word.
    """
    bm25s = import_bm25s()
    leave_out = frozenset(bm25s.stopwords.STOPWORDS_EN) if stopwords else frozenset()
    ids, vocabulary = _numbered(passages, leave_out, progress)
    if not vocabulary:
        raise DataError("no passage has a word to search for", path=folder)
    retriever = _retriever(bm25s)
    log.info("scoring %d words in %d passages", len(vocabulary), len(ids))
    retriever.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    aside = folder / f".{BM25_FOLDER}.tmp-{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        retriever.save(aside, show_progress=False)
        write_json(aside / WORDS_FILE, {"leave_out": sorted(leave_out), "passages_sha256": manifest["passages_sha256"]})
        shutil.rmtree(folder / BM25_FOLDER, ignore_errors=True)
        aside.replace(folder / BM25_FOLDER)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    files = {name: entry for name, entry in manifest["files"].items() if not name.startswith(f"{BM25_FOLDER}/")}
    for file in sorted((folder / BM25_FOLDER).iterdir()):
        files[f"{BM25_FOLDER}/{file.name}"] = file_entry(file)
    about = {"library": f"bm25s {bm25s.__version__}", "method": "lucene", "k1": K1, "b": B, "words": len(vocabulary)}
    changed = {**manifest, "files": files, "bm25": {**about, "stopwords": stopwords}}
    write_json(folder / MANIFEST_FILE, changed)
    return changed


def _numbered(
    passages: Iterable[Passage], leave_out: frozenset[str], progress: Callable[[int], object] | None
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Return each passage's words, title first, as int32 numbers, and the number of each word."""
    vocabulary: dict[str, int] = {}
    ids: list[np.ndarray] = []
    for passage in passages:
        words = words_of(f"{passage.title} {passage.text}", leave_out)
        ids.append(np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], dtype=np.int32))
        if progress is not None and len(ids) % CHUNK == 0:
            progress(CHUNK)
    if progress is not None:
        progress(len(ids) % CHUNK)
    return ids, vocabulary


def _retriever(bm25s: Any) -> Any:  # noqa: ANN401 - the module has no types
    return bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy", csc_backend="numpy")


def import_bm25s() -> Any:  # noqa: ANN401 - the module has no types
    """Return the bm25s module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import bm25s
        import bm25s.stopwords
    except ImportError as error:
        raise ConfigError("bm25s is not installed", hint="pip install bm25s, or retrieve with vectors only") from error
    return bm25s
