"""`%%mcp_window`: the cell runs as it would without, and what the proxy saw meanwhile is kept and shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from IPython.core.error import UsageError

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.notebook.window import Window
from mcpdiag.samples.schema import SCHEMA
from tests.conftest import RawClient
from tests.html.test_html import Tags
from tests.notebook.conftest import Session
from tests.samples.test_remote import free_port, running


@pytest.fixture
def proxied(session: Session) -> Iterator[Session]:
    """A session with a proxy, and a client of it that has called once."""
    with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
        client = RawClient(proxy.url).initialize()
        client.call("add", a=1, b=2)
        session.names |= {"proxy": proxy, "client": client}
        yield session


def targets(window: Window) -> list[str]:
    return [str(each) for each in window.requests["target"]]


def test_the_frames_hold_the_window_alone(proxied: Session) -> None:
    assert (
        proxied.run("%%mcp_window\nclient.call('echo', text='one')\nclient.call('echo', text='two')") == "two"
    )
    window = proxied.names["window"]
    proxied.names["client"].call("add", a=1, b=2)
    assert targets(window) == ["echo", "echo"]
    assert window.summary()["count"].tolist() == [2]
    assert window.written["requests"] == 2
    assert window.moved["demo"]["acquires"] == 0, "in session mode the lease is older than the window"
    for name in SCHEMA:
        assert [*window.frame(name).columns] == [*SCHEMA[name]]
    (html,) = proxied.shown()
    assert "2 calls in" in html
    assert ">echo</td>" in html
    assert ">add</td>" not in html


def test_it_is_kept_under_its_label(proxied: Session) -> None:
    proxied.run("%%mcp_window cold\nclient.call('echo', text='x')")
    assert "window" not in proxied.names
    assert proxied.names["cold"].label == "cold"
    assert repr(proxied.names["cold"]).startswith("<Window 'cold' of proxy: 1 call in 0.")


def test_a_cell_may_await(proxied: Session) -> None:
    cell = (
        "%%mcp_window\n"
        "import anyio\n"
        "texts = []\n"
        "async def call(text):\n"
        "    texts.append(await anyio.to_thread.run_sync(lambda: client.call('echo', text=text)))\n"
        "await call('one')\n"
        "async with anyio.create_task_group() as tasks:\n"
        "    tasks.start_soon(call, 'two')\n"
        "await anyio.sleep(0)\n"
        "texts"
    )
    assert proxied.run(cell) == ["one", "two"]
    assert targets(proxied.names["window"]) == ["echo", "echo"]


def test_an_error_is_the_cell_s_own_and_the_window_is_kept(
    proxied: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    error = proxied.fails("%%mcp_window\nclient.call('echo', text='x')\n\n1 / 0  # here")
    assert isinstance(error, ZeroDivisionError)
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "----> 4 1 / 0  # here" in text, "with the line number that it has in the cell"
    assert text.count("Traceback (most recent call last)") == 1
    assert "mcpdiag" not in text.replace("__mcpdiag_window__", ""), "and without our own lines"
    assert proxied.names["window"].error == "ZeroDivisionError: division by zero"
    assert targets(proxied.names["window"]) == ["echo"]
    assert "division by zero" in proxied.shown()[0]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("%%mcp_window\n'''two\nlines'''", "two\nlines"),
        ("%%mcp_window\n\n\n# only then\n7", 7),
        ("%%mcp_window\n# nothing", None),
        ("%%mcp_window\nx = 1", None),
        ("%%mcp_window\nfrom __future__ import annotations\ndef f(a: nonsense) -> None: ...\nf.__annotations__['a']", "nonsense"),
        ("%%mcp_window\n%time 5", 5),
        ("%%time\n%%mcp_window\n6", 6),
        ("%%mcp_window\n%%time\n8", 8),
        ("\n\n%%mcp_window\n9", 9),
        ("%%mcp_window --proxy proxy\nif True:\n    10", None),
    ],
)  # fmt: skip
def test_a_cell_does_what_it_would_do_without(proxied: Session, cell: str, value: object) -> None:
    assert proxied.run(cell) == value
    assert isinstance(proxied.names["window"], Window)


def test_the_value_goes_into_out(proxied: Session) -> None:
    proxied.shell.run_cell("%%mcp_window\n41 + 1", store_history=True).raise_error()
    assert proxied.run("_") == 42


def test_all_expressions_are_displayed_if_the_user_wants_that(
    proxied: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    proxied.shell.ast_node_interactivity = "all"
    try:
        proxied.run("%%mcp_window\n101\n102")
    finally:
        proxied.shell.ast_node_interactivity = "last_expr"
    printed = capsys.readouterr().out
    assert (printed.count("101"), printed.count("102")) == (1, 1)


def test_variables_of_the_cell_are_the_user_s(proxied: Session) -> None:
    proxied.run("%%mcp_window\nmine = 1\ndef f():\n    return mine")
    assert proxied.run("f() + mine") == 2
    assert not [name for name in proxied.names if "mcpdiag_window" in name]


def test_nothing_costs_nothing(proxied: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a call no frame is built and one line is shown."""

    def unwanted(*_: object) -> None:
        raise AssertionError("a frame was built")

    monkeypatch.setattr("mcpdiag.samples.frame.build", unwanted)
    proxied.run("%%mcp_window\n1")
    (html,) = proxied.shown()
    assert "nothing in 0.0" in html
    assert "<table" not in html


