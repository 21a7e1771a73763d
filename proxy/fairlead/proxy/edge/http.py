"""HTTP clients: one task for each connection, from its first byte to its last.

Stands at the head of the client's journey; `exchange` takes each request on to a backend and back.

Invariants: one deadline watches every wait, and the phase says what its passing means; a request is
forwarded only if its framing is beyond doubt; requests on one connection are answered in order; after
the first byte of an answer has gone out, a failure resets the connection, for a client must not take a
truncation for an end.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject, traits
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.connect import Connector
from fairlead.proxy.edge.deadlines import Deadlines
from fairlead.proxy.edge.forward_headers import (
    ROUNDS_MAX,
    certificate_lines,
    is_trusted,
    max_forwards,
    rounds,
)
from fairlead.proxy.edge.pool import AGE_JITTER, Pools
from fairlead.proxy.edge.roster import GATEWAY_FAILURES
from fairlead.proxy.edge.routing import Router
from fairlead.proxy.edge.sessions import Session, SessionState
from fairlead.proxy.edge.settings import EdgeConfig
from fairlead.proxy.edge.wire import READ_BYTES, SEND_PIECE_BYTES, Wire
from fairlead.runtime.http.answer import answer_bytes
from fairlead.runtime.http.body import WholeBody
from fairlead.runtime.http.framing import after_empty_line, split_head
from fairlead.runtime.http.head import HeadReader, RequestHead
from fairlead.runtime.http.message import Request, Response, problem, split_target
from fairlead.runtime.http.server import correlation_id_of
from fairlead.runtime.metrics import Cell, Family
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

LocalHandler = Callable[[Request], Awaitable[Response]]

_LINGER_S: Final = 1.0
_LINGER_BYTES_MAX: Final = 1024 * 1024
_DRAIN_GRACE_S: Final = 1.0
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOT_FORWARDED: Final = (b"CONNECT", b"TRACE")
_ALLOW: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

# What is being waited for.
IDLE, HEAD, BODY, UPLOAD, RESPONSE, RESPONSE_BODY, WRITE, LINGER, RELAY = range(9)
_WEBSOCKET_ASKED: Final = (
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
)
_TIMEOUT_REASONS: Final = {
    HEAD: Reason.HTTP_HEAD_TIMEOUT,
    BODY: Reason.HTTP_BODY_TIMEOUT,
    RESPONSE: Reason.BACKEND_TIMEOUT,
    RESPONSE_BODY: Reason.BACKEND_TIMEOUT,
    WRITE: Reason.CLIENT_WRITE_TIMEOUT,
}


@dataclass(frozen=True, slots=True)
class LocalRoutes:
    """Requests that the proxy answers itself on its client ports. Answers are whole, never streamed."""

    takes: Callable[[str], bool]  # by path
    handler: LocalHandler


class HttpListener:
    """What all connections of one listener share."""

    def __init__(
        self,
        name: str,
        config: EdgeConfig,
        world: World,
        observer: Observer,
        router: Router,
        pools: Pools,
        connector: Connector,
        heads: HeadReader,
        local: LocalRoutes | None,
        forward: Callable[[ClientConnection, RequestHead], Awaitable[None]],
        requests: Family,
        moved: Family,
        deadlines: Deadlines,
    ) -> None:
        self.name, self.world, self.observer, self.forward = name, world, observer, forward
        self.router, self.pools, self.connector, self.heads, self.local = (
            router,
            pools,
            connector,
            heads,
            local,
        )
        self.limits, self.trusted, self.access_log = (
            config.limits,
            config.trusted_forwarders,
            config.access_log,
        )
        self.access_log_every, self._requests_seen = config.access_log_every, 0
        self.random_bytes, self.deadlines = world.random_bytes, deadlines
        self.status_cells: list[Cell] = [
            requests.cell(name, f"{status_class}xx") for status_class in (1, 1, 2, 3, 4, 5)
        ]
        self.bytes_in, self.bytes_out = moved.cell(name, "in"), moved.cell(name, "out")
        self.connections: set[ClientConnection] = set()
        self.is_draining = False

    def drain(self, idle_s: float) -> None:
        """Answer what is under way, and what still comes, with `Connection: close`; close what is idle for `idle_s`.

        A client may send its next request at the very moment its idle connection is closed, and cannot know then
        whether it was taken: where there is time, it is better to wait for that request and answer it."""
        self.is_draining = True
        for connection in list(self.connections):
            connection.drain(idle_s)

    def is_logged(self, reason: str) -> bool:
        """Whether the access log gets a line of one more request."""
        self._requests_seen += 1
        return bool(reason) or self._requests_seen % self.access_log_every == 0

    async def serve(self, arrival: Arrival, session: Session) -> None:
        """One client, to its end."""
        connection = ClientConnection(self, arrival, session)
        self.connections.add(connection)
        self.deadlines.watch(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
            self.deadlines.forget(connection)
            arrival.stream.close()


class ClientConnection:
    """One client's connection."""

    def __init__(self, listener: HttpListener, arrival: Arrival, session: Session) -> None:
        self.listener, self.limits, self.session = listener, listener.limits, session
        self.arrival = arrival
        self.client = Wire(arrival.stream)
        self.client.buffer = arrival.first
        self.peer = arrival.peer_host
        self.is_trusted = is_trusted(self.peer, listener.trusted)
        self.scheme = b"https" if arrival.is_tls else b"http"
        self.certificate = certificate_lines(arrival.client_certificate)
        self.facts = b""  # what proofs of its requests say of the client, once one was needed
        self.scope = trio.CancelScope()
        self.deadlines, self.deadline = listener.deadlines, float("inf")
        self.phase = IDLE
        self.served = 0
        age_s = self.limits.http_connection_age_max_s
        self.clock = trio.lowlevel.current_clock().current_time  # found once, not for each look at it
        self.retire_at = float("inf")
        if age_s:
            age_s *= 1 - AGE_JITTER * listener.world.random_unit()
            self.retire_at = self.clock() + age_s
        self._cut: Reject | None = None
        session.cut = self.cut
        # Of the current exchange:
        self.correlation_id = ""
        self.method = b""
        self.keep = False
        self.has_body_pending = False  # a part of the request's body may still be under way
        self.has_started = False  # a byte of the final answer has gone out
        self.began_at = 0.0
        self.upstream_s = 0.0  # until the head of the backend's answer, for the access log alone
        self._under_way: RequestHead | Reject | None = None  # what the access log owes a line
        self._status = 0
        self._reason = ""
        self._bytes_before = (0, 0)

    async def run(self) -> None:
        try:
            while True:
                with self.scope:
                    await self._serve()
                if not self.scope.cancelled_caught or not await self._timed_out():
                    return
        except trio.BrokenResourceError:
            if self.phase != IDLE and self.phase != LINGER:
                self.refused(Reject(Reason.CLIENT_GONE), level="debug")
        finally:
            if self._under_way is not None:
                self._log_request(self._under_way)

    def cut(self, reject: Reject) -> None:
        """End the exchange that is under way, for this reason."""
        if self.phase != IDLE:
            self._cut = reject
            self.scope.cancel()

    def enter(self, phase: int, timeout_s: float) -> None:
        """Begin a wait for what `phase` says, with its deadline."""
        self.phase = phase
        deadline = self.deadline = self.clock() + timeout_s
        if deadline < self.deadlines.next_at:
            self.deadlines.sooner(deadline)

    def enter_until(self, phase: int, deadline: float) -> None:
        """The same with a deadline that is known, or (infinity) none of ours."""
        self.phase, self.deadline = phase, deadline
        if deadline < self.deadlines.next_at:
            self.deadlines.sooner(deadline)

    def expire(self) -> None:
        self.scope.cancel()

    def drain(self, idle_s: float) -> None:
        if self.phase == IDLE:
            if self.served and not idle_s:
                self.scope.cancel()
            else:  # One that has only just come may have a request under way.
                idle_s = max(idle_s, 0 if self.served else _DRAIN_GRACE_S)
                self.enter_until(IDLE, min(self.deadline, self.clock() + idle_s))

    async def _serve(self) -> None:
        limits = self.limits
        timeout_s = limits.http_keepalive_timeout_s if self.served else limits.http_head_timeout_s
        while True:
            self.enter(IDLE, timeout_s)
            self.session.state = SessionState.AUTHENTICATED
            self.correlation_id = ""
            self.method = b""
            self.has_started, self.has_body_pending, self.keep = False, True, False
            head = await self._read_head()
            if head is None:
                return
            if self.listener.access_log:
                self._under_way = head
                self._bytes_before = self.session.bytes_in, self.session.bytes_out
                self._status, self._reason, self.upstream_s = 0, "", 0.0
            if isinstance(head, Reject):
                await self.refuse(head)
                return await self._linger()
            self.session.state = SessionState.PLAYING
            self.served += 1
            self.method = head.method
            self.correlation_id = correlation_id_of(head.correlation_id, self.listener.world)
            self.has_body_pending = head.length != 0
            self.keep = (
                head.keep_alive
                and self.served < limits.http_requests_per_connection_max
                and self.began_at < self.retire_at
            )
            try:
                is_usual = head.method == b"GET" and head.target.startswith(b"/") and not head.via
                if not is_usual and await self._answer_as_last(head):
                    pass
                elif (local := self.listener.local) is not None and local.takes(split_target(head.target)[0]):
                    await self._answer_locally(local, head)
                else:
                    await self.listener.forward(self, head)
            except Refused as refused:
                await self.refuse(
                    Reject(refused.reason, refused.detail), refused.retry_after_s, refused.status
                )
            except trio.BrokenResourceError:
                raise
            except Exception as error:
                text = "".join(traceback.format_exception(error))
                await self.refuse(Reject(Reason.INTERNAL_ERROR, "an unexpected error"), traceback=text)
            if self._under_way is not None:
                self._log_request(self._under_way)
                self._under_way = None
            if self.phase == RELAY:
                return None
            if not self.keep or self.listener.is_draining:
                return await self._linger()
            if self.client.buffer:
                await trio.lowlevel.checkpoint()  # Whoever pipelines takes turns with the others.
            timeout_s = limits.http_keepalive_timeout_s

    # -- the client's side

    async def receive(self) -> bytes:
        """More bytes from the client; b"" at end of file."""
        data = await self.client.receive()
        self.session.bytes_in += len(data)
        self.listener.bytes_in.value += len(data)
        return data

    async def send(self, data: bytes | memoryview) -> None:
        """Bytes to the client, with a deadline only if they do not go at once."""
        self.session.bytes_out += len(data)
        self.listener.bytes_out.value += len(data)
        rest = self.client.send_nowait(data)
        if rest:
            await self._send_slowly(rest)

    async def _send_slowly(self, rest: bytes) -> None:
        """In pieces with a deadline each: a slow client has to take one in that time, and is not let go sooner."""
        whole = memoryview(rest)
        for at in range(0, len(rest), SEND_PIECE_BYTES):
            self.enter(WRITE, self.limits.client_write_timeout_s)
            await self.client.stream.send_all(whole[at : at + SEND_PIECE_BYTES])

    async def _read_head(self) -> RequestHead | Reject | None:
        """The next request's head; None at an orderly end."""
        buffer = self.client.buffer
        self.client.buffer = b""
        while True:
            if buffer.startswith(b"\r\n"):
                begun = after_empty_line(buffer)
                if isinstance(begun, Reject):
                    return begun
                buffer = begun
            if buffer:
                if self.phase == IDLE:
                    self.began_at = self.clock()
                found = split_head(buffer, self.limits.http_head_bytes_max)
                if isinstance(found, tuple):
                    head, self.client.buffer = found
                    return self.listener.heads.request(head)
                if found is not None:
                    return found
                if self.phase == IDLE:
                    self.enter(HEAD, self.limits.http_head_timeout_s)
            more = await self.receive()
            if not more:
                return Reject(Reason.CLIENT_GONE, "the head is incomplete") if buffer else None
            buffer = buffer + more if buffer else more

    async def _linger(self) -> None:
        """Close so that the client can read our last answer: a reset would discard it unread."""
        self.enter(LINGER, _LINGER_S)
        await self.client.stream.send_eof()
        left = _LINGER_BYTES_MAX
        while left > 0:
            data = await self.client.stream.receive_some(READ_BYTES)
            if not data:
                return
            left -= len(data)

    # -- our own answers

    async def _answer_as_last(self, head: RequestHead) -> bool:
        """Whether the request was not for others behind us, and is answered. Raises Refused where it is for nobody."""
        if head.method in _NOT_FORWARDED:
            if head.method == b"CONNECT":
                self.keep = False  # What follows was meant for a tunnel.
            raise Refused(Reason.HTTP_METHOD_UNSUPPORTED, "this method is not forwarded")
        if head.via and rounds(head) > ROUNDS_MAX:
            raise Refused(Reason.HTTP_LOOP, f"Via names Fairlead more than {ROUNDS_MAX} times")
        is_absolute = not head.target.startswith((b"/", b"*"))
        is_https = head.target[:6].lower() == b"https:"
        if is_absolute and is_https is not self.arrival.is_tls and not self.is_trusted:
            raise Refused(Reason.HTTP_MISDIRECTED, "the request target names another scheme")
        if head.method != b"OPTIONS":
            return False
        left = max_forwards(head)
        if isinstance(left, Reject):
            raise Refused(left.reason, left.detail)
        if left != 0:
            return False
        self.keep = self.keep and not self.has_body_pending
        await self._send_answer(Response(200, [("allow", _ALLOW)]), head.method)
        return True

    async def _answer_locally(self, local: LocalRoutes, head: RequestHead) -> None:
        """Answer what is ours to answer."""
        path, query = split_target(head.target)
        whole = WholeBody(head.length, self.limits.http_local_body_bytes_max)
        if not whole.is_done:
            self.enter(BODY, self.limits.http_body_idle_timeout_s)
            reject = whole.feed(self.client.buffer)
            if reject is None and not whole.is_done and head.expects_continue and not self.client.buffer:
                await self.send(_CONTINUE)
            while reject is None and not whole.is_done:
                self.enter(BODY, self.limits.http_body_idle_timeout_s)
                data = await self.receive()
                reject = whole.feed(data) if data else Reject(Reason.CLIENT_GONE, "the body is incomplete")
            if reject is not None:
                raise Refused(reject.reason, reject.detail)
            self.client.buffer = whole.rest
        self.has_body_pending = False
        headers = [(name, value) for _, name, value, _ in head.fields]
        method = head.method.decode("ascii")
        request = Request(method, path, query, headers, whole.take(), self.peer, self.correlation_id)
        self.deadline = float("inf")  # The handler minds its own deadlines.
        await self._send_answer(await local.handler(request), head.method)

    async def refuse(
        self, reject: Reject, retry_after_s: float | None = None, status: int = 0, **fields: str
    ) -> None:
        """Count, log and tell a refusal; the connection goes on only where the next request surely begins."""
        if not self.correlation_id:
            self.correlation_id = self.listener.world.new_id()
        if reject.reason is Reason.CLIENT_GONE:
            self.refused(reject, level="debug")
            self.keep = False
            return
        level = "error" if reject.reason is Reason.INTERNAL_ERROR else "warning"
        self.refused(reject, level, **fields)
        if self.has_started:
            self.client.stream.abort()
            self.phase = LINGER  # This was counted; that the client is gone now is our doing.
            raise trio.BrokenResourceError("the answer was cut off")
        self.keep = self.keep and not self.has_body_pending
        response = problem(
            *(reject.reason, reject.detail, self.correlation_id),
            retry_after_s=retry_after_s,
            for_client=True,
            status=status,
        )
        if reject.reason is Reason.HTTP_UPGRADE_VERSION_UNSUPPORTED:
            response.headers.extend(_WEBSOCKET_ASKED)
        await self._send_answer(response, self.method)

    async def _send_answer(self, response: Response, method: bytes) -> None:
        if response.stream is not None:
            raise ValueError("answers on client ports are whole, not streamed")
        wall_ms = self.listener.world.wall_ms()
        self.keep = self.keep and not self.listener.is_draining
        data = answer_bytes(response, method, self.keep, self.correlation_id, wall_ms)
        self.has_started = True
        self.count(response.status)
        await self.send(data)

    def _log_request(self, head: RequestHead | Reject) -> None:
        """Its line of the access log, unless it is one of many that went well."""
        if not self.listener.is_logged(self._reason):
            return
        now, session = self.clock(), self.session
        bytes_in, bytes_out = self._bytes_before
        method = host = path = backend = ""
        if isinstance(head, RequestHead):
            method, host = head.method.decode(), head.host.decode("latin-1")
            path, backend = split_target(head.target)[0], session.backend
        self.listener.observer.log.event(
            "info",
            "http_request",
            listener=self.listener.name,
            client=self.peer,
            method=method,
            host=host,
            path=path,
            status=self._status,
            bytes_in=session.bytes_in - bytes_in,
            bytes_out=session.bytes_out - bytes_out,
            duration_ms=round((now - self.began_at) * 1000, 1),
            backend=backend,
            upstream_ms=round(self.upstream_s * 1000, 1) if self.upstream_s else None,
            reason=self._reason,
            correlation_id=self.correlation_id,
            session=session.id,
        )

    def count(self, status: int) -> None:
        self._status = status
        self.listener.status_cells[min(status // 100, 5)].value += 1

    def refused(self, reject: Reject, level: str = "warning", **fields: str) -> None:
        if traits(reject.reason).status < 500 and level == "warning":
            level = "info"
        if reject.reason in GATEWAY_FAILURES:
            self.listener.connector.roster.failed(self.session.backend, reject.reason, self.clock())
        self._reason = reject.reason.value
        self.listener.observer.refused(
            reject.reason,
            reject.detail,
            level=level,
            correlation_id=self.correlation_id,
            peer=self.peer,
            listener=self.listener.name,
            backend=self.session.backend,
            **fields,
        )

    async def _timed_out(self) -> bool:
        """The deadline passed, or a drain woke us. Whether to go on serving."""
        phase, self.scope, self.deadline = self.phase, trio.CancelScope(), float("inf")
        if phase == IDLE:
            self.client.buffer = self.client.receive_nowait() if self.listener.is_draining else b""
            return bool(self.client.buffer)  # A request was already under way: it is served.
        cut, self._cut = self._cut, None
        reason = cut.reason if cut is not None else _TIMEOUT_REASONS.get(phase)
        if reason is None:
            return False
        self.keep = False
        with self.scope:
            if self.has_started or reason is Reason.CLIENT_WRITE_TIMEOUT:
                self.refused(cut or Reject(reason))
                self.client.stream.abort()
                return False
            self.enter(WRITE, self.limits.client_write_timeout_s)
            await self.refuse(cut or Reject(reason))
            await self._linger()
        return False
