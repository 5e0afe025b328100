"""Real processes, read from outside and through a probe."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

from mcpdiag.bench.readings import COLUMNS, Reading, rows, write
from mcpdiag.bench.vitals import PROBE, Vitals, ask, children_of, growing, listens_on, probed, read

# Evaluates each line of its stdin, and says what came of it.
OBEYS = "import sys\nkept = []\nfor line in sys.stdin:\n    exec(line)\n    print('done', flush=True)\n"
Do = Callable[[str], None]


@contextmanager
def obedient(folder: Path, *, probe: bool = True) -> Iterator[tuple[int, Do]]:
    """A Python program that does what it is told; its pid."""
    command = [sys.executable, "-c", OBEYS]
    wanted = probed(command, folder) if probe else command
    assert wanted is not None
    process = subprocess.Popen(wanted, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def do(line: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        print(line, file=process.stdin, flush=True)
        assert process.stdout.readline() == "done\n"

    try:
        do("pass")  # it runs
        yield process.pid, do
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def test_a_probe_tells_what_was_allocated(tmp_path: Path) -> None:
    """1,000 objects of 48 B are 1,000 blocks; 1,000 of 4 KiB are malloc's."""
    with obedient(tmp_path) as (pid, do):
        for _ in range(3):
            before = read([pid], tmp_path)
        do("kept.extend(bytes(15) for _ in range(1000))")
        small = read([pid], tmp_path)
        assert small.blocks - before.blocks == pytest.approx(1000, abs=20)
        do("kept.extend(bytes(4096) for _ in range(1000))")
        large = read([pid], tmp_path)
        if sys.platform == "linux":
            assert large.heap_bytes - small.heap_bytes == pytest.approx(4.1e6, rel=0.02)
        do("kept.clear()")
        assert read([pid], tmp_path).blocks == pytest.approx(before.blocks, abs=20)


def test_the_instrument_itself_retains_nothing(tmp_path: Path) -> None:
    """Asked again and again while nothing else happens, it tells the same to within a few blocks."""
    with obedient(tmp_path) as (pid, _):
        seen = [read([pid], tmp_path) for _ in range(200)]
    blocks = [each.blocks for each in seen]
    assert median(blocks[-20:]) - median(blocks[20:40]) <= 2
    assert max(blocks[10:]) - min(blocks[10:]) <= 20
    heap = [each.heap_bytes for each in seen]
    assert median(heap[-20:]) - median(heap[20:40]) <= 512 or sys.platform != "linux"


def test_garbage_in_cycles_is_no_growth(tmp_path: Path) -> None:
    with obedient(tmp_path) as (pid, do):
        before = read([pid], tmp_path)
        do("import gc; gc.disable()")
        do("for _ in range(5000): each = [bytes(15)]; each.append(each)")
        assert read([pid], tmp_path).blocks - before.blocks < 200


def test_from_outside(tmp_path: Path) -> None:
    """Memory that is touched, descriptors, threads and children are seen; blocks and heap are not."""
    with obedient(tmp_path, probe=False) as (pid, do):
        before = read([pid], tmp_path)
        assert (before.processes, before.children, before.pids) == (1, 0, (pid,))
        assert str(before.blocks) == str(before.heap_bytes) == "nan"
        do("kept.append(bytearray(b'x' * 20_000_000))")
        do("import os, threading; kept += [os.open(os.devnull, 0) for _ in range(7)]")
        do("threading.Thread(target=threading.Event().wait, daemon=True).start()")
        after = read([pid])
        assert after.private_bytes - before.private_bytes == pytest.approx(20e6, rel=0.2)
        assert (after.fds - before.fds, after.threads - before.threads) == (7, 1)
        do("import subprocess; kept.append(subprocess.Popen(['/bin/cat'], stdin=subprocess.PIPE))")
        with_child = read([pid])
        assert (with_child.processes, with_child.children) == (2, 1)
        assert len(children_of(pid)) == 1
        assert read([pid], descendants=False).processes == 1
        do("kept[-1].kill()")  # and nobody waits for it
        deadline = time.monotonic() + 10
        while read([pid]).rss_bytes >= with_child.rss_bytes and time.monotonic() < deadline:
            time.sleep(0.01)
        assert read([pid]).children == 1  # a zombie


