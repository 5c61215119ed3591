"""What a question costs in each arm, whatever the machine: tokens, floating-point operations, bytes of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.subject import Subject


def measure_cost(
    subject: Subject, rows: Sequence[CompressExample], *, max_new_tokens: int = 32, rate: int | None = None
) -> dict[str, Any]:
    """Return the mean cost of a question in each arm, at each rate, and what a stored passage takes.

    Nothing is computed but sizes: operations are those of the configurations (``ragtrain.models.flops``), for every row with
    its own lengths, without padding. The question is charged to every window that the compressor reads it with.

    Args:
        subject: the network.
        rows: questions with their passages, as they are read.
        max_new_tokens: tokens of an answer.
        rate: compression rate whose memory the arms have; None for the nominal one.

    Returns:
        ``arms`` (by name: ``context_tokens``, ``prompt_tokens``, ``compressor_tokens``, ``vectors``, ``flops`` with ``compress``,
        ``prefill``, ``decode`` and ``total``, ``cache_bytes``, and ``full_over_this``: how many times the full passages cost
        as much), ``rates`` (the same of memory at every rate), ``stored`` (bytes of a passage as vectors and as text).
    """
    raise NotImplementedError
