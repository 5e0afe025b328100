"""The load generator, a process of its own: `python -m mcpdiag.bench.load SPEC.json [-o FILE]`.

The measurement goes to stdout (or FILE) as `columns.encode` writes it. With `-` for the spec it runs one `Job` a line
of stdin, each with a file of its own, and says on stdout when it is done: that spares `generator.py` the start.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import threading
from pathlib import Path

import msgspec

from mcpdiag.bench import columns
from mcpdiag.bench.alternate import alternate
from mcpdiag.bench.generate import generate, run_loop
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import DuetSpec, LoadSpec

SWITCH_S = 0.0005  # between the thread that paces and the loop that sends


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A run, and the file for its measurement. That of a duet's new side goes to `output`, of its base to `beside`."""

    output: str
    spec: LoadSpec | None = None
    duet: DuetSpec | None = None

    @property
    def beside(self) -> Path:
        return Path(f"{self.output}.base")


class Done(msgspec.Struct, frozen=True):
    """The end of a job; `error` is empty if all went well."""

    error: str = ""


def serve() -> None:
    """One run for each `Job` on stdin, until that ends; a line with its error, if any, on stdout."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=Job)
        error = ""
        try:
            _do(job)
        except (SessionError, OSError) as failure:
            error = str(failure)
        try:
            os.write(sys.stdout.fileno(), msgspec.json.encode(Done(error)) + b"\n")
        except BrokenPipeError:  # whoever asked has been killed
            return


def _do(job: Job) -> None:
    if job.duet is not None:
        base, new = run_loop(alternate(job.duet))
        job.beside.write_bytes(columns.encode(base))
    else:
        assert job.spec is not None
        new = run_loop(generate(job.spec))
    Path(job.output).write_bytes(columns.encode(new))


def _end_with_caller() -> None:
    """End once nobody holds the other end of stdin, amid a run too: whoever would read its result has been killed."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdin.fileno(), 0)  # for its end alone, which needs no asking; jobs are for `serve`
        poll.poll()
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mcpdiag.bench.load", description=__doc__)
    parser.add_argument("spec", help="a file with a LoadSpec in JSON, or - for jobs on stdin")
    parser.add_argument("-o", "--output", type=Path, help="where the measurement goes instead of stdout")
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_S)
    if arguments.spec == "-":
        serve()
        return
    try:
        spec = msgspec.json.decode(Path(arguments.spec).read_bytes(), type=LoadSpec)
        data = columns.encode(run_loop(generate(spec)))
    except (OSError, msgspec.MsgspecError) as error:
        sys.exit(f"mcpdiag.bench.load: {arguments.spec}: {error}")
    except SessionError as error:
        print(f"mcpdiag.bench.load: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(3)
    if arguments.output is not None:
        arguments.output.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main()
