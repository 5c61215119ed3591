from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from ragtrain import report
from ragtrain.errors import ConfigError, Interrupted

DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*")


@pytest.fixture(autouse=True)
def _logging():
    """What a test sets up must not stay: the logger is the process's."""
    yield
    for handler in list(report.logger.handlers):
        report.logger.removeHandler(handler)
        handler.close()
    report._quiet = False


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_lines_off_the_terminal_are_plain_and_dated(capsys):
    report.configure()
    report.logger.info("step %d", 1)
    report.logger.warning("half\rredrawn \x1b[31mred")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(DATED.fullmatch(line) for line in lines)
    assert lines[0].endswith(" step 1")
    assert lines[1].endswith(" warning: half\\rredrawn \\x1b[31mred")
    assert "\r" not in err
    assert "\x1b" not in err


def test_everything_off_the_terminal_is_plain(capsys, monkeypatch):
    """Also where the environment asks for colours: a file is not a terminal."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    report.configure()
    report.table("Runs", ["run", "EM"], [["before", 12.5], ["after", None]])
    report.panel("Plan", [("steps", 100), ("batch", "8 x 4")])
    report.error(ConfigError("max_steps: -1", hint="give a positive number"))
    for _ in report.progress([1, 2, 3], "Encoding"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err


def test_table(capsys):
    report.configure()
    report.table("Scores", ["run", "EM", "note"], [["a", 1.5, "x"], ["bbb", 20, None]])
    assert capsys.readouterr().err == (
        "Scores\nrun   EM  note\n---  ---  ----\na    1.5  x\nbbb   20  –\n"
    )  # fmt: skip


def test_a_table_may_be_empty_but_not_ragged(capsys):
    report.table("None", ["run", "EM"], [])
    assert capsys.readouterr().err == "None\nrun  EM\n---  --\n"
    with pytest.raises((ValueError, IndexError)):
        report.table("Ragged", ["run", "EM"], [["a"]])


def test_markup_in_data_is_data(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    report.configure()
    report.table("T", ["question"], [["what is [bold]this[/bold]?"]])
    report.logger.info("and [red]that[/red]")
    report.error(ConfigError("[green]value[/green]", hint="[b]h[/b]"))
    text = terminal.getvalue()
    for piece in ("[bold]this[/bold]", "[red]that[/red]", "[green]value[/green]", "[b]h[/b]"):
        assert piece in text


def test_panel(capsys):
    report.configure()
    report.panel("Plan", [("steps", 100), ("examples", "3 x 4")])
    assert capsys.readouterr().err == "Plan\n  steps     100\n  examples  3 x 4\n"


def test_error_with_and_without_hint(capsys):
    report.error(ConfigError("max_steps: 0 is not positive", hint="leave it out"))
    report.error(ConfigError("alone"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: max_steps: 0 is not positive\n\nhint: leave it out\nerror: alone\n"


def test_other_ranks_say_little(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    report.configure(log_file=tmp_path / "train.log")
    report.logger.info("not shown")
    report.logger.warning("shown")
    report.table("T", ["a"], [[1]])
    report.json_out({"a": 1})
    report.error(ConfigError("bad", hint="long"))
    report.error(Interrupted("stopped"))
    out, err = capsys.readouterr()
    assert out == ""
    assert re.sub(r"^\S+ \S+ ", "", err) == "warning: shown\n[rank 1] error: bad\n"
    assert not (tmp_path / "train.log").exists()


def test_quiet(capsys):
    report.configure(quiet=True)
    report.logger.info("no")
    report.table("T", ["a"], [[1]])
    report.logger.warning("yes")
    report.error(ConfigError("always"))
    err = capsys.readouterr().err
    assert "no\n" not in err
    assert "T" not in err
    assert err.endswith("warning: yes\nerror: always\n")


def test_log_file_gets_it_all(capsys, tmp_path):
    report.configure(log_file=tmp_path / "a" / "train.log", quiet=True)
    report.add_log_file(tmp_path / "a" / "train.log")  # twice is once
    report.logger.info("first")
    report.table("T", ["a"], [[1]])
    report.error(ConfigError("bad", hint="mend it"))
    text = (tmp_path / "a" / "train.log").read_text()
    lines = text.splitlines()
    assert DATED.fullmatch(lines[0])
    assert lines[0].endswith(" first")
    assert lines[1:] == ["T", "a", "-", "1", "error: bad", "", "hint: mend it"]
    assert text.count("first") == 1


def test_configure_twice_logs_once(capsys):
    report.configure()
    report.configure()
    report.logger.info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_json_out_is_one_document_on_stdout(capsys, tmp_path):
    report.json_out({"path": tmp_path, "nan": float("nan"), "list": [1.5, float("inf")], "text": "Åse"})
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {"path": str(tmp_path), "nan": None, "list": [1.5, None], "text": "Åse"}
    assert "Åse" in out
    assert "NaN" not in out


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(report, "_clock", clock)
    return clock


def messages(capsys):
    return [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]


def test_progress_off_the_terminal_says_a_line_now_and_then(capsys, clock):
    """Every tenth of the work, but at most every ten seconds; and the end, always."""
    report.configure()
    with report.progress(1000, "Encoding") as bar:
        for _ in range(100):
            clock.now += 0.5
            bar.advance(10)
    assert messages(capsys) == [
        "Encoding: 200 of 1000 (20 %), 20.0/s",
        "Encoding: 400 of 1000 (40 %), 20.0/s",
        "Encoding: 600 of 1000 (60 %), 20.0/s",
        "Encoding: 800 of 1000 (80 %), 20.0/s",
        "Encoding: 1000 of 1000 in 50.0 s",
    ]


def test_progress_slow_work_says_every_tenth(capsys, clock):
    report.configure()
    for _ in report.progress(range(20), "Reading"):
        clock.now += 100
    said = messages(capsys)
    assert len(said) == 10
    assert said[0] == "Reading: 2 of 20 (10 %), 0.0/s"


def test_progress_of_hours_says_what_is_left(capsys, clock):
    """What an earlier attempt has done counts as done, and not as fast."""
    report.configure()
    with report.progress(10_000, "Encoding", every_s=30) as bar:
        bar.skip(4000)
        for _ in range(60):
            clock.now += 1.5
            bar.advance(100)
    assert messages(capsys) == [
        "Encoding: 6000 of 10000 (60 %), 66.7/s, about 60 s left",
        "Encoding: 8000 of 10000 (80 %), 66.7/s, about 30 s left",
        "Encoding: 10000 of 10000 in 90.0 s, 66.7/s",
    ]


def test_durations():
    assert [report.duration(s) for s in (3, 89, 90, 5000, 12_000)] == ["3 s", "89 s", "2 min", "83 min", "3 h 20 min"]


def test_progress_of_unknown_length(capsys, clock):
    report.configure()
    for _ in report.progress(iter(range(30)), "Reading"):
        clock.now += 1
    assert messages(capsys) == [
        "Reading: 10, 1.0/s",
        "Reading: 20, 1.0/s",
        "Reading: 30, 1.0/s",
        "Reading: 30 in 30.0 s",
    ]


def test_progress_that_fails_does_not_say_it_is_done(capsys):
    report.configure()

    def torn():
        yield 1
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        list(report.progress(torn(), "Reading"))
    assert capsys.readouterr().err == ""
    assert report._live == 0


def test_progress_as_context_and_iterable(capsys):
    report.configure()
    with report.progress(["a", "b"], "Reading") as bar:
        assert list(bar) == ["a", "b"]
    assert bar.done == 2
    assert len(messages(capsys)) == 1


def test_nested_progress_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    report.configure()
    for _ in report.progress(range(2), "Outer"):
        for _ in report.progress(range(2), "Inner"):
            pass
    assert "Outer" in terminal.getvalue()
    assert report._live == 0


def test_a_real_terminal_is_drawn_on_and_no_color_is_honoured():
    code = (
        "from ragtrain import report; report.configure(); report.table('T', ['name'], [['value']]);"
        "from ragtrain.errors import ConfigError; report.error(ConfigError('bad'))"
    )
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        leader, follower = pty.openpty()
        subprocess.run(
            [sys.executable, "-c", code], env={**environment, "TERM": "xterm-256color", **variables},
            stderr=follower, check=True, timeout=60,
        )  # fmt: skip
        os.close(follower)
        text = os.read(leader, 65536).decode()
        os.close(leader)
        assert "value" in text
        assert "─" in text or "━" in text
        assert ("\x1b[1;31m" in text) == coloured


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ((0.612, 0.58, 0.644), True, "61.2 [58.0, 64.4]"),
        ((-0.03, -0.051, 0.0), True, "-3.0 [-5.1, 0.0]"),
        ((1.23456, 1.0, 2.0), False, "1.235 [1.000, 2.000]"),
    ],
)
def test_format_interval(values, percent, expected):
    assert report.format_interval(*values, percent=percent) == expected


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from ragtrain import report, runs; report.configure(); report.table('T', ['a'], [[1]]);"
        "print([m for m in ('torch', 'transformers', 'accelerate', 'datasets', 'faiss', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_caplog_still_works(caplog):
    """Lines go up to the root logger, so that a program around ours can collect them."""
    report.configure()
    with caplog.at_level(logging.INFO):
        report.logger.info("seen")
    assert "seen" in caplog.text
