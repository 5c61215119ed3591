"""Text that spends exactly what the memory of a question spends: its first tokens, or its best sentences.

A budget is a number of the generator's positions. It is spent to the last token where the passages have that many: what does
not fit as a whole is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import regex

from ragtrain.data.compress.records import passage_text
from ragtrain.index.bm25 import BM25Index
from ragtrain.records import Passage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

    from ragtrain.records import Document

# The end of a sentence: its mark and what closes after it, then space and something that may begin one; or a line's end.
_END = regex.compile(r"""[.!?…]+["'”’)\]]*\s+(?=["'“‘(\[]*[\p{Lu}\p{N}])|[。！？]+["'”’」』）]*|\s*\n\s*""")
# A full stop that ends no sentence: of an initial, or of what stands before a name or number.
_ABBREVIATED = regex.compile(
    r"(?:^|[\s(.])(?:[^\W\d_]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Ft|Jr|Sr|Gen|Col|Lt|Sgt|Capt|Rev|Hon|Gov|Sen|Rep|No|Nos|vs|ca|cf|vol|pp|"
    r"fl|approx|etc|al|Inc|Ltd|Co|Corp|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.\s+$"
)


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, without the space between them; nothing else is lost.

    They end at ``.``, ``!``, ``?``, ``…`` before a capital or a digit, at ``。！？``, and at the end of a line; not after
    initials and common abbreviations.
    """
    found, begin = [], 0
    for end in _END.finditer(text):
        if _ABBREVIATED.search(text, begin, end.end()):
            continue
        found.append(text[begin : end.end()].strip())
        begin = end.end()
    return [sentence for sentence in [*found, text[begin:].strip()] if sentence]


def count_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens of texts, each tokenised by itself, without special ones."""
    given = list(texts)
    return sum(map(len, tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"])) if given else 0


def cut_to(text: str, budget: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return as much of the beginning of a text as has at most ``budget`` tokens.

    It ends where a token ends; tokenised again, it has no more of them than the budget.
    """
    if budget < 1:
        return ""
    if count_tokens([text], tokenizer) <= budget:
        return text
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoded["offset_mapping"]]
    else:
        ends = list(range(1, len(text) + 1))
    # The end of the last token that may stay is a good guess; what is cut may be tokenised otherwise, by a token or two.
    kept = min(budget, len(ends)) if tokenizer.is_fast else _last_within(text, ends, budget, tokenizer)
    while kept and count_tokens([text[: ends[kept - 1]].rstrip()], tokenizer) > budget:
        kept -= 1
    return text[: ends[kept - 1]].rstrip() if kept else ""


def _last_within(text: str, ends: Sequence[int], budget: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many of the ends may stay, by bisection, where a tokenizer does not say where its tokens end."""
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens([text[: ends[middle - 1]].rstrip()], tokenizer) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def first_tokens(documents: Sequence[Document], budget: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the first ``budget`` tokens of passages in their order, titles among them: a text for each that is left.

    Args:
        documents: the passages of a question.
        budget: tokens.
        tokenizer: of the generator.
    """
    texts: list[str] = []
    left = budget
    for document in documents:
        piece = cut_to(passage_text(document), left, tokenizer)
        if not piece:
            break
        texts.append(piece)
        left -= count_tokens([piece], tokenizer)
    return texts


class SentenceRanker:
    """Ranks the sentences of each question's passages by BM25, with the words of all questions' passages as the collection.

    A sentence is scored with the title of its passage, which is not part of the text that is read: it would cost a share of
    the budget each time.
    """

    def __init__(self, contexts: Iterable[Sequence[Document]], tokenizer: PreTrainedTokenizerBase) -> None:
        """Split passages and count their words.

        Args:
            contexts: the passages of each question.
            tokenizer: of the generator.
        """
        self._tokenizer = tokenizer
        self._sentences: dict[tuple[str, str], list[str]] = {}
        self._places: dict[tuple[str, str], int] = {}
        for document in (document for documents in contexts for document in documents):
            key = document.title, document.text
            if key not in self._sentences:
                self._sentences[key] = sentences_of(document.text) or sentences_of(document.title)
                for sentence in self._sentences[key]:
                    self._places.setdefault((document.title, sentence), len(self._places))
        self._index = BM25Index.of(Passage(str(place), title, text) for (title, text), place in self._places.items())

    def ranked(self, question: str, documents: Sequence[Document]) -> list[tuple[int, int]]:
        """Return document and sentence numbers by falling score; equal ones in the order of the text."""
        own = [
            (place, number, self._places[document.title, sentence])
            for place, document in enumerate(documents)
            for number, sentence in enumerate(self._sentences[document.title, document.text])
        ]
        if not own:
            return []
        scores = self._index.scores(question)[[index for _, _, index in own]]
        return [own[i][:2] for i in np.argsort(-scores, kind="stable")]

    def best(self, question: str, documents: Sequence[Document], budget: int) -> list[str]:
        """Return the best sentences within a budget of tokens, in the order of the text: one text for each passage left.

        Sentences are taken in the order of their rank; the first that does not fit as a whole is cut, and ends it.
        """
        chosen: dict[tuple[int, int], str] = {}
        for place, number in self.ranked(question, documents):
            document = documents[place]
            sentence = self._sentences[document.title, document.text][number]
            if count_tokens(_joined({**chosen, (place, number): sentence}), self._tokenizer) <= budget:
                chosen[place, number] = sentence
                continue
            left = budget - count_tokens(_joined(chosen), self._tokenizer)
            # A joint may cost a token more or less than its two sides by themselves.
            for room in range(left + 1, 0, -1):
                piece = cut_to(sentence, room, self._tokenizer)
                tried = {**chosen, (place, number): piece}
                if piece and count_tokens(_joined(tried), self._tokenizer) <= budget:
                    chosen = tried
                    break
            break
        return _joined(chosen)


def _joined(chosen: dict[tuple[int, int], str]) -> list[str]:
    """Return the sentences of each passage as a text."""
    places = sorted({place for place, _ in chosen})
    return [" ".join(chosen[key] for key in sorted(chosen) if key[0] == place) for place in places]
