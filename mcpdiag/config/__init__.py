"""Settings as typed values: timeouts, pool limits, upstreams, the proxy. Reading them is `load.py`.

Durations are float seconds in code; in files and on the command line also `"500ms"`, `"30s"`, `"5m"`, `"1h"`.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)

from mcpdiag.config.masking import public_args, public_url
from mcpdiag.config.types import (
    ONLY_HTTP,
    ONLY_STDIO,
    ONLY_TLS,
    TOKEN,
    Count,
    HttpClient,
    HttpTransport,
    PoolMode,
    Port,
    PositiveSeconds,
    Seconds,
    Text,
    UpstreamName,
    Whole,
    env_name,
    env_value,
    header_name,
    header_value,
    proxy_url,
    rule,
    runs_a_package,
)

DOWNLOAD_SECONDS = 60.0


class _Settings(BaseModel):
    # hide_input_in_errors: a ValidationError would otherwise print the headers beside the mistake.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class Timeouts(_Settings):
    """Five limits of one exchange, in seconds (docs/behaviour.md).

    An upstream whose command may download the server first (`npx`, `uvx`, `docker`, ...) has a `connect_timeout` of
    60 s where none is set.

    For example::

        Timeouts()                             the defaults
        Timeouts(request_timeout=5)            first byte or message of the answer within 5 s
        Timeouts(response_timeout="2m")        up to two minutes of silence inside an answer
        Timeouts(deadline=30)                  nothing takes longer than 30 s, retries included
        Timeouts(acquire_timeout="500ms")      fail fast when the pool is exhausted
    """

    acquire_timeout: PositiveSeconds = 5.0
    connect_timeout: PositiveSeconds = 10.0
    request_timeout: PositiveSeconds = 60.0
    response_timeout: PositiveSeconds = 60.0
    deadline: PositiveSeconds = 300.0


class PoolLimits(_Settings):
    """How many connections an upstream may have and how long they live.

    `max_inflight` is how many exchanges one `multiplex` connection carries at once.
    `max_lifetime` is jittered by up to 10 % so that connections do not expire together.
    """

    max_connections: Count = 10
    min_connections: Annotated[Whole, Field(ge=0)] = 0
    max_waiting: Annotated[Whole, Field(ge=0)] = 1000
    max_inflight: Count = 256
    return_channel_multiplier: Count = 2
    idle_timeout: PositiveSeconds = 10 * 60.0
    max_lifetime: PositiveSeconds = 60 * 60.0
    upkeep_interval: PositiveSeconds = 5.0

    @model_validator(mode="after")
    def _min_below_max(self) -> PoolLimits:
        if self.min_connections > self.max_connections:
            raise rule(
                f"found {self.min_connections}, above max_connections ({self.max_connections}); "
                "lower it or raise max_connections",
                "min_connections",
                "max_connections",
            )
        return self


class ReconnectPolicy(_Settings):
    """How an event stream that broke is opened again (docs/behaviour.md, "Streams").

    The delay before attempt n (0 is the first) is drawn from 0 to `min(cap, base * 2**n)`; what a server asks for
    with `retry` or `Retry-After` is added. Attempts go on until `window` has passed without a message.
    """

    base: Annotated[Seconds, Field(ge=0.1, le=0.5)] = 0.2
    cap: PositiveSeconds = 30.0
    window: PositiveSeconds = 5 * 60.0


class UpstreamConfig(_Settings):
    """One server: `command` (+ `args env cwd`) for stdio, or `url` (+ `headers`, `tls_*`, ...) for HTTP.

    Its repr masks what is or looks like a secret (`masking.py`).
    """

    command: Text | None = None
    args: tuple[Text, ...] = ()
    env: dict[Annotated[str, AfterValidator(env_name)], Annotated[SecretStr, AfterValidator(env_value)]] = {}
    cwd: Path | None = None
    url: str | None = None
    headers: dict[
        Annotated[str, AfterValidator(header_name)], Annotated[SecretStr, AfterValidator(header_value)]
    ] = {}
    transport: HttpTransport = "auto"
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_verify: bool = True
    http_client: HttpClient = "own"
    http2: bool = False
    proxy: Annotated[SecretStr, AfterValidator(proxy_url)] | None = None
    pool_mode: PoolMode = "session"
    timeouts: Timeouts = Timeouts()
    pool: PoolLimits = PoolLimits()
    reconnect: ReconnectPolicy = ReconnectPolicy()
    retries: Annotated[Whole, Field(ge=0, le=10)] = 0
    heap_upstream: bool = False
    max_message_bytes: Annotated[Whole, Field(ge=1024)] = 16 * 1024 * 1024
    close_timeout: PositiveSeconds = 2.0
    _written_url: str | None = PrivateAttr(default=None)

    @field_validator("command")
    @classmethod
    def _command_is_named(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("the command is empty")
        return value

    @field_validator("url")
    @classmethod
    def _url_is_http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            http = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, a bracket that does not close
            http = False
        if not http or not value.isprintable() or " " in value:
            raise ValueError(f"{public_url(value)!r} is not an http:// or https:// URL")
        if parts.username is not None or parts.password is not None:
            raise rule(
                "found a user or password in the URL; put an Authorization header into 'headers' instead"
            )
        return value

    @model_validator(mode="after")
    def _one_transport(self) -> UpstreamConfig:
        if self.command is None and self.url is None:
            raise rule(
                "found neither command nor url; allowed: 'command' for a stdio server or 'url' for an HTTP server",
                "command",
                "url",
            )
        if self.command is not None and self.url is not None:
            raise rule("found both command and url; allowed: one of them", "url", "command")
        unused = ONLY_HTTP if self.command is not None else ONLY_STDIO
        kind = "url" if self.command is not None else "command"
        for name in unused:
            if self._differs(name):
                raise rule(f"found it without '{kind}', which it goes with; remove it", name, kind)
        return self

    @model_validator(mode="after")
    def _a_package_has_time_to_download(self) -> UpstreamConfig:
        if runs_a_package(self.command) and "connect_timeout" not in self.timeouts.model_fields_set:
            # Not by assignment, which a frozen model refuses.
            self.__dict__["timeouts"] = self.timeouts.model_copy(update={"connect_timeout": DOWNLOAD_SECONDS})
        return self

    @model_validator(mode="after")
    def _heap_of_a_process(self) -> UpstreamConfig:
        if self.heap_upstream and self.url is not None:
            raise rule(
                f"found it for {public_url(self.url)}, which is no process of this proxy; "
                "set it for the upstreams that are Python programs",
                "heap_upstream",
                "url",
            )
        return self

    @model_validator(mode="after")
    def _http_settings_fit(self) -> UpstreamConfig:
        if self.url is not None and urlsplit(self.url).scheme != "https":
            for name in ONLY_TLS:
                if self._differs(name):
                    raise rule(
                        "found it beside an http:// URL, which has no TLS; remove it, or use https://",
                        name,
                        "url",
                    )
        if self.tls_key is not None and self.tls_cert is None:
            raise rule(
                "found it without 'tls_cert', which it goes with; remove it, or give the certificate",
                "tls_key",
                "tls_cert",
            )
        if self.tls_ca is not None and not self.tls_verify:
            raise rule(
                "found it beside tls_verify = false, which trusts everybody; remove one of them",
                "tls_ca",
                "tls_verify",
            )
        for name in ("http2", "proxy"):
            if self.http_client != "httpx" and self._differs(name):
                raise rule(
                    'found it without http_client = "httpx", which it goes with; set that, or remove it',
                    name,
                    "http_client",
                )
        return self

    def _differs(self, name: str) -> bool:
        """Whether a setting is not what it would be if nobody had set it."""
        return bool(getattr(self, name) != type(self).model_fields[name].get_default())

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        public = {"url": self.public_url, "args": tuple(public_args(self.args))}
        for name, value in super().__repr_args__():
            yield name, public.get(name or "", value)

    @property
    def public_url(self) -> str | None:
        """The URL as logs, statistics and captures may show it."""
        return None if self.url is None else public_url(self._written_url or self.url)

    def show_url_as(self, written: str) -> None:
        """From now on, show the URL as the file wrote it, with each `${VAR}` in it: its value may be a secret."""
        self._written_url = written

    @property
    def kind(self) -> Literal["stdio", "http"]:
        return "stdio" if self.command is not None else "http"

    @property
    def command_line(self) -> tuple[str, ...]:
        """The program and its arguments; empty for an HTTP upstream."""
        return () if self.command is None else (self.command, *self.args)


class ProxyConfig(_Settings):
    """The proxy itself. A token is required where `host` is not loopback, unless `insecure`.

    `max_stored_events` and `max_stored_bytes` bound what each session keeps for clients that resume a stream.
    `sample_every` is how often pools and processes are read, `capture` the folder that all samples are written to;
    `heap_every` is how often a heap window of `heap_for` seconds is opened (docs/heap.md), None for never;
    `otlp` sends metrics and traces to where the `OTEL_EXPORTER_OTLP_*` variables say.
    """

    upstreams: Annotated[dict[UpstreamName, UpstreamConfig], Field(min_length=1)]
    host: str = "127.0.0.1"
    port: Port = 8808
    admin_port: Port | None = None
    token: SecretStr | None = None
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: Annotated[Whole, Field(ge=1024)] = 16 * 1024 * 1024
    max_sessions: Count = 1000
    session_idle_timeout: PositiveSeconds = 30 * 60.0
    max_stored_events: Count = 1000
    max_stored_bytes: Count = 8 * 1024 * 1024
    drain_timeout: Seconds = 10.0
    keepalive_interval: PositiveSeconds = 15.0
    sample_every: PositiveSeconds = 1.0
    capture: Path | None = None
    heap_every: PositiveSeconds | None = None
    heap_for: PositiveSeconds = 2.0
    otlp: bool = False

    @field_validator("token")
    @classmethod
    def _token_fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not TOKEN.fullmatch(value.get_secret_value()):
            raise ValueError(
                "the token is empty, or has characters that an Authorization header cannot carry"
            )
        return value

    @model_validator(mode="after")
    def _open_bind_is_guarded(self) -> ProxyConfig:
        if not self.is_loopback and self.token is None and not self.insecure:
            raise rule(
                f"found {self.host!r}, reachable from outside, without a token; "
                "give a token, or --insecure if a guard stands before it",
                "host",
                "token",
                "insecure",
            )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> ProxyConfig:
        if self.admin_port == self.port != 0:
            raise rule(
                f"found {self.port}, which is 'port' too; give the two different ports", "admin_port", "port"
            )
        return self

    @model_validator(mode="after")
    def _heap_windows_leave_time(self) -> ProxyConfig:
        if self.heap_every is None:
            if self.heap_for != type(self).model_fields["heap_for"].default:
                raise rule(
                    "found it without 'heap_every', which it goes with; give both, or remove it",
                    "heap_for",
                    "heap_every",
                )
        elif self.heap_for >= self.heap_every:
            raise rule(
                f"found windows of {self.heap_for:g} s (heap_for) every {self.heap_every:g} s (heap_every), which "
                "leaves no time without one; lower heap_for, or raise heap_every",
                "heap_for",
                "heap_every",
            )
        return self

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"
