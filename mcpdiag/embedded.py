"""A small MCP server over stdio, with nothing but the standard library: for the demo, benchmarks and tests.

    python -m mcpdiag.embedded

`COMMAND` runs the file by its path, which spares the child the import of the package.

Tools: `echo`, `add`, `sleep`, `progress`, `log`, `whoami` (the process), `remember` and `recall` (state of the
process), `exit`. Calls are answered concurrently only in so far as they sleep: `sleep` does not block the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

TOOLS: dict[str, tuple[str, dict[str, str]]] = {
    "echo": ("Return the text", {"text": "string"}),
    "add": ("Return a + b", {"a": "number", "b": "number"}),
    "sleep": ("Answer after some seconds, without blocking other calls", {"seconds": "number"}),
    "progress": ("Send `steps` progress notifications, then answer", {"steps": "number"}),
    "log": ("Send one log message, then answer", {"text": "string"}),
    "whoami": ("The process id of the server", {}),
    "remember": ("Keep a text in this process", {"text": "string"}),
    "recall": ("The text that this process keeps", {}),
    "exit": ("End the server at once, with this exit code", {"code": "number"}),
}
COMMAND = (sys.executable, __file__)
VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
Params = dict[str, Any]


class Server:
    """Reads lines, writes lines; one lock keeps lines whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept = ""

    def write(self, message: Params) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")) + "\n"
        with self._lock, contextlib.suppress(BrokenPipeError):
            sys.stdout.write(line)
            sys.stdout.flush()

    def notify(self, method: str, params: Params) -> None:
        self.write({"method": method, "params": params})

    def handle(self, message: Params) -> None:
        method, params = message.get("method"), message.get("params") or {}
        if "id" not in message or method is None:
            return
        try:
            result = self.answer(message["id"], method, params)
        except KeyError as error:
            missing = {"code": -32602, "message": f"missing or unknown: {error.args[0]}"}
            self.write({"id": message["id"], "error": missing})
            return
        if result is not None:
            self.write({"id": message["id"], "result": result})

    def answer(self, request_id: Any, method: str, params: Params) -> Params | None:
        if method == "initialize":
            asked = params.get("protocolVersion")
            return {
                "protocolVersion": asked if asked in VERSIONS else VERSIONS[-1],
                "capabilities": {"tools": {}, "logging": {}, "resources": {"subscribe": True}},
                "serverInfo": {"name": "mcpdiag-embedded", "version": "1"},
            }
        if method == "tools/list":
            return {"tools": [_describe(name, *tool) for name, tool in TOOLS.items()]}
        if method == "tools/call":
            return self.call(request_id, params)
        if method in {"ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"}:
            return {}
        if method == "resources/list":
            return {"resources": []}
        self.write({"id": request_id, "error": {"code": -32601, "message": f"no method {method}"}})
        return None

    def call(self, request_id: Any, params: Params) -> Params | None:
        name, arguments = params["name"], params.get("arguments") or {}
        if name == "echo":
            return _text(arguments["text"])
        if name == "add":
            return _text(str(arguments["a"] + arguments["b"]))
        if name == "sleep":
            later = {"id": request_id, "result": _text("awake")}
            timer = threading.Timer(float(arguments["seconds"]), self.write, [later])
            timer.daemon = True
            timer.start()
            return None
        if name == "progress":
            token = params.get("_meta", {}).get("progressToken")
            steps = int(arguments["steps"])
            for step in range(1, steps + 1):
                if token is not None:
                    self.notify(
                        "notifications/progress", {"progressToken": token, "progress": step, "total": steps}
                    )
                time.sleep(0.01)
            return _text("done")
        if name == "log":
            self.notify("notifications/message", {"level": "info", "data": arguments["text"]})
            return _text("logged")
        if name == "whoami":
            return _text(str(os.getpid()))
        if name == "remember":
            self._kept = arguments["text"]
            return _text("kept")
        if name == "recall":
            return _text(self._kept)
        if name == "exit":
            os._exit(int(arguments["code"]))
        raise KeyError(name)


def _text(text: str) -> Params:
    return {"content": [{"type": "text", "text": text}]}


def _describe(name: str, description: str, arguments: dict[str, str]) -> Params:
    properties = {key: {"type": kind} for key, kind in arguments.items()}
    schema = {"type": "object", "properties": properties, "required": [*arguments]}
    return {"name": name, "description": description, "inputSchema": schema}


def main() -> None:
    """Serve until stdin ends."""
    server = Server()
    for line in sys.stdin:
        try:
            message = json.loads(line)
        except ValueError:
            server.write({"id": None, "error": {"code": -32700, "message": "not JSON"}})
            continue
        for each in message if isinstance(message, list) else [message]:
            server.handle(each)


if __name__ == "__main__":
    main()
