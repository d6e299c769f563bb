"""Errors that a user can correct: one line that names the bad value, the valid values and what to do.

The command prints a `UserError` on stderr without a traceback and exits with code 2. For a program that uses the
package, it is a `ValueError`.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

LONGEST_SHOWN = 200
"""Largest number of characters of a wrong name that a message repeats."""
WORKER_HINT = (
    "perhaps since memory, or shared memory in a container, is short; use fewer --data.workers or a smaller batch_size"
)
"""What to do if a process that decodes images is killed."""


class UserError(ValueError):
    """Error about bad input; its message is one complete line for the person who made the input."""


class DivergedError(UserError):
    """Error of a training whose loss or weights are no longer finite."""


class MissingDataError(UserError):
    """Error about a data set that is not on the disk and cannot be downloaded; its message says what was tried."""


class Stopped(BaseException):
    """Exception that a signal raises to stop the program.

    It derives from `BaseException` and not from `Exception` or `KeyboardInterrupt`. Code that handles errors of a
    network, and Lightning's handling of Ctrl-C, therefore do not catch it.

    Args:
        number: Number of the signal.

    Attributes:
        hint: Advice on how to go on, for the person who stopped the program; callers that know better replace it.
        goes_on: Whether the same command goes on with what was kept; None if only the command line tells.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.hint = "nothing was kept; start it again"
        self.goes_on: bool | None = None
        super().__init__(signal.Signals(number).name)

    @property
    def exit_code(self) -> int:
        """Return 128 plus the number of the signal, as shells do: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


def reason(error: BaseException) -> str:
    """Return why a part of a command failed: the message of a `UserError`, or the `first_line` of any other error."""
    return str(error) if isinstance(error, UserError) else first_line(error)


def first_line(error: BaseException) -> str:
    """Return the class and the first line of an error of foreign code, at most 300 characters."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Return the error for a name that is not valid, with the closest valid name as a hint.

    Args:
        kind: Kind of thing that the name should stand for, such as ``"model"``.
        name: Name that the user wrote.
        valid: All valid names.
    """
    names = list(valid)
    # Upper and lower case do not count in the comparison, so that ``lenet5`` suggests LeNet5.
    folded = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" did you mean '{folded[near[0]]}'?" if near else ""
    shown = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"
    return UserError(f"unknown {kind} '{shown}';{hint} valid: {', '.join(names)}")
