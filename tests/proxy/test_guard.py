"""Who may talk to the proxy: tables of Host, Origin and token, each row with what it must give."""

from __future__ import annotations

from typing import Any

import pytest

from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.errors import ClientError
from mcpdiag.proxy.guard import Guard

UPSTREAMS = {"up": UpstreamConfig(command="true")}
LOCAL = b"127.0.0.1:8808"


def guard(**settings: Any) -> Guard:
    return Guard(ProxyConfig(upstreams=UPSTREAMS, **settings))


def status_of(checked: Guard, host: bytes = LOCAL, origin: bytes = b"", authorization: bytes = b"") -> int:
    """200, or the status of the refusal."""
    try:
        checked.check(host, origin, authorization)
    except ClientError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"127.0.0.1:8808", 200),
        (b"127.0.0.1", 200),
        (b"127.0.0.2:8808", 200),  # an address: no name server can make it lead elsewhere
        (b"localhost:8808", 200),
        (b"LocalHost:8808", 200),
        (b"localhost:", 200),  # RFC 9110: the port may be empty
        (b"[::1]:8808", 200),
        (b"[::1]", 200),
        (b"[0:0:0:0:0:0:0:1]:8808", 200),
        (b"", 403),
        (b"evil.example", 403),
        (b"evil.example:8808", 403),
        (b"localhost.evil.example", 403),
        (b"127.0.0.1.evil.example", 403),
        (b"localhost@evil.example", 403),
        (b"evil.example@localhost", 403),
        (b"localhost/.evil.example", 403),
        (b"localhost#.evil.example", 403),
        (b"localhost:80:80", 403),
        (b"localhost evil", 403),
        (b"localhost\n", 403),
        (b"::1", 403),  # RFC 3986: an IPv6 address has brackets
        (b"[::1", 403),
        (b"[::1]x", 403),
        (b"[::]:8808", 403),
        (b"0.0.0.0:8808", 403),
        (b"192.168.0.1:8808", 403),
        (b"\xff\xfe", 403),
    ],
)
def test_on_loopback_only_loopback_hosts_pass(host: bytes, status: int) -> None:
    assert status_of(guard(), host) == status


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_the_own_address_passes_on_every_loopback_bind(bind: str) -> None:
    shown = f"[{bind}]" if ":" in bind else bind
    assert status_of(guard(host=bind), f"{shown}:8808".encode()) == 200


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("box.example", b"box.example", 200),
        ("box.example", b"box.example:8808", 200),  # without a port: any port
        ("Box.Example", b"bOX.example:1", 200),
        ("box.example:8808", b"box.example:8808", 200),
        ("box.example:8808", b"box.example:9999", 403),  # with a port: this port
        ("box.example:8808", b"box.example", 403),
        ("box.example", b"a.box.example", 403),
        ("2001:db8::1", b"[2001:db8::1]:8808", 200),
        ("[2001:db8::1]", b"[2001:DB8::1]:8808", 200),
        ("[2001:db8::1]:8808", b"[2001:db8::1]:8808", 200),
        ("[2001:db8::1]:8808", b"[2001:db8::1]:9999", 403),
        ("box.example", b"localhost:8808", 200),  # they add to loopback
    ],
)
def test_allowed_hosts_add_to_loopback(allowed: str, host: bytes, status: int) -> None:
    assert status_of(guard(allowed_hosts=(allowed,)), host) == status


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ((), b"anything.example", 200),
        ((), b"", 200),
        (("box.example",), b"box.example:8808", 200),
        (("box.example",), b"other.example", 403),
        (("box.example",), b"localhost", 403),  # loopback names mean nothing here
    ],
)
def test_an_open_bind_has_only_the_hosts_it_names(allowed: tuple[str, ...], host: bytes, status: int) -> None:
    assert status_of(guard(host="0.0.0.0", insecure=True, allowed_hosts=allowed), host) == status


