"""Real notebooks in real kernels: magics, interrupts, live views, and what is left when a kernel ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import mcpdiag
from tests.conftest import RawClient
from tests.notebook.kernels import PROXY, SETUP, Cell, Kernel, kernel, run, text, until
from tests.samples.test_remote import free_port, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel with a proxy and a client of it."""
    with kernel(tmp_path) as made:
        cell = made.run(PROXY)
        assert not cell.error, cell.messages
        yield made


def test_a_notebook_with_everything() -> None:
    outputs = run(
        SETUP,
        PROXY,
        "%%mcp_window warm\nfor n in range(20): client.call('echo', text=str(n))\nn",
        "%%mcp_window\nawait asyncio.sleep(0)\nimport anyio\nawait anyio.to_thread.run_sync(lambda: client.call('add', a=1, b=2))",
        "view = live(proxy, every=0.2)\nview",
        "looks = view.looks\nwhile view.looks < looks + 3: client.call('echo', text='x')\nprint('only this')",
        "view.stop(); view.why",
        "from mcpdiag.samples import plot\nplot.latency(warm.requests).get_title('left') is not None",
        "%mcp_proxy --stop",
    )
    assert "sessions" in outputs[1][0]["data"]["text/html"]
    assert text(outputs[2]) == "19\n" + text(outputs[2][1:])
    assert "20 calls in" in outputs[2][1]["data"]["text/html"]
    assert text(outputs[3]).startswith("'3'\n<Window 'window' of proxy: 1 call in")
    assert len(outputs[4]) == 1, "a view as the last line of its cell is shown once"
    assert "by stop()" in outputs[4][0]["data"]["text/html"], "nbclient follows updates of a display"
    assert [each["output_type"] for each in outputs[5]] == ["stream"]
    assert text(outputs[5]) == "only this\n"
    assert "stopped" in outputs[8][0]["data"]["text/html"]


@pytest.mark.parametrize("waits", ["client.call('sleep', seconds=50)", "await asyncio.sleep(50)"])
def test_an_interrupted_cell_leaves_kernel_and_proxy_working(proxied: Kernel, waits: str) -> None:
    cell = proxied.begin(
        f"%%mcp_window cut\nclient.call('echo', text='x')\nprint('begun', flush=True)\n{waits}"
    )
    proxied.pump(cell, lambda cell: "begun" in cell.printed)
    proxied.interrupt()
    proxied.pump(cell)
    assert cell.error in {"KeyboardInterrupt", "CancelledError"}
    assert "1 call in" in cell.html or "2 calls in" in cell.html
    assert proxied.value("cut.error.split(':')[0] in {'KeyboardInterrupt', 'CancelledError'}") == "True"
    assert proxied.value("client.call('echo', text='still here')") == "still here"
    assert not proxied.run("%%mcp_window\nclient.call('echo', text='x')").error


def busy_with_view(proxied: Kernel, folder: Path, head: str = "") -> Cell:
    """A cell that only sleeps while a client outside makes calls, until the view was updated three times."""
    flag = folder / "go on"
    url = proxied.value("proxy.url")
    client = RawClient(url).initialize()
    cell = proxied.begin(
        f"{head}print('begun', flush=True)\nwhile not Path({str(flag)!r}).exists(): time.sleep(0.05)"
    )
    if not head:
        proxied.pump(cell, lambda cell: "begun" in cell.printed)

    def updated(cell: Cell) -> bool:
        client.call("echo", text="x")
        return len(cell.of("update_display_data")) >= 3

    proxied.pump(cell, updated)
    flag.touch()
    return proxied.pump(cell)


def test_a_live_view_goes_on_under_a_cell_that_sleeps_and_lands_nowhere_else(
    proxied: Kernel, tmp_path: Path
) -> None:
    shown = proxied.run("view = live(proxy, every=0.2)\nview")
    (first,) = shown.of("display_data")
    cell = busy_with_view(proxied, tmp_path)
    updates = cell.of("update_display_data")
    ids = {each["content"]["transient"]["display_id"] for each in updates}
    assert ids == {first["content"]["transient"]["display_id"]}
    assert cell.of("display_data", "execute_result", "error") == []
    assert cell.printed == "begun\n"
    assert "calls per s" in updates[-1]["content"]["data"]["text/html"]
    assert "data:image/png;base64," in updates[-1]["content"]["data"]["text/html"]


def test_a_live_view_is_not_captured_by_another_cell(proxied: Kernel, tmp_path: Path) -> None:
    proxied.run("view = live(proxy, every=0.2, plot=False)")
    cell = busy_with_view(proxied, tmp_path, head="%%capture taken\n")
    assert len(cell.of("update_display_data")) >= 3
    assert proxied.value("len(taken.outputs), taken.stdout.strip()") == r"0 begun"


def test_a_live_view_updates_nothing_while_nothing_happens(proxied: Kernel) -> None:
    proxied.run("view = live(proxy, every=0.2, plot=False)")
    proxied.run("looks = view.looks\nwhile view.looks < looks + 3: time.sleep(0.05)")
    assert proxied.run("n = view.updates, view.looks").of("update_display_data") == []
    proxied.run("while view.looks < n[1] + 5: time.sleep(0.05)")
    assert proxied.value("view.updates - n[0]") == "0"


def test_a_live_view_stops_by_itself_with_the_words_why(proxied: Kernel) -> None:
    proxied.run("view = live(proxy, every=0.2, plot=False)")
    cell = proxied.run(
        "%mcp_proxy --stop\nwhile view.running: time.sleep(0.05)\nview._thread.join()\nprint(view.why)"
    )
    assert cell.printed == "the proxy has stopped\n"
    assert "the proxy has stopped" in cell.of("update_display_data")[-1]["content"]["data"]["text/html"]


