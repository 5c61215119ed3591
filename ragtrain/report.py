"""The only module that writes to the console: log lines, tables, progress, errors, JSON results.

stdout is for data (``json_out``); everything else goes to stderr. On a terminal rich draws; in a pipe, a file or
under nohup the same things are plain dated lines without carriage returns and without ANSI sequences.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TextIO, TypeVar

from ragtrain.errors import Interrupted, RagtrainError

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as RichProgress

T = TypeVar("T")
logger = logging.getLogger("ragtrain")

LINE_EVERY_S = 10.0
"""Shortest time between two progress lines off the terminal."""
LINE_EVERY_FRACTION = 0.1
"""Smallest share of the work between two progress lines off the terminal."""

_clock = time.monotonic
_quiet = False
_live = 0  # progress displays being drawn; rich draws one at a time


def on_terminal() -> bool:
    """Return whether stderr is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _rank() -> int:
    """Return this process's place under a launcher (torchrun and accelerate set RANK), 0 without one."""
    return int(os.environ.get("RANK", "0") or 0)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=False)


class _PlainFormatter(logging.Formatter):
    """``2026-11-21 12:00:00 message``; control characters of the message are spelt out."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        record.message = level + record.message.replace("\r", "\\r").replace("\x1b", "\\x1b")
        return super().formatMessage(record)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Write to whatever sys.stderr is when the line comes, not to what it was when logging was set up."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(*, log_file: Path | None = None, quiet: bool = False) -> None:
    """Set up the logger ``ragtrain``; what an earlier call set up is replaced.

    Args:
        log_file: A file that gets every line as well, appended and plain.
        quiet: Show warnings and errors only. Processes of a launcher other than the first are always quiet.
    """
    global _quiet
    _quiet = quiet or _rank() != 0
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    shown: logging.Handler
    if on_terminal():
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        shown = RichHandler(
            console=_console(), show_path=False, show_level=False, log_time_format="%H:%M:%S", highlighter=NullHighlighter(),
            omit_repeated_times=False,
        )  # fmt: skip
        shown.setFormatter(logging.Formatter("%(message)s"))
    else:
        shown = _StderrHandler()
        shown.setFormatter(_PlainFormatter())
    shown.setLevel(logging.WARNING if _quiet else logging.INFO)
    logger.addHandler(shown)
    logger.setLevel(logging.INFO)
    if log_file is not None:
        add_log_file(log_file)


def add_log_file(path: Path) -> None:
    """Append every further line to ``path`` as well; only the first process of a launcher writes it."""
    if _rank() != 0:
        return
    path = path.absolute()
    if any(isinstance(h, logging.FileHandler) and h.baseFilename == str(path) for h in logger.handlers):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(_PlainFormatter())
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _write(plain: str, rich_object: object, *, plain_only: bool = False) -> None:
    """Show a block on stderr, drawn or plain, and append its plain form to the log files."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            with Path(handler.baseFilename).open("a", encoding="utf-8") as file:
                file.write(plain + "\n")
    if _quiet:
        return
    if on_terminal() and not plain_only:
        _console().print(rich_object)
    else:
        print(plain, file=sys.stderr, flush=True)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("\x1b", "\\x1b").split())


def _is_number(text: str) -> bool:
    return text == "–" or text.lstrip("+-−").replace(",", "").split(" ")[0].rstrip("%").replace(".", "", 1).isdigit()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show a table on stderr; columns of numbers are aligned to the right.

    Args:
        title: Line above the table.
        columns: Heads.
        rows: One sequence a row, as long as ``columns``; ``None`` shows as a dash, floats with four digits.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    plain = "\n".join([title, line(columns), "  ".join("-" * w for w in widths), *map(line, cells)])

    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title), title_justify="left")
    for name, is_right in zip(columns, right, strict=True):
        drawn.add_column(Text(name), justify="right" if is_right else "left")
    for row in cells:
        drawn.add_row(*map(Text, row))
    _write(plain, drawn)


