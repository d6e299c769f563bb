"""What axe says of the accessibility of a page; apart from `browsers`, which tests without a browser import too."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


def violations(page: Page) -> list[tuple[str, str]]:
    """Return the rule and the first element of each violation of accessibility on a page."""
    # axe describes only what breaks a rule: describing all that keeps it takes as long as the checks.
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [(entry["id"], entry["nodes"][0]["html"]) for entry in found]
