"""README and docs say what is true: links lead somewhere, examples run, tables match the code.

A block that cannot be run here has `<!-- not run: REASON -->` on the line before it, and a line in NOT_RUN.
"""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent

from mcpdiag import errors
from mcpdiag.bench import workload
from mcpdiag.config import PoolLimits, ProxyConfig, ReconnectPolicy, Timeouts, UpstreamConfig
from mcpdiag.config.load import load
from mcpdiag.embedded import COMMAND
from tests import pages
from tests.pages import Block, blocks, broken_links, free_names
from tests.terminal import Terminal, free_port

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOT_RUN = {
    "README.md": [
        "would run this test in itself; others run the demo",
        "opens a browser",
        "needs npm; the slow tests run these two",
    ],
    "bench.md": ["a minute, and installs"],
    "configuration.md": [
        "needs the servers that the files below name; the files themselves are read by a test"
    ],
    "getting-started.md": ["makes another environment; CI makes its own in the same way"],
    "heap.md": ["needs npm", "needs a server of yours"],
    "leak-testing.md": [
        "minutes",
        "a minute of load",
        "needs a server of yours",
    ],
    "migration.md": ["needs npm"],
    "report.md": ["needs npm, and a terminal"],
}
VARIABLES = {"PROXY_TOKEN": "t", "SEARCH_TOKEN": "t", "GITHUB_TOKEN": "t", "DOCS_KEY": "t"}


def each_page(*languages: str) -> list[Path]:
    """The pages with a block in one of these languages that is to run."""
    return [page for page in PAGES if any(each.reason is None for each in blocks(page, *languages))]


def each_block(*languages: str) -> list[Block]:
    return [each for page in PAGES for each in blocks(page, *languages)]


# -- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    assert [*broken_links(page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_can_be_reached_from_the_readme_and_the_index(page: Path) -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    if page.parent == ROOT / "docs" and page.stem not in {"index", "heap", "leak-testing"}:
        assert re.search(rf"^(\[h?|/)?{page.stem}$", index, re.MULTILINE), (
            "it is in no toctree of docs/index.md"
        )


# -- blocks ------------------------------------------------------------------------------------------------------


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    found = {page.name: [each.reason for each in blocks(page) if each.reason is not None] for page in PAGES}
    assert {name: reasons for name, reasons in found.items() if reasons} == {
        name: reasons for name, reasons in NOT_RUN.items() if reasons
    }
    assert sum(map(pages.idle_marks, PAGES)) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", each_page("console"), ids=lambda page: page.name)
def test_console_blocks_run_as_they_are_written(page: Path, tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        for block in blocks(page, "console"):
            if block.reason is None:
                terminal.type(block)


@pytest.mark.parametrize("block", each_block("python"), ids=str)
def test_python_blocks_compile_and_run_if_they_need_nothing(block: Block, tmp_path: Path) -> None:
    missing = free_names(block.text)
    if missing or block.reason is not None:
        return
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, f"{block}: {done.stderr}"


def test_the_examples_that_one_reads_first_do_run() -> None:
    runs = {each.page.name for each in each_block("python") if not free_names(each.text) and not each.reason}
    assert {"README.md", "getting-started.md"} <= runs


@pytest.mark.parametrize("block", each_block("toml", "json"), ids=str)
def test_configuration_blocks_are_read_by_what_they_are_for(block: Block, tmp_path: Path) -> None:
    check_document(block, tmp_path)


def check_document(block: Block, folder: Path) -> None:
    """A TOML or JSON block, as settings or as a workload if it is one."""
    file = folder / f"example.{block.language}"
    file.write_text(block.text)
    found = tomllib.loads(block.text) if block.language == "toml" else json.loads(block.text)
    if {"upstreams", "mcpServers"} & set(found):
        assert load(file, environ=VARIABLES).upstreams
    elif "call" in found:
        assert workload.read(file).calls


@pytest.mark.parametrize("block", each_block("sh", "bash"), ids=str)
def test_shell_blocks_are_shell(block: Block) -> None:
    subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)


def test_each_kind_of_block_is_known() -> None:
    """A new language is a new question: who checks it?"""
    kinds = Counter(each.language for page in PAGES for each in blocks(page))
    assert set(kinds) <= {"console", "python", "toml", "json", "sh", "bash", "yaml", "nginx", "text", ""} | {
        each for each in kinds if each.startswith("{")
    }


# -- the checks themselves ---------------------------------------------------------------------------------------


def made(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other\n## A `part`, of it\n")
    text = "# Page\n[a](other.md) [b](other.md#a-part-of-it) [c](#page) [d](https://x.example) `[e](nothing.md)`\n"
    assert [*broken_links(made(tmp_path, text))] == []
    text = "[a](nothing.md) [b](other.md#a-part) [c](#pages)"
    assert [*broken_links(made(tmp_path, text))] == ["nothing.md", "other.md#a-part", "#pages"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("$ echo 1\n1\n", True),
        ("$ echo 1\n2\n", False),
        ("$ printf '1\\n2\\n3\\n'\n1\n...\n3\n", True),
        ("$ printf '1\\n2\\n3\\n'\n1\n3\n", False),
        ("$ echo a 17 b\na ... b\n", True),
        ("$ false\n", False),
        ("$ mcpdiag no-such-verb\n", False),
        ("$ mcpdiag proxy -- no-such-program\n", False),
        ("echo without a prompt\n", False),
        ("$ echo http://elsewhere.example/mcp\n", False),
        ("$ echo npx -y something\n", False),
    ],
)
def test_a_command_that_fails_or_prints_something_else_is_found(
    tmp_path: Path, text: str, right: bool
) -> None:
    page = made(tmp_path, f"```console\n{text}```\n")
    with Terminal(tmp_path) as terminal, contextlib.nullcontext() if right else pytest.raises(AssertionError):
        terminal.type(blocks(page, "console")[0])


