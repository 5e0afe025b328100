"""A server with children of its own, which are the proxy's grandchildren and do nothing.

    --children N         how many (default 1)
    --setsid [N]         each (or N of them) makes a session of its own, out of reach of a signal to the group
    --hold stdin ...     which of the server's streams they keep open (default none)
    --ignore eof term    what the server and its children ignore (default nothing)
    --requests N         exit by itself after so many answers (default: at the end of stdin)
    --fork-again         each child forks and exits every 20 ms, so that its pid never stays

The tool `pids` answers with the pids of the server and of its children, separated by spaces; the first line on
stderr is `pids: ...`, the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.servers.mini import Server, guard, messages, text, write

STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}


def child(options: argparse.Namespace, number: int, ready: int) -> None:
    guard()
    if number < options.setsid:
        os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for name, stream in STREAMS.items():
        if name not in options.hold:
            os.dup2(nothing, stream)
    os.write(ready, b".")
    os.close(ready)
    started = time.monotonic()
    while options.fork_again and time.monotonic() - started < 60:
        time.sleep(0.02)
        if os.fork():
            os._exit(0)
    while True:
        signal.pause()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--children", type=int, default=1)
    parser.add_argument("--setsid", type=int, nargs="?", const=1_000_000, default=0)
    parser.add_argument("--hold", nargs="*", choices=[*STREAMS], default=[])
    parser.add_argument("--ignore", nargs="*", choices=["eof", "term"], default=[])
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--fork-again", action="store_true")
    options = parser.parse_args()
    if "term" in options.ignore:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = Server()
    pids = [os.getpid()]
    for number in range(options.children):
        is_ready, ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(is_ready)
            child(options, number, ready)
        os.close(ready)
        os.read(is_ready, 1)
        os.close(is_ready)
        pids.append(pid)
    said = " ".join(str(pid) for pid in pids)
    write(f"pids: {said}\n".encode(), 2)
    server.tools["pids"] = lambda message, arguments: text(said)
    answers = 0
    for message in messages():
        server.answer(message)
        answers += "id" in message
        if answers == options.requests:
            os._exit(0)
    while "eof" in options.ignore:
        signal.pause()
    os._exit(0)


if __name__ == "__main__":
    main()
