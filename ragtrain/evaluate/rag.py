"""``ragtrain eval`` of RAG models: retrieval, generation marginalised over passages, scores."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

from ragtrain import prepare, report
from ragtrain.evaluate import dpr, figures, results
from ragtrain.evaluate.answers import AnswerSettings, Evaluation, evaluate_questions
from ragtrain.evaluate.given import Contexts, GivenRetriever, contexts_of
from ragtrain.evaluate.kept import Kept
from ragtrain.evaluate.memory import PeakMemory
from ragtrain.evaluate.overlap import seen_by_rag
from ragtrain.evaluate.resolve import (
    Questions,
    Subject,
    index_path_of,
    load_model_of,
    precision_of,
    questions_of,
    weights_fingerprint,
)
from ragtrain.evaluate.results import EvalResult
from ragtrain.index.search import DenseIndex
from ragtrain.records import write_json
from ragtrain.retrieve import Retriever

if TYPE_CHECKING:
    import torch

    from ragtrain.config.commands import EvalConfig
    from ragtrain.models.rag import RagModel

log = logging.getLogger("ragtrain")

#: Settings on which no answer depends.
_NOT_DEFINING = {"batch_size"}


def run(config: EvalConfig, subject: Subject) -> EvalResult:
    """Answer the test questions of a run (or of any RAG model) and write what came of it.

    Raises:
        ConfigError: model, questions or index cannot be found out, or the output folder holds another evaluation.
        DataError: a file of them cannot be read, or index and model do not fit each other.
        OutOfMemoryError: a batch does not fit on the device.
    """
    # 1. What is evaluated, on what.
    device = prepare.resolve_device(config.device)
    output = results.output_folder(config, subject)
    questions = questions_of(config, subject)
    index = DenseIndex.open(index_path_of(subject, config.index_path), passages=config.passages_path)
    model = load_model_of(subject)
    contexts = contexts_of(config, [question.id for question in questions.questions])
    if contexts is not None:
        config = config.model_copy(
            update={"n_docs": contexts.most, "recall_at": (), "retrieval": "dense", "search_index": "flat"}
        )
    settings = _settings(config, model, subject, device)

    # 2. The same evaluation is not made twice, and another one is not overwritten unasked.
    described = _describe(subject, model, questions, index, settings, contexts)
    found = results.earlier(output, described["fingerprint"], overwrite=config.overwrite)
    results.check_document(config.output_file, described["fingerprint"], overwrite=config.overwrite)
    dpr.check(config, {"": None if found is None else output})
    if found is not None:
        log.info("%s holds this evaluation already: nothing was done (--overwrite does it again)", output)
        summary = found
    # 3. Answers, scores, files.
    else:
        if model.passage_encoder is None:
            _warn_of_another_encoder(subject, index)
        retriever = _retriever(index, model.to(device), device, settings, contexts)
        _follow(model, retriever, device)
        with PeakMemory(device) as peak:
            kept = Kept(output, described["fingerprint"])
            evaluation = evaluate_questions(model, retriever, questions.questions, settings, kept)
        summary = _summary(
            evaluation, described, settings, {"device": str(device), "peak": peak.bytes, "seen": seen_by_rag(subject)}
        )
        results.write(output, summary, (record.to_json() for record in evaluation.records))
        kept.done()

    # 4. What came of it.
    if config.output_file is not None:
        write_json(config.output_file, {**summary, "predictions": results.read_predictions(output)})
        log.info("metrics and predictions in %s", config.output_file)
    if config.dpr_file is not None:
        dpr.write({"": output}, config.dpr_file)
    _show(summary, subject.name)
    results.say_next(output, config)
    return EvalResult(output, summary, reused=found is not None)


def _settings(config: EvalConfig, model: RagModel, subject: Subject, device: torch.device) -> AnswerSettings:
    """Return how questions are answered: as asked for, else as the run was trained."""
    return AnswerSettings(
        n_docs=config.n_docs or model.settings.n_docs,
        recall_at=tuple(sorted(set(config.recall_at))),
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        max_question_tokens=model.settings.max_question_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
        decoding=config.decoding,
        retrieval=config.retrieval or subject.setting("retriever", "retrieval") or "dense",
        search_index=config.search_index or subject.setting("retriever", "search_index") or "flat",
        precision=precision_of(subject, device),
        compat=config.compat,
    )


def _retriever(
    index: DenseIndex, model: RagModel, device: torch.device, settings: AnswerSettings, contexts: Contexts | None
) -> Retriever:
    """Return what finds passages, or gives those that another run read."""
    if contexts is not None:
        return GivenRetriever.giving(contexts.places(index), index, model, device, settings.n_docs)
    return Retriever.for_model(
        index,
        model,
        device=device,
        n_docs=settings.n_docs,
        retrieval=settings.retrieval,
        search_index=settings.search_index,
    )


def _describe(
    subject: Subject, model: RagModel, questions: Questions, index: DenseIndex, settings: AnswerSettings,
    contexts: Contexts | None,
) -> dict[str, Any]:  # fmt: skip
    """Return everything that an evaluation depends on, and its fingerprint."""
    ids = hashlib.sha256("\n".join(question.id for question in questions.questions).encode()).hexdigest()
    described: dict[str, Any] = {
        "kind": "rag",
        "n": len(questions.questions),
        "skipped": questions.skipped,
        "model": {
            "name": subject.name,
            "checkpoint": subject.checkpoint,
            "fingerprint": weights_fingerprint(model),
        },
        "data": {
            "path": str(questions.path),
            "sha256": questions.sha256,
            "format": questions.format,
            "read": questions.read,
            "ids_sha256": ids,
        },
        "index": {
            "path": str(index.path),
            "count": index.count,
            "passages_sha256": index.manifest["passages_sha256"],
            "vectors_sha256": index.manifest.get("vectors_sha256"),
            **_searched(index, settings),
        },
        "settings": {**dataclasses.asdict(settings), "recall_at": list(settings.recall_at),
                     "max_input_tokens": model.settings.max_input_tokens},
        "versions": results.versions(),
    }  # fmt: skip
    defining = {
        "model": described["model"]["fingerprint"],
        "data": [questions.sha256, ids],
        "index": [
            described["index"]["passages_sha256"],
            described["index"]["vectors_sha256"],
            _searched(index, settings),
        ],
        "settings": {name: value for name, value in described["settings"].items() if name not in _NOT_DEFINING},
    }
    if contexts is not None:
        described["contexts"] = contexts.describe()
        defining["contexts"] = contexts.sha256
    return {**described, "fingerprint": results.fingerprint_of(defining)}


def _searched(index: DenseIndex, settings: AnswerSettings) -> dict[str, Any]:
    """Return what the manifest says of what is searched besides the vectors."""
    said: dict[str, Any] = {}
    if settings.search_index == "faiss":
        about = index.manifest.get("ann") or index.manifest["files"].get("index.faiss", {})
        said["faiss"] = {name: about[name] for name in ("type", "settings", "size") if name in about}
    if settings.retrieval != "dense":
        said["bm25"] = index.manifest.get("bm25")
    return said


def _warn_of_another_encoder(subject: Subject, index: DenseIndex) -> None:
    """Warn where an index was made with other passage vectors than those a run was trained with."""
    if subject.run is None:
        return
    file = subject.run.path / "data.json"
    info = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    trained = info.get("index") if isinstance(info, dict) else None
    encoder = trained.get("encoder") if isinstance(trained, dict) else None
    before = encoder.get("fingerprint") if isinstance(encoder, dict) else None
    now = index.manifest["encoder"].get("fingerprint")
    if before is not None and now is not None and before != now:
        log.warning("the passages in %s were encoded by another encoder (%s) than those of the training (%s): questions "
                    "and passages may not fit each other", index.path, now, before)  # fmt: skip


def _follow(model: RagModel, retriever: Retriever, device: torch.device) -> None:
    """Search with vectors of the model's own passage encoder, where it has one and the index is not of it.

    The index of a run that trained both encoders is that of its final model; an earlier checkpoint needs another.
    """
    encoder, index = model.passage_encoder, retriever.index
    if encoder is None or encoder.fingerprint() == index.manifest["encoder"].get("fingerprint"):
        return
    log.warning("the index %s is not of this model's passage encoder: its %d passages are encoded anew for this "
                "evaluation", index.path, index.count)  # fmt: skip
    vectors = prepare.encode_again(encoder, index, device, range(index.count), "Encoding passages")
    retriever.searcher.replace(vectors)


def _summary(
    evaluation: Evaluation, described: dict[str, Any], settings: AnswerSettings, measured: dict[str, Any]
) -> dict[str, Any]:
    """Return ``metrics.json``: metrics first (null where there is no question), then what they depend on.

    Args:
        evaluation: questions answered.
        described: what it depends on.
        settings: how they were answered.
        measured: the ``device``, the ``peak`` of its memory, and what was ``seen`` in training.
    """
    missing: dict[str, Any] = dict.fromkeys(("em_given_hit", "em_given_miss"))
    told = figures.told(
        evaluation, settings.confidence, settings.seed, measured["peak"], settings.compat, measured["seen"]
    )
    return {**missing, **evaluation.metrics, **told, **described, "device": measured["device"]}


def _show(summary: dict[str, Any], name: str) -> None:
    """Show the metrics as a table on stderr, in percent."""
    n, n_docs = summary["n"], summary["settings"]["n_docs"]
    hits = round(summary["ceiling"] * n)
    recalls = [(f"answer_recall@{k}", f"answer-recall@{k}", n) for k in summary["settings"]["recall_at"]]
    lines = [
        ("em", "exact match", n),
        ("f1", "F1", n),
        *figures.lines(summary),
        *recalls,
        ("ceiling", f"an answer in the {n_docs} passages read (ceiling)", n),
        ("em_given_hit", "exact match where there is one", hits),
        ("em_given_miss", "exact match where there is none", n - hits),
    ]
    rows = [
        (label, report.format_interval(summary[metric], *summary["intervals"][metric]), count)
        for metric, label, count in lines
        if summary[metric] is not None
    ]
    title = f"{name}: {n} questions, {n_docs} passages, {summary['questions_per_s']:.1f} questions/s"
    report.table(title, ("metric", f"percent [{100 * summary['confidence']:g} %]", "questions"), rows)
    figures.log_speed(summary)
