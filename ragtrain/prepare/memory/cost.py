"""When stored vectors have paid: bytes against text, operations against reading the text or compressing anew."""

from __future__ import annotations

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


def break_even(compressor: Compressor, passages: Sequence[Passage], vector_bytes: float) -> dict[str, Any]:
    """Return what a passage costs as text and as vectors, and how often it must be used until its vectors have paid.

    Used is a passage in a prompt of ``N_DOCS`` like it and ``OTHER_TOKENS`` more, with an answer of ``NEW_TOKENS``; a share of
    what is read and written there is charged to it. Operations are counted on the configurations (``ragtrain.models.flops``).

    Args:
        compressor: the network.
        passages: to take means over.
        vector_bytes: that a passage takes in the store, in the mean.

    Returns:
        ``text_bytes``, ``text_tokens`` (of the generator), ``vectors``, ``vector_bytes``, ``times_text``; ``compress_flops``
        (once), ``text_flops`` and ``memory_flops`` (each use), ``saved_flops`` (each use, against the text), ``break_even_uses``
        (None where vectors never pay), ``flops_per_stored_byte`` (what a byte read saves of compressing anew),
        ``text_cache_bytes`` and ``memory_cache_bytes``; ``n`` and ``prompt`` say over what.
    """
    texts = [passage_text(Document(p.id, p.title, p.text)) for p in passages]
    tokenizer, model = compressor.generator_tokenizer, compressor.model
    read = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    n = len(texts)
    tokens = sum(map(len, read)) / n
    rows, _ = compressor.windowed(passages)
    vectors = sum(compressor.windower.counts(row, compressor.rate)[0] for row in rows) / n
    lengths = compressor.windower.collate(rows, compressor.rate).attention_mask.sum(1).tolist()
    stack = StackFlops(model.compressor.config, head=False)
    rank = linear_flops(model.rank_head) * len(lengths) if model.settings.rank_head else 0
    compress = (sum(map(stack.forward, lengths)) + rank) / n + linear_flops(model.connector) * vectors
    config = compressor.generator_config
    generator = StackFlops(config, head=True)

    def use(each: float) -> float:
        prompt = OTHER_TOKENS + round(N_DOCS * each)
        return (generator.forward(prompt) + generator.decode(prompt, NEW_TOKENS)) / N_DOCS

    text, memory = use(tokens), use(vectors)
    saved = text - memory
    return {
        "n": n, "prompt": {"n_docs": N_DOCS, "other_tokens": OTHER_TOKENS, "new_tokens": NEW_TOKENS},
        "text_bytes": sum(len(each.encode()) for each in texts) / n, "text_tokens": tokens,
        "vectors": vectors, "vector_bytes": vector_bytes,
        "times_text": vector_bytes * n / max(1, sum(len(each.encode()) for each in texts)),
        "compress_flops": compress, "text_flops": text, "memory_flops": memory, "saved_flops": saved,
        "break_even_uses": compress / saved if saved > 0 else None,
        "flops_per_stored_byte": compress / vector_bytes,
        "text_cache_bytes": cache_bytes(config, round(tokens)), "memory_cache_bytes": cache_bytes(config, round(vectors)),
    }  # fmt: skip
