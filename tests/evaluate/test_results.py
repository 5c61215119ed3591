from __future__ import annotations

from pathlib import Path

from ragtrain.evaluate import results


def test_texts_with_line_ends_of_their_own_are_read_back(tmp_path: Path) -> None:
    """JSON lines end at a line feed, and at nothing else that Unicode takes for the end of a line."""
    rows = [{"id": "1", "text": "a\u2028b\u0085c\x0bd\x1ce"}, {"id": "2", "text": "f\r\ng"}]
    results.write(tmp_path / "eval", {"n": 2}, rows)
    assert results.read_predictions(tmp_path / "eval") == rows
