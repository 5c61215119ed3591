"""Fetching: a public set, from the hub or from raw files, into one dataset folder or a pair of JSON files.

A dataset folder holds ``train.jsonl``, ``validation.jsonl`` (``test.jsonl`` where the set has one), ``passages.jsonl``
(the documents of the questions, each once, and whatever passages came with the set) and ``dataset.json``, which says
where all of it came from. What is the same gives the same bytes, so a second call with the same arguments has nothing
to do.

Splits. Official splits stay what they are. A set of one split is cut by group; a split that was asked for by name
(``split``) and is not ``train`` is kept whole. Evaluation questions that training knows are dropped and counted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.data import sources, splits
from ragtrain.data.beside import filled
from ragtrain.data.pairs import FIRST_DOCUMENTS, pair_record
from ragtrain.errors import ConfigError
from ragtrain.records import Passage, Question, sha256_file, write_json, write_jsonl

if TYPE_CHECKING:
    from ragtrain.config.commands import FetchConfig
    from ragtrain.data.sources import Loaded
    from ragtrain.data.splits import Overlap

log = logging.getLogger("ragtrain")

#: Raised whenever the same request gives other bytes than before.
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class FetchResult:
    """What was written, or what stood there already.

    Attributes:
        path: the dataset folder, or the first of the pair of files.
        files: every file, with its rows and SHA-256.
        counts: questions by split and source set.
        overlap: what evaluation shared with training, by split.
        up_to_date: everything stood there already and nothing was written.
        info: the whole of ``dataset.json``.
    """

    path: Path
    files: dict[str, dict[str, Any]]
    counts: dict[str, dict[str, int]]
    overlap: list[dict[str, Any]]
    up_to_date: bool
    info: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"path": str(self.path), "up_to_date": self.up_to_date, **self.info}


@dataclasses.dataclass(slots=True)
class _Set:
    """A set on its way from source to disk."""

    splits: dict[str, list[Question]]
    passages: list[Passage]
    overlap: list[Overlap]
    how: list[str]


def run(config: FetchConfig) -> FetchResult:
    """Fetch a set as configured.

    Raises:
        ConfigError: arguments that contradict each other, or an output that exists and is not to be replaced.
        DataError: a source that cannot be read or reached.
    """
    if config.output_dir and config.output_file:
        raise ConfigError(
            "output_dir and output_file are both given, and a set is written to one of them",
            hint="leave --output-file out for a dataset folder, --output-dir for a pair of JSON files",
        )
    target = config.output_file or config.output_dir or Path("data") / config.dataset
    request = _request(config)
    standing = _standing(target, config)
    # The demo costs nothing to build, and a newer version of it is another set.
    if standing and standing["request"] == request and config.dataset != "demo" and not config.overwrite:
        return _show(_result(target, standing, up_to_date=True))
    if standing is None or standing["request"] != request:
        _refuse_existing(target, config)
    loaded = sources.load(config)
    made = _assemble(loaded, config)
    info = _info(config, request, loaded, made)
    write = _write_pair if config.output_file else _write_folder
    return _show(write(target, made, info, config))


def _least_documents(config: FetchConfig) -> int | None:
    """Return the documents that a question has at least, if it has any; None for those of the set as they are."""
    return config.num_documents or (FIRST_DOCUMENTS if config.output_file else None)


def _request(config: FetchConfig) -> dict[str, Any]:
    least = _least_documents(config)
    return {
        **({"num_documents": least} if least else {}),
        "format": FORMAT,
        "dataset": config.dataset,
        "sources": sources.source_record(config),
        "num_examples": config.num_examples,
        "split": config.split,
        "eval_fraction": config.eval_fraction,
        "seed": config.seed,
        "skip_bad_lines": config.skip_bad_lines,
        "form": "pair" if config.output_file else "folder",
    }


def _pair_paths(target: Path) -> tuple[Path, Path, Path]:
    """Return the training file, the evaluation file beside it, and the file that says where they came from."""
    stem = target.with_suffix("") if target.suffix else target
    return target, stem.with_name(f"{stem.name}_eval.json"), stem.with_name(f"{stem.name}.dataset.json")


def _info_path(target: Path, config: FetchConfig) -> Path:
    return _pair_paths(target)[2] if config.output_file else target / "dataset.json"


def _standing(target: Path, config: FetchConfig) -> dict[str, Any] | None:
    """Return what is recorded of an earlier fetch, if every file of it is still as it was written."""
    try:
        info = json.loads(_info_path(target, config).read_text(encoding="utf-8"))
        folder = target.parent if config.output_file else target
        whole = all(sha256_file(folder / name) == entry["sha256"] for name, entry in info["files"].items())
        return info if whole and isinstance(info["request"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _refuse_existing(target: Path, config: FetchConfig) -> None:
    if config.output_file:
        if target.suffix.lower() != ".json":
            raise ConfigError(f"output_file is {target}; expected a name that ends in .json")
        existing = [path for path in _pair_paths(target) if path.exists()]
        if existing and not config.overwrite:
            raise ConfigError(f"{existing[0]} exists and was not made by this request", hint="replace it: --overwrite")
        return
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / "dataset.json").is_file():
        raise ConfigError(
            f"{target} exists and is no dataset folder (it has no dataset.json), so it is left alone",
            hint="choose another place: --output-dir FOLDER",
        )
    if not config.overwrite:
        raise ConfigError(
            f"{target} holds a set that was made by another request or changed since",
            hint=f"replace it: ragtrain data fetch {config.dataset} ... --overwrite, or choose another --output-dir",
        )


def _assemble(loaded: list[Loaded], config: FetchConfig) -> _Set:
    """Split, keep evaluation apart from training, draw, and give documents and passages common ids."""
    how: list[str] = []
    parts = [_split(member, config, how) for member in loaded]
    names = [name for name in ("train", "validation", "test") if any(part.get(name) for part in parts)]
    if config.output_file and "validation" in names:
        names = [name for name in names if name != "test"]  # a pair has one file of evaluation questions
    overlaps: list[Overlap] = []
    train = [question for part in parts for question in part.get("train", ())]
    for name in names:
        if name == "train" or not train:
            continue
        for part in parts:
            part[name], overlap = splits.keep_apart(train, part.get(name, ()), name)
            overlaps.append(overlap)
    quotas = _quotas(names, config)
    joined: dict[str, list[Question]] = {}
    for name in names:
        members = [part.get(name, []) for part in parts]
        if len(members) > 1:
            joined[name] = splits.balance(members, quotas.get(name), config.seed)
        else:
            joined[name] = splits.draw(members[0], quotas.get(name, len(members[0])), config.seed)
    if least := _least_documents(config):
        joined = {
            name: filled(joined[name], [q for part in parts for q in part.get(name, ())], least, config.seed)
            for name in names
        }
        how.append(
            f"questions with fewer than {least} documents have others of their group or set beside them, which hold no answer"
        )
    if len(loaded) > 1:
        joined = _distinct(joined)
        how.append("equally many questions of every set, as far as each goes")
    if config.num_examples:
        how.append(f"{config.num_examples} questions drawn from every group in turn, with the seed")
    standalone = [passage for member in loaded for passage in member.passages]
    changed, passages = splits.collect_passages(joined, standalone)
    return _Set(changed, passages, overlaps, how)


def _split(member: Loaded, config: FetchConfig, how: list[str]) -> dict[str, list[Question]]:
    """Return a set's questions by split; one split alone is cut by group unless it was asked for as evaluation."""
    held = dict(member.splits)
    if config.split:
        held = {name: questions for name, questions in held.items() if name == config.split}
    if len(held) != 1 or (config.split not in (None, "train") and not config.output_file):
        how.append(f"{member.name}: splits as given ({', '.join(held)})")
        return held
    ((name, questions),) = held.items()
    train, validation = splits.cut(questions, config.eval_fraction, config.seed)
    groups = {splits.group_of(question) for question in questions}
    aside = {splits.group_of(question) for question in validation}
    how.append(
        f"{member.name}: the one split ({name}) cut by group, {len(aside)} of {len(groups)} groups set aside with the seed"
    )
    return {
        "train": [dataclasses.replace(question, split="train") for question in train],
        "validation": [dataclasses.replace(question, split="validation") for question in validation],
    }


