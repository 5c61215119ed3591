"""A written evaluation → what a language model says of its answers: ``ragtrain eval … --judge MODEL``.

Two questions a row: whether the answer is *correct*, against the references, and whether it is *faithful*, against the passages
that were read. What the judge does not say, or not in the form asked for, is missing and counted; it is never a no.

judge.json         beside ``metrics.json``: rates with intervals, n and missing, replies that could not be read, tokens
predictions.jsonl  each row gains ``judged``: ``{"correct": true, "faithful": null}``, null where it is missing
NAME.judge.jsonl   beside the evaluation NAME: every reply, under a hash of judge and prompt; nothing is asked twice

prompts.py   rows to prompts, replies to verdicts
judges.py    who is asked: a model here, or a server
replies.py   the replies on disk
asking.py    prompts → verdicts, in batches, once more where a reply cannot be read
figures.py   verdicts → rates, agreement
command.py   all of it, for an evaluation on disk
"""

from ragtrain.evaluate.judge.command import JUDGE_FILE, added, check

__all__ = ["JUDGE_FILE", "added", "check"]
