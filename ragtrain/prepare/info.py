"""``ragtrain index info``: what an index or graph folder or file is, how it was made, whether it is whole, what to do next."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import report
from ragtrain.errors import DataError
from ragtrain.index.encode import MANIFEST_FILE
from ragtrain.index.foreign import find, read_vectors
from ragtrain.index.search import DenseIndex, read_manifest
from ragtrain.prepare.graph import info as graph_info
from ragtrain.prepare.verify import Check, Subject, Verification, scan, soundness
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.config.commands import InfoConfig
    from ragtrain.index.foreign import ForeignVectors, Found

log = logging.getLogger("ragtrain")

#: Bytes of vectors up to which they are read: a few seconds.
READ = 2**31


@dataclasses.dataclass(frozen=True)
class InfoResult:
    """What there is to say of an index; ``checks`` says whether it is whole."""

    path: Path
    facts: dict[str, Any]
    checks: dict[str, Any]
    next_step: str

    @property
    def exit_code(self) -> int:
        """3 (data) where a check failed."""
        return DataError.exit_code if self.checks["status"] == "failed" else 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"path": str(self.path), **self.facts, "verification": self.checks, "next_step": self.next_step}


def info(config: InfoConfig) -> InfoResult:
    """Explain an index or a knowledge graph, of ours or of another tool.

    Raises:
        DataError: there is none, or a file is missing, cut, or of a kind that is refused.
    """
    path = config.index_path
    folder = path.parent if path.is_file() else path
    if graph_info.is_graph(path):
        explained = graph_info.explain(path)
        result = InfoResult(path, explained.facts, explained.checks, explained.next_step)
    elif (folder / MANIFEST_FILE).is_file():
        result = _ours(DenseIndex.open(path), check_hashes=config.check_hashes)
    else:
        result = _foreign(path)
    report.panel(
        f"{'Graph' if graph_info.is_graph(path) else 'Index'} {path}",
        [(key.replace("_", " "), _shown(value)) for key, value in result.facts.items()],
    )
    Verification(tuple(Check(**check) for check in result.checks["checks"])).show()
    report.panel("Next", [("run", result.next_step)])
    return result


def _ours(index: DenseIndex, *, check_hashes: bool) -> InfoResult:
    manifest = read_manifest(index.path)
    source, encoder = manifest.get("source", {}), manifest["encoder"]
    adopted = source.get("adopted")
    name = "unknown" if encoder.get("unknown") else encoder.get("name") or "built-in demo encoder"
    spec = encoder.get("spec", {})
    facts: dict[str, Any] = {
        "kind": f"adopted: {adopted['kind']}" if adopted else "index of ragtrain",
        "count": index.count, "dimensions": index.dim, "metric": index.metric, "precision": str(index.vectors.dtype),
        "encoder": name, "encoder_fingerprint": encoder.get("fingerprint"),
        "encoder_settings": {key: spec[key] for key in ("model_class", "pooling", "normalize", "passage_format",
                                                        "passage_prompt", "max_tokens") if key in spec},
        "splitting": manifest.get("splitting") or None,
        "source": source.get("path"), "source_format": source.get("format"), "source_passages": source.get("passages"),
        "vectors_at": str(index.file(manifest["vectors"]["file"])) if adopted else "vectors.npy",
        "files": {file: entry["size"] for file, entry in manifest["files"].items()},
        "approximate_index": _approximate(manifest), "bm25": any(file.startswith("bm25/") for file in manifest["files"]),
        "created": manifest.get("created"), "versions": manifest.get("versions"),
    }  # fmt: skip
    checks = [Check("files", "ok", f"all {len(manifest['files'])} files are there, in their size")]
    checks.append(_hashes(index) if check_hashes else Check("hashes", "not checked", "--check-hashes reads every file"))
    if index.vectors.nbytes <= READ:
        loss = adopted["loss"] if adopted else None
        subject = Subject(index.vectors, index.passages, loss=loss, unit_needed=index.metric == "cosine")
        checks += soundness(subject, scan(index.vectors))
    else:
        checks.append(Check("numbers", "not checked", "the vectors take more than 2 GiB and were not read"))
    earlier = {check["name"]: check for check in manifest.get("verification", {}).get("checks", [])}
    for name in ("order and encoder", "self-retrieval@1"):
        if name in earlier:
            checks.append(Check(**{**earlier[name], "message": f"when it was adopted: {earlier[name]['message']}"}))
    flag = shlex.quote(str(index.path))
    step = f"ragtrain train rag --index-path {flag} --train-data QUESTIONS"
    return InfoResult(index.path, facts, Verification(tuple(checks)).to_json(), step)


def _hashes(index: DenseIndex) -> Check:
    changed = [
        name for name, entry in index.manifest["files"].items() if sha256_file(index.file(name)) != entry["sha256"]
    ]
    if changed:
        hint = "the file was changed after the index was made; prepare the index again"
        return Check("hashes", "failed", f"{', '.join(changed)}: not what was written", hint)
    return Check("hashes", "ok", "every file has the SHA-256 that the manifest says")


def _approximate(manifest: dict[str, Any]) -> dict[str, Any] | None:
    made = manifest.get("ann")
    if made:
        return {key: made[key] for key in ("type", "settings", "recall", "ms_per_query") if key in made}
    adopted = manifest.get("source", {}).get("adopted")
    if adopted and "index.faiss" in manifest["files"]:
        return {"type": adopted["kind"], "recall": "not measured"}
    return {"type": "flat"} if "index.faiss" in manifest["files"] else None


def _foreign(path: Path) -> InfoResult:
    found = find(path)
    passages = found.passages()
    count = None if passages is None or found.kind not in ("memmap", "atlas") else _count(passages)
    vectors = read_vectors(found, passages=count, dim=None)
    facts: dict[str, Any] = {
        "kind": f"index of another tool, not adopted: {vectors.kind}", "file": str(vectors.path),
        "count": vectors.count, "dimensions": vectors.width, "metric": vectors.metric or "not said",
        "precision": vectors.dtype, "loss": vectors.loss,
        "read_where_it_is": vectors.place is not None,
        "own_ids": None if vectors.ids is None else f"{len(vectors.ids):,}, not the positions",
        "passages": str(passages) if passages else "none beside it", "ids_file": _text(found.ids()),
        "bytes": vectors.path.stat().st_size if vectors.path.is_file() else None,
    }  # fmt: skip
    checks = [Check("file", "ok", "its vectors are whole"), *_sound(vectors)]
    return InfoResult(path, facts, Verification(tuple(checks)).to_json(), _command(path, found, passages))


def _sound(vectors: ForeignVectors) -> list[Check]:
    if vectors.place is None or vectors.count * vectors.place.row_bytes > READ:
        return [Check("numbers", "not checked", "adoption reads the vectors")]
    array = vectors.place.open(vectors.path, vectors.count)
    return soundness(Subject(array, _Numbers(), vectors.metric, loss=vectors.loss), scan(array))


class _Numbers(list[Any]):
    """Stands for passages that were not read: each is called by its number."""

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        from ragtrain.records import Passage

        return Passage(str(index), "", "")


def _count(passages: Path) -> int | None:
    if passages.is_dir() or passages.suffix not in (".jsonl", ".tsv"):
        return None
    from ragtrain.index.foreign import line_offsets

    return len(line_offsets(passages, skip=int(passages.suffix == ".tsv"))) - 1


def _command(path: Path, found: Found, passages: Path | None) -> str:
    words = ["ragtrain", "index", "prepare", "--index-path", str(path)]
    words += ["--passages", str(passages) if passages else "PASSAGES_FILE", "--encoder", "ENCODER"]
    ids = found.ids()
    return shlex.join([*words, *(["--ids-file", str(ids)] if ids else [])])


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _shown(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f"{value:,}"
    return value
