"""The small HTTP/1.1 server behind the operators' port, a node's health port and the sample app.

Owns connections from accept to close: reading requests under limits and deadlines, calling one handler
per request, writing its answer with the correlation id. Which endpoints exist is the handler's business.

Invariants: one deadline watches every wait on the peer (the handler minds its own); a request is handed
over only whole and only if its framing is beyond doubt; requests on one connection are answered in order,
one at a time; every refusal is counted, logged and told.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.runtime.http.answer import answer_head, is_bodiless
from fairlead.runtime.http.body import LAST_CHUNK, WholeBody, as_chunk
from fairlead.runtime.http.framing import after_empty_line, split_head
from fairlead.runtime.http.head import CHUNKED, UNTIL_CLOSE, HeadReader, RequestHead
from fairlead.runtime.http.message import Request, Response, problem, split_target
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream, SocketStream
from fairlead.runtime.world import Listener, World

Handler = Callable[[Request], Awaitable[Response]]

_READ_BYTES: Final = 64 * 1024
_LINGER_S: Final = 1.0
_LINGER_BYTES_MAX: Final = 1024 * 1024
_ACCEPT_PAUSE_S: Final = 0.1
_CORRELATION_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

# Why a wait on the peer ended; the key is the phase in which the deadline passed.
_IDLE, _HEAD, _BODY, _HANDLER, _WRITE = range(5)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one connection may cost."""

    head_bytes_max: int = 16 * 1024
    head_count_max: int = 100
    body_bytes_max: int = 8 * 1024 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keepalive_timeout_s: float = 60.0
    requests_per_connection_max: int = 100_000
    write_timeout_s: float = 30.0


def never() -> bool:
    """The default of `draining`."""
    return False


def correlation_id_of(sent: bytes, world: World) -> str:
    """The caller's correlation id if it is well-formed, else a new one."""
    if sent and _CORRELATION_ID.fullmatch(sent):
        return sent.decode("ascii")
    return world.new_id()


async def serve_connection(
    stream: ByteStream,
    handler: Handler,
    limits: HttpLimits,
    world: World,
    observer: Observer,
    *,
    draining: Callable[[], bool] = never,
    server: str = "http",
    reader: HeadReader | None = None,
) -> None:
    """Serve one connection to its end, and close it. `server` names the listener in logs."""
    heads = reader or HeadReader(limits.head_count_max)
    connection = _Connection(stream, handler, limits, world, observer, draining, server, heads)
    try:
        await connection.run()
    finally:
        stream.close()


