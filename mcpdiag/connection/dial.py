"""How a connection comes to be: addresses, TCP, TLS, and the words for what goes wrong there.

`connection/http1.py` calls `dial` and waits for its socket through `readable`.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
from anyio import CancelScope, ClosedResourceError, wait_readable, wait_writable

from mcpdiag.errors import ConnectError

# RFC 8305, section 5: "Connection Attempt Delay".
ATTEMPT_DELAY: Final = 0.25
GOODBYE_TIMEOUT: Final = 2.0
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST_MISMATCH: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_UNKNOWN_CA: Final = frozenset({18, 19, 20, 21})  # X509_V_ERR_*: self-signed, or the issuer is not known


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens. `str(origin)` is `scheme://host:port`, the way errors name it."""

    scheme: str
    host: str
    port: int

    @classmethod
    def from_url(cls, url: str) -> Origin:
        """The origin of an absolute `http://` or `https://` URL.

        Raises:
            ValueError: it is not one.
        """
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise ValueError(f"{url!r} is not an http:// or https:// URL")
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
        return cls(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port)

    @property
    def host_header(self) -> bytes:
        """The value of `Host`: IPv6 in brackets, the scheme's default port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}").encode()

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


Address = tuple[socket.AddressFamily, Any]


async def dial(origin: Origin, ssl_context: ssl.SSLContext | None = None) -> socket.socket:
    """A connected non-blocking socket with TCP_NODELAY, after the TLS handshake if the scheme is https.

    Args:
        origin: the server.
        ssl_context: for https; default: the system's certificates. ALPN is set on it to http/1.1.

    Raises:
        ConnectError: the message names host, port, the reason and the remedy.
    """
    try:
        sock = await _race(origin)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        raise ConnectError(f"cannot connect to {origin}: {connect_trouble(origin, error)}") from error
    if origin.scheme == "https":
        try:
            sock = await _shake_hands(sock, ssl_context or _default_context(), origin.host)
        except (OSError, ValueError) as error:
            raise ConnectError(f"no TLS with {origin}: {tls_trouble(origin, error)}") from error
    return sock


async def _race(origin: Origin) -> socket.socket:
    """A TCP connection to the first address that takes one; the next is tried after 250 ms (RFC 8305)."""
    addresses = await _resolve(origin)
    if len(addresses) == 1:
        return await _connect(addresses[0])
    winner: socket.socket | None = None
    failures: list[OSError] = []

    async def attempt(address: Address, done: anyio.Event, scope: CancelScope) -> None:
        nonlocal winner
        try:
            sock = await _connect(address)
        except OSError as error:
            failures.append(error)
        else:
            if winner is None:
                winner = sock
                scope.cancel()
            else:
                sock.close()
        finally:
            done.set()

    try:
        async with anyio.create_task_group() as group:
            for address in addresses:
                done = anyio.Event()
                group.start_soon(attempt, address, done, group.cancel_scope)
                with anyio.move_on_after(ATTEMPT_DELAY):
                    await done.wait()
    except BaseException:
        if winner is not None:  # cancelled from outside in the moment it was found
            winner.close()
        raise
    if winner is None:
        raise failures[0]
    return winner


async def _resolve(origin: Origin) -> list[Address]:
    kind = {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}
    try:  # an address needs no thread
        found = socket.getaddrinfo(origin.host, origin.port, flags=socket.AI_NUMERICHOST, **kind)
    except socket.gaierror:
        return [(info[0], info[4]) for info in await anyio.getaddrinfo(origin.host, origin.port, **kind)]
    return [(info[0], info[4]) for info in found]


async def _connect(address: Address) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        # Head and body of a small request are one packet; Nagle would hold back the next for 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY):
            raise AssertionError("the system did not take TCP_NODELAY")
        error = sock.connect_ex(where)
        if error == errno.EINPROGRESS:
            await wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


@functools.cache
def _default_context() -> ssl.SSLContext:
    return ssl.create_default_context()  # reads all of the system's certificates: once, not once a connection


async def _shake_hands(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    context.set_alpn_protocols(["http/1.1"])
    try:
        tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        await _finish(tls, AnyReadable(tls), tls.do_handshake)
    except BaseException:
        tls.close()
        raise
    return tls


async def say_goodbye(tls: ssl.SSLSocket, readable: AnyReadable | AsyncioReadable) -> None:
    """Send close_notify and wait for the server's: RFC 9112, section 9.8."""
    with suppress(OSError, ValueError, ClosedResourceError):  # it has left already, or `force` closed it
        await _finish(tls, readable, tls.unwrap)


