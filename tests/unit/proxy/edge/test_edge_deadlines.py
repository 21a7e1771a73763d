"""One timer for many deadlines, on a clock that is moved by hand."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from fairlead.proxy.edge.deadlines import SLACK_S, Deadlines

INF = float("inf")


class Client:
    def __init__(self, timer: Deadlines) -> None:
        self.timer = timer
        self.deadline = INF
        self.expired_at: list[float] = []
        timer.watch(self)

    def wait(self, seconds: float) -> None:
        self.deadline = trio.current_time() + seconds
        if self.deadline < self.timer.next_at:
            self.timer.sooner(self.deadline)

    def expire(self) -> None:
        self.expired_at.append(trio.current_time())


async def test_each_is_told_once_and_in_time(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    timer = Deadlines()
    await nursery.start(timer.run)
    began = trio.current_time()
    late, soon, moved, never = (Client(timer) for _ in range(4))
    late.wait(60)
    moved.wait(5)
    soon.wait(2)
    await trio.sleep(1)
    moved.wait(30)
    await trio.sleep(100)
    assert [round(each - began) for client in (soon, moved, late, never) for each in client.expired_at] == [
        2,
        31,
        60,
    ]
    for client, due in ((soon, 2), (moved, 31), (late, 60)):
        assert due <= client.expired_at[0] - began <= due + SLACK_S + 0.001
    late.wait(1)
    timer.forget(late)
    await trio.sleep(100)
    assert len(late.expired_at) == 1


async def test_a_deadline_that_passed_already_is_noticed(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    timer = Deadlines()
    await nursery.start(timer.run)
    client = Client(timer)
    client.wait(0)
    await trio.sleep(0.1)
    assert len(client.expired_at) == 1


async def test_nothing_is_watched_while_nobody_looks() -> None:
    with pytest.raises(RuntimeError, match="does not run"):
        Deadlines().watch(Client.__new__(Client))
