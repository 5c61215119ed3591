"""What ``ragtrain eval`` evaluates: from a configuration, mostly empty, to a run or model, its questions and index.

A run folder says everything itself: ``config.yaml`` and ``data.json`` lead to the questions and the index it was
trained with. Anything else (a RAG folder, a hub id) is a model only; without any, it is the untrained demo.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ragtrain import prepare
from ragtrain.config.commands import FetchConfig, PrepareConfig, RagConfig
from ragtrain.data import demo, fetch
from ragtrain.data.formats import read_questions
from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.index.search import DenseIndex
from ragtrain.models.encoder import load_encoder
from ragtrain.models.export import load_rag
from ragtrain.models.rag import RagModel, RagSettings, load_generator
from ragtrain.models.weights import FILE, load_weights
from ragtrain.runs import RunFolder

if TYPE_CHECKING:
    from ragtrain.config.commands import EvalConfig
    from ragtrain.records import Question

log = logging.getLogger("ragtrain")

#: Kinds of runs that can be evaluated.
KINDS = ("rag", "sft", "gfm", "compress")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated: a run at a checkpoint, a model by name, or (neither) the untrained demo."""

    name: str
    run: RunFolder | None = None
    checkpoint: str | None = None
    model_name: str | None = None

    def setting(self, section: str, field: str) -> Any:  # noqa: ANN401 - any configuration value
        """Return a value of the run's configuration, or None."""
        values = self.run.config.get(section) if self.run is not None else None
        return values.get(field) if isinstance(values, dict) else None


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions to answer and where they come from; ``read`` counts them before a draw, ``skipped`` bad lines."""

    questions: list[Question]
    path: Path
    sha256: str
    format: str
    read: int
    skipped: int


def subject_of(config: EvalConfig) -> Subject:
    """Return what ``model_dir`` names.

    A run's ``final_model`` and its ``checkpoints/NAME`` stand for the run, so that a path typed by completion works.

    Raises:
        ConfigError: there is no such folder; a checkpoint is named for something that has none.
        DataError: the run folder cannot be read.
    """
    if config.model_dir is None:
        subject = Subject("the untrained demo models")
    else:
        path = Path(config.model_dir)
        candidates = [(path, config.checkpoint)]
        if path.name == "final_model":
            candidates.append((path.parent, "final"))
        if path.parent.name == "checkpoints":
            candidates.append((path.parent.parent, path.name))
        for folder, checkpoint in candidates:
            if (folder / "config.yaml").is_file():
                run = RunFolder.open(folder)
                if run.kind not in KINDS:
                    known = " and ".join(map(repr, KINDS))
                    raise ConfigError(f"{folder} is a run of kind {run.kind!r}; runs of kind {known} can be evaluated")
                return Subject(str(folder), run=run, checkpoint=checkpoint)
        if not path.exists() and config.model_dir.count("/") != 1:
            raise ConfigError(
                f"no run or model folder {config.model_dir!r}", hint="give a run folder, or owner/name of the hub"
            )
        subject = Subject(config.model_dir, model_name=config.model_dir)
    if config.checkpoint != "final":
        raise ConfigError(f"checkpoint {config.checkpoint!r} of {subject.name}, which is not a run and has none",
                          hint="give a run folder as --model-dir, or leave --checkpoint out")  # fmt: skip
    return subject


def load_model_of(subject: Subject) -> RagModel:
    """Return the subject's model on the CPU.

    Raises:
        CheckpointError: a run has no such weights, or they do not fit its model.
        ConfigError: there is no such model.
        DataError: a file of it is missing or cannot be read.
    """
    if subject.run is None:
        if subject.model_name is not None:
            return load_rag(subject.model_name)
        return RagModel(load_encoder(demo.ENCODER, role="question"), *load_generator(demo.GENERATOR))
    run = subject.run
    if subject.checkpoint == "final":
        if not run.final_model.is_dir():
            raise CheckpointError(
                "the run has no final model: its training has not ended",
                path=run.path,
                hint=f"give --checkpoint, one of: {_known_checkpoints(run)}; or let the training end",
            )
        return load_rag(run.final_model)
    folder = run.checkpoints / str(subject.checkpoint)
    if not (folder / FILE).is_file():
        raise CheckpointError(f"no checkpoint {subject.checkpoint!r}", path=folder,
                              hint=f"known are: final, {_known_checkpoints(run)}")  # fmt: skip
    adapted = subject.setting("lora", "lora_rank") or subject.setting("retriever", "retriever_lora_rank")
    # The final model has its adapters merged: its base is another one.
    finished = run.final_model.is_dir() and not adapted
    model = load_rag(run.final_model) if finished else _model_of_config(run, subject)
    load_weights(model, folder)
    return model


def _known_checkpoints(run: RunFolder) -> str:
    if not run.checkpoints.is_dir():
        return "(none yet)"
    return ", ".join(sorted(path.name for path in run.checkpoints.iterdir() if path.is_dir())) or "(none yet)"


def _model_of_config(run: RunFolder, subject: Subject) -> RagModel:
    """Return a run's model as it was before training; for runs that were stopped before their final model."""
    config = RagConfig.model_validate(run.config)
    fields = {field.name for field in dataclasses.fields(RagSettings)}
    # data.json has the settings as they were resolved for the index and the generator at hand.
    resolved = {name: value for name, value in (_entry(subject, "rag") or {}).items() if name in fields}
    # Where both encoders were trained, the run has an index of its own, and this is the one that it began with.
    original = (_entry(subject, "index") or {}).get("original")
    index = DenseIndex.open(Path(original) if original else index_path_of(subject))
    return prepare.rag_model(config, index, RagSettings(**resolved) if resolved else None)


