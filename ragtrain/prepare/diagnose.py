"""What is wrong with vectors that their passages, encoded again, do not fit: the order, the settings, or the encoder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np

from ragtrain.config.commands import EncoderConfig
from ragtrain.errors import RagtrainError
from ragtrain.index.foreign import iter_blocks
from ragtrain.models.encoder import TextEncoder, load_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from ragtrain.models.folders import EncoderSpec
    from ragtrain.records import Passage

#: Passages that other ways of encoding are tried on.
TRIED = 16
#: Cosine from which no better way is looked for.
SURE = 0.9995
LENGTHS = (128, 256, 512)
PROMPTS = ("", "passage: ")
#: Ways of writing a passage: our two, the text alone, and FlashRAG's ``"title"\ntext``.
FORMATS = ("pair", "joined", "text alone", "quoted title")


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of encoding a passage: in words, and as flags where there are any for it."""

    words: str
    flags: str | None
    vectors: np.ndarray


@dataclasses.dataclass(frozen=True)
class Near:
    """Passages that do not fit their vectors, and what is nearest to them.

    Attributes:
        rows: (m,) their positions.
        best: (m,) greatest cosine of each, encoded again, with any stored vector.
        place: (m,) where that is.
        fits: least cosine that counts as the same.
    """

    rows: np.ndarray
    best: np.ndarray
    place: np.ndarray
    fits: float


def diagnose(
    encoder: TextEncoder, vectors: np.ndarray, passages: Sequence[Passage], near: Near, *, device: torch.device
) -> tuple[str, str, str]:
    """Say why passages do not fit their vectors.

    Args:
        encoder: what encoded them again.
        vectors: (count, dim) stored.
        passages: in the same order.
        near: the passages that do not fit.
        device: where other ways are tried.

    Returns:
        the name of the fault, what was seen, what to do.
    """
    rows, place, found = near.rows, near.place, near.best >= near.fits
    if found.mean() >= 0.5:
        return "swapped order", _order(rows[found], place[found], passages, len(vectors)), _ORDER_HINT
    tried = rows[np.unique(np.linspace(0, len(rows) - 1, TRIED).astype(int))]
    pairs = [(passage.title, passage.text) for passage in (passages[int(row)] for row in tried)]
    stored = unit(np.array(vectors[tried], dtype=np.float32))
    ways: list[Way] = []
    own: list[float] = []
    for way in _ways(encoder, pairs, device):
        ways.append(way)
        own.append(float(np.median((way.vectors * stored).sum(axis=1))))
        if own[-1] > SURE:
            break
    fit = int(np.argmax(own))
    if own[fit] >= near.fits:
        way = ways[fit]
        hint = f"adopt it with {way.flags}" if way.flags else _TEXT_HINT
        return "encoder settings", f"they fit with {way.words} (cosine {own[fit]:.4f})", hint
    cosines, places = _anywhere(vectors, ways)
    share = (cosines >= near.fits).mean(axis=1)
    other = int(np.argmax(share))
    if share[other] >= 0.5:
        at = cosines[other] >= near.fits
        message = f"{_order(tried[at], places[other][at], passages, len(vectors))}, encoded with {ways[other].words}"
        return "swapped order", message, f"{_ORDER_HINT}; and add {ways[other].flags or 'nothing else'}"
    message = (
        f"their cosine with their vectors is {np.median((unit(_base(ways)) * stored).sum(axis=1)):.3f}, {own[fit]:.3f} "
        f"with the nearest other setting ({ways[fit].words}), and no vector at another place fits either"
    )
    return "wrong encoder", message, _ENCODER_HINT


_ORDER_HINT = (
    "the passages are in another order than the vectors: give the passages as they were encoded, or the ids of the "
    "vectors in their order with --ids-file"
)
_ENCODER_HINT = (
    "name the encoder that the passages were encoded with (--encoder), or encode them again: ragtrain index prepare "
    "--passages FILE --encoder ENCODER --output-dir FOLDER"
)
_TEXT_HINT = "no setting writes a passage so: encode the passages again, or adopt with --verify-samples 0"


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (m, dim) scaled to unit length; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def _base(ways: Sequence[Way]) -> np.ndarray:
    return ways[0].vectors


