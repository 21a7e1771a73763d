"""One request to a backend and its answer back to the client.

Stands between a client's request head and the end of its answer.

Invariants: bodies go on as raw bytes, with back-pressure both ways; a request at hand whole needs no
second task; a backend may answer before it has the whole request, and then both connections end after
the answer; a connection goes back to the pool only after an exchange without doubt; a request is repeated
only if it cannot have had an effect twice: nothing of an answer came, the method is idempotent, there is no
body and the client is still there; a connection that asked to be upgraded never serves another request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from fairlead.protocol.proof import ProofKind
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.body import ResponseBody
from fairlead.proxy.edge.forward_headers import (
    absolute_to_origin,
    interim_bytes,
    request_bytes,
    response_bytes,
    switch_bytes,
)
from fairlead.proxy.edge.http import RELAY, RESPONSE, RESPONSE_BODY, UPLOAD, ClientConnection
from fairlead.proxy.edge.pace import Pace
from fairlead.proxy.edge.paths import path_of
from fairlead.proxy.edge.pool import Upstream
from fairlead.proxy.edge.proofs import Purpose, facts_of
from fairlead.proxy.edge.routing import ANYTHING, Asked, Choice
from fairlead.proxy.edge.settings import Backend
from fairlead.proxy.edge.trace import trace_lines
from fairlead.proxy.edge.upgrade import HOPS, asked_key, check_switch
from fairlead.runtime.http.answer import date_line
from fairlead.runtime.http.body import BodyReader, ChunkedReader, reader_for
from fairlead.runtime.http.framing import split_head
from fairlead.runtime.http.head import RequestHead, ResponseHead
from fairlead.runtime.relay import relay

T = TypeVar("T")

_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
# A server may not expect a body here, and read it as the next request (CL.0).
_BODY_UNUSUAL: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE"})
_INTERIM_MAX: Final = 16
_TE_TRAILERS: Final = b"te: trailers\r\nconnection: te\r\n"


def forward(connection: ClientConnection, head: RequestHead) -> Awaitable[None]:
    """Forward one request and relay its answer. Raises Refused before an answer, or after it began."""
    return Exchange(connection, head).run()


class _UpstreamGone(Exception):
    """The backend's connection ended. `is_clean`: before any byte of an answer."""

    def __init__(self, is_clean: bool) -> None:
        super().__init__()
        self.is_clean = is_clean


async def _from_backend(received: Awaitable[T]) -> T:
    """What the backend sends, in the middle of its answer."""
    try:
        return await received
    except trio.BrokenResourceError as error:
        raise _UpstreamGone(is_clean=False) from error


