"""What `mcpdiag bench locust-result` does: the workers' samples become a result on disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from mcpdiag.bench import result as results
from mcpdiag.bench import spool
from mcpdiag.bench.matrix import repetition_of
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Cell, Config, Locust, Result, Target
from mcpdiag.bench.spool import Run
from mcpdiag.cli.bench_store import claim
from mcpdiag.errors import StartError


def collect(folder: Path, *, warmup_s: float, name: str, output: Path | None) -> tuple[Result, Path, str]:
    """The result, its folder, and what speaks against trusting it.

    Raises:
        ConfigError: there is no run in the folder, it cannot be measured, or there is a result already.
        StartError: every call failed.
    """
    run = spool.read(folder, warmup_s=warmup_s)
    first = run.workers[0]
    users = max(1, sum(each.users for each in run.workers))
    repetition = repetition_of(run.measurement)
    if not repetition.summary.ok:
        raise StartError(
            f"the server cannot be measured, every call failed: {repetition.first_error or 'no answer'}"
        )
    cell = Cell(
        transport="http", reuse="on", clients=users, way="direct", repetitions=(repetition,)
    )  # fmt: skip
    result = Result(
        name=name,
        started_at=datetime.fromtimestamp(first.started_ns / 1e9, UTC).isoformat(timespec="seconds"),
        took_s=round((first.stopped_ns - first.started_ns) / 1e9, 3),
        complete=True,
        environment=first.environment,
        target=Target(kind="url", shown=first.target),
        workload=first.workload,
        config=Config(
            era=first.era,
            pool_mode="",
            max_connections=0,
            clients=(users,),
            transports=("http",),
            warmup_s=round(run.warmup_s, 3),
            seconds=round(run.seconds, 3),
            repeat=1,
            timeout_s=first.timeout_s,
            seed=0,
        ),
        cells=(cell,),
        locust=_locust(run),
    )
    written = claim(first.environment, name, output)
    with RawFile(written) as raw:
        raw.add(cell.name, 0, run.measurement)
    results.write(result, written)
    return result, written, _warning(run)


def _locust(run: Run) -> Locust:
    master = run.master
    return Locust(
        version=run.workers[0].locust,
        workers=tuple(each.environment.machine for each in run.workers),
        stored=run.stored,
        master_calls=-1 if master is None else master.calls,
        master_failures=-1 if master is None else master.failures,
    )


def _warning(run: Run) -> str:
    """Whether samples are missing."""
    master = run.master
    if master is not None and master.calls > run.stored:
        return (
            f"Locust counted {master.calls:,} calls, its workers stored {run.stored:,}: "
            "a worker's file is missing"
        )
    if master is not None and 0 < master.workers != len(run.workers):
        return f"Locust had {master.workers} workers, found the samples of {len(run.workers)}"
    return ""