def _entry(subject: Subject, name: str) -> Any:  # noqa: ANN401 - JSON
    """Return what a run's ``data.json`` says of ``train``, ``validation``, ``index`` or ``rag``; None for nothing."""
    if subject.run is None:
        return None
    file = subject.run.path / "data.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(name)
    except (ValueError, AttributeError) as error:
        raise DataError(f"not the description of a run's data: {error}", path=file) from error


def _recorded(subject: Subject, name: str) -> Path | None:
    """Return a path that a run's ``data.json`` gives for ``train``, ``validation`` or ``index``, if it still exists."""
    entry = _entry(subject, name)
    path = entry.get("path") if isinstance(entry, dict) else entry
    return Path(path) if isinstance(path, str) and Path(path).exists() else None


def train_path_of(subject: Subject) -> Path | None:
    """Return the training questions of a run, a file or a folder, where they still are."""
    path = _recorded(subject, "train")
    if path is None and (given := subject.setting("data", "train_data")) is not None:
        path = Path(given)
    return path if path is not None and path.exists() else None


def _train_folder(subject: Subject) -> Path:
    """Return the folder that the subject's training questions lie in, made where it is the demo's and absent."""
    path = _recorded(subject, "train")
    if path is None and (given := subject.setting("data", "train_data")) is not None:
        path = Path(given)
    if path is not None:
        return path if path.is_dir() else path.parent
    if not (demo.FOLDER / "test.jsonl").is_file():
        log.info("writing the built-in demo set to %s", demo.FOLDER)
        fetch.run(FetchConfig(dataset="demo", output_dir=demo.FOLDER))
    return demo.FOLDER


def index_path_of(subject: Subject, given: Path | None = None) -> Path:
    """Return the index folder: the one given, else the run's own, else the demo's, which is prepared where absent.

    Raises:
        ConfigError: there is none that could be meant.
    """
    path = given or _recorded(subject, "index")
    if path is None and (configured := subject.setting("data", "index_path")) is not None:
        path = Path(configured)
    if path is None and subject.model_name is not None:
        raise ConfigError(f"{subject.name} says of no index", hint="give --index-path (ragtrain index prepare)")
    if path is None:
        folder = _train_folder(subject)
        path = folder / "index"
        if folder == demo.FOLDER and not path.exists():
            log.info("preparing the index of the demo set")
            prepare.run(PrepareConfig(passages=folder / "passages.jsonl", output_dir=path))
    # An index file of other tools lies beside the manifest once it is prepared.
    return path.parent if path.is_file() and (path.parent / "manifest.json").is_file() else path


def questions_of(config: EvalConfig, subject: Subject) -> Questions:
    """Read the questions to answer and draw ``num_samples`` of them, in the order of the file.

    Without ``test_data`` they are the test questions beside the run's training questions, else its validation
    questions; the log says which.

    Raises:
        ConfigError: none are given for a model that is no run.
        DataError: they cannot be read, or there are none.
    """
    path = config.test_data
    if path is None:
        path = _own_questions(subject)
    split = "test" if path.is_dir() and any(path.glob("test.*")) else "validation"
    found = read_questions(
        path,
        split="test" if split == "test" else "validation",
        question_key=config.question_key,
        answer_key=config.answer_key,
        skip_bad_lines=config.skip_bad_lines,
    )
    questions = found.questions
    if config.num_samples is not None and config.num_samples < len(questions):
        chosen = sorted(random.Random(config.seed).sample(range(len(questions)), config.num_samples))
        questions = [questions[index] for index in chosen]
    log.info("answering %d of the %d questions in %s (%s)", len(questions), len(found.questions), found.path,
             found.format)  # fmt: skip
    return Questions(questions, found.path, found.sha256, found.format, len(found.questions), found.skipped)


def _own_questions(subject: Subject) -> Path:
    if subject.model_name is not None:
        raise ConfigError(f"{subject.name} has no test questions of its own", hint="give --test-data")
    folder = _train_folder(subject)
    test = folder / "test.jsonl"
    if test.is_file():
        return test
    validation = _recorded(subject, "validation")
    if validation is None and (given := subject.setting("data", "val_data")) is not None:
        validation = Path(given)
    path = validation or folder / "validation.jsonl"
    if not path.exists():
        raise DataError("neither test.jsonl nor validation.jsonl is beside the training questions", path=folder,
                        hint="give --test-data")  # fmt: skip
    log.info("there is no test.jsonl in %s: the validation questions are answered, by which the best checkpoint of the "
             "run was chosen", folder)  # fmt: skip
    return path


def precision_of(subject: Subject, device: torch.device) -> Literal["no", "bf16", "fp16"]:
    """Return the arithmetic of a run's training, where there is a GPU; a CPU computes in float32.

    What is no run gets what ``auto`` stands for.
    """
    asked = subject.setting("loop", "mixed_precision") or "auto"
    if device.type != "cuda" or asked == "no":
        return "no"
    if asked == "auto":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp16" if asked == "fp16" else "bf16"


def weights_fingerprint(model: RagModel) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the networks' weights and of how they are used."""
    digest = hashlib.sha256(model.question_encoder.fingerprint().encode())
    digest.update(json.dumps(dataclasses.asdict(model.settings), sort_keys=True).encode())
    if model.passage_encoder is not None:  # it decides what is found where the index is not its own
        digest.update(model.passage_encoder.fingerprint().encode())
    for name, tensor in sorted(model.generator.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
