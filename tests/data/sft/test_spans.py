"""Passages inside finished prompts."""

from __future__ import annotations

import pytest

from ragtrain.data.sft.spans import cut_span, find_passages, without_spans
from ragtrain.records import Document

A, B, C = (f"Passage {x} is a text of more than twenty characters." for x in "ABC")
DOCS = [Document("a", "Title A", A), Document("b", "", B), Document("c", "C (river)", C)]


def cut(prompt: str, *gone: int) -> str:
    found = find_passages(prompt, DOCS)
    spans = [cut_span(prompt, found[i], DOCS[i].title) for i in gone if found[i] is not None]
    return without_spans(prompt, spans)


@pytest.mark.parametrize(
    ("prompt", "gone", "left"),
    [
        (f"Context:\n{A}\n{B}\n{C}\n\nQuestion: q", [2], f"Context:\n{A}\n{B}\n\nQuestion: q"),
        (f"Context:\n{A}\n{B}\n{C}\n\nQuestion: q", [0], f"Context:\n{B}\n{C}\n\nQuestion: q"),
        (f"[1] {A}\n\n[2] {B}\n\n[3] {C}\n\nq", [1], f"[1] {A}\n\n[3] {C}\n\nq"),
        (f"[1] {A}\n\n[2] {B}\n\n[3] {C}\n\nq", [2], f"[1] {A}\n\n[2] {B}\n\nq"),
        (f"[1] Title A\n{A}\n\n[2] {B}\n\nq", [0], f"[2] {B}\n\nq"),
        (f"Document 1 (Title: Title A): {A}\nDocument 3 (Title: C (river)): {C}\nq", [2],
         f"Document 1 (Title: Title A): {A}\nq"),
        (f"- {A}\n- {B}\nq", [0, 1], "q"),
        (f"1. Title A: {A}\n2. {B}\nQuestion: q\nAnswer:", [0], f"2. {B}\nQuestion: q\nAnswer:"),
        (f"Title: Title A\nText: {A}\n---\nText: {B}\n---\nq", [0], f"Text: {B}\n---\nq"),
        (f"Title: Title A\nText: {A}\n---\nText: {B}\n---\nq", [1], f"Title: Title A\nText: {A}\n---\nq"),
        (f"Use this: {A} {B} Then answer: q", [0], f"Use this: {B} Then answer: q"),
        (f"q\n\n{A}", [0], "q"),
        (f"Context:\n{A}\n{B}\n\nq", [0, 1], "Context:\n\n\nq"),
    ],
)  # fmt: skip
def test_what_goes_with_a_passage(prompt: str, gone: list[int], left: str) -> None:
    assert cut(prompt, *gone) == left


def test_finding() -> None:
    twice = [Document("a", "", A), Document("b", "", A), Document("c", "", A)]
    assert find_passages(f"{A}\n{A}\nq", twice) == [(0, len(A)), (len(A) + 1, 2 * len(A) + 1), None]
    inside = [Document("a", "", "Passage A is a text of more"), Document("b", "", A)]
    assert find_passages(f"x {A}\nq", inside) == [None, (2, 2 + len(A))]
    short = [Document("a", "", "Oslo"), Document("b", "", "")]
    assert find_passages("What is Oslo?\nOslo\nq", short) == [(14, 18), None]
    assert find_passages("What is Oslo?\nq", short) == [None, None]


def test_spans_that_overlap() -> None:
    assert without_spans("0123456789", [(2, 5), (4, 7), (9, 10)]) == "0178"
    assert without_spans("0123", []) == "0123"
