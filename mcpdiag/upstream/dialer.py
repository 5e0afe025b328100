"""How connections to an HTTP upstream are made: with which client, which TLS settings, through which proxy."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import UpstreamConfig
from mcpdiag.config.types import is_proxy_url
from mcpdiag.connection.base import HttpConnection
from mcpdiag.connection.dial import Origin
from mcpdiag.connection.http1 import Http1Connection
from mcpdiag.errors import ConnectTimeout, StartError
from mcpdiag.upstream.tls import tls_context

if TYPE_CHECKING:
    from mcpdiag.upstream.httpx_connection import HttpxConnection

_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
INSTALL = "pip install 'mcpdiag[httpx]'"


class Dialer:
    """Opens connections to the URL of one upstream.

    Attributes:
        name: the upstream's, for messages.
        origin: where they go.
        target: path and query of the URL.
        fixed: the lines of every request's head: `Host`, and the headers of the settings.
        sends_authorization: whether one of those is `Authorization`.
        tasks: owns the tasks of connections that have some; set it before the first `open`.

    Raises:
        StartError: a file of the TLS settings cannot be used, or a package that the settings need is missing.
    """

    def __init__(self, name: str, config: UpstreamConfig) -> None:
        assert config.url is not None
        self.name = name
        self.origin = Origin.from_url(config.url)
        self.target = target_of(config.url)
        own = [
            (key.lower().encode(), value.get_secret_value().encode()) for key, value in config.headers.items()
        ]
        self.sends_authorization = any(key == b"authorization" for key, _ in own)
        self.fixed = b"host: %b\r\n" % self.origin.host_header
        self.fixed += b"".join(b"%b: %b\r\n" % pair for pair in own)
        self.tasks: TaskGroup | None = None
        self._config = config
        self._ssl = tls_context(name, config)
        self._proxy: str | None = None
        if config.http_client == "httpx":
            self._proxy = _proxy_for(name, self.origin, config)
            _check_packages(name, config, self._proxy)

    def head(self, method: bytes, target: bytes, extra: bytes) -> bytes:
        """A request head; `extra` is further lines."""
        return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, target, self.fixed, extra)

    async def open(self) -> HttpConnection:
        """A new connection within `connect_timeout`.

        Raises:
            ConnectError: the message names host, port, the reason and the remedy.
            ConnectTimeout: it took longer.
        """
        config = self._config
        if config.http_client == "httpx":
            return await self._open_httpx()
        timeout = config.timeouts.connect_timeout
        with anyio.move_on_after(timeout):
            return await Http1Connection.open(
                self.origin, ssl_context=self._ssl, max_body_bytes=config.max_message_bytes
            )
        raise self.too_slow()

    def too_slow(self) -> ConnectTimeout:
        """The error of a connection that was not there within `connect_timeout`."""
        timeout = self._config.timeouts.connect_timeout
        return ConnectTimeout(
            f"the server '{self.name}' ({self._config.public_url}) did not accept a connection within {timeout:g} s "
            f"(connect_timeout); see whether it runs, or raise connect_timeout for '{self.name}'",
            data={"upstream": self.name, "phase": "connect", "limit_ms": round(timeout * 1000)},
        )

    async def _open_httpx(self) -> HttpxConnection:
        from mcpdiag.upstream.httpx_connection import HttpxConnection

        assert self.tasks is not None
        return await HttpxConnection.open(
            self.tasks,
            self.origin,
            ssl_context=self._ssl,
            http2=self._config.http2,
            proxy=self._proxy,
            connect_timeout=self._config.timeouts.connect_timeout,
            too_slow=self.too_slow,
            max_body_bytes=self._config.max_message_bytes,
        )


def target_of(url: str) -> bytes:
    """Path and query of a URL, as a request line has them.

    Raises:
        ValueError: a character in it cannot stand there.
    """
    parts = urlsplit(url)
    target = ((parts.path or "/") + (f"?{parts.query}" if parts.query else "")).encode()
    if not _TARGET.fullmatch(target):
        raise ValueError("a character that a request line cannot have")
    return target


def _proxy_for(name: str, origin: Origin, config: UpstreamConfig) -> str | None:
    """The URL of the forward proxy: of the settings, else of the environment."""
    if config.proxy is not None:
        return config.proxy.get_secret_value()
    if proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    proxies = getproxies_environment()
    kind = origin.scheme if proxies.get(origin.scheme) else "all"
    proxy = proxies.get(kind)
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"  # as curl reads `HTTP_PROXY=host:3128`
    if not is_proxy_url(proxy):
        raise StartError(
            f"the server '{name}': the variable {kind.upper()}_PROXY holds no http://, https:// or socks5:// URL; "
            "correct it, or give 'proxy'"
        )
    return proxy


def _check_packages(name: str, config: UpstreamConfig, proxy: str | None) -> None:
    """What is missing is said at the start, not at the first call."""
    needed = {"httpx": 'http_client = "httpx"'}
    if config.http2:
        needed["h2"] = "http2 = true"
    scheme = urlsplit(proxy).scheme if proxy else ""
    if scheme.startswith("socks"):
        needed["socksio"] = f"a {scheme}:// proxy"
    for package, reason in needed.items():
        if find_spec(package) is None:
            raise StartError(
                f"the server '{name}': {reason} needs the package {package}, which is not installed; {INSTALL}"
            )
