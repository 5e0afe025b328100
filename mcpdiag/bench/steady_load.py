"""The load of a soak as seen from outside: a process that tells of each interval until it is stopped."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from mcpdiag.bench import columns
from mcpdiag.bench.columns import Measurement
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.bench.steady import Told

ENOUGH_S: Final = 20.0  # to close the sessions, beside the timeout of the calls under way


class Interval(NamedTuple):
    """What the load did until `at_s`, since the interval before."""

    at_s: float
    measurement: Measurement
    waiting: int  # calls due that have found no client free
    open: int  # sessions that can be used


class SteadyLoad:
    """`with SteadyLoad(spec, every_s=1.0) as load: for interval in load.intervals(): ...`

    It has a session of its own, so that Ctrl-C reaches only the caller.
    """

    def __init__(self, spec: LoadSpec, *, every_s: float) -> None:
        self._spec, self._every_s = spec, every_s
        self._folder = tempfile.TemporaryDirectory(prefix="mcpdiag-soak-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        file = Path(self._folder.name, "spec.json")
        file.touch(mode=0o600)  # headers may hold a secret
        file.write_bytes(msgspec.json.encode(self._spec))
        arguments = [str(file), str(self._every_s), self._folder.name]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mcpdiag.bench.steady", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # or select would not see lines that have been read ahead
            start_new_session=True,
        )
        return self

    def wait_begin(self) -> int:
        """Wait until all sessions are open; how many they are.

        Raises:
            SessionError: they cannot be opened.
        """
        return self._told().open

    def intervals(self) -> Iterator[list[Interval]]:
        """The intervals that have ended since the last look, one or more; after `stop` the last ones.

        Raises:
            SessionError: the load has died.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            ended: list[Interval] = []
            while not ended or select.select([self._process.stdout], [], [], 0)[0]:
                if not (told := self._told(end=True)).file:
                    break
                file = Path(told.file)
                ended.append(Interval(told.at_s, columns.decode(file.read_bytes()), told.waiting, told.open))
                file.unlink()
            if not ended:
                return
            yield ended

    def _told(self, *, end: bool = False) -> Told:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            if end and process.wait() == 0:
                return Told()
            raise SessionError(f"the load generator ended with code {process.wait()}")
        told = msgspec.json.decode(line, type=Told)
        if told.error:
            raise SessionError(told.error)
        return told

    def stop(self) -> None:
        """Send nothing more; what is on its way is waited for. `intervals` ends after that."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        if kind is not None:
            process.terminate()
        process.stdin.close()
        try:
            process.wait(ENOUGH_S + self._spec.timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._folder.cleanup()
