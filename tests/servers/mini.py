"""What the small servers beside this file have in common: newline-delimited JSON-RPC, standard library only.

    from tests.servers.mini import command
    command("stubborn", "--ignore", "eof", "term")     # argv; starts in about 30 ms

Every one answers `initialize`, `ping`, `tools/list` and the tools `echo {text}` and `pid`, one message at a time,
and does one thing badly, which its docstring names. Each ends itself after two minutes, grandchildren too, so that a
test that fails leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

GUARD_SECONDS = 120
Params = dict[str, Any]
Tool = Callable[
    [Params, Params], Params | None
]  # (message, arguments) -> result; None: it has answered by itself


def command(name: str, *arguments: str) -> list[str]:
    """The argv that starts one of the servers."""
    return [sys.executable, "-I", "-S", os.path.join(os.path.dirname(__file__), f"{name}.py"), *arguments]


def text(value: str) -> Params:
    return {"content": [{"type": "text", "text": value}]}


def guard() -> None:
    """End this process in two minutes, whatever happens."""
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(GUARD_SECONDS)


def write(data: bytes, to: int = 1) -> None:
    """All of it, without a buffer of ours; a reader that has gone ends the process."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(to, view) :]
    except BrokenPipeError:
        os._exit(1)


def send(message: Params | list[Params]) -> None:
    """One message, or a batch, on stdout."""
    each = [{"jsonrpc": "2.0", **part} for part in message] if isinstance(message, list) else message
    write(json.dumps(each if isinstance(each, list) else {"jsonrpc": "2.0", **each}).encode() + b"\n")


def messages() -> Iterator[Params]:
    """What comes on stdin, until its end. A line that is not JSON is told on stderr."""
    for line in sys.stdin.buffer:
        try:
            message = json.loads(line)
        except ValueError:
            write(b"not JSON: %d bytes\n" % len(line), 2)
            continue
        yield message


class Server:
    """Override or extend `tools`; `serve` runs until stdin ends."""

    def __init__(self) -> None:
        guard()
        self.tools: dict[str, Tool] = {
            "echo": lambda message, arguments: text(str(arguments.get("text", ""))),
            "pid": lambda message, arguments: text(str(os.getpid())),
        }

    def result(self, message: Params) -> Params | None:
        method, params = message["method"], message.get("params") or {}
        if method == "initialize":
            return {
                "protocolVersion": params.get("protocolVersion", "2025-11-25"),
                "capabilities": {"tools": {}, "logging": {}},
                "serverInfo": {"name": os.path.basename(sys.argv[0]), "version": "1"},
            }
        if method == "tools/list":
            return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in self.tools]}
        if method == "tools/call" and params.get("name") in self.tools:
            return self.tools[params["name"]](message, params.get("arguments") or {})
        return {}

    def answer(self, message: Params) -> None:
        if "id" in message and "method" in message and (result := self.result(message)) is not None:
            send({"id": message["id"], "result": result})

    def serve(self) -> None:
        for message in messages():
            self.answer(message)
