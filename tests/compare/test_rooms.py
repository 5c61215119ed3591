"""Foreign predictions, what became of questions, gates, several runs, and what is written."""

from __future__ import annotations

import html.parser
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ragtrain import compare
from ragtrain.compare import gates, page, questions, several
from ragtrain.compare.differences import sliced_by
from ragtrain.config.commands import CompareConfig
from ragtrain.errors import ConfigError, DataError, GateError

if TYPE_CHECKING:
    from pathlib import Path

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>|\u2028"


def document(has: bool, text: str = "some text") -> dict[str, Any]:
    return {"id": "d", "title": "T", "text": text, "has_answer": has}


def row(identifier: str, prediction: str, read: bool | None = None, question: str = "Who is it?") -> dict[str, Any]:
    documents = [] if read is None else [document(read)]
    return {
        "id": identifier, "question": question, "answers": ["Oslo"], "prediction": prediction, "documents": documents,
        "first_hit": 1 if read else None, "depth": 5,
    }  # fmt: skip


def write_run(folder: Path, rows: list[dict[str, Any]], config: dict[str, Any] | None = None, **summary: Any) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"kind": "rag", **(config or {})}))
    (folder / "eval" / "predictions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (folder / "eval" / "metrics.json").write_text(json.dumps(summary))
    return folder


RIGHT, WRONG = "Oslo", "Bergen"


def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Fixed by retrieval, fixed by the reader, broken by retrieval, broken (unknown), both right, both wrong."""
    a = [row("f1", WRONG, False), row("f2", WRONG, True), row("b1", RIGHT, True), row("b2", RIGHT), row("r", RIGHT, True),
         row("w", WRONG, True)]  # fmt: skip
    b = [row("f1", RIGHT, True), row("f2", RIGHT, True), row("b1", WRONG, False), row("b2", WRONG, True), row("r", RIGHT, False),
         row("w", WRONG, False)]  # fmt: skip
    return (
        write_run(tmp_path / "a", a, {"loop": {"seed": 0}, "model": "x"}, latency_p95_s=0.1, questions_per_s=10.0),
        write_run(tmp_path / "b", b, {"loop": {"seed": 0}, "model": "y"}, latency_p95_s=0.12, questions_per_s=8.0),
    )


def config(*runs: Path, **more: Any) -> CompareConfig:
    return CompareConfig(runs=runs, bootstrap_samples=200, **more)


def test_changes_are_ascribed_to_what_changed(tmp_path: Path) -> None:
    (comparison,) = compare.run(config(*pair(tmp_path))).comparisons
    assert [(each.id, each.outcome, each.cause) for each in comparison.changed] == [
        ("f1", "fixed", "retrieval"), ("f2", "fixed", "reader"), ("b1", "broken", "retrieval"), ("b2", "broken", "unknown"),
        ("r", "both right", None), ("w", "both wrong", None),
    ]  # fmt: skip
    assert questions.counts(comparison.changed)["fixed by"] == {"retrieval": 1, "reader": 1}
    assert comparison.configuration == ('model: "x" in A, "y" in B',)
    written = comparison.to_json()
    assert written["changed"] == {"fixed": ["f1", "f2"], "broken": ["b1", "b2"], "both wrong": ["w"]}
    json.dumps(written)


def test_questions_are_shown_with_answers_and_passages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "ragtrain"):
        compare.run(config(*pair(tmp_path), show="broken", show_limit=1))
    said = capsys.readouterr().err
    assert "broken (retrieval): b1" in said
    assert "A: Oslo" in said
    assert "1 more questions" in caplog.text
    assert "of 6 questions B fixes 2 (1 by retrieval, 1 by the reader)" in caplog.text
    assert "T: some text" in said


def test_slices_need_enough_questions(tmp_path: Path) -> None:
    rows = [row(f"q{i}", RIGHT, question="When was it?" if i % 3 else "Is it so?") for i in range(40)]
    other = [{**each, "prediction": RIGHT if "When" in each["question"] else WRONG} for each in rows]
    a, b = write_run(tmp_path / "a", rows), write_run(tmp_path / "b", other)
    (comparison,) = compare.run(config(a, b)).comparisons
    found = {(each.kind, each.value): (each.n, each.delta) for each in comparison.slices}
    assert found == {("first word", "when"): (26, 0.0), ("first word", "yes or no"): (14, -1.0)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Who wrote it?", "who"),
        ("In which year?", "which"),
        ("Name it.", "other"),
        ("Was it he?", "yes or no"),
        ("", None),
    ],
)
def test_question_types(text: str, expected: str | None) -> None:
    answered = compare.Answered("q", frozenset(), None, None, None, 0, question=text)
    assert questions.question_type(answered) == expected


@pytest.mark.parametrize(
    ("gate", "met"),
    [("em>=0", True), ("em>0", False), ("em.low>=-100", True), ("latency_p95<=1.1x", False), ("latency_p95<=1.2x", True),
     ("questions_per_s>=-3", True), ("f1>=1x", True)],
)  # fmt: skip
def test_gates(tmp_path: Path, gate: str, met: bool) -> None:
    a, b = pair(tmp_path)
    output = tmp_path / "out.json"
    if met:
        assert compare.run(config(a, b, gate=(gate,))).gates[0].met
        return
    with pytest.raises(GateError, match="not met") as caught:
        compare.run(config(a, b, gate=(gate,), output_file=output))
    assert caught.value.exit_code == 6
    assert json.loads(output.read_text())["gates"][0]["met"] is False


@pytest.mark.parametrize("gate", ["em", "em>=x", "em.middle>=0", "em.low>=1x", "nothing>=0", "latency_p95.low>=0"])
def test_what_is_no_gate_is_refused(tmp_path: Path, gate: str) -> None:
    with pytest.raises(ConfigError, match="--gate"):
        compare.run(config(*pair(tmp_path), gate=(gate,)))


def test_a_gate_on_a_rate_of_the_evaluation_is_in_points(tmp_path: Path) -> None:
    low, high = (
        write_run(tmp_path / name, [row("q", RIGHT, True)], ceiling=value, seconds=value, intervals={"ceiling": [0, 1]})
        for name, value in (("low", 0.5), ("high", 0.9))
    )
    with pytest.raises(GateError, match="it is -40"):
        compare.run(config(high, low, gate=("ceiling>=-1",)))
    (judged,) = compare.run(config(high, low, gate=("seconds>=-1",))).gates
    assert judged.value == pytest.approx(-0.4)


def test_a_gate_of_several_runs_names_the_one_that_fails_it(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    worse = write_run(tmp_path / "worse", [row(each, WRONG, True) for each in ("f1", "f2", "b1", "b2", "r", "w")])
    with pytest.raises(GateError, match=rf"not met: em>=0 of {worse} \(it is -50\)$") as caught:
        compare.run(config(a, b, worse, gate=("em>=0",)))
    assert isinstance(caught.value.result, compare.CompareResult)
    assert [each.met for each in caught.value.result.gates] == [True, False]


def test_a_gate_that_is_not_met_leaves_the_json_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ragtrain.cli import main

    runs = [str(each) for each in pair(tmp_path)]
    assert main(["compare", *runs, "--gate", "em>=50", "--json", "--quiet"]) == 6
    assert json.loads(capsys.readouterr().out)["gates"] == [
        {"gate": "em>=50", "value": 0.0, "met": False, "run": runs[1]}
    ]


def test_a_ratio_to_nothing() -> None:
    assert gates._ratio(0.0, 0.0) == 1.0
    assert gates._ratio(0.0, 1.0) == float("inf")


def test_foreign_predictions_meet_ours(tmp_path: Path) -> None:
    ours = write_run(tmp_path / "ours", [row("1", RIGHT, True), row("2", WRONG, True)])
    flashrag = tmp_path / "flashrag"
    flashrag.mkdir()
    (flashrag / "intermediate_data.json").write_text(json.dumps([
        {"id": "1", "question": "Who?", "golden_answers": ["Oslo"],
         "output": {"pred": "Oslo", "retrieval_result": [{"id": "9", "contents": "\"T\"\nIn Oslo it is."}]}},
        {"id": "2", "question": "Who?", "golden_answers": ["Oslo"], "output": {"pred": "no", "retrieval_result": []}},
    ]))  # fmt: skip
    lm_eval = tmp_path / "samples_x.jsonl"
    lm_eval.write_text("\n".join(
        json.dumps({"doc_id": 7, "doc": {"id": str(i), "question": "Who?", "answers": {"text": ["Oslo"]}}, "target": "",
                    "filtered_resps": [" Oslo"], "resps": [["Oslo"]]}) for i in (1, 2)
    ))  # fmt: skip
    ragfit = tmp_path / "generated.jsonl"
    ragfit.write_text(
        "\n".join(json.dumps({"id": i, "query": "Who?", "answers": ["Oslo"], "generated": "Oslo"}) for i in (1, 2))
    )
    table = tmp_path / "table.csv"
    table.write_text("\ufeffID,Prediction\n1,Oslo\n2,Oslo\n", encoding="utf-8")
    result = compare.run(config(ours, flashrag, lm_eval, ragfit, table))
    assert [each.differences[0].b for each in result.comparisons] == [0.5, 1.0, 1.0, 1.0]
    (found,) = (each for each in compare.read_run(flashrag).answered.values() if each.id == "1")
    assert found.read_answer is True
    assert found.documents[0]["title"] == "T"
    assert result.wins is not None
    assert result.wins.counts[2] == (1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("id,answer\n1,x\n", "no column 'prediction'"), ("id,prediction\n7,x\n", "no run beside it has a question '7'"),
     ("id,prediction\n1\n", r"t\.csv:2: .*cell is missing")],
)  # fmt: skip
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        compare.run(config(write_run(tmp_path / "a", [row("1", RIGHT)]), table))


def test_a_table_may_hold_long_texts(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(f"id,prediction\nq,{'Oslo ' * 40_000}\n")
    ours = write_run(tmp_path / "ours", [row("q", RIGHT, True)])
    (found,) = compare.run(config(ours, tmp_path / "long.csv")).comparisons
    assert (found.differences[0].a, found.differences[0].b) == (1.0, 0.0)


def test_a_table_alone_lacks_references(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("id\tprediction\n1\tx\n")
    with pytest.raises(DataError, match="answers"):
        compare.read_run(table)


def test_seeds_of_a_method_are_kept_apart(tmp_path: Path) -> None:
    runs = []
    for name, share in (("x", 3), ("y", 2)):
        for seed in range(2):
            rows = [row(f"q{i}", RIGHT if (i + seed) % share == 0 else WRONG) for i in range(60)]
            runs.append(write_run(tmp_path / f"{name}{seed}", rows, {"loop": {"seed": seed}, "model": name}))
    result = compare.run(config(*runs, group_seeds=True))
    (found,) = result.seeds
    assert (found["seeds_a"], found["seeds_b"], found["n"]) == (2, 2, 60)
    assert found["delta"] == pytest.approx(1 / 2 - 1 / 3)
    assert found["low"] <= found["questions_low"]
    with pytest.raises(DataError, match="of one method"):
        compare.run(config(*runs[:2], group_seeds=True))
    bare = tmp_path / "predictions.jsonl"
    bare.write_text((runs[0] / "eval" / "predictions.jsonl").read_text())
    with pytest.raises(DataError, match="method is not known"):
        compare.run(config(bare, runs[0], group_seeds=True))


def test_what_is_best_at_its_cost(tmp_path: Path) -> None:
    a, b = (compare.read_run(path) for path in pair(tmp_path))
    quick = [(each.name, each.best) for each in several.pareto([a, b], "em", "questions_per_s")]
    assert quick == [(a.name, True), (b.name, False)], "as good and slower is not best"
    assert several.pareto([a, b], "em", "peak_memory_bytes") == []


class Reader(html.parser.HTMLParser):
    """Every tag with its attributes, the scripts, and the text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def test_the_page_needs_nothing_and_what_runs_say_stays_text(tmp_path: Path) -> None:
    rows = [{**row("1", ATTACK, True, question=ATTACK), "documents": [document(True, ATTACK)]}, row("2", RIGHT)]
    a = write_run(tmp_path / "a<b>&", rows)
    b = write_run(tmp_path / "b", [{**each, "prediction": RIGHT} for each in rows])
    target = tmp_path / "out" / "page.html"
    compare.run(config(a, b, html=target, md=tmp_path / "out" / "page.md", plots=tmp_path / "plots"))
    text = target.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    names = [tag for tag, _ in reader.tags]
    assert names.count("script") == 2
    assert "img" not in names
    assert not [attributes for _, attributes in reader.tags if {"src", "href"} & attributes.keys()]
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    found = json.loads(reader.scripts[0])
    assert found["questions"][0][1] == ATTACK
    assert found["passages"] == [["T", " ".join(ATTACK.split())]]
    assert "alert(1)</script>" not in text
    assert (tmp_path / "out" / "page.md").read_text().startswith("# Comparison of runs")
    assert "<script>" not in (tmp_path / "out" / "page.md").read_text().replace("\\<script\\>", "")
    assert (tmp_path / "plots" / "differences.png").stat().st_size > 5000
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_a_large_comparison_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", 3000)
    rows = [
        {**row(f"q{i}", RIGHT if i % 2 else WRONG), "documents": [document(False, f"{i} " * 200)]} for i in range(30)
    ]
    a = write_run(tmp_path / "a", rows)
    b = write_run(tmp_path / "b", [{**each, "prediction": RIGHT} for each in rows])
    runs = [compare.read_run(path) for path in (a, b)]
    found = page._document(runs, several.common(runs))
    kept = [answers[3] is not None for answers in found["answers"][0]]
    assert kept[0], "changed questions come first"
    assert not kept[-1]
    assert found["answers"][0][-1][4] == 1


def test_a_difference_falls_into_the_parts_of_retrieval_and_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rows(right: set[int], passage: str) -> list[dict[str, Any]]:
        return [
            {**row(f"q{i}", RIGHT if i in right else WRONG), "documents": [{"id": passage, "title": "", "text": "x"}]}
            for i in range(20)
        ]

    a = write_run(tmp_path / "a", rows(set(range(5)), "1"))
    b = write_run(tmp_path / "b", rows(set(range(2, 12)), "2"))
    swapped = write_run(tmp_path / "s", rows(set(range(1, 8)), "2"))
    with caplog.at_level("INFO", "ragtrain"):
        result = compare.run(config(a, b, swapped=swapped, md=tmp_path / "c.md", html=tmp_path / "c.html"))
    em = result.attribution[0]
    assert em.retrieval.delta + em.reader.delta == pytest.approx(result.comparisons[0].differences[0].delta)
    assert (em.retrieval.delta, em.retrieval.fixed, em.retrieval.broken) == (pytest.approx(0.1), 3, 1)
    assert (em.reader.delta, em.reader.fixed, em.reader.broken) == (pytest.approx(0.15), 4, 1)
    assert em.same_passages == 1.0
    assert "other passages to the same reader +10.0" in caplog.text
    assert "Whose doing" in (tmp_path / "c.md").read_text()
    with pytest.raises(DataError, match="only 0% of its questions"):
        compare.run(config(a, b, swapped=a))
    with pytest.raises(ConfigError, match="two runs, and 3"):
        compare.run(config(a, b, b, swapped=swapped))


def test_of_runs_of_different_kinds_only_settings_that_both_have_are_compared(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    (b / "config.yaml").write_text(yaml.safe_dump({"kind": "sft", "loop": {"seed": 1}, "context": {"n_docs": 2}}))
    (comparison,) = compare.run(config(a, b)).comparisons
    assert comparison.configuration == ("kind: rag in A, sft in B", "loop.seed: 0 in A, 1 in B")


def test_runs_that_complete_a_graph_are_compared_by_triples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def linked(name: str, rank: int) -> Path:
        rows = [
            {"id": f"t{each}-{direction}", "triple": ["a", "r", str(each)], "direction": direction, "rank": rank + each}
            for each in range(3)
            for direction in ("tail", "head")
        ]
        return write_run(tmp_path / name, rows)

    paths = [linked("x", 1), linked("y", 2), linked("z", 1)]
    with caplog.at_level("INFO", "ragtrain"):
        result = compare.run(config(*paths, md=tmp_path / "c.md", html=tmp_path / "c.html"))
    assert result.wins is not None
    assert result.wins.metric == "mrr"
    assert result.wins.counts == ((0, 3, 0), (0, 0, 0), (0, 3, 0))
    assert result.comparisons[1].differences[0].sentence == "MRR: no triple changed"
    shown = capsys.readouterr().err + caplog.text + (tmp_path / "c.md").read_text()
    assert "3 triples, percent" in shown
    assert "riples won, by MRR" in shown
    assert "question" not in shown.lower()
    assert ">Triples won, by MRR<" in (tmp_path / "c.html").read_text()


def judge(folder: Path, model: str, verdicts: list[tuple[bool | None, bool | None]]) -> Path:
    """Give a run the verdicts of a judge."""
    file = folder / "eval" / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    said = [{**each, "judged": {"correct": x, "faithful": y}} for each, (x, y) in zip(rows, verdicts, strict=True)]
    file.write_text("".join(json.dumps(each) + "\n" for each in said))
    (folder / "eval" / "judge.json").write_text(json.dumps({"judge": {"model": model, "prompts": 1}}))
    return folder


def test_verdicts_of_one_judge_are_compared_where_both_have_one(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    before = judge(a, "J", [(False, None), (False, None), (True, None), (True, True), (True, None), (None, None)])
    after = judge(b, "J", [(True, True), (False, None), (True, None), (None, True), (True, None), (True, None)])
    (found,) = compare.run(config(before, after)).comparisons
    by_name = {each.metric: each for each in found.differences}
    correct, faithful = by_name["judge_correct"], by_name["judge_faithful"]
    assert [correct.wins, correct.losses, correct.ties] == [1, 0, 3]  # neither the fourth nor the sixth has both
    assert [correct.a, correct.b] == [0.5, 0.75]
    assert [faithful.wins, faithful.losses, faithful.ties] == [0, 0, 1]
    assert "the judge finds B's answers correct in 25.0 points more of the questions" in correct.sentence
    judge(b, "K", [(True, True)] * 6)
    (found,) = compare.run(config(before, after)).comparisons
    assert not {"judge_correct", "judge_faithful"} & {each.metric for each in found.differences}
    assert "verdicts are not compared: the judge is J (prompts 1) in A and K (prompts 1) in B" in found.remarks


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("em", "recall@5"), "em"), (("answer_recall@1", "answer_recall@20", "recall@5", "recall@20"), "recall@5"),
     (("answer_recall@1", "answer_recall@20"), "answer_recall@1"), (("mrr", "hits@1"), "mrr")],
)  # fmt: skip
def test_slices_are_of_a_metric_that_can_differ(names: tuple[str, ...], expected: str) -> None:
    found = [compare.Difference(name, 0, 0, 0, 0, 0, 0, 0, 0, "") for name in names]
    assert sliced_by(found) == expected
    assert sliced_by([]) is None


