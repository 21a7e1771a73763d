"""What TLS adds to the contract of byte streams: handshakes that fail, ends that are none, records that are spoilt."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.support.memory_stream import memory_pair
from tests.support.tls import Authority

from fairlead.runtime.streams import ByteStream
from fairlead.runtime.tls import NeverBegan, TlsStream, client_handshake, server_handshake


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def pair(
    authority: Authority,
    *,
    version: ssl.TLSVersion | None = None,
    strict_end: bool = True,
    window_bytes: int = 65536,
) -> tuple[TlsStream, TlsStream, ByteStream, ByteStream]:
    """A client's and a server's end, and the streams below them."""
    outer, inner = memory_pair(window_bytes=window_bytes)
    asking = authority.trusting()
    if version is not None:
        asking.maximum_version = version
    serving = authority.issue("one", "one.test").serving()
    made: list[TlsStream] = []

    async def serve() -> None:
        made.append(await server_handshake(inner, serving, strict_end=strict_end))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        client = await client_handshake(outer, asking, "one.test")
    return client, made[0], outer, inner


async def failed(
    authority: Authority, asking: ssl.SSLContext, serving: ssl.SSLContext, name: str
) -> tuple[str, str]:
    """What each side says of a handshake that fails: the client, the server."""
    outer, inner = memory_pair()
    told: dict[str, str] = {}

    async def serve() -> None:
        try:
            await server_handshake(inner, serving)
        except trio.BrokenResourceError as error:
            told["server"] = str(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            await client_handshake(outer, asking, name)
        except trio.BrokenResourceError as error:
            told["client"] = str(error)
        outer.close()
    return told["client"], told["server"]


async def test_both_sides_say_why_a_handshake_failed(
    authority: Authority, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    serving = authority.issue("one", "one.test").serving()
    client, server = await failed(authority, authority.trusting(), serving, "two.test")
    assert "not valid for 'two.test'" in client
    assert server == "the peer refused: bad certificate"
    client, server = await failed(authority, Authority(tmp_path, "other").trusting(), serving, "one.test")
    assert "certificate not trusted: " in client
    assert server == "the peer refused: unknown ca"
    old = authority.trusting()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    serving.minimum_version = ssl.TLSVersion.TLSv1_3
    client, server = await failed(authority, old, serving, "one.test")
    assert client == "the peer refused: protocol version"
    assert server == "a version of TLS that is not spoken here"


async def test_a_handshake_takes_no_virtual_time(
    authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing but the stream below is waited for, so that a simulation can run it."""
    began = trio.current_time()
    client, server, *_ = await pair(authority)
    await client.send_all(bytes(50_000))
    got = 0
    while got < 50_000:
        got += len(await server.receive_some(65536))
    assert trio.current_time() == began


async def test_who_never_began_is_told_apart(authority: Authority) -> None:
    outer, inner = memory_pair()
    outer.close()
    with pytest.raises(NeverBegan):
        await server_handshake(inner, authority.issue("one").serving())
    outer, inner = memory_pair()
    await outer.send_all(b"\x16\x03\x01\x00\x10")
    outer.close()
    with pytest.raises(trio.BrokenResourceError, match="in the middle") as caught:
        await server_handshake(inner, authority.issue("one").serving())
    assert not isinstance(caught.value, NeverBegan)


async def test_a_handshake_without_an_end_is_bounded(authority: Authority) -> None:
    outer, inner = memory_pair()
    serving = authority.issue("one").serving()

    async def flood() -> None:
        # Messages of length 0xffff00 in records of 16,000 bytes: OpenSSL itself has a bound too.
        record = b"\x16\x03\x01\x3e\x80" + b"\x01\xff\xff\x00" + bytes(15_996)
        try:
            while True:
                await outer.send_all(record)
        except trio.BrokenResourceError:
            pass

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            with pytest.raises(trio.BrokenResourceError):
                await server_handshake(inner, serving)
            inner.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_an_end_without_close_notify_is_seen(authority: Authority, version: ssl.TLSVersion) -> None:
    client, server, outer, _ = await pair(authority, version=version)
    await client.send_all(b"half")
    await outer.send_eof()
    assert await server.receive_some(10) == b"half"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="without close_notify"):
            await server.receive_some(10)
    client, server, outer, _ = await pair(authority, version=version, strict_end=False)
    await client.send_all(b"half")
    await outer.send_eof()
    assert await server.receive_some(10) == b"half"
    for _ in range(2):
        assert await server.receive_some(10) == b""
    assert not server.ended_cleanly
    await server.send_all(b"it may still be listening")
    client, server, *_ = await pair(authority, version=version)
    await client.send_eof()
    assert await server.receive_some(10) == b""
    assert server.ended_cleanly
    await server.send_all(b"and goes on")
    assert await client.receive_some(100) == b"and goes on"


async def test_a_spoilt_record_is_refused_and_what_came_before_is_whole(authority: Authority) -> None:
    client, server, outer, _ = await pair(authority)
    await client.send_all(b"good")
    await outer.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert await server.receive_some(100) == b"good"
    with pytest.raises(trio.BrokenResourceError, match="bad record mac"):
        await server.receive_some(100)
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError, match="the peer refused: bad record mac"):
        await client.receive_some(100)


