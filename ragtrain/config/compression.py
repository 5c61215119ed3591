"""The numbers of a compressor: how long a window is, and how many memory vectors it becomes.

They are wanted where texts are cut into windows as well as where vectors are made, so they live below both.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragtrain.config.commands.compress import CompressConfig

CompressorType = Literal["n_layers", "modernbert", "small_lm"]


@dataclasses.dataclass(frozen=True)
class CompressSettings:
    """What a compressor is like, weights aside.

    Attributes:
        compressor_type: a copy of the generator's first layers, an encoder, or a small causal language model.
        num_layers: ``n_layers``: layers of the copy.
        num_memory_tokens: vectors of a full window at the nominal rate (l).
        compression_rate: tokens of a passage for each vector at the nominal rate.
        rates: further rates that the same windows are compressed at.
        proportional: a shorter window becomes fewer vectors.
        pooling: vectors are the states of learnt tokens after the window, or means over stretches of it.
        query_dependent: the compressor reads the question beside the window.
        max_query_tokens: longest question that it reads, in its tokens.
        max_windows: most windows of a passage; None for all.
        connector_hidden: width of the connector's hidden layer; None for the default, see the model.
        rank_head: each window ends in a token whose state is turned into a relevance score.
    """

    compressor_type: CompressorType = "n_layers"
    num_layers: int = 8
    num_memory_tokens: int = 8
    compression_rate: int = 16
    rates: tuple[int, ...] = ()
    proportional: bool = False
    pooling: Literal["memory", "mean"] = "memory"
    query_dependent: bool = True
    max_query_tokens: int = 64
    max_windows: int | None = None
    connector_hidden: int | None = None
    rank_head: bool = False

    @property
    def window_tokens(self) -> int:
        """Tokens of a passage in a full window."""
        return self.num_memory_tokens * self.compression_rate

    @property
    def all_rates(self) -> tuple[int, ...]:
        """Every rate once, the nominal one first."""
        return tuple(dict.fromkeys((self.compression_rate, *self.rates)))

    @property
    def max_memory(self) -> int:
        """Vectors of a full window at the lowest rate; also the ``place`` of the rank token."""
        return max(self.full_memory(rate) for rate in self.all_rates)

    def full_memory(self, rate: int) -> int:
        """Return the vectors of a full window at a rate."""
        return -(-self.window_tokens // rate)

    def memory_of(self, n_tokens: int, rate: int) -> int:
        """Return the vectors that a window of so many tokens becomes at a rate: at least one.

        Where vectors are means, there are never more than tokens: a stretch of none has no mean.
        """
        full = self.full_memory(rate)
        if self.proportional:
            return max(1, min(full, -(-n_tokens // rate)))
        return full if self.pooling == "memory" else max(1, min(full, n_tokens))

    def check_rate(self, rate: int) -> None:
        """Refuse a rate that was not trained.

        Raises:
            ConfigError: naming those that were.
        """
        if rate not in self.all_rates:
            raise ConfigError(
                f"compression_rate {rate}: this model was trained for {', '.join(map(str, self.all_rates))}",
                hint="Choose one of these, or train with --rates.",
            )

    @classmethod
    def from_config(cls, config: CompressConfig) -> CompressSettings:
        """Return what a configuration asks for; the generator may turn out to have fewer layers."""
        compressor, context = config.compressor, config.context
        return cls(
            compressor_type=compressor.compressor_type,
            num_layers=compressor.num_layers,
            num_memory_tokens=compressor.num_memory_tokens,
            compression_rate=compressor.compression_rate,
            rates=tuple(compressor.rates),
            proportional=compressor.proportional_memory,
            pooling=compressor.pooling,
            query_dependent=compressor.query_dependent,
            max_query_tokens=context.max_query_tokens,
            max_windows=context.max_windows,
            connector_hidden=compressor.connector_hidden,
            rank_head=config.objective.rank_weight > 0,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "rates": list(self.rates)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CompressSettings:
        """Return settings from their JSON form; names that are unknown here are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        return cls(**{**kept, "rates": tuple(kept.get("rates", ()))})
