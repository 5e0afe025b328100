"""Who may talk to the proxy: Host, Origin, bearer token, body size. Refuses with a ClientError."""

from __future__ import annotations

import hmac
import re
from ipaddress import ip_address

from mcpdiag.config import ProxyConfig
from mcpdiag.errors import ClientError

# The authority of a URL without user and password, which neither Host nor Origin can have (RFC 9110, 7.2).
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/?#@\\\[\]]+))(?::[0-9]*)?")


class Guard:
    """Checks made before anything is read of a request.

    On a loopback bind only loopback names are accepted as Host and Origin, which stops DNS rebinding
    (specification 2025-11-25, basic/transports, Security Warning); `allowed_hosts` and `allowed_origins` add to them.
    """

    def __init__(self, config: ProxyConfig) -> None:
        self._loopback = config.is_loopback
        self._hosts = frozenset(_unbracketed(host.lower()) for host in config.allowed_hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in config.allowed_origins)
        token = config.token.get_secret_value() if config.token is not None else ""
        self.token = f"Bearer {token}".encode() if token else b""  # the Authorization to expect, or empty
        self.max_body_bytes = config.max_body_bytes
        self._good_hosts: set[bytes] = set()  # a cache: a proxy sees few different ones

    def check(self, host: bytes, origin: bytes, authorization: bytes) -> None:
        """
        Raises:
            ClientError: 403 for a Host or Origin that is not allowed, 401 for a missing or wrong token.
        """
        if host not in self._good_hosts:
            self._check_host(host)
        if origin:
            self.check_origin(origin, host)
        if self.token and not (
            hmac.compare_digest(authorization, self.token)
            or hmac.compare_digest(_as_bearer(authorization), self.token)
        ):
            what = "a wrong token" if authorization else "no token"
            raise ClientError(
                f"{what}: send the proxy's token as 'Authorization: Bearer ...'",
                status=401,
                headers={"www-authenticate": "Bearer"},
            )

    def _check_host(self, host: bytes) -> None:
        full = host.decode("latin-1").lower()
        name = _name_in(full)
        allowed = name in self._hosts or full in self._hosts or (self._loopback and _is_loopback(name))
        if (self._loopback or self._hosts) and not (name and allowed):
            raise ClientError(
                f"Host {full!r} is not allowed; use localhost, or start the proxy with it in allowed_hosts",
                status=403,
            )
        if len(self._good_hosts) < 100:
            self._good_hosts.add(host)

    def check_origin(self, origin: bytes, host: bytes) -> None:
        """
        Raises:
            ClientError: 403, if a browser page of that origin may not use the proxy.
        """
        text = origin.decode("latin-1").lower().rstrip("/")
        if text in self._origins or "*" in self._origins:
            return
        scheme, _, authority = text.partition("://")
        if self._loopback and scheme in {"http", "https"} and _is_loopback(_name_in(authority)):
            return
        if not self._loopback and authority and authority == host.decode("latin-1").lower():
            return
        raise ClientError(
            f"Origin {text!r} is not allowed; start the proxy with it in allowed_origins", status=403
        )

    def too_large(self, size: int) -> ClientError:
        """The 413 for a body of `size` bytes or more."""
        return ClientError(
            f"the body has {size} bytes or more, and {self.max_body_bytes} are allowed; send less, or raise "
            "max_body_bytes",
            status=413,
        )


def _name_in(authority: str) -> str:
    """The host name or address without brackets and port; empty for what is no authority."""
    match = _AUTHORITY.fullmatch(authority)
    return (match[1] or match[2]) if match else ""


def _unbracketed(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _is_loopback(name: str) -> bool:
    """Whether no name server has a say in where `name` leads, and it is here."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _as_bearer(authorization: bytes) -> bytes:
    """The header with its scheme written as we write it: it has no case (RFC 9110, 11.1)."""
    scheme, _, token = authorization.partition(b" ")
    return b"Bearer " + token.strip() if scheme.lower() == b"bearer" else authorization
