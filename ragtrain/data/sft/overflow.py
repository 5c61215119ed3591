"""The count of what was too long, and the refusal to train on nothing."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Literal

from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.sft.records import Encoded

log = logging.getLogger("ragtrain")

Policy = Literal["drop-docs", "truncate-docs", "drop-row", "error"]

NAMED = 5
"""Rows that a message names."""


@dataclasses.dataclass
class OverflowReport:
    """What was too long, and what it lost.

    Attributes:
        limit: tokens that a row may have.
        room: tokens that are kept for an answer beside it.
        policy: what a longer one loses; None where it is not known.
        rows: rows looked at.
        longest: tokens of the longest row, before anything was taken away.
        needed: tokens of the longest row that was dropped, as short as the policy may make it.
        passages_dropped: passages left out of rows that were kept.
        passages_cut: passages whose ends were cut.
        shots_dropped: solved examples left out.
        over: ids of the rows that were too long.
        dropped: ids of the rows that were left out.
    """

    limit: int = 0
    room: int = 0
    policy: Policy | None = None
    rows: int = 0
    longest: int = 0
    needed: int = 0
    passages_dropped: int = 0
    passages_cut: int = 0
    shots_dropped: int = 0
    over: list[str] = dataclasses.field(default_factory=list)
    dropped: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: OverflowReport) -> None:
        """Add the counts of another report."""
        self.limit, self.room = other.limit, other.room
        self.longest, self.needed = max(self.longest, other.longest), max(self.needed, other.needed)
        for name in ("rows", "passages_dropped", "passages_cut", "shots_dropped", "over", "dropped"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def raise_if_over(self) -> None:
        """Raise DataError if any row was too long (policy ``error``)."""
        if self.over:
            beside = f", which leaves {self.room} for an answer" if self.room else ""
            lower = ", a lower --max-new-tokens," if self.room else ""
            raise DataError(
                f"{len(self.over)} of {self.rows} rows are longer than {self.limit} tokens{beside}: {named(self.over)}; the "
                f"longest has {self.longest}",
                hint=f"set --max-length ≥ {self.longest + self.room}{lower} or --on-overflow drop-docs",
            )

    def to_json(self) -> dict[str, int]:
        """Return the counts, as they are written down with a run."""
        return {
            "rows": self.rows, "over": len(self.over), "rows_dropped": len(self.dropped),
            "passages_dropped": self.passages_dropped, "passages_cut": self.passages_cut,
            "shots_dropped": self.shots_dropped, "longest": self.longest,
        }  # fmt: skip

    def summary(self) -> str:
        """Return the counts as a line."""
        if not self.over:
            return f"none of {self.rows} rows is too long; the longest has {self.longest} tokens"
        pairs = (
            (self.passages_dropped, "passages left out"),
            (self.passages_cut, "passages cut"),
            (self.shots_dropped, "solved examples left out"),
            (len(self.dropped), "rows left out"),
        )
        lost = ", ".join(f"{count} {what}" for count, what in pairs if count)
        share = 100 * len(self.over) / max(self.rows, 1)
        return f"{len(self.over)} of {self.rows} rows ({share:.1f} %) were too long: {lost}"


def named(ids: Sequence[str]) -> str:
    """Return the first of some ids, and how many more there are."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def check_trained(
    encoded: Sequence[Encoded], ids: Sequence[str], max_share: float, report: OverflowReport | None = None
) -> list[str]:
    """Return the ids of rows of which no token is trained, after a warning.

    Args:
        encoded: rows, those that were dropped among them.
        ids: their ids.
        max_share: share of such rows above which training is refused.
        report: of the overflow, for what to do about it.

    Raises:
        DataError: there are more of them than ``max_share``, or nothing is trained at all.
    """
    untrained = [name for row, name in zip(encoded, ids, strict=True) if not row.trained]
    if not untrained:
        return []
    n_lost = sum(row.lost == "row" for row in encoded)
    why = "too long" if n_lost == len(untrained) else "without anything to learn"
    if 0 < n_lost < len(untrained):
        why = f"{n_lost} of them too long, {len(untrained) - n_lost} without anything to learn"
    share = len(untrained) / len(encoded)
    message = f"{len(untrained)} of {len(encoded)} rows ({100 * share:.1f} %) train no token, {why}: {named(untrained)}"
    if share > max_share or len(untrained) == len(encoded):
        raise DataError(f"{message}; at most {100 * max_share:g} % may", hint=_remedy(n_lost, report))
    log.warning("%s", message)
    return untrained


def _remedy(n_lost: int, report: OverflowReport | None) -> str:
    if not n_lost:
        return "give the rows targets (--output-key); with --mask-mode ragfit, --completion-start must be in every row"
    least = f" ≥ {report.needed}" if report is not None and report.needed else ""
    other = "" if report is not None and report.policy == "drop-docs" else " or --on-overflow drop-docs"
    return f"set --max-length{least}{other}"