def _order(rows: np.ndarray, place: np.ndarray, passages: Sequence[Passage], count: int) -> str:
    shifts = set((place - rows).tolist())
    if len(shifts) == 1 and len(rows) > 1:
        how = f"all are shifted by {shifts.pop():+d}"
    elif len(rows) > 1 and bool((place == count - 1 - rows).all()):
        how = "the order is reversed"
    else:
        how = f"passage {passages[int(rows[0])].id!r} (number {rows[0]}) has the vector number {place[0]}"
    return f"{len(rows)} of them find their vector at another place; {how}"


def _ways(encoder: TextEncoder, pairs: Sequence[tuple[str, str]], device: torch.device) -> Iterator[Way]:
    """Encode the passages in every way that is tried, the encoder's own first."""
    yield Way("its own settings", "", unit(encoder.encode_passages(pairs, device=device)))
    if not isinstance(encoder, TextEncoder):
        return
    settings = encoder.settings
    limit = settings.max_tokens or 0
    for tokens in LENGTHS:
        if tokens < limit:
            changed = dataclasses.replace(settings, max_tokens=tokens)
            yield _encode(encoder, changed, pairs, "", device)
    for variant in _poolings(encoder):
        for style in FORMATS:
            for prompt in dict.fromkeys((settings.passage_prompt, *PROMPTS)):
                form: Literal["pair", "joined"] = "pair" if style == "pair" else "joined"
                changed = dataclasses.replace(variant.settings, passage_format=form, passage_prompt=prompt)
                if changed != settings or style not in ("pair", "joined"):
                    yield _encode(variant, changed, pairs, style, device, base=settings)


def _poolings(encoder: TextEncoder) -> Iterator[TextEncoder]:
    yield encoder
    settings = encoder.settings
    if settings.model_class.startswith("DPR"):
        return  # pools by itself
    for pooling in ("cls", "mean", "last"):
        if pooling != settings.pooling and settings.pooling != "pooler":
            yield TextEncoder(encoder.model, encoder.tokenizer, dataclasses.replace(settings, pooling=pooling))
    for pooling in ("pooler",) if settings.pooling != "pooler" else ("cls", "mean", "last"):
        try:  # the pooler's weights are left out where another pooling is asked for
            yield load_encoder(settings.name, config=EncoderConfig.model_validate({"pooling": pooling}))
        except RagtrainError:
            continue


def _encode(
    encoder: TextEncoder, settings: EncoderSpec, pairs: Sequence[tuple[str, str]], style: str, device: torch.device,
    *, base: EncoderSpec | None = None,
) -> Way:  # fmt: skip
    changed = TextEncoder(encoder.model, encoder.tokenizer, settings)
    if style == "text alone":
        pairs = [("", text) for _, text in pairs]
    elif style == "quoted title":
        pairs = [("", f'"{title}"\n{text}') for title, text in pairs]
    vectors = unit(changed.encode_passages(pairs, device=device))
    base = base or encoder.settings
    words, flags = [], []
    for name, flag in (
        ("pooling", "--pooling"), ("passage_format", "--passage-format"), ("passage_prompt", "--passage-prompt"),
        ("max_tokens", "--passage-max-tokens"),
    ):  # fmt: skip
        value = getattr(settings, name)
        if value != getattr(base, name):
            words.append(f"{name.replace('_', ' ')} {value!r}")
            flags.append(f"{flag} '{value}'" if name == "passage_prompt" else f"{flag} {value}")
    if style in ("text alone", "quoted title"):
        words.append("the text alone, without its title" if style == "text alone" else "the title in quotation marks")
        return Way(", ".join(words), None, vectors)
    return Way(", ".join(words) or "its own settings", " ".join(flags), vectors)


def _anywhere(vectors: np.ndarray, ways: Sequence[Way]) -> tuple[np.ndarray, np.ndarray]:
    """Return (ways, m) greatest cosine of each encoded passage with any vector, and where that is."""
    queries = np.concatenate([way.vectors for way in ways])
    best, place = np.full(len(queries), -np.inf), np.full(len(queries), -1)
    for start, rows in iter_blocks(vectors):
        cosines = np.nan_to_num(queries @ unit(rows).T, nan=-1)
        nearest = cosines.argmax(axis=1)
        values = cosines[np.arange(len(queries)), nearest]
        better = values > best
        best[better], place[better] = values[better], start + nearest[better]
    return best.reshape(len(ways), -1), place.reshape(len(ways), -1)
