"""The public names: `__all__` is the truth, and importing them is cheap."""

from __future__ import annotations

import subprocess
import sys
import types

import mcpdiag
from mcpdiag import errors


def test_all_names_exist_and_are_sorted() -> None:
    assert sorted(mcpdiag.__all__) == mcpdiag.__all__
    for name in mcpdiag.__all__:
        assert hasattr(mcpdiag, name), name


def test_all_is_everything_public() -> None:
    public = {
        name
        for name, value in vars(mcpdiag).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(mcpdiag.__all__) - {"__version__"}


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
    code = f"import mcpdiag, sys; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
