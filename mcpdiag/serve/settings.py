"""Settings from plain Python values, and what is wrong with them before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.config.load import load
from mcpdiag.errors import StartError

Upstreams = Mapping[str, "str | Sequence[str] | Mapping[str, Any] | UpstreamConfig"]


def configure(upstreams: Upstreams, **settings: Any) -> ProxyConfig:
    """A ProxyConfig from plain Python values.

    Raises:
        ConfigError: one line for each mistake.
    """
    return load(
        upstreams={name: _fields(each) for name, each in upstreams.items()}, cli=settings, caller="Proxy"
    )


def _fields(upstream: str | Sequence[str] | Mapping[str, Any] | UpstreamConfig) -> Mapping[str, object]:
    if isinstance(upstream, UpstreamConfig):
        return upstream.model_dump(exclude_unset=True)
    if isinstance(upstream, Mapping):
        return upstream
    if isinstance(upstream, str):
        return {"url": upstream}
    return {"command": [*upstream]}


def needs_recording(config: ProxyConfig) -> list[str]:
    """The settings that say something of a recorder."""
    wanted = {
        "capture": config.capture is not None,
        "heap_every": config.heap_every is not None,
        "heap_upstream": any(each.heap_upstream for each in config.upstreams.values()),
    }
    return [name for name, given in wanted.items() if given]


def check_commands(config: ProxyConfig) -> None:
    """A program that does not exist is said at the start, not at the first call."""
    for name, upstream in config.upstreams.items():
        program = upstream.command
        if program is None or upstream.env.get("PATH") is not None or "/" in program:
            continue
        if shutil.which(program) is None:
            raise StartError(
                f"the server '{name}' cannot be started: there is no program {program!r} on PATH; "
                "install it or give its full path"
            )
