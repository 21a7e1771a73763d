"""Players' commands on their way from a node to its proxies: whom it asks, and what whoever asked is told."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tests.support.memory_world import MemoryNetwork, MemoryWorld
from trio.testing import MockClock

from fairlead.backend.asks import UNDER_WAY_MAX, Asks
from fairlead.protocol.messages import Message, PlayerAnswer, PlayerCommand
from fairlead.protocol.reasons import Reason, Refused


class Link:
    """A link to a proxy that says nothing by itself."""

    def __init__(self, connected: bool = True) -> None:
        self.connected = connected
        self.sent: list[PlayerCommand] = []

    def send(self, message: Message, correlation_id: str = "") -> None:
        assert isinstance(message, PlayerCommand)
        self.sent.append(message)


class Asking:
    """One command under way."""

    def __init__(self, asks: Asks, nursery: trio.Nursery, timeout_s: float = 5.0) -> None:
        self.value: Any = None
        self.refused: Refused | None = None
        self.over = trio.Event()

        async def ask() -> None:
            try:
                self.value = await asks.player_command("t:x", {"a": 1}, player="ada", timeout_s=timeout_s)
            except Refused as refused:
                self.refused = refused
            self.over.set()

        nursery.start_soon(ask)

    async def reason(self) -> Reason:
        await self.over.wait()
        assert self.refused is not None
        return self.refused.reason


def setup(*links: Link) -> Asks:
    return Asks(MemoryWorld(MemoryNetwork(), 1), links)


def answer(link: Link, status: str = "COMPLETED", reason: str = "", value: bytes = b"[1]") -> PlayerAnswer:
    return PlayerAnswer(link.sent[-1].request_id, status, value, reason, "")


async def test_the_proxy_that_has_the_player_is_found(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one, down, two = Link(), Link(connected=False), Link()
    asks = setup(one, down, two)
    asking = Asking(asks, nursery)
    await trio.sleep(0.1)
    assert (len(one.sent), len(two.sent), one.sent[0].args_json) == (1, 0, b'{"a":1}')
    asks.answered(answer(one, "REFUSED", "SESSION_UNKNOWN", b""), one)
    assert two.sent == one.sent, "the same command under the same id"
    asks.answered(answer(one, value=b'"late"'), one)
    asks.answered(answer(two), two)
    await asking.over.wait()
    assert (asking.value, len(asks)) == ([1], 0)
    asks.answered(answer(two), two)


async def test_nobody_has_the_player(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    one, two = Link(), Link()
    asks = setup(one, two)
    asking = Asking(asks, nursery)
    await trio.sleep(0.1)
    asks.answered(answer(one, "REFUSED", "SESSION_UNKNOWN", b""), one)
    asks.answered(answer(two, "REFUSED", "SESSION_UNKNOWN", b""), two)
    assert await asking.reason() is Reason.SESSION_UNKNOWN


async def test_a_link_that_comes_back_is_asked_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    link = Link()
    asks = setup(link)
    asking = Asking(asks, nursery)
    await trio.sleep(0.1)
    link.connected = False
    await trio.sleep(1)
    link.connected = True
    asks.joined(link)
    assert [each.request_id for each in link.sent] == [link.sent[0].request_id] * 2
    asks.answered(answer(link), link)
    await asking.over.wait()
    assert asking.value == [1]


async def test_no_link_until_later(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    link = Link(connected=False)
    asks = setup(link)
    early, late = Asking(asks, nursery, timeout_s=1), Asking(asks, nursery, timeout_s=30)
    assert await early.reason() is Reason.PROXY_UNREACHABLE
    link.connected = True
    asks.joined(link)
    assert len(link.sent) == 1
    assert await late.reason() is Reason.OUTCOME_UNKNOWN, "asked, and nothing heard"


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        ("FAILED", "HANDLER_FAILED", Reason.HANDLER_FAILED), ("REFUSED", "PLAYER_ONLY", Reason.PLAYER_ONLY),
        ("PENDING", "", Reason.OUTCOME_UNKNOWN), ("COMPLETED", "RESULT_TOO_LARGE", Reason.RESULT_TOO_LARGE),
        ("FAILED", "made up", Reason.UNKNOWN_REASON),
    ],
)  # fmt: skip
async def test_what_was_no_success_is_raised(
    nursery: trio.Nursery, autojump_clock: MockClock, status: str, reason: str, told: Reason
) -> None:
    link = Link()
    asks = setup(link)
    asking = Asking(asks, nursery)
    await trio.sleep(0.1)
    asks.answered(answer(link, status, reason, b""), link)
    assert await asking.reason() is told


async def test_no_more_are_under_way_than_may_be(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    asks = setup(Link())
    for _ in range(UNDER_WAY_MAX):
        Asking(asks, nursery)
    await trio.sleep(0.1)
    assert await Asking(asks, nursery).reason() is Reason.INGRESS_BACKPRESSURE
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("timeout_s", [0, -1, 601, float("nan"), float("inf")])
async def test_every_wait_has_a_deadline(autojump_clock: MockClock, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        await setup(Link()).player_command("t:x", player="ada", timeout_s=timeout_s)
