"""What stands before a protocol: PROXY headers from load balancers and from strangers, and the server name of TLS."""

from __future__ import annotations

import ssl
from ipaddress import ip_network
from typing import Any

import pytest
import trio
from tests.support.edge_harness import Harness, Peer, running_edge

from fairlead.protocol.proxy_header import write_v1, write_v2
from fairlead.proxy.edge.settings import EdgeLimits, RouteConfig, RoutingConfig

LOOPBACK = (ip_network("127.0.0.0/8"),)
ELSEWHERE = (ip_network("198.51.100.0/24"),)
CLIENT = ("203.0.113.9", 40_001)
HERE = ("192.0.2.1", 443)
V1, V2 = write_v1(CLIENT, HERE), write_v2(CLIENT, HERE)


async def echo(peer: Peer) -> None:
    while data := await peer.stream.receive_some(65536):
        await peer.send(data)


async def head_echo(peer: Peer) -> None:
    """Answers with the head it got."""
    while head := await peer.read_head():
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


def behind(networks: Any, **more: Any) -> dict[str, Any]:
    return {"listener": {"proxy_protocol_from": networks, **more}}


async def reset(peer: Peer) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await peer.read_to_end()


def session_peer(h: Harness) -> str:
    return next(iter(h.edge._sessions._live.values())).peer


# -- PROXY headers


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("piece_bytes", [1, 1000])
async def test_the_client_is_whom_the_header_names(header: bytes, piece_bytes: int) -> None:
    async with running_edge(echo, kind="tcp", **behind(LOOPBACK)) as h:
        client = await h.connect()
        whole = header + b"hello"
        for start in range(0, len(whole), piece_bytes):
            await client.send(whole[start : start + piece_bytes])
        assert await client.read_exactly(5) == b"hello"
        assert session_peer(h) == CLIENT[0]


async def test_http_forwards_the_address_of_the_header() -> None:
    async with running_edge(head_echo, **behind(LOOPBACK)) as h:
        client = await h.connect()
        await client.send(V2)
        answer = await client.get()
        assert b"x-forwarded-for: 203.0.113.9\r\n" in answer.body.lower()


async def test_a_forwarders_own_connection_has_its_own_address() -> None:
    async with running_edge(echo, kind="tcp", **behind(LOOPBACK)) as h:
        client = await h.connect()
        await client.send(write_v2(None, None, is_local=True) + b"x")
        assert await client.read_exactly(1) == b"x"
        assert session_peer(h) == "127.0.0.1"


