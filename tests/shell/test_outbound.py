"""The outbound HTTP client against real sockets: receivers of every kind, names that lie, wrong certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio
from tests.support.receiver import NamedWorld, Received, answering, receiving
from tests.support.tls import certificate

from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.outbound import RESPONSE_BYTES_MAX, Outbound
from fairlead.runtime.posting import OutboundFailed
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import RealWorld

LOCAL = ["127.0.0.1", "hooks.test"]
BODY = b'{"a":1}'


async def post(port: int, world: RealWorld | None = None, path: str = "/hook?x=1", timeout_s: float = 5.0):
    outbound = Outbound(world or RealWorld(), LOCAL)
    return await outbound.post(f"http://127.0.0.1:{port}{path}", [("x-own", "1")], BODY, timeout_s)


async def test_a_receiver_gets_one_whole_post_and_its_answer_comes_back():
    async with receiving(answering(202, "X-Said: yes", "Retry-After: 7", body=b"thanks")) as (receiver,):
        answer = await post(receiver.port)
        assert (answer.status, answer.body, answer.header("retry-after")) == (202, b"thanks", "7")
        (got,) = receiver.requests
        assert (got.method, got.target, got.body) == ("POST", "/hook?x=1", BODY)
        assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
        assert (got.headers["x-own"], got.headers["content-type"]) == ("1", "application/json")


async def test_a_document_is_fetched_under_the_same_rules():
    async with receiving(answering(200, body=b'{"keys":[]}')) as (receiver,):
        outbound = Outbound(RealWorld(), LOCAL)
        url = f"http://127.0.0.1:{receiver.port}/keys?x=1"
        answer = await outbound.get(url, [("accept", "application/json")], 5.0)
        assert (answer.status, answer.body) == (200, b'{"keys":[]}')
        (got,) = receiver.requests
        assert (got.method, got.target, got.body) == ("GET", "/keys?x=1", b"")
        assert (got.headers["accept"], "content-length" in got.headers) == ("application/json", False)
        with pytest.raises(Refused) as refused:
            await Outbound(RealWorld(), []).get(url, [], 5.0)
        assert refused.value.reason is Reason.CALLBACK_ADDRESS_REFUSED
        assert receiver.connections == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with receiving(answering(200)) as (inside,):
        where = f"Location: http://127.0.0.1:{inside.port}/"
        async with receiving(answering(status, where)) as (receiver,):
            assert (await post(receiver.port)).status == status
        assert not inside.connections


async def test_a_huge_answer_is_read_to_its_limit_and_no_further():
    taken = 0

    async def flood(_: Received, stream: ByteStream) -> None:
        nonlocal taken
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 65_536)
            taken += 65_536

    async with receiving(flood) as (receiver,):
        answer = await post(receiver.port)
        assert answer.status == 200
        assert 0 < len(answer.body) <= RESPONSE_BYTES_MAX
    assert taken < 64 * 1024 * 1024


async def test_a_head_without_end_fails():
    async def flood(_: Received, stream: ByteStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send_all(b"x-more: " + b"y" * 8_000 + b"\r\n")

    async with receiving(flood) as (receiver,):
        with pytest.raises(OutboundFailed):
            await post(receiver.port)


async def test_informational_answers_without_end_fail():
    async def chatter(_: Received, stream: ByteStream) -> None:
        while True:
            await stream.send_all(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    async with receiving(chatter) as (receiver,):
        with pytest.raises(OutboundFailed):
            await post(receiver.port)


async def test_a_silent_receiver_is_given_up_at_the_deadline():
    async def silence(_: Received, stream: ByteStream) -> None:
        await trio.sleep_forever()

    async with receiving(silence) as (receiver,):
        with pytest.raises(OutboundFailed, match=r"no answer within 0\.2 s"):
            await post(receiver.port, timeout_s=0.2)


async def test_a_receiver_that_drips_is_given_up_at_the_same_deadline():
    async def drip(_: Received, stream: ByteStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send_all(b"x: y\r\n")
            await trio.sleep(0.02)

    async with receiving(drip) as (receiver,):
        with pytest.raises(OutboundFailed, match="no answer within"):
            await post(receiver.port, timeout_s=0.3)


async def test_a_status_counts_although_its_body_never_ends():
    async def half(_: Received, stream: ByteStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await trio.sleep_forever()

    async with receiving(half) as (receiver,):
        answer = await post(receiver.port, timeout_s=0.3)
        assert (answer.status, answer.body) == (200, b"abc")


async def test_a_status_counts_although_its_body_breaks_off():
    async def reset(_: Received, stream: ByteStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz")
        await trio.sleep(0.05)
        stream.abort()

    async with receiving(reset) as (receiver,):
        assert (await post(receiver.port)).status == 200


@pytest.mark.parametrize(
    "said",
    [b"", b"SMTP ready\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00" * 100, b"HTTP/1.1 200 OK\r\nx y\r\n\r\n"],
)
async def test_a_receiver_that_speaks_no_http_fails(said: bytes) -> None:
    async def other(_: Received, stream: ByteStream) -> None:
        await stream.send_all(said)

    async with receiving(other) as (receiver,):
        with pytest.raises(OutboundFailed):
            await post(receiver.port)


async def test_a_reset_fails():
    async def reset(_: Received, stream: ByteStream) -> None:
        stream.abort()

    async with receiving(reset) as (receiver,):
        with pytest.raises(OutboundFailed):
            await post(receiver.port)


async def test_a_closed_port_fails():
    listener = await RealWorld().listen_tcp("127.0.0.1", 0)
    port = listener.port
    listener.close()
    with pytest.raises(OutboundFailed, match="cannot connect"):
        await post(port)


async def test_a_name_that_does_not_exist_fails():
    with pytest.raises(OutboundFailed, match="cannot connect"):
        await Outbound(RealWorld(), []).post("http://no-such-name.invalid/", [], BODY, 20)


@pytest.mark.parametrize("name", ["localhost.localdomain.test", "rebind.test"])
@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.1.2.3"], ["::1"], ["::ffff:127.0.0.1"], ["169.254.169.254"], ["0.0.0.0"], ["::"],
        ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["fe80::1%lo"], ["100.64.0.1"], ["224.0.0.1"], ["127.0.0.1", "::1"],
    ],
)  # fmt: skip
async def test_a_name_that_leads_inside_is_not_dialled(name: str, addresses: list[str]) -> None:
    async with receiving(answering(200)) as (receiver,):
        world = NamedWorld({name: addresses})
        with pytest.raises(Refused) as caught:
            await Outbound(world, LOCAL).post(f"http://{name}:{receiver.port}/", [], BODY, 5)
        assert caught.value.reason is Reason.CALLBACK_ADDRESS_REFUSED
        assert addresses[0] in caught.value.detail
        assert not world.dialled
        assert not receiver.connections


async def test_a_name_that_changes_its_mind_gains_nothing():
    """The name is asked once, and the answer that was judged is what is dialled."""
    async with receiving(answering(200)) as (receiver,):
        world = NamedWorld({"rebind.test": ["192.168.0.9", "9.9.9.9"]})
        with pytest.raises(OutboundFailed):
            with trio.fail_after(5):
                await Outbound(world, LOCAL).post(f"http://rebind.test:{receiver.port}/", [], BODY, 0.3)
        assert world.asked == ["rebind.test"]
        assert world.dialled == ["9.9.9.9"]
        assert not receiver.connections


async def test_an_allowed_name_may_lead_inside_and_the_next_address_is_tried():
    async with receiving(answering(200)) as (receiver,):
        world = NamedWorld({"hooks.test": ["127.255.255.254", "127.0.0.1"]})
        answer = await Outbound(world, LOCAL).post(f"http://Hooks.Test.:{receiver.port}/", [], BODY, 5)
        assert answer.status == 200
        assert world.dialled == ["127.255.255.254", "127.0.0.1"]
        assert receiver.requests[0].headers["host"] == f"hooks.test:{receiver.port}"


@pytest.mark.parametrize("url", ["http://user@127.0.0.1/", "ftp://127.0.0.1/", "http://127.1/", "/x"])
async def test_what_is_no_url_is_refused_before_anything_is_asked(url: str) -> None:
    world = NamedWorld()
    with pytest.raises(Refused) as caught:
        await Outbound(world, LOCAL).post(url, [], BODY, 5)
    assert caught.value.reason is Reason.CALLBACK_URL_REFUSED
    assert not world.asked


async def test_the_real_resolver_answers_numeric_addresses():
    assert await RealWorld().resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert await RealWorld().resolve("::1", 80) == ["::1"]
    assert "127.0.0.1" in await RealWorld().resolve("localhost", 80)
    with pytest.raises(OSError):
        await RealWorld().resolve("a" * 64 + ".invalid", 80)


# -- TLS


async def serve_tls(context: ssl.SSLContext, listener: trio.SocketListener, seen: list[bytes]) -> None:
    while True:
        stream = trio.SSLStream(await listener.accept(), context, server_side=True, https_compatible=True)
        try:
            data = b""
            while not data.endswith(BODY):
                data += await stream.receive_some(65_536)
            seen.append(data)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (trio.BrokenResourceError, ssl.SSLError):
            pass  # the sender did not believe us
        finally:
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    ("certified", "host", "is_trusted", "works"),
    [
        ("hooks.test", "hooks.test", True, True),
        ("127.0.0.1", "127.0.0.1", True, True),
        ("other.test", "hooks.test", True, False),
        ("hooks.test", "127.0.0.1", True, False),
        ("hooks.test", "hooks.test", False, False),
    ],
)
async def test_tls_is_verified_against_the_name_in_the_url(
    tmp_path: Path, certified: str, host: str, is_trusted: bool, works: bool
) -> None:
    serving, trusting = certificate(tmp_path, certified)
    seen: list[bytes] = []
    world = NamedWorld({"hooks.test": ["127.0.0.1"]})
    outbound = Outbound(world, LOCAL, trusting if is_trusted else None)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(serve_tls, serving, listener, seen)
        url = f"https://{host}:{listener.socket.getsockname()[1]}/hook"
        if works:
            assert (await outbound.post(url, [], BODY, 10)).body == b"ok"
            assert seen[0].startswith(b"POST /hook HTTP/1.1\r\n")
        else:
            with pytest.raises(OutboundFailed, match="TLS"):
                await outbound.post(url, [], BODY, 10)
            assert not seen
        nursery.cancel_scope.cancel()
    await listener.aclose()


async def test_a_receiver_that_never_finishes_the_tls_handshake_is_given_up():
    async def silence(_: Received, stream: ByteStream) -> None:
        await trio.sleep_forever()

    async with receiving(silence) as (receiver,):
        with pytest.raises(OutboundFailed, match="no answer within"):
            await Outbound(RealWorld(), LOCAL).post(f"https://127.0.0.1:{receiver.port}/", [], BODY, 0.3)
