"""Answers: beam search over retrieved passages, batched over questions (Lewis et al. 2020, section 2.5).

Each passage is read once. What the beams of a passage and the candidates that are scored under it share (its keys and
values, their common beginnings) is computed once, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragtrain.models.decoding import sequence, token
from ragtrain.models.decoding.answers import Answer
from ragtrain.models.decoding.causal import CausalReading
from ragtrain.models.decoding.reading import Seq2SeqReading
from ragtrain.models.encoder import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ragtrain.models.decoding.reading import Reading
    from ragtrain.models.decoding.sequence import Method
    from ragtrain.models.rag import RagModel, Retrieved

__all__ = ["Answer", "decode"]


def decode(
    model: RagModel,
    question_ids: Tensor,
    question_mask: Tensor,
    retrieve: Callable[[Tensor], Retrieved],
    *,
    num_beams: int = 4,
    max_new_tokens: int = 32,
    method: Method = "thorough",
) -> list[Answer]:
    """Return the best answer to each question.

    RAG-Sequence: every passage proposes the answers of its beam search. ``thorough`` then scores each different answer
    under *every* passage of its question; ``fast`` takes p(y|q,z) as 0 for passages that did not propose y, and scores
    nothing more. The answer with the highest marginal likelihood wins. RAG-Token and fusion in the decoder search once
    for each question, by the marginal or fused likelihood itself; the method makes no difference to them.

    The answers are those of transformers' ``RagSequenceForGeneration.generate`` with de-duplication, and
    ``RagTokenForGeneration.generate``. Like the former, a BOS token that all candidates of a question open with is not
    scored. Unlike it, an answer of one token keeps its prior, except in target style ``hf``; padding of passages is not
    read; and a T5's answer is not charged for end tokens behind its end, with which ``generate`` fills up.

    Args:
        model: the model, in any mode.
        question_ids: (batch, question tokens) of the question encoder's tokenizer.
        question_mask: (batch, question tokens).
        retrieve: (batch, dim) float32 question vectors to passages.
        num_beams: beams of each passage (of each question where it is searched as a whole); 1 is greedy.
        max_new_tokens: longest answer.
        method: what RAG-Sequence's candidates are scored under.

    Raises:
        DataError: no passage was found for a question.
    """
    with evaluating(model):
        query, retrieved = model.retrieve(question_ids, question_mask, retrieve)
        scores = model.scores(query, retrieved)
        if model.settings.likelihood == "fid":
            return token.answer_fused(model, scores, retrieved, num_beams, max_new_tokens)
        reading: Reading = (CausalReading if model.reader.causal else Seq2SeqReading)(model, retrieved)
        settings = reading.settings(num_beams, max_new_tokens)
        if model.settings.likelihood == "token":
            return token.answer_marginal(model, reading, scores, retrieved, settings)
        return sequence.answer(model, reading, scores, retrieved, settings, method)
