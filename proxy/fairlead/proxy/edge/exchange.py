"""One request to a backend and its answer back to the client.

Stands between a client's request head and the end of its answer.

Invariants: bodies go on as raw bytes, with back-pressure both ways; a request at hand whole needs no
second task; a backend may answer before it has the whole request, and then both connections end after
the answer; a connection goes back to the pool only after an exchange without doubt; a request is repeated
only if it cannot have had an effect twice: nothing of an answer came, the connection was a reused one,
the method is idempotent and there is no body.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.body import ResponseBody
from fairlead.proxy.edge.forward_headers import interim_bytes, request_bytes, response_bytes
from fairlead.proxy.edge.http import RESPONSE, RESPONSE_BODY, UPLOAD, ClientConnection
from fairlead.proxy.edge.pool import Upstream
from fairlead.proxy.edge.routing import ANYTHING
from fairlead.runtime.http.body import BodyReader, ChunkedReader, reader_for
from fairlead.runtime.http.framing import split_head
from fairlead.runtime.http.head import RequestHead, ResponseHead

T = TypeVar("T")

_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
_INTERIM_MAX: Final = 16


async def forward(connection: ClientConnection, head: RequestHead) -> None:
    """Forward one request and relay its answer. Raises Refused before an answer, or after it began."""
    exchange = Exchange(connection, head)
    try:
        await exchange.run()
    finally:
        exchange.close()


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
        self._listener, self._limits = connection.listener, connection.limits
        self._upstream: Upstream | None = None
        self._is_sent = False  # the whole request has gone to the backend
        self._upload_failure: Reject | None = None
        self._status = 0

    async def run(self) -> None:
        head, connection = self._head, self._connection
        body, reader = self._first_body()
        if reader is None:
            connection.has_body_pending = False
            self._is_sent = True
            upstream, response = await self._ask(body)
            await self._answer(upstream, response)
        else:
            await self._exchange_both_ways(body, reader)
        if self._listener.access_log:
            self._listener.observer.log.debug(
                "http_request",
                listener=self._listener.name,
                peer=connection.peer,
                method=head.method.decode(),
                target=head.target.decode("latin-1"),
                status=self._status,
                backend=connection.session.backend,
                correlation_id=connection.correlation_id,
                duration_ms=round((trio.current_time() - connection.began_at) * 1000, 1),
            )

    def close(self) -> None:
        """Whatever did not go back to the pool ends here."""
        if self._upstream is not None:
            self._upstream.stream.close()
            self._upstream = None

    # -- the request

    def _first_body(self) -> tuple[bytes, BodyReader | None]:
        """What of the body came with the head, and the reader of the rest if there is a rest."""
        length = self._head.length
        if length == 0:
            return b"", None
        if length > self._limits.http_body_bytes_max:
            raise Refused(Reason.HTTP_BODY_TOO_LARGE, f"at most {self._limits.http_body_bytes_max} bytes")
        reader = reader_for(length)
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
        now = trio.current_time()
        candidates = listener.router.candidates(now, ANYTHING).backends
        upstream = None if fresh or not candidates else listener.pools.take(candidates[0], now)
        if upstream is None:
            connection.scope.deadline = float("inf")  # Each attempt has a deadline of its own.
            connection.phase = RESPONSE
            stream, backend = await listener.connector.connect(
                candidates, connection.correlation_id, connection.peer
            )
            upstream = Upstream(stream, backend)
        connection.session.backend = upstream.backend.id
        self._upstream = upstream
        return upstream

    def _request_bytes(self, upstream: Upstream) -> bytes:
        connection, backend = self._connection, upstream.backend
        host = f"[{backend.host}]" if ":" in backend.host else backend.host
        authority = f"{host}:{backend.port}"
        return request_bytes(
            *(self._head, connection.peer, b"http", connection.correlation_id, connection.is_trusted),
            authority,
        )

    async def _send(self, upstream: Upstream, data: bytes) -> None:
        try:
            rest = upstream.send_nowait(data)
            self._connection.enter(RESPONSE, self._limits.upstream_response_timeout_s)
            if rest:
                await upstream.stream.send_all(rest)
        except trio.BrokenResourceError as error:
            raise _UpstreamGone(is_clean=True) from error

    async def _ask(self, body: bytes) -> tuple[Upstream, ResponseHead]:
        """Send a request that is at hand whole, and return the head of its answer."""
        upstream = await self._obtain()
        while True:
            try:
                await self._send(upstream, self._request_bytes(upstream) + body)
                return upstream, await self._response_head(upstream)
            except _UpstreamGone as gone:
                self.close()
                may_repeat = gone.is_clean and upstream.is_reused
                if may_repeat and not self._head.length and self._head.method in _IDEMPOTENT:
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
            if response.status >= 200:
                upstream.buffer = buffer
                return response
            interims += 1
            if response.status == 101 or interims > _INTERIM_MAX:
                raise Refused(Reason.BACKEND_RESPONSE_MALFORMED, f"an unexpected answer {response.status}")
            if head.minor and (response.status != 100 or head.expects_continue):
                connection = self._connection
                waiting = connection.phase, connection.scope.deadline
                await connection.send(interim_bytes(response))
                connection.phase, connection.scope.deadline = waiting

    async def _answer(self, upstream: Upstream, response: ResponseHead) -> None:
        """Relay the answer, then keep the backend's connection if nothing is in doubt."""
        head, connection = self._head, self._connection
        length = response.body_length(head.method)
        connection.keep = (
            connection.keep
            and self._is_sent
            and (head.minor == 1 or length >= 0)
            and not self._listener.is_draining
        )
        body = ResponseBody(length, head.minor)
        first = response_bytes(response, length, head.minor, connection.keep, connection.correlation_id)
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
            self._status = response.status
            connection.count(response.status)
            connection.has_started = True
            await connection.send(first)
            while not body.is_done:
                connection.enter(RESPONSE_BODY, self._limits.upstream_body_idle_timeout_s)
                if body.counted_left:
                    view = await _from_backend(upstream.receive_shared(body.counted_left))
                    if view:
                        body.passed(len(view))
                        await connection.send(view)
                        continue
                    out = body.end()
                else:
                    data = await _from_backend(upstream.receive())
                    out = body.feed(data) if data else body.end()
                if isinstance(out, Reject):
                    raise Refused(out.reason, out.detail)
                if out:
                    await connection.send(out)
        except _UpstreamGone as gone:
            raise _closed_early() from gone
        if response.keep_alive and self._is_sent and not body.has_surplus and not body.is_until_close:
            self._upstream = None
            self._listener.pools.give_back(upstream, trio.current_time())

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
            self._connection.phase, self._connection.scope.deadline = UPLOAD, float("inf")
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
        with trio.CancelScope() as scope:
            while not reader.is_done:
                reason = Reason.HTTP_BODY_TIMEOUT
                scope.deadline = trio.current_time() + limits.http_body_idle_timeout_s
                try:
                    data = await connection.receive()
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    return Reject(Reason.CLIENT_GONE, "the body is incomplete")
                fed = reader.feed(data)
                if isinstance(fed, Reject):
                    return fed
                out, connection.client.buffer = fed
                too_large = self._too_large(reader)
                if too_large is not None:
                    return too_large
                reason = Reason.BACKEND_TIMEOUT
                try:
                    rest = upstream.send_nowait(out)
                    if rest:
                        scope.deadline = trio.current_time() + limits.upstream_response_timeout_s
                        await upstream.stream.send_all(rest)
                except trio.BrokenResourceError:
                    return None  # It reads no more; it may have answered, and whoever listens will see.
        return Reject(reason) if scope.cancelled_caught else None


def _closed_early() -> Refused:
    return Refused(Reason.BACKEND_CLOSED_EARLY, "the backend closed before its answer was complete")
