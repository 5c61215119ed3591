"""Whether vectors are sound, and belong to their passages and to an encoder; and if not, what would fit.

All vectors are read once, in blocks: not finite, zero, equal and of one length. A sample of the passages is encoded
again: each must lie within a cosine of ``COSINE`` of its own vector, and nearer to it than to any other. Where it does
not, its vector is looked for at other places (the order), and other ways of encoding it are tried (pooling, format of
the passage, prompt, length); if neither fits, the encoder is another one.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragtrain import report
from ragtrain.errors import IndexMismatchError
from ragtrain.index.foreign import iter_blocks
from ragtrain.prepare.diagnose import Near, diagnose, unit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from ragtrain.models.encoder import TextEncoder
    from ragtrain.records import Passage

Status = Literal["ok", "warning", "failed", "not checked"]

#: Least cosine of a stored vector and the same passage encoded again; half precision leaves more than 0.999.
COSINE = 0.99
#: The same of vectors that lost something when they were stored.
LOSSY = 0.8
#: Share of the samples that may fit no vector while the others do, before the passages count as changed.
STRAY = 0.05
#: Share of vectors that may equal another one before it is worth a warning.
DUPLICATES = 0.01
#: Share by which lengths may differ and count as one length; halves of unit vectors differ by less.
LENGTH = 5e-3
ENCODE_AGAIN = "ragtrain index prepare --passages FILE --encoder ENCODER --output-dir FOLDER"


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at; a failed one is called by its name in the error."""

    name: str
    status: Status
    message: str
    hint: str | None = None


@dataclasses.dataclass(frozen=True)
class Verification:
    """All checks of an index, in order."""

    checks: tuple[Check, ...]

    def show(self, title: str = "Verification") -> None:
        """Show the checks as a table."""
        report.table(title, ["check", "result", "what was found"], [[c.name, c.status, c.message] for c in self.checks])

    def require(self, path: Path) -> None:
        """Refuse an index of which a check failed.

        Raises:
            IndexMismatchError: with the names of all checks that failed.
        """
        failed = [check for check in self.checks if check.status == "failed"]
        if failed:
            message = "; ".join(f"{check.name}: {check.message}" for check in failed)
            hints = dict.fromkeys(check.hint for check in failed if check.hint)
            raise IndexMismatchError(message, path=path, hint="\n".join(hints) or None)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        worst = {check.status for check in self.checks}
        status = "failed" if "failed" in worst else "warning" if "warning" in worst else "ok"
        return {"status": status, "checks": [dataclasses.asdict(check) for check in self.checks]}


@dataclasses.dataclass(frozen=True)
class Scan:
    """What reading all vectors once gave.

    Attributes:
        count: number of vectors.
        shortest, longest: least and greatest length among the finite, non-zero ones.
        not_finite, zero: positions of such vectors.
        duplicates: vectors that equal an earlier one.
        best, place: (samples,) greatest cosine of each sample with any vector, and where that is.
    """

    count: int
    shortest: float
    longest: float
    not_finite: np.ndarray
    zero: np.ndarray
    duplicates: int
    best: np.ndarray
    place: np.ndarray

    @property
    def unit(self) -> bool:
        """Whether all vectors have length one."""
        return abs(self.shortest - 1) < LENGTH and abs(self.longest - 1) < LENGTH

    @property
    def one_length(self) -> bool:
        """Whether all vectors have the same length: then distance and inner product rank alike."""
        return self.longest - self.shortest < LENGTH * self.longest


def scan(vectors: np.ndarray, samples: np.ndarray | None = None) -> Scan:
    """Read (count, dim) vectors once.

    Args:
        vectors: float16 or float32, in memory or mapped.
        samples: (samples, dim) unit vectors whose nearest by cosine is looked for.
    """
    queries = np.empty((0, vectors.shape[1]), np.float32) if samples is None else samples
    shortest, longest = np.inf, 0.0
    best, place = np.full(len(queries), -np.inf), np.full(len(queries), -1)
    hashes = np.empty(len(vectors), np.int64)
    not_finite, zero = [], []
    bar: report.Progress[None] = report.progress(len(vectors), "Reading vectors")
    with bar:
        for start, rows in iter_blocks(vectors):
            lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float32).astype(np.float64))
            bad = ~np.isfinite(lengths)
            if bad.any():  # of very long vectors only the square is not finite
                bad = ~np.isfinite(rows).all(axis=1)
                lengths = np.where(bad, np.nan, np.linalg.norm(rows.astype(np.float64), axis=1))
            sound = ~bad & (lengths > 0)
            not_finite.append(start + np.flatnonzero(bad))
            zero.append(start + np.flatnonzero(lengths == 0))
            if sound.any():
                shortest, longest = min(shortest, lengths[sound].min()), max(longest, lengths[sound].max())
            hashes[start : start + len(rows)] = _hashes(rows)
            if len(queries):
                _nearest(queries, rows, np.where(sound, lengths, np.inf), start, best, place)
            bar.advance(len(rows))
    hashes.sort()
    duplicates = int((hashes[1:] == hashes[:-1]).sum())
    return Scan(
        len(vectors), float(shortest), float(longest), np.concatenate(not_finite), np.concatenate(zero), duplicates,
        best, place,
    )  # fmt: skip


