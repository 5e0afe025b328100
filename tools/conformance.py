"""Runs the official MCP conformance suites through the proxy and compares each check with the bare server's.

`python tools/conformance.py [--revision R] [--only bare|http|stdio]`. Once for each era, with the suite and with a server
of our own for it: on the HTTP server itself, on the proxy in front of that, and on the proxy in front of the same server
as a stdio child. `make conformance` calls this; it needs `tools/setup-node` and `tools/setup-clients`. Logs and results
are left in .tools/conformance. Exit code 1: a check came out worse than on the bare server, or fewer passed than should.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".tools" / "conformance"
NODE = ROOT / ".tools" / "node" / "bin" / "node"
MODULES = ROOT / ".tools" / "node" / "node_modules"
PYTHON_2 = ROOT / ".tools" / "mcp2" / "bin" / "python"
PROXY = (sys.executable, "-m", "mcpdiag", "proxy", "--port", "0")
WAYS = ("bare", "http", "stdio")
# What a check's result is worth. One that does not apply has found nothing wrong.
WORTH = {"FAILURE": 0, "WARNING": 1, "SKIPPED": 2, "SUCCESS": 2}


@dataclass(frozen=True)
class Revision:
    """One revision: its suite, our server for it, and what is to pass, so that an empty or a cut run cannot."""

    name: str
    suite: Path
    scope: tuple[str, ...]
    server: tuple[str | Path, ...]
    expected: dict[str, int]
    not_over_stdio: frozenset[str] = frozenset()  # checks of what a stdio server does not have
    stdio_mode: tuple[str, ...] = ()
    left_out: str = "none of them"  # scenarios whose name begins so, for what the server does not have


REVISIONS = (
    Revision(
        "2025-11-25",
        MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js",
        ("--suite", "all", "--spec-version", "2025-11-25"),
        (sys.executable, "-m", "tests.servers.conformance"),
        {"bare": 47, "http": 47, "stdio": 43},
        # It has no stream to close and resume, and may be answered for in JSON: then these are mere information.
        not_over_stdio=frozenset(
            f"server-sse-{what}"
            for what in ("streams-functional", "priming-event", "retry-field", "disconnect-resume")
        ),
    ),
    Revision(
        "2026-07-28",
        MODULES / "conformance-stateless" / "dist" / "index.js",
        ("--requirements", "2026-07-28"),
        (PYTHON_2, "tests/servers/stateless_sdk.py"),
        {"bare": 152, "http": 152, "stdio": 152},
        # The server tells its own listeners what has changed in it, so listeners and calls have to share a process.
        stdio_mode=("--pool-mode", "multiplex"),
        left_out="tasks-",  # an extension
    ),
)

READY_S = 30.0
SUITE_S = 180.0
STOP_S = 10.0


class BrokenRunError(Exception):
    """A program did not start or did not end; the message says which one and names its log."""


class Program:
    """A program in a process group of its own, which is gone when the block ends, however it ends."""

    def __init__(self, name: str, command: Sequence[str | Path], folder: Path) -> None:
        self.name = name
        self.command = command
        self.log = folder / f"{name}.log"
        self.output: list[str] = []
        self.url: str | None = None  # the first it names that is not its upstream's
        self._told = threading.Event()  # the URL was seen, or no more output will come

    def __enter__(self) -> Program:
        self._process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        # Reads to the end, long after the URL was seen: a full pipe would stop the program.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(STOP_S)

    def _read(self) -> None:
        with self.log.open("w") as log:
            for line in self._process.stdout or ():
                self.output.append(line)
                log.write(line)
                log.flush()
                urls = re.findall(r"http://127\.0\.0\.1:\d+/\S*mcp\b", line)
                self.url = self.url or next((url for url in urls if url not in self.command), None)
                if self.url:
                    self._told.set()
        self._told.set()

    def ready_url(self) -> str:
        in_time = self._told.wait(READY_S)
        if self.url is None:
            what = "ended without naming a URL" if in_time else f"named no URL within {READY_S} s"
            last = self.output[-1].strip() if self.output else "no output"
            raise BrokenRunError(f"the {self.name} {what}: {last} (see {shown(self.log)})")
        return self.url

    def finish(self) -> str:
        """Waits for the program's end; its whole output."""
        try:
            self._process.wait(SUITE_S)
        except subprocess.TimeoutExpired:
            raise BrokenRunError(
                f"the {self.name} did not end within {SUITE_S} s (see {shown(self.log)})"
            ) from None
        self._reader.join(STOP_S)
        return "".join(self.output)


