"""A Chromium for tests of pages: a fixture, and a function that opens a page and watches it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium of this machine; where there is none, these tests fail if REQUIRE_BROWSER is set, and are skipped."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("no Chromium on this machine: install chromium")
        pytest.skip("no Chromium on this machine: install chromium")
    from playwright.sync_api import sync_playwright  # conftest imports this file for all tests, most without a browser

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser: Browser, path: Path, width: int = 1280, **options: Any) -> Page:
    """Open a page, and let the test fail if the page has an error or asks for anything else."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.on("console", lambda message: pytest.fail(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else pytest.fail(request.url))
    page.goto(path.as_uri())
    return page
