"""Every error mcpdiag raises, by who is to blame::

    McpDiagError
    ├── ConfigError            the operator's settings are wrong (exit code 2)
    ├── StartError             the proxy could not start (exit code 3)
    ├── AttachError            the proxy to look at cannot be reached
    ├── HeapError              a heap window or capture failed; the proxy goes on
    │   ├── HeapBusy           a memray tracker is active in this process already
    │   └── HeapUnavailable    there is no memray, or a command that cannot run under it
    ├── ClientError            the client's request is wrong; carries an HTTP status
    ├── UpstreamError          the server behind the proxy failed
    │   ├── ConnectError       it could not be reached or started
    │   ├── ConnectTimeout     it was not ready within `connect_timeout`
    │   ├── RequestTimeout     no first byte or message within `request_timeout`
    │   ├── ResponseTimeout    an answer fell silent for `response_timeout`
    │   ├── UpstreamClosed     it went away in the middle of an exchange
    │   └── UpstreamProtocolError   it said something that is not MCP
    └── CapacityError          the proxy's own limits
        ├── PoolTimeout        no connection within `acquire_timeout`
        ├── PoolQueueFull      `max_waiting` callers wait already
        ├── TooManySessions    `max_sessions` are open
        ├── ShuttingDown       the proxy is closing
        └── DeadlineExceeded   `deadline` over everything has passed

`type` is the snake-case value in error data, frames and metrics; `code` the JSON-RPC error code;
`status` the HTTP status where no JSON-RPC answer can carry the error (docs/errors.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
# Of the specification itself, since 2026-07-28 (basic/index, "Error Codes").
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022


class McpDiagError(Exception):
    """Base of every error in this package. `str(error)` is one line for a person."""

    type: ClassVar[str] = "internal"
    code: int = INTERNAL_ERROR
    status: int = 500

    def __init__(self, message: str, *, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = dict(data or {})

    def to_data(self) -> dict[str, Any]:
        """The `data` member of the JSON-RPC error: `type` and whatever else is known."""
        return {"type": self.type, **self.data}


class ConfigError(McpDiagError):
    """Settings are wrong. `problems` holds one line for each mistake."""

    type = "config"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StartError(McpDiagError):
    """The proxy could not start: a port in use, a command that does not exist."""

    type = "start"


class AttachError(McpDiagError):
    """The proxy whose samples are wanted cannot be reached, or refuses."""

    type = "attach"


class HeapError(McpDiagError):
    """A heap window or a capture of memray failed. The proxy is not affected."""

    type = "heap"


class HeapBusy(HeapError):
    """A memray tracker is active in this process already, and there can be one."""

    type = "heap_busy"


class HeapUnavailable(HeapError):
    """memray is not installed or does not load here, or a command is none that can run under it."""

    type = "heap_unavailable"


class ClientError(McpDiagError):
    """The client's request cannot be served as it is."""

    type = "client"
    code = INVALID_REQUEST
    status = 400

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: int = INVALID_REQUEST,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, data=data)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


class UpstreamError(McpDiagError):
    """The server behind the proxy failed."""

    type = "upstream"
    code = -32000
    status = 502


class ConnectError(UpstreamError):
    type = "connect_error"
    code = -32001


class ConnectTimeout(UpstreamError):
    type = "connect_timeout"
    code = -32002
    status = 504


class RequestTimeout(UpstreamError):
    type = "request_timeout"
    code = -32003
    status = 504


class ResponseTimeout(UpstreamError):
    type = "response_timeout"
    code = -32004
    status = 504


class UpstreamClosed(UpstreamError):
    type = "upstream_closed"
    code = -32005


class UpstreamProtocolError(UpstreamError):
    type = "upstream_protocol"
    code = -32006


class CapacityError(McpDiagError):
    """One of the proxy's own limits is reached; the message names the knob."""

    type = "capacity"
    code = -32010
    status = 503


class PoolTimeout(CapacityError):
    type = "pool_timeout"
    code = -32011


class PoolQueueFull(CapacityError):
    type = "pool_queue_full"
    code = -32012


class TooManySessions(CapacityError):
    type = "too_many_sessions"
    code = -32013


class ShuttingDown(CapacityError):
    type = "shutting_down"
    code = -32014


class DeadlineExceeded(CapacityError):
    type = "deadline_exceeded"
    code = -32015
    status = 504
