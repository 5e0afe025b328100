"""A server that answers a fixed number of requests and exits by itself.

--requests N     how many (default 1; a server that wants a handshake and then serves one call has 2)
--linger S       seconds between its last answer and its end (default 0)
--code N         its exit code (default 0)
--no-newline     the last answer has no line break
--stderr TEXT    its last words
--then HEX       these bytes on stdout after the last answer
--big BYTES      the last answer carries a text of that length, so that it is still in the pipe after the exit
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.servers.mini import Server, messages, text, write


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--linger", type=float, default=0)
    parser.add_argument("--no-newline", action="store_true")
    parser.add_argument("--stderr", default="")
    parser.add_argument("--then", type=bytes.fromhex, default=b"")
    parser.add_argument("--big", type=int, default=0)
    options = parser.parse_args()
    server = Server()
    left = options.requests
    for message in messages():
        if "id" not in message or "method" not in message:
            continue
        left -= 1
        result = server.result(message) if left or not options.big else text("b" * options.big)
        data = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        write(data if not left and options.no_newline else data + b"\n")
        if not left:
            break
    write(options.then)
    if options.stderr:
        write(options.stderr.encode() + b"\n", 2)
    time.sleep(options.linger)
    os._exit(options.code)


if __name__ == "__main__":
    main()