def _hashes(rows: np.ndarray) -> np.ndarray:
    content, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    view = memoryview(content)
    return np.fromiter((hash(view[at : at + width]) for at in range(0, len(content), width)), np.int64, len(rows))


def _nearest(
    queries: np.ndarray, rows: np.ndarray, lengths: np.ndarray, start: int, best: np.ndarray, place: np.ndarray
) -> None:
    """Update, in place, the greatest cosines (samples,) and their positions by a block of rows."""
    cosines = np.nan_to_num((queries @ rows.T) / lengths, nan=-np.inf)
    nearest = cosines.argmax(axis=1)
    values = cosines[np.arange(len(queries)), nearest]
    better = values > best
    best[better], place[better] = values[better], start + nearest[better]


@dataclasses.dataclass(frozen=True)
class Subject:
    """Vectors with what they are said to be.

    Attributes:
        vectors: (count, dim), float16 or float32.
        passages: as many, in the same order.
        metric: what the index ranks by, where it says.
        auxiliary: a further column makes distances of inner products (DPR).
        loss: what was lost when the vectors were stored.
        unit_needed: scores are cosines, for which vectors must have length one.
    """

    vectors: np.ndarray
    passages: Sequence[Passage]
    metric: Literal["inner_product", "l2"] | None = None
    auxiliary: bool = False
    loss: str | None = None
    unit_needed: bool = False


def verify(
    subject: Subject, encoder: TextEncoder | None, *, samples: int, device: torch.device, batch_size: int = 32
) -> tuple[Verification, Scan]:
    """Check vectors, and, with an encoder, their order and the encoder itself.

    Args:
        subject: vectors and passages, of equal number.
        encoder: what the passages are said to be encoded with; of the same dimension.
        samples: passages encoded again.
        device: where they are.
        batch_size: passages encoded at a time.
    """
    count = len(subject.vectors)
    rows = np.sort(np.random.default_rng(0).choice(count, min(samples, count), replace=False))
    pairs = [(passage.title, passage.text) for passage in (subject.passages[int(row)] for row in rows)]
    if encoder is None or not len(rows):
        found = scan(subject.vectors)
        checks = [*soundness(subject, found), Check("order and encoder", "not checked", "no passage was encoded again")]
        return Verification(tuple(checks)), found
    encoded = encoder.encode_passages(pairs, batch_size=batch_size, device=device)
    found = scan(subject.vectors, unit(encoded))
    checks = soundness(subject, found)
    stored = np.array(subject.vectors[rows], dtype=np.float32)
    own = (unit(encoded) * unit(stored)).sum(axis=1)
    # The nearest vector is another one, and so much nearer that rounding is no reason.
    least = LOSSY if subject.loss else COSINE
    elsewhere = (found.best >= least) & (1 - own > 10 * (1 - found.best) + 1e-6) & (found.place != rows)
    failing = (own < least) | elsewhere | ~np.isfinite(own)
    retrieved = float(np.mean(found.best - own <= 1e-4))
    seen = f"{len(rows)} passages encoded again: cosine {np.median(own):.4f} (least {own.min():.4f}) with their vectors"
    if failing.any():
        checks.append(_misfit(subject, encoder, rows, failing, found, device=device))
    else:
        checks += [Check("order and encoder", "ok", seen), _lengths(encoder, encoded, stored)]
    status: Status = "ok" if retrieved == 1 else "warning" if failing.any() or retrieved >= 0.5 else "failed"
    if not failing.any() or retrieved < 1:
        what = f"{retrieved:.1%} of the sampled passages find their own vector first among all {count:,}"
        checks.append(Check("self-retrieval@1", status, what, _ORDER_OR_ENCODER if status == "failed" else None))
    return Verification(tuple(checks)), found


