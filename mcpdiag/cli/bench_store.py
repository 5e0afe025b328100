"""What the measuring verbs of `mcpdiag bench` have in common: the way from a first look to a result in its folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mcpdiag.bench import result as results
from mcpdiag.bench.environment import Environment, here, own_checkout
from mcpdiag.bench.raw import RawFile
from mcpdiag.cli.bench_proxies import Target
from mcpdiag.cli.terminated import terminated_is_interrupted
from mcpdiag.config.masking import public_args, public_url
from mcpdiag.errors import StartError

Tell = Callable[[str, int, int], None]  # words, steps done, steps in all


@dataclass(frozen=True)
class Outcome:
    """What came of a run. `plot` is the file, or why there is none; empty where none is drawn."""

    result: results.Result
    folder: Path
    interrupted: bool
    plot: str = ""


class Rounds(Protocol):
    """What is measured in rounds: `run` keeps what is there when it is interrupted."""

    steps: int

    def run(self) -> None: ...


Seen = TypeVar("Seen")
Run = TypeVar("Run", bound=Rounds)


@dataclass(frozen=True)
class Sitting(Generic[Seen, Run]):
    """What was seen at the first look, and what was run; `keep` or `drop` it."""

    seen: Seen
    run: Run
    interrupted: bool
    name: str
    folder: Path
    raw: RawFile
    environment: Environment
    started: datetime
    began: float

    def keep(self, **measured: Any) -> Outcome:
        """Write the result; `measured` is what `Result` has beside when, where and how long."""
        result = results.Result(
            name=self.name,
            started_at=self.started.isoformat(timespec="seconds"),
            took_s=round(time.monotonic() - self.began, 3),
            complete=not self.interrupted,
            environment=self.environment,
            **measured,
        )
        results.write(result, self.folder)
        return Outcome(result, self.folder, self.interrupted)

    def drop(self) -> None:
        """Leave nothing of it."""
        forget(self.folder, self.raw)

    def fail(self, cells: Sequence[results.Cell]) -> StartError:
        """Leave nothing of it, because nothing could be measured; the error to raise, with the first one of the calls."""
        self.drop()
        errors = (each.first_error for cell in cells for each in cell.repetitions)
        return StartError(
            f"the server cannot be measured, every call failed: {next(filter(None, errors), 'no answer')}"
        )


def sit(
    name: str,
    output: Path | None,
    tell: Tell,
    look: Callable[[], Seen],
    prepare: Callable[[Seen, RawFile, Callable[[str, int], None]], Run],
) -> Sitting[Seen, Run] | None:
    """Look at what is to be measured, claim a folder, run all rounds. None if it was interrupted before the first.

    Args:
        output: the folder; None: a new one.
        tell: called with words, steps done and steps in all.
        look: raises StartError where there is nothing to measure.
        prepare: given what was seen, where raw samples go, and what to tell before each step.
    """
    started, began = datetime.now(UTC), time.monotonic()
    environment = here()
    with terminated_is_interrupted():
        try:
            tell("looking at the server", 0, 1)
            seen = look()
        except KeyboardInterrupt:
            return None
        folder = claim(environment, name, output)
        interrupted = False
        with RawFile(folder) as raw:
            run = prepare(seen, raw, lambda words, done: tell(words, done, run.steps))
            try:
                run.run()
            except KeyboardInterrupt:
                interrupted = True
            except BaseException:
                forget(folder, raw)
                raise
    return Sitting(seen, run, interrupted, name, folder, raw, environment, started, began)


def public(target: Target) -> results.Target:
    """The server as it may be shown."""
    if target.command:
        return results.Target(kind="command", shown=" ".join(public_args(target.command)))
    if target.url:
        return results.Target(kind="url", shown=public_url(target.url))
    return results.Target(kind="embedded", shown="the embedded server")


def claim(environment: Environment, name: str, output: Path | None) -> Path:
    """A folder of its own for this result, made now, so that a second run takes another one."""
    if output is not None:
        results.claim(output)
        return output
    own = own_checkout(Path.cwd())
    root = Path("benchmarks/results") if own else Path("mcpdiag-results")
    while True:
        folder = results.folder_for(environment, name, root)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def forget(folder: Path, raw: RawFile) -> None:
    """Leave nothing of a result that is none."""
    raw.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