def test_an_attached_proxy_is_looked_at_the_same_way(session: Session) -> None:
    with running("--admin-port", str(free_port())) as (url, admin, _):
        client = RawClient(url).initialize()
        session.names |= {"client": client, "diag": mcpdiag.attach(admin)}
        session.run(
            "%%mcp_window far --proxy diag\nclient.call('echo', text='x')\nclient.call('exit', code=3)"
        )
        client.call("echo", text="later")
        far = session.names["far"]
        assert targets(far) == ["echo", "exit"]
        assert "child_exit" in [str(kind) for kind in far.events["kind"]]
        assert "child_exit" in session.shown()[0]
    assert targets(far) == ["echo", "exit"], "it is kept when the proxy has gone"


def test_a_restart_within_the_window_is_said(session: Session) -> None:
    port = free_port()
    with running("--admin-port", str(port)) as (url, admin, _):
        RawClient(url).initialize().call("echo", text="x")
        session.names["diag"] = mcpdiag.attach(admin)
        window = Window(
            session.shell.find_cell_magic("mcp_window").__self__._source("diag"), label="w", proxy="diag"
        )
    with running("--admin-port", str(port)) as (url, _, _):
        RawClient(url).initialize().call("add", a=1, b=1)
        window.close()
    assert "restarted" in window.notes[0]
    assert targets(window) == ["", "add"]


def test_a_proxy_that_goes_away_in_the_window_is_a_note(session: Session) -> None:
    with running("--admin-port", str(free_port())) as (url, admin, process):
        RawClient(url).initialize()
        session.names |= {"diag": mcpdiag.attach(admin), "process": process}
        assert (
            session.run("%%mcp_window --proxy diag\nprocess.terminate(); process.wait(20)\n'done'") == "done"
        )
    assert "no proxy at" in session.names["window"].notes[0]
    assert "no proxy at" in session.shown()[0]


def test_rows_that_were_overwritten_are_said(session: Session) -> None:
    recorder = mcpdiag.Recorder(events=10)
    session.names |= {"recorder": recorder, "Happened": mcpdiag.Happened}
    session.run("%%mcp_window --proxy recorder\nfor n in range(25): recorder.emit(Happened('x', 'up'))")
    window = session.names["window"]
    assert len(window.events) == 10
    assert window.dropped["events"] == 15
    assert "missing: 15 events" in window.notes[0]


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("%%mcp_window\n1", "no variable 'proxy'; start a proxy with %mcp_proxy"),
        ("%%mcp_window x --proxy number\n1", "looks at a proxy, a recorder, or what mcpdiag.attach has returned; found an int"),
        ("%%mcp_window 3x\n1", "'3x', which is no name"),
        ("%%mcp_window proxy\n1", "would take the place of 'proxy'"),
        ("%%mcp_window two words\n1", "unrecognized arguments: words"),
        ("%%mcp_window --proxy ended\n1", "the proxy has stopped"),
        ("%%mcp_window", "cell body is empty"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_and_the_cell_does_not_run(session: Session, cell: str, says: str) -> None:
    ended = mcpdiag.Recorder()
    ended.close()
    session.names |= {"number": 1, "ended": ended}
    error = session.fails(cell + "\nran = True" if cell.endswith("1") else cell)
    assert isinstance(error, UsageError)
    assert says in str(error)
    assert "ran" not in session.names


def test_a_proxy_that_records_nothing_is_said(session: Session) -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0, record=False) as proxy:
        session.names["proxy"] = proxy
        assert "leave out record=False" in str(session.fails("%%mcp_window\n1"))


def test_the_magic_can_be_called_by_name_but_for_await(proxied: Session) -> None:
    proxied.shell.run_cell_magic("mcp_window", "called", "client.call('echo', text='x')")
    assert targets(proxied.names["called"]) == ["echo"]
    with pytest.raises(UsageError, match="must be the first line"):
        proxied.shell.run_cell_magic("mcp_window", "", "await nothing")


def test_what_a_client_named_is_escaped(proxied: Session) -> None:
    proxied.run("%%mcp_window\nclient.call('<script>')")
    assert "script" not in Tags(proxied.shown()[0]).tags


@pytest.mark.anyio
async def test_a_window_streams_and_is_saved_from_its_frames(proxied: Session, tmp_path: Path) -> None:
    proxied.names["client"].call("echo", text="x")
    source = proxied.shell.find_cell_magic("mcp_window").__self__._source("proxy")
    window = Window(source, label="w", proxy="proxy")
    proxied.names["client"].call("echo", text="y")
    window.close()
    pieces = [piece async for piece in window.stream("requests")]
    assert [len(piece) for piece in pieces] == [1]
    window.requests.to_parquet(tmp_path / "w.parquet")
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "w.parquet"), window.requests, check_dtype=False, check_categorical=False
    )
