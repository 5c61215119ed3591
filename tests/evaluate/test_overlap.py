"""What of the questions was in the training: known values, and training data that is gone."""

from __future__ import annotations

import logging

import pytest

from ragtrain.errors import DataError
from ragtrain.evaluate import overlap
from ragtrain.evaluate.overlap import Seen
from ragtrain.records import Question


def test_known_values() -> None:
    seen = Seen.of([Question("a", "Who wrote the Notes?", ("Ada Lovelace", "the")), Question("b", "When?", ("1843",))])
    assert seen.kind("who wrote notes", ("nobody",)) == "the question"
    assert seen.kind("Who wrote it?", ("Babbage", "the Ada, Lovelace")) == "an answer"
    assert seen.kind("Who wrote it?", ("Ada", "an")) == "neither", "an answer without words is no answer"
    assert seen.kind("Who wrote it?", ()) == "neither"


def test_training_data_that_is_gone_costs_the_slices_only(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> list[Question]:
        raise DataError("gone")

    with caplog.at_level(logging.INFO, "ragtrain"):
        assert overlap._seen(read) is None
    assert "no slices by what was seen in training: gone" in caplog.text
