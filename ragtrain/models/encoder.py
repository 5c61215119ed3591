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

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from ragtrain.errors import ConfigError, DataError, RagtrainError
from ragtrain.models.encoding import (
    Precision,
    TokenBatches,
    encode_batches,
    pool,
    ragged_tokens,
    token_batches,
    token_budget,
)
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

    import numpy as np
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

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the vectors of a batch of texts.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 1 where there is a token; None where there is no padding.
            token_type_ids: (batch, tokens) segments, where the tokenizer gives them.

        Returns:
            (batch, dim) float32.
        """
        inputs: dict[str, Tensor | None] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        output = self.model(**inputs, return_dict=True)
        if self.settings.pooling == "pooler":
            vectors = output.pooler_output.float()
        else:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            vectors = pool(output.last_hidden_state, mask, self.settings.pooling)
        return nn.functional.normalize(vectors, dim=-1) if self.settings.normalize else vectors

    def tokenize_questions(self, questions: Sequence[str], max_tokens: int | None = None) -> BatchEncoding:
        """Return padded tensors (batch, longest) of questions, the prompt before each."""
        texts = [self.settings.query_prompt + question for question in questions]
        return self._tokenize(texts, max_tokens=max_tokens or self.max_tokens("question"))

    def tokenize_passages(self, passages: Sequence[tuple[str, str]], max_tokens: int | None = None) -> BatchEncoding:
        """Return padded tensors (batch, longest) of (title, text) pairs, in the encoder's own format."""
        return self._tokenize(*self._passage_texts(passages), max_tokens=max_tokens or self.max_tokens("passage"))

    def passage_batches(
        self, passages: Sequence[tuple[str, str]], batch_size: int = 64, device: torch.device | str | None = None
    ) -> TokenBatches:
        """Return the batches in which ``encode_passages`` computes (title, text) pairs; needs no network.

        It may run in another thread while the network computes the batches before.

        Args:
            passages: (title, text) pairs.
            batch_size: passages of the longest kind that are computed at a time; shorter ones come in larger batches.
            device: where they are to be computed.
        """
        limit = self.max_tokens("passage")
        tokens = ragged_tokens(self.tokenizer, *self._passage_texts(passages), max_tokens=limit)
        budget = token_budget(batch_size * limit, self.device if device is None else torch.device(device))
        return token_batches(tokens, budget, pad_token_id=self.tokenizer.pad_token_id or 0)

    def encode_questions(
        self, questions: Sequence[str], batch_size: int = 64, device: torch.device | str | None = None
    ) -> np.ndarray:
        """Return (questions, dim) float32 vectors, without dropout or gradient."""
        texts, limit = [self.settings.query_prompt + question for question in questions], self.max_tokens("question")
        if device is not None:
            self.to(device)
        tokens = ragged_tokens(self.tokenizer, texts, max_tokens=limit)
        batches = token_batches(
            tokens, token_budget(batch_size * limit, self.device), pad_token_id=self.tokenizer.pad_token_id or 0
        )
        with evaluating(self):
            return encode_batches(self, batches, dim=self.dim)

    def encode_passages(
        self,
        passages: Sequence[tuple[str, str]] | TokenBatches,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        *,
        precision: Precision = "float32",
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Return (passages, dim) float32 vectors of (title, text) pairs, without dropout or gradient.

        Args:
            passages: (title, text) pairs, or their ``passage_batches``.
            batch_size: passages of the longest kind that are computed at a time.
            device: where to compute; the encoder stays there.
            precision: arithmetic of the network's matrix products; the vectors are float32 in any case.
            progress: called now and then with the number of passages that were computed since the last call.
        """
        if device is not None:
            self.to(device)
        batches = passages if isinstance(passages, TokenBatches) else self.passage_batches(passages, batch_size)
        with evaluating(self):
            return encode_batches(self, batches, dim=self.dim, precision=precision, progress=progress)

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

    def _passage_texts(self, passages: Sequence[tuple[str, str]]) -> tuple[list[str], list[str] | None]:
        """Return what the tokenizer reads: texts, and second texts where title and text are two segments."""
        prompt = self.settings.passage_prompt
        if self.settings.passage_format == "joined":
            return [prompt + f"{title} {text}".strip() for title, text in passages], None
        return [prompt + title for title, _ in passages], [text for _, text in passages]

    def _tokenize(self, texts: list[str], pairs: list[str] | None = None, *, max_tokens: int) -> BatchEncoding:
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


def _lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    before = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
