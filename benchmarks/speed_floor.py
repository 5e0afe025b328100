"""The speed floor: `wrk -t1 -c32`, interleaved with nginx `proxy_pass` on the same upstream.

    python benchmarks/speed_floor.py [--seconds 4] [--repeat 5] [--check] [--profile]

HTTP -> HTTP must reach 0.25 of nginx (half is where this goes), stdio `multiplex` 6,000 requests a second.
The load generator, the proxy and the upstream share two cores, so compare the ratio, not the numbers.
`--profile` samples the proxy with py-spy (pip install py-spy) and prints where its time goes.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from wrk import HERE, Run, free_port, load, median, need, open_session, process, proxy, spread

CONNECTIONS = 32
# On PATH, or beside this Python.
PY_SPY = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent)) or ""
TARGETS = {"http / nginx at least": 0.25, "stdio rps at least": 6000.0}


def start_nginx(stack: ExitStack, upstream: int) -> str:
    folder, port = stack.enter_context(tempfile.TemporaryDirectory()), free_port()
    text = (HERE / "nginx.conf").read_text()
    for key, value in {"DIR": folder, "UPSTREAM": str(upstream), "PORT": str(port)}.items():
        text = text.replace(key, value)
    file = Path(folder, "nginx.conf")
    file.write_text(text)
    stack.enter_context(process(need("nginx", "nginx-light"), "-c", str(file), port=port))
    return f"http://127.0.0.1:{port}/mcp"


def profile(pid: int, seconds: float, title: str) -> None:
    """Sample the proxy and print the files its own time is spent in, in percent."""
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as out:
        command = [
            PY_SPY,
            "record",
            "-d",
            f"{seconds:g}",
            "-r",
            "400",
            "-f",
            "raw",
            "-o",
            out.name,
            "-p",
            str(pid),
        ]
        subprocess.run(command, capture_output=True, check=True)
        own: collections.Counter[str] = collections.Counter()
        for line in out.read().splitlines():
            stack, count = line.rsplit(" ", 1)
            frame = stack.split(";")[-1]
            own[frame.split("(")[-1].split(":")[0]] += int(count)
    total = sum(own.values())
    print(f"profile of {title}, own time by file:")
    for name, samples in own.most_common(14):
        print(f"  {samples / total:6.1%} {name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.profile and not PY_SPY:
        parser.error("--profile needs py-spy; pip install py-spy")
    with ExitStack() as stack:
        port = free_port()
        stack.enter_context(process(sys.executable, str(HERE / "upstream_http.py"), str(port), port=port))
        direct = f"http://127.0.0.1:{port}/mcp"
        size = ["--max-connections", str(CONNECTIONS)]
        http, http_pid = stack.enter_context(proxy(*size, "--url", direct))
        server = [sys.executable, str(HERE / "upstream_stdio.py")]
        one = ["--max-connections", "1", "--pool-mode", "multiplex"]
        stdio, stdio_pid = stack.enter_context(proxy(*one, "--", *server))
        urls = {
            "direct": direct,
            "nginx": start_nginx(stack, port),
            "mcpdiag http": http,
            "mcpdiag stdio": stdio,
        }
        sessions = {way: [open_session(url)] for way, url in urls.items()}
        runs: dict[str, list[Run]] = {way: [] for way in urls}
        for turn in range(args.repeat + 1):  # the first turn warms up and is not kept
            for way, url in urls.items():
                run = load(url, sessions[way], connections=CONNECTIONS, seconds=args.seconds if turn else 1)
                if turn:
                    runs[way].append(run)
        if args.profile:
            for way, pid in (("mcpdiag http", http_pid), ("mcpdiag stdio", stdio_pid)):
                sampler = threading.Thread(target=profile, args=(pid, args.seconds, way))
                sampler.start()
                load(urls[way], sessions[way], connections=CONNECTIONS, seconds=args.seconds + 2)
                sampler.join()
    print(f"wrk -t1 -c{CONNECTIONS}, {args.repeat} x {args.seconds:g} s, interleaved")
    print(f"{'':14} {'requests/s':>30} {'p50 ms':>18} {'p99 ms':>20} errors")
    for way, each in runs.items():
        cells = [spread(each, field) for field in ("rps", "p50_ms", "p99_ms")]
        print(f"{way:14} {cells[0]:>30} {cells[1]:>18} {cells[2]:>20} {sum(run.errors for run in each):>6}")
    ratio = median(runs["mcpdiag http"], "rps") / median(runs["nginx"], "rps")
    stdio_rps = median(runs["mcpdiag stdio"], "rps")
    met = {"http / nginx at least": ratio >= 0.25, "stdio rps at least": stdio_rps >= 6000}
    print(f"http is {ratio:.2f} of nginx")
    for target, value in TARGETS.items():
        print(f"target: {target} {value:g}: {'met' if met[target] else 'MISSED'}")
    if args.check and not all(met.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
