"""Cross-encoders: a question and a passage read together, and one number that says how well they fit.

The score is the logit of a classifier with one output, or the difference of its two outputs (not relevant, relevant): the
log-odds, without the sigmoid that some libraries put behind it. A passage that is longer than the model reads is scored in
overlapping windows, and its best window counts (MaxP of Dai and Callan, SIGIR 2019).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from ragtrain.errors import ConfigError, DataError, NumericsError, OutOfMemoryError
from ragtrain.models.folders import load_tokenizer, load_weights, local_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("ragtrain")

#: Tokens that two windows of a passage share.
OVERLAP = 32
#: Longest input of a model that says of no limit.
MAX_TOKENS = 512
#: Positions that some models keep for padding before the first token.
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer")


class CrossEncoder:
    """A classifier of pairs of question and passage.

    Attributes:
        model: on its device, in evaluation mode.
        tokenizer: of it.
        max_tokens: longest pair, special tokens included.
        cut_questions: questions so far of which only the beginning was read.
        split_passages: passages so far that were read in windows (or cut, where the tokenizer knows no windows).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.model, self.tokenizer, self.max_tokens = model.train(False), tokenizer, max_tokens
        self.cut_questions = self.split_passages = 0

    @torch.no_grad()
    def scores(
        self,
        asked: Sequence[tuple[str, Sequence[str]]],
        batch_size: int,
        advance: Callable[[int], object] | None = None,
    ) -> list[list[float]]:
        """Return the score of every passage of every question.

        Pairs of similar length are computed together; scores do not depend on what else is asked, beyond rounding.

        Args:
            asked: questions, each with its passages.
            batch_size: pairs at a time; halved when the device is full.
            advance: called with the number of pairs that were computed.

        Raises:
            NumericsError: a score is not finite.
            OutOfMemoryError: one pair alone does not fit on the device.
        """
        pairs, places = self._pairs(asked)
        order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place]["input_ids"]))
        best = [[float("-inf")] * len(texts) for _, texts in asked]
        start, size = 0, batch_size
        while start < len(order):
            chosen = order[start : start + size]
            found = self._attempt([pairs[place] for place in chosen])
            if found is None:
                size = self._smaller(len(chosen), len(pairs[chosen[0]]["input_ids"]))
                continue
            for place, score in zip(chosen, found, strict=True):
                question, passage = places[place]
                best[question][passage] = max(best[question][passage], score)
            start += len(chosen)
            if advance is not None:
                advance(len(chosen))
        return best

    def _pairs(self, asked: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[dict[str, list[int]]], list[Any]]:
        """Return the tokens of all windows, and of which question and passage each is one."""
        pairs: list[dict[str, list[int]]] = []
        places: list[tuple[int, int]] = []
        for number, (question, texts) in enumerate(asked):
            if not texts:
                continue
            encoded, owners = self._windows(self._short(question), list(texts))
            names = [name for name in self.tokenizer.model_input_names if name in encoded]
            before = len(pairs)
            for row, owner in enumerate(owners):
                pairs.append({name: list(encoded[name][row]) for name in names})
                places.append((number, owner))
            self.split_passages += len({owner for owner in owners if owners.count(owner) > 1})
            if len(pairs) - before < len(texts):
                raise DataError("the tokenizer of the reranker left a passage out", path=self.tokenizer.name_or_path)
        return pairs, places

    def _windows(self, question: str, texts: list[str]) -> tuple[Any, list[int]]:
        """Return the tokens of a question with each text, and the text of each row; a long text has several rows."""
        settings: dict[str, Any] = {"truncation": "only_second", "max_length": self.max_tokens, "verbose": False}
        if not getattr(self.tokenizer, "is_fast", False):
            encoded = self.tokenizer([question] * len(texts), texts, **settings)
            self.split_passages += sum(len(ids) == self.max_tokens for ids in encoded["input_ids"])
            return encoded, list(range(len(texts)))
        stride = min(OVERLAP, self.max_tokens // 8)
        encoded = self.tokenizer(
            [question] * len(texts), texts, return_overflowing_tokens=True, stride=stride, **settings
        )
        return encoded, [int(owner) for owner in encoded["overflow_to_sample_mapping"]]

    def _short(self, question: str) -> str:
        """Return a question that leaves half of the room to the passage."""
        most = self.max_tokens // 2
        ids = self.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) <= most:
            return question
        self.cut_questions += 1
        return str(self.tokenizer.decode(ids[: most - 2]))

    def _attempt(self, rows: list[dict[str, list[int]]]) -> list[float] | None:
        """Return the scores of one batch; None where the device was full."""
        device = self.model.device
        batch = self.tokenizer.pad(rows, return_tensors="pt", verbose=False).to(device)
        try:
            logits = self.model(**batch).logits.float()
        # The error goes, with its traceback, which holds every tensor that was alive.
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            return None
        scores = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        if not bool(torch.isfinite(scores).all()):
            raise NumericsError("the reranker gave a score that is not finite", hint="--dtype float32")
        return [float(score) for score in scores]

    def _smaller(self, rows: int, tokens: int) -> int:
        if rows == 1:
            raise OutOfMemoryError(f"a pair of {tokens} tokens does not fit on the device by itself",
                                   hint="give a smaller --reranker-max-tokens, or --device cpu")  # fmt: skip
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("%d pairs of %d tokens do not fit on the device at once: going on with %d", rows, tokens, rows // 2)
        return rows // 2


def load_cross_encoder(
    name_or_path: str | Path,
    *,
    max_tokens: int = MAX_TOKENS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> CrossEncoder:
    """Load a cross-encoder.

    Args:
        name_or_path: folder or hub id of a sequence classifier with one output, or two.
        max_tokens: longest pair; less where the model reads less.
        dtype: of its weights.
        device: where it computes.

    Raises:
        ConfigError: there is no such model, or it tells more than two things apart.
        DataError: weights or tokenizer cannot be read, or it has no weights for a classifier.
    """
    name = str(name_or_path)
    folder = local_folder(name_or_path, kind="reranker")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"not a model of transformers' own: {error}", path=name) from error
    if config.num_labels > 2:
        raise ConfigError(f"reranker {name!r} tells {config.num_labels} classes apart; expected one output, or two",
                          hint="take a cross-encoder that was trained on relevance")  # fmt: skip
    tokenizer = load_tokenizer(folder, name)
    model = cast("PreTrainedModel", load_weights(AutoModelForSequenceClassification, folder, name, dtype=dtype))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if getattr(model.config, "pad_token_id", None) is None:  # decoders look for the last token before the padding
        model.config.pad_token_id = tokenizer.pad_token_id
    positions = getattr(config, "max_position_embeddings", None) or max_tokens
    if config.model_type in _PADDED_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    longest = min(max_tokens, positions, tokenizer.model_max_length)
    return CrossEncoder(model.to(device), tokenizer, longest)  # type: ignore[arg-type]
