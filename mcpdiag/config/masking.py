"""What may be shown of a URL or a command line that can hold a secret; reprs, mistakes and captures ask here."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
_LONG_SEGMENT = 20  # a path segment this long is likely a key: https://host/s/NmQ2ZjA1.../mcp
_CREDENTIALS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)
_QUERY = re.compile(r"[?#].*$", re.DOTALL)
_DEFAULT = re.compile(r":-[^{}]*\}")
_SENSITIVE = r"(?:token|secret|passw|passphrase|pwd|auth|bearer|credential|cookie|api.?key|access.?key|private.?key|header)"
_SECRET_FLAG = re.compile(rf"^-[^=:\s]*{_SENSITIVE}[^=:\s]*$", re.IGNORECASE)
_SECRET_VALUE = re.compile(rf"""({_SENSITIVE}[\w.-]*["']?\s*[=:\s]\s*).+""", re.IGNORECASE | re.DOTALL)
_KNOWN_KEY = re.compile(r"^(?:sk-|gh[a-z]_|github_pat_|glpat-|xox[a-z]-|eyJ)\S{8,}$")


def public_url(url: str) -> str:
    """The URL without user, password, query, and path segments long enough to be a key.

    Of a URL that still has its `${VAR:-default}`s, the names stay and the defaults go.
    """
    text = _DEFAULT.sub(f":-{MASK}}}", url)
    text = _CREDENTIALS.sub(rf"\1{MASK}@", text)
    text = _QUERY.sub(f"?{MASK}", text)
    scheme, separator, rest = text.rpartition("://")
    host, *path = rest.split("/")
    return scheme + separator + "/".join([host, *map(_short_segment, path)])


def public_args(args: Iterable[str]) -> list[str]:
    """The arguments of a program without what looks like a secret in them.

    Masked are the value after a flag such as `--token`, what follows `API_KEY=` or `Authorization:`,
    keys with a known prefix (`sk-`, `ghp_`, ...), and the secret parts of URLs. It is a net with holes:
    a secret belongs into `env`, which is never shown.
    """
    public: list[str] = []
    after_secret_flag = False
    for arg in args:
        if after_secret_flag or _KNOWN_KEY.match(arg):
            public.append(MASK)
        else:
            text = _SECRET_VALUE.sub(rf"\1{MASK}", arg)
            public.append(public_url(text) if "://" in text else text)
        after_secret_flag = bool(_SECRET_FLAG.match(arg))
    return public


def _short_segment(segment: str) -> str:
    return MASK if len(segment) >= _LONG_SEGMENT and not segment.startswith("${") else segment
