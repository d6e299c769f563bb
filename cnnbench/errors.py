"""Errors that a user can mend: one line that names the bad value, the valid ones and what to do.

The command prints a `UserError` on stderr without a traceback and exits with 2; library code raises it as the
`ValueError` that it is.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

LONGEST_SHOWN = 200
"""Characters of a wrong name that a message repeats."""


class UserError(ValueError):
    """Bad input; the message is one complete line for the person who typed it."""


class DivergedError(UserError):
    """The loss of a training is no longer a number."""


class MissingDataError(UserError):
    """A data set is neither on disk nor to be had by download; the message says what was tried."""


class Stopped(BaseException):
    """A signal asked the program to stop.

    It is no `Exception` and no `KeyboardInterrupt`, so that neither the handling of a network's failure nor Lightning's
    of Ctrl-C takes it for its own.

    Args:
        number: Of the signal.

    Attributes:
        hint: How to go on, for the person who stopped it; a caller that knows sets it.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.hint = "nothing was kept; start it again"
        super().__init__(signal.Signals(number).name)

    @property
    def exit_code(self) -> int:
        """The shell's convention: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Builds the error for a name that is not among the valid ones, with the nearest as a hint.

    Args:
        kind: What the name stands for, such as ``"model"``.
        name: What the user wrote.
        valid: Every accepted name.
    """
    names = list(valid)
    folded = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" did you mean '{folded[near[0]]}'?" if near else ""
    shown = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"
    return UserError(f"unknown {kind} '{shown}';{hint} valid: {', '.join(names)}")
