"""Errors that a user can mend: one line that names the bad value, the valid ones and what to do.

The command prints a `UserError` on stderr without a traceback and exits with 2; library code raises it as the
`ValueError` that it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input; the message is one complete line for the person who typed it."""


class DivergedError(UserError):
    """The loss of a training is no longer a number."""


class MissingDataError(UserError):
    """A data set is neither on disk nor to be had by download; the message says what was tried."""


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
    return UserError(f"unknown {kind} '{name}';{hint} valid: {', '.join(names)}")
