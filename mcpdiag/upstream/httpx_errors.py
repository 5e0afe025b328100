"""What goes wrong inside httpx, as our typed errors in the words of our own client (`connection/dial.py, http1.py`)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx

from mcpdiag.connection.dial import Origin, connect_trouble, tls_trouble, words
from mcpdiag.errors import ConnectError, UpstreamClosed, UpstreamError, UpstreamProtocolError

if TYPE_CHECKING:
    from mcpdiag.upstream.httpx_response import HttpxResponse

# What httpx says of a server that went away; every other protocol error is something that the server said.
_GONE = ("disconnected", "peer closed", "connection closed", "ConnectionTerminated", "StreamReset")


class Trouble:
    """Knows how far one request has come, and so whose fault it is.

    Args:
        origin: the server.
        proxy: the forward proxy on the way there.
    """

    def __init__(self, origin: Origin, proxy: Origin | None) -> None:
        self._origin = origin
        self._proxy = proxy
        self._step = ""

    def step(self, name: str) -> None:
        """httpcore begins or ends a step, such as `connection.start_tls.started`."""
        self._step = name.rpartition(".")[0]

    def explain(self, error: Exception, response: HttpxResponse) -> UpstreamError:
        """The typed error. It holds nothing of the request and nothing of the proxy's URL but host and port."""
        if isinstance(error, UpstreamError):
            return error
        if not response.sent:
            return self._no_way(error)
        if isinstance(error, httpx.ProtocolError):
            text = str(error)
            if any(sign in text for sign in _GONE):
                return self._gone("the server closed it", response)
            if "too long" in text:
                return response.connection.head_too_large()
            return self.switching() if "SWITCH_UPGRADE" in text else self._not_http(text)
        if isinstance(error, httpx.HTTPError):
            cause = _cause(error)
            why = words(cause) if isinstance(cause, OSError) else ""
            return self._gone(f"the server broke it ({why or 'the stream was closed'})", response)
        return self._not_http(f"{type(error).__name__}: {error}")

    def switching(self) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self._origin} answered 101 Switching Protocols to a plain request; "
            "check that 'url' names the MCP endpoint and not a WebSocket"
        )

    def _no_way(self, error: Exception) -> UpstreamError:
        """Connecting failed: to the server, to the proxy, or through it."""
        origin, proxy, cause = self._origin, self._proxy, _cause(error)
        failure = cause if isinstance(cause, OSError | ValueError) else OSError(str(cause))
        own_tls = proxy is None or not self._step.startswith("connection.")
        if self._step.endswith("start_tls"):
            where, text = (
                (origin, f"no TLS with {origin}") if own_tls else (proxy, f"no TLS with the proxy {proxy}")
            )
            assert where is not None
            return ConnectError(f"{text}: {tls_trouble(where, failure)}")
        if proxy is None:
            return ConnectError(f"cannot connect to {origin}: {connect_trouble(origin, failure)}")
        if self._step.endswith("connect_tcp") and isinstance(cause, OSError):
            return ConnectError(
                f"cannot connect to the proxy {proxy}: {connect_trouble(proxy, cause, 'proxy')}"
            )
        return ConnectError(
            f"the proxy {proxy} gives no way to {origin}: {error}; correct 'proxy', or see the proxy's log"
        )

    def _gone(self, what: str, response: HttpxResponse) -> UpstreamClosed:
        if not response.status:
            what += " without an answer"
        elif (declared := response.declared()) is None:
            what += f" after {response.body_bytes} bytes of an unfinished body"
        else:
            what += f" after {response.body_bytes} of {declared} bytes of the body"
        return response.connection.lost(what, response)

    def _not_http(self, text: str) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self._origin} does not speak HTTP as it should ({text}); check that 'url' names an HTTP server"
        )


def _cause(error: BaseException) -> BaseException:
    """The system's own error behind those that libraries made of it: one of TLS or names, else of a socket."""
    found = [*_behind(error)]
    for kind in (ssl.SSLError, socket.gaierror, OSError):
        for each in found:
            if isinstance(each, kind) and (kind is not OSError or each.errno is not None):
                return each
    return found[-1]


def _behind(error: BaseException) -> Iterator[BaseException]:
    yield error
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _behind(inner)
    following = error.__cause__ or error.__context__
    if following is not None:
        yield from _behind(following)
