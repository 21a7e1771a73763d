"""What a service manager is told, over a real socket, and that it holds up nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.runtime.process import ServiceManager
from fairlead.runtime.world import RealWorld


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "s"))
        found.settimeout(5)
        yield found


def service(tmp_path: Path) -> ServiceManager:
    return ServiceManager(RealWorld(), {"NOTIFY_SOCKET": str(tmp_path / "s")})


def test_a_service_manager_that_does_not_listen_holds_up_nothing(
    tmp_path: Path, manager: socket.socket
) -> None:
    """Its queue is full: a blocking send once stopped the whole node."""
    told = service(tmp_path)
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        told.say("WATCHDOG=1")
    assert manager.recv(100) == b"WATCHDOG=1"
    assert time.monotonic() - began < 5


def test_a_reload_is_told_around_whatever_becomes_of_it(tmp_path: Path, manager: socket.socket) -> None:
    told = service(tmp_path)
    told.say_ready()
    with pytest.raises(ValueError, match="bad"), told.reloading():
        raise ValueError("bad")
    said = [manager.recv(200).decode().splitlines()[0] for _ in range(3)]
    assert said == ["READY=1", "RELOADING=1", "READY=1"]


def test_who_does_not_serve_yet_or_no_more_never_says_ready_by_a_reload(
    tmp_path: Path, manager: socket.socket
) -> None:
    told = service(tmp_path)
    with told.reloading():
        pass
    told.say_ready()
    told.say("STOPPING=1")
    with told.reloading():
        pass
    told.say("WATCHDOG=1")
    said = [manager.recv(200).decode().splitlines()[0] for _ in range(3)]
    assert said == ["READY=1", "STOPPING=1", "WATCHDOG=1"]


def test_without_one_nothing_is_said() -> None:
    told = ServiceManager(RealWorld(), {})
    told.say_ready()
    with told.reloading():
        pass
