"""A node's gate before a scripted server: what gets through, and everything that does not."""

from __future__ import annotations

import pytest
import trio
from tests.support.edge_harness import Peer
from tests.support.gate_harness import CLIENT, TARGET, GateHarness, node_key, running_gate

from fairlead.protocol.proof import NO_BOOT, ProofKind
from fairlead.protocol.proxy_header import UNIQUE_ID, parse, write_v1, write_v2


async def echo(peer: Peer) -> None:
    while data := await peer.stream.receive_some(65536):
        await peer.send(data)
    await peer.send(b" bye")


async def is_reset(peer: Peer) -> bool:
    """Refused without a word."""
    try:
        return await peer.read_to_end() == b"never"
    except trio.BrokenResourceError:
        return True


async def opened(h: GateHarness, *sent: bytes) -> Peer:
    peer = await h.connect()
    for each in sent:
        await peer.send(each)
    return peer


async def test_the_proxy_gets_through_with_half_close_both_ways() -> None:
    async with running_gate(echo) as h:
        peer = await h.proven()
        await peer.send(b"hello")
        assert await peer.read_exactly(5) == b"hello"
        assert (h.row["live"], h.row["accepted"], h.row["rejected"]) == (1, 1, {})
        await peer.stream.send_eof()
        assert await peer.read_to_end() == b" bye"
        await h.until_live(0)
        assert h.rejects == {}
        text = h.observer.metrics.exposition()
        assert 'fairlead_gate_accepted_total{gate="g"} 1' in text
        assert 'fairlead_gate_rejected_total{gate="g",cause="REPLAYED"} 0' in text


async def test_bytes_behind_the_header_and_a_header_in_pieces() -> None:
    async with running_gate(echo) as h:
        peer = await h.connect()
        raw = h.header()
        for piece in (raw[:1], raw[1:20], raw[20:-1], raw[-1:] + b"first"):
            await peer.send(piece)
            await trio.sleep(0.005)
        assert await peer.read_exactly(5) == b"first"


async def test_the_server_may_be_told_the_client_and_never_the_token() -> None:
    seen: list[bytes] = []

    async def server(peer: Peer) -> None:
        seen.append(await peer.read_until(b"hello"))
        await peer.send(b"x")

    async with running_gate(server, forward="proxy_v2") as h:
        peer = await h.proven()
        await peer.send(b"hello")
        assert await peer.read_exactly(1) == b"x"
        found = parse(seen[0])
        assert isinstance(found, tuple)
        header, size = found
        assert seen[0][size:] == b"hello"
        assert (header.source, header.target, header.tlvs) == (CLIENT, TARGET, ((UNIQUE_ID, b"s-1"),))
        check = await h.proven(kind=ProofKind.CHECK)
        await check.send(b"hello")
        assert await check.read_exactly(1) == b"x"
        assert seen[1] == write_v2(None, None, is_local=True) + b"hello"


