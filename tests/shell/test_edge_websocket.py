"""WebSockets through the edge: real client and server libraries, and everything that only looks like a WebSocket."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import websockets.sync.client
import websockets.sync.server
from tests.support.edge_harness import OK, Harness, Peer, Script, always_ok, running_edge
from tests.support.tls import Authority

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.settings import Certificate, EdgeLimits, ListenerTls, TlsFiles
from fairlead.proxy.edge.upgrade import accept_of

KEY = base64.b64encode(bytes(range(16)))
ASK = (
    b"GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: " + KEY
    + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
)  # fmt: skip
INNER = b"GET /inner HTTP/1.1\r\nHost: h\r\n\r\n"
AGREE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    + accept_of(KEY) + b"\r\n\r\n"
)  # fmt: skip


def agreeing(heads: list[bytes], answer: bytes = AGREE) -> Script:
    """A backend that answers the handshake, then gives back whatever comes."""

    async def script(peer: Peer) -> None:
        heads.append(await peer.read_head())
        await peer.send(answer)
        while data := await peer.read_some():
            await peer.send(data)
        await peer.stream.send_eof()

    return script


async def state(h: Harness, kind: str) -> None:
    while not any(row["kind"] == kind for row in h.edge.status()["sessions"]):
        await trio.sleep(0.002)


async def test_a_checked_handshake_becomes_a_tunnel() -> None:
    heads: list[bytes] = []
    async with running_edge(agreeing(heads), access_log=True) as h:
        client = await h.connect()
        await client.send(ASK)
        head = await client.read_head()
        assert head.startswith(b"HTTP/1.1 101 ")
        lowered = head.lower()
        for line in (
            b"upgrade: websocket",
            b"connection: upgrade",
            b"via: 1.1 fairlead",
            b"x-correlation-id: ",
        ):
            assert b"\r\n" + line in lowered
        sent = heads[0].lower()
        assert sent.count(b"connection: upgrade\r\n") == sent.count(b"upgrade: websocket\r\n") == 1
        assert b"sec-websocket-key: " + KEY.lower() in sent
        await client.send(b"\x00anything\xff" + INNER)
        assert await client.read_exactly(10 + len(INNER)) == b"\x00anything\xff" + INNER
        (row,) = h.edge.status()["sessions"]
        assert (row["kind"], row["state"], row["backend"]) == ("websocket", "PLAYING", "b0")
        assert row["bytes_in"] >= 10
        await client.stream.send_eof()
        assert await client.read_to_end() == b""
        await h.until_sessions(0)
        assert h.edge._pools.open() == {"b0": 0}
        assert len(heads) == 1
        (line,) = [line for line in h.sink.lines if " http_request " in line]
        assert "status=101" in line
        assert h.rejects == {}
        text = h.observer.metrics.exposition()
        assert 'fairlead_edge_requests_total{listener="front",status_class="1xx"} 1' in text


async def test_bytes_that_come_with_the_handshake_wait_for_the_101() -> None:
    heads: list[bytes] = []
    agreed = trio.Event()

    async def script(peer: Peer) -> None:
        heads.append(await peer.read_head())
        with trio.move_on_after(0.05):
            heads.append(await peer.read_exactly(1))
        agreed.set()
        await peer.send(AGREE + b"first")
        heads.append(await peer.read_exactly(5))

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(ASK + b"early")
        await agreed.wait()
        assert (await client.read_head()).startswith(b"HTTP/1.1 101 ")
        assert await client.read_to_end() == b"first"
        assert heads[1:] == [b"early"]


@pytest.mark.parametrize("status", [b"200 OK", b"403 Forbidden", b"426 Upgrade Required"])
async def test_an_upgrade_that_the_backend_refuses_is_an_exchange_and_nothing_behind_it_passes(
    status: bytes,
) -> None:
    """The published trick: ask for an upgrade that fails, and hope that the proxy opens a tunnel all the same."""
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            heads.append(head)
            await peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno")

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(ASK + INNER)
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (int(status[:3]), b"no", "close")
        assert await client.read_to_end() == b""
        assert len(heads) == 1
        client = await h.connect()
        await client.send(ASK)
        assert "connection" not in (await client.answer()).headers  # nothing came early: it may go on
        assert (await client.get("/next")).body == b"no"
        assert [head.split()[1] for head in heads] == [b"/chat", b"/chat", b"/next"]
        assert h.upstreams[0].accepted == 3  # a connection that was asked to change serves nobody else


def changed(old: bytes, new: bytes) -> bytes:
    assert old in ASK
    return ASK.replace(old, new)


@pytest.mark.parametrize(
    ("raw", "status", "reason"),
    [
        (changed(b"Version: 13", b"Version: 777"), 426, "HTTP_UPGRADE_VERSION_UNSUPPORTED"),
        (changed(b"Sec-WebSocket-Version: 13\r\n", b""), 426, "HTTP_UPGRADE_VERSION_UNSUPPORTED"),
        (
            changed(b"Version: 13", b"Version: 13\r\nSec-WebSocket-Version: 8"),
            426,
            "HTTP_UPGRADE_VERSION_UNSUPPORTED",
        ),
        (changed(KEY, b"short"), 400, "HTTP_UPGRADE_INVALID"),
        (changed(KEY, KEY + b"\r\nSec-WebSocket-Key: " + KEY), 400, "HTTP_UPGRADE_INVALID"),
        (changed(b"Sec-WebSocket-Key: " + KEY + b"\r\n", b""), 400, "HTTP_UPGRADE_INVALID"),
        (changed(b"GET", b"POST"), 400, "HTTP_UPGRADE_INVALID"),
        (changed(b"Host: h\r\n", b"Host: h\r\nContent-Length: 4\r\n") + b"body", 400, "HTTP_UPGRADE_INVALID"),
    ],
)
async def test_a_handshake_with_a_fault_is_refused(raw: bytes, status: int, reason: str) -> None:
    async with running_edge(agreeing([])) as h:
        client = await h.connect()
        await client.send(raw)
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["reason"]) == (status, reason)
        if status == 426:
            assert (answer.headers["sec-websocket-version"], answer.headers["upgrade"]) == ("13", "websocket")
        assert h.upstreams[0].accepted == 0


@pytest.mark.parametrize(
    "raw",
    [
        changed(b"Upgrade: websocket", b"Upgrade: h2c"),
        changed(b"Upgrade: websocket", b"Upgrade: websocket, h2c"),
        changed(b"Upgrade: websocket", b"Upgrade: websocket\r\nUpgrade: h2c"),
        changed(b"Connection: Upgrade", b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQ")
        .replace(b"websocket\r\n", b"h2c\r\n", 1),
        changed(b"Connection: Upgrade", b"Connection: keep-alive"),
        changed(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)  # fmt: skip
async def test_other_upgrades_are_not_passed_on_and_requests_stay_requests(raw: bytes) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            heads.append(head.lower())
            await peer.send(OK)

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(raw)
        assert (await client.answer()).status == 200
        for line in (b"\r\nupgrade:", b"\r\nconnection:", b"http2-settings"):
            assert line not in heads[0]


@pytest.mark.parametrize(
    "answer",
    [
        AGREE.replace(accept_of(KEY), accept_of(b"another")),
        AGREE.replace(b"Sec-WebSocket-Accept", b"X-Accept"),
        AGREE.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        AGREE.replace(b"Connection: Upgrade", b"Connection: close"),
        AGREE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        AGREE.replace(b"Upgrade: websocket", b"Content-Length: 5\r\nUpgrade: websocket"),
    ],
)
async def test_a_101_that_does_not_belong_to_the_handshake_opens_nothing(answer: bytes) -> None:
    async with running_edge(agreeing([], answer)) as h:
        client = await h.connect()
        await client.send(ASK)
        refused = await client.answer()
        assert (refused.status, json.loads(refused.body)["reason"]) == (502, "BACKEND_RESPONSE_MALFORMED")


async def test_a_silent_websocket_ends_and_a_broken_side_resets_the_other() -> None:
    async with running_edge(agreeing([]), limits=EdgeLimits(websocket_idle_timeout_s=0.1)) as h:
        client = await h.connect()
        await client.send(ASK)
        await client.read_head()
        with pytest.raises(trio.BrokenResourceError):
            await client.read_to_end()
        await h.until_sessions(0)
        assert h.rejects == {"RELAY_IDLE_TIMEOUT": 1}

    async def breaks(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(AGREE)
        await peer.read_exactly(1)
        peer.stream.abort()

    async with running_edge(breaks) as h:
        client = await h.connect()
        await client.send(ASK)
        await client.read_head()
        await client.send(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await client.read_to_end()
        await h.until_sessions(0)
        assert h.rejects == {"BACKEND_CLOSED_EARLY": 1}


async def test_a_handshake_on_a_connection_that_died_idle_is_asked_again() -> None:
    async def script(peer: Peer) -> None:
        if b"/chat" in await peer.read_head():
            await peer.send(AGREE)
            await peer.read_to_end()
            return
        await peer.send(OK)
        await peer.read_head()

    async with running_edge(script) as h:
        client = await h.connect()
        await client.get()
        await client.send(ASK)
        assert (await client.read_head()).startswith(b"HTTP/1.1 101 ")
        assert h.upstreams[0].accepted == 2


# -- real libraries on both sides


@contextmanager
def echo_server() -> Iterator[int]:
    def echo(connection: websockets.sync.server.ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with websockets.sync.server.serve(echo, "127.0.0.1", 0, max_size=None, subprotocols=["chat"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


def converse(port: int) -> tuple[str | None, list[object]]:
    """What a client sees: text, fragments, a large binary message, compressed, ping, close."""
    with websockets.sync.client.connect(
        f"ws://127.0.0.1:{port}/chat?x=1", max_size=None, subprotocols=["other", "chat"], open_timeout=5
    ) as client:
        large = bytes(range(256)) * 8_000
        found: list[object] = []
        for message in ("hello", large, ["frag", "ments"]):
            client.send(message)
            found.append(client.recv(5))
        found.append(client.ping().wait(5))
        client.close(1000, "bye")
        found.append(client.close_code)
        assert found[1] == large
        del found[1]
        return client.subprotocol, found


async def through(port: int, call: Callable[[int], object], **config: Any) -> object:
    """`call` against an edge whose only backend is at `port`."""

    async def pass_on(peer: Peer) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)

        async def up() -> None:
            while data := await peer.read_some():
                await stream.send_all(data)
            await stream.send_eof()

        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(up)
            async for data in stream:
                await peer.send(data)
            await peer.stream.send_eof()

    async with running_edge(pass_on, **config) as h:
        found = await trio.to_thread.run_sync(call, h.edge.port("front"))
        await h.until_sessions(0)
        assert h.rejects == {}
        return found


async def test_a_websocket_library_talks_to_another_through_the_edge() -> None:
    with echo_server() as port:
        assert await through(port, converse) == ("chat", ["hello", "fragments", True, 1000])


async def test_a_plain_request_to_a_websocket_server_is_answered() -> None:
    async with running_edge(always_ok) as h:
        with pytest.raises(websockets.exceptions.InvalidStatus, match="200"):
            await trio.to_thread.run_sync(
                lambda port: websockets.sync.client.connect(f"ws://127.0.0.1:{port}/"), h.edge.port("front")
            )


async def test_a_websocket_over_tls(tmp_path: Path) -> None:
    """TLS to the client, plain to the server, and large messages both ways."""
    authority = Authority(tmp_path)
    issued = authority.issue("one", "localhost")
    certificate = Certificate("one", str(issued.chain), str(issued.key), ("localhost",))
    context = authority.trusting()

    def converse_tls(port: int) -> list[object]:
        with websockets.sync.client.connect(
            f"wss://localhost:{port}/", ssl=context, max_size=None, compression=None, subprotocols=["chat"],
            open_timeout=5, sock=socket.create_connection(("127.0.0.1", port)),
        ) as client:  # fmt: skip
            large = bytes(range(256)) * 8_000
            client.send(large)
            client.send("after")
            return [client.recv(5) == large, client.recv(5)]

    with echo_server() as port:
        found = await through(
            port, converse_tls, certificates=(certificate,), listener={"tls": ListenerTls(("one",))},
            tls_files=TlsFiles(reload_interval_s=600, pins_file=str(tmp_path / "pins.json")),
        )  # fmt: skip
    assert found == [True, "after"]


async def test_a_websocket_can_be_cut() -> None:
    """What the drain of a node does when its time is over."""
    async with running_edge(agreeing([])) as h:
        client = await h.connect()
        await client.send(ASK)
        await client.read_head()
        (session,) = h.edge._sessions._live.values()
        assert session.cut is not None
        session.cut(Reject(Reason.NODE_DRAINED, "its node is drained"))
        with pytest.raises(trio.BrokenResourceError):
            await client.read_to_end()
        await h.until_sessions(0)
        assert h.rejects == {"NODE_DRAINED": 1}
        assert h.edge._pools.open() == {"b0": 0}
