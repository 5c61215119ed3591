"""Prompts to verdicts: in batches, kept as they come, and once more where a reply cannot be read."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
from typing import TYPE_CHECKING

from ragtrain import report
from ragtrain.errors import Interrupted
from ragtrain.evaluate.judge.judges import Failed
from ragtrain.evaluate.judge.prompts import AGAIN, Question, UnreadableError, verdict_of
from ragtrain.prepare.resume import LINE_EVERY_S, Stopped, stoppable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ragtrain.evaluate.judge.judges import Ask, Judge
    from ragtrain.evaluate.judge.replies import Replies
    from ragtrain.prepare.chat import Reply

log = logging.getLogger("ragtrain")

#: Prompts in a row without a reply after which a server counts as gone.
GIVE_UP = 8


@dataclasses.dataclass(frozen=True)
class Asked:
    """One thing asked of one row.

    Attributes:
        question: what.
        prompt: in which words.
        turn: tells apart the times that the same is asked on purpose.
    """

    question: Question
    prompt: str
    turn: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        value: what the judge says; None where it is missing.
        missing: why: ``unreadable``, ``no reply``, ``refused``, ``too long``, ``not asked``.
        first_unreadable: whether the first reply could not be read; None where there was none.
        replies: all replies.
    """

    value: bool | None
    missing: str | None
    first_unreadable: bool | None
    replies: tuple[Reply, ...]


class Asking:
    """Asks a judge whatever is not known yet.

    Attributes:
        problem: what was last wrong.
        sent: prompts sent by this command.
    """

    def __init__(self, judge: Judge, replies: Replies) -> None:
        self._judge, self._replies = judge, replies
        self._failed: dict[str, str] = {}
        self._silent = 0
        self.problem, self.sent = "", 0

    def ask(self, asked: Iterable[Asked]) -> None:
        """Ask, and ask again where a reply cannot be read; replies are on the disk when this returns.

        Raises:
            ConfigError: the judge cannot be loaded, or the server refuses whatever it is asked.
            Interrupted: it was stopped; replies are kept.
        """
        wanted = list(dict.fromkeys(asked))
        with contextlib.ExitStack() as stack:
            ask: Ask | None = None
            for again, title in ((False, "Judging"), (True, "Asking the judge again")):
                left = self._left(wanted, again=again)
                if not left or self._silent >= GIVE_UP:
                    continue
                if ask is None:
                    stack.enter_context(stoppable())
                    ask = stack.enter_context(self._judge.asking())
                self._send(left, ask, title)

    def verdict(self, asked: Asked) -> Verdict:
        """Return what is known of something that was asked."""
        first, again = (self._replies.get(key) for key in self._keys(asked))
        replies = tuple(reply for reply in (first, again) if reply is not None)
        said = [_read(asked.question, reply.text) for reply in replies]
        value = next((each for each in said if each is not None), None)
        missing = None
        if value is None:
            failed = [self._failed[key] for key in self._keys(asked) if key in self._failed]
            missing = failed[0] if failed else "unreadable" if again is not None else "not asked"
        return Verdict(value, missing, None if first is None else said[0] is None, replies)

    def _keys(self, asked: Asked) -> tuple[str, str]:
        return tuple(self._replies.key(prompt, asked.turn) for prompt in (asked.prompt, asked.prompt + AGAIN))  # type: ignore[return-value]

    def _left(self, wanted: Sequence[Asked], *, again: bool) -> list[tuple[str, str]]:
        """Return keys and prompts that have no reply yet; ``again``: of those whose first reply cannot be read."""
        left: dict[str, str] = {}
        for each in wanted:
            keys = self._keys(each)
            first = self._replies.get(keys[0])
            due = first is None
            if again:
                due = (
                    first is not None
                    and _read(each.question, first.text) is None
                    and self._replies.get(keys[1]) is None
                )
            if due:
                left[keys[again]] = each.prompt + (AGAIN if again else "")
        if self._judge.endpoint is not None:  # whose prompts go one by one, and long ones may be all that it fails at
            return list(left.items())
        # Longest first: prompts of a batch are padded little, and one that does not fit on the device fails at once.
        return sorted(left.items(), key=lambda pair: -len(pair[1]))

    def _send(self, left: Sequence[tuple[str, str]], ask: Ask, title: str) -> None:
        size, kept = self._judge.batch_size, 0
        bar: report.Progress[None] = report.progress(len(left), title, every_s=LINE_EVERY_S)
        try:
            with bar:
                for start in range(0, len(left), size):
                    batch = left[start : start + size]
                    kept += self._keep(batch, ask([prompt for _, prompt in batch]))
                    bar.advance(len(batch))
                    if self._silent >= GIVE_UP:
                        log.warning("the judge does not answer any more; %d of %d prompts were not sent: %s",
                                    len(left) - start - len(batch), len(left), self.problem)  # fmt: skip
                        return
        except KeyboardInterrupt as interrupt:
            raise Interrupted(
                f"stopped; {kept} of {len(left)} replies are kept in {self._replies.path}",
                signal_number=signal.SIGTERM if isinstance(interrupt, Stopped) else signal.SIGINT,
                hint="the answers are written already; the same command goes on with judging",
            ) from interrupt

    def _keep(self, batch: Sequence[tuple[str, str]], found: Sequence[Reply | Failed]) -> int:
        """Keep the replies to a batch, and return how many there are."""
        replies: dict[str, Reply] = {}
        for (key, _), each in zip(batch, found, strict=True):
            self.sent += 1
            if isinstance(each, Failed):
                self._failed[key], self.problem = each.kind, each.problem
                self._silent += each.kind == "no reply"
                continue
            self._silent = 0
            replies[key] = each
        self._replies.add(replies)
        return len(replies)


def _read(question: Question, text: str) -> bool | None:
    try:
        return verdict_of(question, text)
    except UnreadableError:
        return None