class Exchange:
    """One request and its answer."""

    def __init__(self, connection: ClientConnection, head: RequestHead) -> None:
        self._connection, self._head = connection, head
        self._listener, self._limits, self._clock = connection.listener, connection.limits, connection.clock
        self._upstream: Upstream | None = None
        self._is_sent = False  # the whole request has gone to the backend
        self._sent_at = 0.0  # or as much of it as was at hand
        self._upload_failure: Reject | None = None
        self._is_continued = False  # the backend asked for the body
        self._websocket = b""  # the key of its handshake
        self._place: Backend | None = None  # taken for a connection that is being made
        self._choice: Choice | None = None
        self._led_to = ""
        self._tried: frozenset[str] = frozenset()

    async def run(self) -> None:
        head, connection = self._head, self._connection
        try:
            if head.upgrade:
                key = asked_key(head)
                if isinstance(key, Reject):
                    connection.keep = False  # What follows may have been meant for a WebSocket.
                    raise Refused(key.reason, key.detail)
                self._websocket = key or b""
            body, reader = self._first_body()
            if reader is None:
                connection.has_body_pending = False
                self._is_sent = True
                upstream, response = await self._ask(body)
                if response.status == 101:
                    await self._tunnel(upstream, response)
                else:
                    await self._answer(upstream, response)
            else:
                await self._exchange_both_ways(body, reader)
        finally:
            self.close()

    def close(self) -> None:
        """Whatever did not go back to the pool ends here."""
        self._lead_to("")
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    # -- the request

    def _first_body(self) -> tuple[bytes, BodyReader | None]:
        """What of the body came with the head, and the reader of the rest if there is a rest."""
        length = self._head.length
        if length == 0:
            return b"", None
        if length > self._limits.http_body_bytes_max:
            raise Refused(Reason.HTTP_BODY_TOO_LARGE, f"at most {self._limits.http_body_bytes_max} bytes")
        reader = reader_for(length, trailers=True)
        fed = reader.feed(self._connection.client.buffer)
        if isinstance(fed, Reject):
            raise Refused(fed.reason, fed.detail)
        body, self._connection.client.buffer = fed
        too_large = self._too_large(reader)
        if too_large is not None:
            raise Refused(too_large.reason, too_large.detail)
        return body, None if reader.is_done else reader

    def _too_large(self, reader: BodyReader) -> Reject | None:
        """A chunked body announces no length: what has come so far is held to the limit."""
        most = self._limits.http_body_bytes_max
        if isinstance(reader, ChunkedReader) and reader.payload_bytes > most:
            return Reject(Reason.HTTP_BODY_TOO_LARGE, f"at most {most} bytes")
        return None

    async def _obtain(self, fresh: bool = False) -> Upstream:
        """A connection to the best backend: a pooled one, or a new one."""
        connection, listener = self._connection, self._listener
        now, choice = self._clock(), self._choice
        if choice is None:
            is_plain = listener.router.is_plain and not connection.session.bound
            choice = listener.router.candidates(now, ANYTHING if is_plain else self._asked())
            self._choice = choice
            connection.session.route = choice.route
        candidates = choice.backends
        if self._tried:
            candidates = [backend for backend in candidates if backend.id not in self._tried]
        if candidates:
            self._lead_to(candidates[0].id)
        upstream = None if fresh or not candidates else listener.pools.take(candidates[0], now)
        if upstream is None:
            connection.enter_until(RESPONSE, float("inf"))  # Each attempt has a deadline of its own.
            upstream = await self._connect(candidates)
            self._lead_to(upstream.backend.id)
        connection.session.backend = upstream.backend.id
        self._upstream = upstream
        return upstream

    async def _connect(self, candidates: Sequence[Backend]) -> Upstream:
        """A new connection to the best candidate that has room and takes it; where none has room, whatever the best
        one has free first."""
        full: list[Backend] = []
        try:
            return await self._dial(self._with_places(candidates, full))
        except Refused as refused:
            if not full or refused.reason is Reason.ROUTING_LIMIT:
                raise
        pools, best = self._listener.pools, full[0]
        self._lead_to(best.id)
        given = await pools.wait(best)
        if given is not None:
            return given
        self._place = best
        return await self._dial([best])

    async def _dial(self, candidates: Iterable[Backend]) -> Upstream:
        """The first that takes us, in the place that was taken for it."""
        connection, listener = self._connection, self._listener
        purpose = Purpose(ProofKind.HTTP)
        try:
            stream, backend = await listener.connector.connect(
                candidates, connection.correlation_id, connection.peer, purpose
            )
        except BaseException:
            if self._place is not None:
                listener.pools.leave(self._place)
                self._place = None
            raise
        self._place = None
        return listener.pools.made(stream, backend, purpose.signer)

    def _with_places(self, candidates: Sequence[Backend], full: list[Backend]) -> Iterator[Backend]:
        """The candidates for whose connection there is a place, one at a time. Whoever asks for the next has failed."""
        pools = self._listener.pools
        for backend in candidates:
            if not pools.enter(backend):
                full.append(backend)
                continue
            self._place = backend
            yield backend
            pools.leave(backend)
            self._place = None

    def _asked(self) -> Asked:
        """What this request asks for, as its backend will read it."""
        connection = self._connection
        target, host = absolute_to_origin(self._head)
        return Asked(
            host.decode("latin-1"), path_of(target), self._header, connection.peer, connection.arrival.is_tls,
            connection.session.bound,
        )  # fmt: skip

    def _header(self, name: bytes) -> bytes | None:
        """A header that goes on to the backend; several of one name are one value (RFC 9110, 5.3)."""
        if name in self._head.nominated:
            return None
        found = [value for kind, each, value, _ in self._head.fields if not kind and each == name]
        return (b"; " if name == b"cookie" else b", ").join(found) if found else None

    def _lead_to(self, backend: str) -> None:
        """Count this request where it is under way, from before it is connected: who chooses next, sees it."""
        if backend != self._led_to:
            roster = self._listener.connector.roster
            if self._led_to:
                roster.leave(self._led_to)
            self._led_to = backend
            if backend:
                roster.begin(backend)

    def _may_ask_another(self, upstream: Upstream) -> bool:
        """Whether a request that is safe to repeat may go to another backend, after this one gave it back."""
        roster, now = self._listener.connector.roster, self._clock()
        if upstream.is_reused:
            return True  # Its connection was idle and ended: that says nothing of the backend.
        self._tried |= {upstream.backend.id}
        others = self._choice is not None and any(
            backend.id not in self._tried for backend in self._choice.backends
        )
        if not others or not roster.may_retry(now):
            return False
        roster.failed(upstream.backend.id, Reason.BACKEND_CLOSED_EARLY, now)
        return True

    def _request_bytes(self, upstream: Upstream) -> bytes:
        connection = self._connection
        proof, signer = None, upstream.signer
        if signer is not None:
            facts = connection.facts = connection.facts or facts_of(connection.arrival, connection.session.id)
            proof = partial(signer.line, facts, connection.correlation_id.encode())
        return request_bytes(
            self._head,
            connection.peer,
            connection.scheme,
            connection.correlation_id,
            connection.is_trusted,
            upstream.authority,
            proof,
            trace_lines(self._head.trace, connection.correlation_id, self._listener.random_bytes),
            self._hops(),
            connection.certificate,
        )

    def _hops(self) -> bytes:
        """What is said to the backend's connection alone."""
        if self._websocket:
            return HOPS
        return _TE_TRAILERS if self._head.wants_trailers else b""

    async def _send(self, upstream: Upstream, data: bytes) -> None:
        try:
            rest = upstream.send_nowait(data)
            self._sent_at = self._clock()
            timeout_s = self._limits.upstream_response_timeout_s
            self._connection.enter_until(RESPONSE, self._sent_at + timeout_s)
            if rest:
                await upstream.stream.send_all(rest)
        except trio.BrokenResourceError as error:
            raise _UpstreamGone(is_clean=True) from error

    async def _ask(self, body: bytes) -> tuple[Upstream, ResponseHead]:
        """Send a request that is at hand whole, and return the head of its answer."""
        connection, upstream = self._connection, await self._obtain()
        tries_left = self._limits.upstream_tries_max
        while True:
            tries_left -= 1
            try:
                await self._send(upstream, self._request_bytes(upstream) + body)
                response = await self._response_head(upstream)
                connection.upstream_s = self._clock() - self._sent_at
                return upstream, response
            except _UpstreamGone as gone:
                self.close()
                is_safe = gone.is_clean and not self._head.length and self._head.method in _IDEMPOTENT
                is_safe = is_safe and tries_left > 0 and not connection.client.is_gone()
                if is_safe and self._may_ask_another(upstream):
                    upstream = await self._obtain(fresh=True)
                    continue
                raise _closed_early() from gone

    # -- the answer

    async def _response_head(self, upstream: Upstream) -> ResponseHead:
        """The final answer's head; interim answers before it go to the client."""
        head, buffer, interims = self._head, upstream.buffer, 0
        while True:
            found = split_head(buffer, self._limits.http_head_bytes_max) if buffer else None
            if found is None:
                try:
                    data = await upstream.receive()
                except trio.BrokenResourceError as error:
                    raise _UpstreamGone(is_clean=not buffer and not interims) from error
                if not data:
                    raise _UpstreamGone(is_clean=not buffer and not interims)
                buffer = buffer + data if buffer else data
                continue
            if isinstance(found, Reject):
                raise Refused(Reason.BACKEND_RESPONSE_MALFORMED, found.detail)
            raw, buffer = found
            response = self._listener.heads.response(raw)
            if isinstance(response, Reject):
                raise Refused(response.reason, response.detail)
            if response.status >= 200 or (response.status == 101 and self._websocket):
                upstream.buffer = buffer
                return response
            interims += 1
            if response.status == 101 or interims > _INTERIM_MAX:
                raise Refused(Reason.BACKEND_RESPONSE_MALFORMED, f"an unexpected answer {response.status}")
            self._is_continued = self._is_continued or response.status == 100
            if head.minor and (response.status != 100 or head.expects_continue):
                connection = self._connection
                waiting = connection.phase, connection.deadline
                await connection.send(interim_bytes(response))
                connection.enter_until(*waiting)

    async def _answer(self, upstream: Upstream, response: ResponseHead) -> None:
        """Relay the answer, then keep the backend's connection if nothing is in doubt."""
        head, connection = self._head, self._connection
        length = response.body_length(head.method)
        is_doubtful = self._is_doubtful(response)
        if self._websocket and connection.client.buffer:
            connection.keep = False  # What came with the handshake was meant for a WebSocket, not for us.
        connection.keep = (
            connection.keep
            and self._is_sent
            and (head.minor == 1 or length >= 0)
            and not self._listener.is_draining
        )
        body = ResponseBody(length, head.minor, head.wants_trailers)
        first = response_bytes(
            *(response, length, head.minor, connection.keep, connection.correlation_id),
            *(self._more_lines(response, upstream.backend), head.wants_trailers),
        )
        self._listener.connector.roster.answered(upstream.backend.id, response.status, self._clock())
        try:
            data, upstream.buffer = upstream.buffer, b""
            if not body.is_done:
                data = data or upstream.receive_nowait()
                out = body.feed(data)
                if isinstance(out, Reject):
                    raise Refused(out.reason, out.detail)
                first += out
            elif data:
                body.has_surplus = True
            connection.count(response.status)
            connection.has_started = True
            await connection.send(first)
            pace = None if body.is_done else self._backend_pace()
            while not body.is_done:
                connection.enter(RESPONSE_BODY, self._limits.upstream_body_idle_timeout_s)
                if pace is not None:
                    pace.begin(self._clock())
                if body.counted_left:
                    view = await _from_backend(upstream.receive_shared(body.counted_left))
                    if view:
                        if pace is not None:
                            _keep_up(pace, len(view))
                        body.passed(len(view))
                        await connection.send(view)
                        continue
                    out = body.end()
                else:
                    data = await _from_backend(upstream.receive())
                    if pace is not None:
                        _keep_up(pace, len(data))
                    out = body.feed(data) if data else body.end()
                if isinstance(out, Reject):
                    raise Refused(out.reason, out.detail)
                if out:
                    await connection.send(out)
        except _UpstreamGone as gone:
            raise _closed_early() from gone
        if response.keep_alive and not is_doubtful and not body.has_surplus and not body.is_until_close:
            self._upstream = None
            self._listener.pools.give_back(upstream, self._clock())

    def _is_doubtful(self, response: ResponseHead) -> bool:
        """Whether backend and we may disagree on where the next request begins, as it answers."""
        head = self._head
        if not self._is_sent or self._websocket:
            return True
        if not head.length:
            return False
        return head.method in _BODY_UNUSUAL or (head.expects_continue and not self._is_continued)

    def _more_lines(self, response: ResponseHead, backend: Backend) -> bytes:
        """What we add to an answer: when it came, if it does not say; what routing wants remembered."""
        more = b"" if response.date else date_line(self._listener.world.wall_ms() // 1000)
        choice = self._choice
        if choice is not None and choice.cookies is not None:
            cookie = choice.cookie(backend)
            if cookie:
                more += b"set-cookie: %b\r\n" % cookie
        if response.status == 426 and response.upgrade.lower() == b"websocket":
            more += HOPS
        return more

    def _backend_pace(self) -> Pace | None:
        least = self._limits.upstream_body_bytes_per_s_min
        return Pace(least, self._limits.http_body_rate_grace_s) if least else None

    # -- a WebSocket

    async def _tunnel(self, upstream: Upstream, response: ResponseHead) -> None:
        """Both agreed: from here on bytes pass unread, until both sides have ended."""
        connection, session, listener = self._connection, self._connection.session, self._listener
        wrong = check_switch(response, self._websocket)
        if wrong is not None:
            raise Refused(wrong.reason, wrong.detail)
        connection.keep = False
        connection.has_started = True
        connection.count(101)
        listener.connector.roster.answered(upstream.backend.id, 101, self._clock())
        first, upstream.buffer = upstream.buffer, b""
        await connection.send(switch_bytes(response, connection.correlation_id) + first)
        early, connection.client.buffer = connection.client.buffer, b""
        if early:
            try:
                await self._send(upstream, early)
            except _UpstreamGone as gone:
                raise _closed_early() from gone
        session.kind = "websocket"
        connection.enter_until(RELAY, float("inf"))
        before_in, before_out = session.bytes_in, session.bytes_out
        ended: Reject | None = Reject(Reason.INTERNAL_ERROR)
        try:
            ended = await relay(
                connection.client.stream, upstream.stream, session, self._limits.websocket_idle_timeout_s
            )
        finally:
            listener.bytes_in.value += session.bytes_in - before_in
            listener.bytes_out.value += session.bytes_out - before_out
            if ended is not None:
                upstream.stream.abort()
                connection.client.stream.abort()
        if ended is not None:
            connection.refused(ended, "debug" if ended.reason is Reason.CLIENT_GONE else "info")

    # -- a request whose body is still under way

    async def _exchange_both_ways(self, body: bytes, reader: BodyReader) -> None:
        """Send the body up as it comes, and meanwhile listen for the answer."""
        upstream = await self._obtain()
        failure: Exception | None = None
        try:
            await self._send(upstream, self._request_bytes(upstream) + body)
        except _UpstreamGone as gone:
            raise _closed_early() from gone
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            self._connection.enter_until(UPLOAD, float("inf"))
            nursery.start_soon(self._upload, upstream, reader, nursery.cancel_scope)
            try:
                await self._answer(upstream, await self._response_head(upstream))
            except (Refused, _UpstreamGone, trio.BrokenResourceError) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if self._upload_failure is not None:
            raise Refused(self._upload_failure.reason, self._upload_failure.detail)
        if isinstance(failure, _UpstreamGone):
            raise _closed_early() from failure
        if failure is not None:
            raise failure

    async def _upload(self, upstream: Upstream, reader: BodyReader, cancel: trio.CancelScope) -> None:
        """Relay the rest of the request's body. Its failure ends the exchange, unless it is the backend's."""
        failure = await self._relay_body(upstream, reader)
        if failure is not None:
            self._upload_failure = failure
            cancel.cancel()
            return
        if reader.is_done:
            self._is_sent = True
            self._connection.has_body_pending = False
        if self._connection.phase == UPLOAD:
            self._connection.enter(RESPONSE, self._limits.upstream_response_timeout_s)

    async def _relay_body(self, upstream: Upstream, reader: BodyReader) -> Reject | None:
        connection, limits = self._connection, self._limits
        reason = Reason.HTTP_BODY_TIMEOUT
        pace = Pace(limits.http_body_bytes_per_s_min, limits.http_body_rate_grace_s)
        with trio.CancelScope() as scope:
            while not reader.is_done:
                reason = Reason.HTTP_BODY_TIMEOUT
                began_at = self._clock()
                pace.begin(began_at)
                scope.deadline = began_at + limits.http_body_idle_timeout_s
                try:
                    data = await connection.receive()
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    return Reject(Reason.CLIENT_GONE, "the body is incomplete")
                if not pace.keeps_up(len(data), self._clock()):
                    return Reject(reason, f"slower than {pace.bytes_per_s_min} bytes/s")
                fed = reader.feed(data)
                if isinstance(fed, Reject):
                    return fed
                out, connection.client.buffer = fed
                too_large = self._too_large(reader)
                if too_large is not None:
                    return too_large
                if not out:
                    continue  # a line that is not whole yet
                reason = Reason.BACKEND_TIMEOUT
                try:
                    rest = upstream.send_nowait(out)
                    if rest:
                        scope.deadline = self._clock() + limits.upstream_response_timeout_s
                        await upstream.stream.send_all(rest)
                except trio.BrokenResourceError:
                    return None  # It reads no more; it may have answered, and whoever listens will see.
        return Reject(reason) if scope.cancelled_caught else None


def _keep_up(pace: Pace, count: int) -> None:
    if not pace.keeps_up(count, trio.current_time()):
        raise Refused(Reason.BACKEND_TIMEOUT, f"its answer is slower than {pace.bytes_per_s_min} bytes/s")


def _closed_early() -> Refused:
    return Refused(Reason.BACKEND_CLOSED_EARLY, "the backend closed before its answer was complete")
