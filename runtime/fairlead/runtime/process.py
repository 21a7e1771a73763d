"""What every Fairlead process does around its work: signals, the service manager, exit status.

The first SIGTERM or SIGINT asks for a drain, a second one stops at once; SIGHUP asks for a reload.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import trio

from fairlead.runtime.world import World

EXIT_STOPPED: Final = 0
EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2


class ServiceManager:
    """systemd's notification protocol, where `NOTIFY_SOCKET` is set; silent elsewhere."""

    def __init__(self, world: World, environ: Mapping[str, str]) -> None:
        self._world = world
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_us = int(environ.get("WATCHDOG_USEC", "0") or "0")
        self._is_ready = False

    def say(self, text: str) -> None:
        if text.startswith(("READY=1", "STOPPING=1")):
            self._is_ready = text.startswith("READY=1")
        if self._address:
            self._world.notify(self._address, text.encode())

    def say_ready(self) -> None:
        """It serves, and this is the process to watch: it may have taken over from another."""
        self.say(f"READY=1\nMAINPID={os.getpid()}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Around a reload, whatever becomes of it: `Type=notify-reload` waits for both words. Not before it serves, nor
        while it stops: to say that it is ready would be untrue."""
        if not self._is_ready:
            yield
            return
        self.say(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")
        try:
            yield
        finally:
            self.say("READY=1")

    async def feed_watchdog(self) -> None:
        """At half the interval asked for, for as long as the loop turns."""
        if not self._address or not self._watchdog_us:
            return
        while True:
            self.say("WATCHDOG=1")
            await trio.sleep(self._watchdog_us / 2_000_000)


async def run_until_signalled(
    serve: Callable[[trio.Event], Awaitable[None]],
    reload: Callable[[], object],
    on_usr1: Callable[[], object] | None = None,
) -> None:
    """Run `serve(stop)`; a first signal sets `stop`, a second cancels. Returns when `serve` does."""
    stop = trio.Event()
    heard = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *([signal.SIGUSR1] if on_usr1 else [])]
    with trio.open_signal_receiver(*heard) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for number in signals:
                    if number == signal.SIGHUP:
                        reload()
                    elif number == signal.SIGUSR1 and on_usr1 is not None:
                        on_usr1()
                    elif stop.is_set():
                        nursery.cancel_scope.cancel()
                    else:
                        stop.set()

            nursery.start_soon(listen)
            await serve(stop)
            nursery.cancel_scope.cancel()


def cpu_ms() -> int:
    """What this process has used, its threads included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return round((used.ru_utime + used.ru_stime) * 1000)


def leave_signals_to_parent() -> None:
    """What ends or reloads a service is sent to all of its processes; its main one passes on what it means."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def settle_memory() -> None:
    """After start-up: what lives now lives for ever, and full collections become rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
