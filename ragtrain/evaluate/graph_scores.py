"""Rankings of a graph's documents and entities → figures of each question, means, intervals, differences, tables.

recall@k          true recall of the set: gold documents among the first k of all that the question has
mrr               1 by the place of the first gold document
filtered_hits@k   what GFM-RAG's training prints: gold documents of a rank of at most k where other gold documents do not
                  count; never below recall@k, and to be compared with nothing else
entity_recall@k   the same as recall@k of the entities of the gold documents

Gold documents that the graph does not have count as not found, and so does everything of questions without an entity.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch

from ragtrain import metrics, report

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from ragtrain.graphs import GraphQuestion

CONFIDENCE = 0.95
BOOTSTRAP_SAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class GraphRecord:
    """One question, and where each ranking has its gold documents.

    Attributes:
        question: with what it mentions and what answers it.
        ranks: of each ranking by name, rising, counted from 1; of documents that the graph has.
        entity_ranks: of the gold entities in the network's ranking, rising.
        row: what ``predictions.jsonl`` says of it.
    """

    question: GraphQuestion
    ranks: Mapping[str, tuple[int, ...]]
    entity_ranks: tuple[int, ...]
    row: Mapping[str, Any]

    @property
    def n_gold(self) -> int:
        """Gold documents, those included that the graph does not have."""
        return len(self.question.supporting_documents) + self.question.missing_documents

    def figures(self, system: str, depths: Sequence[int]) -> dict[str, float]:
        """Return the figures of documents under a ranking; the question must have gold documents."""
        ranks, n_gold = self.ranks[system], self.n_gold
        filtered = metrics.filtered_ranks(ranks)
        return {
            **{f"recall@{k}": metrics.recall_at(ranks, n_gold, k) for k in depths},
            "mrr": metrics.reciprocal_rank(ranks[:1], 1),
            **{f"filtered_hits@{k}": metrics.hits_at(filtered, n_gold, k) for k in depths},
        }

    def entity_figures(self, depths: Sequence[int]) -> dict[str, float]:
        """Return the figures of entities; the question must have gold entities."""
        n_gold = len(set(self.question.supporting_entities))
        return {f"entity_recall@{k}": metrics.recall_at(self.entity_ranks, n_gold, k) for k in depths}


def ranks_of(order: Tensor, gold: Iterable[int]) -> tuple[int, ...]:
    """Return the ranks, rising and counted from 1, of gold items in a ranking of all items, (n,) best first."""
    wanted = torch.tensor(sorted(set(gold)), dtype=torch.long)
    places = torch.isin(order, wanted).nonzero().flatten()
    return tuple((places + 1).tolist())


def summarise(
    records: Sequence[GraphRecord], systems: Sequence[str], evaluated: str, depths: Sequence[int], seed: int
) -> dict[str, Any]:
    """Return means with intervals: of the ranking that is evaluated, of all, of their differences, and by hops.

    Args:
        records: all questions; those without any gold document have no figures of documents.
        systems: names of rankings.
        evaluated: the one whose figures stand first; differences are this one minus another.
        depths: of the metrics at k.
        seed: of the bootstrap.
    """
    scored = [record for record in records if record.n_gold]
    table = {name: _columns(record.figures(name, depths) for record in scored) for name in systems}
    entities = _columns(record.entity_figures(depths) for record in records if record.question.supporting_entities)
    first = {**table[evaluated], **entities}
    described = {name: _described(columns, seed) for name, columns in table.items()}
    for name in systems:
        if name != evaluated and scored:
            described[name]["difference"] = {
                metric: list(metrics.paired_bootstrap(values, first[metric], BOOTSTRAP_SAMPLES, seed, CONFIDENCE))
                for metric, values in table[name].items()
            }
    whole = _described(first, seed)
    return {
        **whole["metrics"],
        "confidence": CONFIDENCE,
        "intervals": whole["intervals"],
        "evaluated": evaluated,
        "systems": described,
        "hops": _by_hops(scored, systems, depths, seed),
        "n": len(records),
        "without_gold": len(records) - len(scored),
        "unlinked": sum(not record.question.entities for record in records),
        "missing_documents": sum(record.question.missing_documents for record in records),
        "with_gold_entities": sum(bool(record.question.supporting_entities) for record in records),
    }


def _columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _described(columns: Mapping[str, Sequence[float]], seed: int) -> dict[str, Any]:
    """Return the mean of each metric, and its bootstrap interval."""
    return {
        "metrics": {name: math.fsum(values) / len(values) for name, values in columns.items()},
        "intervals": {
            name: list(metrics.bootstrap_mean(values, BOOTSTRAP_SAMPLES, seed, CONFIDENCE))
            for name, values in columns.items()
        },
    }


def _by_hops(
    scored: Sequence[GraphRecord], systems: Sequence[str], depths: Sequence[int], seed: int
) -> dict[str, dict[str, Any]]:
    """Return for each number of hops its questions and the recall of each ranking; nothing where no question says any."""
    groups: dict[int, list[GraphRecord]] = {}
    for record in scored:
        groups.setdefault(record.question.hops, []).append(record)
    if not any(groups):
        return {}
    return {
        str(hops) if hops else "unknown": {
            "n": len(some),
            "systems": {
                name: _described(_columns(_recalls(record, name, depths) for record in some), seed) for name in systems
            },
        }
        for hops, some in sorted(groups.items())
    }


def _recalls(record: GraphRecord, system: str, depths: Sequence[int]) -> dict[str, float]:
    return {f"recall@{k}": metrics.recall_at(record.ranks[system], record.n_gold, k) for k in depths}


def show(summary: Mapping[str, Any], name: str) -> None:
    """Show rankings, differences and hops as tables on stderr, in percent."""
    depths, evaluated = summary["settings"]["recall_at"], summary["evaluated"]
    n, percent = summary["n"], 100 * summary["confidence"]
    unlinked = f", {summary['unlinked']} of them without an entity of the graph" if summary["unlinked"] else ""
    recalls = [f"recall@{k}" for k in depths]
    rows = [
        (f"{system} *" if system == evaluated else system, *(_percent(each, metric) for metric in (*recalls, "mrr")))
        for system, each in summary["systems"].items()
    ]
    title = f"{name}: {n} questions{unlinked}; percent [{percent:g} %]; * what was asked for"
    report.table(title, ("ranking", *recalls, "mrr"), rows)
    others = [(system, each["difference"]) for system, each in summary["systems"].items() if "difference" in each]
    if others:
        rows = [(system, *(_points(each[metric]) for metric in (*recalls, "mrr"))) for system, each in others]
        title = f"{evaluated} minus the others, points on the same questions [{percent:g} %]"
        report.table(title, ("minus", *recalls, "mrr"), rows)
    _show_hops(summary, depths)
    more = [f"filtered_hits@{k}" for k in depths] + [f"entity_recall@{k}" for k in depths]
    rows = [
        (metric, report.format_interval(summary[metric], *summary["intervals"][metric]))
        for metric in more
        if metric in summary
    ]
    report.table(
        f"{evaluated}: ranks without other gold documents (not recall), and entities", ("metric", "percent"), rows
    )


def _show_hops(summary: Mapping[str, Any], depths: Sequence[int]) -> None:
    if not summary["hops"]:
        return
    k = 5 if 5 in depths else depths[-1]
    rows = [
        (hops, group["n"], *(_percent(each, f"recall@{k}") for each in group["systems"].values()))
        for hops, group in summary["hops"].items()
    ]
    report.table(f"recall@{k} by number of hops", ("hops", "questions", *summary["systems"]), rows)


def _percent(described: Mapping[str, Any], metric: str) -> str | None:
    if metric not in described["metrics"]:
        return None
    return report.format_interval(described["metrics"][metric], *described["intervals"][metric])


def _points(difference: Sequence[float]) -> str:
    delta, low, high = (round(100 * value, 1) + 0.0 for value in difference)
    return f"{delta:+.1f} [{low:+.1f}, {high:+.1f}]"
