"""Hints from the other proxies: LISTEN on one channel, waited for on trio's own loop, without a thread.

A hint says that something changed; it carries no truth, may be lost while there is no connection, and may be one
that we sent ourselves. Who uses this also looks by itself from time to time, and at once when `on_change` says that
the connection is back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import psycopg
import trio
from psycopg.pq import ConnStatus

from fairlead.proxy.store.postgres.connection import (
    CHANNEL,
    Access,
    BoundedConnection,
    Bounds,
    Connecting,
    Silent,
    explained,
    open_connection,
)
from fairlead.proxy.store.schema import StoreUnfit

T = TypeVar("T")
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0


class RunInThread(Protocol):
    """`World.run_in_thread`."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


async def listen(
    url: str,
    run_in_thread: RunInThread,
    on_notice: Callable[[str, str], None],
    on_change: Callable[[bool, str], None],
    bounds: Bounds | None = None,
) -> None:
    """Call `on_notice(topic, payload)` for each hint, until cancelled.

    `on_change(up, detail)` is called when listening begins, and when it ends with why.
    """
    bounds = bounds or Bounds()
    pause_s, was_up = BACKOFF_FIRST_S, True  # the first failure is told too
    while True:
        connection: BoundedConnection | None = None
        try:
            connection = await _connect(url, run_in_thread, bounds)
            pause_s, was_up = BACKOFF_FIRST_S, True
            on_change(True, "")
            await _receive(connection, on_notice)
        except (psycopg.Error, Silent, StoreUnfit) as error:
            if was_up:
                was_up = False
                on_change(False, explained(error))
        finally:
            if connection is not None:
                _close(connection)
        await trio.sleep(pause_s)
        pause_s = min(pause_s * 2, BACKOFF_MAX_S)


async def _connect(url: str, run_in_thread: RunInThread, bounds: Bounds) -> BoundedConnection:
    """Cancelled in the middle, it leaves a thread that closes what it opens."""

    def opening() -> tuple[BoundedConnection, list[str]]:
        opened, warnings = open_connection(url, Access.LISTEN, bounds)
        try:
            opened.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            opened.close()
            raise
        return opened, warnings

    connecting = Connecting(opening)
    timeout_s = bounds.connect_s + bounds.statement_s
    try:
        connection, _ = await run_in_thread(lambda: connecting.result(timeout_s))
    except trio.Cancelled:
        connecting.give_up()
        raise
    return connection


async def _receive(connection: BoundedConnection, on_notice: Callable[[str, str], None]) -> None:
    """Until the connection breaks; then raises psycopg.Error."""
    wire = connection.pgconn
    while True:
        while notice := wire.notifies():
            topic, _, payload = notice.extra.decode(errors="replace").partition(" ")
            on_notice(topic, payload)
        if wire.status == ConnStatus.BAD:
            raise psycopg.OperationalError("the server closed the connection")
        await trio.lowlevel.wait_readable(wire.socket)
        # The first call after a server's end may give only its farewell; the next one raises.
        wire.consume_input()


def _close(connection: BoundedConnection) -> None:
    if connection.pgconn.status != ConnStatus.BAD:
        trio.lowlevel.notify_closing(connection.pgconn.socket)
    connection.close()
