"""From question vectors to what the generator reads: search, vectors, tokens, all for one batch.

A ``Retriever`` bundles an index, its searcher and the passages' tokens. Training and evaluation ask it for a ``Lookup``
for the questions at hand, which is the ``retrieve`` that ``RagModel.forward`` and ``decode`` expect::

    lookup = retriever.for_questions(batch.generator_questions)
    output = model(batch.question_ids, batch.question_mask, batch.targets, lookup)
    lookup.hits.ids        # what was found, (batch, depth)
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import torch

from ragtrain.data.prompts import assemble, layout_for
from ragtrain.data.tokens import TokenStore
from ragtrain.errors import IndexMismatchError, RagtrainError
from ragtrain.index import fusion
from ragtrain.models.rag import Retrieved

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from ragtrain.data.prompts import Layout
    from ragtrain.index.bm25 import BM25Index
    from ragtrain.index.search import DenseIndex, Hits, Searcher
    from ragtrain.models.rag import RagModel
    from ragtrain.records import Passage


@dataclasses.dataclass(frozen=True)
class Retriever:
    """An index that can be searched, with its passages in the generator's tokens.

    Attributes:
        index: passages and vectors.
        searcher: search over the index; what is retrieved is returned on its device.
        tokens: the passages' tokens, in the order of the index.
        layout: how passage and question become one generator input.
        n_docs: passages handed to the generator for each question.
        max_input_tokens: longest generator input; the passage gives way, never the question.
        retrieval: what chooses passages: vectors, words, or both. Their scores are inner products in every case.
        words: search by words; None where vectors alone choose.
    """

    index: DenseIndex
    searcher: Searcher
    tokens: TokenStore
    layout: Layout
    n_docs: int
    max_input_tokens: int
    retrieval: fusion.Retrieval = "dense"
    words: BM25Index | None = None

    @classmethod
    def for_model(
        cls,
        index: DenseIndex,
        model: RagModel,
        *,
        device: torch.device | str = "cpu",
        n_docs: int | None = None,
        retrieval: fusion.Retrieval = "dense",
        search_index: Literal["flat", "faiss"] = "flat",
    ) -> Retriever:
        """Return a retriever that feeds a model from an index; the passages are tokenised where they are not yet.

        Args:
            index: its vectors must be of the question encoder's dimension.
            model: whose tokenizer, input length and number of passages are used.
            device: where the vectors are searched and what is retrieved is returned: the model's.
            n_docs: passages handed to the generator; without it, as many as the model was trained with.
            retrieval: what chooses passages: vectors, words (BM25), or both by reciprocal rank fusion.
            search_index: search the vectors exactly, or ``index.faiss`` as it is.

        Raises:
            DataError: the index has no ``index.faiss`` or no BM25 index where it is to be searched.
            IndexMismatchError: vectors and question encoder have different dimensions.
        """
        if index.dim != model.question_encoder.dim:
            raise IndexMismatchError(
                f"its vectors have {index.dim} dimensions, those of the question encoder {model.question_encoder.dim}",
                path=index.path,
                hint="prepare the index with the passage encoder that belongs to this question encoder",
            )
        tokenizer = model.generator_tokenizer
        layout = layout_for(
            tokenizer, getattr(model.generator.config, "prefix", None) or "", causal=model.reader.causal
        )
        sha256 = index.manifest["passages_sha256"]
        tokens = TokenStore.for_index(index.path, index.passages, tokenizer, layout=layout, passages_sha256=sha256)
        settings = model.settings
        searcher, words = index.searcher(device, backend=search_index), None if retrieval == "dense" else index.words()
        n_docs = n_docs or settings.n_docs
        return cls(index, searcher, tokens, layout, n_docs, settings.max_input_tokens, retrieval, words)

    def search(self, queries: Tensor, n_docs: int | None = None, *, texts: Sequence[str] | None = None) -> Hits:
        """Return the best ``n_docs`` passages of each question, best first; no gradient flows through it.

        Args:
            queries: (batch, dim) question vectors, any floating type.
            n_docs: how many; without it, the retriever's own number.
            texts: the questions, where ``retrieval`` looks at words.

        Raises:
            RagtrainError: texts are needed and missing.
        """
        with torch.no_grad():
            vectors = queries.detach().float()
            return fusion.search(self.searcher, self.words, self.retrieval, vectors, texts, n_docs or self.n_docs)

    def gather(self, hits: Hits, question_tokens: Sequence[np.ndarray], n_docs: int | None = None) -> Retrieved:
        """Return vectors and generator inputs of the first ``n_docs`` hits of each question.

        Inputs are padded on the right to the longest of the batch. A place without a passage (``hits.mask`` False) has
        a zero vector and an input without passage, so that shapes hold; whoever scores it must honour the mask.

        Args:
            hits: (batch, depth) of ``search``, with depth at least ``n_docs``.
            question_tokens: the batch's questions in the generator's tokens, without special ones.
            n_docs: how many; without it, the retriever's own number.
        """
        n_docs = n_docs or self.n_docs
        ids, mask = hits.ids[:, :n_docs], hits.mask[:, :n_docs]
        # The document is the fast axis: row b * n_docs + d belongs to question b and its hit d.
        passages = self.tokens.gather(ids.cpu().numpy())
        input_ids, attention_mask = assemble(passages, question_tokens, self.layout, self.max_input_tokens)
        return Retrieved(
            vectors=self.searcher.vectors(ids),
            mask=mask,
            ids=ids,
            input_ids=torch.from_numpy(input_ids).to(ids.device),
            attention_mask=torch.from_numpy(attention_mask).to(ids.device),
            lengths=attention_mask.sum(1).tolist(),
        )

    def for_questions(
        self,
        question_tokens: Sequence[np.ndarray],
        *,
        n_docs: int | None = None,
        depth: int | None = None,
        texts: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Lookup:
        """Return the ``retrieve`` of one batch: call it with the batch's question vectors.

        Args:
            question_tokens: the batch's questions in the generator's tokens, without special ones.
            n_docs: passages handed to the generator; without it, the retriever's own number.
            depth: passages searched for, at least ``n_docs``; the rest is kept in ``hits`` only.
            texts: the questions as they were asked, where ``retrieval`` looks at words.
            ids: the questions' ids; a search has no use for them.
        """
        return Lookup(self, question_tokens, n_docs or self.n_docs, depth, texts)

    def passages(self, hits: Hits, row: int) -> list[Passage]:
        """Return the passages found for one question of the batch, best first."""
        found = hits.ids[row][hits.mask[row]].tolist()
        return [self.index.passages[place] for place in found]


class Lookup:
    """Retrieval for one batch of questions; remembers in ``hits`` what was found last."""

    def __init__(
        self,
        retriever: Retriever,
        question_tokens: Sequence[np.ndarray],
        n_docs: int,
        depth: int | None,
        texts: Sequence[str] | None = None,
    ) -> None:
        self.retriever, self.question_tokens, self.texts = retriever, question_tokens, texts
        self.n_docs, self.depth = n_docs, max(n_docs, depth or n_docs)
        self._hits: Hits | None = None

    @property
    def hits(self) -> Hits:
        """What was found last, ``depth`` passages for each question."""
        if self._hits is None:
            raise RagtrainError("nothing was searched for yet")
        return self._hits

    def __call__(self, queries: Tensor) -> Retrieved:
        """Search with question vectors (batch, dim) and return the generator's ``n_docs`` passages for each."""
        self._hits = self.search(queries)
        return self.retriever.gather(self._hits, self.question_tokens, self.n_docs)

    def search(self, queries: Tensor) -> Hits:
        """Return what is found with question vectors (batch, dim), ``depth`` passages for each."""
        return self.retriever.search(queries, self.depth, texts=self.texts)
