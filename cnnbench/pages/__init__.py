"""HTML pages that need nothing else: styles and pictures are inside. One base for all of them."""

from __future__ import annotations

import base64
import re
from typing import Any

import jinja2
from markupsafe import Markup


def render(name: str, **values: Any) -> str:
    """Fills a page of this folder.

    Args:
        name: Of the template, without suffix.
        values: What it shows.
    """
    loader = jinja2.PackageLoader("cnnbench", "pages")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = breakable
    return environment.get_template(f"{name}.html.jinja").render(**values)


def breakable(text: str) -> Markup:
    """A text that may be broken after the signs within a name, such as ``timm:convnext_tiny``."""
    return Markup("<wbr>").join(re.split(r"(?<=[(:=_])|(?<=\.)(?=[^\W\d])", text))


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that has it inside.

    Args:
        content: Of the file.
        kind: Its media type, such as ``image/png``.
    """
    return f"data:{kind};base64," + base64.b64encode(content).decode()
