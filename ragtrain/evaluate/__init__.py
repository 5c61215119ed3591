"""A trained run → an answer to every question → metrics, intervals and a line for each question.

The results lie in one folder, by default ``RUN/eval``::

    metrics.json        metrics as fractions with 95 % intervals, and everything they depend on
    predictions.jsonl   one line a question: prediction, scores, the passages that were read
    judge.json          what a judge says of the answers, where one was asked

Rerunning the same evaluation (weights, questions, index, settings) does no work. A folder that holds another evaluation
is left alone unless ``--overwrite`` is given.

resolve.py     what ``--model-dir`` names; model, questions and index of a RAG run
rag.py         RAG models
sft.py         fine-tuned and plain causal language models, under one condition or several
subjects.py    what such a model is: weights, prompts, passages it was trained with
rows.py        the questions it is asked, with passages
given.py       passages that another run read, given to this one
conditions.py  what the conditions say together: tables, differences, reader and retrieval errors
graphs.py      graph retrievers: documents of a graph, ranked for questions
graph_*.py     what such a model is, the rankings that stand beside it, and their figures
compress/      memory of compressed passages, beside text that costs as much
links.py       networks that complete graphs: true tails and heads, ranked among all entities
link_*.py      what such a network is, what it is asked for, and the ranks
answers.py     questions → answers → scores, with a RAG model
prompted.py    prompts → answers → scores, with a causal language model
figures.py     further scores, counts, slices, speed
overlap.py     what of the questions was in the training
kept.py        answers of an evaluation under way
memory.py      the most memory held meanwhile
dpr.py         answers in the form of DPR and FiD
sweeps.py      the number of passages, and the place of the gold one
judge/         what a language model says of the answers
results.py     an evaluation on disk
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ragtrain.errors import ConfigError
from ragtrain.evaluate import judge, rag, sft, sweeps
from ragtrain.evaluate.answers import AnswerSettings, Evaluation, Record, evaluate_questions
from ragtrain.evaluate.resolve import Subject, subject_of
from ragtrain.evaluate.results import ConditionsResult, EvalResult
from ragtrain.models.folders import SIDECAR, local_folder, read_json
from ragtrain.models.gfm.ultra import is_ultra

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragtrain.config.commands import EvalConfig

__all__ = ["AnswerSettings", "ConditionsResult", "EvalResult", "Evaluation", "Record", "evaluate_questions", "run"]

Kind = Literal["rag", "sft", "gfm", "links", "compress"]
_JUDGE = ("judge", "judge_endpoint", "judge_key_variable", "judge_timeout_s", "judge_retest", "judge_max_new_tokens")
#: How kinds of models are called, and options that say nothing to them.
_KINDS: Mapping[Kind, tuple[str, tuple[str, ...]]] = {
    "rag": (
        "a RAG model, which always reads what it retrieves",
        ("conditions", "also_base", "graph", "fusion", "compression_rate", "gold_position_sweep"),
    ),
    "sft": (
        "a causal language model",
        ("passages_path", "num_beams", "decoding", "search_index", "graph", "fusion", "compression_rate"),
    ),
    "gfm": (
        "a graph model, which writes no answers",
        (
            "conditions", "also_base", "passages_path", "num_beams", "decoding", "search_index", "retrieval",
            "max_new_tokens", "question_key", "answer_key", "compression_rate", "compat", "dpr_file", "n_docs_sweep", "gold_position_sweep",
            "contexts_from",
            *_JUDGE,
        ),
    ),
    "links": (
        "a network that completes graphs, which is asked for triples",
        (
            "conditions", "also_base", "passages_path", "num_beams", "decoding", "search_index", "retrieval",
            "max_new_tokens", "question_key", "answer_key", "test_data", "index_path", "n_docs", "recall_at", "fusion", "compression_rate",
            "compat", "dpr_file", "n_docs_sweep", "gold_position_sweep", "contexts_from",
            *_JUDGE,
        ),
    ),
    "compress": (
        "a run of train compress",
        (
            "conditions", "also_base", "passages_path", "num_beams", "decoding", "search_index", "graph", "fusion", "recall_at",
            "compat", "dpr_file", "n_docs_sweep", "gold_position_sweep", "contexts_from",
        ),
    ),
}  # fmt: skip


def run(config: EvalConfig) -> EvalResult | ConditionsResult:
    """Answer the test questions of a run (or of any model), or retrieve for them, and write what came of it.

    Raises:
        ConfigError: model, questions or index cannot be found out, an option means nothing to such a model, or the
            output folder holds another evaluation.
        DataError: a file of them cannot be read, or they do not fit each other.
        OutOfMemoryError: a batch does not fit on the device.
        Interrupted: a judge was stopped; answers and its replies are kept.
    """
    subject = subject_of(config)
    kind = _kind_of(config, subject)
    what, unknown = _KINDS[kind]
    if given := [name for name in unknown if name in config.model_fields_set]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{flags} means nothing to {what}", hint=f"leave {flags} out")
    if kind == "gfm":
        from ragtrain.evaluate import graphs

        return graphs.run(config, subject)
    if kind == "links":
        from ragtrain.evaluate import links

        return links.run(config, subject)
    judge.check(config)  # before anything is answered
    return judge.added(_answered(config, subject, kind), config)


def _answered(config: EvalConfig, subject: Subject, kind: Kind) -> EvalResult | ConditionsResult:
    """Return the evaluation of a model that writes answers."""
    if kind == "compress":
        from ragtrain.evaluate.compress import command

        return command.run(config, subject)
    if kind == "rag" and config.n_docs_sweep:
        return sweeps.run(config, subject)
    return rag.run(config, subject) if kind == "rag" else sft.run(config, subject)


def _kind_of(config: EvalConfig, subject: Subject) -> Kind:
    """Return what kind of model is evaluated.

    Raises:
        ConfigError: it is a causal language model as it was downloaded, and nothing says what its prompts hold.
    """
    if subject.run is not None:
        kinds: Mapping[str, Kind] = {"sft": "sft", "gfm": _graph_kind(config, subject), "compress": "compress"}
        return kinds.get(subject.run.kind, "rag")
    if subject.model_name is None:
        return "rag"
    if _is_graph_model(subject.model_name):
        return _graph_kind(config, subject)
    folder = local_folder(subject.model_name, kind="model")
    sidecar, own = read_json(folder / SIDECAR), read_json(folder / "config.json")
    if sidecar.get("kind") in ("sft", "compress"):
        return "sft" if sidecar["kind"] == "sft" else "compress"
    if "rag" in sidecar or own.get("model_type") == "rag":
        return "rag"
    network = str((own.get("architectures") or [""])[0])
    plain = (folder / "adapter_config.json").is_file() or network.endswith(("ForCausalLM", "LMHeadModel"))
    asked = config.conditions or config.gold_position_sweep or config.contexts_from
    if plain and not asked:
        raise ConfigError(
            f"{subject.name} is a causal language model that was not fine-tuned here: nothing says what its prompts hold",
            hint="give --conditions closed-book,gold,retrieved,gold+distractors,distractors-only (or some of them) and --test-data",
        )
    return "sft" if config.conditions or plain else "rag"


def _is_graph_model(name: str) -> bool:
    """Return whether a name that is no run is a graph model: our folder of one, GFM-RAG's, or a checkpoint of ULTRA."""
    path = Path(name)
    return is_ultra(path) or any((path / file).is_file() for file in ("gfm.json", "model.pth"))


def _graph_kind(config: EvalConfig, subject: Subject) -> Kind:
    """Return what a graph model is evaluated for: what it was trained for, or what is asked.

    Pre-training completes graphs; such a network retrieves only where questions are given.
    """
    folder = Path(str(subject.model_name)) if subject.run is None else subject.run.final_model
    if is_ultra(folder):
        return "links"
    stage = subject.setting("data", "stage")
    if subject.run is None:
        stage = read_json(folder / SIDECAR).get("stage") or read_json(folder / "gfm.json").get("stage")
    return "links" if stage == "pretrain" and config.test_data is None else "gfm"
