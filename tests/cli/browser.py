"""Headless Chromium over its debugging pipe: opens a file, and tells what it asked for and what it complained of."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0


def find() -> str | None:
    """The first browser of these on PATH."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page. `requests` are the URLs asked for, `complaints` what the console and the log say."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._kept = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._events: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol, and what it answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        ends = time.monotonic() + PATIENCE_S
        while b"\0" not in self._kept:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, ends - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, "the browser has ended"
            self._kept += chunk
        line, _, self._kept = self._kept.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._take(message.get("method", ""), message.get("params", {}))
        return message

    def _take(self, method: str, params: dict[str, Any]) -> None:
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])

    def open(self, url: str) -> None:
        """Go there, and wait until everything that the page has is loaded."""
        self._events.clear()
        self.ask("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._next()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def dress(self, *, width: int, dark: bool) -> None:
        """Take this width in pixels, and a light or dark colour scheme."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> None:
        """The whole page as PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(program: str, home: Path) -> Iterator[Page]:
    """A page of a browser that keeps its files in `home`."""
    here_out, there_in = os.pipe()[::-1], os.pipe()
    commands, there_reads = here_out
    answers, there_writes = there_in
    options = (
        "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
    )
    line = f'exec "$0" {options} --user-data-dir="$1" 3<&{there_reads} 4>&{there_writes}'
    process = subprocess.Popen(
        ["bash", "-c", line, program, str(home)], pass_fds=(there_reads, there_writes), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(there_reads)
    os.close(there_writes)
    try:
        yield Page(commands, answers)
    finally:
        os.close(commands)  # which ends it, and its children
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(answers)
