"""The small HTTP server over memory streams and over loopback sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from tests.support.memory_stream import memory_pair

from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.http.message import Request, Response, json_response, text_response
from fairlead.runtime.http.server import HttpLimits, serve_connection, serve_listener
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import RealWorld

Handler = Callable[[Request], Awaitable[Response]]
LIMITS = HttpLimits(
    head_bytes_max=2048,
    body_bytes_max=1000,
    head_timeout_s=5,
    body_timeout_s=5,
    keepalive_timeout_s=5,
    write_timeout_s=5,
)


def make_observer() -> tuple[Observer, ListSink]:
    world, sink = RealWorld(), ListSink()
    return Observer(Log(sink, world.wall_ms, "test", "debug"), Metrics(), world.wall_ms), sink


async def echo(request: Request) -> Response:
    if request.path == "/refuse":
        raise Refused(Reason.QUEUE_FULL, "no room", retry_after_s=2.5)
    if request.path == "/break":
        raise RuntimeError("out of luck")
    if request.path == "/header":
        return Response(200, [("x-bad", "a\r\nb: c")])
    if request.path == "/stream":
        return Response(200, [], stream=_pieces())
    if request.path == "/nothing":
        return Response(204)
    return json_response(
        {"method": request.method, "path": request.path, "body": request.body.decode(), **request.params()}
    )


async def _pieces() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


@asynccontextmanager
async def serving(
    handler: Handler = echo,
    limits: HttpLimits = LIMITS,
    draining: Callable[[], bool] = lambda: False,
    window_bytes: int = 64 * 1024,
) -> AsyncIterator[tuple[ByteStream, Observer, ListSink]]:
    client, server = memory_pair(window_bytes=window_bytes)
    observer, sink = make_observer()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await serve_connection(
                server, handler, limits, RealWorld(), observer, draining=draining, server="ops"
            )

        nursery.start_soon(run)
        with trio.fail_after(30):
            yield client, observer, sink
        client.close()


async def read_all(stream: ByteStream) -> bytes:
    parts = []
    while data := await stream.receive_some(65536):
        parts.append(data)
    return b"".join(parts)


async def exchange(raw: bytes, **options: object) -> bytes:
    """Send everything, say no more, and return all that comes back."""
    async with serving(**options) as (client, _, _):  # type: ignore[arg-type]
        await client.send_all(raw)
        await client.send_eof()
        return await read_all(client)


def parse(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


async def test_a_request_is_answered_with_its_correlation_id() -> None:
    raw = await exchange(b"GET /x?a=1%202 HTTP/1.1\r\nHost: h\r\nX-Correlation-Id: abc-1\r\n\r\n")
    status, headers, body = parse(raw)
    assert (status, headers["x-correlation-id"]) == (200, "abc-1")
    assert headers["content-length"] == str(len(body))
    assert "date" in headers
    assert json.loads(body) == {"method": "GET", "path": "/x", "body": "", "a": "1 2"}


@pytest.mark.parametrize(
    "sent", [b"", b"X-Correlation-Id: a b\r\n", b"X-Correlation-Id: " + b"x" * 65 + b"\r\n"]
)
async def test_a_missing_or_malformed_correlation_id_is_replaced(sent: bytes) -> None:
    _, headers, _ = parse(await exchange(b"GET / HTTP/1.1\r\nHost: h\r\n" + sent + b"\r\n"))
    assert len(headers["x-correlation-id"]) == 36


async def test_pipelined_requests_are_answered_in_order() -> None:
    one = b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
    two = b"POST /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    two += b"2\r\nde\r\n1;x=y\r\nf\r\n0\r\nT: v\r\n\r\n"
    three = b"GET /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    raw = await exchange(one + two + three + one)
    bodies = [
        json.loads(part[part.index(b"{") : part.index(b"}") + 1]) for part in raw.split(b"HTTP/1.1 ")[1:]
    ]
    assert [(body["path"], body["body"]) for body in bodies] == [("/1", "abc"), ("/2", "def"), ("/3", "")]


async def test_a_request_that_comes_byte_by_byte() -> None:
    async with serving() as (client, _, _):
        for byte in b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab":
            await client.send_all(bytes([byte]))
        assert b'"body":"ab"' in await read_all(client)


async def test_head_and_no_content_have_no_body() -> None:
    status, headers, body = parse(await exchange(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n"))
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0
    status, headers, body = parse(await exchange(b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n"))
    assert (status, body) == (204, b"")
    assert "content-length" not in headers


async def test_expect_continue_is_answered_before_the_body_is_awaited() -> None:
    async with serving() as (client, _, _):
        await client.send_all(
            b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert await client.receive_some(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send_all(b"ok")
        assert b'"body":"ok"' in await read_all(client)


async def test_a_stream_is_chunked_for_11_and_ends_with_the_connection_for_10() -> None:
    raw = await exchange(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
    assert raw.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    raw = await exchange(b"GET /stream HTTP/1.0\r\n\r\n")
    assert raw.endswith(b"\r\n\r\nonetwo")
    assert b"connection: close" in raw


async def test_a_stream_that_fails_midway_resets_the_connection() -> None:
    async def failing(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            raise RuntimeError("gone")

        return Response(200, [], stream=pieces())

    async with serving(failing) as (client, observer, _):
        await client.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(client)
    assert observer.rejects()["ops"] == {"INTERNAL_ERROR": 1}


async def test_a_refusal_is_a_problem_and_the_connection_goes_on() -> None:
    raw = await exchange(b"GET /refuse HTTP/1.1\r\nHost: h\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    status, headers, rest = parse(raw)
    assert (status, headers["retry-after"], headers["content-type"]) == (429, "3", "application/problem+json")
    told = json.loads(rest[: rest.index(b"}") + 1])
    assert told["reason"] == "QUEUE_FULL"
    assert told["correlation_id"] == headers["x-correlation-id"]
    assert set(told) == {
        *("type", "title", "status", "detail", "reason", "correlation_id", "action", "retry_after")
    }
    assert b"HTTP/1.1 200 OK" in rest


@pytest.mark.parametrize("path", [b"/break", b"/header"])
async def test_an_unexpected_error_is_a_500_and_the_connection_goes_on(path: bytes) -> None:
    request = b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n"
    async with serving() as (client, observer, sink):
        await client.send_all(request + b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.send_eof()
        raw = await read_all(client)
    status, _, rest = parse(raw)
    assert status == 500
    assert b"out of luck" not in raw
    assert b"HTTP/1.1 200 OK" in rest
    assert observer.rejects()["ops"] == {"INTERNAL_ERROR": 1}
    assert any("Traceback" in line for line in sink.lines)


GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
REFUSED = [
    (GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP_FRAMING_AMBIGUOUS"),
    (GET + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n", "HTTP_FRAMING_AMBIGUOUS"),
    (GET + b"Content-Length: 5000\r\n\r\n", "HTTP_BODY_TOO_LARGE"),
    (b"GET / HTTP/1.1\nHost: h\n\n", "HTTP_FRAMING_AMBIGUOUS"),
    (b"GET / HTTP/1.1\r\n\r\n", "HTTP_HEAD_MALFORMED"),
    (b"\x16\x03\x01\x02\x00", "HTTP_HEAD_MALFORMED"),
    (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", "HTTP_VERSION_UNSUPPORTED"),
    (GET + b"Expect: a-miracle\r\n\r\n", "HTTP_EXPECTATION_UNSUPPORTED"),
    (GET + b"X: " + b"y" * 3000 + b"\r\n\r\n", "HTTP_HEAD_TOO_LARGE"),
    (GET + b"X: y\r\n" * 120 + b"\r\n", "HTTP_HEAD_TOO_LARGE"),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", "HTTP_BODY_MALFORMED"),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n4000\r\n" + b"x" * 1024, "HTTP_BODY_TOO_LARGE"),
]


@pytest.mark.parametrize(("raw", "reason"), REFUSED, ids=[f"{i}-{r}" for i, (_, r) in enumerate(REFUSED)])
async def test_doubtful_requests_are_refused_counted_and_told(raw: bytes, reason: str) -> None:
    async def unreachable(_: Request) -> Response:
        raise AssertionError("a doubtful request was served")

    async with serving(unreachable) as (client, observer, _):
        await client.send_all(raw + GET + b"\r\n")
        answer = await client.receive_some(65536)
    status, headers, body = parse(answer)
    assert status == json.loads(body)["status"]
    assert json.loads(body)["reason"] == reason
    assert headers["connection"] == "close"
    assert observer.rejects() == {"edge": {reason: 1}}


async def test_deadlines(autojump_clock: trio.testing.MockClock) -> None:
    for sent, reason in (
        (b"GET / HT", "HTTP_HEAD_TIMEOUT"),
        (GET + b"Content-Length: 5\r\n\r\nabc", "HTTP_BODY_TIMEOUT"),
    ):
        async with serving() as (client, observer, _):
            await client.send_all(sent)
            answer = await read_all(client)
            assert parse(answer)[0] == 408
            assert observer.rejects() == {"edge": {reason: 1}}
    async with serving() as (client, observer, _):
        await client.send_all(GET + b"\r\n")
        assert parse(await read_all(client))[0] == 200  # then idle, then closed in silence
        assert observer.rejects() == {}


async def test_a_client_that_takes_nothing_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    async def large(_: Request) -> Response:
        return text_response("x" * 100_000)

    async with serving(large, window_bytes=100) as (client, observer, _):
        await client.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await trio.sleep(20)
        with pytest.raises(trio.BrokenResourceError):
            await read_all(client)
        assert observer.rejects() == {"edge": {"CLIENT_WRITE_TIMEOUT": 1}}


async def test_requests_per_connection_and_draining_close_politely() -> None:
    pipelined = (GET + b"\r\n") * 3
    raw = await exchange(pipelined, limits=HttpLimits(requests_per_connection_max=2))
    assert (raw.count(b"HTTP/1.1 200"), raw.count(b"connection: close")) == (2, 1)
    raw = await exchange(pipelined, draining=lambda: True)
    assert (raw.count(b"HTTP/1.1 200"), raw.count(b"connection: close")) == (1, 1)


async def test_the_listener_bounds_connections_and_survives_their_failures() -> None:
    world = RealWorld()
    observer, _ = make_observer()
    listener = await world.listen_tcp("127.0.0.1", 0)
    held = trio.Event()

    async def per_connection(stream: ByteStream) -> None:
        if await stream.receive_some(10) == b"fail":
            raise RuntimeError("this connection only")
        await stream.send_all(b"hello")
        await held.wait()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[None]) -> None:
                await serve_listener(
                    *(listener, per_connection, observer),
                    connections_max=1,
                    name="ops",
                    refusal=b"full",
                    task_status=task_status,
                )

            await nursery.start(run)
            first = await world.connect_tcp("127.0.0.1", listener.port)
            await first.send_all(b"fail")
            assert await first.receive_some(10) == b""
            second = await world.connect_tcp("127.0.0.1", listener.port)
            await second.send_all(b"hold")
            assert await second.receive_some(10) == b"hello"
            third = await world.connect_tcp("127.0.0.1", listener.port)
            assert await third.receive_some(10) == b"full"
            listener.close()  # accepting ends; who is there is served to the end
            held.set()
            assert await second.receive_some(10) == b""
            for stream in (first, second, third):
                stream.close()
    assert observer.rejects() == {"edge": {"CONNECTION_LIMIT": 1}, "ops": {"INTERNAL_ERROR": 1}}
