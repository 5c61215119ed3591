"""The saved form of a RAG model, and how it, or one of transformers' own, becomes a model again.

final_model/
├── config.json, model.safetensors   transformers' RagSequenceForGeneration or RagTokenForGeneration, whole
├── question_encoder_tokenizer/      RagTokenizer's two halves
├── generator_tokenizer/
├── question_encoder/                each network with its tokenizer, loadable alone
├── generator/
├── passage_encoder/                 where it was trained
├── generator_adapter/, …            LoRA adapters as peft loads them; the weights above have them merged
└── ragtrain.json                    what transformers' configuration has no field for
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import RagConfig, RagSequenceForGeneration, RagTokenForGeneration

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.adapters import has_lora, merge_lora, save_adapters
from ragtrain.models.encoder import load_encoder, wrap_dpr
from ragtrain.models.folders import SIDECAR, hushed, load_tokenizer, load_weights, local_folder, read_json
from ragtrain.models.rag import RagModel, RagSettings, load_generator
from ragtrain.records import write_json

log = logging.getLogger("ragtrain")


def save_rag(model: RagModel, folder: str | Path) -> Path:
    """Write a model so that this module, and plain transformers, load it.

    The folder is written aside and then put in place of what stands there. LoRA adapters are saved by themselves and
    then merged into the model that was given.

    What transformers' RAG cannot express is saved as parts only: an encoder that is anything but an unnormalised
    first-token BERT (see ``TextEncoder.as_dpr``) or is scored with a temperature, a causal generator, fusion in the
    decoder. The root then has no ``config.json``, the sidecar says ``hf_rag: false`` and the log says why.

    ``reduce_loss`` and ``label_smoothing`` keep transformers' defaults whatever was trained with: its ``generate``
    fails with the one and ranks answers by the smoothed loss with the other.

    Returns:
        The folder.
    """
    path = Path(folder)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    towers = {"question_encoder": model.question_encoder}
    if model.passage_encoder is not None:
        towers["passage_encoder"] = model.passage_encoder
    networks = {**{name: tower.model for name, tower in towers.items()}, "generator": model.generator}
    try:
        for name, network in networks.items():
            if has_lora(network):
                save_adapters(network, aside / f"{name}_adapter")
                merge_lora(network)
        for name, tower in towers.items():
            tower.save_pretrained(aside / name)
        with hushed():
            model.generator.save_pretrained(aside / "generator")
            model.generator_tokenizer.save_pretrained(aside / "generator")
            whole = _save_whole(model, aside)
        sidecar = {
            "rag": dataclasses.asdict(model.settings),
            "hf_rag": whole,
            "question_encoder": model.question_encoder.spec(),
            "question_encoder_fingerprint": model.question_encoder.fingerprint(),
        }
        write_json(aside / SIDECAR, sidecar)
        if path.exists():
            shutil.rmtree(path)
        aside.replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def load_rag(name_or_path: str | Path) -> RagModel:
    """Load a RAG model: a folder of ``save_rag``, a run folder, or a folder or hub id of transformers' RAG.

    transformers' own (``facebook/rag-sequence-nq``) come with target style ``hf``, which they were trained in.

    Raises:
        ConfigError: there is no such model, or it is of another kind.
        DataError: something is missing from it.
    """
    folder = local_folder(name_or_path, kind="model")
    sidecar = read_json(folder / SIDECAR)
    if "rag" in sidecar:
        encoder = load_encoder(folder / "question_encoder", role="question")
        passages = folder / "passage_encoder"
        return RagModel(
            encoder,
            *load_generator(folder / "generator"),
            _settings(sidecar["rag"], folder),
            passage_encoder=load_encoder(passages, role="passage") if passages.is_dir() else None,
        )
    if read_json(folder / "config.json").get("model_type") != "rag":
        raise ConfigError(
            f"{str(name_or_path)!r} is no RAG model",
            hint="Pass a run folder, a RAG folder or hub id; for two separate parts use --question-encoder and "
            "--generator.",
        )
    return _load_whole(folder, str(name_or_path))


def _save_whole(model: RagModel, folder: Path) -> bool:
    """Write transformers' RAG layout, if it can express the encoder."""
    encoder = model.question_encoder
    encoder.tokenizer.save_pretrained(folder / "question_encoder_tokenizer")
    model.generator_tokenizer.save_pretrained(folder / "generator_tokenizer")
    reason, dpr = _inexpressible(model), encoder.as_dpr()
    if reason is not None or dpr is None:
        log.warning(
            "transformers' RAG has no place for %s: the model is saved as question_encoder/ and generator/, which "
            "ragtrain and transformers load one by one",
            reason,
        )
        return False
    if encoder.settings.query_prompt:
        log.warning("put %r before each question when the model is used by transformers' RAG alone",
                    encoder.settings.query_prompt)  # fmt: skip
    settings = model.settings
    config = RagConfig.from_question_encoder_generator_configs(
        dpr.config,
        model.generator.config,
        n_docs=settings.n_docs,
        max_combined_length=settings.max_input_tokens,
        title_sep=settings.title_sep,
        doc_sep=settings.doc_sep,
        retrieval_vector_size=encoder.dim,
        index_name="custom",
    )
    # transformers reads this attribute of every generator, and a T5 configuration has none (RAG then raises).
    config.generator.bos_token_id = getattr(model.generator.config, "bos_token_id", None)
    kind = RagTokenForGeneration if settings.likelihood == "token" else RagSequenceForGeneration
    kind(config=config, question_encoder=dpr, generator=model.generator).save_pretrained(folder)
    return True


def _inexpressible(model: RagModel) -> str | None:
    """Return what transformers' RAG cannot express of a model, or None."""
    encoder, settings = model.question_encoder, model.settings
    if model.reader.causal:
        return f"a causal generator ({model.generator.config.model_type})"
    if settings.likelihood == "fid":
        return "fusion in the decoder"
    if encoder.as_dpr() is None or settings.score_temperature != 1:
        return (
            f"this question encoder ({encoder.settings.model_class}, pooling {encoder.settings.pooling}"
            f"{', normalised' if encoder.settings.normalize else ''}, temperature {settings.score_temperature:g})"
        )
    return None


def _load_whole(folder: Path, name: str) -> RagModel:
    rag = load_weights(RagSequenceForGeneration, folder, name)
    parts = {
        part: load_tokenizer(folder / part, name, config=config)
        for part, config in (
            ("question_encoder_tokenizer", rag.config.question_encoder),
            ("generator_tokenizer", rag.config.generator),
        )
    }
    settings = RagSettings(
        target_style="hf",
        likelihood="token" if "RagTokenForGeneration" in (rag.config.architectures or ()) else "sequence",
        n_docs=rag.config.n_docs,
        max_input_tokens=rag.config.max_combined_length,
        title_sep=rag.config.title_sep,
        doc_sep=rag.config.doc_sep,
    )
    encoder = wrap_dpr(rag.question_encoder, parts["question_encoder_tokenizer"], name)
    return RagModel(encoder, rag.generator, parts["generator_tokenizer"], settings)


def _settings(values: dict[str, Any], folder: Path) -> RagSettings:
    try:
        return RagSettings(**values)
    except TypeError as error:
        raise DataError(f"written by another version: {error}", path=folder / SIDECAR) from error
