"""What training asks of retrieval beyond the search: fresh scores, and passages to contrast.

Where the passage encoder is trained, the index lags behind it until its next refresh. More passages than needed are
then retrieved, encoded anew and put in their new order (over-retrieve and re-score, Izacard et al. 2022,
arXiv:2208.03299, section 2.4); the best ``n_docs`` are read and scored with a gradient. Where words choose passages,
alone or beside vectors, theirs stays the order.

For a contrastive loss the passages of the micro-batch form one pool: what each question retrieved, its first passage
that holds an answer however deep it lies, and its first passages that hold none (hard negatives, mined from the index
as it is at this step).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from ragtrain import metrics
from ragtrain.index.exact import Hits
from ragtrain.models.encoder import evaluating
from ragtrain.models.rag import doc_scores
from ragtrain.models.retrieved import Pool, Retrieved

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.config.commands import RagConfig
    from ragtrain.data.batches import RagBatch
    from ragtrain.models.encoder import TextEncoder
    from ragtrain.records import Passage
    from ragtrain.retrieve import Retriever

#: How many times ``n_docs`` passages are looked through for one that holds an answer.
CONTRAST_DEPTH = 4


class TrainingLookup:
    """The ``retrieve`` of one micro-batch in training; afterwards ``hits`` and ``answers`` tell what was found."""

    hits: Hits
    answers: Tensor

    def __init__(
        self, config: RagConfig, retriever: Retriever, batch: RagBatch, passage_encoder: TextEncoder | None
    ) -> None:
        """Prepare the retrieval of a batch.

        Args:
            config: the run's.
            retriever: search and tokens.
            batch: questions.
            passage_encoder: the one that is trained; None where passage vectors are the index's.
        """
        self.retriever, self.batch, self.passage_encoder = retriever, batch, passage_encoder
        self.n_docs = config.model.n_docs
        self.contrasts = config.objective.infonce_weight > 0
        self.hard_negatives = config.objective.hard_negatives
        # What words choose does not grow old, and a fused order is not one of scores.
        self.rescores = passage_encoder is not None and retriever.retrieval == "dense"
        fresh = config.retriever.over_retrieve if self.rescores else 1
        self.depth = self.n_docs * max(fresh, CONTRAST_DEPTH if self.contrasts else 1)

    def __call__(self, queries: Tensor) -> Retrieved:
        """Return the generator's ``n_docs`` passages for question vectors (batch, dim), and the pool where needed."""
        texts = [question.question for question in self.batch.questions]
        hits = self.retriever.search(queries, self.depth, texts=texts)
        if self.passage_encoder is not None and self.rescores:
            hits = self._rescored(queries, hits, self.passage_encoder)
        self.hits = hits
        found = [self.retriever.passages(hits, row) for row in range(len(queries))]
        self.answers = self._answers(found, hits)
        retrieved = self.retriever.gather(hits, self.batch.generator_questions, self.n_docs)
        if self.passage_encoder is None and not self.contrasts:
            return retrieved
        return dataclasses.replace(retrieved, pool=self._pool(retrieved, found))

    @property
    def first_hits(self) -> Tensor:
        """(batch,) rank from 1 of the first passage that holds an answer; 0 where none of them does."""
        return torch.where(self.answers.any(1), self.answers.int().argmax(1) + 1, 0)

    def _answers(self, found: list[list[Passage]], hits: Hits) -> Tensor:
        """Return (batch, depth) bool on the CPU: which hits hold an answer to their own question."""
        held = torch.zeros(hits.ids.shape, dtype=torch.bool)
        for row, (question, passages) in enumerate(zip(self.batch.questions, found, strict=True)):
            texts = [passage.text for passage in passages]
            held[row, : len(texts)] = torch.tensor(
                metrics.answer_matrix([question.answers], texts)[0], dtype=torch.bool
            )
        return held

    def _rescored(self, queries: Tensor, hits: Hits, encoder: TextEncoder) -> Hits:
        """Return the hits in the order of inner products with fresh vectors, which are their scores."""
        ids, place = torch.unique(hits.ids.clamp(min=0), return_inverse=True)
        inputs = self._inputs(encoder, ids)
        with evaluating(encoder):
            vectors = encoder(**inputs)
            scores = doc_scores(queries, vectors[place]).masked_fill(~hits.mask, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        return Hits(ids=hits.ids.gather(1, order), scores=scores.gather(1, order), mask=hits.mask.gather(1, order))

    def _inputs(self, encoder: TextEncoder, ids: Tensor) -> dict[str, Tensor]:
        passages = [self.retriever.index.passages.texts(place) for place in ids.tolist()]
        batch = encoder.tokenize_passages(passages).to(ids.device)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}

    def _pool(self, retrieved: Retrieved, found: list[list[Passage]]) -> Pool:
        device = retrieved.ids.device
        chosen = [retrieved.ids[retrieved.mask]]
        positives: list[int | None] = []
        if self.contrasts:
            for row in range(len(found)):
                own, held = self.hits.ids[row].cpu(), self.answers[row]
                first = int(held.int().argmax()) if bool(held.any()) else None
                positives.append(None if first is None else int(own[first]))
                negatives = own[~held & self.hits.mask[row].cpu()][: self.hard_negatives]
                chosen.append(negatives.to(device))
            chosen.append(torch.tensor([place for place in positives if place is not None], device=device).long())
        ids = torch.unique(torch.cat(chosen))
        place = torch.searchsorted(ids, retrieved.ids.clamp(min=0).contiguous()).clamp(max=len(ids) - 1)
        inputs = None if self.passage_encoder is None else self._inputs(self.passage_encoder, ids)
        pool = Pool(place=place, vectors=self.retriever.searcher.vectors(ids), inputs=inputs)
        return self._contrast(pool, ids, positives) if self.contrasts else pool

    def _contrast(self, pool: Pool, ids: Tensor, positives: list[int | None]) -> Pool:
        """Say which passages of the pool (ids (m,)) are positive, and which others they are told from.

        Another passage that holds an answer to the question is no negative: it is left out.
        """
        texts = [self.retriever.index.passages.texts(place)[1] for place in ids.tolist()]
        held = torch.tensor(metrics.answer_matrix([q.answers for q in self.batch.questions], texts))
        positive = torch.zeros_like(held)
        columns = {place: column for column, place in enumerate(ids.tolist())}
        for row, place in enumerate(positives):
            if place is not None:
                positive[row, columns[place]] = True
        candidate = positive | ~held
        return dataclasses.replace(pool, positive=positive.to(ids.device), candidate=candidate.to(ids.device))
