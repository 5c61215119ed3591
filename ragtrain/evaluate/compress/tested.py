"""The questions that a run of ``train compress`` is asked by ``ragtrain eval``, with their passages."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ragtrain.config.commands.compress import CompressDataConfig
from ragtrain.data.compress.contexts import CompressContexts
from ragtrain.data.compress.rows import draw_rows, read_compress, read_rows
from ragtrain.errors import ConfigError, DataError
from ragtrain.models.folders import read_json
from ragtrain.prepare.contexts import with_contexts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands import EvalConfig
    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.subject import Trained

log = logging.getLogger("ragtrain")


def read(config: EvalConfig, trained: Trained) -> tuple[list[CompressExample], dict[str, Any]]:
    """Return the rows to ask, in the order of the file, and what is known of the file.

    Without ``test_data`` they are the test rows of the dataset folder that the run was trained on, else the run's evaluation
    rows; the log says which.

    Raises:
        ConfigError: none are given for a model by itself.
        DataError: they cannot be read, or there are none.
    """
    own = _data_config(config, trained)
    if config.test_data is not None:
        path = config.test_data
        split = "test" if path.is_file() or any(path.glob("test.*")) else "validation"
        rows, about = read_rows(own, path, split="test" if split == "test" else "validation")
    elif trained.run is None:
        raise ConfigError(f"{trained.name} has no test questions of its own", hint="give --test-data")
    else:
        rows, about = _own_rows(trained, own)
    rows = draw_rows(rows, config.num_samples, config.seed)
    if not rows:
        raise DataError("no rows", path=about["path"])
    log.info("answering %d of the %d rows in %s (%s)", len(rows), about["read"], about["path"], about["format"])
    return rows, about


def _data_config(config: EvalConfig, trained: Trained) -> CompressDataConfig:
    """Return how rows are read: as in training, with what is asked for now."""
    values = dict(trained.run.config.get("data") or {}) if trained.run is not None else {}
    asked = {name: getattr(config, name) for name in ("question_key", "answer_key", "skip_bad_lines")}
    return CompressDataConfig.model_validate(values | {name: value for name, value in asked.items() if value})


def _own_rows(trained: Trained, own: CompressDataConfig) -> tuple[list[CompressExample], dict[str, Any]]:
    """Return the test rows of a run, else those that it was evaluated on.

    Raises:
        DataError: neither are there any more.
    """
    run = trained.run
    recorded = {} if run is None else read_json(run.path / "data.json").get("train") or {}
    places = [Path(path) for path in (recorded.get("path"), own.train_data) if path is not None]
    train = next((path for path in places if path.exists()), None)
    if run is None or train is None:
        raise DataError(f"the run's training rows are not at {places[0] if places else 'any place'} any more", path=trained.name,
                        hint="give --test-data")  # fmt: skip
    folder = train if train.is_dir() else train.parent
    # Beside a file of its own name (small.json) other sets may lie.
    if (train.is_dir() or train.stem == "train") and (folder / "test.jsonl").is_file():
        return read_rows(own, folder / "test.jsonl", split="test")
    rows = read_compress(own, train, int((run.config.get("loop") or {}).get("seed", 0)))
    if not rows.validation:
        raise DataError("neither test nor evaluation rows are beside the training rows", path=train,
                        hint="give --test-data")  # fmt: skip
    log.info("there are no test rows beside %s: the run's evaluation rows are answered, by which its best checkpoint was chosen",
             train)  # fmt: skip
    about = {"format": "rows of the run", "sha256": None, "read": len(rows.validation), "skipped_lines": 0}
    return rows.validation, {**about, **rows.sources["validation"]}


def shown(
    config: EvalConfig, trained: Trained, rows: Sequence[CompressExample]
) -> tuple[list[CompressExample], dict[str, Any] | None]:
    """Return the rows with the passages that they are asked with, and what the index is that these come from.

    Raises:
        ConfigError: the index of training is not there any more, or retrieval is asked for without one.
        DataError: the index cannot be read.
    """
    index = _index_of(config, trained)
    if config.retrieval is not None and index is None:
        raise ConfigError(
            "--retrieval says how an index is searched, and none is", hint="give --index-path, or leave it out"
        )
    context = trained.context.model_copy(
        update={
            "index": index,
            "n_docs": config.n_docs or trained.context.n_docs,
            "retrieval": config.retrieval or trained.context.retrieval,
        }
    )
    about, found = None, list(rows)
    if index is not None:
        filled, about = with_contexts(
            rows, index=index, depth=context.n_docs, retrieval=context.retrieval, device=config.device
        )
        found = cast("list[CompressExample]", filled)
    seed = int((trained.run.config.get("loop") or {}).get("seed", 0)) if trained.run is not None else config.seed
    made = CompressContexts(found, context, seed=seed).contexts()
    return [dataclasses.replace(each.example, documents=each.documents) for each in made], about


def _index_of(config: EvalConfig, trained: Trained) -> Path | None:
    """Return the index given, else the one of training; None where passages are the rows' own.

    Raises:
        ConfigError: the one of training is not there any more.
    """
    if config.index_path is not None:
        return config.index_path
    if trained.context.index is None:
        return None
    path = Path((trained.index or {}).get("path") or trained.context.index)
    if not path.exists():
        raise ConfigError(f"the index that {trained.name} was trained with is not at {path} any more",
                          hint="give --index-path")  # fmt: skip
    return path
