"""A server that writes what nobody asked for, and answers all the same.

At the start, in this order:
    --stderr BYTES       so much on stderr, in lines of 64 bytes that end with their number
    --stray BYTES        so much on stdout that is no JSON-RPC
    --stray-line BYTES   how long each of those lines is (default 64; 0: all of it is one line)
    --raw HEX            these bytes on stdout, then a line break

Tools: `big {bytes}` answers with a text of that length; `stderr {text}` writes to stderr; `raw {hex}` to stdout;
`pair` answers inside a batch, after a log message.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.servers.mini import Params, Server, send, text, write


def flood(to: int, total: int, line: int) -> None:
    """`total` bytes, in lines of `line` bytes that each end with their number."""
    line = line or total
    block = []
    for number in range(max(total // line, 1) if total else 0):
        end = b"%d\n" % number
        block.append(b"x" * max(line - len(end), 0) + end)
        if len(block) * line > 65536:
            write(b"".join(block), to)
            block.clear()
    write(b"".join(block), to)


def pair(message: Params, arguments: Params) -> None:
    log = {"method": "notifications/message", "params": {"level": "info", "data": "in a batch"}}
    send([log, {"id": message["id"], "result": text("paired")}])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stderr", type=int, default=0)
    parser.add_argument("--stray", type=int, default=0)
    parser.add_argument("--stray-line", type=int, default=64)
    parser.add_argument("--raw", type=bytes.fromhex, default=b"")
    options = parser.parse_args()
    server = Server()
    flood(2, options.stderr, 64)
    flood(1, options.stray, options.stray_line)
    if options.raw:
        write(options.raw + b"\n")

    def to_stderr(message: Params, arguments: Params) -> Params:
        write(arguments["text"].encode() + b"\n", 2)
        return text("written")

    def raw(message: Params, arguments: Params) -> Params:
        write(bytes.fromhex(arguments["hex"]))
        return text("written")

    server.tools |= {
        "big": lambda message, arguments: text("b" * int(arguments["bytes"])),
        "stderr": to_stderr,
        "raw": raw,
        "pair": pair,
    }
    server.serve()


if __name__ == "__main__":
    main()
