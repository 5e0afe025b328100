"""TLS settings of an HTTP upstream, against real TLS servers."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcpdiag.config import UpstreamConfig
from mcpdiag.errors import StartError
from mcpdiag.upstream.tls import tls_context
from tests.proxy.client import UVLOOP, Client, proxied
from tests.servers.http_faults import HttpFaults
from tests.upstream.certificates import Files

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


LOCKED = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIH0MF8GCSqGSIb3DQEFDTBSMDEGCSqGSIb3DQEFDDAkBBDBukep9+LToDeR/dnn
1sIvAgIIADAMBggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQok30F8AWtBouq1qH
VqaHrQSBkBmVEytVQLlhechD1/liwmiuAPLZIp/oD0I8eMZz9OXxgwoQd8sXGVpv
6Cjd+HuU69JLUkd8799zPiNPvGSMXWB28V4B76oOEShWT8dr3NVV9M4jqr8MYQHE
9iiGC///P1cm+p6LAxGOKsDV65zZMAJvtYljrk8Wqzz41osZLfIsqRMPUc9PhGZv
LnqSLcQpBw==
-----END ENCRYPTED PRIVATE KEY-----
"""  # a key under a password

both_clients = pytest.mark.parametrize("client", ["own", "httpx"])


@both_clients
async def test_tls_ca_is_trusted_instead_of_the_systems(files: Files, client: str) -> None:
    async with HttpFaults(files.server()) as server:
        upstream = {"url": server.url, "http_client": client, "tls_ca": str(files.ca)}
        async with proxied(upstream) as proxy, Client.session(proxy.url) as caller:
            assert await caller.say("echo", text="over TLS") == "over TLS"


@both_clients
async def test_an_unknown_issuer_is_told_with_the_setting_that_names_it(files: Files, client: str) -> None:
    async with (
        HttpFaults(files.server()) as server,
        proxied({"url": server.url, "http_client": client}) as proxy,
        Client.bare(proxy.url) as caller,
    ):
        answer = await caller.initialize()
        assert answer["error"]["data"]["type"] == "connect_error"
        assert (
            "its issuer is not trusted: name the issuer's certificate in tls_ca" in answer["error"]["message"]
        )
        assert not server.requests


@both_clients
async def test_with_tls_verify_off_any_certificate_will_do_and_it_is_said_once(
    files: Files, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mcpdiag"):
        async with HttpFaults(files.server()) as server:
            upstream = {"url": f"{server.url}?key=secret", "http_client": client, "tls_verify": False}
            async with proxied(upstream) as proxy, Client.session(proxy.url) as caller:
                assert await caller.say("echo", text="unchecked") == "unchecked"
    (record,) = [record for record in caplog.records if "is not checked" in record.getMessage()]
    assert "'up' (https://127.0.0.1" in record.getMessage()
    assert "tls_verify = false" in record.getMessage()
    assert "secret" not in record.getMessage()


@both_clients
@pytest.mark.parametrize("in_one_file", [True, False])
async def test_the_proxy_shows_its_certificate_to_a_server_that_asks(
    files: Files, client: str, in_one_file: bool
) -> None:
    own = {"tls_cert": files.both} if in_one_file else {"tls_cert": files.cert, "tls_key": files.key}
    async with HttpFaults(files.server(asks=True)) as server:
        upstream = {"url": server.url, "http_client": client, "tls_ca": files.ca, **own}
        async with proxied(upstream) as proxy, Client.session(proxy.url) as caller:
            assert await caller.say("echo", text="known") == "known"


@both_clients
async def test_without_a_certificate_such_a_server_is_a_typed_error(files: Files, client: str) -> None:
    async with HttpFaults(files.server(asks=True)) as server:
        upstream = {"url": server.url, "http_client": client, "tls_ca": files.ca}
        async with proxied(upstream) as proxy, Client.bare(proxy.url) as caller:
            answer = await caller.initialize()
            assert answer["error"]["data"]["type"] in {"upstream_closed", "connect_error"}
            assert "127.0.0.1" in answer["error"]["message"]


def _unusable(files: Files, folder: Path) -> dict[str, tuple[dict[str, Path], str]]:
    nonsense, empty, other = folder / "nonsense.pem", folder / "empty.pem", Files(folder)
    nonsense.write_text("-----BEGIN CERTIFICATE-----\nno base64\n-----END CERTIFICATE-----\n")
    empty.touch()
    locked = folder / "locked.pem"
    locked.write_text(LOCKED)
    return {
        "no file": ({"tls_ca": folder / "gone"}, "tls_ca names .*gone, which cannot be used"),
        "no PEM": ({"tls_ca": nonsense}, "tls_ca names .*nonsense.pem.* it needs PEM certificates"),
        "empty": ({"tls_ca": empty}, "tls_ca names .*empty.pem"),
        "a key for a CA": ({"tls_ca": files.key}, "tls_ca names .*key.pem"),
        "no key": ({"tls_cert": files.cert}, "tls_cert names .*cert.pem.* a PEM certificate and its key"),
        "no certificate": (
            {"tls_cert": files.key, "tls_key": files.key},
            "tls_cert names .*key.pem.* it needs a PEM certificate",
        ),
        "a key that is none": (
            {"tls_cert": files.cert, "tls_key": files.cert},
            "tls_key names .*cert.pem.* it needs a PEM key",
        ),
        "the key of another": (
            {"tls_cert": files.cert, "tls_key": other.key},
            "is not that of the certificate",
        ),
        "a key with a password": (
            {"tls_cert": other.cert, "tls_key": locked},
            "tls_key names .*locked.pem.* without a password",
        ),
    }


def test_a_file_that_cannot_be_used_is_one_line_that_names_it(files: Files, tmp_path: Path) -> None:
    for what, (settings, told) in _unusable(files, tmp_path).items():
        with pytest.raises(StartError, match=f"the server 'up': .*{told}") as caught:
            tls_context("up", UpstreamConfig.model_validate({"url": "https://127.0.0.1/mcp", **settings}))
        assert len(str(caught.value).splitlines()) == 1, what
        assert caught.value.__cause__ is None


def test_an_http_url_needs_no_context() -> None:
    assert tls_context("up", UpstreamConfig(url="http://127.0.0.1/mcp")) is None


def test_by_default_certificates_are_checked() -> None:
    context = tls_context("up", UpstreamConfig(url="HTTPS://127.0.0.1/mcp"))
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(("content", "code"), [(None, 2), ("no PEM", 3)])
def test_the_command_line_says_it_in_one_line(tmp_path: Path, content: str | None, code: int) -> None:
    """A missing file is a mistake in the configuration; one with the wrong content is found at the start."""
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    config = tmp_path / "mcpdiag.toml"
    config.write_text("port = 0\n[upstreams.up]\nurl = 'https://127.0.0.1:1/mcp'\ntls_ca = 'ca.pem'\n")
    found = subprocess.run(
        [sys.executable, "-m", "mcpdiag", "proxy", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert found.returncode == code
    assert "Traceback" not in found.stderr
    (line,) = found.stderr.splitlines()
    assert "tls_ca" in line
