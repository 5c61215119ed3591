"""What an example loses that is too long, and the count of it.

The question, the instruction, the answer and its end token are never cut. In turn:

* ``drop-docs`` leaves out whole passages, the lowest-ranked first, and no more of them than needed. Solved examples give way
  after the last passage. What does not fit even then is left out altogether (``lost="row"``).
* ``truncate-docs`` cuts the ends of passages: all that are longer than some number of tokens are cut to it, so that short
  ones stay whole. Where that would leave less than ``LEAST`` tokens of a passage, passages are dropped as above.
* ``drop-row`` leaves out the row. ``error`` stops the run and names the rows.

A finished prompt is opaque, but passages that are found in it word for word are taken out in the same way, with a number
or title before them and the empty line after them; where nothing is found, the row is left out.

Only rows that are too long are tokenised again. How many passages must go is estimated from the passages' own token counts,
and the estimate is checked on the whole text, from both sides where it is close: what is left is the most that fits.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from ragtrain.data.sft.encode import token_ids
from ragtrain.data.sft.layouts import passage_text, shot_text
from ragtrain.data.sft.spans import cut_span, find_passages, without_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ragtrain.data.sft.overflow import OverflowReport, Policy
    from ragtrain.data.sft.records import Lost, Sample

LEAST = 16
"""``truncate-docs``: tokens that are left of a passage at least."""
MARGIN = 8
"""Tokens by which the estimate of one passage may be wrong: merges at its ends, and the numbers of those behind it."""


@dataclasses.dataclass
class Fitted:
    """A sample as it fits.

    Attributes:
        sample: without what it lost.
        ids: its tokens; none where the row is lost.
        lost: as in ``Encoded``.
    """

    sample: Sample
    ids: list[int]
    lost: Lost = ""


def fit(
    samples: Sequence[Sample],
    ids_of: Callable[[Sequence[Sample]], list[list[int]]],
    *,
    limit: int,
    policy: Policy,
    tokenizer: Any,  # noqa: ANN401 - no common type
    report: OverflowReport,
) -> list[Fitted]:
    """Return each sample with its tokens, shortened by ``policy`` where it has more than ``limit``.

    Args:
        samples: in the order of what is returned.
        ids_of: writes samples and tokenises them.
        limit: tokens.
        policy: what gives way; with ``error`` rows are counted and left out, and ``report.raise_if_over`` is for the caller.
        tokenizer: for the token counts of passages.
        report: counts are added to it.
    """
    ids = ids_of(samples)
    fitted = [Fitted(sample, row) for sample, row in zip(samples, ids, strict=True)]
    over = [row for row in fitted if len(row.ids) > limit]
    report.limit = limit
    report.rows += len(samples)
    report.longest = max([report.longest, *map(len, ids)])
    report.over += [row.sample.id for row in over]
    if not over:
        return fitted
    search = _Search(ids_of, limit, tokenizer)
    left = search.truncate(over, report) if policy == "truncate-docs" else over
    if policy in ("drop-docs", "truncate-docs"):
        left = search.drop(left, report)
    for row in left:
        report.needed = max(report.needed, len(row.ids))
        report.dropped.append(row.sample.id)
        row.ids, row.lost = [], "row"
    return fitted


class _Search:
    """The least that makes rows fit, all rows at once."""

    def __init__(self, ids_of: Callable[[Sequence[Sample]], list[list[int]]], limit: int, tokenizer: Any) -> None:  # noqa: ANN401
        self._ids_of, self._limit, self._tokenizer = ids_of, limit, tokenizer

    def drop(self, rows: list[Fitted], report: OverflowReport) -> list[Fitted]:
        """Leave out passages, then solved examples; return the rows that are too long even then, at their shortest."""
        units = [Units(row.sample) for row in rows]
        counts = self._counts([text for unit in units for text in unit.texts])
        searches = [
            _Bracket(row.ids, [counts[text] for text in unit.texts], self._limit)
            for row, unit in zip(rows, units, strict=True)
        ]
        while True:
            asked = [i for i, search in enumerate(searches) if search.next() is not None]
            if not asked:
                break
            tried = self._ids_of([units[i].without(searches[i].next() or 0) for i in asked])
            for i, ids in zip(asked, tried, strict=True):
                searches[i].tell(ids)
        lost = []
        for row, unit, search in zip(rows, units, searches, strict=True):
            row.ids = search.best
            if search.found is None:
                lost.append(row)
                continue
            n_docs, n_shots = len(row.sample.documents), len(row.sample.shots)
            row.sample, row.lost = unit.without(search.found), "docs"
            report.passages_dropped += n_docs - len(row.sample.documents)
            report.shots_dropped += n_shots - len(row.sample.shots)
        return lost

    def _counts(self, texts: list[str]) -> dict[str, int]:
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, map(len, token_ids(self._tokenizer, distinct, special=False)), strict=True))

    def truncate(self, rows: list[Fitted], report: OverflowReport) -> list[Fitted]:
        """Cut the ends of passages; return the rows for which too little would be left of them."""
        cuts = [_Cut(row, self._limit) for row in rows]
        texts = list(dict.fromkeys(text for cut in cuts for text in cut.texts))
        ends = dict(zip(texts, _token_ends(self._tokenizer, texts), strict=True))
        for cut in cuts:
            cut.begin([ends[text] for text in cut.texts])
        while asked := [cut for cut in cuts if cut.open]:
            for cut, ids in zip(asked, self._ids_of([cut.shortened() for cut in asked]), strict=True):
                cut.tell(ids)
        for cut in cuts:
            if cut.fits:
                cut.row.sample, cut.row.ids, cut.row.lost = cut.shortened(), cut.ids, "text"
                report.passages_cut += cut.n_cut
        return [cut.row for cut in cuts if not cut.fits]


class Units:
    """What can be taken out of a sample as a whole, in the order in which it goes.

    Attributes:
        texts: of each unit, as it roughly stands in the prompt: for its token count.
    """

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        ranks = sample.ranks or tuple(range(len(sample.documents)))
        order = sorted(range(len(sample.documents)), key=lambda i: (ranks[i], i), reverse=True)
        if sample.finished is None:
            self._order = order
            self.texts = [passage_text(i + 1, sample.documents[i]) + "\n\n" for i in order]
        else:
            spans = find_passages(sample.finished, sample.documents)
            self._order = [i for i in order if spans[i] is not None]
            self._spans = {i: cut_span(sample.finished, span, sample.documents[i].title)
                           for i, span in enumerate(spans) if span is not None}  # fmt: skip
            self.texts = [sample.finished[slice(*self._spans[i])] for i in self._order]
        self.texts += [shot_text(shot) for shot in sample.shots]

    def without(self, n: int) -> Sample:
        """Return the sample without its first ``n`` units."""
        sample, gone = self._sample, set(self._order[:n])
        kept = [i for i in range(len(sample.documents)) if i not in gone]
        finished = sample.finished
        if finished is not None:
            finished = without_spans(finished, (self._spans[i] for i in gone))
        return dataclasses.replace(
            sample,
            documents=tuple(sample.documents[i] for i in kept),
            ranks=tuple(sample.ranks[i] for i in kept) if sample.ranks else (),
            shots=sample.shots[max(n - len(self._order), 0) :],
            finished=finished,
        )


class _Bracket:
    """The smallest number of units without which a row fits, found between one that is known not to do and one that does."""

    def __init__(self, ids: list[int], counts: list[int], limit: int) -> None:
        self.best, self._counts, self._limit = ids, counts, limit
        self.found: int | None = None
        self._low, self._length = 0, len(ids)  # taking out `_low` units is too little; it leaves `_length` tokens

    def next(self) -> int | None:
        """Return the number of units to try next, ``None`` where the search is over."""
        if self.found is None:
            if self._low == len(self._counts):
                return None
            length = self._length
            for n in range(self._low + 1, len(self._counts) + 1):
                length -= self._counts[n - 1]
                if length <= self._limit:
                    return n
            return len(self._counts)
        before = self.found - 1
        if before <= self._low or len(self.best) + self._counts[before] > self._limit + MARGIN:
            return None
        return before

    def tell(self, ids: list[int]) -> None:
        """Say what came out of the number that ``next`` returned."""
        tried = self.next()
        if tried is None:
            return
        if len(ids) <= self._limit:
            self.found, self.best = tried, ids
        else:
            self._low, self._length = tried, len(ids)
            if self.found is None:
                self.best = ids


class _Cut:
    """A row whose passages are cut to a common length.

    Attributes:
        row: as it is.
        texts: of its passages.
        open: another number is to be tried.
        fits: a number was found.
        ids: of the row as it fits.
        n_cut: passages that were cut.
    """

    def __init__(self, row: Fitted, limit: int) -> None:
        self.row, self._limit = row, limit
        sample = row.sample
        self._found: list[tuple[int, int] | None] = [None] * len(sample.documents)
        if sample.finished is not None:
            self._found = list(find_passages(sample.finished, sample.documents))
        self.texts = [
            document.text.strip()
            if sample.finished is None
            else ("" if span is None else sample.finished[slice(*span)])
            for document, span in zip(sample.documents, self._found, strict=True)
        ]
        self.open, self.fits, self.n_cut, self.ids = True, False, 0, row.ids

    def begin(self, ends: list[list[int]]) -> None:
        """Take the ends of the tokens of each passage, in characters, and the first guess."""
        self._ends = ends
        self._room = sum(map(len, ends)) - (len(self.row.ids) - self._limit)
        self._guess()

    def _guess(self) -> None:
        """Find the greatest number of tokens to which passages may be cut."""
        lengths = sorted(map(len, self._ends))
        room, self._most = self._room, 0
        for i, length in enumerate(lengths):
            share = room // (len(lengths) - i)
            self._most = min(share, length)
            if share < length:
                break
            room -= length
        self.open = self.fits = self._most >= LEAST

    def shortened(self) -> Sample:
        """Return the sample with its passages cut."""
        cut = [
            text if len(ends) <= self._most else text[: ends[self._most - 1]].rstrip()
            for text, ends in zip(self.texts, self._ends, strict=True)
        ]
        self.n_cut = sum(len(ends) > self._most for ends in self._ends)
        sample, finished = self.row.sample, self.row.sample.finished
        if finished is not None:
            pairs = [(span, text) for span, text in zip(self._found, cut, strict=True) if span is not None]
            for (start, end), text in sorted(pairs, reverse=True):
                finished = finished[:start] + text + finished[end:]
        pairs_of = zip(sample.documents, cut, self._found, strict=True)
        documents = tuple(
            document if finished is not None and span is None else dataclasses.replace(document, text=text)
            for document, text, span in pairs_of
        )
        return dataclasses.replace(sample, documents=documents, finished=finished)

    def tell(self, ids: list[int]) -> None:
        """Say what came out of ``shortened``."""
        excess = len(ids) - self._limit
        if excess > 0:
            self._room -= excess
            self._guess()
        else:
            self.open, self.ids = False, ids


def _token_ends(tokenizer: Any, texts: list[str]) -> list[list[int]]:  # noqa: ANN401
    """Return for each text where its tokens end, in characters; its words, where the tokenizer does not say."""
    if not texts:
        return []
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        return [[end for _, end in row] for row in encoded["offset_mapping"]]
    return [[word.end() for word in re.finditer(r"\S+", text)] for text in texts]
