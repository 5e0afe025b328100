"""Types the `console` blocks of a page into a shell, as its reader would, and compares what comes. For test_docs.

All blocks of a page share a folder. A `mcpdiag proxy` goes on in a second terminal until the end of the page, or until
another one wants its port. Ports
are exchanged for free ones, so that pages can be read at the same time. In what a command prints, `...` is any text,
and a line of it any number of lines; where a page shows no output, none is compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.pages import Block

DEFAULT_PORT = "8808"
_PORT = re.compile(r"(?:(?<=127\.0\.0\.1:)|(?<=port )|(?<=port=))\d{4,5}\b")
SECONDS = 60.0


@dataclass
class Command:
    """A line behind `$`, and the lines below it."""

    line: str
    output: list[str] = field(default_factory=list)

    @property
    def serves(self) -> bool:
        """Whether it goes on until it is stopped."""
        return self.line.startswith(("mcpdiag proxy", ".venv/bin/mcpdiag proxy")) and "||" not in self.line


def commands(block: Block) -> list[Command]:
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:]))
        elif found and found[-1].line.endswith("\\"):
            found[-1].line += "\n" + line
        elif line and found:
            found[-1].output.append(line)
        elif line:
            raise AssertionError(f"{block}: a console block begins with '$ ', found {line!r}")
    assert found, f"{block}: a console block without a command"
    return found


def refuse(block: Block, command: Command) -> None:
    """A page's mistake must not reach another machine, nor change this environment.

    Raises:
        AssertionError: the command names a host other than this one, or installs something.
    """
    hosts = {*re.findall(r"https?://([^/:\s]+)", command.line)} - {"127.0.0.1", "localhost"}
    installs = re.search(r"\b(?:npx|npm|uvx|docker|pip3? install)\b", command.line)
    assert not hosts, f"{block}: {command.line}: names {hosts}; mark the block as not run"
    assert not installs, f"{block}: {command.line}: installs something; mark the block as not run"


def expected(output: list[str]) -> re.Pattern[str]:
    lines = [
        r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n"
        for line in output
    ]
    return re.compile("".join(lines))


class Terminal:
    """`with Terminal(folder) as terminal: terminal.type(block)`; it ends what still runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports: dict[str, str] = {}
        self._serving: list[tuple[set[str], contextlib.ExitStack]] = []
        keep = {name: value for name, value in os.environ.items() if not name.startswith("MCPDIAG_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**keep, "PATH": path, "HOME": str(folder), "COLUMNS": "100"}

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:  # so that all of them end, whatever one of them does
            for _ports, program in self._serving:
                stack.push(program)

    def type(self, block: Block) -> None:
        """
        Raises:
            AssertionError: a command failed, or printed something else.
        """
        for command in commands(block):
            refuse(block, command)
            line, output = self._with_free_ports(command.line), [*map(self._with_free_ports, command.output)]
            if command.serves:
                self._serve(block, line, output)
                continue
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
            )
            assert done.returncode == 0, f"{block}: {line}: exit code {done.returncode}: {done.stdout}"
            if output:
                found = done.stdout.rstrip("\n") + "\n"
                assert expected(output).fullmatch(found), f"{block}: {line}: printed {found}"

    def _serve(self, block: Block, line: str, output: list[str]) -> None:
        environment, ports = self._environment, {*_PORT.findall(line)}
        if "port" not in line.replace("--admin-port", "") and "--stdio" not in line:
            port = self._with_free_ports(f"port {DEFAULT_PORT}").removeprefix("port ")
            environment, ports = {**environment, "MCPDIAG_PORT": port}, {*ports, port}
        for each in [each for each in self._serving if each[0] & ports]:
            self._serving.remove(each)
            each[1].close()
        stack = contextlib.ExitStack()
        stack.enter_context(self._program(block, line, output, environment))
        self._serving.append((ports, stack))

    @contextlib.contextmanager
    def _program(
        self, block: Block, line: str, output: list[str], environment: dict[str, str]
    ) -> Iterator[None]:
        program = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seen, matches = [""], threading.Event()

        def read() -> None:
            for each in program.stdout or ():
                seen[0] += each
                if (expected(output) if output else re.compile(".* at http.*\n")).match(seen[0]):
                    matches.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            while not matches.wait(0.1):
                assert program.poll() is None, f"{block}: {line}: ended: {seen[0]}"
            yield
            program.send_signal(signal.SIGTERM)
            assert program.wait(SECONDS) == 0, f"{block}: {line}: exit code {program.returncode}: {seen[0]}"
        finally:
            program.kill()
            program.wait()
            reader.join()
            if program.stdout is not None:
                program.stdout.close()

    def _with_free_ports(self, text: str) -> str:
        return _PORT.sub(lambda found: self._ports.setdefault(found[0], free_port()), text)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