def test_costs_are_shown_in_units_that_can_be_read() -> None:
    assert several.cost_text("latency_p50_s", 0.07574) == "75.7"
    assert several.cost_text("peak_memory_bytes", 3 * 2**30 / 2) == "1.5"
    assert several.cost_text("questions_per_s", 12345.6) == "12346"
    assert set(several.COSTS) == {each for each in several.COSTS if several.cost_label(each)}


def test_times_of_answers_stand_for_an_evaluation_that_says_none(tmp_path: Path) -> None:
    rows = [{**row(f"q{i}", RIGHT), "seconds": i / 10} for i in range(21)]
    silent, said = write_run(tmp_path / "a", rows), write_run(tmp_path / "b", rows, latency_p50_s=7.0)
    found = compare.read_run(silent).summary
    assert [found[f"latency_{name}_s"] for name in ("p50", "p95", "mean")] == pytest.approx([1.0, 1.9, 1.0])
    assert compare.read_run(said).summary["latency_p50_s"] == 7.0
    assert "latency_p50_s" not in compare.read_run(write_run(tmp_path / "c", [row("q", RIGHT)])).summary


def test_questions_are_browsed_beside_a_run_that_only_retrieves(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    found = [{"id": each, "question": "Who is it?", "answers": ["Oslo"], "gold_ranks": [1], "gold": 1, "first_hit": 1, "depth": 5}
             for each in ("f1", "f2", "b1", "b2", "r", "w")]  # fmt: skip
    graph = write_run(tmp_path / "graph", found)
    compare.run(config(a, graph, b, html=tmp_path / "c.html"))
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert (data["runs"], data["letters"]) == (["a", "b"], ["A", "C"])
    assert len(data["questions"]) == 6
    compare.run(config(graph, a, b, html=tmp_path / "e.html"))
    data = json.loads((tmp_path / "e.html").read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])
    assert (data["runs"], data["letters"]) == (["a", "b"], ["B", "C"])
    compare.run(config(graph, a, html=tmp_path / "d.html"))
    assert 'id="data"' not in (tmp_path / "d.html").read_text(encoding="utf-8")


def test_a_sentence_takes_back_what_several_metrics_make_doubtful(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [row(f"q{i}", WRONG) for i in range(40)])
    b = write_run(tmp_path / "b", [row(f"q{i}", RIGHT if i < 6 else WRONG) for i in range(40)])
    em = compare.run(config(a, b)).comparisons[0].differences[0]
    assert em.low > 0
    assert em.p == pytest.approx(2 / 2**6)
    assert em.p_holm == pytest.approx(5 * em.p), "five metrics"
    assert em.sentence.endswith("excludes 0, but beside the other metrics p is 0.16, this may be chance")
