"""Runs the official MCP conformance suite through the proxy: `python tools/conformance.py [--bare] [--only stdio|http]`.

Once in front of our own conformance server as a stdio child, once in front of it as an HTTP server; `--bare` runs the
suite on the HTTP server itself, for comparison. `make conformance` calls this; it needs `tools/setup-node`.
Logs and results are left in .tools/conformance. Exit code 1: a check failed, or fewer passed than the server earns.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".tools" / "conformance"
NODE = ROOT / ".tools" / "node" / "bin" / "node"
SUITE = ROOT / ".tools/node/node_modules/@modelcontextprotocol/conformance/dist/index.js"
REVISION = "2025-11-25"
SERVER = (sys.executable, "-m", "tests.servers.conformance")
PROXY = (sys.executable, "-m", "mcpdiag", "proxy", "--port", "0")

# What the server earns on its own, so that an empty or a cut run cannot pass. A stdio upstream has no stream to close
# and resume, and may be answered for in JSON; the suite then makes four of the checks mere information.
EXPECTED = {"bare": 47, "http": 47, "stdio": 43}

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


@dataclass(frozen=True)
class Scenario:
    name: str
    passed: int
    failed: int
    warnings: int
    remarks: list[str]  # one line for each failure and each warning


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the official MCP conformance suite through the proxy.")
    parser.add_argument("--bare", action="store_true", help="no proxy: the suite on the HTTP server itself")
    parser.add_argument("--only", choices=["stdio", "http"], help="one kind of upstream; default: both")
    options = parser.parse_args()
    if not (NODE.exists() and SUITE.exists()):
        say("the conformance suite is not installed; run: sh tools/setup-node")
        return 3

    ways = ["bare"] if options.bare else [options.only] if options.only else ["stdio", "http"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit unwinds, so every program is ended
    passed = failed = 0
    good = True
    try:
        for way in ways:
            try:
                scenarios = run(way)
            except BrokenRunError as error:
                say(f"{way}: {error}")
                failed += 1
                continue
            passed += sum(scenario.passed for scenario in scenarios)
            failed += sum(scenario.failed for scenario in scenarios)
            good &= report(way, scenarios)
    except KeyboardInterrupt:
        return 130
    say(f"{passed} passed, {failed} failed")
    return 0 if good and not failed else 1


def run(way: str) -> list[Scenario]:
    folder = RESULTS / way
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as programs:

        def start(name: str, *command: str | Path) -> Program:
            return programs.enter_context(Program(name, command, folder))

        if way == "stdio":
            url = start("proxy", *PROXY, "--", *SERVER, "--stdio").ready_url()
        else:
            url = start("server", *SERVER, "--port", "0").ready_url()
        if way == "http":
            url = start("proxy", *PROXY, "--url", url).ready_url()
        scope = ("--suite", "all", "--spec-version", REVISION, "--output-dir", folder)
        output = start("suite", NODE, SUITE, "server", "--url", url, *scope).finish()

    summary = output.partition("=== SUMMARY ===")[2]
    lines = re.findall(r"^\S+ (\S+): (\d+) passed, (\d+) failed$", summary, re.MULTILINE)
    if not lines:
        raise BrokenRunError(f"the suite gave no summary (see {shown(folder / 'suite.log')})")
    return [scenario(folder, name, int(passed), int(failed)) for name, passed, failed in lines]


def scenario(folder: Path, name: str, passed: int, failed: int) -> Scenario:
    """One line of the summary, with the reasons from the folder the suite made for it."""
    remarks = []
    warnings = 0
    results = sorted(folder.glob(f"server-{name}-[0-9][0-9][0-9][0-9]-*/checks.json"))
    for check in json.loads(results[-1].read_text()) if results else []:
        if check["status"] in ("FAILURE", "WARNING"):
            warnings += check["status"] == "WARNING"
            reason = check.get("errorMessage") or check["description"]
            remarks.append(f"{check['status'].lower()} {check['id']}: {reason}")
    if failed and not remarks:
        remarks.append(f"the scenario broke off (see {shown(folder / 'suite.log')})")
    return Scenario(name, passed, failed, warnings, remarks)


def report(way: str, scenarios: list[Scenario]) -> bool:
    """Prints the totals, and a row for each scenario that has something to say; whether enough passed."""
    passed = sum(scenario.passed for scenario in scenarios)
    failed = sum(scenario.failed for scenario in scenarios)
    warned = sum(scenario.warnings for scenario in scenarios)
    title = "bare HTTP server" if way == "bare" else f"{way} upstream"
    say(
        f"{title:<18}{len(scenarios):>3} scenarios {passed:>4} passed {failed:>3} failed {warned:>3} warnings"
    )
    for noisy in (scenario for scenario in scenarios if scenario.remarks):
        say(
            f"  {noisy.name:<30} {noisy.passed:>2} passed {noisy.failed:>3} failed {noisy.warnings:>3} warnings"
        )
        for remark in noisy.remarks:
            say(f"    {' '.join(remark.split())[:300]}")
    if passed < EXPECTED[way]:
        say(f"  only {passed} checks passed where {EXPECTED[way]} should (see {shown(RESULTS / way)})")
    return passed >= EXPECTED[way]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
