"""The site, made by Sphinx of the pages as they lie in the repository: `make docs` writes build/site/index.html.

Links between pages are those that GitHub follows. A link to a file that is no page gives that file; names of files in
`code` stay text. Nothing in it is fetched from elsewhere: it works from a disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sphinx.application import Sphinx

START = "README"
NAVIGATION = {
    "Jobs": ["docs/regenerate", "docs/retrain", "docs/use", "docs/evaluate"],
    "Look up": ["docs/recipes", "docs/formats", "docs/survives", "infra/deploy/README", "model/shipped/README"],
    "Behind it": ["docs/paper", "docs/scale", "docs/ran"],
    "Work on it": ["docs/extend", "CONTRIBUTING", "CHANGELOG"],
}
"""The pages by what they are for; one that is in no list is an error."""

project = "RWKVFusion"
root_doc = START
extensions = ["myst_parser"]
include_patterns = ["*.md", "docs/*.md", "infra/deploy/*.md", "model/shipped/*.md", "model/shipped/*/*.md"]
exclude_patterns = [".*", "build", "demo", "kernels", "out", "pipelines", "runs", "stages", "tests"]
myst_heading_anchors = 3
highlight_language = "text"
smartquotes = False
html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = html_show_copyright = False
html_use_index = False


def _navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts the navigation below the start page, where GitHub does not show it."""
    if page != START:
        return
    for title, pages in NAVIGATION.items():
        names = "\n".join(name for name in pages if Path(app.srcdir, f"{name}.md").is_file())
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{names}\n```\n"
    cards = sorted(Path(app.srcdir, "model/shipped").glob("*/README.md"))
    names = "\n".join(f"{card.parent.name} <model/shipped/{card.parent.name}/README>" for card in cards)
    source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: Models\n\n{names}\n```\n"


def _index(app: Sphinx, error: Exception | None) -> None:
    """The start page under the name that is looked for."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir, f"{START}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _navigation)
    app.connect("build-finished", _index)
