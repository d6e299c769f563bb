"""The short form of a comparison: one sentence that counts the verdicts, and the figures that changed.

Everything that did not change, and everything that could not be compared, is counted here instead of having a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from cnnbench.report.compare import WHOLE_NETWORK, Change
from cnnbench.report.findings import first_sentences
from cnnbench.report.settings import ALL, TIME_LIMITED
from cnnbench.text import number_of

_WORDS = {
    "worse": ("worse", "slower"),
    "better": ("better", "faster"),
    "changed": ("changed",),
    "missing in B": ("missing",),
    "new in B": ("new",),
    "equal": ("equal",),
    "without a difference beyond chance": ("no difference found",),
    "with too few values": ("too few values",),
    "not comparable": ("not comparable",),
}
"""Words of the sentence, and the verdicts that each of them counts."""
_CHANGED = ("worse", "better", "changed", "missing in B", "new in B")
"""Words whose changes have a row in the short form."""
_SETTINGS = sorted((row.name for row in ALL), key=len, reverse=True)
"""Names of settings, those first that begin with the name of another one."""


def changed(changes: Sequence[Change]) -> list[Change]:
    """Return the changes that have a row in the short form: worse, better, changed, missing or new."""
    return [change for change in changes if _word(change) in _CHANGED]


def _word(change: Change) -> str:
    """Return the word of the sentence that counts a change."""
    return next(word for word, verdicts in _WORDS.items() if change.verdict in verdicts)


def sentence(changes: Sequence[Change]) -> str:
    """Return a sentence that counts all verdicts, such as "4 networks, 32 figures: 1 worse, 31 equal"."""
    by_word: dict[str, list[Change]] = {word: [] for word in _WORDS}
    for change in changes:
        by_word[_word(change)].append(change)
    parts = []
    for word, counted in by_word.items():
        if counted:
            parts.append(f"{len(counted):,} {word}{_in_brackets(word, counted)}")
    # A network that only one side has stands for all of its figures.
    figures = sum(change.figure != WHOLE_NETWORK for change in changes)
    networks = len({change.model for change in changes})
    labels = len({change.label for change in changes})
    subject = number_of(networks, "network")
    if labels > 1:
        subject += f" on {labels} data sets"
    return f"{subject}, {number_of(figures, 'figure')}: {', '.join(parts)}."


def _in_brackets(word: str, counted: Sequence[Change]) -> str:
    """Return what the sentence says of these changes beside their number, with a space before it."""
    if word == "without a difference beyond chance":
        return _largest(counted)
    if word == "not comparable":
        # The device of the time-limited training, for example, is the device too.
        settings = {_setting(change.reason).removesuffix(TIME_LIMITED) for change in counted}
        # Other reasons than settings are too long for the sentence; `not_compared` has them.
        if "" not in settings:
            return f" (other {', '.join(sorted(settings))})"
    return ""


def _largest(counted: Iterable[Change]) -> str:
    """Return the largest change of each unit in brackets, with a space before it."""
    largest: dict[str, float] = {}
    for change in counted:
        if change.change is None:
            continue
        unit = "points" if change.is_accuracy else "%"
        largest[unit] = max(largest.get(unit, 0.0), abs(change.change))
    if not largest:
        return ""
    words = " and ".join(f"{100 * value:.1f} {unit}" for unit, value in largest.items())
    return f" (changes up to {words})"


def _setting(reason: str) -> str:
    """Return the name of the setting with which a reason begins; empty if it begins with none."""
    return next((name for name in _SETTINGS if reason.startswith(f"{name} ")), "")


def what_all_adds(shown: int, figures: int) -> str:
    """Return a sentence on the figures that the table leaves out, and how to see them.

    Args:
        shown: Number of figures in the table.
        figures: Number of all figures.
    """
    if not shown:
        return f"No figure changed, so there is no table; --all lists {number_of(figures, 'figure')} with the values."
    return f"The table has the {number_of(shown, 'figure')} that changed; --all adds the other {figures - shown:,}."


def not_compared(changes: Sequence[Change]) -> list[str]:
    """Return one line for the figures that are not comparable, and one for those with too few values.

    A line has the number of figures and their reasons, each with its own number.
    """
    lines = []
    for word in ("not comparable", "with too few values"):
        counted = [change for change in changes if _word(change) == word]
        if not counted:
            continue
        reasons = Counter(change.reason for change in counted).most_common()
        words = [f"{reason} ({count:,})" for reason, count in reasons]
        named = "; ".join(first_sentences(words, "more reasons"))
        lines.append(f"{number_of(len(counted), 'figure')} {word}: {named}.")
    return lines