def test_a_mark_is_read_and_one_before_no_block_is_found(tmp_path: Path) -> None:
    page = made(
        tmp_path, "<!-- not run: why -->\n```console\n$ x\n```\n\n<!-- not run: what -->\n\n```sh\n```\n"
    )
    assert [(each.language, each.reason) for each in blocks(page)] == [("console", "why"), ("sh", None)]
    assert pages.idle_marks(page) == 1


def test_what_python_needs_from_elsewhere_is_found() -> None:
    assert free_names("import os.path as p\nfor x in [1]:\n    print(p, x)") == set()
    assert free_names("print(x)\nawait f({'a': [...]})") == {"x", "f", "...", "await"}
    assert free_names("async def f(a):\n    async with a as b:\n        await b") == set()
    with pytest.raises(SyntaxError):
        free_names("print(")


def test_settings_that_are_wrong_are_found(tmp_path: Path) -> None:
    wrong = Block(tmp_path, 1, "toml", '[upstreams.a]\ncomand = "x"\n')
    with pytest.raises(errors.ConfigError, match="comand"):
        check_document(wrong, tmp_path)


async def _listens(port: int) -> None:
    with anyio.fail_after(30):
        while True:
            with contextlib.suppress(OSError):
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                return
            await anyio.sleep(0.05)


async def _remembers(url: str, text: str, seen: list[tuple[str, set[str]]]) -> None:
    """One client: which worker its session id names, and in which processes its calls ran."""
    async with (
        streamable_http_client(url) as (read, write, session_id),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        await session.call_tool("remember", {"text": text})
        processes = set[str]()
        for _ in range(4):
            assert _text(await session.call_tool("recall", {})) == text
            processes.add(_text(await session.call_tool("whoami", {})))
        seen.append(((session_id() or "").partition(".")[0], processes))


def _text(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def test_every_public_name_is_on_the_api_page() -> None:
    import mcpdiag

    text = (ROOT / "docs" / "api.md").read_text()
    shown = {each.rpartition(".")[2] for each in re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE)}
    shown |= {name for name in dir(errors) if isinstance(getattr(errors, name), type)}  # by automodule
    assert "automodule:: mcpdiag.errors" in text
    assert {*mcpdiag.__all__} - shown == {
        "__version__",
        "load_ipython_extension",
    }  # that is IPython's to call


# -- the site ------------------------------------------------------------------------------------------------------


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / f"{name}.py"))


def test_the_roads_are_drawn_as_their_script_draws_them_and_name_real_files() -> None:
    roads = script("roads")
    for name in ("request", "sample"):
        drawn = roads[f"{name}_road"]()
        assert (ROOT / "docs" / f"{name}-road.svg").read_text() == drawn, "run: python docs/roads.py"
        for file in re.findall(r'class="file"[^>]*>([^<]+)<', drawn):
            assert any((ROOT / "mcpdiag" / f"{file}{end}").exists() for end in ("", ".py")), file


def test_what_a_page_would_fetch_from_elsewhere_is_found() -> None:
    elsewhere = script("offline")["elsewhere"]
    assert elsewhere('<a href="https://x.example">x</a><img src="a.png"><link rel="icon" href="b.ico">') == []
    assert elsewhere('<script src="https://cdn.example/a.js"></script>') == [
        "<script src=https://cdn.example/a.js>"
    ]
    assert elsewhere('<link rel="stylesheet" href="//cdn.example/a.css">') == [
        "<link href=//cdn.example/a.css>"
    ]


# -- nginx -------------------------------------------------------------------------------------------------------

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="needs nginx")
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_sessions_stay_with_their_worker_behind_the_nginx_of_scaling_out(tmp_path: Path) -> None:
    """16 official clients through the very configuration of the page: each stays in one process, both workers serve."""
    import mcpdiag

    (block,) = blocks(ROOT / "docs" / "scaling-out.md", "nginx")
    front = free_port()
    with mcpdiag.serve({"d": COMMAND}, port=0) as first, mcpdiag.serve({"d": COMMAND}, port=0) as second:
        ports = [proxy.url.split(":")[2].split("/")[0] for proxy in (first, second)]
        text = block.text.replace("8811", ports[0]).replace("8812", ports[1]).replace("8810", front)
        own = "".join(
            f"  {each}_temp_path {tmp_path}/{each};\n"
            for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(text.replace("http {\n", "http {\n  access_log off;\n" + own))
        options = f"daemon off; pid {tmp_path}/pid; error_log stderr;"
        assert NGINX is not None
        nginx = subprocess.Popen([NGINX, "-p", tmp_path, "-c", "nginx.conf", "-g", options], cwd=tmp_path)
        try:
            await _listens(int(front))
            seen: list[tuple[str, set[str]]] = []
            async with anyio.create_task_group() as tasks:
                for number in range(16):
                    tasks.start_soon(_remembers, f"http://127.0.0.1:{front}/mcp", f"client {number}", seen)
        finally:
            nginx.terminate()
            nginx.wait()
    assert len(seen) == 16
    assert all(len(processes) == 1 for _, processes in seen)
    assert Counter(worker for worker, _ in seen).keys() == {"a", "b"}


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
    known = {each.type for each in tree(errors.McpDiagError)}
    assert {*re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)} <= known, "a line for what is no error"


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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    named = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    for requirement in named:
        assert re.split(r"[<>=;~ ]", requirement)[0] in text
        assert ">=" in requirement, f"{requirement} has no lower bound"
