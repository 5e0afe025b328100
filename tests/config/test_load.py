"""Reading the settings: sources, their strength, expansion, and the wording of every mistake."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from mcpdiag.config import PoolLimits, ProxyConfig, ReconnectPolicy, Timeouts, UpstreamConfig
from mcpdiag.config.load import load, to_public
from mcpdiag.config.mistakes import SETTINGS, UPSTREAM, found, leaves
from mcpdiag.errors import ConfigError

DOC = Path(__file__).parents[2] / "docs" / "configuration.md"
DEMO = '[upstreams.demo]\ncommand = "demo-server"\n'
DURATION = "seconds (30) or a number with ms, s, m or h, above 0"

KEYS = st.text(max_size=3) | st.sampled_from([*UPSTREAM, *SETTINGS, "*", "type", "disabled", "[key]"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
CONTENT = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=3,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests name their files without a path, so that mistakes name them so too."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def servers(servers: object, name: str = "servers.json", key: str = "mcpServers") -> Path:
    return write(name, json.dumps({key: servers}))


def read(*paths: Path, environ: Mapping[str, str] | None = None, **others: Any) -> ProxyConfig:
    return load(*paths, environ=environ or {}, **others)


def problems(*paths: Path, environ: Mapping[str, str] | None = None, **others: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*paths, environ=environ or {}, **others)
    assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)
    return caught.value.problems


class TestToml:
    def test_settings_of_every_level_arrive(self) -> None:
        config = read(
            write(
                "a.toml",
                """
                port = 9000
                [timeouts]
                deadline = "2m"
                [pool]
                max_connections = 20
                [upstreams.a]
                command = "program"
                args = ["one"]
                env = { KEY = "value" }
                pool_mode = "request"
                retries = 2
                [upstreams.a.timeouts]
                request_timeout = "500ms"
                [upstreams.a.pool]
                max_connections = 3
                [upstreams.b]
                url = "http://h/mcp"
                headers = { Authorization = "Bearer x" }
                """,
            )
        )
        a, b = config.upstreams["a"], config.upstreams["b"]
        assert config.port == 9000
        assert (a.command_line, a.env["KEY"].get_secret_value(), a.pool_mode) == (
            ("program", "one"),
            "value",
            "request",
        )
        assert (a.timeouts.deadline, a.timeouts.request_timeout, a.pool.max_connections) == (120.0, 0.5, 3)
        assert (b.timeouts.deadline, b.timeouts.request_timeout, b.pool.max_connections) == (120.0, 60.0, 20)
        assert (a.retries, b.retries) == (2, 0)
        assert b.headers["Authorization"].get_secret_value() == "Bearer x"

    def test_a_command_list_is_the_program_and_its_first_arguments(self) -> None:
        path = write("a.toml", '[upstreams.a]\ncommand = ["npx", "-y"]\nargs = ["server"]')
        assert read(path).upstreams["a"].command_line == ("npx", "-y", "server")

    @pytest.mark.parametrize("field", ["pool_mode", "retries", "close_timeout", "max_message_bytes"])
    def test_what_is_not_about_one_server_may_be_a_default_for_all(self, field: str) -> None:
        value: dict[str, object] = {
            "pool_mode": "multiplex",
            "retries": 3,
            "close_timeout": 9.0,
            "max_message_bytes": 4096,
        }
        config = read(write("a.toml", f"{field} = {json.dumps(value[field])}\n{DEMO}"))
        assert getattr(config.upstreams["demo"], field) == value[field]

    def test_a_byte_order_mark_is_no_part_of_the_file(self) -> None:
        assert read(write("a.toml", b"\xef\xbb\xbf" + DEMO.encode())).upstreams.keys() == {"demo"}


class TestMcpServers:
    @pytest.mark.parametrize("key", ["mcpServers", "servers"])
    def test_both_spellings_of_the_key_are_read(self, key: str) -> None:
        config = read(servers({"a": {"command": "x", "args": ["y"]}, "b": {"url": "http://h"}}, key=key))
        assert {name: upstream.kind for name, upstream in config.upstreams.items()} == {
            "a": "stdio",
            "b": "http",
        }

    @pytest.mark.parametrize(
        "keys",
        [
            {"type": "stdio"},
            {"transport": "STDIO"},
            {"type": "http", "transport": "streamable-http"},
            {"type": "streamableHttp"},
            {"disabled": False, "autoApprove": ["a"], "alwaysAllow": [], "description": "x", "timeout": 60},
            {"gallery": True, "trust": "all", "cwd": None, "env": None, "startup_timeout_sec": 5},
        ],
    )
    def test_keys_that_clients_add_are_ignored(self, keys: dict[str, object]) -> None:
        assert read(servers({"a": {"command": "x", **keys}})).upstreams["a"] == UpstreamConfig(command="x")

    def test_other_parts_of_a_clients_file_are_ignored(self) -> None:
        text = json.dumps({"inputs": [], "theme": "dark", "mcpServers": {"a": {"command": "x"}}})
        assert read(write("a.json", text)).upstreams.keys() == {"a"}

    def test_a_disabled_server_is_passed_over_with_its_mistakes(self) -> None:
        path = servers({"off": {"disabled": True, "type": "sse", "url": 5}, "on": {"command": "x"}})
        assert read(path).upstreams.keys() == {"on"}

    def test_a_server_may_override_every_timeout_and_pool_limit(self) -> None:
        own = {"pool_mode": "request", "timeouts": {"deadline": "9s"}, "pool": {"max_waiting": 7}}
        upstream = read(servers({"a": {"command": "x", **own}})).upstreams["a"]
        assert (upstream.pool_mode, upstream.timeouts.deadline, upstream.pool.max_waiting) == (
            "request",
            9.0,
            7,
        )

    @pytest.mark.parametrize("key", ["type", "transport", "transportType"])
    @pytest.mark.parametrize(
        ("kind", "transport"),
        [("sse", "sse"), ("SSE", "sse"), ("http", "http"), ("streamable-http", "http"), ("stdio", "auto")],
    )
    def test_the_type_of_a_url_is_its_transport(self, key: str, kind: str, transport: str) -> None:
        upstream = read(servers({"a": {key: kind, "url": "http://h/sse"}})).upstreams["a"]
        assert (upstream.kind, upstream.transport) == ("http", transport)

    @pytest.mark.parametrize("key", ["type", "transport", "transportType"])
    def test_sse_beside_a_command_is_a_mistake_at_the_key_as_it_is_written(self, key: str) -> None:
        assert problems(servers({"a": {key: "sse", "command": "x"}})) == [
            f"servers.json: mcpServers.a.{key}: found it without 'url', which it goes with; remove it"
        ]

    def test_an_unknown_type_names_the_known_ones(self) -> None:
        assert problems(servers({"a": {"type": "ws", "command": "x"}})) == [
            'servers.json: mcpServers.a.type: found "ws"; allowed: "stdio", "http", "streamable-http" or "sse"'
        ]

    def test_a_file_of_variables_is_refused_because_it_would_not_be_read(self) -> None:
        (problem,) = problems(servers({"a": {"command": "x", "envFile": ".env"}}))
        assert problem.startswith(
            "servers.json: mcpServers.a.envFile: found a key that mcpdiag does not read"
        )

    @pytest.mark.parametrize(
        ("typo", "meant"), [("comand", "command"), ("arg", "args"), ("Headers", "headers")]
    )
    def test_a_key_that_looks_misspelled_is_one_mistake(self, typo: str, meant: str) -> None:
        server: dict[str, object] = {"url": "http://h"} if meant == "headers" else {"command": "x"}
        server.pop(meant, None)
        server[typo] = {"command": "x", "args": [], "headers": {}}[meant]
        assert problems(servers({"a": server})) == [
            f"servers.json: mcpServers.a.{typo}: found an unknown key; did you mean {meant}?"
        ]


class TestFolder:
    @pytest.mark.parametrize("name", ["deep/a.toml", "deep/a.json"])
    def test_cwd_is_relative_to_the_file(self, name: str, folder: Path) -> None:
        (folder / "deep" / "work").mkdir(parents=True)
        toml, server = '[upstreams.a]\ncommand = "x"\ncwd = "work"', {"a": {"command": "x", "cwd": "work"}}
        path = write(name, toml) if name.endswith("toml") else servers(server, name)
        cwd = read(path).upstreams["a"].cwd
        assert cwd is not None
        assert cwd.resolve() == (folder / "deep" / "work").resolve()

    def test_a_tilde_is_the_home_folder(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(folder))
        assert read(servers({"a": {"command": "x", "cwd": "~"}})).upstreams["a"].cwd == folder

    @pytest.mark.parametrize("cwd", ["nowhere", "~nobody-of-that-name/x", "x" * 5000, "a\0b"])
    def test_a_folder_that_does_not_exist_is_a_mistake(self, cwd: str) -> None:
        assert re.match(
            r"servers\.json: mcpServers\.a\.cwd: found .*; allowed: a folder that exists",
            problems(servers({"a": {"command": "x", "cwd": cwd}}))[0],
        )


class TestHttp:
    """What only an HTTP upstream has."""

    @pytest.mark.parametrize("name", ["deep/a.toml", "deep/a.json"])
    def test_paths_of_tls_are_relative_to_the_file(self, name: str, folder: Path) -> None:
        (folder / "deep").mkdir()
        files = {"tls_ca": "ca.pem", "tls_cert": "cert.pem", "tls_key": "key.pem"}
        for file in files.values():
            (folder / "deep" / file).touch()
        server = {"url": "https://h", **files}
        lines = "".join(f"{key} = '{value}'\n" for key, value in server.items())
        path = (
            write(name, f"[upstreams.a]\n{lines}") if name.endswith("toml") else servers({"a": server}, name)
        )
        upstream = read(path).upstreams["a"]
        for key, file in files.items():
            assert getattr(upstream, key).resolve() == (folder / "deep" / file).resolve()

    @pytest.mark.parametrize("field", ["tls_ca", "tls_cert", "tls_key"])
    @pytest.mark.parametrize("path", ["nowhere.pem", ".", "a\0b"])
    def test_a_file_that_does_not_exist_is_a_mistake(self, field: str, path: str) -> None:
        cert = {"tls_cert": __file__} if field == "tls_key" else {}
        (problem,) = problems(servers({"a": {"url": "https://h", **cert, field: path}}))
        assert re.fullmatch(
            rf"servers\.json: mcpServers\.a\.{field}: found .*; allowed: a file that exists", problem
        )

    @pytest.mark.parametrize(
        ("server", "problem"),
        [
            (
                "url = 'http://h'\ntls_verify = false",
                "tls_verify: found it beside an http:// URL, which has no TLS; remove it, or use https://",
            ),
            (
                "url = 'http://h'\nhttp_client = 'httpx'\nhttp2 = true",
                "http2: found it beside an http:// URL, which has no TLS; remove it, or use https://",
            ),
            (
                f"url = 'https://h'\ntls_key = '{__file__}'",
                "tls_key: found it without 'tls_cert', which it goes with; remove it, or give the certificate",
            ),
            (
                f"url = 'https://h'\ntls_ca = '{__file__}'\ntls_verify = false",
                "tls_ca: found it beside tls_verify = false, which trusts everybody; remove one of them",
            ),
            (
                "url = 'https://h'\nhttp2 = true",
                'http2: found it without http_client = "httpx", which it goes with; set that, or remove it',
            ),
            (
                "url = 'http://h'\nproxy = 'http://p'",
                'proxy: found it without http_client = "httpx", which it goes with; set that, or remove it',
            ),
            (
                "url = 'http://h'\nhttp_client = 'httpx'\nproxy = 'p:3128'",
                "proxy: found something else than the URL of a proxy; allowed: http://, https:// or socks5://",
            ),
            (
                "url = 'https://h'\ntls_verify = 'no way'",
                'tls_verify: found "no way"; allowed: true or false',
            ),
            (
                "url = 'http://h'\nhttp_client = 'curl'",
                'http_client: found "curl"; allowed: "own" or "httpx"',
            ),
            ("url = 'http://h'\ntransport = 'ws'", 'transport: found "ws"; allowed: "auto", "http" or "sse"'),
            (
                "command = 'x'\nhttp_client = 'httpx'",
                "http_client: found it without 'url', which it goes with; remove it",
            ),
            (
                "command = 'x'\ntransport = 'sse'",
                "transport: found it without 'url', which it goes with; remove it",
            ),
        ],
    )
    def test_what_does_not_go_together_is_one_mistake(self, server: str, problem: str) -> None:
        assert problems(write("a.toml", f"[upstreams.a]\n{server}")) == [f"a.toml: upstreams.a.{problem}"]

    def test_a_command_of_a_stronger_source_takes_all_of_it_back(self) -> None:
        toml = write(
            "a.toml",
            "[upstreams.a]\nurl = 'https://h'\ntransport = 'sse'\ntls_verify = false\nhttp_client = 'httpx'\n"
            "http2 = true\nproxy = 'http://p'",
        )
        assert read(toml, upstreams={"a": {"command": "x"}}).upstreams["a"] == UpstreamConfig(command="x")


class TestStrength:
    def test_each_source_overrules_the_ones_before_it(self) -> None:
        toml = write(
            "a.toml", "[upstreams.a]\nurl = 'http://toml'\nretries = 1\n[upstreams.a.pool]\nmax_waiting = 1"
        )
        later = write("b.toml", "[upstreams.a]\nretries = 2\n[upstreams.a.pool]\nmin_connections = 2")
        js = servers({"a": {"url": "http://json", "pool": {"max_connections": 3}}})
        cli = {"max_connections": 4, "max_inflight": 4}
        environ = {"MCPDIAG_POOL__MAX_INFLIGHT": "5", "MCPDIAG_UPSTREAMS__A__POOL__MAX_LIFETIME": "5m"}
        upstream = read(js, toml, later, cli=cli, environ=environ).upstreams["a"]
        assert (upstream.url, upstream.retries) == ("http://json", 2)
        assert upstream.pool == PoolLimits(
            max_waiting=1, min_connections=2, max_connections=4, max_inflight=5, max_lifetime=300
        )

    def test_a_general_value_of_a_stronger_source_overrules_a_particular_one_of_a_weaker(self) -> None:
        toml = write("a.toml", DEMO + "[upstreams.demo.timeouts]\ndeadline = 10")
        config = read(toml, environ={"MCPDIAG_TIMEOUTS__DEADLINE": "5"})
        assert config.upstreams["demo"].timeouts.deadline == 5.0

    def test_defaults_of_a_weaker_source_hold_for_upstreams_of_a_stronger(self) -> None:
        toml = write("a.toml", "retries = 3")
        config = read(toml, upstreams={"x": {"url": "http://h"}})
        assert config.upstreams["x"].retries == 3

    def test_upstreams_of_all_sources_are_served(self) -> None:
        config = read(
            write("a.toml", DEMO),
            servers({"j": {"command": "x"}}),
            upstreams={"c": {"command": ["x", "y"]}},
            environ={"MCPDIAG_UPSTREAMS__E__URL": "http://h"},
        )
        assert config.upstreams.keys() == {"demo", "j", "c", "e"}
        assert config.upstreams["c"].command_line == ("x", "y")

    def test_another_url_or_command_takes_back_what_the_weaker_source_said_of_the_server(self) -> None:
        toml = write("a.toml", "[upstreams.a]\ncommand = 'npx'\nargs = ['x']\nenv = {K = 'v'}\nretries = 2")
        http = read(toml, environ={"MCPDIAG_UPSTREAMS__A__URL": "http://h"}).upstreams["a"]
        assert http == UpstreamConfig(url="http://h", retries=2)
        stdio = read(toml, servers({"a": {"command": "uvx"}})).upstreams["a"]
        assert (stdio.command_line, list(stdio.env)) == (("uvx",), ["K"])

    def test_env_and_headers_merge_by_name_and_headers_in_any_case(self) -> None:
        toml = write("a.toml", "[upstreams.a]\nurl = 'http://h'\nheaders = {X-Api-Key = 'weak', B = 'kept'}")
        environ = {
            "MCPDIAG_UPSTREAMS__A__HEADERS__X_API_KEY": "strong",
            "MCPDIAG_UPSTREAMS__A__HEADERS__X_NEW": "n",
        }
        headers = read(toml, environ=environ).upstreams["a"].headers
        assert {name: value.get_secret_value() for name, value in headers.items()} == {
            "X-Api-Key": "strong",
            "B": "kept",
            "X-NEW": "n",
        }

    def test_python_values_may_be_models_and_whole_groups(self) -> None:
        config = read(
            upstreams={"a": UpstreamConfig(command="x", args=("y",), env={"K": SecretStr("v")}, retries=1)},
            cli={"pool": PoolLimits(max_connections=3), "timeouts": {"deadline": "9s"}, "max_waiting": 5},
        )
        upstream = config.upstreams["a"]
        assert (upstream.command_line, upstream.env["K"].get_secret_value(), upstream.retries) == (
            ("x", "y"),
            "v",
            1,
        )
        assert upstream.pool == PoolLimits(max_connections=3, max_waiting=5)
        assert upstream.timeouts == Timeouts(deadline=9.0)

    def test_an_option_that_was_not_given_overrules_nothing(self) -> None:
        assert read(write("a.toml", "port = 9000\n" + DEMO), cli={"port": None}).port == 9000


class TestEnvironment:
    @pytest.mark.parametrize(
        ("variable", "value", "expected"),
        [
            ("MCPDIAG_PORT", "9000", lambda c: c.port == 9000),
            ("mcpdiag_port", "9000", lambda c: c.port == 9000),
            ("MCPDIAG_INSECURE", "true", lambda c: c.insecure),
            ("MCPDIAG_TOKEN", "t", lambda c: c.token.get_secret_value() == "t"),
            ("MCPDIAG_ALLOWED_HOSTS", "a, b,", lambda c: c.allowed_hosts == ("a", "b")),
            ("MCPDIAG_POOL_MODE", "request", lambda c: c.upstreams["my-demo"].pool_mode == "request"),
            (
                "MCPDIAG_POOL__MAX_CONNECTIONS",
                "3",
                lambda c: c.upstreams["my-demo"].pool.max_connections == 3,
            ),
            ("MCPDIAG_TIMEOUTS__DEADLINE", "1m", lambda c: c.upstreams["my-demo"].timeouts.deadline == 60.0),
            ("MCPDIAG_UPSTREAMS__MY_DEMO__ARGS", "a,b", lambda c: c.upstreams["my-demo"].args == ("a", "b")),
            ("MCPDIAG_UPSTREAMS__My_Demo__Retries", "2", lambda c: c.upstreams["my-demo"].retries == 2),
            (
                "MCPDIAG_UPSTREAMS__MY_DEMO__ENV__A__b",
                "x",
                lambda c: c.upstreams["my-demo"].env.keys() == {"A__b"},
            ),
            ("MCPDIAG_UPSTREAMS__NEW__URL", "http://h", lambda c: c.upstreams["new"].url == "http://h"),
        ],
    )
    def test_a_variable_sets_the_setting_of_its_name(
        self, variable: str, value: str, expected: Callable[[Any], bool]
    ) -> None:
        toml = write("a.toml", "[upstreams.my-demo]\ncommand = 'x'")
        assert expected(read(toml, environ={variable: value, "HOME": "/", "MCPDIAGX": "1"}))

    @pytest.mark.parametrize(
        ("variable", "told"),
        [
            ("MCPDIAG_PROT", "found a name of no setting; did you mean MCPDIAG_PORT?"),
            ("MCPDIAG_MAX_LIFETIME", "found a name of no setting; did you mean MCPDIAG_POOL__MAX_LIFETIME?"),
            ("MCPDIAG_PORT__X", "found a name of no setting; did you mean MCPDIAG_PORT?"),
            ("MCPDIAG_", "found a name of no setting; docs/configuration.md lists them all"),
            ("MCPDIAG_XYZZY", "found a name of no setting; docs/configuration.md lists them all"),
            (
                "MCPDIAG_UPSTREAMS__DEMO__URLL",
                "found a name of no setting; did you mean MCPDIAG_UPSTREAMS__DEMO__URL?",
            ),
            ("MCPDIAG_UPSTREAMS", "found a group of settings; add __ and NAME"),
            ("MCPDIAG_UPSTREAMS__DEMO__ENV", "found a group of settings; add __ and NAME"),
            (
                "MCPDIAG_TIMEOUTS",
                (
                    "found a group of settings; add __ and ACQUIRE_TIMEOUT, CONNECT_TIMEOUT, REQUEST_TIMEOUT, "
                    "RESPONSE_TIMEOUT or DEADLINE"
                ),
            ),
        ],
    )
    def test_a_variable_that_names_no_setting_is_a_mistake(self, variable: str, told: str) -> None:
        assert problems(write("a.toml", DEMO), environ={variable: "1"}) == [
            f"environment: {variable}: {told}"
        ]

    def test_a_name_that_means_two_upstreams_is_a_mistake(self) -> None:
        toml = write("a.toml", "[upstreams.a-b]\ncommand = 'x'\n[upstreams.a_b]\ncommand = 'x'")
        assert problems(toml, environ={"MCPDIAG_UPSTREAMS__A_B__RETRIES": "1"}) == [
            (
                "environment: MCPDIAG_UPSTREAMS__A_B__RETRIES: found a name that means a-b or a_b; "
                "rename one of these upstreams"
            )
        ]

    def test_one_setting_in_two_variables_is_a_mistake(self) -> None:
        assert problems(write("a.toml", DEMO), environ={"MCPDIAG_PORT": "1", "mcpdiag_port": "2"}) == [
            "environment: mcpdiag_port: found the same setting in MCPDIAG_PORT; remove one of them"
        ]

    def test_the_process_environment_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCPDIAG_PORT", "9001")
        assert load(write("a.toml", DEMO)).port == 9001


class TestExpansion:
    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("Bearer ${KEY}", "Bearer k"),
            ("${KEY}${KEY}", "kk"),
            ("${env:KEY}", "k"),
            ("${NONE:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY}", ""),
            ("${NONE:-}", ""),
            ("${KEY:-d}", "k"),
            ("$KEY $ $$ pa$$word", "$KEY $ $$ pa$$word"),
            ("$${KEY}", "${KEY}"),
            ("${TWICE}", "${KEY}"),
        ],
    )
    @pytest.mark.parametrize("kind", ["toml", "json"])
    def test_a_reference_is_replaced_once_and_any_other_dollar_stays(
        self, written: str, value: str, kind: str
    ) -> None:
        server = {"url": "http://h", "headers": {"A": written}}
        toml = f"[upstreams.a]\nurl = 'http://h'\nheaders = {{A = '{written}'}}"
        path = write("a.toml", toml) if kind == "toml" else servers({"a": server})
        config = read(path, environ={"KEY": "k", "EMPTY": "", "TWICE": "${KEY}"})
        assert config.upstreams["a"].headers["A"].get_secret_value() == value

    def test_env_url_and_token_are_expanded_and_nothing_else(self) -> None:
        toml = write(
            "a.toml",
            "token = '${X}'\n[upstreams.a]\ncommand = '${X}'\nargs = ['${X}']\nenv = {K = '${X}'}\n"
            "[upstreams.b]\nurl = 'http://${X}/${X}'",
        )
        config = read(toml, environ={"X": "x"})
        a = config.upstreams["a"]
        assert config.token is not None
        assert (config.token.get_secret_value(), a.env["K"].get_secret_value()) == ("x", "x")
        assert config.upstreams["b"].url == "http://x/x"
        assert a.command_line == ("${X}", "${X}")

    def test_the_command_line_and_the_environment_are_taken_as_they_are(self) -> None:
        config = read(
            upstreams={"a": {"url": "http://h", "headers": {"A": "${X}"}}},
            environ={"MCPDIAG_TOKEN": "${X}", "X": "x"},
        )
        assert config.upstreams["a"].headers["A"].get_secret_value() == "${X}"
        assert config.token is not None
        assert config.token.get_secret_value() == "${X}"

    def test_an_unset_variable_is_a_mistake_that_names_it(self) -> None:
        path = servers({"a": {"command": "x", "env": {"K": "${NONE}"}}, "b": {"url": "http://${HOST}/"}})
        assert problems(path) == [
            "servers.json: mcpServers.a.env.K: found the variable NONE, which is not set; set it, or write ${NONE:-default}",
            "servers.json: mcpServers.b.url: found the variable HOST, which is not set; set it, or write ${HOST:-default}",
        ]

    def test_an_unset_variable_in_an_overruled_value_is_no_mistake(self) -> None:
        toml = write("a.toml", "token = '${NONE}'\n" + DEMO)
        assert read(toml, environ={"MCPDIAG_TOKEN": "t"}).token is not None

    @pytest.mark.parametrize("written", ["${", "${}", "${1A}", "${input:key}", "${A:-${B}}", "${A"])
    def test_what_begins_like_a_reference_and_is_none_is_a_mistake(self, written: str) -> None:
        (problem,) = problems(servers({"a": {"command": "x", "env": {"K": written}}}), environ={"B": "b"})
        assert problem == (
            'servers.json: mcpServers.a.env.K: found "${" that begins no ${VAR} or ${VAR:-default}; '
            'write "$${" for the characters themselves'
        )


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("port = 99999", "port: found 99999; allowed: a whole number from 0 to 65535"),
            ("port = 'x'", 'port: found "x"; allowed: a whole number from 0 to 65535'),
            ("port = 1.5", "port: found 1.5; allowed: a whole number from 0 to 65535"),
            (
                "port = 0xffffffffffffffffffffffff",
                "port: found a number beyond 64 bits; allowed: a whole number from 0 to 65535",
            ),
            ("port = {a = 1}", "port: found a table; allowed: a whole number from 0 to 65535"),
            ("port = 2020-01-01", "port: found 2020-01-01; allowed: a whole number from 0 to 65535"),
            ("admin_port = -1", "admin_port: found -1; allowed: a whole number from 0 to 65535"),
            (
                "admin_port = 8808",
                "admin_port: found 8808, which is 'port' too; give the two different ports",
            ),
            ("host = 5", "host: found 5; allowed: a string"),
            (f"host = '{'x' * 99}'\ninsecure = 2", "insecure: found 2; allowed: true or false"),
            ("insecure = 'maybe'", 'insecure: found "maybe"; allowed: true or false'),
            ("allowed_hosts = 'a'", 'allowed_hosts: found "a"; allowed: a list of strings'),
            ("allowed_hosts = ['a', 5]", "allowed_hosts[1]: found 5; allowed: a string"),
            ("token = ''", "token: found an empty string; allowed: visible ASCII characters without spaces"),
            ("token = 5", "token: found a number; allowed: visible ASCII characters without spaces"),
            (
                "drain_timeout = -1",
                "drain_timeout: found -1; allowed: seconds (30) or a number with ms, s, m or h",
            ),
            ("keepalive_interval = inf", f"keepalive_interval: found inf; allowed: {DURATION}"),
            ("retries = 11", "retries: found 11; allowed: a whole number from 0 to 10"),
            ("max_sessions = true", "max_sessions: found true; allowed: a whole number, 1 or more"),
            (
                "pool_mode = 'sesion'",
                'pool_mode: found "sesion"; allowed: "session", "request" or "multiplex"',
            ),
            ("timeouts = 5", "timeouts: found a number; allowed: a table"),
            ("timeouts.deadline = 'soon'", f'timeouts.deadline: found "soon"; allowed: {DURATION}'),
            ("timeouts.deadline = '0s'", f'timeouts.deadline: found "0s"; allowed: {DURATION}'),
            (
                "pool.min_connections = 11",
                "pool.min_connections: found 11, above max_connections (10); lower it or raise max_connections",
            ),
            ("prot = 1", "prot: found an unknown key; did you mean port?"),
            (
                "max_connections = 1",
                "max_connections: found an unknown key; did you mean pool.max_connections?",
            ),
            (
                "timeouts.xyzzy = 1",
                (
                    "timeouts.xyzzy: found an unknown key; allowed: acquire_timeout, connect_timeout, request_timeout, "
                    "response_timeout, deadline"
                ),
            ),
            (
                "host = '0.0.0.0'",
                (
                    "host: found '0.0.0.0', reachable from outside, without a token; "
                    "give a token, or --insecure if a guard stands before it"
                ),
            ),
        ],
    )
    def test_a_mistake_names_the_file_the_place_what_was_found_and_what_is_allowed(
        self, text: str, problem: str
    ) -> None:
        assert problems(write("a.toml", f"{text}\n{DEMO}")) == [f"a.toml: {problem}"]

    @pytest.mark.parametrize(
        ("server", "problem"),
        [
            (
                {},
                ": found neither command nor url; allowed: 'command' for a stdio server or 'url' for an HTTP server",
            ),
            ({"command": "x", "url": "http://h"}, ".url: found both command and url; allowed: one of them"),
            (
                {"command": 5},
                ".command: found 5; allowed: a program, or a list of a program and its arguments",
            ),
            (
                {"command": []},
                ".command: found a list; allowed: a program, or a list of a program and its arguments",
            ),
            (
                {"command": ["x", 5]},
                ".command: found a list; allowed: a program, or a list of a program and its arguments",
            ),
            (
                {"command": ""},
                '.command: found ""; allowed: a program, or a list of a program and its arguments',
            ),
            ({"command": "x", "args": "y"}, ".args: found a string; allowed: a list of strings"),
            ({"command": ["x", "y"], "args": ["z", 8]}, ".args[1]: found a number; allowed: a string"),
            ({"command": "x", "env": {"K": 8}}, ".env.K: found a number; allowed: a string"),
            ({"command": "x", "env": {"K": None}}, ".env.K: found null; allowed: a string"),
            ({"command": "x", "env": ["K=V"]}, ".env: found a list; allowed: a table"),
            (
                {"command": "x", "headers": {"A": "v"}},
                ".headers.A: found it without 'url', which it goes with; remove it",
            ),
            ({"url": "ftp://h"}, '.url: found "ftp://h"; allowed: an http:// or https:// URL'),
            ({"url": "${U}"}, '.url: found "${U}" after expansion; allowed: an http:// or https:// URL'),
            (
                {"url": "http://h", "headers": {"A": "${LINES}"}},
                ".headers.A: found a character that no header can carry; allowed: one line of Latin-1 text",
            ),
            (
                {"url": "http://h", "timeouts": {"request_timeout": "soon"}},
                f'.timeouts.request_timeout: found "soon"; allowed: {DURATION}',
            ),
        ],
    )
    def test_a_mistake_in_a_server_is_told_once(self, server: object, problem: str) -> None:
        environ = {"U": "ftp://h", "LINES": "a\nb"}
        assert problems(servers({"a": server}), environ=environ) == [f"servers.json: mcpServers.a{problem}"]

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            (
                "mcp",
                "mcpServers.mcp: found the name 'mcp', a path of the proxy itself; give the upstream another name",
            ),
            (
                "My Server",
                (
                    "mcpServers.\"My Server\": found the name 'My Server'; allowed: letters, digits, '.', '_' and '-', "
                    "first a letter or digit, at most 64 characters, such as 'My-Server'"
                ),
            ),
        ],
    )
    def test_a_name_that_fits_no_path_is_told_with_one_that_does(self, name: str, problem: str) -> None:
        assert problems(servers({name: {"command": "x"}})) == [f"servers.json: {problem}"]

    def test_all_mistakes_of_all_sources_are_told_at_once(self) -> None:
        toml = write(
            "a.toml",
            "host = '0.0.0.0'\nport = 'x'\n[timeouts]\ndeadline = 0\n[upstreams.a]\n[upstreams.b]\ncommand = 'x'\n"
            "retries = -1\n[upstreams.b.pool]\nmin_connections = 20",
        )
        js = servers({"c": {"url": "x", "env": {"A": "${NONE}"}}, "d": {"command": "y"}})
        told = problems(
            toml, js, cli={"admin_port": "x"}, environ={"MCPDIAG_MAX_SESSIONS": "0", "MCPDIAG_X": ""}
        )
        assert sorted(problem.partition(": found")[0] for problem in told) == [
            "a.toml: host",
            "a.toml: port",
            "a.toml: timeouts.deadline",
            "a.toml: upstreams.a",
            "a.toml: upstreams.b.pool.min_connections",
            "a.toml: upstreams.b.retries",
            "command line: --admin-port",
            "environment: MCPDIAG_MAX_SESSIONS",
            "environment: MCPDIAG_X",
            "servers.json: mcpServers.c.env.A",
            "servers.json: mcpServers.c.url",
        ]

    def test_a_wrong_default_is_told_once_however_many_upstreams_have_it(self) -> None:
        toml = write("a.toml", "retries = 99\n[upstreams.a]\ncommand = 'x'\n[upstreams.b]\ncommand = 'x'")
        assert problems(toml) == ["a.toml: retries: found 99; allowed: a whole number from 0 to 10"]

    def test_a_mistake_that_a_stronger_source_overrules_is_none(self) -> None:
        assert read(write("a.toml", "port = 'x'\n" + DEMO), environ={"MCPDIAG_PORT": "9000"}).port == 9000

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"cli": {"port": 99999}}, "--port: found 99999; allowed: a whole number from 0 to 65535"),
            (
                {"cli": {"max_connections": 0}},
                "--max-connections: found 0; allowed: a whole number, 1 or more",
            ),
            ({"cli": {"request_timeout": "x"}}, f'--request-timeout: found "x"; allowed: {DURATION}'),
            (
                {"cli": {"max_conections": 5}},
                "--max-conections: found an unknown key; did you mean pool.max_connections?",
            ),
            ({"upstreams": {"u": {"url": "h:1"}}}, '--url: found "h:1"; allowed: an http:// or https:// URL'),
            (
                {"upstreams": {"u": {"command": []}}},
                "COMMAND: found a list; allowed: a program, or a list of a program and its arguments",
            ),
            (
                {"upstreams": {"u": {"command": "x", "pool": {"max_waiting": -1}}}},
                "upstreams.u.pool.max_waiting: found -1; allowed: a whole number, 0 or more",
            ),
        ],
    )
    def test_a_mistake_on_the_command_line_names_the_option(
        self, options: dict[str, Any], problem: str
    ) -> None:
        assert problems(write("a.toml", DEMO), **options) == [f"command line: {problem}"]

    def test_a_mistake_of_another_caller_names_it_and_the_setting(self) -> None:
        assert problems(
            caller="Proxy", upstreams={"a": {"url": "h:1"}}, cli={"max_connections": 0, "prot": 1}
        ) == [
            "Proxy: prot: found an unknown key; did you mean port?",
            'Proxy: upstreams.a.url: found "h:1"; allowed: an http:// or https:// URL',
            "Proxy: pool.max_connections: found 0; allowed: a whole number, 1 or more",
        ]
        assert problems(caller="Proxy") == ["Proxy: found no upstream; allowed: at least one"]

    def test_a_mistake_in_the_environment_names_the_variable_as_it_is_written(self) -> None:
        assert problems(write("a.toml", DEMO), environ={"mcpdiag_Pool__max_waiting": "-1"}) == [
            'environment: mcpdiag_Pool__max_waiting: found "-1"; allowed: a whole number, 0 or more'
        ]

    def test_a_long_value_is_shortened_and_a_strange_one_escaped(self) -> None:
        assert found("x" * 100) == f'"{"x" * 57}..."'
        assert found("a\x1b[31m\n\x9b") == '"a\\u001b[31m\\n\\u009b"'
        assert found("größe") == '"größe"'


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("a.toml", "port = \n", r"a\.toml:1:8: found invalid TOML: Invalid value"),
            ("a.toml", "x = 1\nx = 2\n", r"a\.toml:2:6: found invalid TOML: Cannot overwrite a value"),
            ("a.toml", "x = [1,\n2", r"a\.toml:2:2: found invalid TOML: Unclosed array"),
            ("a.json", '{\n "mcpServers": }', r"a\.json:2:16: found invalid JSON: Expecting value"),
            (
                "a.json",
                "// mine\n{}",
                r"a\.json:1:1: found invalid JSON: Expecting value; JSON has no comments",
            ),
            ("a.json", "[]", r"a\.json: found a list; allowed: \{\"mcpServers\": \{NAME: \{\.\.\.\}\}\}"),
            (
                "a.json",
                "{}",
                r"a\.json: found no \"mcpServers\"; allowed: \{\"mcpServers\": \{NAME: \{\.\.\.\}\}\}",
            ),
            (
                "a.json",
                '{"mcpservers": {}}',
                r"a\.json: found no \"mcpServers\"; .*; did you mean \"mcpServers\"\?",
            ),
            (
                "a.json",
                '{"servers": {}, "mcpServers": {}}',
                r"a\.json: found both \"servers\" and \"mcpServers\"; .*",
            ),
            ("a.json", '{"mcpServers": []}', r"a\.json: mcpServers: found a list; allowed: .*"),
            (
                "a.json",
                '{"mcpServers": {"a": 1, "a": 2}}',
                r"a\.json: found the key \"a\" twice in one object; .*",
            ),
            ("a.json", "[" * 100_000, r"a\.json: found objects nested too deeply.*"),
            ("a.json", "9" * 5000, r"a\.json: found objects nested too deeply, or a number too long; .*"),
            ("a.toml", "x = " + "[" * 100_000, r"a\.toml: found tables nested too deeply.*"),
            ("a.toml", "", r"a\.toml: found an empty file; allowed: at least one upstream"),
            ("a.json", " \n", r"a\.json: found an empty file; allowed: at least one upstream"),
            (
                "a.toml",
                b"x = '\xff'",
                r"a\.toml: found a byte at offset 5 that is not UTF-8; save it as UTF-8",
            ),
            (
                "a.toml",
                "port = 1",
                r"a\.toml: found no upstream; allowed: at least one table \[upstreams\.NAME\] .*",
            ),
            (
                "a.json",
                '{"mcpServers": {"a": {"disabled": true}}}',
                r"a\.json: found no upstream; .* not \"disabled\"",
            ),
            ("a.yaml", "a: b", r"a\.yaml: found the suffix \"\.yaml\"; allowed: \.toml or \.json"),
            ("config", "a: b", r"config: found the suffix \"\"; allowed: \.toml or \.json"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_one_line(
        self, name: str, content: str | bytes, problem: str
    ) -> None:
        (told,) = problems(write(name, content))
        assert re.fullmatch(problem, told), told

    @pytest.mark.parametrize("name", ["missing.toml", "missing.json", "missing/a.toml", "a\0.toml"])
    def test_a_missing_file_is_one_line(self, name: str) -> None:
        (told,) = problems(Path(name))
        assert told.endswith("found no such file; give the path of a .toml or .json file")

    def test_a_folder_is_one_line(self, folder: Path) -> None:
        (folder / "d.toml").mkdir()
        assert problems(Path("d.toml")) == ["d.toml: found a folder; give the path of the file in it"]

    def test_an_unreadable_file_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", refuse)  # tests may run as root, who may read everything
        assert problems(Path("a.toml")) == [
            "a.toml: found a file that cannot be read (Permission denied); let the proxy's user read it"
        ]

    def test_a_broken_file_does_not_hide_the_mistakes_of_the_others(self) -> None:
        assert problems(write("a.toml", "x ="), servers({"a": {"command": 1}}), cli={"port": -1}) == [
            "a.toml:1:4: found invalid TOML: Invalid value",
            "servers.json: mcpServers.a.command: found 1; allowed: a program, or a list of a program and its arguments",
            "command line: --port: found -1; allowed: a whole number from 0 to 65535",
        ]

    def test_nothing_at_all_is_one_line_with_the_ways_out(self) -> None:
        assert problems() == ["command line: found no upstream; give --url URL, -- COMMAND or --config FILE"]

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        content=CONTENT,
        variables=st.dictionaries(st.lists(KEYS, max_size=3).map("__".join), st.just("1"), max_size=2),
    )
    def test_no_content_makes_anything_but_a_configuration_or_lines(
        self, content: dict[str, Any], variables: dict[str, str]
    ) -> None:
        environ = {f"MCPDIAG_{name}": value for name, value in variables.items()}
        try:
            config = load(servers(content), upstreams={"u": content, "v": {"command": "x"}}, environ=environ)
        except ConfigError as error:
            lines = [len(problem.splitlines()) for problem in error.problems]
        else:
            lines = [1]
            json.dumps(to_public(config), allow_nan=False)
        assert set(lines) == {1}


SECRET = "hunter2"


class TestSecrets:
    @pytest.mark.parametrize(
        ("text", "environ"),
        [
            (f"token = '{SECRET} {SECRET}'", {}),
            (f"token = ['{SECRET}']", {}),
            (f"tokn = '{SECRET}'", {}),
            ("token = '${S}'", {"S": f"{SECRET}\n"}),
            ("", {"MCPDIAG_TOKEN": f"{SECRET} x"}),
            ("", {"MCPDIAG_TOKENN": SECRET}),
            ("", {"MCPDIAG_UPSTREAMS__DEMO__HEADERS__A": SECRET}),
            ("", {"MCPDIAG_UPSTREAMS__DEMO__ENVV__A": SECRET}),
            (f"[upstreams.a]\nurl = 'http://h'\nproxy = 'http://me:{SECRET}@h'", {}),
            (f"[upstreams.a]\nurl = 'http://h'\nhttp_client = 'httpx'\nproxy = 'ftp://me:{SECRET}@h'", {}),
            (
                f"[upstreams.a]\nurl = 'http://h'\nhttp_client = 'httpx'\nproxy = 'http://me:{SECRET}@h:no'",
                {},
            ),
            (f"[upstreams.a]\nurl = 'http://h'\nhttp_client = 'httpx'\nproxy = ['{SECRET}']", {}),
            (f"[upstreams.a]\nurl = 'http://me:{SECRET}@h'", {}),
            (f"[upstreams.a]\nurl = 'me:{SECRET}@h'", {}),
            (f"[upstreams.a]\nurl = 'ftp://h/?key={SECRET}'", {}),
            ("[upstreams.a]\nurl = 'ftp://h/${S}'", {"S": SECRET}),
            (f"[upstreams.a]\nurl = 'ftp://h/${{S:-{SECRET}}}'", {}),
            (f"[upstreams.a]\nurl = 'http://h'\nheaders = '{SECRET}'", {}),
            (f"[upstreams.a]\nurl = 'http://h'\nheaders = {{'a b' = '{SECRET}'}}", {}),
            (f"[upstreams.a]\nurl = 'http://h'\nheaders = {{A = ['{SECRET}']}}", {}),
            (f'[upstreams.a]\nurl = "http://h"\nheaders = {{A = "{SECRET}\\n"}}', {}),
            (f"[upstreams.a]\nurl = 'http://h'\nheaders = {{A = '${{NONE}} {SECRET}'}}", {}),
            (f"[upstreams.a]\ncommand = 'x'\nheaders = {{A = '{SECRET}'}}", {}),
            (f"[upstreams.a]\ncommand = 'x'\nenv = {{'A=B' = '{SECRET}'}}", {}),
            (f"[upstreams.a]\ncommand = 'x'\nenv = {{A = '${{{SECRET}:'}}", {}),
            (f"[upstreams.a]\ncommand = 'x'\nargs = '--token {SECRET}'", {}),
            (f"[upstreams.a]\ncommand = ['x', '{SECRET}', 5]", {}),
            (f"[upstreams.a]\ncommand = 'x'\nenv = {{A = '{SECRET}' B = 1}}", {}),
        ],
    )
    def test_no_mistake_shows_a_secret(self, text: str, environ: dict[str, str]) -> None:
        path = write("a.toml", f"{text}\n{DEMO}")
        with pytest.raises(ConfigError) as caught:
            load(path, environ=environ)
        assert caught.value.__cause__ is None
        for shown in (str(caught.value), repr(caught.value), *caught.value.problems):
            assert SECRET not in shown

    def test_neither_the_repr_nor_the_public_form_shows_a_secret(self) -> None:
        toml = write(
            "a.toml",
            f"token = '{SECRET}'\n[upstreams.a]\ncommand = 'x'\nargs = ['--token', '{SECRET}']\nenv = {{A = '{SECRET}'}}\n"
            "[upstreams.b]\nurl = 'http://h/${S}/mcp?key=${S}'\nheaders = {A = 'Bearer ${S}'}\n"
            "http_client = 'httpx'\nproxy = 'http://me:${S}@h'",
        )
        config = read(toml, environ={"S": SECRET})
        assert config.upstreams["b"].url == f"http://h/{SECRET}/mcp?key={SECRET}"
        assert SECRET not in repr(config)
        public = to_public(config)
        assert SECRET not in json.dumps(public)
        assert public["token"] == "***"
        assert public["upstreams"]["a"]["env"] == {"A": "***"}
        assert public["upstreams"]["a"]["args"] == ["--token", "***"]
        assert public["upstreams"]["b"]["url"] == "http://h/${S}/mcp?***"
        assert public["upstreams"]["b"]["headers"] == {"A": "***"}
        assert public["upstreams"]["b"]["proxy"] == "***"

    def test_the_public_form_has_every_setting_as_plain_json(self, folder: Path) -> None:
        config = read(upstreams={"a": {"command": "x", "cwd": str(folder)}})
        public = json.loads(json.dumps(to_public(config), allow_nan=False))
        assert public == to_public(config)
        assert public.keys() == ProxyConfig.model_fields.keys()
        assert public["upstreams"]["a"].keys() == UpstreamConfig.model_fields.keys()
        assert public["upstreams"]["a"]["cwd"] == str(folder)
        assert public["upstreams"]["a"]["timeouts"] == Timeouts().model_dump()
        assert public["token"] is None


class TestDocument:
    """docs/configuration.md is true."""

    TEXT = DOC.read_text()
    ENVIRON = dict.fromkeys(("PROXY_TOKEN", "SEARCH_TOKEN", "GITHUB_TOKEN", "DOCS_KEY"), "secret")

    def example(self, language: str) -> Path:
        (text,) = re.findall(rf"^```{language}\n(.*?)^```", self.TEXT, re.DOTALL | re.MULTILINE)
        return write(f"example.{language}", text)

    def test_its_examples_load(self) -> None:
        config = read(self.example("toml"), self.example("json"), environ=self.ENVIRON)
        assert config.upstreams.keys() == {"everything", "files", "search", "github", "docs"}
        search = config.upstreams["search"]
        assert (search.timeouts.request_timeout, search.timeouts.deadline) == (0.5, 120.0)
        assert (search.pool.max_connections, config.upstreams["github"].pool.max_connections) == (50, 20)

    def test_its_environment_variables_are_known(self) -> None:
        rows = re.findall(r"^\| `(MCPDIAG_\w+)=([^`]*)` \|", self.TEXT, re.MULTILINE)
        assert len(rows) == 9
        environ = {name: "secret" if value == "..." else value for name, value in rows}
        config = read(self.example("toml"), environ=self.ENVIRON | environ)
        assert config.upstreams["search"].url == "http://localhost:3000/mcp"
        assert config.upstreams["search"].timeouts.deadline == 60.0

    def test_its_tables_have_every_setting_with_its_default(self) -> None:
        rows = dict(re.findall(r"^\| `(\w+)` \| (?:`([^|]*)`|-) \|", self.TEXT, re.MULTILINE))
        models: list[type[BaseModel]] = [ProxyConfig, UpstreamConfig, Timeouts, PoolLimits, ReconnectPolicy]
        fields = {name: (model, field) for model in models for name, field in model.model_fields.items()}
        for group in ("upstreams", "timeouts", "pool", "reconnect"):
            del fields[group]
        assert rows.keys() == fields.keys()
        needed: dict[type[BaseModel], dict[str, object]] = {
            ProxyConfig: {"upstreams": {"a": {"command": "x"}}},
            UpstreamConfig: {"command": "x"},
        }
        for name, (model, field) in fields.items():
            written = tomllib.loads(f"x = {rows[name]}")["x"] if rows[name] else None
            if name == "command":
                assert written is field.default is None
            else:
                made = model.model_validate(needed.get(model, {}) | {name: written})
                assert getattr(made, name) == field.default, name

    def test_every_setting_of_a_fixed_name_is_in_it(self) -> None:
        for *_, name in leaves(SETTINGS):
            assert f"`{name}`" in self.TEXT

    def test_its_mistakes_are_worded_as_they_are_told(self) -> None:
        toml = write(
            "mcpdiag.toml",
            "[upstreams.github]\ncommand = 'x'\n[upstreams.github.timeouts]\nrequest_timeout = 'soon'",
        )
        js = servers({"docs": {"url": "http://h", "headers": {"X-Api-Key": "${DOCS_KEY}"}}})
        told = problems(toml, js, cli={"port": 99999}, environ={"MCPDIAG_PROT": "1"})
        assert len(told) == 4
        assert all(problem in self.TEXT.splitlines() for problem in told)
