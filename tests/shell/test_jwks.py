"""The issuer's keys over real TLS: fetched, kept, rotated, lost, and never waited for longer than it takes."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.support.issuer import issuer_key, key_set
from tests.support.receiver import NamedWorld
from tests.support.tls import certificate

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.guard.jwks import UNKNOWN_KEY_EVERY_S, Jwks
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.outbound import Outbound
from fairlead.runtime.posting import Answer, OutboundFailed

ALL = ("RS256", "ES256", "EdDSA")
FIRST, SECOND = issuer_key("EdDSA", "first"), issuer_key("ES256", "second")


def observer() -> Observer:
    return Observer(Log(ListSink(), lambda: 0, "test"), Metrics(), lambda: 0)


@dataclass
class Published:
    """What the issuer answers, and what it was asked."""

    body: bytes
    status: int = 200
    requests: list[bytes] = field(default_factory=list)


async def serve(context: ssl.SSLContext, listener: trio.SocketListener, published: Published) -> None:
    async def one(stream: trio.SocketStream) -> None:
        async with trio.SSLStream(stream, context, server_side=True, https_compatible=True) as secured:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    more = await secured.receive_some()
                    if not more:
                        return
                    request += more
                published.requests.append(request)
                head = f"HTTP/1.1 {published.status} X\r\nContent-Length: {len(published.body)}\r\n\r\n"
                await secured.send_all(head.encode() + published.body)
            except trio.BrokenResourceError:
                pass  # a caller who does not trust the certificate

    await trio.serve_listeners(one, [listener])


@asynccontextmanager
async def issuing(
    folder: Path, published: Published, name: str = "issuer.test"
) -> AsyncIterator[tuple[str, Any]]:
    """A URL, and a context that trusts the issuer's certificate."""
    serving, trusting = certificate(folder, name)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(serve, serving, listener, published)
        yield f"https://issuer.test:{listener.socket.getsockname()[1]}/keys?tenant=1", trusting
        nursery.cancel_scope.cancel()


def jwks(url: str, trusting: ssl.SSLContext | None, host: str = "issuer.test") -> Jwks:
    outbound = Outbound(NamedWorld({"issuer.test": ["127.0.0.1"]}), [host], trusting)
    return Jwks(observer(), outbound.get, url, ALL, 300, 3_600)


async def test_keys_are_fetched_over_tls_and_kept(tmp_path: Path) -> None:
    published = Published(key_set(FIRST, SECOND))
    async with issuing(tmp_path, published) as (url, trusting), trio.open_nursery() as nursery:
        held = jwks(url, trusting)
        nursery.start_soon(held.run)
        for each in (FIRST, SECOND, FIRST):
            assert (await held.key(each.alg, each.kid)).key_id == each.kid
        assert len(published.requests) == 1
        assert published.requests[0].startswith(b"GET /keys?tenant=1 HTTP/1.1\r\n")
        assert [each["kid"] for each in held.status()["keys"]] == ["first", "second"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("certified", "is_trusted", "host"), [
    ("other.test", True, "issuer.test"), ("issuer.test", False, "issuer.test"), ("issuer.test", True, "else.test"),
])  # fmt: skip
async def test_an_issuer_that_is_not_who_it_must_be_gives_no_keys(
    tmp_path: Path, certified: str, is_trusted: bool, host: str
) -> None:
    """A certificate of another name, of an unknown authority; and an inner address that was not configured."""
    published = Published(key_set(FIRST))
    async with issuing(tmp_path, published, certified) as (url, trusting), trio.open_nursery() as nursery:
        held = jwks(url, trusting if is_trusted else None, host)
        nursery.start_soon(held.run)
        with pytest.raises(Refused) as refused:
            await held.key(FIRST.alg, FIRST.kid)
        assert refused.value.reason is Reason.JWKS_UNAVAILABLE
        assert refused.value.retry_after_s
        assert not published.requests
        nursery.cancel_scope.cancel()


# -- in virtual time, with an issuer that does as it is told

Get = Callable[[], Any]


