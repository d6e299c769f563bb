"""The description of a case of the fuzz, and the judge of what a command did with it.

A refusal is judged here by rules that hold for every case. An accepted input is judged by the check of its case.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import NamedTuple

from campaigns.fuzz_fork import Outcome

VERDICTS = ("clear", "right", "failed cell", "apart", "traceback", "hang", "wrong")
"""All verdicts; `campaigns.fuzz` describes them."""
BAD = ("traceback", "hang", "wrong")
"""Verdicts that show a defect of the project."""
MOST_NOTES = 12
"""Largest number of lines on stderr, the error and the notes before it."""
LONGEST_LINE = 4000
"""Largest number of characters in the line of an error, beyond what the user typed."""
ALWAYS_LEFT = (
    "cache",
    "cache/*",
    "*.lock",
    "data/*/.cnnbench-cache.npz",
    "data/.cnnbench-cache.npz",
    "__pycache__*",
    "*/__pycache__*",
)
"""Patterns of files that a refusal may leave: locks, the decoded copy of valid images, and Python's caches."""
# Lines of Python's exceptions and warnings and of loggers are not notes for the user.
_NOT_A_NOTE = re.compile(r"Traceback|^  File |^\s*raise |\w+(Error|Exception|Warning|Interrupt)\b\s*(:|$)|^usage: ")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Finding(NamedTuple):
    """A verdict, with the reason if it is a bad one."""

    verdict: str
    reason: str = ""


RIGHT = Finding("right")
APART = Finding("apart")


def wrong(reason: str) -> Finding:
    """Return the verdict "wrong": an invalid input was accepted, or a result is wrong without any message."""
    return Finding("wrong", reason)


def refuse(outcome: Outcome) -> Finding:
    """Return the verdict on an input that was accepted although it must be refused."""
    return wrong("accepted, and it had to be refused")


@dataclass(frozen=True)
class Prepared:
    """A case that is ready to run.

    Attributes:
        arguments: Arguments of the command.
        damage: Short description of what is wrong with the input.
        check: Function that judges the outcome if the command accepts the input.
        stdout: File that receives stdout; empty for an ordinary file.
        left: Patterns of the files that a refusal may leave behind beyond `ALWAYS_LEFT`.
        touched: Patterns of the files that a refusal may change beyond `ALWAYS_LEFT`.
    """

    arguments: tuple[str, ...]
    damage: str
    check: Callable[[Outcome], Finding] = refuse
    stdout: str = ""
    left: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()


def judge(outcome: Outcome, prepared: Prepared) -> Finding:
    """Return the verdict on a case."""
    # Every attack in an input tries to make a file of this name.
    if "pwned" in outcome.after:
        return wrong("a command that the input names was run")
    if outcome.hung:
        return Finding("hang", f"still at work after {outcome.seconds:.0f} s")
    if "Traceback (most recent call last)" in outcome.stderr + outcome.stdout:
        return Finding("traceback", _last_line(outcome.stderr))
    if outcome.code not in (0, 1, 2):
        return Finding("traceback", f"exit code {outcome.code}: {_last_line(outcome.stderr)}")
    unprintable = _UNPRINTABLE.search(outcome.stdout + outcome.stderr)
    if unprintable:
        return wrong(f"character {unprintable.group()!a} reached the terminal")
    if outcome.code == 2:
        return _judge_refusal(outcome, prepared)
    parts = [path for path in outcome.new if path.endswith(".part") or ".part." in path]
    if parts:
        return wrong(f"left {parts[0]} behind")
    return prepared.check(outcome)


def _judge_refusal(outcome: Outcome, prepared: Prepared) -> Finding:
    """Return the verdict on a refusal, which must be one clear line and must leave nothing behind."""
    lines = [line for line in re.split(r"[\r\n]+", outcome.stderr) if line.strip()]
    errors = [line for line in lines if line.startswith("cnnbench: ")]
    if len(errors) != 1 or lines[-1] != errors[0]:
        return Finding("traceback", f"exit code 2 with {len(errors)} lines of error: {_last_line(outcome.stderr)}")
    # The line may repeat all that the user typed, however long it is, but not the content of a file.
    longest = LONGEST_LINE + max(map(len, prepared.arguments), default=0)
    if len(errors[0]) > longest or len(errors[0]) < len("cnnbench: ") + 12:
        return wrong(f"an error of {len(errors[0])} characters")
    strange = [line for line in lines[:-1] if _NOT_A_NOTE.search(line)]
    if strange or len(lines) > MOST_NOTES:
        return Finding("traceback", f"more than one line: {(strange or lines)[0][:200]}")
    if outcome.stdout.strip():
        return wrong(f"half a document on stdout: {outcome.stdout[:80]!r}")
    if re.search(r"the loss is \S+ at step|weights are not finite after step", errors[0]):
        return Finding("clear")  # a training had begun; its run folder remains
    left = [path for path in outcome.new if not _matches(path, (*ALWAYS_LEFT, *prepared.left))]
    if left:
        return wrong(f"a refusal left {left[0]} behind")
    changed = [path for path in outcome.changed if not _matches(path, (*ALWAYS_LEFT, *prepared.touched))]
    if changed:
        return wrong(f"a refusal changed {changed[0]}")
    return Finding("clear")


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    # A part that was not renamed is half a file, which no pattern allows.
    return not path.endswith(".part") and any(fnmatch(path, pattern) for pattern in patterns)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing on stderr"
