"""A gallery open in Chromium, from a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import BrowserContext, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--force-color-profile=srgb"]  # fmt: skip


@contextmanager
def open_gallery(folder: Path, width: int = 1400, height: int = 900) -> Iterator[Page]:
    """The gallery in `folder`, `watched`, in a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with watched(browser.new_context(viewport={"width": width, "height": height}), folder) as page:
            yield page
        browser.close()


@contextmanager
def watched(context: BrowserContext, folder: Path) -> Iterator[Page]:
    """The gallery in `folder`. Anything in the console, and anything asked of the outside, fails the test."""
    said: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if _inside(request.url, folder) else said.append(request.url))
    page.goto((folder / "index.html").as_uri())
    yield page
    assert said == []


def _inside(url: str, folder: Path) -> bool:
    return url.startswith(("data:", "blob:")) or Path(unquote(urlsplit(url).path)).is_relative_to(folder)
