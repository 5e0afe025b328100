"""Who may import whom. The floors, ground first; a file imports from floors below its own, never sideways."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mcpdiag"
GROUND = ["errors", "config", "hooks", "html", "embedded", "embedded_http"]
FLOORS = [
    GROUND,
    ["protocol"],
    ["connection"],
    ["pool"],
    ["upstream"],
    ["proxy"],
    ["server", "listeners"],
    ["serve"],
    ["cli", "notebook"],
]
# Beside the floors: they import the ground floor and these rooms, and only the floors named import them.
BESIDE = {"samples": {"pool.stats"}, "bench": {"protocol", "samples"}, "export": {"samples"}}
SEES_BOTH = {"listeners", "serve", "cli", "notebook"}
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# Third-party packages that only these rooms (file or folder, dotted) may import.
CONFINED = {
    "httpx": {"upstream"},
    "httpx_sse": {"upstream"},
    "uvloop": {"serve", "bench.generate"},
    "starlette": {"proxy.admin"},
    "httptools": {"connection.http1", "connection.http1_response", "server.connection", "bench.client"},
    "typer": {"cli"},
    "rich": {"cli"},
    "mcp": {"cli.demo"},
    "pandas": {"samples.frame", "samples.heap_frame", "notebook.history"},
    "numpy": {"samples.columns", "samples.plot"},
    "pyarrow": {"samples.parts", "samples.wire", "bench.raw", "bench.readings"},
    "psutil": {"samples.processes", "bench.vitals"},
    "matplotlib": {"samples.plot", "notebook.picture"},
    "IPython": {"notebook"},
    "nbclient": {"cli.report_make"},
    "jupyter_client": {"cli.report_make"},
    "nbformat": {"cli.report_make"},
    "nbconvert": {"cli.report_page"},
    "memray": {"samples.heap_records"},
    "prometheus_client": {"export.prometheus"},
    "opentelemetry": {"export.otel"},
    "locust": {"bench.locust"},
}  # fmt: skip


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def room_of(path: Path) -> str:
    """`pool.ledger` for mcpdiag/pool/ledger.py, `serve` for mcpdiag/serve.py, `cli` for mcpdiag/cli/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            assert node.module is not None
            yield node.module
            if node.module == "mcpdiag":
                yield from (f"mcpdiag.{alias.name}" for alias in node.names)


def violations(room: str, source: str) -> list[str]:
    wrong = []
    top = room.split(".")[0]
    for name in imports(source):
        parts = name.split(".")
        if parts[0] in CONFINED and not any(
            room == allowed or room.startswith(f"{allowed}.") for allowed in CONFINED[parts[0]]
        ):
            wrong.append(f"{room} imports {parts[0]}")
        if parts[0] == "mcpdiag" and len(parts) > 1 and room:
            other = parts[1]
            if other != top and (top in BESIDE or other in BESIDE):
                if not _seen_beside(top, other, ".".join(parts[1:])):
                    wrong.append(f"{room} imports {name}, which is beside it")
            elif other in FLOOR_OF and other != top:
                same_ground = FLOOR_OF[other] == FLOOR_OF[top] == 0
                if FLOOR_OF[other] >= FLOOR_OF[top] and not same_ground:
                    wrong.append(f"{room} imports {name} from a floor that is not below it")
    return wrong


def _seen_beside(top: str, other: str, name: str) -> bool:
    if top in BESIDE:
        return other in GROUND or any(name == room or name.startswith(f"{room}.") for room in BESIDE[top])
    return top in SEES_BOTH


@pytest.mark.parametrize("path", files(), ids=lambda path: room_of(path) or "mcpdiag")
def test_every_import_goes_down(path: Path) -> None:
    room = room_of(path)
    assert not room or room.split(".")[0] in {*FLOOR_OF, *BESIDE}, f"{room} is on no floor: add it to FLOORS"
    assert violations(room, path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("protocol.message", "from mcpdiag.pool.pool import Pool"),
        ("pool.pool", "import starlette"),
        ("connection.stdio", "from mcpdiag.upstream import base"),
        ("proxy.endpoint", "import starlette.applications"),
        ("config", "from mcpdiag.protocol.message import Message"),
        ("samples.gauge", "from mcpdiag.pool.pool import Pool"),
        ("samples.gauge", "from mcpdiag.upstream.base import Upstream"),
        ("samples.recorder", "import pandas"),
        ("upstream.http", "from mcpdiag.samples.recorder import Recorder"),
        ("export.prometheus", "from mcpdiag.pool.stats import PoolStats"),
        ("export.prometheus", "import opentelemetry.sdk.trace"),
        ("proxy.admin", "from mcpdiag.export.prometheus import Metrics"),
    ],
)
def test_a_wrong_import_is_seen(room: str, source: str) -> None:
    assert violations(room, source)


def test_protocol_is_sans_io() -> None:
    """No event loop, no socket, no clock in protocol/."""
    banned = {
        "anyio",
        "asyncio",
        "trio",
        "httpx",
        "socket",
        "time",
        "datetime",
        "random",
        "subprocess",
        "threading",
    }
    for path in (PACKAGE / "protocol").glob("*.py"):
        assert not banned & {name.split(".")[0] for name in imports(path.read_text())}, path.name
