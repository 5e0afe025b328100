"""What a capture says about the run it is of, as plain JSON without secrets."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from mcpdiag.config import ProxyConfig
from mcpdiag.config.masking import public_args

FORMAT: Final = "mcpdiag-capture"
FORMAT_VERSION: Final = 1
LIBRARIES: Final = (
    "anyio",
    "httptools",
    "memray",
    "msgspec",
    "numpy",
    "pandas",
    "psutil",
    "pyarrow",
    "uvloop",
)


def masked(config: ProxyConfig) -> dict[str, object]:
    """The settings as a capture may show them: tokens, headers and variables as stars, arguments and URLs masked."""
    shown: dict[str, object] = config.model_dump(mode="json", exclude={"upstreams"})
    shown["upstreams"] = {
        name: {
            **upstream.model_dump(mode="json"),
            "url": upstream.public_url,
            "args": public_args(upstream.args),
        }
        for name, upstream in config.upstreams.items()
    }
    return shown


def describe(started_ns: int, started_monotonic: float, about: Mapping[str, object]) -> dict[str, object]:
    """The part of `meta.json` that does not change during a run.

    Args:
        started_ns: when the recorder began, in ns since 1970.
        started_monotonic: the same moment on the monotonic clock, in seconds.
        about: what the recorder knows of the run, such as its masked settings.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "mcpdiag": _version("mcpdiag"),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
        "platform": {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "clock": {
            "started": datetime.fromtimestamp(started_ns / 1e9, UTC).isoformat(),
            "started_ns": started_ns,
            "started_monotonic_s": started_monotonic,
        },
        **about,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
