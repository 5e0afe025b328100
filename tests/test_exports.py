"""The public names: `__all__` is the truth, and importing them is cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mcpdiag
from mcpdiag import errors


def test_all_names_exist_and_are_sorted() -> None:
    assert sorted(mcpdiag.__all__) == mcpdiag.__all__
    for name in mcpdiag.__all__:
        assert hasattr(mcpdiag, name), name


def test_every_name_comes_from_where_type_checkers_find_it() -> None:
    tree = ast.parse(Path(mcpdiag.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]  # if TYPE_CHECKING
    imported = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    told = {
        alias.asname or alias.name: (node.module, alias.name) for node in imported for alias in node.names
    }
    assert told == {name: (home, mcpdiag._ORIGINAL.get(name, name)) for name, home in mcpdiag._HOME.items()}
    for name, (module, original) in told.items():
        assert module is not None
        assert getattr(mcpdiag, name) is getattr(importlib.import_module(module), original)


def test_all_is_everything_public() -> None:
    here = {"__version__", "load_ipython_extension"}
    assert {*mcpdiag.__all__} == {*mcpdiag._HOME, *here} == {*dir(mcpdiag)}


def test_a_name_that_does_not_exist_is_said_so() -> None:
    with pytest.raises(AttributeError, match="module 'mcpdiag' has no attribute 'sreve'"):
        mcpdiag.sreve  # noqa: B018


def test_serve_is_the_function_also_after_its_module_was_imported() -> None:
    code = "import mcpdiag.serve, mcpdiag; from mcpdiag import serve; print(callable(mcpdiag.serve), callable(serve))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True True\n"


def test_every_error_is_exported_and_drawn_in_the_tree() -> None:
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.McpDiagError):
            assert getattr(mcpdiag, name) is value
            assert name in (errors.__doc__ or "")


def test_error_types_and_codes_are_one_to_one() -> None:
    def tree(root: type[errors.McpDiagError]) -> list[type[errors.McpDiagError]]:
        return [root, *(each for child in root.__subclasses__() for each in tree(child))]

    ours = [*tree(errors.UpstreamError), *tree(errors.CapacityError)]
    assert len({each.type for each in ours}) == len(ours)
    assert len({each.code for each in ours}) == len(ours)
    assert all(-32019 <= each.code <= -32000 for each in ours)


def test_importing_the_package_costs_no_heavy_library() -> None:
    heavy = ["pandas", "matplotlib", "memray", "numpy", "pyarrow", "psutil", "mcp", "typer", "httpx"]
    code = "import mcpdiag, sys; print([name for name in {!r} if name in sys.modules])"
    unused = subprocess.run(
        [sys.executable, "-c", code.format(["pydantic", "anyio", "asyncio", *heavy])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert unused.stdout == "[]\n"
    code = "import mcpdiag, sys; [getattr(mcpdiag, name) for name in mcpdiag.__all__]\n" + code.format(heavy)
    used = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert used.stdout == "[]\n"
