"""Who listens to a proxy: its recorder, `/metrics`, OTLP, and whatever its caller has given. `serve` owns one set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio

from mcpdiag.config import ProxyConfig
from mcpdiag.errors import StartError
from mcpdiag.hooks import NO_HOOK, All, Hook
from mcpdiag.samples.meta import masked
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.wire import answer

if TYPE_CHECKING:
    from mcpdiag.export.otel import Otel

OTLP_LIMIT = 5.0  # seconds for the last batch at shutdown


class Listeners:
    """The hooks of one proxy.

    Attributes:
        hook: all of them as one; `NO_HOOK` if nobody listens.
        recorder: None without recording.
        metrics: renders `/metrics` for an `Accept` header; None without an admin port, or without the extra.
        frames: answers `/frames`; None without recording.

    Raises:
        StartError: OTLP is asked for, and its extra is missing.
    """

    def __init__(
        self,
        config: ProxyConfig,
        hook: Hook,
        stats: Callable[[], dict[str, Any]],
        *,
        record: bool,
        front: Literal["tcp", "pipe"],
    ) -> None:
        self.recorder = Recorder(about={"config": masked(config)}) if record else None
        self.frames = None if self.recorder is None else partial(answer, self.recorder)
        self.metrics: Callable[[str], tuple[bytes, str]] | None = None
        self._otel: Otel | None = None
        hooks: list[Hook] = [] if self.recorder is None else [self.recorder]
        if config.admin_port is not None:
            try:
                from mcpdiag.export.prometheus import Metrics
            except ImportError:
                pass  # the admin port says so to who asks for /metrics
            else:
                metrics = Metrics(stats, front=front)
                self.metrics = metrics.render
                hooks.append(metrics)
        if config.otlp:
            try:
                from mcpdiag.export.otel import Otel
            except ImportError as error:
                raise StartError(str(error)) from None
            self._otel = Otel(stats, front=front)
            hooks.append(self._otel)
        if hook is not NO_HOOK:
            hooks.append(hook)
        self.hook = NO_HOOK if not hooks else hooks[0] if len(hooks) == 1 else All(hooks)

    async def aclose(self) -> None:
        """Send what OTLP still has, within `OTLP_LIMIT`."""
        otel, self._otel = self._otel, None
        if otel is not None:
            await anyio.to_thread.run_sync(otel.close, OTLP_LIMIT)