_ORDER_OR_ENCODER = "check that the passages are in the order of the vectors, and that the encoder is theirs"


def _misfit(
    subject: Subject, encoder: TextEncoder, rows: np.ndarray, failing: np.ndarray, found: Scan, *, device: torch.device
) -> Check:
    near = Near(rows[failing], found.best[failing], found.place[failing], LOSSY if subject.loss else COSINE)
    name, message, hint = diagnose(encoder, subject.vectors, subject.passages, near, device=device)
    share = float(failing.mean())
    if name == "wrong encoder" and share < 0.5:
        message = f"{failing.sum()} of {len(rows)} sampled passages fit no vector, the others fit: {message}"
        hint = "their texts were changed after they were encoded; encode the passages again, or give the former ones"
        return Check("changed passages", "warning" if share <= STRAY else "failed", message, hint)
    return Check(name, "failed", f"{failing.sum()} of {len(rows)} sampled passages do not fit: {message}", hint)


def _lengths(encoder: TextEncoder, encoded: np.ndarray, stored: np.ndarray) -> Check:
    """Compare the lengths of encoded and stored vectors: normalising changes no cosine."""
    ratio = float(np.median(np.linalg.norm(stored, axis=1) / np.linalg.norm(encoded, axis=1)))
    if abs(ratio - 1) < 0.02:
        return Check("lengths", "ok", "stored vectors are as long as encoded ones")
    unit_stored = bool(np.all(np.abs(np.linalg.norm(stored, axis=1) - 1) < LENGTH))
    if unit_stored and not encoder.spec().get("normalize"):
        what = f"stored vectors have length 1, the encoder's {1 / ratio:.3g}"
        return Check("encoder settings", "failed", what, "these vectors were scaled to unit length: add --normalize")
    if encoder.spec().get("normalize"):
        what = f"stored vectors are {ratio:.3g} long, the encoder's 1"
        return Check("encoder settings", "failed", what, "these vectors were not scaled: add --no-normalize")
    what = f"stored vectors are {ratio:.3g} times as long as encoded ones; their order is the same"
    return Check("lengths", "warning", what, "scores are scaled alike; --score-temperature can undo it in training")


def soundness(subject: Subject, found: Scan) -> list[Check]:
    """Return the checks of what a scan found."""
    checks = []
    for name, rows, what in (("not finite", found.not_finite, "NaN or infinity"), ("zero", found.zero, "nothing")):
        if len(rows):
            row = int(rows[0])
            message = (
                f"{len(rows):,} of {found.count:,} vectors hold {what}; the first is number {row}, of passage "
                f"{subject.passages[row].id!r}"
            )
            checks.append(Check(name, "failed", message, f"encode the passages again: {ENCODE_AGAIN}"))
    if not checks:
        checks.append(Check("numbers", "ok", f"all {found.count:,} vectors are finite and not zero"))
    share = found.duplicates / found.count
    message = f"{found.duplicates:,} vectors ({share:.1%}) equal an earlier one"
    hint = "equal passages take each other's place among the n_docs; remove them where the corpus has them twice"
    checks.append(Check("duplicates", "warning" if share > DUPLICATES else "ok", message, hint))
    checks.append(_metric(subject, found))
    if subject.loss:
        message = f"{subject.loss}; what is adopted are reconstructions of the vectors"
        checks.append(Check("lossy vectors", "warning", message, f"for exact vectors encode again: {ENCODE_AGAIN}"))
    return checks


def _metric(subject: Subject, found: Scan) -> Check:
    lengths = f"lengths from {found.shortest:.4g} to {found.longest:.4g}"
    if subject.unit_needed and not found.unit:
        return Check("metric", "failed", f"scores are cosines, and the vectors have {lengths}", ENCODE_AGAIN)
    if subject.metric != "l2":
        return Check("metric", "ok", f"inner product; {lengths}")
    if subject.auxiliary:
        return Check("metric", "ok", f"L2 with DPR's auxiliary dimension, which is inner product without it; {lengths}")
    if found.one_length:
        return Check("metric", "ok", f"L2 of vectors of one length ranks as inner product does; {lengths}")
    return Check(
        "L2 for inner product", "failed",
        f"the index ranks by Euclidean distance, which is another order than that of inner products: {lengths}",
        "build the faiss index again with METRIC_INNER_PRODUCT (IndexFlatIP); if only the index's metric was left at "
        "faiss's default, save its vectors with np.save('vectors.npy', index.reconstruct_n()) and adopt that file",
    )  # fmt: skip
