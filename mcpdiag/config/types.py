"""What a single setting may be: durations, counts, names, headers, URLs, and the words for what is wrong with one."""

from __future__ import annotations

import math
import os
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
)
from pydantic_core import PydanticCustomError

PoolMode = Literal["session", "request", "multiplex"]
HttpTransport = Literal["auto", "http", "sse"]
HttpClient = Literal["own", "httpx"]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
RESERVED_NAMES = frozenset({"mcp", "sse", "healthz", "readyz", "stats", "metrics", "frames"})
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h)?\s*")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, section 5.5: no line break, no control
_PROXY_HEADERS = frozenset({"connection", "content-length", "transfer-encoding"})
_PROXY_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})
_PACKAGE_RUNNERS = frozenset(
    {"npx", "npm", "pnpm", "pnpx", "yarn", "bun", "bunx", "deno", "uv", "uvx", "pipx", "docker", "podman"}
)
TOKEN = re.compile(r"[\x21-\x7e]+")
# What only one kind of server has, and where the kind is not enough, what else it takes.
ONLY_STDIO = ("args", "env", "cwd")
ONLY_HTTP = (
    "headers", "transport", "tls_ca", "tls_cert", "tls_key", "tls_verify", "http_client", "http2", "proxy",
)  # fmt: skip
ONLY_TLS = ("tls_ca", "tls_cert", "tls_key", "tls_verify", "http2")


def parse_duration(value: object) -> float:
    """Seconds from `30`, `0.5`, `"30"`, `"30s"`, `"500ms"`, `"5m"` or `"1h"`.

    Raises:
        ValueError: anything else, a negative number or one that is not finite.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < 1e300 else math.inf
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
    else:
        raise ValueError(f"{value!r} is not a duration; write seconds (30) or a number with ms, s, m or h")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{value!r} is not a duration; it must be finite and not negative")
    return seconds


def runs_a_package(command: str | None) -> bool:
    """Whether a program may download the server before it starts it, such as `npx`."""
    if command is None:
        return False
    program = re.split(r"[/\\]", command)[-1].lower()
    return program.removesuffix(".exe").removesuffix(".cmd") in _PACKAGE_RUNNERS


def rule(text: str, *fields: str) -> PydanticCustomError:
    """A broken rule, in words that `load` shows as they are.

    Args:
        text: what was found and what is allowed; never a secret.
        fields: the settings it is about, the one to name first.
    """
    return PydanticCustomError("rule", "{text}", {"text": text, "fields": fields})


def _not_a_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _for_a_process(value: str) -> str:
    if "\0" in value:
        raise rule("found a NUL character; allowed: text without one")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair
        raise rule("found a character that is not Unicode; allowed: Unicode text") from None
    return value


def env_name(value: str) -> str:
    if not value or "=" in value:
        raise rule("found a name that no variable can have; allowed: one that is not empty and has no '='")
    return _for_a_process(value)


def env_value(value: SecretStr) -> SecretStr:
    _for_a_process(value.get_secret_value())
    return value


def header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value):
        raise rule("found a name that no header can have; allowed: letters, digits and '-'")
    if value.lower() in _PROXY_HEADERS:
        raise rule("found a header that the proxy sets itself; remove it")
    return value


def header_value(value: SecretStr) -> SecretStr:
    if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
        raise rule("found a character that no header can carry; allowed: one line of Latin-1 text")
    return value


def is_proxy_url(url: str) -> bool:
    """Whether it names a forward proxy of a kind that httpx knows."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in _PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return fits and url.isprintable() and " " not in url


def proxy_url(value: SecretStr) -> SecretStr:
    if not is_proxy_url(value.get_secret_value()):
        raise rule("found something else than the URL of a proxy; allowed: http://, https:// or socks5://")
    return value


def _upstream_name(value: str) -> str:
    if value.lower() in RESERVED_NAMES:
        raise rule(f"found the name {value!r}, a path of the proxy itself; give the upstream another name")
    if not re.fullmatch(NAME_PATTERN, value) or value.endswith("\n"):
        better = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")[:64] or "server"
        raise rule(
            f"found the name {value[:80]!r}; allowed: letters, digits, '.', '_' and '-', "
            f"first a letter or digit, at most 64 characters, such as {better!r}"
        )
    return value


Seconds = Annotated[float, BeforeValidator(parse_duration)]
PositiveSeconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
Whole = Annotated[int, BeforeValidator(_not_a_boolean)]
Count = Annotated[Whole, Field(ge=1)]
Port = Annotated[Whole, Field(ge=0, le=65535)]
Text = Annotated[str, AfterValidator(_for_a_process)]
UpstreamName = Annotated[str, AfterValidator(_upstream_name)]
