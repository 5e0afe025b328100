"""Says what a built page would fetch from elsewhere: `python docs/offline.py build/docs`. `make docs` ends with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

# What a browser fetches by itself; <a href> is not among them.
_FETCHED = {"src", "srcset", "poster", "data"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        relation = dict(attrs).get("rel") or ""
        for name, value in attrs:
            fetched = name in _FETCHED or (tag == "link" and name == "href" and relation != "canonical")
            if fetched and value and value.startswith(("http:", "https:", "//")):
                self.found.append(f"<{tag} {name}={value}>")


def elsewhere(page: str) -> list[str]:
    """The elements of an HTML page that make a browser ask another server."""
    parser = _Page()
    parser.feed(page)
    return parser.found


def check(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*.html")):
        for element in elsewhere(file.read_text()):
            yield f"{file}: {element}"
    for file in sorted(folder.rglob("*.css")):
        text = file.read_text()
        if "@import url(http" in text or "url(http" in text.replace('"', "").replace("'", ""):
            yield f"{file}: a style from elsewhere"


if __name__ == "__main__":
    complaints = [*check(Path(sys.argv[1]))]
    sys.stderr.writelines(f"{line}\n" for line in complaints)
    sys.exit(1 if complaints else 0)
