"""The two spans of an exchange: SERVER for the client's request, CLIENT beneath it for the time at the server behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mcpdiag.export.catalog import METHOD, UPSTREAM
from mcpdiag.export.operation import UPSTREAM_TRANSPORT, Transport, client_ms, error_type
from mcpdiag.hooks import ExchangeDone
from mcpdiag.samples.interned import clean

_W3C = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()  # what is current where the proxy runs is nothing to its clients' requests


class SpanIds(RandomIdGenerator):
    """Random ids, but for a span whose id was given away before it began: `prepared` is taken once."""

    def __init__(self) -> None:
        self.prepared = 0

    def generate_span_id(self) -> int:
        prepared, self.prepared = self.prepared, 0
        return prepared or super().generate_span_id()


@dataclass(slots=True)
class Begun:
    """An exchange under way: its first span, and the id that its second one will have."""

    server: Span
    started_ns: int
    client_id: int = 0
    request_id: str = ""
    carrier: dict[str, str] = field(default_factory=dict)


class Spans:
    """Begins and ends the spans of exchanges, on the event loop; the provider's processor sends them elsewhere."""

    def __init__(self, provider: TracerProvider, ids: SpanIds, front: Transport) -> None:
        self._tracer = provider.get_tracer("mcpdiag")
        self._ids = ids
        self._front: Transport = front

    def begin(self, method: str, request_id: str, carrier: Mapping[str, str], /) -> Begun:
        """The span of a request that has come; `end` completes its name."""
        return self._begin(time.time_ns(), method, request_id, carrier)

    def _begin(self, started_ns: int, method: str, request_id: str, carrier: Mapping[str, str]) -> Begun:
        parent = _W3C.extract(carrier, context=_NO_CONTEXT)
        method = clean(method)
        server = self._tracer.start_span(
            method, parent, SpanKind.SERVER, {METHOD: method}, start_time=started_ns
        )
        begun = Begun(server, started_ns, request_id=request_id)
        given = server.get_span_context()
        if server.is_recording():
            begun.client_id = self._ids.generate_span_id()
            given = SpanContext(given.trace_id, begun.client_id, False, given.trace_flags, given.trace_state)
        _W3C.inject(begun.carrier, context=set_span_in_context(NonRecordingSpan(given), _NO_CONTEXT))
        return begun

    def end(self, done: ExchangeDone) -> None:
        """Both spans, with the durations of the record."""
        total_ns = round(done.total_ms * 1e6)
        begun = done.trace
        if not isinstance(begun, Begun):  # nobody asked for a tracer
            begun = self._begin(time.time_ns() - total_ns, done.method, "", {})
        server = begun.server
        if not server.is_recording():
            return
        name, attributes = _name(done), _attributes(done)
        if begun.request_id:
            attributes["jsonrpc.request.id"] = clean(begun.request_id)
        ended_ns = begun.started_ns + total_ns
        at_server = client_ms(done)
        if at_server is not None:
            self._ids.prepared = begun.client_id
            client = self._tracer.start_span(
                name,
                set_span_in_context(server, _NO_CONTEXT),
                SpanKind.CLIENT,
                {**attributes, "network.transport": UPSTREAM_TRANSPORT.get(done.transport, "tcp")},
                start_time=ended_ns - round(at_server * 1e6),
            )
            _finish(client, done, ended_ns)
        server.update_name(name)
        server.set_attributes(
            {
                **attributes,
                "network.transport": self._front,
                "mcpdiag.queue.duration": done.queue_ms / 1000,
                "mcpdiag.connect.duration": done.connect_ms / 1000,
                "mcpdiag.first_byte.duration": done.first_ms / 1000,
                "mcpdiag.attempts": done.attempts,
                "mcpdiag.messages": done.messages,
                "mcpdiag.connection.reused": done.reused,
            }
        )
        _finish(server, done, ended_ns)


def _name(done: ExchangeDone) -> str:
    if done.method in {"tools/call", "prompts/get"} and done.target:
        return clean(f"{done.method} {done.target}")
    return clean(done.method)


def _attributes(done: ExchangeDone) -> dict[str, str]:
    """What both spans have; a client may have chosen any of it."""
    texts = {
        METHOD: done.method,
        UPSTREAM: done.upstream,
        "mcp.protocol.version": done.protocol,
        "mcp.session.id": done.session,
        "mcpdiag.operation.id": done.operation,
        "error.type": error_type(done),
    }
    if done.method == "tools/call":
        texts |= {"gen_ai.tool.name": done.target, "gen_ai.operation.name": "execute_tool"}
    elif done.method == "prompts/get":
        texts["gen_ai.prompt.name"] = done.target
    elif done.target:
        texts["mcp.resource.uri"] = _public(done.target)
    return {name: clean(text) for name, text in texts.items() if text}


def _public(uri: str) -> str:
    """A URI without what may be a secret in it: user, password, query and fragment."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _finish(span: Span, done: ExchangeDone, ended_ns: int) -> None:
    if wrong := error_type(done):
        span.set_status(Status(StatusCode.ERROR, clean(wrong)))
    span.end(end_time=ended_ns)
