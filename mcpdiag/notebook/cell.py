"""How `%%mcp_window` runs its cell: the cell itself, inside a `with`, instead of a text that a magic would execute.

A cell magic gets its cell as a string and must run it to the end, so a top-level `await` in it is a SyntaxError. Here
the first line becomes a marker and the statements below it stay where they are; once they are parsed, they are put into
a `with`. So IPython itself finds out whether the cell awaits, runs it, interrupts it and shows its errors, with its own
line numbers.
"""

from __future__ import annotations

import ast
import re
from typing import Final

from IPython.core.inputtransformer2 import cell_magic
from IPython.core.interactiveshell import InteractiveShell

MAGIC: Final = "mcp_window"
MARKER: Final = "__mcpdiag_window__"
_FIRST: Final = re.compile(rf"%%{MAGIC}(?P<line>\s.*)?$")


def mark(lines: list[str]) -> list[str]:
    """`%%mcp_window ARGUMENTS` as the marker. A transformer of IPython's input, before it looks for magics."""
    found = _FIRST.match(lines[0].rstrip()) if lines else None
    if found is None or not "".join(lines[1:]).strip():
        return lines  # without a body IPython says so
    body = lines[1:]
    blank = next(at for at, text in enumerate(body) if text.strip())
    return [f"{MARKER}({(found['line'] or '').strip()!r})\n", *body[:blank], *cell_magic(body[blank:])]


class Wrap(ast.NodeTransformer):
    """Puts a marked cell into its `with`. A transformer of IPython's syntax trees."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell

    def visit(self, node: ast.AST) -> ast.AST:
        """The tree of the cell; any other one as it is."""
        if not isinstance(node, ast.Module) or (argument := _marked(node)) is None:
            return node
        _, *body = node.body
        future = [each for each in body if isinstance(each, ast.ImportFrom) and each.module == "__future__"]
        inside = [each for each in body if each not in future] or [ast.Pass()]
        last = inside[-1]
        if self._shell.ast_node_interactivity.startswith("last_expr") and isinstance(last, ast.Expr):
            inside[-1] = ast.Expr(_call("__import__('sys').displayhook", last.value))
        opened = _call(f"get_ipython().find_cell_magic({MAGIC!r}).__self__.open", ast.Constant(argument))
        wrapped = ast.With(items=[ast.withitem(context_expr=opened)], body=inside)
        for made in (wrapped, inside[-1]):
            ast.copy_location(made, node.body[0] if made is wrapped else last)
            ast.fix_missing_locations(made)
        node.body = [*future, wrapped]
        return node


def _marked(tree: ast.Module) -> str | None:
    """The arguments in the marker; None without one."""
    match tree.body[:1]:
        case [ast.Expr(ast.Call(ast.Name(id=name), [ast.Constant(str(argument))], []))] if name == MARKER:
            return argument
    return None


def _call(function: str, argument: ast.expr) -> ast.Call:
    made = ast.parse(function, mode="eval").body
    for each in ast.walk(made):  # where this text stood is no place in the cell
        for name in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            if hasattr(each, name):
                delattr(each, name)
    return ast.Call(made, [argument], [])
