"""Self-contained HTML pages: styles and pictures are inside the file, and all pages share one base template."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

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
    environment.filters["unbroken"] = unbroken
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


def unbroken(text: str) -> str:
    """Return a text in which no line breaks between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|ms\b)", "\N{NO-BREAK SPACE}", text)


class Script(NamedTuple):
    """A script of a page.

    Attributes:
        tag: Element that contains it.
        hash: Its hash, as the page's Content-Security-Policy names it: a browser then runs no other script.
    """

    tag: Markup
    hash: str


def script(name: str) -> Script:
    """Return a script of this folder for a page.

    Args:
        name: Name of the file, without its suffix.
    """
    text = files(__package__).joinpath(f"{name}.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(Markup("<script>") + Markup(text) + Markup("</script>"), f"sha256-{digest}")


def embedded_json(document: Any) -> Markup:
    """Return a JSON document for an element ``<script type="application/json">``, which nothing in it can end."""
    # Within a text of JSON, a sign may also be written as its code.
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def data_uri(content: bytes, kind: str) -> str:
    """Return a data URI, which contains a whole file.

    Args:
        content: Bytes of the file.
        kind: Media type of the file, such as ``image/png``.
    """
    return f"data:{kind};base64," + base64.b64encode(content).decode()
