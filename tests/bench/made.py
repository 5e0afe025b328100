"""Results made of seeded noise instead of measurements."""

from __future__ import annotations

import random

from msgspec.structs import replace

from mcpdiag.bench.environment import Environment
from mcpdiag.bench.isolation import Isolation
from mcpdiag.bench.matrix import pairs_of
from mcpdiag.bench.memory import Memory
from mcpdiag.bench.result import Cell, Config, PoolVerdict, Repetition, Result, Target
from mcpdiag.bench.spec import Call
from mcpdiag.bench.statistics import Summary
from mcpdiag.bench.workload import Workload

NOISE = 0.02  # of the logarithms, from one repetition to the next


def machine(name: str = "linux-x86_64-2cpu-abcdef") -> Environment:
    return Environment(
        machine=name,
        system="Linux 6",
        cpu="a processor",
        cpus=2,
        memory_bytes=4 << 30,
        python="CPython 3.11.7",
        packages={"mcpdiag": "0.1.0"},
        commit="c0ffee" * 6,
    )


def repetition(chance: random.Random, base_ms: float, slowdown: float, noise: float = NOISE) -> Repetition:
    def near(value: float) -> float:
        return value * chance.lognormvariate(0, noise)

    p50 = near(base_ms * slowdown)
    summary = Summary(
        calls=1000,
        ok=1000,
        errors={},
        throughput_rps=near(1000 * 8 / base_ms / slowdown),
        p50_ms=p50,
        p95_ms=near(1.5 * base_ms * slowdown),
        p99_ms=2 * p50,
        max_ms=3 * p50,
        mean_ms=p50,
        quantiles_ms={"0.5": p50},
    )
    return Repetition(summary=summary, memory=Memory(rss_bytes=int(near(1e8)), children_rss_bytes=20_000_000))


def result(
    seed: int,
    *,
    slowdown: float = 1.0,
    repeat: int = 5,
    clients: tuple[int, ...] = (1, 8, 32),
    noise: float = NOISE,
) -> Result:
    """A result of the embedded matrix; reuse gives about 50 times."""
    chance = random.Random(seed)
    cells = tuple(
        Cell(
            transport=transport,
            reuse=reuse,
            clients=count,
            repetitions=tuple(
                repetition(chance, count * (50 if reuse == "off" else 1), slowdown, noise)
                for _ in range(repeat)
            ),
        )
        for transport in ("stdio", "http")
        for count in clients
        for reuse in ("on", "off")
    )
    return Result(
        name="made",
        started_at="2026-11-24T12:00:00+00:00",
        took_s=60.0,
        complete=True,
        environment=machine(),
        target=Target(kind="embedded", shown="the embedded server"),
        workload=Workload(
            source="default",
            calls=(Call(method="tools/call", params={"name": "echo", "arguments": {"text": "hello"}}),),
        ),
        config=Config(
            pool_mode="request",
            max_connections=1,
            clients=clients,
            transports=("stdio", "http"),
            warmup_s=0.15,
            seconds=0.5,
            repeat=repeat,
            timeout_s=30.0,
            seed=1,
        ),
        cells=cells,
        pairs=pairs_of(cells, 1),
        isolation=(
            PoolVerdict(
                transport="stdio",
                reuse="on",
                isolation=Isolation(verdict="isolated", exchanges=1000, by="arguments"),
            ),
        ),
    )


def elsewhere(made: Result) -> Result:
    return replace(made, environment=machine("linux-x86_64-64cpu-fedcba"))
