"""A store of memory vectors: how it lies on the disk, and how it is read.

::

    STORE/
    ├── manifest.json             written last: a store without it is not finished
    ├── shard-00000.safetensors   of some passages, one after the other:
    │       vectors  (vectors, width) float16, or int8
    │       scales   (vectors,) float32, of int8: what a whole number counts
    │       offsets  (passages + 1,) int64 vectors before each passage
    │       tokens   (passages,) int32 tokens of each that the compressor read
    ├── ids.safetensors           hashes (passages,) int64 ascending, places (passages,) int64: where an id stands
    ├── passages.jsonl, .idx.npy  the passages themselves, unless those of an index serve
    └── shards.jsonl, work.json   from where a stopped command goes on

Nothing is read when it is opened but the manifest; of the vectors, only those that are asked for (safetensors maps its files).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ragtrain.errors import DataError, IndexMismatchError
from ragtrain.index.passages import PassageStore
from ragtrain.index.search import DenseIndex
from ragtrain.models.compress.export import COMPRESSOR, HEADS
from ragtrain.models.folders import local_folder
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.records import Passage

MANIFEST_FILE, IDS_FILE, SHARDS_FILE, WORK_FILE = "manifest.json", "ids.safetensors", "shards.jsonl", "work.json"
FORMAT, VERSION = "ragtrain-memory", 1
HINT = "write it with `ragtrain index compress`"


def shard_name(number: int) -> str:
    """Return the file of a shard."""
    return f"shard-{number:05d}.safetensors"


def id_hash(identifier: str) -> int:
    """Return 64 bits of an id, the same in every process."""
    digest = hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def model_mark(folder: Path) -> str:
    """Return the hash of all weights that decide vectors: compressor, memory tokens, connector."""
    files = [*sorted((folder / COMPRESSOR).glob("*.safetensors")), folder / HEADS]
    return hashlib.sha256("".join(sha256_file(file) for file in files).encode()).hexdigest()


class MemoryStore:
    """The memory vectors of a corpus, by passage id or by position.

    Threads may share a store; a process that gets a pickled one opens its own.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        width: numbers in a vector.
        rate: tokens for each vector.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a store without reading vectors.

        Raises:
            DataError: it is none, is not finished, or a file is missing or was cut.
        """
        self.path = Path(path)
        self.manifest = _manifest(self.path)
        self.width, self.rate = int(self.manifest["width"]), int(self.manifest["rate"])
        for name, entry in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                raise DataError("this file of the store is missing or was cut", path=file, hint=HINT)
        self._starts = np.array([entry["passages"][0] for entry in self.manifest["shards"]], dtype=np.int64)
        self._open: dict[int, Any] = {}
        self._ids: tuple[np.ndarray, np.ndarray] | None = None
        self._passages: Sequence[Passage] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        MemoryStore.__init__(self, state["path"])

    def __len__(self) -> int:
        return int(self.manifest["count"])

    def __contains__(self, identifier: object) -> bool:
        return isinstance(identifier, str) and self._place(identifier) is not None

    def vectors(self, ids: Sequence[str]) -> list[np.ndarray]:
        """Return the (vectors, width) float32 memory of each passage.

        Raises:
            DataError: there is no passage of that id, or a file was changed.
        """
        return self.at(self.places(ids))

    def at(self, places: Sequence[int]) -> list[np.ndarray]:
        """Return the (vectors, width) float32 memory of the passages at positions."""
        found: dict[int, np.ndarray] = {}
        for place in sorted(set(places)):  # neighbours lie in one file
            found[place] = self._vectors(place)
        return [found[place] for place in places]

    def places(self, ids: Sequence[str]) -> list[int]:
        """Return the positions of passages.

        Raises:
            DataError: there is no passage of that id.
        """
        places = [self._place(identifier) for identifier in ids]
        for identifier, place in zip(ids, places, strict=True):
            if place is None:
                raise DataError(f"there are no vectors of a passage {identifier!r}", path=self.path,
                                hint="compress the corpus that it stands in")  # fmt: skip
        return [place for place in places if place is not None]

    def counts(self, places: Sequence[int]) -> list[int]:
        """Return how many vectors passages at positions have, without reading these."""
        bounds = [self._bounds(place) for place in places]
        return [stop - start for _, start, stop in bounds]

    def tokens(self, places: Sequence[int]) -> list[int]:
        """Return how many tokens of passages at positions the compressor read."""
        found = []
        for place in places:
            number, row = self._shard(place)
            found.append(int(self._slice(number, "tokens", row, row + 1)[0]))
        return found

    @property
    def passages(self) -> Sequence[Passage]:
        """The passages, in the order of positions.

        Raises:
            DataError: the index that they stand in is not there any more.
            IndexMismatchError: that index holds others now.
        """
        if self._passages is None:
            index = self.manifest["passages"].get("index")
            if index is None:
                self._passages = PassageStore(self.path)
            else:
                held = DenseIndex.open(Path(index))
                if held.manifest["passages_sha256"] != self.manifest["passages"]["sha256"]:
                    raise IndexMismatchError(f"its passages are not those of the store {self.path}", path=index)
                self._passages = held.passages
        return self._passages

    def check_model(self, model_dir: Path | str) -> None:
        """See that the vectors come from this very compressor.

        Raises:
            ConfigError: there is no such model.
            IndexMismatchError: they come from another one.
        """
        folder = local_folder(model_dir, kind="model")
        if model_mark(folder) != self.manifest["model"]["sha256"]:
            raise IndexMismatchError(f"holds vectors of another compressor than {model_dir}", path=self.path,
                                     hint="compress the corpus again with this one (--overwrite)")  # fmt: skip

    def _place(self, identifier: str) -> int | None:
        if self._ids is None:
            with _opened(self.path / IDS_FILE) as file:
                self._ids = file.get_tensor("hashes"), file.get_tensor("places")
        hashes, places = self._ids
        wanted = id_hash(identifier)
        first = int(np.searchsorted(hashes, wanted))
        while first < len(hashes) and int(hashes[first]) == wanted:
            place = int(places[first])
            if self.passages[place].id == identifier:
                return place
            first += 1
        return None

    def _shard(self, place: int) -> tuple[int, int]:
        """Return the shard of a position, and the row in it."""
        if not 0 <= place < len(self):
            raise IndexError(f"passage {place} of {len(self)}")
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return number, place - int(self._starts[number])

    def _bounds(self, place: int) -> tuple[int, int, int]:
        number, row = self._shard(place)
        start, stop = self._slice(number, "offsets", row, row + 2)
        return number, int(start), int(stop)

    def _vectors(self, place: int) -> np.ndarray:
        number, start, stop = self._bounds(place)
        stored = self._slice(number, "vectors", start, stop).astype(np.float32)
        if self.manifest["storage"] == "int8":
            stored *= self._slice(number, "scales", start, stop)[:, None]
        return stored

    def _slice(self, number: int, name: str, start: int, stop: int) -> np.ndarray:
        if number not in self._open:
            self._open[number] = _opened(self.path / shard_name(number))
        part: np.ndarray = self._open[number].get_slice(name)[start:stop]
        return part


def _opened(file: Path) -> Any:  # noqa: ANN401 - safetensors has no types
    try:
        return safe_open(file, framework="np")
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot be read: {error}", path=file, hint=HINT) from error


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_FILE
    if not file.is_file():
        started = (path / WORK_FILE).is_file()
        what = "the store is not finished" if started else "there is no store of vectors here"
        raise DataError(what, path=path, hint="the command that wrote it goes on where it stopped" if started else HINT)
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and manifest["version"] <= VERSION
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not the description of a store: {error}", path=file, hint=HINT) from error
    if not known:
        raise DataError(f"is of format {manifest['format']} {manifest['version']}; expected {FORMAT} {VERSION}",
                        path=file, hint=HINT)  # fmt: skip
    return manifest