STRANGERS = {
    "another protocol": (b"\x10\x00\x00\x00hello", {"MISSING": 1}),
    "version 1": (write_v1(CLIENT, TARGET), {"MISSING": 1}),
    "no token": (write_v2(CLIENT, TARGET), {"MISSING": 1}),
    "a broken header": (b"PROXY TCP4 nonsense\r\n", {"MALFORMED": 1}),
    "a header too long": (write_v2(None, None)[:14] + b"\xff\xff", {"MALFORMED": 1}),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_strangers_reach_nothing(name: str) -> None:
    sent, counted = STRANGERS[name]
    async with running_gate(echo) as h:
        peer = await h.connect()
        await peer.send(sent)
        assert await is_reset(peer)
        await h.until_rejected(**counted)
        assert h.server.accepted == 0
        assert h.rejects == {"PROXY_TOKEN_REJECTED": 1}


async def test_a_plain_http_client_is_told() -> None:
    async with running_gate(echo, "http") as h:
        peer = await h.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await peer.answer()
        assert answer.status == 401
        assert b"PROXY_TOKEN_REJECTED" in answer.body
        assert h.row["rejected"] == {"MISSING": 1}
        assert h.server.accepted == 0


async def test_who_says_nothing_is_ended_in_time() -> None:
    async with running_gate(echo, handshake_timeout_s=0.05) as h:
        silent, slow = await h.connect(), await opened(h, b"PROXY TCP4 ")
        assert await is_reset(silent)
        assert await is_reset(slow)
        await h.until_rejected(MISSING=2)


async def test_who_is_silent_for_longest_makes_way() -> None:
    async with running_gate(echo, handshake_concurrent_max=2) as h:
        silent = []
        for count in (1, 2, 2):
            silent.append(await h.connect())
            while h.gate.status()["unproven"] != count:
                await trio.sleep(0.002)
        assert await is_reset(silent[0])
        peer = await h.proven()
        await peer.send(b"in between")
        assert await peer.read_exactly(10) == b"in between"
        assert await is_reset(silent[1])
        await silent[2].send(h.header() + b"late")  # nobody needed its place
        assert await silent[2].read_exactly(4) == b"late"
        await h.until_rejected(MISSING=2)


async def test_a_look_at_the_port_is_no_refusal() -> None:
    async with running_gate(echo) as h:
        peer = await h.connect()
        peer.stream.close()
        half = await h.connect()
        await half.send(b"PROXY ")
        await half.stream.send_eof()
        assert await is_reset(half)
        await h.until_rejected(MISSING=1)


async def test_replayed_stretched_swapped() -> None:
    async with running_gate(echo) as h:
        raw = h.header()
        first, again = await h.connect(), await h.connect()
        await first.send(raw + b"x")
        assert await first.read_exactly(1) == b"x"
        await again.send(raw)
        assert await is_reset(again)
        await h.until_rejected(REPLAYED=1)
        for given, cause in (
            ({"node_id": "lobby-2", "key": node_key("lobby-2")}, "WRONG_NODE"),
            ({"key": node_key("lobby-2")}, "UNKNOWN_KEY"),
            ({"issued_at_ms": h.world.wall_ms() - 3_600_000, "ttl_ms": 7_200_000}, "EXPIRED"),
            ({"issued_at_ms": h.world.wall_ms() + 3_600_000}, "NOT_YET_VALID"),
            ({"kind": ProofKind.HTTP}, "WRONG_KIND"),
        ):
            before = dict(h.row["rejected"])
            peer = await h.proven(**given)
            assert await is_reset(peer)
            await h.until_rejected(**before, **{cause: 1})
        stretched = h.header()
        peer = await h.connect()
        await peer.send(stretched[:-40] + b"\xff" + stretched[-39:])
        assert await is_reset(peer)
        assert h.row["rejected"]["BAD_MAC"] == 1
        assert h.server.accepted == 1


async def test_a_full_memory_refuses() -> None:
    async with running_gate(echo, nonces_max=16) as h:
        for _ in range(16):
            peer = await h.proven()
            await peer.send(b"x")
            assert await peer.read_exactly(1) == b"x"
            peer.stream.close()
        assert await is_reset(await h.proven())
        assert h.row["rejected"] == {"FULL": 1}


async def test_after_a_restart_only_what_was_made_for_it_is_believed() -> None:
    async with running_gate(echo, started_ms_ago=0) as h:
        for boot in (NO_BOOT, b"before!!"):
            assert await is_reset(await h.proven(boot=boot))
        await h.until_rejected(CANNOT_JUDGE=2)
        peer = await h.proven()
        await peer.send(b"x")
        assert await peer.read_exactly(1) == b"x"


async def test_both_keys_of_a_rotation_are_believed() -> None:
    new = node_key(secret=bytes(32))
    async with running_gate(echo) as h:
        assert await is_reset(await h.proven(key=new))
        h.gate.rekey([new], h.world.wall_ms())
        for key in (new, node_key()):
            peer = await h.proven(key=key)
            await peer.send(b"x")
            assert await peer.read_exactly(1) == b"x"


async def test_a_server_that_is_not_there() -> None:
    async with running_gate(None) as h:
        assert await is_reset(await h.proven())
        assert h.rejects == {"BACKEND_UNREACHABLE": 1}


async def test_a_server_that_resets_resets_the_proxy() -> None:
    async def rude(peer: Peer) -> None:
        await peer.read_exactly(1)
        peer.stream.abort()

    async with running_gate(rude) as h:
        peer = await h.proven()
        await peer.send(b"x")
        assert await is_reset(peer)
        await h.until_live(0)


async def test_in_development_what_has_no_token_passes_and_what_has_a_bad_one_does_not() -> None:
    async with running_gate(echo, enforce=False) as h:
        for sent in (
            b"x",
            write_v2(CLIENT, TARGET) + b"x",
            write_v1(CLIENT, TARGET) + b"x",
            h.header() + b"x",
        ):
            peer = await opened(h, sent)
            assert await peer.read_exactly(1) == b"x"
        assert await is_reset(await opened(h, b"PROXY nonsense\r\nx"))
        assert await is_reset(await opened(h, h.header(key=node_key("lobby-2")) + b"x"))
        await h.until_rejected(MALFORMED=1, UNKNOWN_KEY=1)


async def test_a_gate_that_stops_resets_who_is_cut_off() -> None:
    seen: list[bool] = []

    async def server(peer: Peer) -> None:
        await peer.send(b"half of it")
        seen.append(await is_reset(peer))

    async with running_gate(server) as h:
        peer = await h.proven()
        assert await peer.read_exactly(10) == b"half of it"
        assert h.gate.is_busy
        h.scope.cancel()
        assert await is_reset(peer)
        while not seen:
            await trio.sleep(0.002)
        assert seen == [True]
