"""`mcpdiag top`: what a running proxy does now, in the terminal or, when piped, as a block each interval."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from mcpdiag.cli.terminated import terminated_is_interrupted
from mcpdiag.config.types import parse_duration
from mcpdiag.errors import AttachError, ConfigError, StartError

if TYPE_CHECKING:
    from mcpdiag.cli.top_watch import Watch

WINDOW = (1.0, 300.0)  # seconds


def top(
    url: Annotated[str, typer.Argument(help="Of the proxy's admin port, http://HOST:PORT.")],
    every: Annotated[str, typer.Option(help="Time between two looks.")] = "1s",
    window: Annotated[str, typer.Option(help="Calls are counted over so long, 1s to 5m.")] = "10s",
    once: Annotated[bool, typer.Option("--once", help="Look once, print, end.")] = False,
    for_: Annotated[str | None, typer.Option("--for", help="End after so long. [default: at Ctrl-C]")] = None,
    retry_for: Annotated[
        str, typer.Option(help="Keep trying so long when the proxy is gone, then exit with 3.")
    ] = "60s",
    token: Annotated[str | None, typer.Option(envvar="MCPDIAG_TOKEN", help="The proxy's token.")] = None,
) -> None:
    """Show what a running proxy does: calls and percentiles, pools, processes, events; what hurts most on top.

    Examples:

    `mcpdiag top http://127.0.0.1:9464`

    `mcpdiag top http://127.0.0.1:9464 --every 5s --for 1m > before-lunch.txt`
    """
    problems: list[str] = []
    every_s = _seconds(problems, "--every", every, least=0.1)
    window_s = _seconds(problems, "--window", window, least=WINDOW[0], most=WINDOW[1])
    for_s = None if for_ is None else _seconds(problems, "--for", for_, least=0.0)
    retry_s = _seconds(problems, "--retry-for", retry_for, least=0.0)
    if once and for_ is not None:
        problems.append("--once: found it beside --for; allowed: one of them")
    if problems:
        raise ConfigError(problems)
    from mcpdiag.cli.top_watch import Watch

    with terminated_is_interrupted():
        try:
            watch = Watch(url, token, window=window_s)
            try:
                watch.look()
            except ImportError as error:
                raise StartError(str(error)) from None
            _show(watch, every_s, 0.0 if once else for_s, retry_s)
        except KeyboardInterrupt:
            # Without an end of its own that is how it ends.
            raise typer.Exit(130 if once or for_ is not None else 0) from None


def _show(watch: Watch, every_s: float, for_s: float | None, retry_s: float) -> None:
    from mcpdiag.cli.top_show import WIDTH, block

    terminal = Console()
    if not terminal.is_terminal or for_s == 0.0:
        console = Console(width=WIDTH if not terminal.is_terminal else min(terminal.width, WIDTH))
        for number, note in enumerate(_looks(watch, every_s, for_s, retry_s)):
            if number:
                console.print()
            console.print(block(watch, note), highlight=False)
        return
    console = Console(width=min(terminal.width, WIDTH))
    note = ""
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for note in _looks(watch, every_s, for_s, retry_s):
                size = Console().size  # a window may change its size, and ours has a fixed width
                console.width = min(size.width, WIDTH)
                live.update(block(watch, note, height=size.height), refresh=True)
    finally:
        console.print(block(watch, note), highlight=False)  # stays when the live view is gone


def _looks(watch: Watch, every_s: float, for_s: float | None, retry_s: float) -> Iterator[str]:
    """A note for each block to show: empty, or that the proxy does not answer. The first look was taken already.

    Raises:
        AttachError: it has not answered for `retry_s`.
    """
    began = answered = time.monotonic()
    note = ""
    while True:
        yield note
        due = time.monotonic() + every_s
        if for_s is not None and due > began + for_s + every_s / 2:
            return
        time.sleep(every_s)
        try:
            watch.look()
            answered, note = time.monotonic(), ""
        except AttachError as error:
            gone = time.monotonic() - answered
            if gone > retry_s:
                raise AttachError(f"{error}; it was gone for {gone:.0f} s (--retry-for)") from None
            note = f"no answer for {gone:.0f} s, what follows is older; trying until {retry_s:.0f} s: {error}"


def _seconds(problems: list[str], option: str, text: str, *, least: float, most: float = 1e6) -> float:
    allowed = f"a duration from {least:g}s" + ("" if most == 1e6 else f" to {most:g}s")
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= most:
        problems.append(f"{option}: found {text[:40]!r}; allowed: {allowed}, such as 500ms, 5s or 1m")
    return seconds
