"""A node's HTTP gate: each request on a proven connection is looked at, and shown to the server with its client."""

from __future__ import annotations

import pytest
import trio
from tests.shell.test_gate import is_reset
from tests.support.edge_harness import OK, Peer
from tests.support.gate_harness import CLIENT, running_gate

from fairlead.protocol.proxy_header import write_v2


class Recorder:
    """A server that keeps the heads and bodies it is sent, and answers each."""

    def __init__(self, answer: bytes = OK) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self._answer = answer

    async def __call__(self, peer: Peer) -> None:
        while head := await peer.read_head():
            self.heads.append(head)
            if b"chunked" in head:
                self.bodies.append(await peer.read_chunked())
            elif b"Content-Length: " in head:
                length = head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]
                self.bodies.append(await peer.read_exactly(int(length)))
            await peer.send(self._answer)

    def lines(self, number: int = -1) -> set[bytes]:
        return set(self.heads[number][:-4].split(b"\r\n")[1:])


async def test_requests_of_many_clients_pass_on_one_connection() -> None:
    server = Recorder()
    async with running_gate(server, "http") as h:
        requests = await h.proven_http()
        for host in ("192.0.2.7", "2001:db8::1", "192.0.2.7"):
            await requests.peer.send(
                requests.head("/a?b", "Accept: */*\r\nConnection: keep-alive\r\n", host=host)
            )
            assert (await requests.peer.answer()).status == 200
            assert server.heads[-1].startswith(b"GET /a?b HTTP/1.1\r\nHost: h\r\n")
            assert server.lines() == {
                b"Host: h", b"Accept: */*", b"Connection: keep-alive", b"x-forwarded-for: 192.0.2.7",
                b"x-forwarded-proto: http", b"x-real-ip: " + host.encode(),
            }  # fmt: skip
        assert h.server.accepted == 1
        requests.peer.stream.close()
        await h.until_live(0)
        assert 'fairlead_gate_requests_total{gate="g"} 3' in h.observer.metrics.exposition()
        assert h.rejects == {}


async def test_bodies_pass_as_they_come() -> None:
    server = Recorder()
    async with running_gate(server, "http") as h:
        requests = await h.proven_http()
        peer = requests.peer
        await peer.send(requests.head("/", "Content-Length: 5\r\n", "POST") + b"he")
        await trio.sleep(0.01)
        await peer.send(b"llo")
        assert (await peer.answer()).status == 200
        await peer.send(requests.head("/", "Transfer-Encoding: chunked\r\n", "POST"))
        for piece in (b"3\r\nab", b"c\r\n", b"1\r\nd\r\n0\r\n", b"\r\n"):
            await peer.send(piece)
            await trio.sleep(0.002)
        assert (await peer.answer()).status == 200
        await peer.send(requests.head())
        assert (await peer.answer()).status == 200
        assert server.bodies == [b"hello", b"abcd"]


async def test_a_big_upload_is_held_back_by_a_slow_server() -> None:
    go = trio.Event()

    async def slow(peer: Peer) -> None:
        await peer.read_head()
        await go.wait()
        await peer.read_exactly(32_000_000)
        await peer.send(OK)

    async with running_gate(slow, "http") as h:
        requests = await h.proven_http()
        await requests.peer.send(requests.head("/", "Content-Length: 32000000\r\n", "POST"))
        sent = 0
        with trio.move_on_after(0.5):
            while sent < 32_000_000:
                await requests.peer.send(bytes(100_000))
                sent += 100_000
        assert sent < 32_000_000
        go.set()
        # The piece that was under way may have gone in part: what the server gets is counted from its end.
        requests.peer.stream.abort()
        await h.until_live(0)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        (b"GET /", b"GET /admin", "BAD_MAC"),
        (b"GET", b"PUT", "BAD_MAC"),
        (b"x-forwarded-for: 192.0.2.7", b"x-forwarded-for: 10.0.0.1", "BAD_MAC"),
        (b"-proto: http\r\n", b"-proto: http\r\nx-real-ip: 1.1.1.1\r\n", "BAD_MAC"),
        (b" s-1 ", b" s-2 ", "BAD_MAC"),
        (b"x-fairlead-client", b"x-fairlead-clients", "MISSING"),
        (b"x-fairlead-client: ", b"x-fairlead-client: v1 x\r\nx-fairlead-client: ", "MALFORMED"),
    ],
)
async def test_a_request_that_does_not_hold_ends_the_connection(old: bytes, new: bytes, cause: str) -> None:
    server = Recorder()
    async with running_gate(server, "http") as h:
        requests = await h.proven_http()
        await requests.peer.send(requests.head())
        assert (await requests.peer.answer()).status == 200
        await requests.peer.send(requests.head().replace(old, new, 1))
        assert await is_reset(requests.peer)
        await h.until_rejected(**{cause: 1})
        assert len(server.heads) == 1


