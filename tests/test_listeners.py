"""Who listens to a proxy is decided by its settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mcpdiag
from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.embedded import COMMAND
from mcpdiag.errors import StartError
from mcpdiag.hooks import NO_HOOK, Event
from mcpdiag.listeners import Listeners
from tests.conftest import RawClient
from tests.samples.test_remote import ask, free_port

UPSTREAMS = {"up": UpstreamConfig(command="true")}


class Kept:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, /) -> None:
        self.events.append(event)


def test_nobody_listens_who_is_not_asked_to() -> None:
    listeners = Listeners(ProxyConfig(upstreams=UPSTREAMS), NO_HOOK, dict, record=False, front="tcp")
    assert listeners.hook is NO_HOOK
    assert (listeners.recorder, listeners.frames, listeners.metrics) == (None, None, None)


def test_the_callers_hook_the_recorder_and_metrics_hear_the_same_call() -> None:
    kept = Kept()
    with mcpdiag.serve({"demo": COMMAND}, port=0, admin_port=free_port(), hook=kept) as proxy:
        RawClient(proxy.url).initialize().call("echo", text="x")
        status, body = ask(proxy.admin_url, "/metrics")
        assert status == 200
        (line,) = [
            line
            for line in body.decode().splitlines()
            if line.startswith("mcp_server_operation_duration_seconds_count")
            and 'gen_ai_tool_name="echo"' in line
        ]
        assert float(line.rsplit(" ", 1)[1]) == 1.0
        assert list(proxy.recorder.requests["target"]) == ["", "echo"]
    assert [getattr(event, "target", None) for event in kept.events][:2] == ["", "echo"]


@pytest.mark.parametrize(
    ("missing", "settings", "words"),
    [("opentelemetry", ["--otlp"], "mcpdiag[otel]"), ("prometheus_client", ["--admin-port", "0"], "")],
)
def test_an_extra_that_is_missing(missing: str, settings: list[str], words: str, tmp_path: Path) -> None:
    """What needs it says so in one line; /metrics, which nobody may want, only to who asks."""
    (tmp_path / f"{missing}.py").write_text("raise ImportError('blocked', name=__name__)\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from mcpdiag.cli import main; main()"
    command = [sys.executable, "-c", code, "proxy", "--port", "0", *settings, "--", *COMMAND]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        if words:
            assert process.wait(30) == 3
            (line,) = process.stderr.read().splitlines()
            assert words in line
        else:
            admin = [process.stderr.readline().split()[-1] for _ in range(2)][1].removesuffix("/stats")
            status, body = ask(admin, "/metrics")
            assert (status, b"mcpdiag[prometheus]" in body) == (404, True)
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def test_the_start_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcpdiag.export.otel", None)
    with pytest.raises(StartError):
        Listeners(ProxyConfig(upstreams=UPSTREAMS, otlp=True), NO_HOOK, dict, record=False, front="tcp")
