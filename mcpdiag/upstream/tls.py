"""The TLS settings of an HTTP upstream as an `ssl.SSLContext`."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from mcpdiag.config import UpstreamConfig
from mcpdiag.errors import StartError

log = logging.getLogger("mcpdiag.upstream")


def tls_context(name: str, config: UpstreamConfig) -> ssl.SSLContext | None:
    """The context for the connections of an upstream; None if its URL is not https.

    Args:
        name: the upstream's, for messages.
        config: its `tls_ca`, `tls_cert`, `tls_key` and `tls_verify`.

    Raises:
        StartError: a file cannot be read, or does not hold what it should.
    """
    if config.url is None or not config.url.lower().startswith("https:"):
        return None
    if config.tls_ca is None:
        context = ssl.create_default_context()
    else:
        try:
            context = ssl.create_default_context(cafile=config.tls_ca)
        except (OSError, ValueError) as error:
            raise _unusable(name, "tls_ca", config.tls_ca, error, "PEM certificates") from None
    if config.tls_cert is not None:
        _show_who_we_are(context, name, config.tls_cert, config.tls_key)
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        log.warning(
            "the certificate of '%s' (%s) is not checked (tls_verify = false): anybody on the way can read and "
            "change what is said; give its issuer in tls_ca instead",
            name,
            config.public_url,
        )
    return context


def _show_who_we_are(context: ssl.SSLContext, name: str, cert: Path, key: Path | None) -> None:
    try:
        # Without a password here, OpenSSL would ask for one on the terminal and wait.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(
                f"the server '{name}': the key in {key or cert} is not that of the certificate in {cert}; "
                "give the two that belong together in tls_cert and tls_key"
            ) from None
        # OpenSSL does not tell which of the two files it means.
        if key is None:
            wanted = "a PEM certificate and its key without a password"
            raise _unusable(name, "tls_cert", cert, error, wanted) from None
        if not _holds(cert, b"CERTIFICATE"):
            raise _unusable(name, "tls_cert", cert, error, "a PEM certificate") from None
        raise _unusable(name, "tls_key", key, error, "a PEM key without a password") from None


def _holds(path: Path, what: bytes) -> bool:
    try:
        return b"-----BEGIN " + what in path.read_bytes()
    except OSError:
        return False


def _unusable(name: str, setting: str, path: Path, error: Exception, wanted: str) -> StartError:
    why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return StartError(
        f"the server '{name}': {setting} names {path}, which cannot be used ({why}); it needs {wanted}"
    )
