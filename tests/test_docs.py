"""README and docs say what is true: links lead somewhere, examples run, tables match the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mcpdiag import errors
from mcpdiag.config import PoolLimits, ProxyConfig, ReconnectPolicy, Timeouts, UpstreamConfig

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_s_python_example_runs() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", block[1]], capture_output=True, text=True, timeout=50
    )
    assert found.returncode == 0, found.stderr
    assert re.match(r"http://127\.0\.0\.1:\d+/mcp\n\{'uptime_s'", found.stdout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`|^\$ make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert {name for pair in named for name in pair if name} <= targets


def test_every_error_type_has_its_line_with_code_and_status() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()

    def tree(root: type[errors.McpDiagError]) -> list[type[errors.McpDiagError]]:
        return [root, *(each for child in root.__subclasses__() for each in tree(child))]

    for each in [*tree(errors.UpstreamError), *tree(errors.CapacityError)]:
        assert f"| `{each.type}` | {each.code} | {each.status} |" in text


def test_every_limit_that_a_client_can_feel_is_on_the_behaviour_page_with_its_default() -> None:
    text = (ROOT / "docs" / "behaviour.md").read_text()
    for name, field in Timeouts.model_fields.items():
        assert f"| `{name}` | {field.default:g} s |" in text
    for model, names in (
        (PoolLimits, ("max_connections", "max_waiting", "max_inflight")),
        (
            ProxyConfig,
            ("max_sessions", "max_body_bytes", "session_idle_timeout", "drain_timeout", "keepalive_interval"),
        ),
        (UpstreamConfig, ("max_message_bytes", "close_timeout")),
    ):
        for name in names:
            assert name in model.model_fields
            assert f"| `{name}` |" in text


def test_every_setting_is_on_the_configuration_page() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for model in (Timeouts, PoolLimits, ReconnectPolicy, UpstreamConfig, ProxyConfig):
        for name in model.model_fields:
            assert f"`{name}`" in text or f"[{name}]" in text, name


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    named = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    for requirement in named:
        assert re.split(r"[<>=;~ ]", requirement)[0] in text
        assert ">=" in requirement, f"{requirement} has no lower bound"
