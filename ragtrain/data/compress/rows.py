"""Rows for compressors: questions with answers and passages in any known format, with what a teacher said of them.

Containers, formats, ids and bad lines are those of ``ragtrain.data.formats``. A teacher's answers (``teacher_answer``) and a
reranker's scores (``reranking_scores``, or the scores of documents where ``reranker_model`` is named) are those that ``ragtrain
data teach`` and ScaleDown's scripts write.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragtrain.data.compress.records import CompressExample, passage_text
from ragtrain.data.formats import read_questions
from ragtrain.data.formats.custom import custom
from ragtrain.data.formats.fields import Record, any_documents, number_of, text_of, unique
from ragtrain.data.formats.shapes import SHAPES, Shape, make
from ragtrain.data.sft.distractors import ranked
from ragtrain.data.sft.examples import hold_out
from ragtrain.data.sft.overflow import named
from ragtrain.data.splits import question_words, rank
from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands.compress import CompressDataConfig
    from ragtrain.records import Question

log = logging.getLogger("ragtrain")

#: Held out where nothing else says what is measured.
DEV_SPLIT = 0.1
#: Forms whose documents have scores that a reranker gave.
_RERANKED = ("scaledown", "flagembedding")


@dataclasses.dataclass(frozen=True)
class CompressRows:
    """The rows of a run.

    Attributes:
        train: with something to learn each.
        validation: with references each; what is measured.
        folder: where the training rows stand.
        sources: for ``data.json``: paths, hashes, counts, and what validation shares with training.
    """

    train: list[CompressExample]
    validation: list[CompressExample]
    folder: Path
    sources: dict[str, Any]


def read_compress(config: CompressDataConfig, path: Path, seed: int) -> CompressRows:
    """Read training and evaluation rows.

    Evaluation rows come from ``eval_data``, else from ``NAME_eval.json`` beside the file ``NAME.json`` or from
    ``validation.jsonl`` in its folder, else from ``dev_split`` (a tenth where it is not given): whole groups are held out.

    Args:
        config: what to read and how many.
        path: the training rows, a file or a dataset folder.
        seed: of the draws.

    Raises:
        ConfigError: a field is named, and the file is a table without a head.
        DataError: a file cannot be read, or holds no row with something to learn.
    """
    train, about = read_rows(config, path, split="train")
    sources: dict[str, Any] = {"train": about}
    eval_path = config.eval_data or evaluation_beside(path)
    if eval_path is not None:
        if config.dev_split:
            log.info("%s is what is measured: nothing is held out (--dev-split)", eval_path)
        validation, sources["validation"] = read_rows(config, eval_path, split="validation")
    else:
        share = DEV_SPLIT if config.dev_split is None else config.dev_split
        validation = list[CompressExample]()
        if share:
            log.info("%s has no file of evaluation rows beside it: %g %% of its groups are held out", path, 100 * share)
            train, validation = held_out(train, share, seed, path)
        sources["validation"] = {"path": str(path), "held_out": len(validation)}
    train = draw_rows(train, config.max_train_samples, seed)
    validation = draw_rows(validation, config.max_eval_samples, seed)
    sources["train"]["rows"], sources["validation"]["rows"] = len(train), len(validation)
    sources["overlap"] = {"same_question": _shared(train, validation), "validation": len(validation)}
    return CompressRows(train, validation, path if path.is_dir() else path.parent, sources)


def with_passages(rows: CompressRows) -> CompressRows:
    """Return the rows that have something to compress; those without are counted in ``sources`` and told of.

    Raises:
        DataError: no training row has a passage, or no evaluation row of those there are.
    """
    kept: dict[str, list[CompressExample]] = {}
    for name, examples in (("train", rows.train), ("validation", rows.validation)):
        kept[name] = [example for example in examples if any(passage_text(each) for each in ranked(example))]
        if missing := len(examples) - len(kept[name]):
            rows.sources[name]["without_passages"] = missing
            if not kept[name]:
                raise DataError(f"none of {missing} rows ({name}) has a passage, and there is nothing to compress",
                                path=Path(rows.sources[name]["path"]),
                                hint="find passages in an index (--index FOLDER of ragtrain index prepare), or give rows with "
                                "documents")  # fmt: skip
            log.warning("%d of %d rows (%s) have no passage and are left out", missing, len(examples), name)
    return dataclasses.replace(rows, train=kept["train"], validation=kept["validation"])


def evaluation_beside(path: Path) -> Path | None:
    """Return the evaluation rows that belong to a training file: ``NAME_eval.json`` or ``validation.jsonl``."""
    folder = path if path.is_dir() else path.parent
    names = [folder / "validation.jsonl"]
    if not path.is_dir():
        stem, dot, suffix = path.name.partition(".")
        names.insert(0, folder / f"{stem}_eval{dot}{suffix}")
    return next((each for each in names if each.is_file() and each != path), None)


def read_rows(
    config: CompressDataConfig, path: Path, *, split: Literal["train", "validation", "test"]
) -> tuple[list[CompressExample], dict[str, Any]]:
    """Return the rows of a file or of a split of a dataset folder, and what is written down of them.

    Training rows without a text to learn, and others without references, are left out and counted.

    Raises:
        ConfigError: a field is named, and the file is a table without a head.
        DataError: no known form, a row that does not fit it, scores that do not fit the documents, or no row is left.
    """
    named_fields = config.question_key or config.answer_key
    shapes = (custom(config.question_key, config.answer_key),) if named_fields else (PISCO, *SHAPES)
    found = read_questions(path, split=split, skip_bad_lines=config.skip_bad_lines, shapes=shapes)
    reranked = found.format in _RERANKED
    # What is measured is measured on references; on a teacher's answers only where a question has none.
    source = config.answers if split == "train" else "teacher-or-gold"
    examples = [example_of(question, answers=source, reranked=reranked) for question in found.questions]
    if split != "train":
        examples = [dataclasses.replace(each, targets=each.answers) for each in examples]
    empty = [example.id for example in examples if not example.targets]
    kept = [example for example in examples if example.targets]
    what = "answer of a teacher" if source == "teacher" else "answer"
    if not kept:
        hint = "take --answers gold, or let" if source == "teacher" else "let"
        hint += " a language model answer the questions by their passages: ragtrain data teach"
        raise DataError(f"holds {len(empty)} rows and none with an {what}", path=found.path, hint=hint)
    if empty:
        log.warning(
            "%s: %d of %d rows have no %s and are left out (%s)", path, len(empty), len(examples), what, named(empty)
        )
    about = {
        "path": str(path), "format": found.format, "sha256": found.sha256, "rows": len(kept), "read": len(examples),
        "without_target": len(empty), "skipped_lines": found.skipped,
        "with_passages": sum(bool(example.documents) for example in kept),
        "passages": sum(len(example.documents) for example in kept),
        "with_gold": sum(bool(example.gold) for example in kept),
        "with_scores": sum(bool(example.scores) for example in kept),
        "with_teacher_answer": sum(example.teacher_answer is not None for example in kept),
        "teacher_as_reference": sum(example.answers == (example.teacher_answer,) for example in kept),
    }  # fmt: skip
    return kept, about


def example_of(
    question: Question,
    *,
    answers: Literal["gold", "teacher", "teacher-or-gold"] = "gold",
    reranked: bool = False,
) -> CompressExample:
    """Return a row of a question.

    Args:
        question: as it was read.
        answers: which texts are learnt.
        reranked: the scores of its documents are a reranker's.

    Raises:
        DataError: its scores are not numbers, or not as many as its documents.
    """
    references = tuple(answer for answer in question.answers if answer.strip())
    said = question.extra.get("teacher_answer")
    teacher = said.strip() or None if isinstance(said, str) else None
    learnt = references if answers == "gold" or (teacher is None and answers == "teacher-or-gold") else ()
    if answers != "gold" and teacher is not None:
        learnt = (teacher,)
    documents = unique(question.documents)
    gold = frozenset(document.id for document in documents if document.is_gold)
    return CompressExample(
        id=question.id,
        question=question.question,
        answers=references or learnt,
        targets=learnt,
        documents=documents,
        gold=gold,
        group=question.group or " + ".join(sorted(gold)),
        scores=_scores(question, reranked=reranked or "reranker_model" in question.extra),
        teacher_answer=teacher,
    )


def _scores(question: Question, *, reranked: bool) -> dict[str, float]:
    """Return the reranker's scores of a question's documents by their ids; of two copies of one the better."""
    given = question.extra.get("reranking_scores")
    if given is None:
        scores: list[object] = [document.score if reranked else None for document in question.documents]
    elif isinstance(given, list) and len(given) == len(question.documents):
        scores = given
    else:
        found = f"{len(given)}" if isinstance(given, list) else "none"
        raise DataError(f"row {question.id} has {len(question.documents)} documents and {found} scores of a reranker",
                        field="reranking_scores", hint="give one for each document, null where there is none")  # fmt: skip
    best: dict[str, float] = {}
    for document, value in zip(question.documents, scores, strict=True):
        score = number_of(value)
        if score is None and value is not None:
            raise DataError(
                f"row {question.id}: expected scores that are numbers, found {value!r}", field="reranking_scores"
            )
        if score is not None and math.isfinite(score):
            best[document.id] = max(score, best.get(document.id, -math.inf))
    return best


def _pisco(record: Record) -> Question:
    documents = unique(any_documents(record, "docs"))
    made = make(record, "query", (), documents=documents, used=("docs", "mistral_label"))
    return dataclasses.replace(made, extra={**made.extra, "teacher_answer": text_of(record, "mistral_label")})


#: What PISCO and OSCAR were trained on, as it was published: a teacher's answers, and no others.
PISCO = Shape(
    "pisco", "query, docs, mistral_label", lambda record: {"query", "docs", "mistral_label"} <= record.keys(), _pisco
)


def held_out(
    examples: Sequence[CompressExample], share: float, seed: int, path: Path | None = None
) -> tuple[list[CompressExample], list[CompressExample]]:
    """Return training rows and those that are measured, no group on both sides.

    Raises:
        DataError: there is one group only.
    """
    train, _ = hold_out(examples, share, seed, path)
    kept = {example.id for example in train}
    return [each for each in examples if each.id in kept], [each for each in examples if each.id not in kept]


def draw_rows(examples: list[CompressExample], most: int | None, seed: int) -> list[CompressExample]:
    """Return at most so many rows, drawn with the seed, in their order."""
    if most is None or most >= len(examples):
        return examples
    order = sorted(range(len(examples)), key=lambda i: rank("compress", seed, examples[i].id))
    return [examples[i] for i in sorted(order[:most])]


def _shared(train: Sequence[CompressExample], validation: Sequence[CompressExample]) -> int:
    """Return how many questions of the evaluation are asked in training too; warn of them."""
    asked = {question_words(example.question) for example in train}
    shared = sum(question_words(example.question) in asked for example in validation)
    if shared:
        log.warning("%d of %d questions that are measured are training questions too: their scores say what was learnt by "
                    "heart", shared, len(validation))  # fmt: skip
    return shared