async def _finish(
    tls: ssl.SSLSocket, readable: AnyReadable | AsyncioReadable, step: Callable[[], object]
) -> None:
    while True:
        try:
            step()
        except ssl.SSLWantReadError:
            await readable.wait()
        except ssl.SSLWantWriteError:
            await wait_writable(tls)
        else:
            return


def connect_trouble(origin: Origin, error: OSError | ValueError, setting: str = "url") -> str:
    """The reason and the remedy; `setting` is where `origin` comes from."""
    if isinstance(error, (socket.gaierror, ValueError)):
        return f"the name {origin.host!r} was not found ({words(error)}); correct '{setting}' or the name service"
    match error.errno:
        case errno.ECONNREFUSED:
            return f"refused, nothing listens on port {origin.port}; start the server or correct '{setting}'"
        case errno.EMFILE | errno.ENFILE:
            return f"{words(error)} in the proxy; raise 'ulimit -n' or lower max_connections"
        case _:
            return f"{words(error)}; check '{setting}' and the network between the proxy and the server"


def tls_trouble(origin: Origin, error: OSError | ValueError) -> str:
    """The reason and the remedy."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message.rstrip(".")
        if error.verify_code in _HOST_MISMATCH:
            remedy = (
                f"the certificate is not for {origin.host!r}: correct the host in 'url' or the certificate"
            )
        elif error.verify_code in _UNKNOWN_CA:
            remedy = "its issuer is not trusted: name the issuer's certificate in tls_ca, or in SSL_CERT_FILE"
        else:
            remedy = "renew the server's certificate"
        return f"certificate problem ({reason}); {remedy}"
    if isinstance(error, ssl.SSLError) and error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
        return "the server does not speak TLS on this port; use http:// in 'url' or the port that does"
    return f"the handshake failed ({words(error)}); check the TLS settings and the log of the server"


def words(error: OSError | ValueError) -> str:
    """What the system says, without Python's decoration."""
    return getattr(error, "strerror", None) or str(error)


class AnyReadable:
    """Waits for a socket to become readable, on any loop."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def wait(self) -> None:
        await wait_readable(self._sock)

    def settle(self) -> None:
        """Every wait registers the socket anew."""

    def wake(self) -> None:
        """Nobody waits: on trio a request is sent by whoever waits afterwards."""

    woken = False

    def close(self) -> None:
        """anyio.notify_closing wakes the waiter."""


class AsyncioReadable:
    """The same on asyncio and uvloop, where the socket stays registered from one wait to the next.

    anyio registers and unregisters it for each: six system calls, half the time of an exchange.
    """

    __slots__ = ("_fd", "_loop", "_settled", "_waiter", "_watched")

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._fd = sock.fileno()
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._watched = False
        self._settled = False

    def settle(self) -> None:
        """An exchange ended well. An error of the socket calls `_wake` until the next one begins, so as long as it
        does not, the socket is registered still and the first wait need not see to it."""
        self._settled = True

    async def wait(self) -> None:
        if self._fd < 0:
            raise ClosedResourceError
        self._waiter = waiter = self._loop.create_future()
        if not (self._settled and self._watched):
            self._watch()
        self._settled = False
        try:
            await waiter
        finally:
            self._waiter = None

    def _watch(self) -> None:
        self._watched = True
        try:  # free of system calls if it is registered still
            self._loop.add_reader(self._fd, self._wake)
        except RuntimeError:  # uvloop closed its handle at an error of the socket, but has not forgotten it
            self._loop.remove_reader(self._fd)
            self._loop.add_reader(self._fd, self._wake)

    @property
    def woken(self) -> bool:
        """Whether there was something to read, and whoever waits for it has not run since."""
        return self._waiter is not None and self._waiter.done()

    def wake(self) -> None:
        """Whoever waits goes on, if somebody does."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._unwatch()  # nobody reads now, and what there is to read would wake us for ever
        else:
            waiter.set_result(None)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def close(self) -> None:
        self._unwatch()
        self._fd = -1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ClosedResourceError())


def readable(sock: socket.socket) -> AnyReadable | AsyncioReadable:
    try:
        return AsyncioReadable(sock, asyncio.get_running_loop())
    except RuntimeError:  # trio
        return AnyReadable(sock)
