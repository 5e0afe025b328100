"""mcpdiag next to other proxies, on the same upstreams, in one interleaved run.

    python benchmarks/peers --install                  # once: an environment for each, below .tools/peers
    python benchmarks/peers [--conformance] [--save]   # --save writes benchmarks/peers/RESULTS.md

The upstreams are mcpdiag's embedded servers, over HTTP and over stdio. In each round every proxy serves 32 clients, then
one, each in a closed loop of mcpdiag's own generator with MCP sessions of its own. A peer that is not there, or does not
serve, is a row that says why.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from install import MissingError, install, version
from msgspec.structs import replace
from peer import PEERS, SOURCES, Peer, Upstream
from running import embedded_server, running
from suite import failures
from table import DIRECT, Row, markdown, text

from mcpdiag import embedded
from mcpdiag.bench.environment import here
from mcpdiag.bench.generator import Generator
from mcpdiag.bench.matrix import nothing, repetition_of
from mcpdiag.bench.memory import MemoryWatch
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.bench.statistics import Summary

RESULTS = Path(__file__).with_name("RESULTS.md")
CALL = Call(method="tools/call", params={"name": "echo", "arguments": {"text": "hello"}})


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--install", action="store_true", help="install the peers and do nothing else")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run; with one client half of it")
    parser.add_argument("--repeat", type=int, default=5, help="rounds")
    parser.add_argument("--only", default="", help="peers whose name contains this")
    parser.add_argument("--upstream", choices=["http", "stdio"], help="default: both")
    parser.add_argument("--conformance", action="store_true", help="run the official suite behind each too")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    if options.install:
        return install_all()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit unwinds, so every peer is ended
    wanted = [peer for peer in PEERS if options.only.lower() in peer.name.lower()]
    began = time.monotonic()
    rows = measure(wanted, options)
    method = (
        f"{options.repeat} rounds, in each every proxy in turn: {options.seconds:g} s with {options.clients} clients, "
        f"then {options.seconds / 2:g} s with one; the tool `echo`; medians of the rounds."
    )
    if options.conformance:
        for row, peer in rows:
            if not row.why_not and (peer or row.upstream == "http"):
                say(f"the official suite, {row.key}")
                row.failures = failures(row.upstream, peer)
    shown = [row for row, _ in rows]
    print(text(shown))
    print(method, f"Took {time.monotonic() - began:.0f} s.")
    if options.save:
        RESULTS.write_text(markdown(shown, here(Path(__file__).parent), method, date.today().isoformat()))
        print(f"Saved: {RESULTS.relative_to(Path(__file__).parents[2])}")
    return 0


def install_all() -> int:
    """A peer that cannot be installed is said, and is no reason to stop."""
    for source in SOURCES:
        problem = install(source)
        print(f"{source.key}: {problem or version(source)}", flush=True)
    return 0


def measure(peers: list[Peer], options: argparse.Namespace) -> list[tuple[Row, Peer | None]]:
    """All rounds. Each peer is started once, before the first; while one is measured the others have nothing to do."""
    rows: list[tuple[Row, Peer | None]] = []
    specs: list[tuple[Row, LoadSpec, int]] = []
    with ExitStack() as stack:
        upstreams = {
            "http": Upstream(url=stack.enter_context(embedded_server())),
            "stdio": Upstream(command=embedded.COMMAND),
        }
        for kind, upstream in upstreams.items():
            if options.upstream not in (None, kind):
                continue
            row = Row(kind, DIRECT, processes="one a client" if kind == "stdio" else "")
            rows.append((row, None))
            direct = LoadSpec(url=upstream.url, command=upstream.command, calls=(CALL,))
            specs.append((row, direct, 0))
            for peer in [each for each in peers if kind in each.fronts]:
                row = Row(kind, peer.name, version(peer.source), peer.processes)
                rows.append((row, peer))
                say(f"starting {row.key}")
                try:
                    url, pid = stack.enter_context(running(peer, upstream))
                except MissingError as error:
                    row.why_not = str(error)
                    continue
                specs.append((row, LoadSpec(url=url, calls=(CALL,)), pid))
        generator = stack.enter_context(Generator())
        for number in range(options.repeat + 1):  # the first round warms up and is not kept
            say(f"round {number} of {options.repeat}" if number else "warming up")
            for row, spec, pid in specs if number % 2 else specs[::-1]:
                seconds = options.seconds if number else min(0.5, options.seconds)
                loaded = load(generator, spec, options.clients, seconds, row, pid)
                alone = load(generator, spec, 1, seconds / 2, row, pid)
                if number:
                    row.loaded.append(loaded)
                    row.alone.append(alone)
    return rows


def load(generator: Generator, spec: LoadSpec, clients: int, seconds: float, row: Row, pid: int) -> Summary:
    """One run; the memory of the peer's process tree goes into its row."""
    this = replace(spec, clients=clients, seconds=seconds, warmup_s=0.3, timeout_s=10.0)
    with MemoryWatch(pid) as watch:
        try:
            summary = repetition_of(generator.run(this)).summary
        except SessionError as error:
            say(f"{row.key}: {error}")
            summary = nothing(clients)
    if pid:
        row.rss_bytes = max(row.rss_bytes, watch.memory.rss_bytes + watch.memory.children_rss_bytes)
    return summary


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
