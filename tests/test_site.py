"""The site of the pages: built without a warning, every link in it leads somewhere, nothing comes from elsewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does, of the pages in `source`."""
    options = ["-W", "--keep-going", "-q", "-c", str(ROOT / "docs"), "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(folder / "site")]
    return subprocess.run(command, capture_output=True, text=True)


class Page(HTMLParser):
    """What a page links to, what it loads, and what in it can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        self.loads |= {given["src"]} if "src" in given else set()
        self.loads |= {given["href"]} if tag == "link" and "href" in given else set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert (done.returncode, done.stderr) == (0, "")
    return {path: Page(path) for path in (folder / "site").rglob("*.html")}


def test_every_page_of_the_repository_is_on_the_site(site: dict[Path, Page]) -> None:
    names = {path.name for path in site}
    assert {"index.html", "README.html", *(f"{page.stem}.html" for page in ROOT.glob("docs/*.md"))} <= names
    cards = {path.parent.name for path in ROOT.glob("model/shipped/*/README.md")}
    assert cards <= {path.parent.name for path in site if path.name == "README.html"}


def test_every_link_leads_to_what_is_there_and_nothing_comes_from_elsewhere(site: dict[Path, Page]) -> None:
    broken, tried = [], 0
    for path, page in site.items():
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                # A person may go there; a page may not need it.
                assert link not in page.loads, (path.name, link)
                continue
            tried += 1
            target, anchor = urldefrag(link)
            to = (path.parent / unquote(urlsplit(target).path)).resolve() if target else path
            its = site.get(to)
            if not to.is_file() or (anchor and its is not None and unquote(anchor) not in its.ids):
                broken.append(f"{path.name}: {link}")
    assert broken == []
    assert tried > 500


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "README.md").write_text("# Start\n\n[a](#there)\n\n## There\n")
    good = build(pages, tmp_path)
    assert (good.returncode, good.stderr) == (0, "")
    (pages / "README.md").write_text("# Start\n\n[a](docs/no1.md) [a](#no2) [a](no3.yaml) ![a](no4.png)\n\n## There\n")
    bad = build(pages, tmp_path)
    assert bad.returncode != 0
    assert [name for name in ("no1", "no2", "no3", "no4") if name not in bad.stderr] == []
