"""Whether the proxy's memory stays where it is at full load: RSS each minute, and the end over the first minute.

    python benchmarks/rss_ten_minutes.py [--for 10m] [--limit 1.05]

It is `mcpdiag bench soak --rate max` on the embedded server, without a second look. Exit 1 above the limit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mcpdiag.bench import result
from mcpdiag.config.types import parse_duration


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--for", dest="length", default="10m")
    parser.add_argument("--connections", default="32")
    parser.add_argument("--transport", default="http", choices=("http", "stdio"))
    parser.add_argument("--limit", type=float, default=1.05)
    arguments = parser.parse_args()
    seconds = parse_duration(arguments.length)
    if seconds < 120:
        parser.error(f"--for: found {arguments.length}; there is no end and first minute in less than 2m")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        command = [
            sys.executable,
            "-m",
            "mcpdiag",
            "bench",
            "soak",
            "--rate",
            "max",
            "--for",
            arguments.length,
        ]
        command += [
            "--every",
            "10s",
            "--connections",
            arguments.connections,
            "--transport",
            arguments.transport,
        ]
        done = subprocess.run([*command, "--no-extend", "--output", str(output)])
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)
        soaked = result.read(output).soak
        assert soaked is not None
        ratio = soaked.rss_ratio["proxy"]
        print(
            f"proxy RSS, end over first minute: {ratio:.3f} (limit {arguments.limit:g}), {soaked.requests:,} requests"
        )
        sys.exit(int(ratio > arguments.limit))


if __name__ == "__main__":
    main()