async def test_a_request_is_not_repeated_and_none_left_out() -> None:
    async with running_gate(Recorder(), "http") as h:
        for repeat in (True, False):
            requests = await h.proven_http()
            first = requests.head()
            await requests.peer.send(first)
            assert (await requests.peer.answer()).status == 200
            requests.head()
            await requests.peer.send(first if repeat else requests.head())
            assert await is_reset(requests.peer)
        await h.until_rejected(REPLAYED=2)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "HTTP_FRAMING_AMBIGUOUS"),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", "HTTP_FRAMING_AMBIGUOUS"),
        ("A: b\r\n folded\r\n", "HTTP_FRAMING_AMBIGUOUS"),
        ("A : b\r\n", "HTTP_HEAD_MALFORMED"),
    ],
)
async def test_framing_is_beyond_doubt_or_nothing_passes(extra: str, reason: str) -> None:
    server = Recorder()
    async with running_gate(server, "http") as h:
        requests = await h.proven_http()
        await requests.peer.send(requests.head("/", extra, "POST"))
        assert await is_reset(requests.peer)
        await h.until_live(0)
        assert h.rejects == {reason: 1}
        assert server.heads == []


async def test_a_body_is_no_place_for_a_request_without_proof() -> None:
    server = Recorder()
    async with running_gate(server, "http") as h:
        requests = await h.proven_http()
        smuggled = b"GET /admin HTTP/1.1\r\nHost: h\r\n\r\n"
        await requests.peer.send(requests.head("/", "Content-Length: 2\r\n", "POST") + b"ab" + smuggled)
        await h.until_rejected(MISSING=1)
        await h.until_live(0)
        assert len(server.heads) <= 1


async def test_what_speaks_of_the_proxy_or_in_another_spelling_is_taken_out() -> None:
    server = Recorder()
    async with running_gate(server, "http") as h:
        requests = await h.proven_http()
        extra = "x-fairlead-other: 1\r\nX_Forwarded_For: 1.1.1.1\r\nx_plain: 2\r\n"
        await requests.peer.send(requests.head("/", extra))
        assert (await requests.peer.answer()).status == 200
        assert {line.split(b":")[0].lower() for line in server.lines()} == {
            b"host", b"x_plain", b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip",
        }  # fmt: skip


UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\n"


async def test_after_the_servers_101_bytes_pass_unread() -> None:
    async def server(peer: Peer) -> None:
        head = await peer.read_head()
        assert b"\r\nUpgrade: websocket\r\n" in head
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Switching ")
        await trio.sleep(0.01)
        await peer.send(b"Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi")
        while data := await peer.stream.receive_some(65536):
            await peer.send(data[::-1])

    async with running_gate(server, "http") as h:
        requests = await h.proven_http()
        await requests.peer.send(requests.head("/chat", UPGRADE) + b"\x82\x01\n\n")
        assert (await requests.peer.read_until(b"\x81\x02hi")).startswith(b"HTTP/1.1 103 Early Hints")
        assert await requests.peer.read_exactly(4) == b"\n\n\x01\x82"
        assert h.rejects == {}


async def test_a_server_that_does_not_switch_gets_requests_as_before() -> None:
    server = Recorder()
    async with running_gate(server, "http") as h:
        requests = await h.proven_http()
        await requests.peer.send(requests.head("/chat", UPGRADE) + b"GET /admin HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await requests.peer.answer()
        assert answer.status == 200
        await h.until_rejected(MISSING=1)  # what was meant for the other protocol is a request without proof
        assert len(server.heads) == 1


async def test_nobody_asks_to_switch_behind_a_request_without_an_answer() -> None:
    async def silent(peer: Peer) -> None:
        await peer.read_to_end()

    async with running_gate(silent, "http") as h:
        requests = await h.proven_http()
        await requests.peer.send(requests.head() + requests.head("/chat", UPGRADE))
        assert await is_reset(requests.peer)
        await h.until_rejected(MALFORMED=1)


async def test_a_server_that_closes_instead_of_switching_ends_the_connection() -> None:
    async def closes(peer: Peer) -> None:
        await peer.read_head()

    async with running_gate(closes, "http") as h:
        requests = await h.proven_http()
        await requests.peer.send(requests.head("/chat", UPGRADE))
        assert await requests.peer.read_to_end() == b""
        requests.peer.stream.close()
        await h.until_live(0)


async def test_what_is_quiet_between_requests_would_not_be_missed() -> None:
    async with running_gate(Recorder(), "http") as h:
        requests = await h.proven_http()
        await requests.peer.send(requests.head())
        assert (await requests.peer.answer()).status == 200
        assert h.gate.is_busy
        while h.gate.is_busy:
            await trio.sleep(0.05)
        await requests.peer.send(requests.head("/", "Content-Length: 5\r\n", "POST"))
        while not h.gate.is_busy:
            await trio.sleep(0.002)


async def test_in_development_requests_without_proof_are_the_callers_own() -> None:
    server = Recorder()
    async with running_gate(server, "http", enforce=False) as h:
        claims = b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\n\r\n"
        for before, host in ((b"", b"127.0.0.1"), (write_v2(CLIENT, ("10.0.0.1", 80)), b"192.0.2.7")):
            peer = await h.connect()
            await peer.send(before + claims)
            assert (await peer.answer()).status == 200
            assert server.lines() == {b"Host: h", b"x-forwarded-for: " + host, b"x-real-ip: " + host}
