"""A stdio MCP server, standard library only, with one fault for each section of the runbook; one call at a time.

--answers N      it ends after so many answers; `initialize` is the first of them
--stderr KIB     it writes so much to stderr before each answer to a call
--banner         it prints a line that is no JSON-RPC on stdout before each answer to a call

Tools: `echo {text}`; `work {ms}` takes that long, with `varying` true on average, exponentially distributed;
`hang` never answers; `crash {code}` ends the process; `leak {kib}` keeps so much; `chat {count, size}` sends so many
log messages of that length before its answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from typing import Any

Params = dict[str, Any]
KEPT: list[bytes] = []


def send(message: Params) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def echo(text: str) -> str:
    return text


def work(ms: float, varying: bool = False) -> str:
    time.sleep((random.expovariate(1 / ms) if varying else ms) / 1000)
    return "done"


def hang() -> str:
    time.sleep(3600)
    return "never"


def crash(code: int) -> str:
    os._exit(code)


def leak(kib: int) -> str:
    KEPT.append(os.urandom(1024) * kib)
    return f"{len(KEPT)} kept"


def chat(count: int, size: int) -> str:
    for _ in range(count):
        send({"method": "notifications/message", "params": {"level": "info", "data": "x" * size}})
    return "said"


TOOLS = {tool.__name__: tool for tool in (echo, work, hang, crash, leak, chat)}


def answer(message: Params) -> Params:
    method, params = message["method"], message.get("params") or {}
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}, "logging": {}},
            "serverInfo": {"name": "faulty", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]}
    if method == "tools/call":
        said = TOOLS[params["name"]](**params.get("arguments", {}))
        return {"content": [{"type": "text", "text": said}]}
    return {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=-1)
    parser.add_argument("--stderr", type=int, default=0)
    parser.add_argument("--banner", action="store_true")
    options = parser.parse_args()
    left = options.answers
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message or "method" not in message:
            continue
        if message["method"] == "tools/call":
            sys.stderr.write(("n" * 63 + "\n") * 16 * options.stderr)
            sys.stderr.flush()
            if options.banner:
                print("loading the model ...", flush=True)
        send({"id": message["id"], "result": answer(message)})
        left -= 1
        if left == 0:
            os._exit(0)


if __name__ == "__main__":
    main()
