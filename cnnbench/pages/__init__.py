"""Self-contained HTML pages: styles and pictures are inside the file, and all pages share one base template."""

from __future__ import annotations

import base64
import re
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from cnnbench.text import printable


def render(name: str, **values: Any) -> str:
    """Return a page made from a template of this folder; every text in it is escaped and printable.

    Args:
        name: Name of the template, without its suffix.
        values: Values that the template shows.
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
    """Return a value as a page shows it: text becomes printable. Jinja escapes it afterwards, unless it is Markup."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, lines=True)
    return value


def breakable(text: str) -> Markup:
    """Return a text in which a line may break after the signs within a name, such as ``timm:convnext_tiny``."""
    parts = re.split(r"(?<=[(:=_])|(?<=\.)(?=[^\W\d])", printable(text, lines=True))
    return Markup("<wbr>").join(parts)


def data_uri(content: bytes, kind: str) -> str:
    """Return a data URI, which contains a whole file.

    Args:
        content: Bytes of the file.
        kind: Media type of the file, such as ``image/png``.
    """
    return f"data:{kind};base64," + base64.b64encode(content).decode()
