"""`%mcp_proxy`: starts, replaces and stops proxies, and says mistakes in a line."""

from __future__ import annotations

import psutil
import pytest
from IPython.core.error import UsageError

from mcpdiag.serve import BackgroundProxy
from tests.conftest import RawClient
from tests.html.test_html import Tags
from tests.notebook.conftest import Session
from tests.samples.test_remote import free_port

START = "%mcp_proxy demo -- {COMMAND[0]} {COMMAND[1]}"


@pytest.mark.usefixtures("nothing_left")
def test_a_proxy_is_started_shown_used_and_stopped(session: Session) -> None:
    session.run(START)
    proxy = session.names["proxy"]
    assert isinstance(proxy, BackgroundProxy)
    assert proxy.urls["demo"] in session.shown()[0]
    assert RawClient(proxy.url).initialize().call("echo", text="x") == "x"
    session.run("%mcp_proxy --stop")
    assert "stopped" in session.shown()[0]
    assert len(proxy.recorder.requests) == 2, "its recorder stays"
    assert [each for each in psutil.Process().children() if "embedded" in " ".join(each.cmdline())] == []


@pytest.mark.usefixtures("nothing_left")
def test_a_second_one_of_the_same_name_stops_the_first(session: Session) -> None:
    session.run(START)
    first = session.names["proxy"]
    session.run(START)
    second = session.names["proxy"]
    assert second is not first
    assert first.recorder.closed
    assert RawClient(second.url).initialize().call("echo", text="x") == "x"
    session.run(START.replace("demo", "demo --name other"))
    assert not second.recorder.closed, "one of another name stops nothing"
    session.run("%mcp_proxy --stop")
    session.run("%mcp_proxy --stop --name other")


def test_options_reach_the_proxy(session: Session) -> None:
    port = free_port()
    session.run(
        START.replace(
            "demo", f"demo --pool-mode request --max-connections 3 --admin-port {port} --request-timeout 7s"
        )
    )
    proxy = session.names["proxy"]
    upstream = proxy._proxy.config.upstreams["demo"]
    assert proxy.admin_url.endswith(f":{port}")
    assert (upstream.pool_mode, upstream.pool.max_connections) == ("request", 3)
    assert upstream.timeouts.request_timeout == 7


def test_a_url_is_an_upstream_too(session: Session) -> None:
    session.run(START)
    session.run("%mcp_proxy outer --url {proxy.url} --name outer")
    assert RawClient(session.names["outer"].url).initialize().call("echo", text="two hops") == "two hops"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("%mcp_proxy", "give one of --url, --config and a command after --, found none"),
        ("%mcp_proxy x --url http://localhost -- true", "found --url and a command"),
        ("%mcp_proxy x --nonsense -- true", "unrecognized arguments: --nonsense"),
        ("%mcp_proxy x --max-connections many -- true", "invalid int value"),
        ("%mcp_proxy x --pool-mode nonsense -- true", 'found "nonsense"; allowed'),
        ("%mcp_proxy x --name 3x -- true", "'3x', which is no name of a variable"),
        ("%mcp_proxy x --name class -- true", "cannot be a variable"),
        ("%mcp_proxy x -- no-such-program", "no program 'no-such-program' on PATH"),
        ("%mcp_proxy x -- 'unclosed", "No closing quotation"),
        ("%mcp_proxy --stop", "there is no proxy in the variable 'proxy'"),
        ("%mcp_proxy --stop x", "--stop takes nothing but --name"),
        ("%mcp_proxy x --config no-such-file.toml", "leave out NAME"),
        ("%mcp_proxy --config no-such-file.toml", "no-such-file.toml"),
        ("%mcp_proxy x --name taken -- true", "holds something else (int)"),
    ],
)
def test_a_mistake_is_a_line(
    session: Session, line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    session.names["taken"] = 1
    error = session.fails(line)
    assert isinstance(error, UsageError)
    assert says in str(error)
    printed = capsys.readouterr().err
    assert says in printed
    assert "Traceback" not in printed
    assert "proxy" not in session.names


def test_a_start_that_fails_says_that_the_old_proxy_is_stopped(session: Session) -> None:
    session.run(START)
    assert "the proxy that was in 'proxy' is stopped" in str(session.fails("%mcp_proxy x -- no-such-program"))


def test_a_secret_in_the_command_is_not_shown(session: Session) -> None:
    session.run(START + " --token hunter2")
    assert "hunter2" not in "".join(session.shown())


def test_the_help_of_the_magics_names_their_options(session: Session) -> None:
    for magic in ("mcp_proxy", "mcp_window"):
        kind = "line" if magic == "mcp_proxy" else "cell"
        found = session.shell.find_magic(magic, kind)
        assert "--name" in (found.__doc__ or "") or "--proxy" in (found.__doc__ or "")


def test_loading_twice_wraps_a_cell_once_and_unloading_takes_everything_out(session: Session) -> None:
    session.run("%load_ext mcpdiag.notebook\n%reload_ext mcpdiag.notebook")
    session.run(START)
    session.shown()
    session.run("%%mcp_window\n1")
    assert len(session.shown()) == 1
    session.run("%unload_ext mcpdiag.notebook")
    assert isinstance(session.fails("%%mcp_window\n1"), UsageError)
    assert session.run("1 + 1") == 2


def test_what_a_server_is_called_is_escaped(session: Session) -> None:
    session.run("%mcp_proxy demo -- {COMMAND[0]} {COMMAND[1]} '<script>'")
    assert "script" not in Tags(session.shown()[0]).tags
