"""The frames of a proxy that runs elsewhere, over its admin port."""

from __future__ import annotations

import http.client
import json
import warnings
from collections.abc import AsyncIterator, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio

from mcpdiag.errors import AttachError
from mcpdiag.samples.base import Samples
from mcpdiag.samples.schema import SCHEMA, FrameName
from mcpdiag.samples.wire import ARROW, NEXT, RUN, read

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

TIMEOUT = 10.0  # seconds
SHOWN = 20_000  # the newest rows, which a notebook's summary is of


class Remote(Samples):
    """The samples of a running proxy, fetched when they are asked for. `attach` makes one.

    Attributes:
        url: of the proxy's admin port.
        run: which run of the proxy it is; another one after a restart.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise AttachError(f"{url!r} is not the URL of an admin port; give http://HOST:PORT")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._parts = parts
        self._token = token
        self._warns = True
        self.run = ""
        self._note(str(self._overview()["run"]))

    def frame(self, name: FrameName, since: int = 0) -> DataFrame:
        """The frame of that name as the proxy has it now, from the row numbered `since` on.

        Raises:
            KeyError: there is none of that name.
            AttachError: the proxy cannot be reached, or refuses.
        """
        if name not in SCHEMA:
            raise KeyError(name)
        return self._fetch(name, since)[0]

    def _fetch(self, name: FrameName, since: int) -> tuple[DataFrame, int, bool]:
        """Rows, the number of the next one, and whether the proxy was restarted since the last look."""
        from mcpdiag.samples.frame import conform

        body, headers = self._get(f"/frames/{name}?since={since}", ARROW)
        restarted = self._note(headers[RUN])
        if restarted and since:
            return (*self._fetch(name, 0)[:2], True)
        return conform(name, read(body)), int(headers[NEXT]), restarted

    def piece(self, name: FrameName, since: int) -> tuple[DataFrame, int, bool]:
        """Rows from number `since` on, the number of the next one, and whether the proxy was restarted since the last
        look; then the rows are all that there are of the new run. Raises AttachError."""
        return self._fetch(name, since)

    def quiet(self) -> Remote:
        """The same proxy for a thread that must not print: a restart is told by `piece` and `run` alone."""
        twin = copy(self)
        twin._warns = False
        return twin

    def _note(self, run: str) -> bool:
        """Notice a restart, and say so."""
        restarted = bool(self.run) and run != self.run
        self.run = run
        if restarted and self._warns:
            warnings.warn(f"the proxy at {self.url} was restarted; its samples begin anew", stacklevel=4)
        return restarted

    def _overview(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._get("/frames", "application/json")[0])
        return found

    @property
    def written(self) -> dict[FrameName, int]:
        overview = self._overview()
        self._note(str(overview["run"]))
        frames = overview["frames"]
        return {name: int(frames.get(name, {}).get("written", 0)) for name in SCHEMA}

    @property
    def dropped(self) -> dict[FrameName, int]:
        frames = self._overview()["frames"]
        return {name: int(frames.get(name, {}).get("dropped", 0)) for name in SCHEMA}

    def stats(self) -> dict[str, Any]:
        """What `/stats` says: sessions, calls in flight, every pool's numbers."""
        found: dict[str, Any] = json.loads(self._get("/stats", "application/json")[0])
        return found

    async def stream(
        self, name: FrameName, *, every: float = 1.0, since: int | None = None
    ) -> AsyncIterator[DataFrame]:
        """New rows as they come, until the caller stops. After a restart of the proxy it goes on with the new run.

        Args:
            name: of the frame.
            every: seconds between two looks.
            since: the number of the first row; rows that come from now on, if not given.

        Raises:
            AttachError: the proxy cannot be reached any more.
        """
        place = since if since is not None else (await anyio.to_thread.run_sync(lambda: self.written))[name]
        while True:
            await anyio.sleep(every)
            frame, place, _ = await anyio.to_thread.run_sync(self._fetch, name, place)
            if len(frame):
                yield frame

    def _get(self, path: str, accept: str) -> tuple[bytes, dict[str, str]]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=TIMEOUT)
        headers = {"accept": accept}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AttachError(
                f"no proxy at {self.url} ({reason}); start it with --admin-port, and give that port"
            ) from None
        finally:
            connection.close()
        if response.status != 200:
            words = body.decode(errors="replace").strip().splitlines()[:1]
            raise AttachError(
                f"the proxy at {self.url} answered {path} with {response.status}: {''.join(words)}"
            )
        return body, {key.lower(): value for key, value in response.getheaders()}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def _title(self) -> str:
        return f"proxy at {self.url}"

    def _to_show(self, written: Mapping[FrameName, int]) -> DataFrame:
        return self.frame("requests", max(0, written["requests"] - SHOWN))


def attach(url: str, *, token: str | None = None) -> Remote:
    """The frames of a proxy that runs elsewhere, by the URL of its admin port (`--admin-port`).

    Args:
        url: such as `http://127.0.0.1:9464`.
        token: the proxy's, if it has one.

    Raises:
        AttachError: nothing answers there, or it refuses.
    """
    return Remote(url, token)
