r"""Text for output: for the terminal, JSON, Markdown, LaTeX and CSV.

Names, labels and error messages may come from a file that somebody else wrote. The function that writes a format also
escapes what is unsafe in that format, so that no caller has to remember it. `cnnbench.pages` does the same for HTML.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

# Control characters can move a terminal's cursor or set its title. Marks of writing direction can make one name look
# like another. Half of a surrogate pair cannot be encoded in UTF-8. All of them are shown as escapes such as \x1b.
_CONTROL = "\x00-\x1f\x7f-\x9f"
_DIRECTION = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_SURROGATES = "\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROL}{_DIRECTION}{_SURROGATES}]")
_UNSAFE_BUT_LINES = re.compile(f"(?![\n\t])[{_CONTROL}{_DIRECTION}{_SURROGATES}]")


def printable(text: str, lines: bool = False) -> str:
    r"""Return the text with every unsafe character replaced by a visible escape, such as ``\x1b``.

    Args:
        text: Any text.
        lines: Whether to keep line breaks and tabs; otherwise they become escapes too, and the result is one line.
    """
    unsafe = _UNSAFE_BUT_LINES if lines else _UNSAFE
    return unsafe.sub(_escaped, text)


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, such as ``2:05``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def number_of(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or the plural, such as ``1 pair`` and ``1,200 pairs``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shortened(text: str, most: int) -> str:
    """Return the text, with its middle left out if it is too long.

    Both ends are kept, because an error message begins with the place of the error and ends with what to do.

    Args:
        text: Any text.
        most: Number of characters that are kept; the mark ``[...]`` for the omission is added to them.
    """
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end]} [...] {text[-end:]}"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}"


def to_json(value: Any, indent: int | None = 1) -> str:
    """Return a value as a JSON document that is safe to print.

    Unsafe characters become JSON escapes. NaN and the infinities become null, because JSON has no such numbers.

    Args:
        value: Value of the types that JSON has.
        indent: Number of spaces per level; None for a document in one line.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # json.dumps escapes control characters up to \x1f itself, so the remaining line breaks belong to the layout.
    return _UNSAFE_BUT_LINES.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _finite(value: Any) -> Any:
    """Return the value with None in place of every number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


# Characters that have a meaning anywhere in a line of Markdown. A colon is not escaped, since many names contain one.
# Instead the slashes after it are, and the dot after www, so that Markdown makes no link of a web address.
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&@$]|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
# Characters that begin a heading, a list or a rule at the start of a line. A number begins a list only if a dot or a
# bracket and then a space follow, so 57.7 stays as it is.
_MARKDOWN_START = re.compile(r"^([#+=-]|\d+(?=[.)](?:\s|$)))")


def markdown(text: str) -> str:
    """Return a text as one line that Markdown shows literally: no HTML, links, emphasis or additional table cells."""
    # Strip the line, because four spaces at its start would make it a block of code.
    line = printable(" ".join(text.splitlines()).strip())
    plain = _MARKDOWN.sub(lambda match: "\\" + match.group(), line)
    return _MARKDOWN_START.sub(_escaped_start, plain)


def _escaped_start(match: re.Match[str]) -> str:
    # A backslash in front of a number would be shown; behind it, it escapes the dot or bracket that makes a list.
    if match[1].isdigit():
        return f"{match[1]}\\"
    return f"\\{match[1]}"


def markdown_table(
    rows: Sequence[Sequence[str]], numeric: Sequence[bool], bold: Collection[tuple[int, int]] = ()
) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        rows: Rows of cells in plain text; the first row is the header.
        numeric: For each column, whether it is aligned to the right.
        bold: Row and column of the cells in bold, counted from 0; the header is row 0.
    """
    marks = ["---:" if right else "---" for right in numeric]
    lines = []
    for row, cells in enumerate(rows):
        words = [markdown(cell) for cell in cells]
        words = [f"**{word}**" if (row, column) in bold else word for column, word in enumerate(words)]
        lines.append("| " + " | ".join(words) + " |")
    return [lines[0], "| " + " | ".join(marks) + " |", *lines[1:]]


# Characters that LaTeX does not print as they are. A bracket or a star after the end of a row would be an argument of
# it, and two hyphens become a dash, so these stand in groups. The commands exist in every encoding of fonts.
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*-"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "{\\char34}",
    "`": "{\\char96}",
    "\N{EN DASH}": "--",
    "\N{PLUS-MINUS SIGN}": "$\\pm$",
    "\N{MULTIPLICATION SIGN}": "$\\times$",
    "\N{RIGHTWARDS ARROW}": "$\\rightarrow$",
    "\N{HORIZONTAL ELLIPSIS}": "\\ldots{}",
    "\N{NO-BREAK SPACE}": "~",
}
# Further letters of the standard fonts, and accents that LaTeX sets above or below any letter.
_LATEX_LETTERS = "ßæÆøØœŒ"
_LATEX_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0308\u030a\u030c\u0327")


def latex(text: str) -> str:
    """Return a text as one line that LaTeX prints literally.

    A character that the standard fonts of pdfLaTeX lack is written as its number, such as ``{[}U+4E2D{]}``.
    """
    line = printable(" ".join(text.splitlines()).strip())
    return "".join(map(_latex_character, line))


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii() or character in _LATEX_LETTERS:
        return character
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _LATEX_ACCENTS:
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"


def latex_table(
    rows: Sequence[Sequence[str]], numeric: Sequence[bool], bold: Collection[tuple[int, int]] = ()
) -> list[str]:
    """Return the lines of a LaTeX table, which needs the package booktabs.

    Args:
        rows: Rows of cells in plain text; the first row is the header.
        numeric: For each column, whether it is aligned to the right.
        bold: Row and column of the cells in bold, counted from 0; the header is row 0.
    """
    sides = "".join("r" if right else "l" for right in numeric)
    lines = []
    for row, cells in enumerate(rows):
        words = [latex(cell) for cell in cells]
        words = [f"\\textbf{{{word}}}" if (row, column) in bold else word for column, word in enumerate(words)]
        lines.append(" & ".join(words) + " \\\\")
    head, *body = lines
    return [f"\\begin{{tabular}}{{{sides}}}", "\\toprule", head, "\\midrule", *body, "\\bottomrule", "\\end{tabular}"]


# A spreadsheet takes a cell that begins with one of these characters for a formula, and a formula can start programs.
# The last four are the full-width forms of = + - @.
_FORMULA = re.compile(r"^[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as comma-separated values.

    Text is made printable. Text that a spreadsheet would take for a formula gets an apostrophe in front. None becomes
    an empty cell.

    Args:
        rows: Rows of cells: text, numbers or None.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow([_csv_cell(cell) for cell in row])
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    if _FORMULA.match(value):
        return "'" + printable(value)
    return printable(value)
