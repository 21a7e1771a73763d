"""Every published trick against a real listener, and what a backend that reads strictly got of it."""

from __future__ import annotations

import json

import h11
import pytest
import trio
from tests.attacks.http_smuggling import REPLIES, REQUESTS, SMUGGLED, Read, Reply, Trick
from tests.support.edge_harness import OK, Peer, running_edge

from fairlead.protocol.reasons import Reason, traits


class Victim:
    """A backend that takes what it can read for requests, answers each, and remembers all of it."""

    def __init__(self) -> None:
        self.requests: list[Read] = []
        self.begun: list[Read] = []
        self.raw = b""

    async def __call__(self, peer: Peer) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        request, body = None, b""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return  # It was cut off.
            if event is h11.NEED_DATA:
                data = await peer.stream.receive_some(65536)
                self.raw += data
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                request, body = event, b""
                self.begun.append((event.method, event.target, b""))
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                self.requests.append((request.method, request.target, body))
                await peer.send(OK if request.method != b"HEAD" else OK[:-2])
                connection.send(h11.Response(status_code=200, headers=[("content-length", "2")]))
                if request.method != b"HEAD":
                    connection.send(h11.Data(data=b"ok"))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
            else:
                return


# Where the request is refused and its end is beyond doubt, the connection may go on.
GOES_ON = {Reason.HTTP_METHOD_UNSUPPORTED, Reason.HTTP_MISDIRECTED, Reason.HTTP_LOOP}


FORWARDED = [
    pytest.param(trick, id=f"{table}: {trick.name}")
    for table, tricks in REQUESTS.items()
    for trick in tricks
    if trick.reason is None
]


def refused(table: str) -> list[tuple[Trick, Reason]]:
    return [(trick, trick.reason) for trick in REQUESTS[table] if trick.reason is not None]


def cut_at(raw: bytes) -> int:
    """Where a head ends; somewhere in its middle where it does not."""
    return raw.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in raw else len(raw) // 2


async def settled(victim: Victim, count: int) -> None:
    """Until the backend had its requests, and a moment in which it could have had more."""
    with trio.move_on_after(2):
        while len(victim.requests) < count:
            await trio.sleep(0.002)
    await trio.sleep(0.01)


@pytest.mark.parametrize("table", REQUESTS)
async def test_what_is_refused_reaches_nobody(table: str) -> None:
    victim = Victim()
    async with running_edge(victim) as h:
        for trick, reason in refused(table):
            before = h.rejects.get(reason, 0)
            client = await h.connect()
            await client.send(trick.raw)
            answer = await client.answer()
            found = (answer.status, json.loads(answer.body)["reason"])
            assert found == (traits(reason).status, reason), trick.name
            assert h.rejects.get(reason, 0) == before + 1, trick.name
            if reason not in GOES_ON:
                assert answer.headers["connection"].endswith("close"), trick.name
                assert await client.read_to_end() == b"", trick.name
            client.stream.close()
            assert (victim.raw, h.upstreams[0].accepted) == (b"", 0), trick.name
        await settled(victim, 0)
        assert (victim.raw, h.upstreams[0].accepted) == (b"", 0)


@pytest.mark.parametrize("table", REQUESTS)
async def test_in_two_pieces_no_request_of_it_is_ever_whole(table: str) -> None:
    """The head alone first: it may go on, but then its body must become nothing at all."""
    victim = Victim()
    async with running_edge(victim) as h:
        for trick, reason in refused(table):
            client = await h.connect()
            cut = cut_at(trick.raw)
            await client.send(trick.raw[:cut])
            await trio.sleep(0.002)
            try:
                await client.send(trick.raw[cut:])
                if reason not in GOES_ON:
                    await client.read_to_end()
            except trio.BrokenResourceError:
                pass  # It was refused already, and our rest found nobody.
            client.stream.close()
            assert victim.requests == [], trick.name
            assert all(target != b"/smuggled" for _, target, _ in victim.begun), trick.name
        await settled(victim, 0)
        assert victim.requests == []
        assert all(target != b"/smuggled" for _, target, _ in victim.begun)


@pytest.mark.parametrize("trick", FORWARDED)
async def test_what_goes_on_is_read_in_one_way(trick: Trick) -> None:
    for pieces in (1,) if trick.whole_only else (1, 2):
        victim = Victim()
        async with running_edge(victim) as h:
            client = await h.connect()
            cut = cut_at(trick.raw) if pieces == 2 else len(trick.raw)
            await client.send(trick.raw[:cut])
            if pieces == 2:
                await trio.sleep(0.005)
            try:
                await client.send(trick.raw[cut:])
            except trio.BrokenResourceError:
                pass  # The first request was the connection's last.
            await settled(victim, len(trick.reads))
            assert victim.requests == list(trick.reads)
            assert h.rejects == {}


@pytest.mark.parametrize("reply", [pytest.param(each, id=each.name) for each in REPLIES])
async def test_no_client_gets_another_answer_than_its_own(reply: Reply) -> None:
    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            if b"/attack" in head:
                await peer.send(reply.raw)
                if reply.then:
                    await trio.sleep(0.005)
                    await peer.send(reply.then)
            else:
                path = head.split()[1]
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(reply.method + b" /attack HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await client.answer(reply.method.decode())
        while answer.status < 200:
            answer = await client.answer(reply.method.decode())
        assert answer.status == reply.status
        if reply.status == 502:
            assert json.loads(answer.body)["reason"] == "BACKEND_RESPONSE_MALFORMED"
        else:
            assert answer.body == reply.body
        if reply.then:
            await trio.sleep(0.01)
        for asker in (client, await h.connect(), await h.connect()):
            found = await asker.get("/mine")
            assert (found.status, found.body) == (200, b"/mine")
        assert set(h.rejects) <= {"BACKEND_RESPONSE_MALFORMED"}


def test_every_name_is_one_trick() -> None:
    for rows in (*REQUESTS.values(), REPLIES):
        assert len({each.name for each in rows}) == len(rows)
        assert all(each.origin for each in rows)
    assert all(
        SMUGGLED not in each.raw or each.reason or each.reads for rows in REQUESTS.values() for each in rows
    )
