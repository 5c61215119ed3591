"""Rows for fine-tuning: questions in any known format, or finished prompts, with the texts that may be learnt.

Containers, formats, ids and bad lines are those of ``ragtrain.data.formats``. What is added here is the text to learn
(``output_key``), prompts that stand finished in the rows (``input_key``, or the field ``prompt`` of rows that are no known
form of question), validation rows held out by group, and a count of what validation shares with training.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

from ragtrain.data.formats import read_questions
from ragtrain.data.formats.custom import OUTPUT, PROMPT, custom, finished, with_output
from ragtrain.data.formats.fields import Record, kind_of, unique
from ragtrain.data.formats.files import BadRecordError
from ragtrain.data.formats.shapes import SHAPES
from ragtrain.data.sft.overflow import named
from ragtrain.data.sft.records import Example
from ragtrain.data.splits import question_words, rank
from ragtrain.errors import DataError
from ragtrain.records import content_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ragtrain.config.commands.sft import SftDataConfig
    from ragtrain.data.formats.shapes import Shape
    from ragtrain.records import Question

log = logging.getLogger("ragtrain")

Split = Literal["train", "validation", "test"]
#: A group that overshoots the share held out by more than this is passed over while there are others.
_OVERSHOOT = 1.25


@dataclasses.dataclass(frozen=True)
class ExampleFile:
    """Rows of a file, in its order, and what is written down of them.

    Attributes:
        examples: their ids are unique.
        about: path, format, sha256; rows used, rows read, rows without a text to learn, bad lines left out; rows with
            passages, with gold passages, and with a finished prompt.
    """

    examples: list[Example]
    about: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SftRows:
    """The rows of a run.

    Attributes:
        train: with something to learn each.
        validation: likewise; empty where there are none.
        folder: where the training rows stand.
        sources: for ``data.json``: paths, hashes, counts, and what validation shares with training.
    """

    train: list[Example]
    validation: list[Example]
    folder: Path
    sources: dict[str, Any]


def read_sft(config: SftDataConfig, path: Path, seed: int, *, max_empty: float = 1.0) -> SftRows:
    """Read training and validation rows.

    Validation rows come from ``val_data``, else from ``validation.jsonl`` beside the training rows, else from ``dev_split``:
    whole groups (articles, or questions on the same gold passages) are held out, so that none stands on both sides.

    Args:
        config: what to read and how many.
        path: the training rows, a file or a dataset folder.
        seed: of the draws.
        max_empty: share of training rows that may have nothing to learn.

    Raises:
        ConfigError: a field is named, and the file is a table without a head.
        DataError: a file cannot be read, holds no row with something to learn, or too many without.
    """
    folder = path if path.is_dir() else path.parent
    beside, test = folder / "validation.jsonl", folder / "test.jsonl"
    val_path = config.val_data or (beside if beside.is_file() and beside != path else None)
    file = read_examples(config, path, split="train", max_empty=max_empty)
    train, validation = file.examples, list[Example]()
    sources: dict[str, Any] = {"train": file.about}
    if val_path is not None:
        if config.dev_split:
            log.info("%s are the validation rows: nothing is held out (--dev-split)", val_path)
        held = read_examples(config, val_path, split="validation", most=config.max_val_samples, seed=seed)
        validation, sources["validation"] = held.examples, held.about
    elif config.dev_split:
        train, held_out = hold_out(train, config.dev_split, seed, path)
        validation = _at_most(held_out, config.max_val_samples, seed)
        sources["validation"] = {"path": str(path), "held_out": len(held_out), "rows": len(validation)}
    else:
        log.warning("no validation rows: no best checkpoint and no early stopping; give --val-data or --dev-split")
    train = _at_most(train, config.max_train_samples, seed, first=not config.shuffle)
    file.about["rows"] = len(train)
    sources["overlap"] = {"same_question": _shared(train, validation), "validation": len(validation)}
    sources["test"] = {"path": str(test if test.is_file() else val_path or path)}
    return SftRows(train, validation, folder, sources)


def read_examples(
    config: SftDataConfig,
    path: Path,
    *,
    split: Split = "train",
    most: int | None = None,
    seed: int = 0,
    max_empty: float = 1.0,
) -> ExampleFile:
    """Read the rows of a file or of a split of a dataset folder.

    Rows without a text to learn are left out and counted, except in ``test``, where the prompt is all that is needed.

    Args:
        config: names of fields, and what to do with bad lines.
        path: a file or a dataset folder.
        split: which rows of a folder.
        most: rows wanted: drawn with the seed, or the first training rows without ``shuffle``.
        seed: of the draw.
        max_empty: share of rows that may be left out for having nothing to learn.

    Raises:
        ConfigError: a field is named, and the file is a table without a head.
        DataError: no known form; a row that does not fit it, with file, line and field; no row with something to learn, or
            too many without.
    """
    found = read_questions(
        path, split=split, skip_bad_lines=config.skip_bad_lines, shapes=_shapes(config, required=split != "test")
    )
    if config.output_key and split != "test" and any(OUTPUT not in question.extra for question in found.questions):
        raise DataError(f"the form {found.format} has no fields, and --output-key names one: {config.output_key!r}",
                        path=found.path, hint="leave --output-key out, or write the rows as JSON lines")  # fmt: skip
    examples = [_example(question) for question in found.questions]
    empty = [example.id for example in examples if not example.targets]
    if split != "test":
        examples = [example for example in examples if example.targets]
        if not examples:
            what = f"the field {config.output_key!r} is empty in all of them" if config.output_key else "no answers"
            raise DataError(f"holds {len(empty)} rows and nothing to learn: {what}", path=found.path,
                            hint="name the field of the text to learn with --output-key")  # fmt: skip
        if empty:
            _tell_empty(found.path, empty, len(found.questions), max_empty)
    if cut := sum("history" in question.extra for question in found.questions):
        log.warning("%s: of %d conversations only the last turn is used", path, cut)
    examples = _at_most(examples, most, seed, first=split == "train" and not config.shuffle)
    about = {
        "path": str(path), "format": found.format, "sha256": found.sha256, "rows": len(examples),
        "read": len(found.questions), "without_target": len(empty), "skipped_lines": found.skipped,
        "with_passages": sum(bool(example.documents) for example in examples),
        "with_gold": sum(bool(example.gold) for example in examples),
        "finished_prompts": sum(example.finished is not None for example in examples),
    }  # fmt: skip
    return ExampleFile(examples, about)


def _tell_empty(path: Path, empty: list[str], rows: int, max_empty: float) -> None:
    """Warn of rows that have nothing to learn, or refuse them where they are too many."""
    message = f"{len(empty)} of {rows} rows have nothing to learn"
    if len(empty) > max_empty * rows:
        raise DataError(f"{message}: {named(empty)}; at most {100 * max_empty:g} % may", path=path,
                        hint="name the field of the text to learn with --output-key, or allow more with "
                        f"--max-untrained-share {math.ceil(100 * len(empty) / rows) / 100:g}")  # fmt: skip
    log.warning("%s: %s and are left out (%s)", path, message, named(empty))


def _shapes(config: SftDataConfig, *, required: bool) -> Sequence[Shape]:
    """Return the forms that rows may have."""
    shapes: Sequence[Shape]
    if config.input_key:
        shapes = (finished(config.input_key, config.question_key, config.answer_key),)
    elif config.question_key or config.answer_key:
        shapes = (custom(config.question_key, config.answer_key),)
    else:
        shapes = (*SHAPES, finished("prompt"))
    if key := config.output_key:
        shapes = [_checked(with_output(shape, key, required=required), key) for shape in shapes]
    return shapes


def _checked(shape: Shape, output_key: str) -> Shape:
    """Return a form in which the field to learn holds texts and nothing else; what it holds becomes a list of them."""

    def read(record: Record) -> Question:
        question = shape.read(record)
        if OUTPUT not in question.extra:
            return question
        texts = list(dict.fromkeys(_texts(question.extra[OUTPUT], output_key)))
        return dataclasses.replace(question, extra={**question.extra, OUTPUT: texts})

    return dataclasses.replace(shape, read=read)


def _texts(value: object, field: str) -> Iterator[str]:
    """Yield texts as they stand, spaces included: they are what is learnt, to the letter."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, field)
    elif isinstance(value, dict) and "text" in value:  # the answers of SQuAD on the hub
        yield from _texts(value["text"], field)
    elif value is not None:
        raise BadRecordError(f"expected a text to learn, or a list of texts, found {kind_of(value)}", field)


