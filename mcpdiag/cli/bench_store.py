"""What the measuring verbs of `mcpdiag bench` have in common: what came of a run, and a folder for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcpdiag.bench import result as results
from mcpdiag.bench.environment import Environment, own_checkout
from mcpdiag.bench.raw import RawFile
from mcpdiag.cli.bench_proxies import Target
from mcpdiag.config.masking import public_args, public_url

Tell = Callable[[str, int, int], None]  # words, steps done, steps in all


@dataclass(frozen=True)
class Outcome:
    """What came of a run. `plot` is the file, or why there is none; empty where none is drawn."""

    result: results.Result
    folder: Path
    interrupted: bool
    plot: str = ""


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
