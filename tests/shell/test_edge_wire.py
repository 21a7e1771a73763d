"""When a pooled connection may serve again: what the last look before that says, over loopback sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator

import pytest

from fairlead.proxy.edge.wire import Wire
from fairlead.runtime.streams import SocketStream


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Wire, socket.socket]]:
    """Ours, and the backend's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = SocketStream(socket.create_connection(server.getsockname()))
        theirs, _ = server.accept()
    yield Wire(ours), theirs
    theirs.close()
    ours.close()


async def test_it_is_quiet_as_long_as_nothing_came_and_looking_takes_nothing_away(
    ends: tuple[Wire, socket.socket],
) -> None:
    wire, backend = ends
    assert [wire.is_quiet() for _ in range(3)] == [True, True, True]
    backend.sendall(b"x")
    assert not wire.is_quiet()
    assert wire.receive_nowait() == b"x"
    assert wire.is_quiet()


async def test_bytes_that_were_read_already_are_no_quiet_either(ends: tuple[Wire, socket.socket]) -> None:
    wire, _ = ends
    wire.buffer = b"x"
    assert not wire.is_quiet()


async def test_one_that_the_backend_has_ended_is_not_quiet(ends: tuple[Wire, socket.socket]) -> None:
    wire, backend = ends
    assert wire.is_quiet()
    backend.shutdown(socket.SHUT_WR)
    assert not wire.is_quiet()


async def test_one_that_the_backend_has_reset_is_not_quiet(ends: tuple[Wire, socket.socket]) -> None:
    wire, backend = ends
    assert wire.is_quiet()
    backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    backend.close()
    assert not wire.is_quiet()


async def test_one_that_we_have_closed_is_not_quiet_whoever_has_its_number_now(
    ends: tuple[Wire, socket.socket],
) -> None:
    wire, _ = ends
    assert wire.is_quiet()
    wire.stream.close()
    with socket.socket():  # which takes the file descriptor that has just become free
        assert not wire.is_quiet()
