"""When stored vectors have paid: bytes against text, operations against reading the text or compressing anew."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ragtrain.data.compress.records import passage_text
from ragtrain.models.flops import StackFlops, cache_bytes, linear_flops
from ragtrain.records import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.prepare.memory.encode import Compressor
    from ragtrain.records import Passage

#: The prompt that a passage is used in: passages, other tokens, tokens of the answer.
N_DOCS, OTHER_TOKENS, NEW_TOKENS = 5, 64, 32
#: Passages that figures are means over.
SAMPLE = 256


def sample_of(passages: Sequence[Passage], count: int) -> list[Passage]:
    """Return passages at equal distances among the first ``count``."""
    n = min(SAMPLE, count)
    return [passages[place * count // n] for place in range(n)]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Passages as numbers.

    Attributes:
        n: how many there are.
        windows: tokens of each of their windows as the compressor reads it, its own among them.
        vectors: memory vectors of a passage, in the mean.
        text_tokens: the generator's tokens of a passage, in the mean.
        text_bytes: bytes of its text, in the mean.
        vector_bytes: bytes that it takes in the store, in the mean.
    """

    n: int
    windows: Sequence[int]
    vectors: float
    text_tokens: float
    text_bytes: float
    vector_bytes: float


@dataclasses.dataclass(frozen=True)
class Stacks:
    """The networks as numbers.

    Attributes:
        compressor: configuration of its stack.
        generator: configuration of the generator.
        per_vector: operations of the connector for a vector.
        per_window: operations of the relevance head for a window.
    """

    compressor: Any
    generator: Any
    per_vector: int = 0
    per_window: int = 0


def break_even(compressor: Compressor, passages: Sequence[Passage], vector_bytes: float) -> dict[str, Any]:
    """Return what a passage costs as text and as vectors; see ``costs``.

    Args:
        compressor: the network.
        passages: to take means over.
        vector_bytes: that a passage takes in the store, in the mean.
    """
    texts = [passage_text(Document(p.id, p.title, p.text)) for p in passages]
    model, n = compressor.model, len(texts)
    read = compressor.generator_tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    rows, _ = compressor.windowed(passages)
    batch = compressor.windower.collate(rows, compressor.rate)
    sizes = Sizes(
        n, batch.attention_mask.sum(1).tolist(), int(batch.counts.sum()) / n, sum(map(len, read)) / n,
        sum(len(each.encode()) for each in texts) / n, vector_bytes,
    )  # fmt: skip
    rank = linear_flops(model.rank_head) if model.settings.rank_head else 0
    stacks = Stacks(model.compressor.config, compressor.generator_config, linear_flops(model.connector), rank)
    return costs(stacks, sizes)


def costs(stacks: Stacks, sizes: Sizes) -> dict[str, Any]:
    """Return what a passage costs as text and as vectors, and how often it must be used until its vectors have paid.

    Used is a passage in a prompt of ``N_DOCS`` like it and ``OTHER_TOKENS`` more, with an answer of ``NEW_TOKENS``; a share of
    what is read and written there is charged to it. Operations are counted on the configurations (``ragtrain.models.flops``).

    Returns:
        ``text_bytes``, ``text_tokens`` (of the generator), ``vectors``, ``vector_bytes``, ``times_text``; ``compress_flops``
        (once), ``text_flops`` and ``memory_flops`` (each use), ``saved_flops`` (each use, against the text), ``break_even_uses``
        (None where vectors never pay), ``flops_per_stored_byte`` (what a byte read saves of compressing anew),
        ``text_cache_bytes`` and ``memory_cache_bytes``; ``n`` and ``prompt`` say over what.
    """
    compressor = StackFlops(stacks.compressor, head=False)
    once = sum(map(compressor.forward, sizes.windows)) + stacks.per_window * len(sizes.windows)
    compress = once / sizes.n + stacks.per_vector * sizes.vectors
    generator = StackFlops(stacks.generator, head=True)

    def use(tokens: float) -> float:
        prompt = OTHER_TOKENS + round(N_DOCS * tokens)
        return (generator.forward(prompt) + generator.decode(prompt, NEW_TOKENS)) / N_DOCS

    text, memory = use(sizes.text_tokens), use(sizes.vectors)
    saved = text - memory
    return {
        "n": sizes.n, "prompt": {"n_docs": N_DOCS, "other_tokens": OTHER_TOKENS, "new_tokens": NEW_TOKENS},
        "text_bytes": sizes.text_bytes, "text_tokens": sizes.text_tokens, "vectors": sizes.vectors,
        "vector_bytes": sizes.vector_bytes, "times_text": sizes.vector_bytes / max(1.0, sizes.text_bytes),
        "compress_flops": compress, "text_flops": text, "memory_flops": memory, "saved_flops": saved,
        "break_even_uses": compress / saved if saved > 0 else None,
        "flops_per_stored_byte": compress / sizes.vector_bytes,
        "text_cache_bytes": cache_bytes(stacks.generator, round(sizes.text_tokens)),
        "memory_cache_bytes": cache_bytes(stacks.generator, round(sizes.vectors)),
    }  # fmt: skip
