"""A client over stdio that starts `mcpdiag proxy --stdio` as a desktop client does, and sees each line it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

Json = dict[str, Any]
MCPDIAG = [sys.executable, "-m", "mcpdiag"]
LIMIT = 30.0  # seconds: nothing here takes that long unless it hangs


class StdioClient:
    """Attributes:
    process: the proxy.
    others: the messages that were not the answer that was waited for, in their order.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self.others: list[Json] = []
        self._last_id = 0

    def write(self, line: bytes) -> None:
        self._stdin.write(line + b"\n")
        self._stdin.flush()

    def send(self, method: str, params: Json | None = None, request_id: Any = None) -> Any:
        """A request, not waited for; returns its id."""
        if request_id is None:
            self._last_id += 1
            request_id = self._last_id
        message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}
        self.write(json.dumps(message).encode())
        return request_id

    def send_call(self, tool: str, *, token: Any = None, **arguments: Any) -> Any:
        params: Json = {"name": tool, "arguments": arguments}
        if token is not None:
            params["_meta"] = {"progressToken": token}
        return self.send("tools/call", params)

    def notify(self, method: str, params: Json | None = None) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": params or {}}).encode())

    def receive(self) -> Json:
        """The next line, which must be a JSON-RPC message; `EOFError` at the end."""
        line = self._stdout.readline()
        if not line:
            raise EOFError(self._stderr.read().decode())
        message: Json = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        return message

    def answer(self, request_id: Any) -> Json:
        """Read until the response with this id has come, or look it up among those that came before."""
        for message in self.others:
            if "method" not in message and message["id"] == request_id:
                self.others.remove(message)
                return message
        while True:
            message = self.receive()
            if "method" not in message and message["id"] == request_id:
                return message
            self.others.append(message)

    def request(self, method: str, params: Json | None = None) -> Json:
        return self.answer(self.send(method, params))

    def say(self, tool: str, **arguments: Any) -> str:
        """The text that a tool answers."""
        return text_of(self.answer(self.send_call(tool, **arguments)))

    def initialize(self, version: str = "2025-11-25", **capabilities: Any) -> Json:
        info = {"name": "stdio", "version": "1"}
        params = {"protocolVersion": version, "capabilities": capabilities, "clientInfo": info}
        answer = self.request("initialize", params)
        if "result" in answer:
            self.notify("notifications/initialized")
        return answer

    def hang_up(self) -> None:
        """Close the proxy's stdin."""
        self._stdin.close()

    def finish(self) -> tuple[int, list[Json], str]:
        """Close its stdin and wait for its end; returns the exit code, the last messages and all of stderr."""
        self.hang_up()
        rest = [json.loads(line) for line in self._stdout]
        errors = self._stderr.read().decode()
        return self.process.wait(LIMIT), self.others + rest, errors


def text_of(answer: Json) -> str:
    assert "result" in answer, answer
    return str(answer["result"]["content"][0]["text"])


@contextmanager
def started(*args: str, **environment: str) -> Iterator[StdioClient]:
    """A running `mcpdiag proxy --stdio ARGS`; after the block neither it nor a child of it is left."""
    process = subprocess.Popen(
        [*MCPDIAG, "proxy", "--stdio", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    client = StdioClient(process)
    children: list[psutil.Process] = []
    try:
        yield client
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            code, _, errors = client.finish()
            assert code == 0, errors
        assert not [child for child in children if child.is_running()]
    finally:
        process.kill()
        process.wait()
        for stream in (client._stdin, client._stdout, client._stderr):
            stream.close()
