"""Passages in a generator's tokens, tokenised once and read through a memory map.

A store is a folder beside the index, ``INDEX/tokens-FINGERPRINT/``, where the fingerprint is that of the tokenizer
and of the way in which a passage is written (``ragtrain.data.prompts.passage_string``)::

    tokens.bin     all tokens, passage after passage, uint16 where the vocabulary allows it and uint32 elsewhere
    offsets.npy    (count + 1,) int64, where each passage's tokens begin
    meta.json      how many passages and tokens, of which passages and which tokenizer
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import report
from ragtrain.data import caches
from ragtrain.data.prompts import bare_ids, passage_string
from ragtrain.errors import DataError
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ragtrain.data.prompts import Layout
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")

TOKENS_FILE = "tokens.bin"
OFFSETS_FILE = "offsets.npy"
META_FILE = "meta.json"
FORMAT = "ragtrain-tokens"
#: Raised whenever `passage_string` changes, so that stores of before are not taken for stores of now.
VERSION = 1
BATCH = 2048


def tokenizer_fingerprint(tokenizer: Any, *, leading_space: bool = False) -> str:  # noqa: ANN401
    """Return 16 hexadecimal digits that change with anything that changes a passage's tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # What the last call asked for, not what the tokenizer is.
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    whole = json.dumps([VERSION, leading_space, state], sort_keys=True)
    return hashlib.sha256(whole.encode("utf-8", errors="replace")).hexdigest()[:16]


class TokenStore:
    """Tokens of passages by position: ``title / text`` each, without special tokens."""

    def __init__(self, folder: Path, meta: dict[str, Any], tokens: np.ndarray, offsets: np.ndarray) -> None:
        self.folder, self.meta = folder, meta
        self._tokens, self._offsets = tokens, offsets

    @classmethod
    def for_index(
        cls,
        index_path: Path | str,
        passages: Iterable[Passage],
        tokenizer: Any,  # noqa: ANN401
        *,
        layout: Layout | None = None,
        passages_sha256: str = "",
    ) -> TokenStore:
        """Open the store of an index for a tokenizer; build it first where it is missing or of other passages.

        Several processes may call this at once: one builds under a file lock, the others wait for it. Beside an index
        that cannot be written to, the store goes to the user's cache folder.

        Args:
            index_path: the index folder.
            passages: its passages, in order.
            tokenizer: the generator's tokenizer.
            layout: how inputs are put together; matters where it has a prefix.
            passages_sha256: of the index's manifest; a store of other passages is built again.
        """
        leading_space = layout is not None and layout.leading_space
        fingerprint = tokenizer_fingerprint(tokenizer, leading_space=leading_space)
        beside = caches.writable_folder(Path(index_path), passages_sha256, "the passages' tokens")
        folder = beside / f"tokens-{fingerprint}"
        with caches.locked(folder, "tokenises the passages"):
            store = _usable(folder, passages_sha256)
            if store is None:
                store = cls.build(
                    passages, tokenizer, folder, leading_space=leading_space, passages_sha256=passages_sha256
                )
        return store

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        tokenizer: Any,  # noqa: ANN401
        folder: Path | str,
        *,
        leading_space: bool = False,
        passages_sha256: str = "",
    ) -> TokenStore:
        """Tokenise passages into a folder, written aside and then renamed; a store that stands there is replaced.

        Raises:
            DataError: there is no passage.
        """
        folder = Path(folder)
        with caches.written_aside(folder) as aside:
            # Not the vocabulary's size: added tokens may lie beyond it.
            largest = max(tokenizer.get_vocab().values())
            dtype = np.dtype(np.uint16 if largest < 2**16 else np.uint32)
            offsets = _write_tokens(aside / TOKENS_FILE, passages, tokenizer, dtype, " " if leading_space else "")
            if len(offsets) < 2:
                raise DataError("there is no passage to tokenise")
            np.save(aside / OFFSETS_FILE, offsets)
            meta: dict[str, Any] = {
                "format": FORMAT, "version": VERSION, "count": len(offsets) - 1, "tokens": int(offsets[-1]),
                "dtype": dtype.name, "tokenizer": str(tokenizer.name_or_path), "leading_space": leading_space,
                "passages_sha256": passages_sha256,
            }  # fmt: skip
            write_json(aside / META_FILE, meta)
        log.info("tokenised %d passages into %s: %.1f tokens each", meta["count"], folder,
                 meta["tokens"] / meta["count"])  # fmt: skip
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path | str) -> TokenStore:
        """Open a store without reading its tokens.

        Raises:
            DataError: it is none, or its files do not fit each other.
        """
        folder = Path(folder)
        hint = "remove this folder; it is built again when it is needed"
        try:
            meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            offsets = np.load(folder / OFFSETS_FILE, allow_pickle=False)
            dtype, count, total = np.dtype(meta["dtype"]), int(meta["count"]), int(meta["tokens"])
            size = (folder / TOKENS_FILE).stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"no store of tokens: {error}", path=folder, hint=hint) from error
        if meta.get("format") != FORMAT or meta.get("version") != VERSION:
            raise DataError(f"no store of tokens of version {VERSION}", path=folder / META_FILE, hint=hint)
        if len(offsets) != count + 1 or int(offsets[-1]) != total or size != total * dtype.itemsize:
            raise DataError(
                f"has {size} bytes where {total} tokens take {total * dtype.itemsize}",
                path=folder / TOKENS_FILE, hint=hint,
            )  # fmt: skip
        # An empty file cannot be mapped. A plain view of the map is sliced much faster than the map itself.
        tokens = np.asarray(np.memmap(folder / TOKENS_FILE, dtype=dtype, mode="r")) if total else np.empty(0, dtype)
        return cls(folder, meta, tokens, offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(TokenStore.open(state["folder"]).__dict__)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(count,) int64 tokens of each passage."""
        return np.diff(self._offsets)

    def gather(self, ids: np.ndarray) -> list[np.ndarray]:
        """Return the tokens of the passages at ``ids`` (any shape, read in order); none for a negative id.

        Raises:
            IndexError: an id is not smaller than the number of passages.
        """
        flat = np.asarray(ids).ravel()
        if len(flat) and int(flat.max()) >= len(self):
            raise IndexError(f"passage {int(flat.max())} of {len(self)}")
        present = flat >= 0
        starts = np.where(present, self._offsets[flat * present], 0).tolist()
        ends = np.where(present, self._offsets[flat * present + 1], 0).tolist()
        return [self._tokens[start:end] for start, end in zip(starts, ends, strict=True)]


def _write_tokens(
    path: Path,
    passages: Iterable[Passage],
    tokenizer: Any,  # noqa: ANN401
    dtype: np.dtype[Any],
    before: str,
) -> np.ndarray:
    offsets = array("q", [0])
    shown = iter(report.progress(passages, "Tokenising passages"))
    with path.open("wb") as file:
        while batch := list(itertools.islice(shown, BATCH)):
            rows = bare_ids(tokenizer, [before + passage_string(passage.title, passage.text) for passage in batch])
            file.write(np.fromiter(itertools.chain.from_iterable(rows), dtype=dtype).tobytes())
            for row in rows:
                offsets.append(offsets[-1] + len(row))
    return np.array(offsets, dtype=np.int64)


def _usable(folder: Path, passages_sha256: str) -> TokenStore | None:
    if not folder.exists():
        return None
    try:
        store = TokenStore.open(folder)
    except DataError as error:
        log.warning("%s; it is built again", error)
        return None
    if store.meta.get("passages_sha256") != passages_sha256:
        log.info("%s holds the tokens of other passages; it is built again", folder)
        return None
    return store
