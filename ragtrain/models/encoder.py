"""Text encoders: questions and passages to vectors, whatever folder the encoder comes in."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from ragtrain.errors import ConfigError, DataError, RagtrainError
from ragtrain.models.folders import (
    SIDECAR,
    EncoderSpec,
    hushed,
    load_tokenizer,
    load_weights,
    local_folder,
    read_json,
    sentence_transformers_spec,
    write_sentence_transformers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.config.commands import EncoderConfig

log = logging.getLogger("ragtrain")

Role = Literal["question", "passage"]
#: Longest input where the encoder's folder does not say.
MAX_TOKENS = 512


class TextEncoder(nn.Module):
    """A transformer, its tokenizer, and how the two make a vector of a text.

    Attributes:
        model: the network.
        tokenizer: its tokenizer.
        settings: pooling, normalisation, prompts and lengths.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: EncoderSpec) -> None:
        super().__init__()
        if settings.pooling is None or settings.max_tokens is None:
            raise RagtrainError(f"encoder settings are incomplete: {settings}")
        if settings.pooling != "pooler" and "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
            # Unused, it would get no gradient, and it is random where the checkpoint has none.
            setattr(model, "pooler", None)  # noqa: B010 - typed as a Module
        self.model = model
        self.tokenizer = tokenizer
        self.settings = dataclasses.replace(settings, model_class=type(model).__name__)
        if settings.lower_case:
            _lower_case(tokenizer)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        config = self.model.config
        return int(getattr(config, "projection_dim", 0) or config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def max_tokens(self, role: Role) -> int:
        """Longest question or passage that is read, in tokens."""
        return cast("int", self.settings.max_tokens)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the vectors of a batch of texts.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 1 where there is a token.
            token_type_ids: (batch, tokens) segments, where the tokenizer gives them.

        Returns:
            (batch, dim) float32.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        output = self.model(**inputs, return_dict=True)
        if self.settings.pooling == "pooler":
            vectors = output.pooler_output.float()
        else:
            vectors = _pool(output.last_hidden_state, attention_mask, self.settings.pooling)
        return nn.functional.normalize(vectors, dim=-1) if self.settings.normalize else vectors

    def tokenize_questions(self, questions: Sequence[str], max_tokens: int | None = None) -> BatchEncoding:
        """Return padded tensors (batch, longest) of questions, the prompt before each."""
        texts = [self.settings.query_prompt + question for question in questions]
        return self._tokenize(texts, max_tokens or self.max_tokens("question"))

    def tokenize_passages(self, passages: Sequence[tuple[str, str]], max_tokens: int | None = None) -> BatchEncoding:
        """Return padded tensors (batch, longest) of (title, text) pairs, in the encoder's own format."""
        limit = max_tokens or self.max_tokens("passage")
        prompt = self.settings.passage_prompt
        if self.settings.passage_format == "joined":
            return self._tokenize([prompt + f"{title} {text}".strip() for title, text in passages], limit)
        titles, texts = [prompt + title for title, _ in passages], [text for _, text in passages]
        return self._tokenize(titles, limit, texts)

    def encode_questions(
        self, questions: Sequence[str], batch_size: int = 64, device: torch.device | str | None = None
    ) -> np.ndarray:
        """Return (questions, dim) float32 vectors, without dropout or gradient."""
        return self._encode(questions, [len(text) for text in questions], self.tokenize_questions, batch_size, device)

    def encode_passages(
        self, passages: Sequence[tuple[str, str]], batch_size: int = 64, device: torch.device | str | None = None
    ) -> np.ndarray:
        """Return (passages, dim) float32 vectors of (title, text) pairs, without dropout or gradient."""
        lengths = [len(title) + len(text) for title, text in passages]
        return self._encode(passages, lengths, self.tokenize_passages, batch_size, device)

    def spec(self) -> dict[str, Any]:
        """Return what decides a vector besides the weights, as JSON."""
        return self.settings.to_json()

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of weights and settings; the name does not enter."""
        spec = {key: value for key, value in self.spec().items() if key != "name"}
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that this module, transformers and (where it can be said there) sentence-transformers load."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        with hushed():
            self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        if not isinstance(self.model, (DPRQuestionEncoder, DPRContextEncoder)):
            write_sentence_transformers(path, self.settings, self.dim)
        (path / SIDECAR).write_text(json.dumps({"encoder": self.spec()}, indent=2) + "\n", encoding="utf-8")

    def as_dpr(self) -> DPRQuestionEncoder | None:
        """Return the encoder as transformers' RAG wants it, or None where a DPR encoder cannot express it.

        A DPR question encoder is a BERT whose first token's vector is used as it is: so is every ``cls``-pooled,
        unnormalised BertModel. The weights are copied, except of an encoder that is one already.
        """
        if self.settings.normalize:
            return None
        if isinstance(self.model, DPRQuestionEncoder):
            return self.model
        if type(self.model).__name__ != "BertModel" or self.settings.pooling != "cls":
            return None
        if getattr(self.model.config, "position_embedding_type", "absolute") != "absolute":
            return None
        names = {field.name for field in dataclasses.fields(DPRConfig)} - {"projection_dim", "architectures"}
        config = DPRConfig(**{name: value for name, value in self.model.config.to_dict().items() if name in names})
        weights = {f"bert_model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        with torch.random.fork_rng(devices=[]):  # initialisation must not move the training's generator
            dpr = DPRQuestionEncoder(config)
        dpr.question_encoder.load_state_dict(weights)
        nn.Module.to(dpr, self.device)
        nn.Module.train(dpr, self.training)
        return dpr

    def _tokenize(self, texts: list[str], max_tokens: int, pairs: list[str] | None = None) -> BatchEncoding:
        batch: BatchEncoding = self.tokenizer(
            texts,
            pairs,
            padding=True,
            truncation="longest_first",
            max_length=max_tokens,
            return_tensors="pt",
            return_token_type_ids=None if pairs is None else True,  # a pair is told apart by its segments
        )
        return batch

    def _encode(
        self,
        items: Sequence[Any],
        lengths: Sequence[int],
        tokenize: Callable[[list[Any]], BatchEncoding],
        batch_size: int,
        device: torch.device | str | None,
    ) -> np.ndarray:
        """Encode longest first, so that a batch holds equals and the largest one comes first."""
        if device is not None:
            self.to(device)
        vectors = np.empty((len(items), self.dim), dtype=np.float32)
        order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
        with evaluating(self):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = tokenize([items[row] for row in rows]).to(self.device)
                vectors[rows] = self(**_known(batch)).cpu().numpy()
        return vectors


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run without dropout and without gradients, and leave the module in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def load_encoder(
    name_or_path: str | Path, *, config: EncoderConfig | None = None, role: Role = "passage"
) -> TextEncoder:
    """Load an encoder from a folder or the hub, float32.

    What is known of it is taken from, first to last: ``config``, our own ``ragtrain.json``, a sentence-transformers
    ``modules.json``, the DPR class named in ``config.json``.

    Args:
        name_or_path: DPR encoder, sentence-transformers folder, RAG folder (its question encoder), run folder, or
            anything AutoModel loads if ``config.pooling`` is given.
        config: overrides.
        role: what it is to encode; decides between DPR's two classes where the folder does not.

    Raises:
        ConfigError: the folder is not there, or does not say how to pool, or in a way that is not supported.
        DataError: weights or tokenizer are missing or cannot be read safely.
    """
    folder = local_folder(name_or_path, kind="encoder")
    name = str(name_or_path)
    inner = folder / "question_encoder"
    is_rag = "rag" in read_json(folder / SIDECAR) or read_json(folder / "config.json").get("model_type") == "rag"
    if is_rag and not (inner / "config.json").is_file():
        return _rag_question_encoder(folder, name, config)
    folder = inner if is_rag else folder
    sidecar = read_json(folder / SIDECAR).get("encoder")
    inner = folder
    if sidecar is not None:
        spec = _from_sidecar(sidecar, name, folder / SIDECAR)
    elif (folder / "modules.json").is_file():
        spec, inner = sentence_transformers_spec(folder, name)
    else:
        spec = EncoderSpec(name=name)
    model_config = _model_config(inner, name)
    if model_config.model_type == "dpr" and sidecar is None:
        spec = dataclasses.replace(spec, pooling="pooler", passage_format="pair")
    return _build(inner, model_config, _override(spec, config), role)


def _rag_question_encoder(folder: Path, name: str, config: EncoderConfig | None) -> TextEncoder:
    """Take the question encoder out of a folder that holds a whole RAG model and nothing else."""
    rag = load_weights(transformers.RagSequenceForGeneration, folder, name)
    tokenizer = load_tokenizer(folder / "question_encoder_tokenizer", name, config=rag.config.question_encoder)
    return wrap_dpr(rag.question_encoder, tokenizer, name, config)


def wrap_dpr(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, config: EncoderConfig | None = None
) -> TextEncoder:
    """Return a text encoder around a DPR encoder that is in memory."""
    if model.config.model_type != "dpr":
        raise ConfigError(
            f"{name!r}: its question encoder is a {type(model).__name__}; transformers' RAG scores with DPR encoders",
            hint="Pass the encoder's own folder with --question-encoder.",
        )
    spec = _override(EncoderSpec(name=name, pooling="pooler", passage_format="pair"), config)
    return TextEncoder(model, tokenizer, _with_length(spec, tokenizer, model.config))


def _from_sidecar(values: dict[str, Any], name: str, path: Path) -> EncoderSpec:
    try:
        return EncoderSpec(**{**values, "name": name})
    except TypeError as error:
        raise DataError(f"written by another version: {error}", path=path) from error


def _override(spec: EncoderSpec, config: EncoderConfig | None) -> EncoderSpec:
    if config is None:
        return spec
    given: dict[str, Any] = {
        "pooling": config.pooling,
        "normalize": config.normalize,
        "query_prompt": config.query_prompt,
        "passage_prompt": config.passage_prompt,
        "passage_format": config.passage_format,
        "max_tokens": config.passage_max_tokens,
    }
    return dataclasses.replace(spec, **{key: value for key, value in given.items() if value is not None})


def _build(folder: Path, config: PreTrainedConfig, spec: EncoderSpec, role: Role) -> TextEncoder:
    if config.model_type == "dpr":
        return _build_dpr(folder, config, spec, role)
    if spec.pooling is None:
        raise ConfigError(
            f"encoder {spec.name!r}: its folder does not say how token vectors become one vector",
            hint="Pass --pooling cls, mean, pooler or last, whichever the encoder was trained with.",
        )
    auto = transformers.AutoModelForTextEncoding if config.model_type in ("t5", "mt5", "umt5") else AutoModel
    if config.is_encoder_decoder and auto is AutoModel:
        raise ConfigError(
            f"encoder {spec.name!r} is a {config.model_type} model, which is no text encoder",
            hint="Choose a DPR encoder, a sentence-transformers folder or a BERT-like model.",
        )
    model = load_weights(auto, folder, spec.name, optional="" if spec.pooling == "pooler" else "pooler.")
    tokenizer = load_tokenizer(folder, spec.name)
    return TextEncoder(model, tokenizer, _with_length(spec, tokenizer, config))


def _build_dpr(folder: Path, config: PreTrainedConfig, spec: EncoderSpec, role: Role) -> TextEncoder:
    if spec.pooling != "pooler":
        raise ConfigError(f"encoder {spec.name!r} is a DPR encoder, which pools by itself, not by {spec.pooling!r}",
                          hint="Leave --pooling out.")  # fmt: skip
    default = "DPRQuestionEncoder" if role == "question" else "DPRContextEncoder"
    name = (config.architectures or [default])[0]
    if role == "question" and name == "DPRContextEncoder":
        raise ConfigError(
            f"encoder {spec.name!r} is DPR's passage encoder; questions need the question encoder trained with it",
            hint=f"Pass {spec.name.replace('ctx_encoder', 'question_encoder')!r} as question encoder."
            if "ctx_encoder" in spec.name
            else "Pass its DPRQuestionEncoder counterpart as question encoder.",
        )
    classes = {"DPRQuestionEncoder": DPRQuestionEncoder, "DPRContextEncoder": DPRContextEncoder}
    if name not in classes:
        raise ConfigError(f"encoder {spec.name!r} is a {name}; expected {' or '.join(classes)}")
    tokenizer = load_tokenizer(folder, spec.name)
    return TextEncoder(load_weights(classes[name], folder, spec.name), tokenizer, _with_length(spec, tokenizer, config))


def _with_length(spec: EncoderSpec, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> EncoderSpec:
    positions = getattr(config, "max_position_embeddings", None) or MAX_TOKENS
    longest = min(tokenizer.model_max_length, positions)
    return dataclasses.replace(spec, max_tokens=min(spec.max_tokens or MAX_TOKENS, longest))


def _model_config(folder: Path, name: str) -> PreTrainedConfig:
    try:
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise DataError(f"not a model of transformers' own: {error}", path=name) from error


def _pool(states: Tensor, mask: Tensor, pooling: str | None) -> Tensor:
    """Return (batch, dim) float32 of (batch, tokens, dim) states; padding may be on either side."""
    states, rows = states.float(), torch.arange(len(states), device=states.device)
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == "cls":
        return states[rows, mask.int().argmax(dim=1)]
    positions = torch.arange(mask.shape[1], device=mask.device)
    return states[rows, (mask * positions).argmax(dim=1)]


def _lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    before = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])


def _known(batch: BatchEncoding) -> dict[str, Tensor]:
    """Return what ``forward`` takes of what a tokenizer gives."""
    return {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
