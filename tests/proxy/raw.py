"""HTTP byte by byte: requests that no HTTP library would send, and what comes back."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 10.0
POST_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
}


@dataclass(frozen=True)
class Got:
    """A response."""

    status: int
    headers: dict[str, str]  # lower-case names
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error of a JSON-RPC body."""
        message = json.loads(self.body)
        assert message["jsonrpc"] == "2.0"
        found: dict[str, Any] = message["error"]
        return found


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 80), TIMEOUT)


def head(
    url: str, method: str = "POST", headers: Mapping[str, str | None] | None = None, path: str = ""
) -> bytes:
    """A request head without its empty line. A header that is None is left out."""
    parts = urlsplit(url)
    merged: dict[str, str | None] = {"Host": parts.netloc}
    if method == "POST":
        merged |= POST_HEADERS
    merged |= headers or {}
    lines = [f"{method} {path or parts.path} HTTP/1.1"]
    lines += [f"{key}: {value}" for key, value in merged.items() if value is not None]
    return "\r\n".join([*lines, ""]).encode("latin-1")


def receive(connection: socket.socket, method: str = "POST") -> Got:
    """One response."""
    response = HTTPResponse(connection, method=method)
    response.begin()
    with response:
        headers = {key.lower(): value for key, value in response.getheaders()}
        return Got(response.status, headers, response.read())


def send(
    url: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Mapping[str, str | None] | None = None,
    path: str = "",
    chunked: bool = False,
) -> Got:
    """One request on a connection of its own."""
    framing: dict[str, str | None] = {"Transfer-Encoding": "chunked"} if chunked else {}
    if body and not chunked:
        framing = {"Content-Length": str(len(body))}
    data = head(url, method, {**framing, **(headers or {})}, path) + b"\r\n"
    if chunked:
        data += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in _parts(body)) + b"0\r\n\r\n"
    else:
        data += body
    with connect(url) as connection:
        connection.sendall(data)
        return receive(connection, method)


def _parts(body: bytes, size: int = 1000) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]