@pytest.mark.parametrize(
    "opening", [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1.2.3.4\r\n", V2[:12] + b"\x21\x11\xff\xff"]
)
async def test_a_forwarder_must_send_a_header_that_holds(opening: bytes) -> None:
    async with running_edge(echo, kind="tcp", **behind(LOOPBACK)) as h:
        client = await h.connect()
        await client.send(opening)
        await reset(client)
        assert h.rejects == {"PROXY_HEADER_MALFORMED": 1}
        assert h.upstreams[0].accepted == 0


async def test_http_is_told_why_a_header_was_refused() -> None:
    async with running_edge(head_echo, **behind(LOOPBACK)) as h:
        client = await h.connect()
        answer = await client.get()
        assert answer.status == 400
        assert b"PROXY_HEADER_MALFORMED" in answer.body


async def test_a_forwarder_that_says_nothing_is_let_go() -> None:
    limits = EdgeLimits(http_head_timeout_s=0.1)
    async with running_edge(echo, kind="tcp", limits=limits, **behind(LOOPBACK)) as h:
        client = await h.connect()
        await client.send(V1[:10])
        await reset(client)
        ended = await h.connect()
        await ended.stream.send_eof()
        await reset(ended)
        assert h.rejects == {"PROXY_HEADER_MALFORMED": 2}
        assert h.edge.admission.live == 0


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("more", [{}, {"sni": "prefer"}], ids=["tcp", "sni"])
@pytest.mark.parametrize("cut", [3, 13, 1000])
async def test_a_header_of_a_stranger_is_refused(header: bytes, more: dict[str, Any], cut: int) -> None:
    async with running_edge(echo, kind="tcp", **behind(ELSEWHERE, **more)) as h:
        client = await h.connect()
        await client.send(header[:cut])
        await trio.sleep(0.01)
        try:
            await client.send(header[cut:])
            assert await client.read_to_end() == b""
        except trio.BrokenResourceError:
            pass  # as it should be
        assert h.rejects == {"PROXY_HEADER_UNTRUSTED": 1}


async def test_a_header_of_a_stranger_is_no_request() -> None:
    async with running_edge(head_echo, **behind(ELSEWHERE)) as h:
        client = await h.connect()
        await client.send(V1)
        assert (await client.get()).status == 400
        assert h.upstreams[0].accepted == 0


async def test_strangers_are_served_and_servers_may_speak_first_to_them() -> None:
    async def greeter(peer: Peer) -> None:
        await peer.send(b"220 ready\r\n")
        await echo(peer)

    async with running_edge(greeter, kind="tcp", **behind(ELSEWHERE)) as h:
        client = await h.connect()
        assert await client.read_until(b"\r\n") == b"220 ready\r\n"
        await client.send(b"PRO")
        await trio.sleep(0.01)
        await client.send(b"CEED")
        assert await client.read_exactly(7) == b"PROCEED"


async def test_limits_go_by_the_claimed_address() -> None:
    limits = EdgeLimits(connection_per_ip_max=2)
    more = behind(LOOPBACK)
    async with running_edge(echo, kind="tcp", limits=limits, deny=(ip_network("198.51.100.7"),), **more) as h:
        for number in range(6):  # many clients of one balancer
            client = await h.connect()
            await client.send(write_v2((f"203.0.113.{number}", 1), HERE) + b"x")
            assert await client.read_exactly(1) == b"x"
        await client.send(b"y")
        for address, reason in (
            ("198.51.100.7", "ADDRESS_DENIED"),
            ("::ffff:198.51.100.7", "ADDRESS_DENIED"),
        ):
            denied = await h.connect()
            await denied.send(write_v2((address, 1), ("::1", 1) if ":" in address else HERE))
            await reset(denied)
            assert reason in h.rejects
        for _ in range(2):
            greedy = await _with(h, V2 + b"x")
            assert await greedy.read_exactly(1) == b"x"
        await reset(await _with(h, V2))
        assert h.rejects == {"ADDRESS_DENIED": 2, "CONNECTION_RATE_LIMIT": 1}


async def _with(h: Harness, data: bytes) -> Peer:
    client = await h.connect()
    await client.send(data)
    return client


async def test_places_are_given_back() -> None:
    limits = EdgeLimits(connections_max=2)
    async with running_edge(echo, kind="tcp", limits=limits, **behind(LOOPBACK)) as h:
        for opening in (b"junk that is no header", V1 + b"x", V2 + b"x"):
            client = await h.connect()
            await client.send(opening)
            await client.stream.send_eof()
            try:
                await client.read_to_end()
            except trio.BrokenResourceError:
                pass  # the first
            client.stream.close()
            await h.until_sessions(0)
        assert h.edge.admission.live == 0


# -- the server name


def hello(name: str | None = "b1.example") -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def named(text: bytes) -> Any:
    async def script(peer: Peer) -> None:
        await peer.send(text)
        await echo(peer)

    return script


BY_NAME = RoutingConfig(routes=(RouteConfig("one", host="b1.example", backends=("b1",)),))


@pytest.mark.parametrize("piece_bytes", [1, 7, 5000])
async def test_the_server_name_chooses_the_backend_and_every_byte_arrives(piece_bytes: int) -> None:
    whole = hello("B1.Example") + b"more, encrypted"
    scripts = (named(b"0"), named(b"1"))
    async with running_edge(*scripts, kind="tcp", listener={"sni": "require"}, routing=BY_NAME) as h:
        client = await h.connect()
        for start in range(0, len(whole), piece_bytes):
            await client.send(whole[start : start + piece_bytes])
        assert await client.read_exactly(1 + len(whole)) == b"1" + whole


@pytest.mark.parametrize("name", [None, "other.example"])
async def test_another_name_and_none_go_to_the_default(name: str | None) -> None:
    scripts = (named(b"0"), named(b"1"))
    async with running_edge(*scripts, kind="tcp", listener={"sni": "require"}, routing=BY_NAME) as h:
        assert await (await _with(h, hello(name))).read_exactly(1) == b"0"


async def test_the_name_is_read_behind_a_proxy_header() -> None:
    scripts = (named(b"0"), named(b"1"))
    more = behind(LOOPBACK, sni="require")
    async with running_edge(*scripts, kind="tcp", routing=BY_NAME, **more) as h:
        first = hello()
        client = await _with(h, V1 + first)
        assert await client.read_exactly(1 + len(first)) == b"1" + first
        assert session_peer(h) == CLIENT[0]


async def test_what_is_no_tls_goes_on_or_is_refused_as_configured() -> None:
    async with running_edge(echo, kind="tcp", listener={"sni": "prefer"}) as h:
        client = await _with(h, b"SSH-2.0-x\r\n")
        assert await client.read_exactly(11) == b"SSH-2.0-x\r\n"
    async with running_edge(echo, kind="tcp", listener={"sni": "require"}) as h:
        await reset(await _with(h, b"SSH-2.0-x\r\n"))
        assert h.rejects == {"TLS_HELLO_MALFORMED": 1}
        assert h.upstreams[0].accepted == 0


@pytest.mark.parametrize("mode", ["prefer", "require"])
async def test_a_hello_that_does_not_end_is_refused(mode: str) -> None:
    limits = EdgeLimits(http_head_timeout_s=0.1)
    async with running_edge(echo, kind="tcp", limits=limits, listener={"sni": mode}) as h:
        await reset(await _with(h, hello()[:60]))
        assert h.rejects == {"TLS_HANDSHAKE_TIMEOUT": 1}
        cut = await _with(h, hello()[:60])
        await cut.stream.send_eof()
        await reset(cut)
        await reset(await _with(h, b"\x16\x03\x01\x40\x01" + b"\x01" * 20_000))
        assert h.rejects == {"TLS_HANDSHAKE_TIMEOUT": 1, "TLS_HELLO_MALFORMED": 2}


async def test_where_tls_is_preferred_a_server_may_speak_to_who_says_nothing() -> None:
    limits = EdgeLimits(http_head_timeout_s=0.05)
    async with running_edge(named(b"220 ready"), kind="tcp", limits=limits, listener={"sni": "prefer"}) as h:
        assert await (await h.connect()).read_exactly(9) == b"220 ready"
