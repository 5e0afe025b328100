"""What a page of documentation says that can be checked: its links, its anchors, its blocks of code. For test_docs."""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?^(?P<ticks>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=ticks)[ ]*$",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"^<!-- not run: .*-->$", re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block. `reason` is why nobody runs it: the comment `<!-- not run: REASON -->` on the line before."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, or all."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start("ticks")) + 1,
            found["language"].strip(),
            found["text"],
            found["reason"],
        )
        for found in _FENCE.finditer(text)
        if not languages or found["language"].strip() in languages
    ]


def idle_marks(page: Path) -> int:
    """How many marks stand before no block, where they do nothing."""
    return len(_MARK.findall(page.read_text())) - sum(each.reason is not None for each in blocks(page))


def prose(page: Path) -> str:
    """A page without its code; of a notebook the cells of text."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        text = "\n\n".join("".join(each["source"]) for each in cells if each["cell_type"] == "markdown")
    else:
        text = page.read_text()
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "`code`", _FENCE.sub("", text))


@cache
def anchors(page: Path) -> frozenset[str]:
    """What `#...` can lead to in a page: its headings, as forges and MyST write them."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        text = "\n".join(
            "".join(each["source"]) for each in json.loads(text)["cells"] if each["cell_type"] == "markdown"
        )
    seen: dict[str, int] = {}
    for title in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
    return frozenset(
        slug if number == 0 else f"{slug}-{number}"
        for slug, last in seen.items()
        for number in range(last + 1)
    )


def broken_links(page: Path) -> Iterator[str]:
    """The relative links of a page that lead to no file, or to no heading in it."""
    for found in _LINK.finditer(prose(page)):
        target = found["target"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix in {".md", ".ipynb"} and anchor not in anchors(file)):
            yield target


def free_names(source: str) -> set[str]:
    """The names that a piece of Python uses and does not make itself. `...` is one: it stands for something."""
    tree = compile(source, "block", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    used, made = set[str](), set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.Constant) and node.value is ...:
            used.add("...")
        elif isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor) and _is_on_top(tree, node):
            used.add("await")  # only a notebook can do that
    return used - made


def _is_on_top(tree: ast.AST, node: ast.AST) -> bool:
    inside = {
        each
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for each in ast.walk(function)
    }
    return node not in inside