async def test_plain_text_in_the_middle_is_refused(authority: Authority) -> None:
    _, server, outer, _ = await pair(authority)
    await outer.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some(100)


async def test_a_send_that_was_given_up_leaves_no_stream_that_can_be_used(authority: Authority) -> None:
    client, *_ = await pair(authority, window_bytes=4096)
    with trio.move_on_after(0.02):
        await client.send_all(bytes(100_000))
    with pytest.raises(trio.BrokenResourceError, match="given up in the middle"):
        await client.send_all(b"x")


async def test_what_waits_is_bounded_and_counted_one_byte_short(authority: Authority) -> None:
    client, server, *_ = await pair(authority, window_bytes=1024)
    data = bytes(range(256)) * 1000
    taken = client.send_nowait(data)
    assert taken == 64 * 1024 - 1
    assert client.send_nowait(data[taken:]) == 0, "nothing more before that has gone"
    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, data[taken:])
        while len(got) < len(data):
            got += await server.receive_some(65536)
    assert got == data


async def test_reading_goes_on_while_a_send_waits(authority: Authority) -> None:
    client, server, *_ = await pair(authority, window_bytes=2048)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(200_000))  # nobody reads it
        await trio.sleep(0.01)
        for _ in range(20):
            await server.send_all(b"y" * 1000)
            got = 0
            while got < 1000:
                got += len(await client.receive_some(65536))
        nursery.cancel_scope.cancel()


async def test_a_change_of_keys_is_answered_between_other_bytes(authority: Authority, tmp_path: Path) -> None:
    """openssl s_client changes its keys on `K` and asks for ours: the answer must not mix with what is being sent."""
    from fairlead.runtime.world import RealWorld

    serving = authority.issue("one", "one.test").serving()
    listener = await RealWorld().listen_tcp("127.0.0.1", 0)
    got = bytearray()
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{listener.port}", "-CAfile",
                 str(authority.file)],
                stdin=-1, capture_stdout=True, capture_stderr=True, check=False, task_status=task_status,
            )
        )  # fmt: skip
        server = await server_handshake(await listener.accept(), serving)
        for line in (b"one\n", b"K\n", b"two\n", b"K\n", b"three\n"):
            await process.stdin.send_all(line)
            await server.send_all(bytes(3_000))
            await trio.sleep(0.05)
        while not got.endswith(b"three\n"):
            got += await server.receive_some(1000)
        assert bytes(got) == b"one\ntwo\nthree\n"
        server.close()
        listener.close()
        await process.stdin.aclose()
        nursery.cancel_scope.cancel()


async def test_tickets_that_nobody_reads_hold_up_no_handshake(authority: Authority) -> None:
    """Found by random windows: a server waited for its session tickets to go, and its client for the server."""
    with trio.fail_after(2):
        client, server, *_ = await pair(authority, window_bytes=50)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send_all, b"they stand before what is sent next")
            got = b""
            while len(got) < 35:
                got += await client.receive_some(100)
    assert got == b"they stand before what is sent next"


@pytest.mark.parametrize("seed", range(24))
async def test_whatever_is_sent_however_arrives_as_it_was(authority: Authority, seed: int) -> None:
    draw = random.Random(seed)
    version = draw.choice([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    window_bytes = draw.choice([50, 5_000, 65_536])
    client, server, *_ = await pair(authority, version=version, window_bytes=window_bytes)
    total = draw.choice([1, 3_000, 150_000] if window_bytes > 50 else [1, 3_000])
    payloads = [draw.randbytes(total) for _ in range(2)]

    async def send(stream: TlsStream, payload: bytes) -> None:
        at = 0
        while at < len(payload):
            piece = payload[at : at + draw.choice([1, 7, 1_000, 16_384, 70_000])]
            if draw.random() < 0.5:
                at += stream.send_nowait(piece)
                await trio.lowlevel.checkpoint()
            else:
                await stream.send_all(piece)
                at += len(piece)
        await stream.flush()
        await stream.send_eof()

    async def read(stream: TlsStream, payload: bytes) -> None:
        got = bytearray()
        while data := await stream.receive_some(
            draw.choice([1, 100, 16_384, 100_000]) if total < 5_000 else 50_000
        ):
            got += data
            with trio.move_on_after(0 if draw.random() < 0.2 else 1) as scope:
                if scope.deadline <= trio.current_time():
                    got += await stream.receive_some(10)
        assert got == payload
        assert stream.ended_cleanly

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for source, target, payload in zip((client, server), (server, client), payloads, strict=True):
                nursery.start_soon(send, source, payload)
                nursery.start_soon(read, target, payload)


async def test_an_abort_sends_no_close_notify(authority: Authority) -> None:
    client, server, *_ = await pair(authority)
    await client.send_all(b"x")
    assert await server.receive_some(1) == b"x"
    client.abort()
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some(1)
    assert not server.ended_cleanly