async def serve_listener(
    listener: Listener,
    per_connection: Callable[[ByteStream], Awaitable[None]],
    observer: Observer,
    *,
    connections_max: int,
    name: str,
    refusal: bytes = b"",
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept until `listener` is closed, then wait for the connections that live.

    `refusal` is sent, as far as it goes at once, to a connection above `connections_max`.
    """
    live = 0

    async def serve(stream: ByteStream) -> None:
        nonlocal live
        try:
            await per_connection(stream)
        except trio.BrokenResourceError:
            pass  # The peer is gone, and with it whom to tell; its handler counts what matters.
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            observer.refused(
                *(Reason.INTERNAL_ERROR, "a connection failed unexpectedly"),
                level="error",
                listener=name,
                peer=stream.peer_host,
                traceback=text,
            )
        finally:
            live -= 1
            stream.close()

    async with trio.open_nursery() as nursery:
        task_status.started()
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno == errno.EBADF:
                    return
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                detail = f"cannot accept: {error.strerror}"
                observer.refused(Reason.CONNECTION_LIMIT, detail, level="error", listener=name)
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            if live >= connections_max:
                detail = f"{connections_max} connections are open"
                observer.refused(Reason.CONNECTION_LIMIT, detail, listener=name, peer=stream.peer_host)
                turn_away(stream, refusal)
                continue
            live += 1
            nursery.start_soon(serve, stream, name=name)


def turn_away(stream: ByteStream, refusal: bytes) -> None:
    """Say no as far as that goes without waiting, and close."""
    if refusal and isinstance(stream, SocketStream):
        try:
            stream.send_nowait(refusal)
        except trio.BrokenResourceError:
            pass  # Nobody is there any more to be told.
    stream.close()


class _Connection:
    """One connection's state."""

    def __init__(
        self,
        stream: ByteStream,
        handler: Handler,
        limits: HttpLimits,
        world: World,
        observer: Observer,
        draining: Callable[[], bool],
        server: str,
        heads: HeadReader,
    ) -> None:
        self._stream, self._handler, self._limits = stream, handler, limits
        self._world, self._observer, self._draining = world, observer, draining
        self._server, self._heads = server, heads
        self._buffer = b""
        self._phase = _IDLE
        self._scope = trio.CancelScope()
        self._correlation_id = ""

    async def run(self) -> None:
        try:
            with self._scope:
                await self._serve()
            if self._scope.cancelled_caught:
                await self._timed_out()
        except trio.BrokenResourceError:
            if self._phase in (_BODY, _HANDLER, _WRITE):
                self._refused(Reject(Reason.CLIENT_GONE), level="debug")

    async def _serve(self) -> None:
        served = 0
        timeout_s = self._limits.head_timeout_s  # the first request has less time than the next ones
        while True:
            self._enter(_IDLE, timeout_s)
            self._correlation_id = ""
            head = await self._read_head()
            if head is None:
                return
            parsed = self._heads.request(head) if isinstance(head, bytes) else head
            if isinstance(parsed, Reject):
                return await self._refuse_and_close(parsed)
            self._correlation_id = correlation_id_of(parsed.correlation_id, self._world)
            body = await self._read_body(parsed)
            if isinstance(body, Reject):
                return await self._refuse_and_close(body)
            self._phase = _HANDLER
            self._scope.deadline = float("inf")
            response = await self._answer(parsed, body)
            served += 1
            keep = parsed.keep_alive and served < self._limits.requests_per_connection_max
            keep = keep and not self._draining() and (parsed.minor == 1 or response.stream is None)
            self._enter(_WRITE, self._limits.write_timeout_s)
            await self._write(response, parsed, keep)
            if not keep:
                return await self._linger()
            timeout_s = self._limits.keepalive_timeout_s

    def _enter(self, phase: int, timeout_s: float) -> None:
        self._phase = phase
        self._scope.deadline = trio.current_time() + timeout_s

    # -- reading

    async def _read_head(self) -> bytes | Reject | None:
        """The next head with its empty line; None at an orderly end."""
        buffer = self._buffer
        while True:
            begun = after_empty_line(buffer)
            if isinstance(begun, Reject):
                return begun
            buffer = begun
            if buffer:
                found = split_head(buffer, self._limits.head_bytes_max)
                if isinstance(found, tuple):
                    head, self._buffer = found
                    return head
                if found is not None:
                    return found
                if self._phase == _IDLE:
                    self._enter(_HEAD, self._limits.head_timeout_s)
            more = await self._stream.receive_some(_READ_BYTES)
            if not more:
                return Reject(Reason.CLIENT_GONE, "the head is incomplete") if buffer else None
            buffer += more

    async def _read_body(self, head: RequestHead) -> bytes | Reject:
        if head.length == 0:
            return b""
        whole = WholeBody(head.length, self._limits.body_bytes_max)
        refused = whole.feed(self._buffer)
        if refused is None and not whole.is_done:
            self._enter(_BODY, self._limits.body_timeout_s)
            if head.expects_continue and not self._buffer:
                await self._stream.send_all(_CONTINUE)
        while refused is None and not whole.is_done:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                return Reject(Reason.CLIENT_GONE, "the body is incomplete")
            refused = whole.feed(data)
        self._buffer = whole.rest
        return refused or whole.take()

    # -- answering

    async def _answer(self, head: RequestHead, body: bytes) -> Response:
        path, query = split_target(head.target)
        request = Request(
            head.method.decode("ascii"),
            path,
            query,
            [(name, value) for _, name, value, _ in head.fields],
            body,
            self._stream.peer_host,
            self._correlation_id,
        )
        try:
            if head.method == b"CONNECT":
                raise Refused(Reason.HTTP_METHOD_UNSUPPORTED, "CONNECT is not served here")
            return await self._handler(request)
        except Refused as refused:
            self._refused(Reject(refused.reason, refused.detail))
            return problem(
                refused.reason, refused.detail, self._correlation_id, retry_after_s=refused.retry_after_s
            )
        except Exception as error:
            return self._internal_error(error, f"{request.method} {path} failed unexpectedly")

    def _internal_error(self, error: Exception, detail: str) -> Response:
        text = "".join(traceback.format_exception(error))
        self._refused(Reject(Reason.INTERNAL_ERROR, detail), level="error", traceback=text)
        return problem(Reason.INTERNAL_ERROR, "an unexpected error", self._correlation_id)

    def _refused(self, reject: Reject, **fields: str) -> None:
        self._observer.refused(
            reject.reason,
            reject.detail,
            correlation_id=self._correlation_id,
            peer=self._stream.peer_host,
            listener=self._server,
            **fields,
        )

    async def _refuse_and_close(self, reject: Reject) -> None:
        """Tell what is wrong with the request and end: where the next one begins is not certain."""
        if not self._correlation_id:
            self._correlation_id = self._world.new_id()
        self._refused(reject, **({"level": "debug"} if reject.reason is Reason.CLIENT_GONE else {}))
        if reject.reason is Reason.CLIENT_GONE:
            return
        self._enter(_WRITE, self._limits.write_timeout_s)
        response = problem(reject.reason, reject.detail, self._correlation_id)
        await self._stream.send_all(self._head(response, len(response.body), False) + response.body)
        await self._linger()

    async def _timed_out(self) -> None:
        reason = {
            _HEAD: Reason.HTTP_HEAD_TIMEOUT,
            _BODY: Reason.HTTP_BODY_TIMEOUT,
            _WRITE: Reason.CLIENT_WRITE_TIMEOUT,
        }.get(self._phase)
        if reason is None:
            return  # An idle connection, which may be closed at any time.
        self._scope = trio.CancelScope()
        with self._scope:
            if reason is Reason.CLIENT_WRITE_TIMEOUT:
                self._refused(Reject(reason))
                self._stream.abort()
                return
            await self._refuse_and_close(Reject(reason))

    async def _linger(self) -> None:
        """Close so that the peer can read our last answer: a reset would discard it unread."""
        self._enter(_IDLE, _LINGER_S)
        await self._stream.send_eof()
        left = _LINGER_BYTES_MAX
        while left > 0:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                return
            left -= len(data)

    # -- writing

    async def _write(self, response: Response, request: RequestHead, keep: bool) -> None:
        bodiless = is_bodiless(request.method, response.status)
        if response.stream is not None:
            return await self._write_stream(response, request, keep, bodiless)
        try:
            head = self._head(response, len(response.body), keep)
        except ValueError as error:
            response = self._internal_error(error, "the handler's headers are malformed")
            head = self._head(response, len(response.body), keep)
        await self._stream.send_all(head if bodiless else head + response.body)

    async def _write_stream(
        self, response: Response, request: RequestHead, keep: bool, bodiless: bool
    ) -> None:
        source = response.stream
        assert source is not None
        chunked = request.minor == 1
        head = self._head(response, CHUNKED if chunked else UNTIL_CLOSE, keep)
        try:
            await self._stream.send_all(head)
            if not bodiless:
                while True:
                    self._phase = _HANDLER
                    self._scope.deadline = float("inf")
                    piece = await anext(source, None)
                    self._enter(_WRITE, self._limits.write_timeout_s)
                    if piece is None:
                        break
                    if piece:
                        await self._stream.send_all(as_chunk(piece) if chunked else piece)
                if chunked:
                    await self._stream.send_all(LAST_CHUNK)
        except trio.BrokenResourceError:
            raise
        except Exception as error:
            self._internal_error(error, "a streamed answer failed midway")
            self._stream.abort()  # The peer must not take the truncation for an end.
            raise trio.BrokenResourceError("the answer was cut off") from error
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                    await close()

    def _head(self, response: Response, length: int, keep: bool) -> bytes:
        return answer_head(response, length, keep, self._correlation_id, self._world.wall_ms())
