"""`serve`: a proxy in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import threading
from typing import Any, Self

import anyio

from mcpdiag.config import ProxyConfig
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.samples.recorder import Recorder
from mcpdiag.serve.proxy import Proxy
from mcpdiag.serve.settings import Upstreams

YOUNG = 20_000


class BackgroundProxy:
    """A proxy in a thread of its own with its own event loop, for synchronous code and notebooks::

        with mcpdiag.serve({"files": ["uvx", "mcp-server-filesystem"]}) as proxy:
            print(proxy.url)

    Interrupting a cell (KeyboardInterrupt) reaches only the caller's thread: the proxy goes on serving.
    """

    def __init__(
        self,
        upstreams: Upstreams | ProxyConfig,
        *,
        hook: Hook = NO_HOOK,
        record: bool = True,
        **settings: Any,
    ) -> None:
        self._proxy = Proxy(upstreams, hook=hook, record=record, **settings)
        self._ready = threading.Event()
        self._stop: anyio.Event | None = None
        self._portal_call: Any = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mcpdiag", daemon=True)

    def start(self) -> Self:
        """Start the thread and wait until the proxy accepts requests. Raises what `Proxy` raises."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        atexit.register(self.close)
        return self

    def _run(self) -> None:
        try:
            run_loop(self._main)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._ready.set()

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        self._stop, self._force = anyio.Event(), False
        stop = self._stop
        self._portal_call = loop.call_soon_threadsafe
        async with self._proxy as proxy:
            self._ready.set()
            await stop.wait()
            await proxy.aclose(force=self._force)

    @property
    def url(self) -> str:
        """The MCP endpoint of the only (or first) upstream."""
        return self._proxy.url

    @property
    def urls(self) -> dict[str, str]:
        """The MCP endpoint of each upstream by name."""
        return self._proxy.urls

    @property
    def admin_url(self) -> str:
        """Where `/healthz`, `/readyz` and `/stats` are; empty without `admin_port`."""
        return self._proxy.admin_url

    @property
    def recorder(self) -> Recorder:
        """See `Proxy.recorder`."""
        return self._proxy.recorder

    def stats(self) -> dict[str, Any]:
        """See `Proxy.stats`."""
        return self._proxy.stats()

    def _repr_html_(self) -> str:
        return self._proxy._repr_html_()

    def close(self) -> None:
        """Shut down as `Proxy.aclose` does and wait for the thread. Idempotent."""
        atexit.unregister(self.close)
        if self._stop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop has just ended
                self._portal_call(self._stop.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self if self._ready.is_set() else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    upstreams: Upstreams | ProxyConfig, *, hook: Hook = NO_HOOK, record: bool = True, **settings: Any
) -> BackgroundProxy:
    """Start a proxy in the background; use it in a `with` block, or call `close`. Arguments as for `Proxy`."""
    return BackgroundProxy(upstreams, hook=hook, record=record, **settings).start()


def run_loop(main: Any) -> Any:
    """Run an async function on uvloop where there is one, else on asyncio's own loop."""
    return anyio.run(main, backend_options={"use_uvloop": _has_uvloop()})


def spare_collector() -> None:
    """Keep the garbage collector from what is no garbage, in a process that has nothing to do but serve a proxy.

    What a start has made stays: without this a full collection holds up every call for 50 ms instead of 5. What the
    calls in flight have made comes and goes: below `YOUNG` objects nobody looks at it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True
