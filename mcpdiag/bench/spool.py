"""What the workers of another load tool leave behind, and how it becomes one measurement. `locust.py` writes it.

A worker's file is one line of JSON (`Spool`), then its samples as `columns.encode` writes them, with times from the
worker's own start. The master's file is `Master` in JSON. `cli/bench_locust.py` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from mcpdiag.bench import columns
from mcpdiag.bench.columns import NEVER, Columns, Lateness, Measurement, Report
from mcpdiag.bench.environment import Environment
from mcpdiag.bench.workload import Workload
from mcpdiag.errors import ConfigError
from mcpdiag.protocol.revisions import Era

FORMAT: Final = "mcpdiag.locust/1"
SUFFIX: Final = ".samples"
MASTER: Final = "master.json"


class Spool(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of one run. Times are ns since 1970 on the worker's own clock; 0 is never.

    `users` is the most it had at once; `spawned_ns` is when all users of all workers were there, `stopped_ns` when
    they were told to stop. `cpu_share` is how busy its core was between the two.
    """

    format: Literal["mcpdiag.locust/1"] = FORMAT
    locust: str
    environment: Environment
    workload: Workload
    target: str
    era: Era
    timeout_s: float
    users: int
    started_ns: int
    spawned_ns: int
    stopped_ns: int
    cpu_share: float
    sessions_opened: int
    first_error: str = ""


class Master(msgspec.Struct, frozen=True, kw_only=True):
    """What Locust itself counted, and how many workers it had; 0 of a run without a master."""

    calls: int
    failures: int
    workers: int


class Worker(msgspec.Struct, frozen=True):
    """A worker's file."""

    spool: Spool
    columns: Columns


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run as one measurement. `seconds` is what was measured of it, `warmup_s` what was before that."""

    workers: tuple[Spool, ...]
    measurement: Measurement
    seconds: float
    warmup_s: float
    stored: int
    master: Master | None = None


def labels(workload: Workload) -> tuple[str, ...]:
    """What the number of a sample's call means; the last one is an attempt to open a session that failed."""
    return (*(call.label for call in workload.calls), "open")


def write(folder: Path, name: str, spool: Spool, found: Columns) -> Path:
    """Write a worker's file; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}{SUFFIX}"
    measured = Measurement(Report(calls=labels(spool.workload)), found)
    file.write_bytes(msgspec.json.encode(spool) + b"\n" + columns.encode(measured))
    return file


def read(folder: Path, *, warmup_s: float = 0.0) -> Run:
    """The run in a folder.

    Args:
        warmup_s: seconds after the last user had come that do not count.

    Raises:
        ConfigError: there is none, it is damaged, of several workloads, or has no time when all users were there.
    """
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        raise ConfigError(
            [f"{folder}: found no *{SUFFIX}; give the folder that McpUser wrote (--mcpdiag-samples)"]
        )
    workers = [_worker(file) for file in files]
    spools = tuple(each.spool for each in workers)
    if len({(each.workload.digest, each.target, each.era) for each in spools}) > 1:
        raise ConfigError([f"{folder}: found workers of different loads; give each run a folder of its own"])
    if any(not each.spawned_ns for each in spools):
        raise ConfigError([f"{folder}: found a worker whose users were never all there; let it run longer"])
    begin = max(each.spawned_ns for each in spools) + int(warmup_s * 1e9)
    end = min(each.stopped_ns for each in spools)
    if end <= begin:
        had = f"{(end - begin) / 1e9 + warmup_s:.1f} s with all users, {warmup_s:g} s of it warm-up"
        raise ConfigError(
            [f"{folder}: found {had}; let it run longer, and give each run a folder of its own"]
        )
    merged = _merge(workers, begin)
    report = Report(
        samples=len(merged),
        window_ns=end - begin,
        calls=labels(spools[0].workload),
        sessions_opened=sum(each.sessions_opened for each in spools),
        first_error=next((each.first_error for each in spools if each.first_error), ""),
        lateness=Lateness(cpu_share=max(each.cpu_share for each in spools)),
    )
    return Run(
        workers=spools,
        measurement=Measurement(report, merged),
        seconds=(end - begin) / 1e9,
        warmup_s=(begin - min(each.started_ns for each in spools)) / 1e9,
        stored=len(merged),
        master=_master(folder / MASTER),
    )


def _worker(file: Path) -> Worker:
    try:
        head, _, rest = file.read_bytes().partition(b"\n")
        return Worker(msgspec.json.decode(head, type=Spool), columns.decode(rest).columns)
    except (OSError, ValueError) as error:  # msgspec's mistakes are ValueErrors
        raise ConfigError([f"{file}: found no samples of McpUser: {error}"]) from None


def _master(file: Path) -> Master | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Master)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{file}: found no counts of a Locust master: {error}"]) from None


def _merge(workers: Sequence[Worker], begin: int) -> Columns:
    """All samples, with times from `begin`."""
    merged = Columns(sum(len(each.columns) for each in workers))
    for worker in workers:
        found, shift = worker.columns, worker.spool.started_ns - begin
        for row in range(len(found)):
            sent = found.sent_ns[row]
            merged.add(
                found.intended_ns[row] + shift,
                sent if sent == NEVER else sent + shift,
                found.done_ns[row] + shift,
                found.call[row],
                found.outcome[row],
            )
    return merged


def locustfile(workload: Workload, *, url: str, era: Era, timeout_s: float, headers: Sequence[str]) -> str:
    """The text of a locustfile for a workload; headers come from the environment, so that it holds no secret."""
    from pprint import pformat

    plan: Any = msgspec.to_builtins(workload)
    lines = [
        '"""The workload of `mcpdiag bench` for Locust. Needs: pip install "mcpdiag[locust]"',
        "",
        "    locust -f locustfile.py --headless -u 100 -r 20 -t 60s --processes 4",
        "    mcpdiag bench locust-result mcpdiag-locust",
        "",
        "Over several machines: `locust -f locustfile.py --master`, on each other one `locust -f - --worker",
        "--master-host HOST`; then collect the folders mcpdiag-locust of all of them in one.",
        '"""',
        "",
        *(["import os", ""] if headers else []),
        "from mcpdiag.bench.locust import McpUser",
        "",
        "",
        "class Client(McpUser):",
        f"    host = {url or 'http://127.0.0.1:3001/mcp'!r}  # --host overrules it",
        f"    era = {era!r}",
        f"    timeout_s = {timeout_s!r}",
    ]
    if headers:
        lines.append("    headers = {")
        lines += [f"        {name!r}: os.environ[{variable(name)!r}]," for name in headers]
        lines.append("    }")
    body = pformat(plan, width=100, sort_dicts=False).splitlines()
    lines.append(f"    workload = {body[0]}")
    lines += [f"    {line}" for line in body[1:]]
    return "\n".join(lines) + "\n"


def variable(header: str) -> str:
    """The environment variable that a locustfile takes a header's value from."""
    return "MCP_HEADER_" + "".join(each if each.isalnum() else "_" for each in header).upper()