def panel(title: str, pairs: Sequence[tuple[str, object]]) -> None:
    """Show names and values on stderr under a title, one a line."""
    width = max((len(name) for name, _ in pairs), default=0)
    body = "\n".join(f"{name.ljust(width)}  {_cell(value)}" for name, value in pairs)

    from rich.panel import Panel
    from rich.text import Text

    indented = "\n".join("  " + line for line in body.splitlines())
    _write(f"{title}\n{indented}", Panel(Text(body), title=Text(title), title_align="left", expand=False))


def block(title: str, text: str) -> None:
    """Show lines as they stand on stderr, under a title: a drawing of text."""
    from rich.text import Text

    text = _visible(text)
    _write(f"{title}\n{text}", Text.assemble((title, "bold"), "\n", text))


ROLE_STYLES = {
    "template": "dim", "instruction": "magenta", "shots": "yellow", "passages": "cyan", "question": "green",
    "answer": "bold red", "prompt": "cyan",
}  # fmt: skip
"""Colours of the parts of a prompt."""


def marked(title: str, pieces: Sequence[tuple[str, str, bool]]) -> None:
    """Show a text of which the parts have roles, and some are special (trained).

    In colours roles are colours and the special parts are underlined. Without colours a line ``-- role`` stands before
    each part, and double brackets around what is special. A line break that is special shows as ``⏎`` as well.

    Args:
        title: Line above the text.
        pieces: Text, role and whether it is special, in order.
    """
    pieces = [
        (_visible(text).replace("\n", "⏎\n") if special else _visible(text), role, special)
        for text, role, special in pieces
    ]
    lines, before = [title], ""
    for text, role, special in pieces:
        if role != before:
            lines.append(f"-- {role}")
        before = role
        lines.append(f"[[{text.removesuffix(chr(10))}]]" if special else text.removesuffix("\n"))
    plain = "\n".join(lines)
    if os.environ.get("NO_COLOR"):
        _write(plain, plain, plain_only=True)
        return

    from rich.console import Group
    from rich.text import Text

    body = Text()
    for text, role, special in pieces:
        body.append(text, style=ROLE_STYLES.get(role, "") + (" underline" if special else ""))
    used = dict.fromkeys(role for _, role, _ in pieces)
    key = Text.assemble(*((f"{role}  ", ROLE_STYLES.get(role, "")) for role in used), ("trained", "underline"))
    _write(plain, Group(Text(title, style="bold"), key, body))