def test_a_refused_host_stays_refused_and_an_accepted_one_accepted() -> None:
    """The cache of good hosts takes in no bad one, and it is bounded."""
    checked = guard(allowed_hosts=("box.example",))
    for number in range(300):
        assert status_of(checked, b"box.example:%d" % number) == 200
        assert status_of(checked, b"evil.example:%d" % number) == 403
    assert status_of(checked, b"box.example:299") == 200
    assert status_of(checked, b"evil.example:0") == 403
    assert len(checked._good_hosts) <= 100


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"", 200),  # not a browser
        (b"http://localhost", 200),
        (b"http://localhost:3000", 200),
        (b"https://localhost:3000", 200),
        (b"HTTP://LOCALHOST:3000", 200),
        (b"http://127.0.0.1:8808", 200),
        (b"http://[::1]:8808", 200),
        (b"http://localhost/", 200),
        (b"null", 403),
        (b"http://evil.example", 403),
        (b"http://localhost.evil.example", 403),
        (b"http://localhost@evil.example", 403),
        (b"http://evil.example/localhost", 403),
        (b"ftp://localhost", 403),
        (b"localhost", 403),
        (b"://localhost", 403),
        (b"http://", 403),
        (b"http://[", 403),  # what urllib cannot parse is no reason to fail
        (b"http://[::1", 403),
        (b"http://localhost:port", 403),
        (b"chrome-extension://abc", 403),
        (b"\xff", 403),
    ],
)
def test_on_loopback_only_loopback_origins_pass(origin: bytes, status: int) -> None:
    assert status_of(guard(), origin=origin) == status


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        ("https://app.example", b"https://app.example", 200),
        ("https://App.Example/", b"https://app.example", 200),
        ("https://app.example", b"http://app.example", 403),
        ("https://app.example", b"https://app.example:8443", 403),
        ("https://app.example", b"https://x.app.example", 403),
        ("chrome-extension://abc", b"chrome-extension://abc", 200),
        ("null", b"null", 200),
        ("*", b"https://anything.example", 200),
        ("https://app.example", b"http://localhost:3000", 200),  # they add to loopback
    ],
)
def test_allowed_origins_add_to_loopback(allowed: str, origin: bytes, status: int) -> None:
    assert status_of(guard(allowed_origins=(allowed,)), origin=origin) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"https://box.example", 200),  # the page came from here
        (b"http://Box.example", 200),
        (b"https://box.example:8443", 403),
        (b"https://evil.example", 403),
        (b"http://localhost", 403),
        (b"https://", 403),
        (b"null", 403),
    ],
)
def test_beyond_loopback_a_page_may_use_only_the_host_it_came_from(origin: bytes, status: int) -> None:
    checked = guard(host="0.0.0.0", insecure=True)
    assert status_of(checked, b"box.example", origin) == status


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (b"Bearer s3cret", 200),
        (b"bearer s3cret", 200),  # RFC 9110, 11.1: the scheme has no case
        (b"BEARER  s3cret", 200),
        (b"", 401),
        (b"Bearer", 401),
        (b"Bearer ", 401),
        (b"Bearer S3CRET", 401),
        (b"Bearer s3cre", 401),
        (b"Bearer s3cret2", 401),
        (b"s3cret", 401),
        (b"Basic s3cret", 401),
        (b"Bearers3cret", 401),
        (b"Bearer \xff", 401),
    ],
)
def test_only_the_token_itself_passes(authorization: bytes, status: int) -> None:
    assert status_of(guard(token="s3cret"), authorization=authorization) == status


def test_without_a_token_of_its_own_any_authorization_passes() -> None:
    """It is the client's, for the server behind."""
    assert status_of(guard(), authorization=b"Bearer whatever") == 200


def test_the_host_is_checked_before_the_token() -> None:
    """A rebound page must not be able to tell a good token from a bad one."""
    assert status_of(guard(token="s3cret"), b"evil.example", authorization=b"Bearer s3cret") == 403


@pytest.mark.parametrize(
    ("settings", "call", "thing", "remedy"),
    [
        ({}, {"host": b"evil.example"}, "evil.example", "allowed_hosts"),
        ({}, {"origin": b"http://evil.example"}, "http://evil.example", "allowed_origins"),
        ({"token": "s3cret"}, {}, "no token", "Authorization: Bearer"),
        ({"token": "s3cret"}, {"authorization": b"Bearer guess"}, "wrong token", "Authorization: Bearer"),
    ],
)
def test_a_refusal_names_the_thing_and_the_remedy_and_no_secret(
    settings: dict[str, Any], call: dict[str, bytes], thing: str, remedy: str
) -> None:
    with pytest.raises(ClientError) as caught:
        guard(**settings).check(**{"host": LOCAL, "origin": b"", "authorization": b"", **call})
    assert thing in caught.value.message
    assert remedy in caught.value.message
    assert "s3cret" not in caught.value.message
    assert "guess" not in caught.value.message


def test_a_missing_token_is_told_how_to_come() -> None:
    with pytest.raises(ClientError) as caught:
        guard(token="s3cret").check(LOCAL, b"", b"")
    assert caught.value.headers == {"www-authenticate": "Bearer"}


def test_a_body_that_is_too_large_names_its_size_the_limit_and_the_knob() -> None:
    error = guard(max_body_bytes=2048).too_large(5000)
    assert error.status == 413
    for word in ("5000", "2048", "max_body_bytes"):
        assert word in error.message
