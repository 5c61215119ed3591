"""A judge for an evaluation on disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.errors import ConfigError, DataError
from ragtrain.evaluate import results
from ragtrain.evaluate.judge.asking import Asked, Asking
from ragtrain.evaluate.judge.figures import NOTHING, Verdicts, figures, values_of
from ragtrain.evaluate.judge.judges import judge_of
from ragtrain.evaluate.judge.prompts import QUESTIONS, VERSION, Question, prompt_of
from ragtrain.evaluate.judge.replies import Replies
from ragtrain.evaluate.results import EvalResult
from ragtrain.records import write_json, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ragtrain.config.commands import EvalConfig
    from ragtrain.evaluate.judge.asking import Verdict
    from ragtrain.evaluate.judge.judges import Judge
    from ragtrain.evaluate.results import ConditionsResult

log = logging.getLogger("ragtrain")

JUDGE_FILE = "judge.json"
_LABELS = {
    "judge_correct": "correct, says the judge",
    "judge_faithful": "faithful to the passages, says the judge",
    "judge_agrees_with_em": "judge and exact match agree",
    "unreadable_replies": "first replies that cannot be read",
}


def check(config: EvalConfig) -> None:
    """Refuse a judge that cannot be asked before anything is answered.

    Raises:
        ConfigError: there is no such model, its address is none, or options are given without a judge.
    """
    if config.judge is not None:
        judge_of(config)
        return
    if given := sorted(name for name in config.model_fields_set if name.startswith("judge_")):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{flags} says how a judge is asked, and there is none", hint="give --judge MODEL as well")


def added(result: EvalResult | ConditionsResult, config: EvalConfig) -> EvalResult | ConditionsResult:
    """Judge the answers of an evaluation where that is asked for, and write what came of it beside them.

    Returns:
        The result with ``judge`` in its summary.

    Raises:
        ConfigError: the judge cannot be loaded, or the server refuses whatever it is asked.
        DataError: the server cannot be reached, or the predictions cannot be read.
        Interrupted: it was stopped; answers and replies are kept.
    """
    if config.judge is None:
        return result
    judge = judge_of(config)
    whole = result.path.resolve()
    replies = Replies(whole.with_name(f"{whole.name}{results.REPLIES_SUFFIX}"), judge.identity)
    evaluations = {"": result} if isinstance(result, EvalResult) else result.evaluations
    judged = {name: _Judged(each, config) for name, each in evaluations.items()}

    asking = Asking(judge, replies)
    asking.ask(asked for each in judged.values() for asked in each.asked())
    if not asking.sent:
        log.info("all replies of the judge are in %s: nothing was asked", replies.path)
    _refuse_silence(judged.values(), asking, judge)

    made = {name: each.write(asking, judge) for name, each in judged.items()}
    for name, found in made.items():
        _show(found, name, judge)
    if config.output_file is not None:
        _into_document(config.output_file, evaluations, made)
    log.info("verdicts in %s of %s; next: read some of them beside the answers", JUDGE_FILE, result.path)
    if isinstance(result, EvalResult):
        return dataclasses.replace(result, summary={**result.summary, "judge": made[""]})
    each_with = {
        name: dataclasses.replace(each, summary={**each.summary, "judge": made[name]})
        for name, each in result.evaluations.items()
    }
    return dataclasses.replace(result, summary={**result.summary, "judge": made}, evaluations=each_with)


class _Judged:
    """One evaluation on disk: what is asked of its rows, and what is written of the verdicts."""

    def __init__(self, result: EvalResult, config: EvalConfig) -> None:
        self.path, self._fingerprint = result.path, result.summary.get("fingerprint")
        try:
            self.rows = results.read_predictions(result.path)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", path=result.path / results.PREDICTIONS_FILE) from error
        self._prompts: dict[Question, list[Asked | None]] = {
            name: [None if (prompt := prompt_of(name, row)) is None else Asked(name, prompt) for row in self.rows]
            for name in QUESTIONS
        }
        n = min(config.judge_retest, len(self.rows))
        self._again = sorted(random.Random(config.seed).sample(range(len(self.rows)), n))

    def asked(self) -> list[Asked]:
        """Return everything that is asked."""
        first = [asked for prompts in self._prompts.values() for asked in prompts if asked is not None]
        return first + [asked for row in self._second().values() for asked in row.values()]

    def verdicts(self, asking: Asking) -> Verdicts:
        """Return what is known of every row."""
        return {
            name: [None if asked is None else asking.verdict(asked) for asked in prompts]
            for name, prompts in self._prompts.items()
        }

    def write(self, asking: Asking, judge: Judge) -> dict[str, Any]:
        """Write ``judge.json`` and the verdicts into the rows, where they are not there yet, and return the former."""
        verdicts = self.verdicts(asking)
        second: dict[int, Mapping[Question, Verdict]] = {
            place: {name: asking.verdict(asked) for name, asked in row.items()} for place, row in self._second().items()
        }
        about = {"judge": {**judge.to_json(), "prompts": VERSION}, "evaluation": self._fingerprint, "n": len(self.rows)}
        document = {**about, **figures(self.rows, verdicts, second)}
        said = {name: values_of(verdicts[name]) for name in QUESTIONS}
        rows = [
            {**row, "judged": {name: said[name][place] for name in QUESTIONS}} for place, row in enumerate(self.rows)
        ]
        if rows != self.rows:
            write_jsonl(self.path / results.PREDICTIONS_FILE, rows)
        if _read(self.path / JUDGE_FILE) != json.loads(json.dumps(document)):
            write_json(self.path / JUDGE_FILE, document)
        self.rows = rows
        return document

    def _second(self) -> dict[int, dict[Question, Asked]]:
        made: dict[int, dict[Question, Asked]] = {}
        for place in self._again:
            row = {name: prompts[place] for name, prompts in self._prompts.items()}
            made[place] = {
                name: dataclasses.replace(asked, turn="retest") for name, asked in row.items() if asked is not None
            }
        return made


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _refuse_silence(judged: Iterable[_Judged], asking: Asking, judge: Judge) -> None:
    """Refuse to write about a judge that cannot be reached.

    Raises:
        DataError: there is no reply at all.
    """
    verdicts = [each for one in judged for said in one.verdicts(asking).values() for each in said if each is not None]
    if verdicts and asking.problem and not any(each.replies for each in verdicts):
        where = judge.model if judge.endpoint is None else judge.endpoint.address
        raise DataError(
            f"the judge {judge.model!r} gave no reply to any of {len(verdicts)} prompts; the last problem: {asking.problem}",
            path=where, hint="the answers are written; the same command goes on with judging",
        )  # fmt: skip


def _into_document(file: Path, evaluations: Mapping[str, EvalResult], made: Mapping[str, Mapping[str, Any]]) -> None:
    """Put figures and verdicts into ``--output-file``, which was written before they were there."""
    document = json.loads(file.read_text(encoding="utf-8"))
    for name, each in evaluations.items():
        own = document["evaluations"][name] if name else document
        own["judge"], own["predictions"] = made[name], results.read_predictions(each.path)
    write_json(file, document)


def _show(found: Mapping[str, Any], name: str, judge: Judge) -> None:
    """Show the rates as a table on stderr, in percent, and what is missing."""
    rows = [
        (label, report.format_interval(found[key], *found["intervals"][key]), found["counts"][key]["n"],
         found["counts"][key]["missing"])
        for key, label in _LABELS.items()
        if found[key] is not None
    ]  # fmt: skip
    for question, each in (found["retest"] or {}).items():
        if question != "n" and each["n"]:
            label = f"{question}: the same when asked again"
            rows.append(
                (label, report.format_interval(each["agreement"], *each["interval"]), each["n"], each["missing"])
            )
    title = f"{f'{name}: ' if name else ''}judged by {judge.model}: {found['n']} answers"
    if rows:
        report.table(title, ("", "percent [95 %]", "n", "missing"), rows)
    for key, reasons in found["missing"].items():
        if set(reasons) - {NOTHING}:
            told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            log.warning("%s%s is missing for %d of %d answers: %s", f"{name}: " if name else "", key,
                        found["counts"][key]["missing"], found["n"], told)  # fmt: skip
