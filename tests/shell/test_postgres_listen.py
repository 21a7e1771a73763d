"""Hints between proxies: sent with the COMMIT, received on trio's loop, and again after a restart of the server."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tests.support.postgres import Databases, PostgresServer

from fairlead.proxy.store.db import Db
from fairlead.proxy.store.postgres.connection import Bounds
from fairlead.proxy.store.postgres.listen import listen
from fairlead.proxy.store.postgres.writer import PostgresWriter
from fairlead.runtime.world import RealWorld


class Heard:
    """What a listener was told."""

    def __init__(self) -> None:
        self.notices: list[tuple[str, str]] = []
        self.changes: list[tuple[bool, str]] = []

    def notice(self, topic: str, payload: str) -> None:
        self.notices.append((topic, payload))

    def change(self, up: bool, detail: str) -> None:
        self.changes.append((up, detail))

    async def until(self, notices: int = 0, changes: int = 0) -> None:
        with trio.fail_after(20):
            while len(self.notices) < notices or len(self.changes) < changes:
                await trio.sleep(0.002)


def start(nursery: trio.Nursery, url: str) -> Heard:
    heard = Heard()
    nursery.start_soon(listen, url, RealWorld().run_in_thread, heard.notice, heard.change)
    return heard


async def opened(url: str) -> PostgresWriter:
    return await trio.to_thread.run_sync(lambda: PostgresWriter(url, "test"))


async def test_what_was_committed_is_heard_and_what_was_not_is_not(database_url: str) -> None:
    writer = await opened(database_url)

    def fails(db: Db) -> None:
        db.notify("runs", "never")
        raise LookupError

    def changes(db: Db) -> None:
        db.notify("runs", "node-1")
        db.notify("runs", "node-1")  # once is enough
        db.notify("controls", "")
        db.notify("runs", "two words 😀")
        db.notify("registry", "x" * 9_000)  # too long to be sent; that something changed still is

    async with trio.open_nursery() as nursery:
        heard = start(nursery, database_url)
        await heard.until(changes=1)
        with pytest.raises(LookupError):
            await writer.submit(fails)
        await writer.submit(changes)
        await heard.until(notices=4)
        nursery.cancel_scope.cancel()
    assert sorted(heard.notices) == [
        ("controls", ""), ("registry", ""), ("runs", "node-1"), ("runs", "two words 😀"),
    ]  # fmt: skip
    assert heard.changes == [(True, "")]
    await writer.aclose()


async def test_many_hints_at_once_all_arrive(database_url: str) -> None:
    writer = await opened(database_url)
    async with trio.open_nursery() as nursery:
        heard = start(nursery, database_url)
        await heard.until(changes=1)
        await writer.submit(lambda db: [db.notify("n", str(number)) for number in range(2_000)])
        await heard.until(notices=2_000)
        nursery.cancel_scope.cancel()
    assert {payload for _, payload in heard.notices} == {str(number) for number in range(2_000)}
    await writer.aclose()


async def test_a_listener_whose_connection_is_ended_says_so_and_listens_again(
    postgres: Databases, database_url: str
) -> None:
    writer = await opened(database_url)
    async with trio.open_nursery() as nursery:
        heard = start(nursery, database_url)
        await heard.until(changes=1)
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'LISTEN%' AND datname = current_database()",
            database_url,
        )
        await heard.until(changes=3)
        await writer.submit(lambda db: db.notify("runs", "again"))
        await heard.until(notices=1)
        nursery.cancel_scope.cancel()
    assert [up for up, _ in heard.changes] == [True, False, True]
    assert "terminat" in heard.changes[1][1]
    await writer.aclose()


async def test_a_restart_of_the_server_is_survived(postgres_server: PostgresServer) -> None:
    url = postgres_server.create_database("hints")
    async with trio.open_nursery() as nursery:
        heard = start(nursery, url)
        await heard.until(changes=1)
        postgres_server.kill()
        await heard.until(changes=2)
        await trio.to_thread.run_sync(postgres_server.start)
        await heard.until(changes=3)
        postgres_server.execute("NOTIFY fairlead, 'runs back'", url)
        await heard.until(notices=1)
        nursery.cancel_scope.cancel()
    assert [up for up, _ in heard.changes] == [True, False, True]
    assert heard.notices == [("runs", "back")]


async def test_connecting_does_not_hold_up_the_loop_and_can_be_cancelled(
    postgres_server: PostgresServer,
) -> None:
    """A frozen server accepts the connection and says nothing."""
    url = postgres_server.url()
    postgres_server.pause()
    heard = Heard()
    turns: list[Any] = []
    bounds = Bounds(connect_s=2.0, statement_s=0.5, answer_s=2.0)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, url, RealWorld().run_in_thread, heard.notice, heard.change, bounds)
            for _ in range(20):
                await trio.sleep(0.005)
                turns.append(list(heard.changes))
            nursery.cancel_scope.cancel()
    assert turns == [[]] * 20
    postgres_server.resume()
    with trio.fail_after(20):  # the connection that nobody wants any more is closed
        while postgres_server.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'fairlead'"):
            await trio.sleep(0.01)
