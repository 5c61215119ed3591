from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragtrain.config.commands import EvalConfig
from ragtrain.evaluate import results


def test_texts_with_line_ends_of_their_own_are_read_back(tmp_path: Path) -> None:
    """JSON lines end at a line feed, and at nothing else that Unicode takes for the end of a line."""
    rows = [{"id": "1", "text": "a\u2028b\u0085c\x0bd\x1ce"}, {"id": "2", "text": "f\r\ng"}]
    results.write(tmp_path / "eval", {"n": 2}, rows)
    assert results.read_predictions(tmp_path / "eval") == rows


@pytest.mark.parametrize("writes", [True, False])
def test_what_may_be_compared_next_is_not_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, writes: bool
) -> None:
    answer = {"prediction": "Oslo"} if writes else {}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "predictions.jsonl").write_text(json.dumps({"id": "q", "documents": [], **answer}) + "\n")
    with caplog.at_level("INFO", "ragtrain"):
        results.say_next(tmp_path / "out", EvalConfig(model_dir="runs/a", contexts_from=tmp_path / "other"))
    swapped = f"ragtrain compare runs/a {tmp_path / 'other'} --swapped {tmp_path / 'out'}"
    assert caplog.messages[-1].endswith(swapped if writes else f"ragtrain compare runs/a {tmp_path / 'out'}")
