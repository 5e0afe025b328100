"""What a notebook shows of proxies, pools, frames and results: the numbers, escaped, without secrets."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.hooks import ExchangeDone, Happened
from tests.bench.made import result
from tests.conftest import RawClient
from tests.html.test_html import Tags
from tests.samples.test_remote import free_port

EVIL = "<img src=x onerror=alert(1)>"


def test_a_proxy_shows_where_it_is_and_what_its_pools_do() -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0, admin_port=free_port(), pool_mode="request") as proxy:
        RawClient(proxy.url).initialize().call("echo", text="x")
        text = Tags(proxy._repr_html_()).text
        for said in ("running", proxy.urls["demo"], proxy.admin_url, "1 sessions", "request"):
            assert said in text
    assert "mcpdiag proxy stopped" in Tags(proxy._repr_html_()).text


def test_a_proxy_that_has_not_started_says_so() -> None:
    assert "not started" in mcpdiag.Proxy({"demo": COMMAND}, port=0)._repr_html_()


def test_a_proxy_shows_no_secret_and_escapes_what_it_was_given() -> None:
    upstream = {"command": [*COMMAND, "--token", "hunter2", "--key", EVIL], "env": {"KEY": "hunter3"}}
    with mcpdiag.serve({"demo": upstream}, port=0, token="hunter4") as proxy:
        html = proxy._repr_html_()
    assert "hunter" not in html
    assert {*Tags(html).tags}.isdisjoint({"img", "script"})
    web = mcpdiag.Proxy({"web": "https://localhost/mcp?key=hunter6"}, port=0)
    assert "hunter" not in web._repr_html_()


def test_pool_stats_show_every_field() -> None:
    stats = mcpdiag.PoolStats(max=10, busy=3, size=3, wait_s=1.5)
    text = Tags(stats._repr_html_()).text
    for field in fields(stats):
        assert field.name in text
    assert text.index("returning") < text.index("since the start") < text.index("acquires")


def test_frames_of_every_kind_show_their_summary(tmp_path: Path) -> None:
    port = free_port()
    with mcpdiag.serve({"demo": COMMAND}, port=0, admin_port=port) as proxy:
        RawClient(proxy.url).initialize().call("echo", text="x")
        remote = mcpdiag.attach(proxy.admin_url)
        shown = [proxy.recorder._repr_html_(), remote._repr_html_()]
        shown.append(mcpdiag.load(proxy.recorder.save(tmp_path / "run"))._repr_html_())
    for html in shown:
        assert ">demo</td>" in html
        assert ">echo</td>" in html
    assert f"http://127.0.0.1:{port}" in shown[1]
    assert str(tmp_path / "run") in shown[2]
    assert "no proxy at" in remote._repr_html_(), "a proxy that is gone is said, not raised"


def test_an_empty_recorder_says_that_there_is_no_call() -> None:
    assert "no call yet" in mcpdiag.Recorder()._repr_html_()


def test_names_and_errors_from_outside_are_escaped() -> None:
    recorder = mcpdiag.Recorder()
    recorder.emit(ExchangeDone(EVIL, "stdio", "tools/call", EVIL, "s", "", "ok"))
    recorder.emit(Happened("child_exit", EVIL, detail=EVIL))
    html = recorder._repr_html_()
    assert "img" not in Tags(html).tags
    assert Tags(html).text.count(EVIL) == 2


def test_more_than_twenty_targets_are_counted() -> None:
    recorder = mcpdiag.Recorder()
    for number in range(25):
        recorder.emit(ExchangeDone("up", "stdio", "tools/call", f"t{number}", "s", "", "ok"))
    assert "and 5 more" in recorder._repr_html_()


def test_a_result_shows_its_table_and_what_it_means() -> None:
    made = result(seed=1)
    text = Tags(made._repr_html_()).text
    for said in ("req/s", made.name, made.environment.machine):
        assert said in text


def test_reprs_of_proxy_and_pool_need_no_pandas() -> None:
    code = (
        "import sys\nfor name in ('pandas', 'pyarrow', 'matplotlib', 'IPython'): sys.modules[name] = None\n"
        "import mcpdiag\n"
        "print(len(mcpdiag.PoolStats()._repr_html_()), len(mcpdiag.Proxy({'x': ['true']})._repr_html_()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