def _visible(text: str) -> str:
    """Return a text with its control characters spelt out, line breaks and tabs excepted."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def error(err: RagtrainError) -> None:
    """Show an error and, after an empty line, its hint on stderr.

    Of the processes of a launcher the first one shows it whole; the others say one line, and nothing at all where
    the run was interrupted, which all of them are together.
    """
    if _rank() != 0:
        if not isinstance(err, Interrupted):
            print(f"[rank {_rank()}] error: {err.message}", file=sys.stderr, flush=True)
        return
    text = f"error: {err}" + (f"\n\nhint: {err.hint}" if err.hint else "")
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            with Path(handler.baseFilename).open("a", encoding="utf-8") as file:
                file.write(text + "\n")
    if on_terminal():
        from rich.text import Text

        drawn = Text("error:", style="bold red").append(f" {err}", style="not bold default")
        if err.hint:
            drawn.append("\n\nhint:", style="bold cyan").append(f" {err.hint}", style="not bold default")
        _console().print(drawn, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


def json_out(value: object) -> None:
    """Write one JSON document to stdout; numbers that are not finite become null."""
    if _rank() == 0:
        clean = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        print(json.dumps(clean, ensure_ascii=False, indent=2), flush=True)


class Progress(Generic[T]):
    """How far a piece of work is: an iterable that shows it, or a context with ``advance``."""

    def __init__(self, items: Iterable[T], description: str, total: int | None, every_s: float | None = None) -> None:
        self._items, self.description, self.total, self._every_s = items, description, total, every_s
        self.done = self._skipped = 0
        self._started = self._said_at = 0.0
        self._said_done = 0
        self._drawn: RichProgress | None = None
        self._entered = False

    def __enter__(self) -> Self:
        global _live
        self._started = self._said_at = _clock()
        self._entered = True
        if on_terminal() and not _quiet and _live == 0:
            from rich import progress as rich_progress

            self._drawn = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(), rich_progress.TextColumn("{task.fields[rate]}"),
                rich_progress.TimeRemainingColumn(), console=_console(), transient=True,
            )  # fmt: skip
            self._task = self._drawn.add_task(self.description, total=self.total, rate="")
            self._drawn.start()
        _live += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _live
        _live -= 1
        self._entered = False
        if self._drawn is not None:
            self._drawn.stop()
            self._drawn = None
        elif kind is None and not on_terminal():
            self._say(_clock(), last=True)

    def __iter__(self) -> Iterator[T]:
        if self._entered:
            for item in self._items:
                yield item
                self.advance()
            return
        with self:
            for item in self._items:
                yield item
                self.advance()

    def skip(self, n: int) -> None:
        """Say that ``n`` were done before: they count as done, and not as fast."""
        self._skipped += n
        self._said_done += n
        self.done += n
        if self._drawn is not None:
            self._drawn.reset(self._task, total=self.total, completed=self.done)

    def _rate(self, now: float) -> float:
        """Units a second since the beginning."""
        return (self.done - self._skipped) / (now - self._started) if now > self._started else 0.0

    def advance(self, n: int = 1) -> None:
        """Say that ``n`` more are done."""
        self.done += n
        if self._drawn is not None:
            rate = self._rate(_clock()) if self._every_s is not None else 0.0
            self._drawn.update(self._task, completed=self.done, rate=f"{rate:.1f}/s" if rate else "")
            return
        if on_terminal():
            return
        now = _clock()
        far_enough = self.total is None or self.done - self._said_done >= LINE_EVERY_FRACTION * self.total
        waited = now - self._said_at
        due = (far_enough and waited >= LINE_EVERY_S) if self._every_s is None else waited >= self._every_s
        if due and self.done != self.total:
            self._say(now)

    def _say(self, now: float, last: bool = False) -> None:
        self._said_at, self._said_done = now, self.done
        seconds = now - self._started
        of_total = "" if self.total is None else f" of {self.total}"
        if last:
            speed = f", {self._rate(now):.1f}/s" if self._every_s is not None else ""
            logger.info("%s: %d%s in %.1f s%s", self.description, self.done, of_total, seconds, speed)
        else:
            share = "" if not self.total else f" ({100 * self.done / self.total:.0f} %)"
            rate, left = self._rate(now), ""
            if self._every_s is not None and self.total and rate > 0:
                left = f", about {duration((self.total - self.done) / rate)} left"
            logger.info("%s: %d%s%s, %.1f/s%s", self.description, self.done, of_total, share, rate, left)


def duration(seconds: float) -> str:
    """Return ``45 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def progress(
    work: Iterable[T] | int, description: str, *, total: int | None = None, every_s: float | None = None
) -> Progress[T]:
    """Show how far a piece of work is: a bar on a terminal, now and then a line elsewhere.

    ``for item in progress(items, "Encoding"): ...`` or ``with progress(1000, "Encoding") as bar: bar.advance(64)``.

    Args:
        work: What to iterate over, or how many units there are to ``advance`` over.
        description: What is being done.
        total: Number of items where ``work`` has no length.
        every_s: For work of hours: off the terminal a line every so many seconds, with what is left; on it, the rate.
    """
    if isinstance(work, int):
        return Progress((), description, work, every_s)
    if total is None and isinstance(work, Sized):
        total = len(work)
    return Progress(work, description, total, every_s)


def format_interval(value: float, low: float, high: float, percent: bool = True) -> str:
    """Return ``61.2 [58.0, 64.4]`` for a share with its interval, or three decimals where it is not a share."""
    if percent:
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
