"""HTML pages that need nothing else: styles and pictures are inside. One base for all of them."""

from __future__ import annotations

import base64
import re
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from cnnbench.text import printable


def render(name: str, **values: Any) -> str:
    """Fill a page of this folder. Every text is escaped and printable, wherever it comes from.

    Args:
        name: Of the template, without suffix.
        values: What it shows.
    """
    return _environment().get_template(f"{name}.html.jinja").render(**values)


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("cnnbench", "pages")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    environment.filters["breakable"] = breakable
    return environment


def _printable(value: Any) -> Any:
    """Return what a page shows of a value; jinja escapes it afterwards, unless it is markup of our own."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, lines=True)
    return value


def breakable(text: str) -> Markup:
    """Return a text that may be broken after the signs within a name, such as ``timm:convnext_tiny``."""
    parts = re.split(r"(?<=[(:=_])|(?<=\.)(?=[^\W\d])", printable(text, lines=True))
    return Markup("<wbr>").join(parts)


def data_uri(content: bytes, kind: str) -> str:
    """Return a file as an address that has it inside.

    Args:
        content: Of the file.
        kind: Its media type, such as ``image/png``.
    """
    return f"data:{kind};base64," + base64.b64encode(content).decode()
