"""An index that follows the passage encoder in training.

Every ``refresh_steps`` all passages are encoded anew, each process taking its share, and searched from then on. The
vectors are kept in the run folder, so that a run that is resumed searches what it searched before::

    RUN/index/vectors-000500.npy    the vectors since step 500
    RUN/index/manifest.json, …      at the end: the index of the final model

Between two refreshes the searched vectors are old; which of the passages found are read, and with what scores, is
decided by fresh ones (``ragtrain.train.rag.lookup``).
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather

from ragtrain import loop
from ragtrain.index.bm25 import add_bm25
from ragtrain.index.encode import MANIFEST_FILE, VECTORS_FILE, file_entry
from ragtrain.index.exact import longest
from ragtrain.index.passages import OFFSETS_FILE, PASSAGES_FILE
from ragtrain.loop.checkpoints import find
from ragtrain.prepare import encode_again
from ragtrain.records import write_json
from ragtrain.runs import is_main_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ragtrain.index.search import DenseIndex
    from ragtrain.models.rag import RagModel
    from ragtrain.retrieve import Retriever
    from ragtrain.runs import RunFolder

log = logging.getLogger("ragtrain")

#: Passages read at a time.
CHUNK = 2048
#: Refreshes whose vectors are kept.
KEPT = 2


class IndexRefresh:
    """Keeps the searched vectors of a run up with its passage encoder."""

    def __init__(self, run: RunFolder, retriever: Retriever, model: RagModel, every: int) -> None:
        """Prepare to refresh.

        Args:
            run: whose folder keeps the vectors.
            retriever: whose searcher is given new ones.
            model: with the passage encoder that is trained, on its device.
            every: steps between two refreshes.
        """
        if model.passage_encoder is None:
            raise ValueError("the model has no passage encoder")
        self.run, self.retriever, self.model, self.every = run, retriever, model, every
        self.encoder = model.passage_encoder
        self.folder = run.path / "index"
        self._searched: np.ndarray = retriever.index.vectors

    def start(self, resume: str) -> None:
        """Search what a run that begins, or goes on from a checkpoint, has to search; before the first step.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        checkpoint = find(self.run.checkpoints, resume)
        step = 0 if checkpoint is None else checkpoint.state.step
        due = step // self.every * self.every
        kept = self._vectors(due)
        if is_main_process():  # what comes after belongs to steps that are done again
            for old in self._kept():
                if self._step(old) > due:
                    old.unlink()
        if due == 0:
            if self.model.passage_fingerprint != self.retriever.index.manifest["encoder"].get("fingerprint"):
                log.info("the index was not made with this passage encoder: it is encoded anew before the first step")
                self._search(self._encode(), 0)
        elif kept.is_file():
            self._search(np.load(kept), None)
        elif checkpoint is not None:
            if step != due:
                log.warning("%s is gone: the index is encoded with the weights of step %d instead", kept, step)
            loop.load_weights(self.model, checkpoint.path)
            self._search(self._encode(), due)

    def after(self, step: int) -> None:
        """Refresh where this step is one after which that is due."""
        if step % self.every == 0:
            self._search(self._encode(), step)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Search with vectors of the passage encoder as it is now; afterwards with those from before."""
        before = self._searched
        self._search(self._encode(), None)
        try:
            yield
        finally:
            self._search(before, None)

    def finish(self) -> Path:
        """Write the index of the final model, which is in the run folder already, and return its folder."""
        vectors = self._encode()
        if not is_main_process():
            return self.folder
        index = self.retriever.index
        self.folder.mkdir(exist_ok=True)
        aside = self.folder / f".{VECTORS_FILE}.tmp-{os.getpid()}"
        with aside.open("wb") as file:
            np.save(file, vectors)
        aside.replace(self.folder / VECTORS_FILE)
        files = self._share_passages(index)
        files[VECTORS_FILE] = file_entry(self.folder / VECTORS_FILE)
        encoder = {
            **index.manifest["encoder"],
            "name": str((self.run.final_model / "passage_encoder").resolve()),
            "fingerprint": self.encoder.fingerprint(),
            "question_encoder": str((self.run.final_model / "question_encoder").resolve()),
        }
        manifest = {
            **index.manifest,
            "storage": str(vectors.dtype),
            "max_norm": longest(vectors),
            "vectors_sha256": files[VECTORS_FILE]["sha256"],
            "encoder": encoder,
            "files": files,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        for key in ("ann", "vectors"):
            manifest.pop(key, None)
        write_json(self.folder / MANIFEST_FILE, manifest)
        if self.retriever.words is not None:  # what chose passages in training has to choose them afterwards
            places = range(0, index.count, CHUNK)
            add_bm25(self.folder, manifest, (p for i in places for p in index.passages[i : i + CHUNK]))
        for old in self._kept():
            old.unlink()
        log.info("the final model's index is in %s", self.folder)
        return self.folder

    def _share_passages(self, index: DenseIndex) -> dict[str, Any]:
        """Give the folder the index's passages, without a copy where the file system can; return their entries."""
        files: dict[str, Any] = {}
        held = index.manifest.get("passages")
        for name, entry in index.manifest["files"].items():
            if held is not None and name == held["file"]:  # another tool's file stays where it is
                files[name] = {**entry, "path": str(index.file(name).resolve())}
            elif name in (PASSAGES_FILE, OFFSETS_FILE):
                files[name] = entry
                (self.folder / name).unlink(missing_ok=True)
                try:
                    os.link(index.file(name), self.folder / name)
                except OSError:
                    shutil.copyfile(index.file(name), self.folder / name)
        return files

    def _encode(self) -> np.ndarray:
        """Return (count, dim) vectors of all passages in the index's precision; each process encodes its share."""
        state, index = PartialState(), self.retriever.index
        share = -(-index.count // state.num_processes)
        first = min(state.process_index * share, index.count)
        last = min(first + share, index.count)
        mine = encode_again(self.encoder, index, state.device, range(first, last), "Refreshing the index")
        if state.num_processes == 1:
            return mine
        # Shares are gathered at one length.
        mine = np.concatenate([mine, np.zeros((share - len(mine), index.dim), dtype=mine.dtype)])
        everything: np.ndarray = gather(torch.from_numpy(mine).to(state.device)).cpu().numpy()
        return everything[: index.count]

    def _search(self, vectors: np.ndarray, step: int | None) -> None:
        """Search these vectors from now on, and keep them as those of a step."""
        self.retriever.searcher.replace(vectors)
        self._searched = vectors
        if step is None or not is_main_process():
            return
        self.folder.mkdir(exist_ok=True)
        aside = self.folder / f".refresh.tmp-{os.getpid()}"
        with aside.open("wb") as file:
            np.save(file, vectors)
        aside.replace(self._vectors(step))
        for old in self._kept()[:-KEPT]:
            old.unlink()
        log.info("step %d: the index was refreshed (%d passages)", step, len(vectors))

    def _vectors(self, step: int) -> Path:
        return self.folder / f"vectors-{step:06d}.npy"

    def _kept(self) -> list[Path]:
        return sorted(self.folder.glob("vectors-*.npy"), key=self._step)

    @staticmethod
    def _step(path: Path) -> int:
        return int(path.stem.rpartition("-")[2])
