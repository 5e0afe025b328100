"""A Python stdio server under memray: its command, and afterwards the heap frame of its processes.

`heap_servers` rewrites the command of an upstream with `under_memray`; each process then writes `PID.bin` in the folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import to_thread

from mcpdiag.errors import HeapError, HeapUnavailable
from mcpdiag.samples.heap_records import Site
from mcpdiag.samples.heap_rows import HeapRows, Window
from mcpdiag.samples.heap_tracker import read_in_child

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

log = logging.getLogger("mcpdiag.samples")
PROBE_TIMEOUT = 30.0  # seconds for the interpreter to import memray
_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?$")


def under_memray(
    command: Sequence[str],
    directory: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    python_allocators: bool = False,
) -> list[str]:
    """The command that runs a Python server under `python -m memray run -q`, each process with a file of its own.

    The process has the same id, arguments, stdin and stdout. It starts 0.5 to 1 s later, and has about 0.57 of its
    throughput. Waits for the interpreter to import memray, so call it before the event loop is busy, or in a thread.

    Args:
        command: `python [options] FILE ...`, `python -m MODULE ...`, `python -c CODE ...`, or a script whose first
            line names a Python interpreter, as console scripts have it.
        directory: where the files go; made if it is missing. One upstream, one directory.
        env: added to this process's environment, as the server will have it.
        cwd: the server's working directory.
        python_allocators: see every small object, at 0.35 of the throughput, and much larger files.

    Raises:
        HeapUnavailable: the command is no Python program, or its interpreter has no memray; says what to do.
        HeapError: the directory cannot be made.
    """
    environment = {**os.environ, **(env or {})}
    interpreter, options, program = _taken_apart(command, environment, cwd)
    _probe([interpreter, *options], environment, cwd)
    try:
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeapError(f"the folder {directory} for heap captures cannot be made: {error}") from None
    flags = ["--trace-python-allocators"] if python_allocators else []
    run = shlex.join([interpreter, *options, "-m", "memray", "run", "-q", *flags, "-o"])
    # -q: memray's banner on stdout is no JSON-RPC. The format is ALL, its default: an aggregated file is empty if the
    # server is killed. `exec` keeps the process id, so `$$` is the server's.
    return ["/bin/sh", "-c", f'exec {run} {shlex.quote(f"{directory}/")}$$.bin "$@"', "memray", *program]


async def captured(directory: Path, upstream: str, *, sites: int = 50) -> DataFrame:
    """The frame `heap` of every process that ran in that directory: also of those that were killed or still run.

    `window` is `pid 1234`, `ts` when the file was last written. `leaked` is what was live at the end.
    A file that cannot be read, as of a process that was killed while it started, is left out with a warning.
    """
    rows = HeapRows()
    for path in await to_thread.run_sync(captures, directory):
        try:
            rows.keep(await read_capture(path, upstream, path.stat().st_mtime_ns, sites=sites))
        except HeapError as error:
            log.warning("%s", error)
    return await to_thread.run_sync(_frame, rows)


def captures(directory: Path) -> list[Path]:
    """The files in it, the one that was written last comes last."""
    found = []
    for path in directory.glob("*.bin"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


async def read_capture(path: Path, upstream: str, at_ns: int, *, sites: int) -> Window:
    """What the process of a file held when the file was last written. Raises HeapError if it cannot be read.

    Args:
        at_ns: the `ts` of its rows.
    """
    found = tuple(Site(*row) for row in await read_in_child("sites", path, sites))
    return Window(at_ns, upstream, f"pid {path.stem}", float("nan"), 0, found)


def _frame(rows: HeapRows) -> DataFrame:
    from mcpdiag.samples.frame import build

    return build("heap", rows.ring.read())


# -- what a command is --------------------------------------------------------------------------------------


def _taken_apart(
    command: Sequence[str], environment: Mapping[str, str], cwd: Path | None
) -> tuple[str, list[str], list[str]]:
    """Interpreter, its options, and what follows them: `-m MODULE ...`, `-c CODE ...` or `FILE ...`."""
    name, *arguments = command
    if _PYTHON.fullmatch(Path(name).name):
        options, program = _split_options(command, arguments)
        return name, options, program
    found = shutil.which(str((cwd or Path()) / name) if "/" in name else name, path=environment.get("PATH"))
    if found is None:
        raise HeapUnavailable(f"{name!r} cannot run under memray: there is no such program")
    line = _shebang(Path(found))
    if line[:1] and Path(line[0]).name == "env":
        line = [part for part in line[1:] if part != "-S"]
    if not line or not _PYTHON.fullmatch(Path(line[0]).name):
        raise HeapUnavailable(
            f"{shlex.join(command)} cannot run under memray: {found} is no Python program; "
            "give the command as `python -m MODULE` or `python FILE` of the environment that has the server"
        )
    return line[0], line[1:], [found, *arguments]


def _split_options(command: Sequence[str], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    options: list[str] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        option = rest.pop(0)
        letters = "" if option.startswith("--") else option[1:]
        taker = next((letter for letter in letters if letter in "cmWX"), "")  # it takes what comes after it
        before, _, value = letters.partition(taker) if taker else (letters, "", "")
        if taker in ("c", "m"):
            options += [f"-{before}"] if before else []
            program = [f"-{taker}", *([value] if value else []), *rest]
            if len(program) > 1:
                return options, program
            break
        options.append(option)
        if rest and (option == "--check-hash-based-pycs" or (taker and not value)):
            options.append(rest.pop(0))
    if rest and rest[0] != "-":
        return options, rest
    raise HeapUnavailable(
        f"{shlex.join(command)} cannot run under memray: it names no file, module or code for the interpreter"
    )


def _shebang(path: Path) -> list[str]:
    """The words of a script's first line after `#!`; of the real one, where an installer had to wrap it in sh."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise HeapUnavailable(f"{path} cannot run under memray: it cannot be read: {error}") from None
    if not head.startswith(b"#!"):
        return []
    first, _, rest = head.decode(errors="replace").partition("\n")
    words = first[2:].split()
    second = rest.partition("\n")[0]
    if words[:1] == ["/bin/sh"] and second.startswith("'''exec'"):
        words = shlex.split(second.removeprefix("'''exec'"))[:-2]  # without "$0" "$@"
    return words


def _probe(interpreter: Sequence[str], environment: Mapping[str, str], cwd: Path | None) -> None:
    shown = shlex.join(interpreter)
    try:
        found = subprocess.run(
            [*interpreter, "-c", "import memray"],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HeapUnavailable(f"{shown} cannot run under memray: {error}") from None
    if found.returncode:
        words = found.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise HeapUnavailable(
            f"{shown} cannot import memray ({words[0]}), which a server needs to run under it; "
            f"{interpreter[0]} -m pip install memray"
        )
