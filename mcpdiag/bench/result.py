"""A result: versioned, written once, with its JSON Schema (docs/bench-result.schema.json)."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from mcpdiag.bench.columns import Lateness
from mcpdiag.bench.environment import Environment
from mcpdiag.bench.isolation import Isolation
from mcpdiag.bench.knee import Breaking
from mcpdiag.bench.memory import Memory
from mcpdiag.bench.soaked import Soaked
from mcpdiag.bench.split import Overhead
from mcpdiag.bench.statistics import Estimate, Summary
from mcpdiag.bench.workload import Workload
from mcpdiag.errors import ConfigError

FORMAT: Final = "mcpdiag.bench/1"
FILE: Final = "result.json"
Transport = Literal["stdio", "http"]
Reuse = Literal["on", "off"]
Way = Literal["proxied", "direct", "unsampled", "base", "new"]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """How it was measured. Two results are compared only where this is equal, `seconds` and `repeat` apart."""

    era: Literal["handshake", "stateless"] = "handshake"
    pool_mode: str
    max_connections: int
    clients: tuple[int, ...]
    transports: tuple[Transport, ...]
    warmup_s: float
    seconds: float
    repeat: int
    timeout_s: float
    seed: int


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The server: `embedded`, or a command or URL as it may be shown."""

    kind: Literal["embedded", "command", "url"]
    shown: str


class Repetition(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `saturated` is empty, or says why the generator and not the server may have set the pace.

    `others_cpus` is how many processors other processes kept busy meanwhile (`neighbours.py`), null if unknown.
    """

    summary: Summary
    memory: Memory = Memory()
    lateness: Lateness = Lateness()
    saturated: str = ""
    sessions_opened: int = 0
    first_error: str = ""
    others_cpus: float | None = None


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One combination that was measured, and each of its repetitions, the n-th of all cells from the n-th round.

    `way` is through the proxy, past it, or through one that keeps no samples; of a duet it is the side, past any proxy.
    `rate` is that of an open loop, 0 of a closed one.
    """

    transport: Transport
    reuse: Reuse
    clients: Annotated[int, Meta(ge=1)]
    repetitions: tuple[Repetition, ...]
    way: Way = "proxied"
    rate: float = 0.0

    @property
    def name(self) -> str:
        how = f"reuse {self.reuse}" if self.way == "proxied" else self.way
        return f"{self.transport} x{self.clients} {how}" + (f" at {self.rate:g}/s" if self.rate else "")

    @property
    def failed(self) -> int:
        """Calls that failed, of all repetitions."""
        return sum(sum(each.summary.errors.values()) for each in self.repetitions)

    def values(self, metric: str) -> list[float]:
        """A metric of each repetition: `p50_ms`, `p95_ms`, `p99_ms`, `max_ms`, `throughput_rps`, `rss_bytes`."""
        if metric == "rss_bytes":
            return [float(each.memory.rss_bytes) for each in self.repetitions]
        return [float(getattr(each.summary, metric)) for each in self.repetitions]


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """What reuse gives: a metric with reuse over the same without, by rounds, with its 95 % interval."""

    transport: Transport
    clients: int
    metric: Literal["throughput_rps", "p95_ms"]
    ratio: Estimate


class PoolVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether two clients of one pool stayed apart."""

    transport: Transport
    reuse: Reuse
    isolation: Isolation


class Duet(msgspec.Struct, frozen=True, kw_only=True):
    """Two servers that were measured in turn, in slices of `slice_s`; the result's own target is the new one.

    `cpu` is the processor that they and the generator shared, null if the system chose.
    """

    base: Target
    slice_s: float
    cpu: int | None = None


class Locust(msgspec.Struct, frozen=True, kw_only=True):
    """Who made a load that Locust distributed, and its workers' machines.

    `stored` is how many calls the workers stored, the measured time or not; `master_*` what its master counted, -1 if
    unknown. The master waits half a second for the workers' last reports, so it may count fewer.
    """

    version: str
    workers: tuple[str, ...]
    stored: int
    master_calls: int = -1
    master_failures: int = -1


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one `mcpdiag bench` measured. `complete` is false if it was interrupted."""

    format: Literal["mcpdiag.bench/1"] = FORMAT
    name: str
    started_at: str
    took_s: float
    complete: bool
    environment: Environment
    target: Target
    workload: Workload
    config: Config
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...] = ()
    isolation: tuple[PoolVerdict, ...] = ()
    soak: Soaked | None = None
    overhead: tuple[Overhead, ...] = ()
    breaking: Breaking | None = None
    duet: Duet | None = None
    locust: Locust | None = None

    def cell(
        self, transport: str, reuse: str, clients: int, way: Way = "proxied", rate: float = 0.0
    ) -> Cell | None:
        """The cell of this combination, if it was measured."""
        wanted = (transport, reuse, clients, way, rate)
        found = (c for c in self.cells if (c.transport, c.reuse, c.clients, c.way, c.rate) == wanted)
        return next(found, None)

    @property
    def crossed(self) -> list[PoolVerdict]:
        """The pools whose clients heard of each other."""
        return [each for each in self.isolation if each.isolation.verdict == "cross-talk"]

    def _repr_html_(self) -> str:
        from mcpdiag.bench.report import as_html  # which imports this module

        return as_html(self)


def schema() -> dict[str, Any]:
    """The JSON Schema of a result."""
    made = msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(Result)))  # no tuples, as in the file
    for definition in made["$defs"].values():  # msgspec takes docstrings as they are, or without indentation
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A result of mcpdiag bench",
        **made,
    }


def read(path: Path) -> Result:
    """The result in a file, or in a folder that `mcpdiag bench` has written.

    Raises:
        ConfigError: there is none, or not one of this version.
    """
    file = path / FILE if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=Result)
    except OSError as error:
        raise ConfigError(
            [f"{file}: found no result ({error.strerror}); give the folder that bench printed"]
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: found no result of {FORMAT}: {error}"]) from None


def write(result: Result, folder: Path) -> Path:
    """Write it into a new folder as result.json, read-only; returns the file.

    Raises:
        ConfigError: there is one already, or the folder cannot be written.
    """
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as sink:
            sink.write(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
        file.chmod(0o444)
    except FileExistsError:
        raise ConfigError([f"{file}: found a result already; results are never overwritten"]) from None
    except OSError as error:
        raise ConfigError([f"{folder}: found a folder that cannot be written ({error.strerror})"]) from None
    return file


def claim(folder: Path) -> None:
    """Make a folder for one result.

    Raises:
        ConfigError: there is a result in it already, or it cannot be made.
    """
    if (folder / FILE).exists():
        raise ConfigError([f"{folder / FILE}: found a result already; results are never overwritten"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"{folder}: found a folder that cannot be made ({error.strerror})"]) from None


def folder_for(environment: Environment, name: str, root: Path) -> Path:
    """A folder that does not exist: `<root>/<machine>/NNNN_<commit>_<name>`."""
    home = root / environment.machine
    taken = [int(m[1]) for each in home.glob("*_*") if (m := re.match(r"(\d{4,})_", each.name))]
    commit = environment.commit[:8] or "nocommit"
    return home / f"{max(taken, default=0) + 1:04}_{commit}_{name}"


def publish(file: Path | str) -> None:
    """Write the JSON Schema where it is published."""
    Path(file).write_bytes(msgspec.json.format(msgspec.json.encode(schema()), indent=2) + b"\n")
