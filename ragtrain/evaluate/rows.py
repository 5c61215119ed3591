"""The questions that a causal language model is asked, with their passages, under each condition."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragtrain.config.commands.sft import SftDataConfig
from ragtrain.data.sft.conditions import Condition, samples_for
from ragtrain.data.sft.contexts import ContextMaker
from ragtrain.data.sft.distractors import ranked
from ragtrain.data.sft.examples import ExampleFile, read_examples, read_sft
from ragtrain.data.sft.shots import Shots
from ragtrain.errors import ConfigError, DataError
from ragtrain.evaluate.given import contexts_of
from ragtrain.models.folders import read_json
from ragtrain.prepare.contexts import with_contexts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands import EvalConfig
    from ragtrain.data.sft.records import Example, Sample
    from ragtrain.evaluate.subjects import Causal
    from ragtrain.records import Document
    from ragtrain.runs import RunFolder

log = logging.getLogger("ragtrain")

#: Passages searched for each passage of a prompt, where distractors are drawn from what is found.
HARD = 4
#: What the prompts of rows that bring their own hold.
Given = Literal["as given", "contexts of another run"]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked under a condition.

    Attributes:
        condition: its name; ``as given`` where rows bring finished prompts, ``contexts of another run`` where those of
            ``--contexts-from`` are read.
        n_docs: passages in a prompt, at most.
        samples: the prompts.
        references: right answers of each.
        found: what a search found for each, best first; None where the prompts are no result of one.
        left_out: rows without a gold passage, where one is needed.
        contexts: whose passages are read, where they are another run's.
        gold_at: place of the gold passage in a sweep over it, from 1.
        swept: whether this is one of several numbers of passages.
        gold: ids of the passages that a search should have found for each; None as of ``found``.
    """

    condition: Condition | Given
    n_docs: int
    samples: list[Sample]
    references: list[tuple[str, ...]]
    found: list[tuple[Document, ...]] | None
    left_out: int
    contexts: dict[str, Any] | None = None
    gold_at: int | None = None
    swept: bool = False
    gold: list[frozenset[str]] | None = None

    @property
    def name(self) -> str:
        """What tells it from the others: ``retrieved``, ``retrieved@5``, ``gold-at-1``."""
        if self.gold_at is not None:
            return f"gold-at-{self.gold_at}"
        return f"{self.condition}@{self.n_docs}" if self.swept else self.condition

    @property
    def sha256(self) -> str:
        """Hash of all that is asked and expected: questions, passages, solved examples, answers."""
        digest = hashlib.sha256()
        for place, (sample, right) in enumerate(zip(self.samples, self.references, strict=True)):
            seen = [] if self.found is None else [document.id for document in self.found[place]]
            row = [dataclasses.asdict(dataclasses.replace(sample, target="")), right, seen]
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()


def conditions_of(config: EvalConfig, causal: Causal) -> tuple[Condition, ...]:
    """Return the conditions asked for, in order; else what a run was trained with."""
    if config.conditions:
        return tuple(dict.fromkeys(config.conditions))
    if config.gold_position_sweep and not config.n_docs_sweep:
        return ()
    return ("retrieved",) if n_docs_of(config, causal) else ("closed-book",)


def n_docs_of(config: EvalConfig, causal: Causal) -> int:
    """Return the passages in a prompt: as asked for, else as in training.

    A run that was trained on one passage a prompt is asked with one.
    """
    if config.n_docs is not None:
        return config.n_docs
    return min(1, causal.context.n_docs) if causal.context.context_mode == "separate" else causal.context.n_docs


def read_rows(config: EvalConfig, causal: Causal) -> ExampleFile:
    """Read the rows to ask and draw ``num_samples`` of them, in the order of the file.

    Without ``test_data`` they are the test rows beside the run's training rows, else its validation rows; the log says
    which.

    Raises:
        ConfigError: none are given for a model that is no run.
        DataError: they cannot be read, or there are none.
    """
    own = _data_config(config, causal.run)
    if config.test_data is not None:
        path = config.test_data
        file = read_examples(own, path, split=_split(path), most=config.num_samples, seed=config.seed)
    elif causal.run is None:
        raise ConfigError(f"{causal.name} has no test questions of its own", hint="give --test-data")
    else:
        file = _own_rows(config, causal.run, own)
    if not file.examples:
        raise DataError("no rows", path=file.about["path"])
    log.info("answering %d of the %d rows in %s (%s)", len(file.examples), file.about["read"], file.about["path"],
             file.about["format"])  # fmt: skip
    return file


