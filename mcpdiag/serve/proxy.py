"""`Proxy`: a proxy in the running event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.connection.reaper import Reaper
from mcpdiag.errors import ConfigError, HeapError, StartError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.html.proxy import proxy_html
from mcpdiag.listeners import Listeners
from mcpdiag.proxy.endpoint import Endpoint
from mcpdiag.proxy.gate import Gate
from mcpdiag.proxy.guard import Guard
from mcpdiag.proxy.session import Sessions
from mcpdiag.proxy.stdio import StdioFront
from mcpdiag.samples.gauge import Gauge, PoolReading
from mcpdiag.samples.heap_servers import HeapServers
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.sampling import Sampling
from mcpdiag.samples.writer import Writer
from mcpdiag.serve.settings import Upstreams, check_commands, configure, needs_recording
from mcpdiag.server import Server, listen
from mcpdiag.upstream.auto import AutoUpstream
from mcpdiag.upstream.http import HttpUpstream
from mcpdiag.upstream.legacy import LegacyUpstream
from mcpdiag.upstream.stdio import StdioUpstream

log = logging.getLogger("mcpdiag.serve")
Clock = Callable[[], float]


class Proxy:
    """A proxy in front of one or more MCP servers, as an async context manager::

        async with Proxy({"everything": ["npx", "-y", "@modelcontextprotocol/server-everything"]}) as proxy:
            print(proxy.url)

    Args:
        upstreams: by name: a command as a list, a URL, or a mapping with the fields of `UpstreamConfig`;
            or a complete `ProxyConfig`.
        hook: receives every event (`mcpdiag.hooks`).
        record: keep samples in `recorder`; without it nothing is sampled, and nothing paid for it.
        stdio: serve one client on these file descriptors, to read from and to write to, instead of a port.
        settings: fields of `ProxyConfig`; `timeouts` and `pool` hold for all upstreams.

    Raises:
        ConfigError: the settings are wrong; one line for each mistake.
        StartError: on entering: the port is taken, or a command does not exist.
    """

    def __init__(
        self,
        upstreams: Upstreams | ProxyConfig,
        *,
        hook: Hook = NO_HOOK,
        record: bool = True,
        stdio: tuple[int, int] | None = None,
        **settings: Any,
    ) -> None:
        self.config = upstreams if isinstance(upstreams, ProxyConfig) else configure(upstreams, **settings)
        if stdio is not None and len(self.config.upstreams) > 1:
            names = ", ".join(self.config.upstreams)
            raise ConfigError(
                [f"a client over stdio gets one server, found {names}; give one of them with --name"]
            )
        self.url = ""
        self.urls: dict[str, str] = {}
        self.admin_url = ""
        self.front: StdioFront | None = None
        self._stdio = stdio
        if not record and (wrong := needs_recording(self.config)):
            raise ConfigError(
                [f"found {name} without recording; leave out record=False, or {name}" for name in wrong]
            )
        front: Literal["tcp", "pipe"] = "tcp" if stdio is None else "pipe"
        self._listeners = Listeners(self.config, hook, self.stats, record=record, front=front)
        self._recorder = self._listeners.recorder
        self._sampling: Sampling | None = None
        self._heap_servers: HeapServers | None = None
        self._hook = self._listeners.hook
        self._upstreams: list[StdioUpstream | HttpUpstream] = []
        self._sessions: Sessions | None = None
        self._gate: Gate | None = None
        self._servers: list[Server] = []
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._started_at = 0.0
        self._closing = False
        self._closed: anyio.Event | None = None
        self._force: anyio.Event | None = None

    # -- start --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        config = self.config
        check_commands(config)
        listener = self._listen(config.port if self._stdio is None else None)
        admin = self._listen(config.admin_port)
        self._closed, self._force = anyio.Event(), anyio.Event()
        clock = asyncio.get_running_loop().time  # anyio.current_time looks the loop up at every call
        self._started_at = time.monotonic()
        try:
            upstreams = await self._prepare_heap()
            reaper = self._stack.enter_context(Reaper())
            self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
            sessions = self._sessions = Sessions(
                max_sessions=config.max_sessions,
                idle_timeout=config.session_idle_timeout,
                keepalive=config.keepalive_interval,
                max_events=config.max_stored_events,
                max_event_bytes=config.max_stored_bytes,
                hook=self._hook,
                clock=clock,
            )
            self._upstreams = [self._upstream(name, each, reaper, clock) for name, each in upstreams.items()]
            for upstream in self._upstreams:
                await upstream.start(self._tasks)
            self._tasks.start_soon(sessions.run)
            self._start_sampling()
            guard = Guard(config)
            self._gate = Gate(sessions.calls_in_flight)
            if listener is not None:
                endpoint = Endpoint(self._upstreams, sessions, guard, self._gate, hook=self._hook)
                await self._serve(endpoint, listener)
                self._name_urls(_url(config.host, listener))
            if self._stdio is not None:
                self.front = self._front(sessions, self._gate, *self._stdio)
                await self._tasks.start(self.front.run)
            if admin is not None:
                from mcpdiag.proxy.admin import admin_app  # starlette takes a quarter of the time of a start

                listeners = self._listeners
                app = admin_app(
                    guard, lambda: not self._closing, self.stats, listeners.metrics, listeners.frames
                )
                await self._serve(app, admin)
                self.admin_url = _url(config.host, admin)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose(force=True)
            await self._stack.aclose()  # outside of that scope, which began inside its task group
            raise
        return self

    def _listen(self, port: int | None) -> socket.socket | None:
        if port is None:
            return None
        return self._stack.enter_context(listen(self.config.host, port))

    def _name_urls(self, base: str) -> None:
        self.urls = {name: f"{base}/{name}/mcp" for name in self.config.upstreams}
        self.url = f"{base}/mcp" if len(self.urls) == 1 else next(iter(self.urls.values()))

    def _front(self, sessions: Sessions, gate: Gate, source: int, sink: int) -> StdioFront:
        return StdioFront(
            self._upstreams[0],
            sessions,
            gate,
            source,
            sink,
            max_line_bytes=self.config.max_body_bytes,
            drain_timeout=self.config.drain_timeout,
            hook=self._hook,
        )

    def _upstream(
        self, name: str, config: UpstreamConfig, reaper: Reaper, clock: Clock
    ) -> StdioUpstream | HttpUpstream:
        def make_room() -> None:
            assert self._sessions is not None
            self._sessions.evict(upstream)

        upstream: StdioUpstream | HttpUpstream
        if config.kind == "http" and config.transport == "http":
            return HttpUpstream(name, config, hook=self._hook, clock=clock)
        if config.kind == "http":
            kind = LegacyUpstream if config.transport == "sse" else AutoUpstream
            upstream = kind(name, config, hook=self._hook, on_starved=make_room, clock=clock)
            return upstream
        upstream = StdioUpstream(
            name, config, reaper=reaper, hook=self._hook, on_starved=make_room, clock=clock
        )
        return upstream

    async def _prepare_heap(self) -> Mapping[str, UpstreamConfig]:
        """The upstreams, with commands that run under memray those that are to; what is missing is said at the start."""
        recorder, config = self._recorder, self.config
        if recorder is None:
            return config.upstreams
        upstreams: Mapping[str, UpstreamConfig] = config.upstreams
        try:
            if config.heap_every is not None:
                await recorder.heap.check()
            if any(each.heap_upstream for each in upstreams.values()):
                servers = HeapServers(recorder.heap.rows)
                self._stack.callback(servers.close)
                upstreams = await anyio.to_thread.run_sync(servers.prepare, upstreams)
                self._heap_servers = servers
        except HeapError as error:
            raise StartError(str(error)) from None
        look = None if self._heap_servers is None else self._heap_servers.look
        recorder.heap.connect(self._hook, asyncio.get_running_loop(), look)
        return upstreams

    def _start_sampling(self) -> None:
        recorder, config = self._recorder, self.config
        if recorder is None:
            return
        try:
            writer = None if config.capture is None else Writer(recorder, config.capture)
        except (ImportError, ValueError, OSError) as error:
            raise StartError(f"nothing can be captured: {error}") from None
        gauge = Gauge(recorder, self._pools, self._pids, every=config.sample_every)
        windows = None if config.heap_every is None else (config.heap_every, config.heap_for)
        self._sampling = Sampling(
            recorder, gauge, writer, heap_windows=windows, heap_servers=self._heap_servers
        )
        assert self._tasks is not None
        self._tasks.start_soon(self._sampling.run)

    def _pools(self) -> Iterator[PoolReading]:
        for upstream in self._upstreams:
            era = "both" if upstream.transport == "http" else "handshake"
            yield PoolReading(upstream.name, upstream.mode, era, upstream.stats())
            if isinstance(upstream, StdioUpstream) and (stateless := upstream.stateless) is not None:
                yield PoolReading(upstream.name, stateless.mode, "stateless", stateless.stats())

    def _pids(self) -> dict[str, list[int]]:
        return {upstream.name: upstream.pids() for upstream in self._upstreams}

    async def _serve(self, app: Any, listener: socket.socket) -> None:
        assert self._tasks is not None
        server = Server(app)
        self._servers.append(server)
        self._tasks.start_soon(server.serve, listener)
        await server.is_up.wait()

    # -- look ---------------------------------------------------------------------------------------------

    @property
    def recorder(self) -> Recorder:
        """The samples: `recorder.requests` and its like are DataFrames. They stay after the proxy has stopped.

        Raises:
            RuntimeError: the proxy does not record.
        """
        if self._recorder is None:
            raise RuntimeError("this proxy records nothing; leave out record=False")
        return self._recorder

    def stats(self) -> dict[str, Any]:
        """The numbers of this moment, as plain JSON: sessions, calls in flight, and every pool's `PoolStats`."""
        sessions = self._sessions
        return {
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "sessions": 0 if sessions is None else len(sessions),
            "calls": 0 if sessions is None else sessions.calls_in_flight(),
            "events_dropped": 0 if sessions is None else sessions.events_dropped,
            "upstreams": {
                upstream.name: {
                    "transport": upstream.transport,
                    "mode": upstream.mode,
                    "pool": asdict(upstream.stats()),
                    **_stateless_numbers(upstream),
                }
                for upstream in self._upstreams
            },
        }

    def _repr_html_(self) -> str:
        begun, ended = self._closed is not None, self._closed is not None and self._closed.is_set()
        state = "stopped" if ended else "stopping" if self._closing else "running" if begun else "not started"
        return proxy_html(state, self.config, self.urls, self.admin_url, self.stats())

    # -- stop ---------------------------------------------------------------------------------------------

    async def aclose(self, *, force: bool = False) -> None:
        """Stop in this order: accept nothing, end the listening streams, let calls finish up to `drain_timeout`,
        end the sessions, close the pools and their processes, flush the last answers. Idempotent; a second caller
        waits for the first, and `force` cuts the waiting short."""
        assert self._closed is not None
        assert self._force is not None
        if force:
            self._force.set()
        if self._closing:
            if force:
                await self._close_pools(force=True)
            await self._closed.wait()
            return
        self._closing = True
        with anyio.CancelScope(shield=True):
            for server in self._servers:
                server.stop_accepting()
            if self._gate is not None and self._sessions is not None:
                self._gate.close()
                self._sessions.close_streams()
                await self._drain(self._gate)
                await self._sessions.close_all("shut down")
            await self._close_pools(force=self._force.is_set())
            if self.front is not None:
                await self.front.aclose(force=self._force.is_set())
            for server in self._servers:
                server.stop(force=self._force.is_set())
                await server.is_down.wait()
            if self._sessions is not None:
                self._sessions.stop()
            if self._sampling is not None:
                await self._sampling.aclose(self._force)
            await self._listeners.aclose()
            self._closed.set()

    async def _drain(self, gate: Gate) -> None:
        assert self._force is not None

        async def cut_short(force: anyio.Event) -> None:
            await force.wait()
            tasks.cancel_scope.cancel()

        with anyio.move_on_after(self.config.drain_timeout):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cut_short, self._force)
                await gate.drained()
                tasks.cancel_scope.cancel()

    async def _close_pools(self, *, force: bool) -> None:
        async with anyio.create_task_group() as tasks:
            for upstream in self._upstreams:
                tasks.start_soon(partial(upstream.aclose, drain_timeout=1.0, force=force))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose(force=kind is not None and not issubclass(kind, Exception))
        finally:
            await self._stack.__aexit__(None, None, None)


def _stateless_numbers(upstream: StdioUpstream | HttpUpstream) -> dict[str, Any]:
    """The processes of a stdio server for requests of 2026-07-28, once there was one."""
    stateless = upstream.stateless if isinstance(upstream, StdioUpstream) else None
    return {} if stateless is None else {"stateless_pool": asdict(stateless.stats())}


def _url(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
