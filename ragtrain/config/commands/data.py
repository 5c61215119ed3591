"""``ragtrain data fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from ragtrain.config.base import Command, NonNegativeInt, PositiveInt

DATASETS = ("demo", "squad", "nq", "trivia_qa", "hotpot_qa", "ms_marco", "all")

#: What other tools call the same sets.
_OTHER_NAMES = {
    "natural_questions": "nq",
    "nq_open": "nq",
    "triviaqa": "trivia_qa",
    "hotpotqa": "hotpot_qa",
    "msmarco": "ms_marco",
}


class FetchConfig(Command):
    """Get a question set and its passages into one record format."""

    name: ClassVar[str] = "data fetch"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain data fetch demo",
        "ragtrain data fetch squad --source train-v1.1.json --output-dir data/squad",
        "ragtrain data fetch --dataset hotpot_qa --num-examples 500 --output-file small.json",
    )
    title: ClassVar[str] = "Data"
    positional: ClassVar[str | None] = "dataset"
    positional_metavar: ClassVar[str] = "[NAME]"

    dataset: Literal["demo", "squad", "nq", "trivia_qa", "hotpot_qa", "ms_marco", "all"] = "demo"
    """Data set to get; ``demo`` is built in and needs no network."""
    source: tuple[Path, ...] = ()
    """Raw files of the set (gz included) to read instead of the hub; with two, the second is the evaluation split."""
    num_examples: PositiveInt | None = None
    """Questions to keep, drawn with the seed; without it, all."""
    num_documents: PositiveInt | None = None
    """Documents that a question has at least, if it has any: others of its article or set are added, none of which holds an
    answer. Without it 5 in ``output_file``, and those of the set in a folder."""
    split: Literal["train", "validation", "test"] | None = None
    """Keep this official split only; without it, train stays train and validation stays validation."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the groups (articles, question families) set aside where a set has one split only."""
    seed: NonNegativeInt = 0
    """Seed of every draw."""
    output_dir: Path | None = None
    """Dataset folder to write; without it ``data/NAME``."""
    output_file: Path | None = None
    """Write this JSON file and NAME_eval.json beside it instead of a dataset folder."""
    overwrite: bool = False
    """Replace an existing dataset folder or file."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""

    @field_validator("dataset", mode="before")
    @classmethod
    def _known_name(cls, value: object) -> object:
        return _OTHER_NAMES.get(value, value) if isinstance(value, str) else value
