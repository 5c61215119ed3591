"""What the number of passages does to answers, and the place of the gold passage among them ("lost in the middle").

Source of the second: Liu et al., TACL 2024 (arXiv:2307.03172). The questions and the distractors are the same at every point, so
that differences between points are taken question by question.
"""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING, Any

from ragtrain import metrics, report
from ragtrain.errors import ConfigError
from ragtrain.evaluate import dpr, rag, results
from ragtrain.evaluate.answers import BOOTSTRAP_SAMPLES
from ragtrain.evaluate.results import ConditionsResult
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragtrain.config.commands import EvalConfig
    from ragtrain.evaluate.resolve import Subject
    from ragtrain.evaluate.results import EvalResult

log = logging.getLogger("ragtrain")

#: What the names of evaluations say of a point: ``base/retrieved@5`` and ``gold-at-3``.
_POINT = re.compile(r"(?P<of>.*)(?P<sign>@|-at-)(?P<value>\d+)")
_CALLED = {"@": "passages", "-at-": "place of the gold passage"}


def run(config: EvalConfig, subject: Subject) -> ConditionsResult:
    """Answer with a RAG model from several numbers of passages, each in a folder of its own (``n-docs@5``).

    Raises:
        ConfigError: as of one evaluation; ``--n-docs`` is given besides.
    """
    if config.n_docs is not None:
        raise ConfigError("--n-docs-sweep says how many passages are read, and so does --n-docs", hint="leave one out")
    root, counts = results.output_folder(config, subject), sorted(set(config.n_docs_sweep))
    found = {}
    for count in counts:
        name = f"n-docs@{count}"
        one = {
            "n_docs": count, "n_docs_sweep": (), "output_dir": root / name, "output_file": None,
            "dpr_file": config.dpr_file and dpr.path_of(config.dpr_file, name, several=True),
        }  # fmt: skip
        log.info("%d of %d: answering from %d passages", counts.index(count) + 1, len(counts), count)
        found[name] = rag.run(config.model_copy(update=one), subject)
    text = "".join(str(each.summary["fingerprint"]) for each in found.values())
    summary: dict[str, Any] = {
        "kind": "rag",
        "name": subject.name,
        "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
        "evaluations": {name: {"path": str(each.path), **each.summary} for name, each in found.items()},
        "sweeps": of_conditions(found, config.seed),
    }
    results.check_document(config.output_file, summary["fingerprint"], overwrite=config.overwrite)
    write_json(root / results.SUMMARY_FILE, summary)
    if config.output_file is not None:
        lines = {
            name: {**each.summary, "predictions": results.read_predictions(each.path)} for name, each in found.items()
        }
        write_json(config.output_file, {**summary, "evaluations": lines})
    show(summary["sweeps"])
    return ConditionsResult(root, summary, found)


def of_conditions(evaluations: Mapping[str, EvalResult], seed: int) -> list[dict[str, Any]]:
    """Return every sweep among evaluations: its points in order, each with what it differs by from the first one.

    ``differences`` are in exact match over the questions of both, with paired intervals.
    """
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in evaluations:
        if (point := _POINT.fullmatch(name)) is not None:
            groups.setdefault((point["of"], point["sign"]), []).append((int(point["value"]), name))
    return [
        {
            "over": _CALLED[sign], "of": of,
            "points": [_point(value, name, evaluations[name]) for value, name in sorted(points)],
            "differences": _differences([evaluations[name] for _, name in sorted(points)], sorted(points), seed),
        }
        for (of, sign), points in groups.items()
    ]  # fmt: skip


def _point(value: int, name: str, evaluation: EvalResult) -> dict[str, Any]:
    summary = evaluation.summary
    return {
        "value": value, "name": name, "n": summary["n"], "em": summary["em"], "f1": summary["f1"],
        "intervals": {metric: summary["intervals"][metric] for metric in ("em", "f1")},
        "answer_read": summary.get("ceiling", summary.get("answer_in_prompt")),
        "questions_per_s": summary["questions_per_s"],
    }  # fmt: skip


def _differences(
    evaluations: Sequence[EvalResult], points: Sequence[tuple[int, str]], seed: int
) -> list[dict[str, Any]]:
    columns = [
        {row["id"]: float(row["em"]) for row in results.read_predictions(evaluation.path)} for evaluation in evaluations
    ]
    found = []
    for (value, _), column in zip(points[1:], columns[1:], strict=True):
        both = [identifier for identifier in columns[0] if identifier in column]
        left, right = ([one[identifier] for identifier in both] for one in (columns[0], column))
        delta, low, high = metrics.paired_bootstrap(left, right, BOOTSTRAP_SAMPLES, seed)
        found.append({"a": points[0][0], "b": value, "n": len(both), "delta": delta, "low": low, "high": high})
    return found


def show(sweeps: Sequence[Mapping[str, Any]]) -> None:
    """Show each sweep as a table on stderr, in percent."""
    for sweep in sweeps:
        later = {each["b"]: each for each in sweep["differences"]}
        rows = [
            (
                point["value"], point["n"],
                *(report.format_interval(point[name], *point["intervals"][name]) for name in ("em", "f1")),
                f"{100 * point['answer_read']:.1f}", _difference(later.get(point["value"])),
                f"{point['questions_per_s']:.1f}",
            )
            for point in sweep["points"]
        ]  # fmt: skip
        of = "" if sweep["of"] in ("gold", "n-docs") else f"{sweep['of']}, "
        report.table(
            f"{of}by {sweep['over']}: percent [95 %]",
            (
                sweep["over"],
                "questions",
                "exact match",
                "F1",
                "an answer read",
                "exact match over the first",
                "questions/s",
            ),
            rows,
        )


def _difference(found: Mapping[str, Any] | None) -> str | None:
    if found is None:
        return None
    return f"{100 * found['delta']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
