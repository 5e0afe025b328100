"""A server that stops in the middle.

--at start           it never reads anything
--at initialize      it reads on, and answers nothing
--at call            it answers everything but `tools/call` (the default)
--at reading         it answers `initialize` and then never reads again
--close stdin ...    it closes these of its three streams when it gets a `tools/call`, and lives on
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.servers.mini import Server, messages

STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", choices=["start", "initialize", "call", "reading"], default="call")
    parser.add_argument("--close", nargs="*", choices=[*STREAMS], default=[])
    options = parser.parse_args()
    server = Server()
    if options.at == "start":
        signal.pause()
    for message in messages():
        if message.get("method") == "tools/call" and options.close:
            for name in options.close:
                os.close(STREAMS[name])
            if "stdin" in options.close:
                signal.pause()
        elif options.at != "initialize" and message.get("method") != "tools/call":
            server.answer(message)
        if options.at == "reading":
            signal.pause()


if __name__ == "__main__":
    main()