def _quotas(names: list[str], config: FetchConfig) -> dict[str, int]:
    """Return how many questions each split may keep: ``eval_fraction`` of them for evaluation, shared out evenly."""
    total = config.num_examples
    if total is None:
        return {}
    evaluation = [name for name in names if name != "train"]
    if len(evaluation) == len(names):
        return {name: total // len(names) + (i < total % len(names)) for i, name in enumerate(names)}
    for_evaluation = (
        min(max(len(evaluation), round(total * config.eval_fraction)), max(total - 1, 0)) if evaluation else 0
    )
    quotas = {"train": total - for_evaluation}
    for i, name in enumerate(evaluation):
        quotas[name] = for_evaluation // len(evaluation) + (i < for_evaluation % len(evaluation))
    return quotas


def _distinct(joined: dict[str, list[Question]]) -> dict[str, list[Question]]:
    """Return a mix in which an id that several sets use is told apart by the set's name."""
    counts = Counter(question.id for questions in joined.values() for question in questions)
    return {
        split: [
            dataclasses.replace(question, id=f"{question.dataset}-{question.id}")
            if counts[question.id] > 1
            else question
            for question in questions
        ]
        for split, questions in joined.items()
    }


def _info(config: FetchConfig, request: dict[str, Any], loaded: list[Loaded], made: _Set) -> dict[str, Any]:
    counts = {name: dict(Counter(question.dataset for question in part)) for name, part in made.splits.items()}
    bare = sum(not question.documents for part in made.splits.values() for question in part)
    return {
        "name": config.dataset,
        "licence": {member.name: member.licence for member in loaded},
        "origin": [{"set": member.name, **entry} for member in loaded for entry in member.origin],
        "how": made.how,
        "counts": counts,
        "groups": {name: len({splits.group_of(q) for q in part}) for name, part in made.splits.items()},
        "passages": len(made.passages),
        **({"without_documents": bare} if bare and made.passages else {}),
        "overlap": [dataclasses.asdict(overlap) for overlap in made.overlap],
        "bad_lines_left_out": sum(member.skipped for member in loaded),
        "unanswered": sum(not question.answers for part in made.splits.values() for question in part),
        "unanswered_left_out": {m.name: m.unanswered for m in loaded if m.unanswered},
        "seed": config.seed,
        "request": request,
        "files": {},
    }


def _write_folder(target: Path, made: _Set, info: dict[str, Any], config: FetchConfig) -> FetchResult:
    """Write a folder aside and put it in the place of what stood there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        files = {}
        for name, questions in made.splits.items():
            files[f"{name}.jsonl"] = write_jsonl(
                aside / f"{name}.jsonl", (question.to_json() for question in questions)
            )
        if made.passages:
            rows = (passage.to_json() for passage in made.passages)
            files["passages.jsonl"] = write_jsonl(aside / "passages.jsonl", rows)
        info["files"] = {name: {"rows": rows, "sha256": sha256_file(aside / name)} for name, rows in files.items()}
        write_json(aside / "dataset.json", info)
        standing = _standing(target, config)
        if standing == info and not config.overwrite:
            return _result(target, info, up_to_date=True)
        if standing is not None:
            _refuse_existing(target, config)
        try:
            _swap(aside, target, config.overwrite)
        except OSError:
            # Another process may have written the same set in the meantime.
            if _standing(target, config) == info:
                return _result(target, info, up_to_date=True)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _result(target, info, up_to_date=False)


def _swap(aside: Path, target: Path, replace: bool) -> None:
    """Put a folder in a free place, or in that of another: what else stood there (an index, say) moves over."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if replace and target.exists():
        target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    if not old.exists():
        return
    ours = {"train.jsonl", "validation.jsonl", "test.jsonl", "passages.jsonl", "dataset.json"}
    for entry in sorted(old.iterdir()):
        if entry.name not in ours:
            entry.rename(target / entry.name)
            log.warning("%s was kept; if it was made from the earlier passages, make it anew", target / entry.name)
    shutil.rmtree(old)


def _write_pair(target: Path, made: _Set, info: dict[str, Any], config: FetchConfig) -> FetchResult:
    """Write the two files that ScaleDown's guide names, and their origin beside them; all aside, then renamed."""
    train_path, eval_path, info_path = _pair_paths(target)
    evaluation = made.splits.get("validation") or made.splits.get("test") or []
    aside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        for path, questions in ((train_path, made.splits.get("train", [])), (eval_path, evaluation)):
            write_json(aside / path.name, [pair_record(question, config.seed) for question in questions])
            info["files"][path.name] = {"rows": len(questions), "sha256": sha256_file(aside / path.name)}
        write_json(aside / info_path.name, info)
        standing = _standing(target, config)
        if standing == info and not config.overwrite:
            return _result(target, info, up_to_date=True)
        if standing is not None:
            _refuse_existing(target, config)
        for path in (train_path, eval_path, info_path):
            (aside / path.name).replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _result(target, info, up_to_date=False)


def _result(target: Path, info: dict[str, Any], *, up_to_date: bool) -> FetchResult:
    return FetchResult(target, info["files"], info["counts"], info["overlap"], up_to_date, info)


def _show(result: FetchResult) -> FetchResult:
    """Report what a fetch gave."""
    info = result.info
    if result.up_to_date:
        log.info("%s is up to date", result.path)
    rows: list[list[object]] = []
    for split, by_set in result.counts.items():
        dropped = sum(entry["dropped"] for entry in result.overlap if entry["split"] == split)
        sets = ", ".join(f"{name} {count}" for name, count in by_set.items())
        rows.append([split, sum(by_set.values()), info["groups"][split], dropped, sets])
    report.table(
        f"{info['name']} in {result.path}, {info['passages']} passages",
        ["split", "questions", "groups", "dropped (known from training)", "sets"],
        rows,
    )
    for entry in result.overlap:
        if entry["dropped"]:
            log.info(
                "%s: %d questions dropped that training knows: %d are asked there too, %d are answered from %d contexts used there",
                entry["split"], entry["dropped"], entry["same_question"], entry["same_context"], entry["shared_contexts"],
            )  # fmt: skip
    for name, left_out in info["unanswered_left_out"].items():
        log.info(
            "%s: questions without an answer left out: %s", name, ", ".join(f"{k} {v}" for k, v in left_out.items())
        )
    if info["unanswered"]:
        log.warning("%d questions have no answer: they serve retrieval only", info["unanswered"])
    if bare := info.get("without_documents"):
        log.warning(
            "%d questions have no documents; an index of a corpus finds them: ragtrain index prepare --passages FILE",
            bare,
        )
    if not info["passages"]:
        log.warning("the set has no passages; retrieval needs a corpus: ragtrain index prepare --passages FILE")
    return result