# (scenario, id, name) -> (status, reason) of each check with these, in order. Mere information is left out: it is no
# check, and what it counts differs from run to run.
Checks = dict[tuple[str, str, str], list[tuple[str, str]]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the official MCP conformance suites through the proxy.")
    parser.add_argument("--revision", choices=[each.name for each in REVISIONS], help="default: all")
    parser.add_argument("--only", choices=WAYS, help="one way beside the bare server; default: all")
    options = parser.parse_args()
    revisions = [each for each in REVISIONS if options.revision in (None, each.name)]
    for path, setup in ((NODE, "setup-node"), *((each.suite, "setup-node") for each in revisions)):
        if not path.exists():
            say(f"the conformance suites are not installed; run: sh tools/{setup}")
            return 3
    if not PYTHON_2.exists() and any(PYTHON_2 in each.server for each in revisions):
        say("the official Python SDK 2.x is not installed; run: sh tools/setup-clients")
        return 3

    ways = [way for way in WAYS if way == "bare" or options.only in (None, way)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit unwinds, so every program is ended
    good = True
    try:
        for revision in revisions:
            good &= compare(revision, ways)
    except KeyboardInterrupt:
        return 130
    return 0 if good else 1


def compare(revision: Revision, ways: Sequence[str]) -> bool:
    """Runs one revision each way and prints a line for each; whether all is well."""
    good, bare = True, None
    for way in ways:
        try:
            checks = run(revision, way)
        except BrokenRunError as error:
            say(f"{revision.name} {way}: {error}")
            good = False
            continue
        bare = bare or checks
        excused = revision.not_over_stdio if way == "stdio" else frozenset[str]()
        worse = [] if way == "bare" else find_worse(bare, checks, excused)
        statuses = Counter(status for results in checks.values() for status, _ in results)
        say(
            f"{revision.name}  {'bare HTTP server' if way == 'bare' else f'{way} upstream':<17}"
            f"{len({key[0] for key in checks}):>4} scenarios {statuses['SUCCESS']:>4} passed "
            f"{statuses['FAILURE']:>3} failed {statuses['WARNING']:>3} warnings"
            + ("" if way == "bare" else f" {len(worse):>3} worse than bare")
        )
        for line in worse if way != "bare" else complaints(checks):
            say(f"  {' '.join(line.split())[:300]}")
        if statuses["SUCCESS"] < revision.expected[way]:
            say(f"  only {statuses['SUCCESS']} checks passed where {revision.expected[way]} should")
        good = good and not worse and statuses["SUCCESS"] >= revision.expected[way]
        good = good and not (way == "bare" and statuses["FAILURE"])
    return good


def run(revision: Revision, way: str) -> Checks:
    folder = RESULTS / revision.name / way
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as programs:

        def start(name: str, *command: str | Path) -> Program:
            return programs.enter_context(Program(name, command, folder))

        if way == "stdio":
            url = start("proxy", *PROXY, *revision.stdio_mode, "--", *revision.server, "--stdio").ready_url()
        else:
            url = start("server", *revision.server, "--port", "0").ready_url()
        if way == "http":
            url = start("proxy", *PROXY, "--url", url).ready_url()
        start(
            "suite", NODE, revision.suite, "server", "--url", url, *revision.scope, "--output-dir", folder
        ).finish()
    checks = read(folder, revision)
    if not checks:
        raise BrokenRunError(f"the suite left no results (see {shown(folder / 'suite.log')})")
    return checks


def read(folder: Path, revision: Revision) -> Checks:
    """What the suite has left: a folder for each scenario, its name behind `server-` and before a time."""
    checks: Checks = {}
    for results in sorted(folder.glob("server-*/checks.json")):
        name = re.sub(r"^server-(.*?)-\d{4}-\d\d-\d\dT.*$", r"\1", results.parent.name)
        if name.startswith(revision.left_out):
            continue
        for check in json.loads(results.read_text()):
            if check["status"] != "INFO":
                results_of = checks.setdefault((name, check["id"], check["name"]), [])
                results_of.append((check["status"], check.get("errorMessage") or ""))
    return checks


def find_worse(bare: Checks, proxied: Checks, excused: frozenset[str]) -> list[str]:
    """A line for each check that came out worse, or not at all."""
    worse = []
    for (scenario, check, name), results in bare.items():
        found = proxied.get((scenario, check, name), [])
        for number, (before, _) in enumerate(results):
            if number < len(found):
                now, reason = found[number]
            elif check in excused:
                continue
            else:
                now, reason = "MISSING", "the check was not made"
            if WORTH.get(now, 0) < WORTH.get(before, 0):
                worse.append(f"{scenario}: {check} ({name}): {before} became {now}: {reason}")
    new = {key: results for key, results in proxied.items() if key not in bare}
    return worse + complaints(new)


def complaints(checks: Checks) -> list[str]:
    return [
        f"{scenario}: {check} ({name}): {status}: {reason}"
        for (scenario, check, name), results in checks.items()
        for status, reason in results
        if WORTH.get(status, 0) < WORTH["SUCCESS"]
    ]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
