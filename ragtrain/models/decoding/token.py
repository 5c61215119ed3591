"""RAG-Token and fusion in the decoder: one beam search for each question."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ragtrain.errors import DataError
from ragtrain.losses import log_prior
from ragtrain.models.decoding.answers import Answer, Shares, describe, strip
from ragtrain.models.decoding.beams import SearchSettings, search
from ragtrain.models.decoding.decoder import decoder_of
from ragtrain.models.decoding.reading import encode_fused
from ragtrain.models.decoding.steppers import MarginalStepper, PassageStepper

if TYPE_CHECKING:
    from ragtrain.models.decoding.beams import Hypotheses
    from ragtrain.models.decoding.reading import Reading
    from ragtrain.models.rag import RagModel, Retrieved
    from ragtrain.models.readers import Seq2SeqReader


def answer_marginal(
    model: RagModel, reading: Reading, scores: Tensor, retrieved: Retrieved, settings: SearchSettings
) -> list[Answer]:
    """Return the best answer to each question by the likelihood of RAG-Token.

    Section 2.5::

        log p(y|q) = sum_t log sum_z p(z|q) p(y_t|q,z,y_<t)

    The posterior of passages is the one after the answer as a whole, p(z|q) prod_t p(y_t|q,z,y_<t), as of RAG-Sequence.
    """
    prior = _prior(scores, retrieved)
    n_docs = retrieved.mask.shape[1]
    found = search(MarginalStepper(reading.stepper(settings), prior), len(scores), settings, scores.device)
    lines = _lines(found, settings.pad)
    rows = [row for row, there in enumerate(retrieved.mask.flatten().tolist()) if there]
    loglik = torch.zeros_like(prior).flatten()
    for row, values in zip(rows, reading.score(rows, [[lines[row // n_docs][0]] for row in rows]), strict=True):
        loglik[row] = values.sum()
    posterior = torch.softmax(loglik.view_as(prior) + prior, dim=1)
    return describe(model, lines, Shares(scores, prior.exp(), posterior), retrieved)


def answer_fused(
    model: RagModel, scores: Tensor, retrieved: Retrieved, num_beams: int, max_new_tokens: int
) -> list[Answer]:
    """Return the best answer to each question of a reader of all passages at once (Izacard & Grave 2021).

    Their shares in the answer are not known: the posterior is given as the prior.
    """
    prior = _prior(scores, retrieved)
    decoder = decoder_of(cast("Seq2SeqReader", model.reader))
    inputs = retrieved.input_ids.view(len(scores), -1)
    settings = SearchSettings.of(model.generator, inputs, num_beams, max_new_tokens)
    source = decoder.source(*encode_fused(model, retrieved))
    found = search(PassageStepper(decoder, source, settings), len(scores), settings, scores.device)
    return describe(model, _lines(found, settings.pad), Shares(scores, prior.exp(), prior.exp()), retrieved)


def _prior(scores: Tensor, retrieved: Retrieved) -> Tensor:
    """Return log p(z|q); every question must have a passage.

    Raises:
        DataError: one has none.
    """
    empty = (~retrieved.mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"no passage was found for question {empty[0]} of the batch", hint="Check the index.")
    return log_prior(scores, retrieved.mask)


def _lines(found: Hypotheses, pad: int) -> list[tuple[tuple[int, ...], float, int]]:
    """Return each question's best hypothesis, its log-likelihood, and how many there were."""
    return [
        (strip(beams[0], pad), loglik, len(beams))
        for beams, loglik in zip(found.tokens.tolist(), found.token_loglik[:, 0].sum(1).tolist(), strict=True)
    ]
