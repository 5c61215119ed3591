"""Comparisons: alignment, refusals, counts of wins, intervals, sentences, every input form."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from ragtrain import compare, metrics
from ragtrain.config.commands import CompareConfig
from ragtrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path


def row(
    identifier: str, prediction: str, *, answers: tuple[str, ...] = ("Oslo",), hit: int | None = 1
) -> dict[str, Any]:
    return {
        "id": identifier, "question": f"question {identifier}", "answers": list(answers), "prediction": prediction,
        "first_hit": hit, "depth": 20,
    }  # fmt: skip


def write_run(folder: Path, rows: list[dict[str, Any]], **summary: Any) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / "config.yaml").write_text("kind: rag\n")
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
    (folder / "eval" / "predictions.jsonl").write_text(lines, encoding="utf-8")
    (folder / "eval" / "metrics.json").write_text(json.dumps(summary))
    return folder


def random_rows(seed: int, share: float, n: int = 200) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    return [
        row(
            f"q{index}",
            generator.choice(["Oslo", "the Oslo."])
            if generator.random() < share
            else generator.choice(["", "Oslo Bergen"]),
            hit=generator.choice([None, 1, 3, 7, 20]),
        )
        for index in range(n)
    ]


def test_every_number_of_a_comparison_against_slow_loops(tmp_path: Path) -> None:
    rows_a, rows_b = random_rows(1, 0.4), random_rows(2, 0.6)
    a = write_run(tmp_path / "a", rows_a)
    b = write_run(tmp_path / "b", random.Random(3).sample(rows_b, len(rows_b)))  # the order in the file means nothing
    result = compare.run(CompareConfig(runs=(a, b), bootstrap_samples=2000, seed=4))
    (comparison,) = result.comparisons
    assert (comparison.n, comparison.only_a, comparison.only_b) == (200, 0, 0)
    assert [d.metric for d in comparison.differences] == [
        "em", "f1", "contains", "answer_recall@1", "answer_recall@5", "answer_recall@20",
    ]  # fmt: skip

    def score(metric: str, each: dict[str, Any]) -> float:
        if metric == "em":
            return float(each["prediction"] in ("Oslo", "the Oslo."))
        if metric == "contains":
            return float("Oslo" in each["prediction"])
        if metric == "f1":
            return {"": 0.0, "Oslo Bergen": 2 / 3}.get(each["prediction"], 1.0)
        return float(each["first_hit"] is not None and each["first_hit"] <= int(metric.split("@")[1]))

    for d in comparison.differences:
        left = [score(d.metric, each) for each in rows_a]
        right = [score(d.metric, each) for each in rows_b]
        assert d.a == pytest.approx(sum(left) / 200)
        assert d.b == pytest.approx(sum(right) / 200)
        assert d.wins == sum(y > x + 1e-9 for x, y in zip(left, right, strict=True))
        assert d.losses == sum(x > y + 1e-9 for x, y in zip(left, right, strict=True))
        assert d.wins + d.losses + d.ties == 200
        expected = metrics.paired_bootstrap(left, right, 2000, 4, 0.95)
        assert (d.delta, d.low, d.high) == pytest.approx(expected)
    em = comparison.differences[0]
    assert em.low > 0, "the example is made so that B is better"
    assert em.sentence.startswith(
        f"B answers {100 * em.delta:.1f} points more questions exactly "
        f"[{100 * em.low:.1f}, {100 * em.high:.1f}]: the interval excludes 0"
    )


def test_every_input_form_gives_the_same_comparison(tmp_path: Path) -> None:
    rows = random_rows(1, 0.5, 30)
    a = write_run(tmp_path / "a", random_rows(2, 0.5, 30))
    b = write_run(tmp_path / "b", rows)
    document = tmp_path / "b.json"
    document.write_text(json.dumps({"em": 0.5, "predictions": rows}))
    plain = tmp_path / "list.json"
    plain.write_text(json.dumps(rows))
    forms = [b, b / "eval", b / "eval" / "predictions.jsonl", document, plain]
    results = [compare.run(CompareConfig(runs=(a, form))).comparisons[0] for form in forms]
    assert len({each.differences for each in results}) == 1


def test_more_than_two_runs_are_each_compared_with_the_first(tmp_path: Path) -> None:
    runs = tuple(write_run(tmp_path / name, random_rows(seed, 0.5, 20)) for seed, name in enumerate("abc"))
    output = tmp_path / "out" / "comparison.json"
    result = compare.run(CompareConfig(runs=runs, output_file=output))
    assert [(each.a, each.b) for each in result.comparisons] == [
        (str(runs[0]), str(runs[1])), (str(runs[0]), str(runs[2])),
    ]  # fmt: skip
    written = json.loads(output.read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    em = result.comparisons[1].differences[0]
    assert written["comparisons"][1]["differences"]["em"]["delta"] == em.delta
    assert written["bootstrap_samples"] == 10000


def test_a_run_against_itself_has_no_difference(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", random_rows(1, 0.5, 20))
    for d in compare.run(CompareConfig(runs=(a, a))).comparisons[0].differences:
        assert (d.delta, d.low, d.high, d.wins, d.losses, d.ties) == (0, 0, 0, 0, 0, 20)
        assert "no question changed" in d.sentence


def test_different_question_sets_are_refused_with_counts_and_the_way_out(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [row(f"q{i}", "Oslo") for i in range(10)])
    b = write_run(tmp_path / "b", [row(f"q{i}", "Bergen") for i in range(7, 12)])
    with pytest.raises(DataError, match="3 in both, 7 only in the first, 2 only in the second") as caught:
        compare.run(CompareConfig(runs=(a, b)))
    assert "--intersect" in str(caught.value.hint)
    (comparison,) = compare.run(CompareConfig(runs=(a, b), intersect=True)).comparisons
    assert (comparison.n, comparison.only_a, comparison.only_b) == (3, 7, 2)
    assert comparison.differences[0].delta == -1


def test_runs_without_a_common_question_are_refused_even_to_intersect(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, [row(name, "Oslo")]) for name in "ab")
    with pytest.raises(DataError, match="share no question id"):
        compare.run(CompareConfig(runs=(a, b), intersect=True))


def test_different_references_are_refused_and_their_order_is_not_a_difference(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [row("q1", "x", answers=("Oslo", "Kristiania")), row("q2", "x")])
    b = write_run(tmp_path / "b", [row("q1", "x", answers=("Kristiania", "Oslo")), row("q2", "x")])
    c = write_run(tmp_path / "c", [row("q1", "x", answers=("Oslo",)), row("q2", "x")])
    assert compare.run(CompareConfig(runs=(a, b))).comparisons[0].n == 2
    with pytest.raises(DataError, match="question 'q1' has the reference answers") as caught:
        compare.run(CompareConfig(runs=(a, c)))
    assert "Kristiania" in str(caught.value)


def test_recall_is_compared_at_reported_depths_that_both_searched(tmp_path: Path) -> None:
    rows = random_rows(1, 0.5, 10)
    a = write_run(tmp_path / "a", rows, settings={"recall_at": [2, 10, 50], "n_docs": 5})
    b = write_run(
        tmp_path / "b", [{**each, "depth": 12} for each in rows], settings={"recall_at": [2, 10, 50], "n_docs": 10}
    )
    c = write_run(tmp_path / "c", [{k: v for k, v in each.items() if k not in ("depth", "first_hit")} for each in rows])
    first, second = compare.run(CompareConfig(runs=(a, b, c))).comparisons
    assert [d.metric for d in first.differences] == [
        "em",
        "f1",
        "contains",
        "answer_recall@1",
        "answer_recall@2",
        "answer_recall@10",
    ]
    assert first.remarks == ("n_docs is 5 in A and 10 in B",)
    assert [d.metric for d in second.differences] == ["em", "f1", "contains"]


@pytest.mark.parametrize(
    ("metric", "numbers", "sentence"),
    [
        ("em", (0.123, 0.091, 0.156), "B answers 12.3 points more questions exactly [9.1, 15.6]: the interval excludes 0"),
        ("em", (-0.05, -0.08, -0.02), "B answers 5.0 points fewer questions exactly [2.0, 8.0]: the interval excludes 0"),
        ("f1", (0.01, -0.02, 0.04), "B's F1 is 1.0 points higher [-2.0, 4.0]: the interval includes 0, this may be chance"),
        ("answer_recall@1", (0.2, 0.1, 0.3), "B finds an answer with its first passage for 20.0 points more questions "
         "[10.0, 30.0]: the interval excludes 0"),
        ("answer_recall@5", (-0.2, -0.3, 0.0), "B finds an answer within 5 passages for 20.0 points fewer questions "
         "[0.0, 30.0]: the interval includes 0, this may be chance"),
    ],
)  # fmt: skip
def test_sentences(metric: str, numbers: tuple[float, float, float], sentence: str) -> None:
    assert compare.describe(metric, *numbers) == sentence


def test_tolerance_makes_small_differences_ties() -> None:
    config = CompareConfig(tolerance=0.15, bootstrap_samples=10)
    d = compare.difference("f1", [0.5, 0.5, 0.5], [0.6, 0.7, 0.1], config)
    assert (d.wins, d.losses, d.ties) == (1, 1, 1)


def test_bad_inputs_say_what_and_where(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", [row("q1", "Oslo")])
    with pytest.raises(ConfigError, match="two runs or more, and 1 given"):
        compare.run(CompareConfig(runs=(good,)))
    with pytest.raises(DataError, match="no such file or folder"):
        compare.read_run(tmp_path / "nothing")
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(DataError, match="no run and no evaluation"):
        compare.read_run(bare)
    (bare / "config.yaml").write_text("kind: rag\n")
    with pytest.raises(DataError, match="not evaluated") as caught:
        compare.read_run(bare)
    assert caught.value.hint == f"ragtrain eval --model-dir {bare}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"p\.jsonl:1: not JSON"),
        ([json.dumps(row("q", "x")), "[]"], r"p\.jsonl:2: a prediction is a JSON object"),
        ([json.dumps(row("q", "x")), json.dumps(row("q", "y"))], r"p\.jsonl:2: .*'id'.* answered twice"),
        ([json.dumps({"id": "q", "prediction": "x"})], r"p\.jsonl:1: field 'answers'"),
        ([json.dumps({"id": "q", "answers": ["x"], "prediction": None})], r"p\.jsonl:1: field 'prediction'"),
        ([json.dumps({**row("q", "x"), "first_hit": "first"})], r"p\.jsonl:1: field 'first_hit'"),
        ([], "no predictions"),
    ],
)
def test_bad_lines_are_located(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        compare.read_run(path)


def test_the_table_and_the_sentences_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_run(tmp_path / name, random_rows(seed, 0.5, 20)) for seed, name in enumerate("ab"))
    compare.run(CompareConfig(runs=(a, b)))
    out, err = capsys.readouterr()
    assert out == ""
    assert "exact match" in err
    assert "answer-recall@20" in err
    assert "20 questions" in err
