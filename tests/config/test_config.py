"""The settings as values: what each type accepts, refuses and shows."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from mcpdiag.config import PoolLimits, ProxyConfig, Timeouts, UpstreamConfig
from mcpdiag.config.masking import public_args, public_url
from mcpdiag.config.types import RESERVED_NAMES, parse_duration

UPSTREAMS = {"demo": {"command": "demo-server"}}


def proxy(**settings: Any) -> ProxyConfig:
    return ProxyConfig.model_validate({"upstreams": UPSTREAMS} | settings)


def upstream(**settings: Any) -> UpstreamConfig:
    return UpstreamConfig.model_validate(settings)


class TestDuration:
    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            (30, 30.0),
            (0.5, 0.5),
            ("30", 30.0),
            ("30s", 30.0),
            ("500ms", 0.5),
            ("5m", 300.0),
            ("1h", 3600.0),
            ("1.5 m", 90.0),
            (" 2s ", 2.0),
            (0, 0.0),
        ],
    )
    def test_a_number_is_seconds_and_a_text_may_have_a_unit(self, written: object, seconds: float) -> None:
        assert parse_duration(written) == pytest.approx(seconds)

    @pytest.mark.parametrize(
        "written",
        [
            "soon",
            "",
            "5 days",
            "-1s",
            "1e3",
            "5s\n\n5",
            "٣s",
            -1,
            math.nan,
            math.inf,
            10**400,
            "9" * 400,
            True,
            None,
            [],
            {},
        ],
    )
    def test_anything_else_is_refused(self, written: object) -> None:
        with pytest.raises(ValueError, match="is not a duration"):
            parse_duration(written)

    @given(st.integers(min_value=0, max_value=10**9), st.sampled_from([("ms", 1000), ("s", 1), ("", 1)]))
    def test_a_text_with_a_unit_reads_back_as_the_number_it_was_made_of(
        self, count: int, unit: tuple[str, int]
    ) -> None:
        name, per_second = unit
        assert round(parse_duration(f"{count}{name}") * per_second) == count

    @given(st.floats(min_value=0, max_value=1e9))
    def test_every_number_of_seconds_round_trips(self, seconds: float) -> None:
        assert parse_duration(seconds) == seconds
        assert parse_duration(f"{seconds:.9f}s") == pytest.approx(seconds, abs=1e-9)
        assert parse_duration(f"{seconds / 60:.12f}m") == pytest.approx(seconds, abs=1e-6)
        assert parse_duration(f"{seconds / 3600:.15f}h") == pytest.approx(seconds, abs=1e-6)


class TestDefaults:
    def test_the_timeouts_are_those_of_the_design(self) -> None:
        timeouts = Timeouts()
        limits = (timeouts.acquire_timeout, timeouts.connect_timeout, timeouts.request_timeout)
        assert limits == (5.0, 10.0, 60.0)
        assert (timeouts.response_timeout, timeouts.deadline) == (60.0, 300.0)

    def test_settings_cannot_be_changed_after_they_are_checked(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            Timeouts().deadline = 1.0

    def test_a_boolean_is_no_number(self) -> None:
        with pytest.raises(ValidationError):
            PoolLimits.model_validate({"max_connections": True})

    def test_min_connections_may_not_exceed_max_connections(self) -> None:
        assert PoolLimits(min_connections=3, max_connections=3).min_connections == 3
        with pytest.raises(ValidationError, match=r"found 4, above max_connections \(3\)"):
            PoolLimits(min_connections=4, max_connections=3)


class TestUpstream:
    def test_a_command_makes_it_stdio_and_a_url_makes_it_http(self) -> None:
        stdio, http = upstream(command="a", args=["b"]), upstream(url="http://127.0.0.1:3000/mcp")
        assert (stdio.kind, stdio.command_line) == ("stdio", ("a", "b"))
        assert (http.kind, http.command_line) == ("http", ())

    @pytest.mark.parametrize(
        ("command", "seconds"),
        [
            ("npx", 60), ("/usr/local/bin/uvx", 60), (r"C:\Program Files\nodejs\npx.cmd", 60), ("docker", 60),
            ("node", 10), ("npx-like", 10), ("/opt/npx/server", 10),
        ],
    )  # fmt: skip
    def test_a_command_that_may_download_first_has_a_minute_to_start(
        self, command: str, seconds: float
    ) -> None:
        assert upstream(command=command).timeouts == Timeouts(connect_timeout=seconds)
        assert upstream(command=command, timeouts={"deadline": 20}).timeouts.connect_timeout == seconds
        for chosen in (3, 10):
            assert (
                upstream(command=command, timeouts={"connect_timeout": chosen}).timeouts.connect_timeout
                == chosen
            )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "found neither command nor url"),
            ({"command": "a", "url": "http://h"}, "found both command and url"),
            ({"command": "a", "headers": {"A": "b"}}, "found it without 'url'"),
            ({"url": "http://h", "args": ["a"]}, "found it without 'command'"),
            ({"url": "http://h", "env": {"A": "b"}}, "found it without 'command'"),
            ({"url": "http://h", "cwd": "/"}, "found it without 'command'"),
            ({"command": " "}, "the command is empty"),
            ({"command": "a\0"}, "NUL"),
            ({"command": "a", "args": ["\0"]}, "NUL"),
            ({"command": "a", "env": {"A": "\0"}}, "NUL"),
            ({"command": "a", "env": {"A\0": "x"}}, "NUL"),
            ({"command": "a", "env": {"A": "\ud800"}}, "a character that is not Unicode"),
            ({"command": "a", "env": {"A=B": "x"}}, "a name that no variable can have"),
            ({"command": "a", "env": {"": "x"}}, "a name that no variable can have"),
            ({"url": "http://h", "headers": {"a b": "x"}}, "a name that no header can have"),
            ({"url": "http://h", "headers": {"Content-Length": "1"}}, "the proxy sets itself"),
            ({"url": "http://h", "headers": {"A": "x\r\nB: y"}}, "a character that no header can carry"),
            ({"url": "http://h", "headers": {"A": "\u20ac"}}, "a character that no header can carry"),
        ],
    )
    def test_what_cannot_work_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            upstream(**settings)

    @pytest.mark.parametrize(
        "url", ["http://h", "https://h:8443/mcp?x=1", "http://[::1]:3000/mcp", "HTTP://h/"]
    )
    def test_a_url_is_kept_as_it_is(self, url: str) -> None:
        assert upstream(url=url).url == url

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "h:80",
            "ftp://h",
            "http://",
            "http://h:x",
            "http://h:0",
            "http://[::1",
            "http://h/\n",
            "http://a b/",
        ],
    )
    def test_what_is_no_http_url_is_refused(self, url: str) -> None:
        with pytest.raises(ValidationError, match="is not an http:// or https:// URL"):
            upstream(url=url)

    def test_a_password_in_a_url_is_refused_without_showing_it(self) -> None:
        with pytest.raises(ValidationError, match="put an Authorization header") as caught:
            upstream(url="http://me:hunter2@h/")
        assert "hunter2" not in str(caught.value)


class TestProxy:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LocalHost"])
    def test_a_loopback_host_needs_no_token(self, host: str) -> None:
        assert proxy(host=host).is_loopback

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "example.org", "127.example.org", "10.0.0.1"])
    def test_any_other_host_needs_a_token_or_the_word_insecure(self, host: str) -> None:
        with pytest.raises(ValidationError, match="give a token, or --insecure"):
            proxy(host=host)
        assert proxy(host=host, token="t").host == proxy(host=host, insecure=True).host == host

    @pytest.mark.parametrize("token", ["", " ", "two words", "line\n", "\u20ac"])
    def test_a_token_that_no_client_could_send_is_refused(self, token: str) -> None:
        with pytest.raises(ValidationError, match="token"):
            proxy(token=token)

    def test_the_two_ports_differ_unless_the_system_chooses_them(self) -> None:
        with pytest.raises(ValidationError, match="give the two different ports"):
            proxy(port=9000, admin_port=9000)
        assert proxy(port=0, admin_port=0).admin_port == 0

    @pytest.mark.parametrize("name", [*sorted(RESERVED_NAMES), "MCP"])
    def test_a_path_of_the_proxy_is_no_name(self, name: str) -> None:
        with pytest.raises(ValidationError, match="give the upstream another name"):
            proxy(upstreams={name: {"command": "a"}})

    @pytest.mark.parametrize("name", ["", "-a", "my server", "a/b", "a\n", "x" * 65])
    def test_a_name_fits_into_a_path(self, name: str) -> None:
        with pytest.raises(ValidationError, match="allowed: letters, digits"):
            proxy(upstreams={name: {"command": "a"}})

    def test_there_is_at_least_one_upstream(self) -> None:
        with pytest.raises(ValidationError):
            proxy(upstreams={})


class TestSecrets:
    def test_a_repr_shows_no_secret(self) -> None:
        config = proxy(
            token="hunter2",
            upstreams={
                "a": {"command": "x", "args": ["--token", "hunter2", "-v"], "env": {"KEY": "hunter2"}},
                "b": {"url": "http://h/mcp?key=hunter2", "headers": {"Authorization": "hunter2"}},
            },
        )
        for text in (repr(config), str(config), repr(config.upstreams["a"]), repr(config.upstreams["b"])):
            assert "hunter2" not in text
        assert "'-v'" in repr(config)
        assert "http://h/mcp?***" in repr(config)
        assert config.token == SecretStr("hunter2")

    def test_a_validation_error_shows_no_value_beside_the_wrong_one(self) -> None:
        with pytest.raises(ValidationError) as caught:
            upstream(command="a", url="http://h", env={"KEY": "hunter2"}, headers={"A": "hunter2"})
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(caught.value)

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://h/mcp", "https://h/mcp"),
            ("https://h:8443/a/b?key=hunter2", "https://h:8443/a/b?***"),
            ("https://h/a#hunter2", "https://h/a?***"),
            ("https://me:hunter2@h/a", "https://***@h/a"),
            ("https://me:p@hunter2@h/a", "https://***@h/a"),
            ("me:hunter2@h/a", "***@h/a"),
            ("https://h/s/hunter2hunter2hunter2/mcp", "https://h/s/***/mcp"),
            ("https://h/${KEY}/mcp", "https://h/${KEY}/mcp"),
            ("https://h/${KEY:-hunter2}/mcp", "https://h/${KEY:-***}/mcp"),
        ],
    )
    def test_a_url_is_shown_without_what_may_be_secret(self, url: str, shown: str) -> None:
        assert public_url(url) == shown

    @pytest.mark.parametrize(
        ("args", "shown"),
        [
            (["-y", "server", "--port", "80"], ["-y", "server", "--port", "80"]),
            (["--api-key", "hunter2", "x"], ["--api-key", "***", "x"]),
            (["--api-key=hunter2"], ["--api-key=***"]),
            (["--header", "X: hunter2"], ["--header", "***"]),
            (["-H", "Authorization: Bearer hunter2"], ["-H", "Authorization: ***"]),
            (["-e", "GITHUB_TOKEN=hunter2"], ["-e", "GITHUB_TOKEN=***"]),
            (["sh", "-c", "SECRET=hunter2 run"], ["sh", "-c", "SECRET=***"]),
            (['{"password": "hunter2"}'], ['{"password": ***']),
            (["postgresql://me:hunter2@h/db"], ["postgresql://***@h/db"]),
            (["sk-hunter2hunter2"], ["***"]),
        ],
    )
    def test_arguments_are_shown_without_what_looks_secret(self, args: list[str], shown: list[str]) -> None:
        assert public_args(args) == shown
