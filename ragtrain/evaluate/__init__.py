"""A trained run → an answer to every question → metrics, intervals and a line for each question.

The results lie in one folder, by default ``RUN/eval``::

    metrics.json        metrics as fractions with 95 % intervals, and everything they depend on
    predictions.jsonl   one line a question: prediction, scores, the passages that were read

Rerunning the same evaluation (weights, questions, index, settings) does no work. A folder that holds another evaluation
is left alone unless ``--overwrite`` is given.

resolve.py     what ``--model-dir`` names; model, questions and index of a RAG run
rag.py         RAG models
sft.py         fine-tuned and plain causal language models, under one condition or several
subjects.py    what such a model is: weights, prompts, passages it was trained with
rows.py        the questions it is asked, with passages
conditions.py  what the conditions say together: tables, differences, reader and retrieval errors
answers.py     questions → answers → scores, with a RAG model
prompted.py    prompts → answers → scores, with a causal language model
generate.py    prompts → texts
results.py     an evaluation on disk
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ragtrain.errors import ConfigError
from ragtrain.evaluate import rag, sft
from ragtrain.evaluate.answers import AnswerSettings, Evaluation, Record, evaluate_questions
from ragtrain.evaluate.resolve import Subject, subject_of
from ragtrain.evaluate.results import EvalResult
from ragtrain.evaluate.sft import ConditionsResult
from ragtrain.models.folders import SIDECAR, local_folder, read_json

if TYPE_CHECKING:
    from ragtrain.config.commands import EvalConfig

__all__ = ["AnswerSettings", "ConditionsResult", "EvalResult", "Evaluation", "Record", "evaluate_questions", "run"]

#: Options that say nothing to one kind of model.
_ONLY_RAG = ("passages_path", "num_beams", "decoding", "search_index")
_ONLY_SFT = ("conditions", "also_base")


def run(config: EvalConfig) -> EvalResult | ConditionsResult:
    """Answer the test questions of a run (or of any model) and write what came of it.

    Raises:
        ConfigError: model, questions or index cannot be found out, an option means nothing to such a model, or the
            output folder holds another evaluation.
        DataError: a file of them cannot be read, or they do not fit each other.
        OutOfMemoryError: a batch does not fit on the device.
    """
    subject = subject_of(config)
    kind = _kind_of(config, subject)
    unknown = _ONLY_SFT if kind == "rag" else _ONLY_RAG
    if given := [name for name in unknown if name in config.model_fields_set]:
        what = "a RAG model, which always reads what it retrieves" if kind == "rag" else "a causal language model"
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{flags} means nothing to {what}", hint=f"leave {flags} out")
    return rag.run(config, subject) if kind == "rag" else sft.run(config, subject)


def _kind_of(config: EvalConfig, subject: Subject) -> Literal["rag", "sft"]:
    """Return what kind of model is evaluated.

    Raises:
        ConfigError: it is a causal language model as it was downloaded, and nothing says what its prompts hold.
    """
    if subject.run is not None:
        return "sft" if subject.run.kind == "sft" else "rag"
    if subject.model_name is None:
        return "rag"
    folder = local_folder(subject.model_name, kind="model")
    sidecar, own = read_json(folder / SIDECAR), read_json(folder / "config.json")
    if sidecar.get("kind") == "sft":
        return "sft"
    if "rag" in sidecar or own.get("model_type") == "rag":
        return "rag"
    network = str((own.get("architectures") or [""])[0])
    plain = (folder / "adapter_config.json").is_file() or network.endswith(("ForCausalLM", "LMHeadModel"))
    if plain and not config.conditions:
        raise ConfigError(
            f"{subject.name} is a causal language model that was not fine-tuned here: nothing says what its prompts hold",
            hint="give --conditions closed-book,gold,retrieved,gold+distractors (or some of them) and --test-data",
        )
    return "sft" if config.conditions else "rag"
