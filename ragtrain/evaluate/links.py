"""``ragtrain eval`` of networks that complete graphs: which tail, and which head, a triple that was held out has.

Asked are the test triples of a graph, else its validation triples, else some that are held out. All entities are ranked for
each, known true ones left out, and ties count against the model; heads and tails weigh alike. ULTRA's checkpoints need no
training for a graph: ``ragtrain eval --model-dir ultra_3g.pth --graph FOLDER``.

link_model.py  the network, the graphs and the triples
link_ranks.py  ranks
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import metrics, prepare, report
from ragtrain.evaluate import results
from ragtrain.evaluate.link_model import LinkModel, Links, link_model_of, links_of
from ragtrain.evaluate.link_ranks import LinkRanks, rank_links
from ragtrain.evaluate.results import EvalResult
from ragtrain.models.gfm.ranks import per_query
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from ragtrain.config.commands import EvalConfig
    from ragtrain.evaluate.resolve import Subject

log = logging.getLogger("ragtrain")

#: Numbers over both directions; ``hits@10_50`` is the rank among 50 entities that the literature on small graphs gives.
METRICS = ("mrr", "mr", "hits@1", "hits@3", "hits@10", "hits@10_50")
#: Numbers of one direction.
DIRECTED = ("mrr", "hits@1", "hits@10")
DIRECTIONS = ("tail", "head")
CONFIDENCE, BOOTSTRAP_SAMPLES = 0.95, 10_000


def run(config: EvalConfig, subject: Subject) -> EvalResult:
    """Rank what was held out of graphs and write what came of it.

    Raises:
        ConfigError: model or graph cannot be found out, or the output folder holds another evaluation.
        DataError: a file of them cannot be read.
        NumericsError: a score is not a number.
        OutOfMemoryError: one query alone does not fit on the device.
    """
    # 1. What is evaluated, on what.
    device = prepare.resolve_device(config.device)
    model = link_model_of(subject)
    output = _output(config, subject)
    asked = links_of(config, model)

    # 2. The same evaluation is not made twice, and another one is not overwritten unasked.
    described = _describe(config, subject, model, asked)
    summary = results.earlier(output, described["fingerprint"], overwrite=config.overwrite)
    results.check_document(config.output_file, described["fingerprint"], overwrite=config.overwrite)
    reused = summary is not None
    if summary is not None:
        log.info("%s holds this evaluation already: nothing was done (--overwrite does it again)", output)
    # 3. Ranks, files.
    else:
        found = [_rank(config, model, links, device) for links in asked]
        summary = {**_summary(asked, found, config.seed), **described, "device": str(device)}
        prefixes = _prefixes(asked)
        rows = (row for each in zip(asked, found, prefixes, strict=True) for row in _rows(*each))
        results.write(output, summary, rows)

    # 4. What came of it.
    if config.output_file is not None:
        write_json(config.output_file, {**summary, "predictions": results.read_predictions(output)})
        log.info("metrics and predictions in %s", config.output_file)
    _show(summary, model.name)
    log.info("ranks and metrics in %s", output)
    return EvalResult(output, summary, reused=reused)


def _output(config: EvalConfig, subject: Subject) -> Path:
    """Return the output folder; a graph that is not of the training has one of its own."""
    if config.output_dir is not None or config.graph is None:
        return results.output_folder(config, subject)
    name = f"eval-{config.graph.resolve().name}"
    if subject.run is not None:
        return subject.run.path / name
    if config.output_file is not None:
        return config.output_file.with_suffix("")
    return Path("runs") / Path(str(subject.model_name)).stem / name


def _describe(config: EvalConfig, subject: Subject, model: LinkModel, asked: Sequence[Links]) -> dict[str, Any]:
    """Return everything that an evaluation depends on, and its fingerprint."""
    graphs = [links.about() for links in asked]
    described: dict[str, Any] = {
        "kind": "links",
        "n": sum(each["asked"] for each in graphs),
        "model": {
            "name": model.name, "checkpoint": subject.checkpoint, "fingerprint": model.fingerprint,
            "text_encoder": model.text_encoder,
        },
        "graphs": graphs,
        "settings": {"seed": config.seed, "num_samples": config.num_samples, "filtered": True, "ties": "pessimistic"},
        "versions": results.versions(),
    }  # fmt: skip
    defining = {
        "model": [model.fingerprint, model.text_encoder],
        "graphs": [[each["fingerprint"], each["split"], each["facts"], each["asked_sha256"]] for each in graphs],
        "seed": config.seed,
    }
    return {**described, "fingerprint": results.fingerprint_of(defining)}


def _rank(config: EvalConfig, model: LinkModel, links: Links, device: torch.device) -> LinkRanks:
    import torch

    network = model.network.to(device)
    most = config.batch_size if "batch_size" in config.model_fields_set else None
    ranks = rank_links(
        network, links.tensors(device), links.features(model, device), torch.from_numpy(links.asked), links.known,
        most=most, progress=f"Ranking entities of {links.found.folder.name}",
    )  # fmt: skip
    log.info("%s: %d queries for %d triples in %s, %.0f/s", links.found.folder.name, ranks.queries, len(links.asked),
             report.duration(ranks.seconds), ranks.queries / max(ranks.seconds, 1e-9))  # fmt: skip
    return ranks


def _summary(asked: Sequence[Links], found: Sequence[LinkRanks], seed: int) -> dict[str, Any]:
    """Return ``metrics.json``: metrics over all triples, with intervals; by graph where there are several.

    The two queries of a triple are not independent: triples are resampled, each with both. Rates of one direction have
    Wilson's interval.
    """
    ranks = np.concatenate([each.ranks for each in found])
    negatives = np.concatenate([each.negatives for each in found])
    values: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    both = per_query(ranks.ravel(), negatives.ravel(), METRICS)
    for name in METRICS:
        each = both[name].reshape(-1, 2).mean(axis=1)
        values[name] = float(each.mean())
        intervals[name] = _bootstrap(each, seed)
    for column, direction in enumerate(DIRECTIONS):
        for name, each in per_query(ranks[:, column], negatives[:, column], DIRECTED).items():
            key = f"{direction}_{name}"
            values[key] = float(each.mean())
            wilson = name.startswith("hits")
            intervals[key] = (
                list(metrics.wilson(float(each.sum()), len(each), CONFIDENCE)) if wilson else _bootstrap(each, seed)
            )
    queries, seconds = sum(each.queries for each in found), math.fsum(each.seconds for each in found)
    summary: dict[str, Any] = {**values, "confidence": CONFIDENCE, "intervals": intervals}
    if len(found) > 1:
        summary["by_graph"] = {
            links.found.about["path"]: {
                name: float(each.mean())
                for name, each in per_query(one.ranks.ravel(), one.negatives.ravel(), METRICS).items()
            }
            for links, one in zip(asked, found, strict=True)
        }
    return {**summary, "queries": queries, "seconds": seconds, "queries_per_s": queries / max(seconds, 1e-9)}


def _bootstrap(values: np.ndarray, seed: int) -> list[float]:
    return list(metrics.bootstrap_mean(values.tolist(), BOOTSTRAP_SAMPLES, seed, CONFIDENCE))


def _prefixes(asked: Sequence[Links]) -> list[str]:
    """Return what ids of queries begin with: nothing for one graph, else its name, with its number where others have it too."""
    names = [links.found.folder.name for links in asked]
    if len(names) == 1:
        return [""]
    return [f"{name}/" if names.count(name) == 1 else f"{name}#{n}/" for n, name in enumerate(names, 1)]


def _rows(links: Links, found: LinkRanks, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield a line for each query: what was asked, the rank of what is true, and the best entities."""
    graph = links.found.graph
    names = graph.entities
    for number, (head, relation, tail) in enumerate(links.asked.tolist()):
        for column, direction in enumerate(DIRECTIONS):
            top = zip(found.top[number, column].tolist(), found.top_scores[number, column].tolist(), strict=True)
            yield {
                "id": f"{prefix}{links.split}-{number}-{direction}",
                "triple": [names[head], graph.relations[relation], names[tail]],
                "direction": direction,
                "rank": int(found.ranks[number, column]),
                "candidates": int(found.negatives[number, column]) + 1,
                "score": float(found.scores[number, column]),
                "top": [{"entity": names[entity], "score": score} for entity, score in top if entity >= 0],
            }


def _show(summary: dict[str, Any], name: str) -> None:
    """Show the metrics as a table on stderr."""
    intervals = summary["intervals"]

    def shown(metric: str) -> str:
        if metric not in intervals:
            return ""
        low, high = intervals[metric]
        return report.format_interval(summary[metric], low, high, percent="hits" in metric)

    rows = [(metric, shown(metric), *(shown(f"{way}_{metric}") for way in DIRECTIONS)) for metric in METRICS]
    graphs = ", ".join(f"{Path(each['path']).name} ({each['split']})" for each in summary["graphs"])
    title = f"{name} on {graphs}: {summary['n']} triples, {summary['queries_per_s']:.1f} queries/s"
    level = f"[{100 * summary['confidence']:g} %]"
    report.table(title, ("metric", f"both {level}", f"tail {level}", f"head {level}"), rows)
    for path, values in summary.get("by_graph", {}).items():
        log.info("%s: MRR %.4f, hits@10 %.4f", path, values["mrr"], values["hits@10"])