def _split(path: Path) -> Literal["test", "validation"]:
    """Return which rows are meant: of a file those it has, whether or not they have something to learn."""
    return "test" if path.is_file() or any(path.glob("test.*")) else "validation"


def _data_config(config: EvalConfig, run: RunFolder | None) -> SftDataConfig:
    """Return how rows are read: as in training, with what is asked for now."""
    values = dict(run.config.get("data") or {}) if run is not None else {}
    if config.test_data is not None and (config.question_key or config.answer_key):
        values |= {"input_key": None, "output_key": None}
    asked = {name: getattr(config, name) for name in ("question_key", "answer_key", "skip_bad_lines")}
    return SftDataConfig.model_validate(values | {name: value for name, value in asked.items() if value})


def _own_rows(config: EvalConfig, run: RunFolder, own: SftDataConfig) -> ExampleFile:
    train = _train_path(run, own)
    test = (train if train.is_dir() else train.parent) / "test.jsonl"
    if test.is_file():
        return read_examples(own, test, split="test", most=config.num_samples, seed=config.seed)
    rows = read_sft(own, train, int((run.config.get("loop") or {}).get("seed", 0)))
    if not rows.validation:
        raise DataError("neither test nor validation rows are beside the training rows", path=train,
                        hint="give --test-data")  # fmt: skip
    log.info("there is no test.jsonl beside %s: the validation rows are answered, by which the best checkpoint of the run "
             "was chosen", train)  # fmt: skip
    examples, about = rows.validation, dict(rows.sources["validation"])
    about = {"format": "rows of the run", "sha256": None, "read": len(examples), "skipped_lines": 0, **about}
    if config.num_samples is not None and config.num_samples < len(examples):
        chosen = sorted(random.Random(config.seed).sample(range(len(examples)), config.num_samples))
        examples = [examples[place] for place in chosen]
    return ExampleFile(examples, about)


def training_rows(config: EvalConfig, causal: Causal) -> Sequence[Example]:
    """Return the rows that a run was trained on.

    Raises:
        DataError: they are not there any more, or cannot be read.
    """
    if causal.run is None:
        return ()
    own = _data_config(config, causal.run)
    return read_sft(own, _train_path(causal.run, own), _seed(causal)).train


def _train_path(run: RunFolder, own: SftDataConfig) -> Path:
    """Return where a run's training rows stand.

    Raises:
        DataError: they are not there any more.
    """
    recorded = (read_json(run.path / "data.json").get("train") or {}).get("path")
    for path in (recorded, own.train_data):
        if path is not None and Path(path).exists():
            return Path(path)
    raise DataError(f"the run's training rows are not at {recorded or own.train_data} any more, nor its test rows",
                    path=run.path, hint="give --test-data")  # fmt: skip


def ask(config: EvalConfig, causal: Causal, examples: Sequence[Example]) -> tuple[list[Asked], dict[str, Any] | None]:
    """Return what is asked under each condition, and what the index is that passages come from, if any is needed.

    Every condition is what it is whichever others are asked for beside it.

    Raises:
        ConfigError: a condition cannot be had of these rows, or the index is not there.
        DataError: the index cannot be read.
    """
    contexts = contexts_of(config, [example.id for example in examples])
    if contexts is not None:
        shots = _shots(config, causal, _index_of(config, causal) if causal.context.n_shots else None, contexts.most)
        samples = [
            dataclasses.replace(sample, shots=() if shots is None else shots.draw(example))
            for sample, example in zip(contexts.samples(examples), examples, strict=True)
        ]
        references = [example.answers for example in examples]
        return [
            Asked("contexts of another run", contexts.most, samples, references, None, 0, contexts.describe())
        ], None
    if any(example.finished is not None for example in examples):
        return [_as_given(config, causal, examples)], None
    conditions, n_docs = conditions_of(config, causal), n_docs_of(config, causal)
    about = None
    index = None if conditions == ("closed-book",) and not config.gold_position_sweep else _index_of(config, causal)
    if config.retrieval is not None and index is None:
        raise ConfigError(
            "--retrieval says how an index is searched, and none is", hint="give --index-path, or leave it out"
        )
    rows = list(examples)
    every = _sweep(config, conditions, n_docs)
    if index is not None:
        depth = max(_depth(config, most) for _, most, _ in every)
        retrieval = config.retrieval or causal.context.retrieval
        rows, about = with_contexts(rows, index=index, depth=depth, retrieval=retrieval, device=config.device)
    asked = []
    for condition, most, gold_at in every:
        closed = condition == "closed-book"
        chosen = examples if closed else rows
        shots = _shots(config, causal, None if closed else index, most)
        made = samples_for(chosen, condition, most, config.seed, shots=shots, gold_at=gold_at)
        searched = index is not None and condition == "retrieved"
        deep = _depth(config, most)
        asked.append(
            Asked(
                condition, most, made.samples, [chosen[place].answers for place in made.origins],
                [ranked(chosen[place])[:deep] for place in made.origins] if searched else None, len(made.left_out),
                gold_at=gold_at, swept=bool(config.n_docs_sweep) and not closed and gold_at is None,
                gold=[chosen[place].gold for place in made.origins] if searched else None,
            )
        )  # fmt: skip
    return asked, about


