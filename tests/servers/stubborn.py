"""A server that does not want to end.

--ignore eof term    go on after the end of stdin, and/or ignore SIGTERM (default: both)
--term-file PATH     write `term` there on SIGTERM, instead of ending
--linger SECONDS     take so long to end after the end of stdin, or after SIGTERM
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from types import FrameType

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.servers.mini import Server, write


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ignore", nargs="*", choices=["eof", "term"], default=["eof", "term"])
    parser.add_argument("--term-file")
    parser.add_argument("--linger", type=float, default=0.0)
    parser.add_argument("--last-words", default="")
    options = parser.parse_args()

    def on_term(number: int, frame: FrameType | None) -> None:
        if options.term_file:
            with open(options.term_file, "w") as file:
                file.write("term")
        if "term" not in options.ignore:
            time.sleep(options.linger)
            os._exit(143)

    signal.signal(signal.SIGTERM, on_term)
    Server().serve()
    while "eof" in options.ignore:
        signal.pause()
    time.sleep(options.linger)
    write(options.last_words.encode(), 2)


if __name__ == "__main__":
    main()
