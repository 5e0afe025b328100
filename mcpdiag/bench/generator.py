"""The load generator as seen from outside: a process that is given specs and gives back measurements."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mcpdiag.bench import columns
from mcpdiag.bench.columns import Measurement
from mcpdiag.bench.load import Done, Job
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import DuetSpec, LoadSpec

STOP_S = 3.0


class Generator:
    """`with Generator() as generator: generator.run(spec)`; one process for all the runs in the block.

    It has a session of its own, so that Ctrl-C reaches only the caller, who keeps what was measured.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mcpdiag-bench-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mcpdiag.bench.load", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def run(self, spec: LoadSpec) -> Measurement:
        """One run; blocks until it has ended.

        Raises:
            SessionError: the sessions could not be opened, or the generator has died.
        """
        job = Job(output=self._output, spec=spec)
        self._do(job)
        return columns.decode(Path(job.output).read_bytes())

    def duet(self, spec: DuetSpec) -> tuple[Measurement, Measurement]:
        """One round of base and new.

        Raises:
            SessionError: as of `run`.
        """
        job = Job(output=self._output, duet=spec)
        self._do(job)
        return columns.decode(job.beside.read_bytes()), columns.decode(Path(job.output).read_bytes())

    @property
    def _output(self) -> str:
        return str(Path(self._folder.name, "measurement"))

    def _do(self, job: Job) -> None:
        assert self._process is not None
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        with contextlib.suppress(BrokenPipeError):
            sink.write(msgspec.json.encode(job) + b"\n")
            sink.flush()
        line = source.readline()
        if not line:
            raise SessionError(f"the load generator ended with code {self._process.wait()}")
        if error := msgspec.json.decode(line, type=Done).error:
            raise SessionError(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        if kind is not None:
            process.terminate()
        stop(process)
        self._folder.cleanup()


def stop(process: subprocess.Popen[Any], within: float = STOP_S) -> None:
    """Close the pipes of a process that ends with its stdin, and see that it does."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
