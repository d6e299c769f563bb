r"""Text that leaves the program: for a terminal, JSON, Markdown and CSV.

Names, labels and reasons may come from a file that somebody else wrote. They are made safe here, by the writer of each
format, so that no caller has to remember it. The HTML pages do the same in `cnnbench.pages`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Control characters move a terminal's cursor or set its title. Marks of writing direction make a name read as another
# one. Half of a surrogate pair cannot be encoded. All are shown as an escape such as \x1b.
_CONTROL = "\x00-\x1f\x7f-\x9f"
_DIRECTION = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_SURROGATES = "\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROL}{_DIRECTION}{_SURROGATES}]")
_UNSAFE_BUT_LINES = re.compile(f"(?![\n\t])[{_CONTROL}{_DIRECTION}{_SURROGATES}]")


def printable(text: str, lines: bool = False) -> str:
    r"""Return the text with every character that is not to be printed shown as an escape, such as ``\x1b``.

    Args:
        text: Any text.
        lines: Whether line breaks and tabs stay; otherwise they become escapes too, and the result is one line.
    """
    return (_UNSAFE_BUT_LINES if lines else _UNSAFE).sub(_escaped, text)


def shortened(text: str, most: int) -> str:
    """Return the text with its middle left out if it has more than so many characters.

    The ends are kept: a message begins with the place and ends with what to do.
    """
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end]} [...] {text[-end:]}"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def to_json(value: Any, indent: int | None = 1) -> str:
    """Return a JSON document that can be printed.

    Unprintable characters become JSON's own escapes, and numbers that are not finite, which JSON lacks, null.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # json.dumps escapes control characters up to \x1f itself, so the line breaks that are left are those of the layout.
    return _UNSAFE_BUT_LINES.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _finite(value: Any) -> Any:
    """Return the value with None in place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


# Characters that mean something in Markdown wherever they stand. A colon is not among them, since names have many.
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&@$]|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
# Characters that begin a heading, a list or a rule; a number does so only before a space, so that 57.7 stays as it is.
_MARKDOWN_START = re.compile(r"^([#+=-]|\d+(?=[.)](?:\s|$)))")


def markdown(text: str) -> str:
    """Return a text of one line that Markdown shows as it is: no HTML, links, emphasis or further table cells."""
    # Four spaces at the start would make it a block of code.
    line = printable(" ".join(text.splitlines()).strip())
    plain = _MARKDOWN.sub(lambda match: "\\" + match.group(), line)
    return _MARKDOWN_START.sub(lambda m: f"{m[1]}\\" if m[1].isdigit() else f"\\{m[1]}", plain)


def markdown_table(rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        rows: Cells as plain text, the head first.
        numeric: Whether a column is set to the right.
    """
    marks = ["---:" if right else "---" for right in numeric]
    lines = ["| " + " | ".join(markdown(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "| " + " | ".join(marks) + " |", *lines[1:]]


# A spreadsheet takes a cell that begins so for a formula, which can start programs; the last four are full-width forms.
_FORMULA = re.compile(r"^[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as comma-separated values.

    Texts are printable and never a formula: what looks like one gets an apostrophe in front. None is an empty cell.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if cell is None else _csv_cell(cell) for cell in row])
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    apostrophe = "'" if _FORMULA.match(value) else ""
    return apostrophe + printable(value)
