"""A reader of pages that sees what a browser would: elements, attributes, links and scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

OUR_SCRIPT = files("cnnbench.pages").joinpath("report.js").read_text(encoding="utf-8")


class PageReader(HTMLParser):
    """The elements of a page.

    Attributes:
        tags: Names of all elements.
        attributes: Names of all attributes, of elements outside of the head.
        links: Targets of links and sources of pictures.
        scripts: Kind and content of each script; the kind is empty for a script that runs.
        policy: Content-Security-Policy of the page.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.policy = ""
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.attributes.update(values)
        self.links += [str(values[name]) for name in ("href", "src") if name in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(values["content"])
        if tag == "script":
            self._in_script = True
            self.scripts.append((values.get("type") or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def check_scripts(page: str) -> PageReader:
    """Assert that a page runs our script only, loads nothing, and has data that is JSON; return its elements."""
    reader = PageReader(page)
    kinds = [kind for kind, _ in reader.scripts]
    assert kinds == ["application/json", ""]
    json.loads(reader.scripts[0][1])
    assert reader.scripts[1][1] == OUR_SCRIPT
    digest = base64.b64encode(hashlib.sha256(OUR_SCRIPT.encode()).digest()).decode()
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert reader.policy == allowed
    assert all(re.match(r"#|data:|results\.csv$|report\.md$", link) for link in reader.links), reader.links
    # Our script sets pictures of the page as backgrounds; the policy allows it no others.
    assert not re.search(r"@import|url\((?!data:)", page.replace(OUR_SCRIPT, ""))
    return reader