def _example(question: Question) -> Example:
    """Return a row of a question, its gold passages first."""
    learnt: Sequence[str] | None = question.extra.get(OUTPUT)
    answers = tuple(answer for answer in question.answers if answer.strip())
    targets = answers if learnt is None else tuple(learnt)
    documents = sorted(unique(question.documents), key=lambda document: not document.is_gold)
    gold = frozenset(document.id for document in documents if document.is_gold)
    return Example(
        id=question.id,
        question=question.question,
        answers=answers or targets,
        targets=targets,
        documents=tuple(documents),
        gold=gold,
        finished=question.extra.get(PROMPT),
        group=question.group or " + ".join(sorted(gold)),
    )


def _at_most(examples: list[Example], most: int | None, seed: int, *, first: bool = False) -> list[Example]:
    """Return at most so many rows in their order: drawn with the seed, or the first ones."""
    if most is None or most >= len(examples):
        return examples
    places = range(most) if first else sorted(random.Random(seed).sample(range(len(examples)), most))
    return [examples[place] for place in places]


def hold_out(
    examples: Sequence[Example], share: float, seed: int, path: Path | None = None
) -> tuple[list[Example], list[Example]]:
    """Return training and held-out rows, each in their order, no group on both sides.

    Groups are taken in a seeded order that does not depend on that of the file, until ``share`` of the rows is reached.

    Raises:
        DataError: there is one group only.
    """
    groups: dict[str, int] = defaultdict(int)
    for example in examples:
        groups[_group(example)] += 1
    if len(groups) < 2:
        raise DataError(f"{len(examples)} rows of one group cannot be cut in two (--dev-split {share})", path=path,
                        hint="give validation rows of their own with --val-data")  # fmt: skip
    wanted = max(1, round(len(examples) * share))
    order = sorted(groups, key=lambda group: rank("hold out", seed, group))
    aside: set[str] = set()
    rows = 0
    for group in order:
        if rows >= wanted or len(aside) == len(groups) - 1:
            break
        if rows + groups[group] <= max(1.0, wanted * _OVERSHOOT):
            aside.add(group)
            rows += groups[group]
    if not aside:  # every group is larger than the share
        aside.add(min(order, key=groups.__getitem__))
    train = [example for example in examples if _group(example) not in aside]
    return train, [example for example in examples if _group(example) in aside]


def _group(example: Example) -> str:
    return example.group or content_id(example.question)


def _shared(train: Sequence[Example], validation: Sequence[Example]) -> int:
    """Return how many validation questions training asks too, apart from case, spacing and punctuation; warn of them."""
    asked = {question_words(example.question) for example in train}
    shared = sum(question_words(example.question) in asked for example in validation)
    if shared:
        log.warning("%d of %d validation questions are training questions too: their scores say what was learnt by heart",
                    shared, len(validation))  # fmt: skip
    return shared