def test_a_second_view_of_the_same_proxy_stops_the_first(proxied: Kernel) -> None:
    proxied.run("one = live(proxy, plot=False)")
    proxied.run("two = live(proxy.recorder, plot=False)")
    assert proxied.value("one.running, two.running, one.why") == (
        "False True another view looks at the same proxy now"
    )
    assert proxied.value("sum(each.name == 'mcpdiag-live' for each in threading.enumerate())") == "1"


def test_an_interrupt_does_not_end_a_live_view(proxied: Kernel) -> None:
    proxied.run("view = live(proxy, every=0.2, plot=False)")
    cell = proxied.begin("print('begun', flush=True)\ntime.sleep(50)")
    proxied.pump(cell, lambda cell: "begun" in cell.printed)
    proxied.interrupt()
    assert proxied.pump(cell).error == "KeyboardInterrupt"
    proxied.run("looks = view.looks\nwhile view.looks < looks + 2: time.sleep(0.05)")
    assert proxied.value("view.running") == "True"


def test_a_killed_kernel_leaves_no_process(proxied: Kernel) -> None:
    proxied.run("view = live(proxy, plot=False)")
    children = proxied.children()
    assert any("embedded" in " ".join(child.cmdline()) for child in children)
    os.kill(proxied.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert len(gone) == len(children)


def test_a_kernel_that_is_shut_down_leaves_no_process_and_stops_in_order(
    proxied: Kernel, tmp_path: Path
) -> None:
    proxied.run(f"%mcp_proxy demo --capture {tmp_path / 'run'} -- {{COMMAND[0]}} {{COMMAND[1]}}")
    assert (
        proxied.run(
            "view = live(proxy, plot=False)\nRawClient(proxy.url).initialize().call('echo', text='x')"
        ).error
        == ""
    )
    children = proxied.children()
    proxied.manager.shutdown_kernel()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    capture = mcpdiag.load(tmp_path / "run")
    assert capture.complete, "the proxy was closed, not just ended"
    assert len(capture.requests) == 2


def test_a_kernel_that_attaches_plots_the_last_minute_and_its_death_changes_nothing(tmp_path: Path) -> None:
    """The proxy runs in a process of its own, under load. A kernel looks on, and is killed in the middle of it."""
    done, failed = [0, 0, 0], []
    stop = threading.Event()

    def load(number: int, url: str) -> None:
        try:
            client = RawClient(url).initialize()
            while not stop.is_set():
                assert client.call("echo", text="x") == "x"
                done[number] += 1
        except BaseException as error:
            failed.append(error)

    with running("--admin-port", str(free_port()), "--pool-mode", "request") as (url, admin, process):
        threads = [threading.Thread(target=load, args=(number, url)) for number in range(len(done))]
        for thread in threads:
            thread.start()
        try:
            proxy = psutil.Process(process.pid)
            until(lambda: min(done) > 20, "the load runs")
            diag = mcpdiag.attach(admin)
            descriptors, children = proxy.num_fds(), {child.pid for child in proxy.children(recursive=True)}
            with kernel(tmp_path) as looking:
                looking.run(f"diag = mcpdiag.attach({admin!r})")
                window = looking.run("%%mcp_window seen --proxy diag\ntime.sleep(1)")
                assert ">echo</td>" in window.html
                drawn = looking.run(
                    "%matplotlib inline\nimport pandas as pd\nfrom mcpdiag.samples import plot\n"
                    "requests = diag.requests\n"
                    "minute = requests[requests['ts'] > requests['ts'].max() - pd.Timedelta('60s')]\n"
                    "plot.latency(minute)\nprint(len(minute) > 20)"
                )
                assert drawn.printed == "True\n"
                assert any("image/png" in each["content"]["data"] for each in drawn.of("display_data"))
                view = looking.run("view = live(diag, every=0.2)")
                assert "data:image/png" in view.html
                busy = looking.begin("time.sleep(100)")
                looking.pump(busy, lambda cell: len(cell.of("update_display_data")) >= 2)
                before = [*done]
                os.kill(looking.pid, signal.SIGKILL)
                psutil.wait_procs(
                    [psutil.Process(looking.pid)] if psutil.pid_exists(looking.pid) else [], timeout=30
                )
            until(
                lambda: all(now > then + 50 for now, then in zip(done, before, strict=True)),
                "the load goes on",
            )
            assert process.poll() is None
            assert failed == []
            assert {child.pid for child in proxy.children(recursive=True)} == children
            until(
                lambda: proxy.num_fds() <= descriptors,
                "the descriptors of the kernel's connections are closed",
            )
            assert diag.stats()["sessions"] == len(done)
            outcomes = {str(each) for each in diag.requests["outcome"].unique()}
            assert outcomes == {"ok"}
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)


def test_a_live_view_of_an_attached_proxy_waits_for_it_and_then_says_why_it_stops(tmp_path: Path) -> None:
    with kernel(tmp_path) as looking:
        with running("--admin-port", str(free_port())) as (url, admin, _):
            RawClient(url).initialize().call("echo", text="x")
            first = looking.run(
                f"diag = mcpdiag.attach({admin!r})\nview = live(diag, every=0.2, plot=False, patience=1)"
            )
            assert not first.error, first.of("error")[0]["content"]["evalue"]
            assert "calls per s" in first.html
        cell = looking.run("while view.running: time.sleep(0.05)\nview._thread.join()\nprint(view.why)")
        assert cell.printed.startswith(f"no proxy at {admin}")
        assert cell.of("stream")[0]["content"]["name"] == "stdout"
        html = [each["content"]["data"]["text/html"] for each in cell.of("update_display_data")]
        assert "live:" in html[0], "out of reach is said before it gives up"
        assert "stopped:" in html[-1]
        assert looking.value("view.running") == "False"
