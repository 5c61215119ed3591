"""The file that is written, and what is written down beside it."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from ragtrain import metrics, report
from ragtrain.errors import ConfigError
from ragtrain.records import sha256_file, write_json, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ragtrain.config.commands.teach import TeachConfig
    from ragtrain.prepare.teach.agreement import Agreement
    from ragtrain.prepare.teach.answers import Taught
    from ragtrain.records import Question

REJECTED_FILE = "rejected.jsonl"


@dataclasses.dataclass(frozen=True)
class TeachResult:
    """What was written, or stood there already.

    Attributes:
        path: the file.
        rows: in it.
        up_to_date: it stood there, made by the same request, and nothing was done.
        info: what ``NAME.dataset.json`` says.
    """

    path: Path
    rows: int
    up_to_date: bool
    info: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"path": str(self.path), "rows": self.rows, "up_to_date": self.up_to_date, **self.info}


def work_folder(target: Path) -> Path:
    """Return the folder in which scores and answers gather."""
    return target.with_name(f"{_stem(target)}.teach")


def info_path(target: Path) -> Path:
    """Return the file that says how the rows were made."""
    return target.with_name(f"{_stem(target)}.dataset.json")


def _stem(target: Path) -> str:
    return target.name.removesuffix(target.suffix)


def standing(target: Path) -> dict[str, Any] | None:
    """Return what is written down of a file that is still as it was written; None where there is none."""
    try:
        info: dict[str, Any] = json.loads(info_path(target).read_text(encoding="utf-8"))
        return info if sha256_file(target) == info["sha256"] and info["request"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """See that the file may be written.

    Raises:
        ConfigError: its name has another ending, or it is there and was made by another request.
    """
    if target.suffix.lower() not in (".json", ".jsonl"):
        raise ConfigError(f"output_file is {target}; expected a name that ends in .json or .jsonl")
    if not overwrite:
        for path in (target, info_path(target)):
            if path.exists():
                raise ConfigError(f"{path} exists and was not made by this request", hint="replace it: --overwrite")


def row_of(question: Question, names: Mapping[str, str], answer: str | None) -> dict[str, Any]:
    """Return the row of a question.

    Args:
        question: with its passages, best first, and their scores.
        names: of the models: ``reranker_model`` and ``teacher_model``, where there is one.
        answer: the teacher's, where it is kept.
    """
    ours = ("reranking_scores", "reranker_model", "teacher_answer", "teacher_model")
    extra = {name: value for name, value in question.extra.items() if name not in ours}
    row = dataclasses.replace(question, extra=extra).to_json()
    if "reranker_model" in names:
        row["reranking_scores"] = [document.score for document in question.documents]
        row["reranker_model"] = names["reranker_model"]
    if answer is not None:
        row |= {"teacher_answer": answer, "teacher_model": names["teacher_model"]}
    return row


def rows_of(
    questions: Sequence[Question],
    found: Sequence[Taught] | None,
    agreement: Agreement | None,
    config: TeachConfig,
    names: Mapping[str, str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows to write, in the order of the questions, and those whose answers were not kept."""
    if found is None or agreement is None:
        return [row_of(question, names, None) for question in questions], []
    rows, rejected = [], []
    for question, each, verdict in zip(questions, found, agreement.verdicts, strict=True):
        if verdict == "kept":
            rows.append(row_of(question, names, each.answer))
            continue
        rejected.append({"id": question.id, "why": verdict, "lost": each.lost, "question": question.question,
                         "answers": list(question.answers), "teacher_answer": each.answer})  # fmt: skip
        if config.teacher.disagreeing == "gold" and question.answers:
            rows.append(row_of(question, names, None))
    return rows, rejected


def write_rows(target: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows aside and then rename: one a line, or an array with one a line."""
    if target.suffix.lower() == ".jsonl":
        write_jsonl(target, rows)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write("[")
            for number, row in enumerate(rows):
                file.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False))
            file.write("\n]\n")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def write(
    target: Path, rows: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]], info: dict[str, Any]
) -> TeachResult:
    """Write rows, what was left out, and how all was made."""
    info_path(target).unlink(missing_ok=True)  # of another file, from the next line on
    write_rows(target, rows)
    write_jsonl(work_folder(target) / REJECTED_FILE, rejected)
    info = {**info, "rows": len(rows), "sha256": sha256_file(target)}
    write_json(info_path(target), info)
    return TeachResult(target, len(rows), up_to_date=False, info=info)


def recall(questions: Sequence[Question]) -> list[float] | None:
    """Return the share of questions with references of which a passage holds one, with its interval; None without any."""
    asked = [question for question in questions if question.answers]
    if not asked:
        return None
    hits = sum(metrics.first_hit(q.answers, (d.text for d in q.documents)) is not None for q in asked)
    return [hits / len(asked), *metrics.wilson(hits, len(asked))]


def show(result: TeachResult) -> TeachResult:
    """Report what was written."""
    info = result.info
    passages, kept = info["passages"], info["kept"]
    stages = [
        ("questions", info["questions"]["used"], ""),
        ("with passages", passages["questions"], _interval("an answer in what was found", passages["answer_recall"])),
        ("passages kept", kept["passages"], _interval("an answer in what was kept", kept["answer_recall"])),
    ]
    if passages["gold_added"]:
        stages.append(("gold passages", passages["gold_added"], "added where they were not found"))
    if reranker := info["reranker"]:
        stages.append(("pairs reranked", reranker["pairs"], reranker["name"]))
    if teacher := info["teacher"]:
        agreement = info["agreement"]
        stages.append(("answers", info["passages"]["questions"] - agreement["empty"], teacher["name"]))
        for name, text in (("contains", "contain a reference"), ("exact_match", "equal one"), ("f1", "mean token F1")):
            if name in agreement:
                stages.append((f"  {text}", "", _interval("", agreement[name])))
        stages.append(("not kept", agreement["disagrees"] + agreement["empty"], f"rule {agreement['rule']}"))
    stages.append(("rows written", result.rows, str(result.path)))
    report.table(f"{result.path}", ["", "count", ""], stages)
    return result


def _interval(text: str, value: Sequence[float] | None) -> str:
    if value is None:
        return ""
    mean, low, high = value
    return f"{text}: {report.format_interval(mean, low, high)} %".lstrip(": ")
