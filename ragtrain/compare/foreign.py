"""Predictions that other programs wrote, as rows of ours.

RAG-FiT      the JSON lines of its inference: ``query`` or ``question``, ``answers`` (or ``answer``, ``output_key`` texts), ``generated``
             or ``text``
FlashRAG     ``intermediate_data.json``: ``golden_answers``, ``output.pred``, ``output.retrieval_result``
lm-eval      ``samples_*.jsonl``: ``doc_id``, ``doc``, ``target``, ``filtered_resps`` (or ``resps``)
tables       CSV or TSV with the columns id and prediction; the references are those of the other runs

Formats are those of FlashRAG 0.2, lm-evaluation-harness 0.4 and RAG-FiT 2.0. What has no id of its own gets that of its
question, so that runs on the same questions meet.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from ragtrain.errors import DataError
from ragtrain.records import content_id, split_contents

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_WRITTEN = ("generated", "text", "prediction", "pred", "output", "model_answer")
_ASKED = ("query", "question", "input", "prompt")
_REFERENCES = ("answers", "golden_answers", "answer", "gold", "target", "targets", "references")


def read_table(path: Path) -> list[tuple[int | None, dict[str, Any]]]:
    """Return the rows of a CSV or TSV file with the columns id and prediction.

    Raises:
        DataError: a column is missing, or a line has no cell for it.
    """
    found: list[tuple[int | None, dict[str, Any]]] = []
    csv.field_size_limit(2**31 - 1)  # of 131,072 characters, which a prompt that is repeated passes
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        for needed in ("id", "prediction"):
            if needed not in names:
                raise DataError(f"no column {needed!r} among {', '.join(names) or 'none'}", path=path, line=1,
                                hint="a table of predictions has the columns id and prediction")  # fmt: skip
        reader.fieldnames = names
        for row in reader:
            if row["id"] is None or row["prediction"] is None:
                raise DataError("a cell is missing", path=path, line=reader.line_num, field="prediction")
            found.append((reader.line_num, {"id": row["id"], "prediction": row["prediction"]}))
    return found


def as_ours(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of another program with our names; a row of ours, and one of no known program, is returned as it is."""
    if "prediction" in row and "answers" in row and "id" in row:
        return dict(row)
    if isinstance(row.get("output"), dict) and "pred" in row["output"]:
        return _flashrag(row)
    if "doc_id" in row and ("filtered_resps" in row or "resps" in row):
        return _lm_eval(row)
    asked = next((row[name] for name in _ASKED if isinstance(row.get(name), str)), None)
    written = next((row[name] for name in _WRITTEN if isinstance(row.get(name), str)), None)
    references = next((row[name] for name in _REFERENCES if row.get(name) is not None), None)
    if asked is None or written is None or references is None:
        return dict(row)
    rest = {name: row[name] for name in ("first_hit", "depth", "documents", "seconds") if name in row}
    identifier = row.get("id", content_id(asked))
    return {"id": identifier, "question": asked, "prediction": written, "answers": _texts(references), **rest}


def _flashrag(row: Mapping[str, Any]) -> dict[str, Any]:
    output, question = row["output"], str(row.get("question", ""))
    passages = output.get("retrieval_result")
    documents = list(_passages(passages)) if isinstance(passages, list) else []
    answers = _texts(row.get("golden_answers", []))
    return {
        "id": row.get("id", content_id(question)), "question": question, "answers": answers,
        "prediction": str(output["pred"]), "documents": documents,
    }  # fmt: skip


def _passages(found: list[Any]) -> Iterator[dict[str, Any]]:
    for each in found:
        if isinstance(each, dict):
            contents = str(each.get("contents", ""))
            title, text = (
                split_contents(contents) if contents else (str(each.get("title", "")), str(each.get("text", "")))
            )
            yield {"id": str(each.get("id", "")), "title": title, "text": text}


def _lm_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    responses: Any = row.get("filtered_resps") or row.get("resps")
    while isinstance(responses, list) and responses:
        responses = responses[0]
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    question = next((doc[name] for name in ("question", "query", "input") if isinstance(doc.get(name), str)), "")
    references = row.get("target")
    if references in (None, "", []):
        references = next((doc[name] for name in _REFERENCES if doc.get(name) is not None), [])
    return {
        "id": str(doc.get("id", row["doc_id"])), "question": question, "prediction": str(responses or "").strip(),
        "answers": _texts(references),
    }  # fmt: skip


def _texts(value: Any) -> list[str]:  # noqa: ANN401 - any JSON
    """Return the texts of a reference: a text, a list, lists of lists (ASQA's pairs), SQuAD's object."""
    if isinstance(value, dict):
        value = value.get("text", value.get("value", list(value.values())))
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [] if value is None else [str(value)]