class Issuer:
    """Answers fetches; `answer` may be bytes, a status, or an exception."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.fetches, self.gate = answer, 0, None

    async def get(self, url: str, headers: Any, timeout_s: float) -> Answer:
        self.fetches += 1
        if self.gate is not None:
            with trio.move_on_after(timeout_s) as waiting:
                await self.gate.wait()
            if waiting.cancelled_caught:
                raise OutboundFailed(f"no answer within {timeout_s:g} s")
        await trio.lowlevel.checkpoint()
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, int):
            return Answer(self.answer, (), b"")
        return Answer(200, (), self.answer)


@asynccontextmanager
async def running(issuer: Issuer, refresh_s: float = 300, stale_max_s: float = 3_600) -> AsyncIterator[Jwks]:
    held = Jwks(observer(), issuer.get, "https://issuer.test/", ALL, refresh_s, stale_max_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.run)
        yield held
        nursery.cancel_scope.cancel()


async def reason(held: Jwks, key: Any) -> Reason | None:
    try:
        await held.key(key.alg, key.kid)
    except Refused as refused:
        return refused.reason
    return None


async def test_a_rotated_key_is_found_by_the_token_that_names_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    issuer = Issuer(key_set(FIRST))
    async with running(issuer) as held:
        assert await reason(held, FIRST) is None
        await trio.sleep(20)
        issuer.answer = key_set(FIRST, SECOND)
        assert await reason(held, SECOND) is None
        assert issuer.fetches == 2


async def test_unknown_keys_cause_one_fetch_within_an_interval(
    autojump_clock: trio.testing.MockClock,
) -> None:
    issuer = Issuer(key_set(FIRST))
    async with running(issuer) as held:
        await held.key(FIRST.alg, FIRST.kid)
        for round_ in range(1, 4):
            await trio.sleep(UNKNOWN_KEY_EVERY_S)
            found: list[Reason | None] = []

            async def ask(found: list[Reason | None] = found) -> None:
                found.append(await reason(held, SECOND))

            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(ask)
            for _ in range(200):
                await ask()
            assert set(found) == {Reason.JWT_KEY_UNKNOWN}
            assert issuer.fetches == 1 + round_
        assert await reason(held, FIRST) is None


FAILURES = [
    OutboundFailed("refused"),
    500,
    404,
    b"<html>",
    b'{"keys":[]}',
    Refused(Reason.CALLBACK_ADDRESS_REFUSED, "x"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
async def test_the_last_good_keys_count_until_they_are_too_old(
    failure: Any, autojump_clock: trio.testing.MockClock
) -> None:
    issuer = Issuer(key_set(FIRST))
    async with running(issuer, refresh_s=100, stale_max_s=1_000) as held:
        assert await reason(held, FIRST) is None
        issuer.answer = failure
        await trio.sleep(990)
        assert await reason(held, FIRST) is None
        assert held.status()["failure"]
        await trio.sleep(20)
        assert await reason(held, FIRST) is Reason.JWKS_UNAVAILABLE
        issuer.answer = key_set(FIRST)
        await trio.sleep(11)
        assert await reason(held, FIRST) is None, "it recovers by itself"


async def test_a_key_that_the_issuer_took_back_counts_no_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    issuer = Issuer(key_set(FIRST, SECOND))
    async with running(issuer, refresh_s=100) as held:
        assert await reason(held, FIRST) is None
        issuer.answer = key_set(SECOND)
        await trio.sleep(101)
        assert await reason(held, FIRST) is Reason.JWT_KEY_UNKNOWN


async def test_nobody_waits_longer_than_a_fetch_takes(autojump_clock: trio.testing.MockClock) -> None:
    issuer = Issuer(key_set(FIRST))
    issuer.gate = trio.Event()
    async with running(issuer) as held:
        began_s = trio.current_time()
        assert await reason(held, FIRST) is Reason.JWKS_UNAVAILABLE
        assert 4 < trio.current_time() - began_s <= 6
        began_s = trio.current_time()
        assert await reason(held, FIRST) is Reason.JWKS_UNAVAILABLE
        assert trio.current_time() == began_s, "between two fetches nobody waits"
        issuer.gate.set()
        await trio.sleep(15)
        assert await reason(held, FIRST) is None


async def test_a_known_key_does_not_wait_for_a_fetch_that_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    issuer = Issuer(key_set(FIRST))
    async with running(issuer, refresh_s=50) as held:
        assert await reason(held, FIRST) is None
        issuer.gate = trio.Event()
        await trio.sleep(51)
        began_s = trio.current_time()
        assert await reason(held, FIRST) is None
        assert trio.current_time() == began_s
