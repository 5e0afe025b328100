"""`mcpdiag report`: a capture and a result as one page, opened in a browser; mistakes are lines and leave no file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mcpdiag.embedded import COMMAND
from tests.bench.made import result as made_result
from tests.cli import browser
from tests.conftest import RawClient

MCPDIAG = [sys.executable, "-m", "mcpdiag"]


def report(*args: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [*MCPDIAG, "report", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a proxy in a process of its own that was under load, with a tool whose name is markup."""
    folder = tmp_path_factory.mktemp("runs") / "monday"
    options = ["--port", "0", "--pool-mode", "request", "--max-connections", "1", "--capture", str(folder)]
    command = [*MCPDIAG, "proxy", *options, "--", *COMMAND]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[-1]
            load = ["bench", "load", "--url", url, "--clients", "4", "--seconds", "2", "--warmup", "0"]
            subprocess.run([*MCPDIAG, *load], check=True, stdout=subprocess.DEVNULL, timeout=200)
            client = RawClient(url).initialize()
            client.call("<script>document.title='taken'</script>")
            client.call("exit", code=7)
        finally:
            process.terminate()
        assert process.wait(60) == 0
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    program = browser.find()
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with browser.browser(program, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def looked_at(page: browser.Page, file: Path) -> str:
    """The text of the page, after checks that hold for every report."""
    page.requests.clear()
    page.complaints.clear()
    for dark in (False, True):
        for width in (800, 1400):
            page.dress(width=width, dark=dark)
            page.open(file.as_uri())
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if folder := os.environ.get("REPORT_PICTURES"):
                page.picture(Path(folder) / f"{file.stem}-{width}-{'dark' if dark else 'light'}.png")
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(20, 24, 29)") == dark
    outside = [url for url in page.requests if not url.startswith(("file://", "data:"))]
    assert outside == []
    assert page.complaints == []
    text: str = page.evaluate("document.body.innerText")
    return text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_capture_is_a_page_that_a_browser_shows_without_the_network(
    capture: Path, page: browser.Page, tmp_path: Path
) -> None:
    output = tmp_path / "monday.html"
    done = report(capture, "-o", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Report: {output} (")
    assert [each.name for each in tmp_path.iterdir()] == ["monday.html"]
    text = looked_at(page, output)
    assert page.evaluate("document.title") == "mcpdiag report: monday"
    assert page.evaluate("document.images.length") == 5
    assert page.evaluate("[...document.images].every(image => image.alt)")
    for words in ("echo", "child_exit", "every place is accounted for: True", "ended in order: 1 of 1"):
        assert words in text
    assert "<script>document.title='taken'</script>" in text
    assert "import mcpdiag" not in text
    assert "without parameters" not in text
    assert str(capture.parent) not in output.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_result_is_a_page_and_code_is_shown_on_request(page: browser.Page, tmp_path: Path) -> None:
    folder = tmp_path / "result"
    short = [
        "--transports",
        "stdio",
        "--clients",
        "1",
        "--seconds",
        "0.1",
        "--warmup",
        "0.1",
        "--repeat",
        "3",
    ]
    subprocess.run([*MCPDIAG, "bench", *short, "--output", str(folder), "--quiet"], check=True, timeout=120)
    (tmp_path / "aims.toml").write_text(
        '[[target]]\nname = "a billion"\nmetric = "throughput_rps"\nabove = 1e9\n'
    )
    output = tmp_path / "bench.html"
    done = report(folder, "-o", output, "--code", "--targets", tmp_path / "aims.toml")
    assert done.returncode == 0, done.stderr
    text = looked_at(page, output)
    assert page.evaluate("document.images.length") == 3
    for words in (
        "every combination was measured: True",
        "calls that failed: 0",
        "a billion",
        "missed",
        "import mcpdiag",
    ):
        assert words in text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_capture_without_a_row_is_a_page_too(tmp_path: Path) -> None:
    from mcpdiag.samples.recorder import Recorder

    Recorder().save(tmp_path / "nothing")
    done = report(tmp_path / "nothing", "-o", tmp_path / "nothing.html")
    assert done.returncode == 0, done.stderr
    assert "there was no call" in (tmp_path / "nothing.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cell_that_fails_is_one_line_and_leaves_no_file(capture: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "meta.json").write_bytes((capture / "meta.json").read_bytes())
    (broken / "requests").mkdir()
    (broken / "requests" / "part-000001.parquet").write_bytes(b"no Parquet")
    done = report(broken, "-o", tmp_path / "out" / ".." / "broken.html")
    assert done.returncode == 2  # there is no folder `out`
    done = report(broken, "-o", tmp_path / "broken.html")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("mcpdiag: no report: 06-attach.ipynb failed at 'What was called?': ")
    assert "part-000001.parquet" in line
    assert [each.name for each in tmp_path.iterdir()] == ["broken"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_kernel_and_leaves_no_file(
    capture: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [*MCPDIAG, "report", str(capture), "-o", str(tmp_path / "page.html")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )

    def kernels() -> list[psutil.Process]:
        return [
            each for each in psutil.Process(process.pid).children() if "ipykernel" in " ".join(each.cmdline())
        ]

    _until(lambda: any(each.cpu_times().user > 1.0 for each in kernels()))  # it works
    (kernel,) = kernels()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr == ""
    assert not kernel.is_running()
    assert [*tmp_path.iterdir()] == []


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def _result(folder: Path) -> Path:
    from mcpdiag.bench.result import write

    return write(made_result(1), folder).parent


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda at: at / "nowhere", [], "found no such folder; allowed: a capture, which has a meta.json"),
        (lambda at: at, [], "found neither meta.json nor result.json in it"),
        (lambda at: _file(at / "meta.json", {"format": "x"}).parent, [], "is not of a capture"),
        (lambda at: _file(at / "result.json", {"format": "x"}), [], "found no result of mcpdiag.bench/"),
        (
            lambda at: _result(at),
            ["-o", "there.html"],
            "found a file already; give another --output, or --force",
        ),
        (lambda at: _result(at), ["-o", "no/page.html"], "--output: found no folder"),
        (lambda at: _result(at), ["-o", "."], "--output: found the folder"),
        (lambda at: _result(at), ["--targets", "nowhere.toml"], "--targets: found no nowhere.toml"),
    ],
)
def test_a_mistake_is_one_line(
    make: Callable[[Path], Path],
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("before")
    done = report(make(source), *options, timeout=50)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert words in line
    assert (tmp_path / "there.html").read_text() == "before"
    assert not (tmp_path / "report.html").exists()


def _file(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    hide = "import importlib.util as u, sys; real = u.find_spec; u.find_spec = lambda n, *a: None if n == 'nbclient' else real(n, *a)"
    source = _result(tmp_path / "result")
    code = f"{hide}; sys.argv = ['mcpdiag', 'report', {str(source)!r}, '-o', {str(tmp_path / 'x.html')!r}]; from mcpdiag.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "needs nbclient; pip install 'mcpdiag[notebook]'" in line
