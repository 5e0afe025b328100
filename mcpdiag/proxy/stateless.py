"""The stateless era over Streamable HTTP, 2026-07-28: each POST stands for itself, and says in headers what its body says.

Nothing of a session: its headers are ignored, none is ever given out, and closing a response cancels its request.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio
import msgspec

from mcpdiag.errors import ClientError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.protocol.annotations import check_arguments
from mcpdiag.protocol.headers import MCP_PROTOCOL_VERSION, MCP_SESSION_ID
from mcpdiag.protocol.message import Message, encode_error, members, text_member
from mcpdiag.protocol.mirror import check_request, claims_version, mirror_headers
from mcpdiag.protocol.revisions import known_names
from mcpdiag.proxy import forward
from mcpdiag.proxy.gate import Gate
from mcpdiag.proxy.operations import Leg, Listen, Operations
from mcpdiag.proxy.request import Headers, Reply, Request, refuse_call
from mcpdiag.proxy.session import Session, Sessions
from mcpdiag.upstream.base import Upstream
from mcpdiag.upstream.exchange import Exchange

log = logging.getLogger("mcpdiag.proxy")
LISTEN = "subscriptions/listen"
_HANDSHAKE = frozenset(name.encode() for name in known_names("handshake"))
_STATELESS = frozenset(name.encode() for name in known_names("stateless"))
Mirrored = Sequence[tuple[bytes, bytes]]


def is_stateless(headers: Headers, message: Message) -> bool:
    """Whether a POST is of this era: its header says so, or its body where no session and no header says else."""
    version = headers.get(MCP_PROTOCOL_VERSION)
    if version in _STATELESS:
        return True
    if MCP_SESSION_ID in headers and (version is None or version in _HANDSHAKE):
        return False
    return claims_version(message.params)


def only_post(upstream: Upstream, headers: Headers) -> None:
    """For GET and DELETE, which this era does not have.

    Raises:
        ClientError: 405, the request is of this era, or the server is known to speak no other.
    """
    if headers.get(MCP_PROTOCOL_VERSION) in _STATELESS or upstream.learned.only_stateless:
        raise ClientError(
            "revision 2026-07-28 has only POST; listen with subscriptions/listen",
            status=405,
            headers={"allow": "POST"},
        )


class Stateless:
    """Requests that belong to no session.

    Args:
        gate: shut when the proxy closes.
    """

    def __init__(self, sessions: Sessions, gate: Gate, *, hook: Hook = NO_HOOK) -> None:
        self._sessions = sessions
        self._gate = gate
        self._hook = hook
        self._operations = Operations()

    async def post(self, upstream: Upstream, request: Request, message: Message, size: int) -> None:
        """One message; `size` is its length in bytes."""
        mirrored = mirror_headers(request.all_headers)
        if message.kind == "response":
            raise ClientError(
                "clients send no responses in revision 2026-07-28; send the request again with its input"
            )
        if message.kind == "notification":
            await self._tell(upstream, request, message, mirrored)
            return
        reply = request.reply
        try:
            version = check_request(message, mirrored, upstream.learned.versions)
            _check_call(upstream, message, mirrored)
        except ClientError as error:
            await _refuse(message, error, reply)
            return
        if self._gate.closing:
            await refuse_call(message, self._gate.error(), reply)
            return
        with self._sessions.lone(upstream, listens=message.method == LISTEN) as session:
            _introduce(session, request, version, mirrored)
            exchange = (Listen if session.listens else Leg)(
                message, session, self._operations, self._sessions.clock
            )
            exchange.bytes_in = size
            await self._run(session, exchange, request)
        self._gate.left()

    async def _run(self, session: Session, exchange: Leg, request: Request) -> None:
        opened = exchange.opened if isinstance(exchange, Listen) else None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_gone, request, exchange)
            await forward.run(
                session,
                exchange,
                request.reply,
                self._hook,
                retries=session.upstream.config.retries,
                before_answer=opened,
            )
            tasks.cancel_scope.cancel()

    async def _tell(self, upstream: Upstream, request: Request, message: Message, mirrored: Mirrored) -> None:
        with self._sessions.lone(upstream) as session:
            version = request.headers.get(MCP_PROTOCOL_VERSION, b"").decode("latin-1")
            _introduce(session, request, version, mirrored)
            answer = await session.at.tell(message)
        request.reply.headers += answer.headers
        await request.reply.whole(answer.status, answer.body, answer.content_type)


def _introduce(session: Session, request: Request, version: str, mirrored: Mirrored) -> None:
    """What an HTTP upstream gets to see of the client: its version, its authorization, and the headers it mirrors."""
    client = session.client
    session.protocol = version
    client.protocol = version.encode("latin-1")
    client.authorization = request.authorization
    client.extra_headers = b"".join(
        b"%b: %b\r\n" % pair for pair in mirrored if pair[0] != MCP_PROTOCOL_VERSION
    )


def _check_call(upstream: Upstream, message: Message, mirrored: Mirrored) -> None:
    """The headers of a tool's parameters, where nobody behind the proxy could check them.

    An HTTP server checks them itself: it knows its tools as they are now and for this caller. The proxy only knows what
    it has seen listed.
    """
    if message.method != "tools/call" or upstream.transport != "stdio" or not upstream.learned.mirrored:
        return
    known = upstream.learned.mirrored.get(text_member(message.params, "name"))
    if known is None:
        return
    try:
        arguments = msgspec.json.decode(members(message.params).get("arguments", b"null"))
    except (msgspec.DecodeError, RecursionError):  # the server says what is wrong with them
        return
    check_arguments(known, arguments, mirrored)


async def _refuse(message: Message, error: ClientError, reply: Reply) -> None:
    body = encode_error(message.id, error.code, error.message, error.data or None)
    await reply.whole(error.status, body)


async def _cancel_when_gone(request: Request, exchange: Exchange) -> None:
    """Closing the response is how a client of this era cancels ("Cancellation")."""
    await request.gone()
    if not request.reply.ended:
        exchange.cancel("the client closed the response")