def _sweep(config: EvalConfig, conditions: Sequence[Condition], n_docs: int) -> list[tuple[Condition, int, int | None]]:
    """Return what is asked: condition, passages in a prompt, and the place of the gold passage in a sweep over it.

    Raises:
        ConfigError: the gold passage is to stand behind the last one.
    """
    every: list[tuple[Condition, int, int | None]] = []
    for condition in conditions:
        counts = (0,) if condition == "closed-book" else sorted(set(config.n_docs_sweep)) or (n_docs,)
        every += [(condition, count, None) for count in counts]
    places = sorted(set(config.gold_position_sweep))
    if places and places[-1] > n_docs:
        raise ConfigError(
            f"the gold passage cannot be passage {places[-1]} of {n_docs}", hint=f"give --n-docs {places[-1]}"
        )
    return [*every, *(("gold+distractors", n_docs, place) for place in places)]


def _depth(config: EvalConfig, n_docs: int) -> int:
    """Return how many passages are searched for prompts of some size."""
    return max(HARD * n_docs, *config.recall_at, 1)


def _as_given(config: EvalConfig, causal: Causal, examples: Sequence[Example]) -> Asked:
    """Return rows with finished prompts, as they stand."""
    if config.conditions or config.n_docs_sweep or config.gold_position_sweep:
        raise ConfigError("rows with finished prompts hold what they hold: there are no conditions to them",
                          hint="leave --conditions out, or give --test-data with questions and passages")  # fmt: skip
    context = causal.context.model_copy(
        update={"raft": False, "n_shots": 0, "context_mode": "concat", "index": None, "abstain_target": None}
    )
    samples = ContextMaker(examples, context, seed=0).samples(0)
    return Asked("as given", max((len(s.documents) for s in samples), default=0), samples,
                 [example.answers for example in examples], None, 0)  # fmt: skip


def _index_of(config: EvalConfig, causal: Causal) -> Path | None:
    """Return the index given, else the one of training; None where passages are the rows' own.

    Raises:
        ConfigError: the one of training is not there any more.
    """
    if config.index_path is not None:
        return config.index_path
    if causal.index is None:
        return None
    path = Path(causal.index["path"])
    if not path.exists():
        raise ConfigError(f"the index that {causal.name} was trained with is not at {path} any more",
                          hint="give --index-path, or --conditions closed-book")  # fmt: skip
    return path


def _seed(causal: Causal) -> int:
    return int((causal.run.config.get("loop") or {}).get("seed", 0)) if causal.run is not None else 0


def _shots(config: EvalConfig, causal: Causal, index: Path | None, n_docs: int) -> Shots | None:
    """Return what draws solved examples from the training rows, where prompts have any.

    Raises:
        ConfigError: the model lies outside its run, which knows the training rows.
    """
    context = causal.context
    if not context.n_shots:
        return None
    if causal.run is None:
        raise ConfigError(f"{causal.name} is asked with {context.n_shots} solved examples, which its run draws from its "
                          "training rows", hint="give the run folder as --model-dir")  # fmt: skip
    rows = training_rows(config, causal)
    if index is not None and context.n_docs:
        depth = context.n_docs * (HARD if context.raft else 1)
        rows, _ = with_contexts(rows, index=index, depth=depth, retrieval=context.retrieval, device=config.device)
    return Shots(rows, context.n_shots, _seed(causal), n_docs=n_docs)