def test_a_process_that_is_gone_is_left_out(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    found = read([gone.pid, os.getpid()], tmp_path)
    assert found.pids == (os.getpid(),)
    assert read([gone.pid]).processes == 0
    assert ask(tmp_path, gone.pid) is None


def test_a_dead_socket_is_no_probe(tmp_path: Path) -> None:
    (tmp_path / f"{os.getpid()}.sock").touch()
    assert ask(tmp_path, os.getpid()) is None


@pytest.mark.parametrize(
    ("command", "rewritten"),
    [
        (["python", "server.py", "-x"], ["python", "P", "F", "server.py", "-x"]),
        (
            ["/usr/bin/python3.12", "-u", "-m", "my.server"],
            ["/usr/bin/python3.12", "-u", "P", "F", "-m", "my.server"],
        ),
        (["python", "-X", "dev", "-c", "pass", "a"], ["python", "-X", "dev", "P", "F", "-c", "pass", "a"]),
        (["python", "-mserver"], ["python", "P", "F", "-m", "server"]),
        (["node", "server.js"], None),
        (["python"], None),
    ],
)
def test_where_a_probe_goes(command: list[str], rewritten: list[str] | None) -> None:
    places = {"P": PROBE, "F": "folder"}
    expected = None if rewritten is None else [places.get(each, each) for each in rewritten]
    assert probed(command, Path("folder")) == expected


@pytest.mark.parametrize("kind", ["file", "module", "code"])
def test_a_probed_program_sees_what_it_would_see_without(tmp_path: Path, kind: str) -> None:
    """argv, __name__, its folder on the path, the exit code."""
    (tmp_path / "beside.py").write_text("value = 7\n")
    code = "import sys, beside; print(__name__, sys.argv[1:], beside.value, flush=True); sys.exit(3)"
    (tmp_path / "program.py").write_text(code)
    what = {"file": ["program.py"], "module": ["-m", "program"], "code": ["-c", code]}[kind]
    command = [sys.executable, *what, "one", "-two"]
    rewritten = probed(command, tmp_path)
    assert rewritten is not None
    with_it, without = (
        subprocess.run(each, cwd=tmp_path, capture_output=True, text=True) for each in (rewritten, command)
    )
    assert (with_it.stdout, with_it.returncode) == (without.stdout, 3), with_it.stderr
    assert with_it.stdout == "__main__ ['one', '-two'] 7\n"


def test_who_listens_on_a_port() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listens_on(server.getsockname()[1]) in ([os.getpid()], [])  # [] where it may not be seen


@pytest.mark.parametrize("arrow", [True, False])
def test_readings_are_written_with_a_column_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrow: bool
) -> None:
    one = Vitals(processes=1, pids=(5,), rss_bytes=1e6, private_bytes=5e5, fds=7, threads=1, cpu_s=0.5)
    readings = [
        Reading(at_s=1.0 * at, requests=100 * at, vitals={"proxy": one, "server": one}, sessions=20)
        for at in range(1, 4)
    ]
    assert [row[COLUMNS.index("sessions")] for row in rows(readings)][:1] == [20]
    if not arrow:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        import csv
        import gzip

        with gzip.open(write(readings, tmp_path), "rt") as stream:
            found = [*csv.DictReader(stream)]
        assert [each["requests"] for each in found] == ["100", "100", "200", "200", "300", "300"]
        assert found[0]["blocks"] == ""
        return
    import pyarrow.parquet as parquet

    table = parquet.read_table(write(readings, tmp_path)).to_pydict()
    assert tuple(table) == COLUMNS
    assert table["requests"] == [100, 100, 200, 200, 300, 300]
    assert table["process"][:2] == ["proxy", "server"]
    assert table["blocks"] == [None] * 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="memray has no wheels there")
def test_a_probe_names_the_line_that_keeps_objects(tmp_path: Path) -> None:
    """A program that keeps 200 objects of 100 bytes a second, as a server would at that rate."""
    pytest.importorskip("memray")
    program = tmp_path / "keeps.py"
    program.write_text(
        "import sys, time\nkept = []\nprint('done', flush=True)\nended = time.monotonic() + 50\n"
        "def keep():\n    kept.append(bytes(67))\n"
        "while time.monotonic() < ended:\n    keep()\n    time.sleep(0.005)\n"
    )
    wanted = probed([sys.executable, str(program)], tmp_path)
    assert wanted is not None
    process = subprocess.Popen(wanted, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "done\n"
        sites, why = growing(tmp_path, process.pid, seconds=3.0, rate=200)
    finally:
        process.kill()
        process.communicate()
    assert why == ""
    assert (sites[0].function, Path(sites[0].file).name, sites[0].line) == ("keep", "keeps.py", 6)
    assert sites[0].growth_bytes_per_request > 50


def test_without_memray_or_a_probe_the_reason_is_said(tmp_path: Path) -> None:
    sites, why = growing(tmp_path, os.getpid(), seconds=0.1, rate=1)
    assert sites == ()
    assert "the probe did not answer" in why
