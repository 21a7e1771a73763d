"""The control port: listens, and can be opened anew while everything else goes on.

Beside the client traffic and the operators' port, which a restart of this one does not touch: runs, registry and
clients stay, nodes and applications link again by themselves. `app` runs it; `Control.restart_messaging` asks for it.

Invariants: after a restart it listens on the very port of before; while another process has that port it tries again
until it gets it, and says so; who asked is answered once it listens, or refused at the end of the time for that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.http.server import serve_listener
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import Listener, World

NAME: Final = "control"
LINKS_END_S: Final = 3.0  # after which what has not ended is cut
AGAIN_EVERY_S: Final = 0.5
RESTART_S_MAX: Final = 15.0


class ControlPort:
    """Owns the listener, once it is bound."""

    def __init__(
        self, world: World, observer: Observer, listener: Listener, serve: Callable[[ByteStream], Awaitable[None]],
        connections_max: int,
    ) -> None:  # fmt: skip
        self._world, self._observer, self._listener = world, observer, listener
        self._serve, self._connections_max = serve, connections_max
        self.host, self.port = listener.host, listener.port
        self._again: trio.Event | None = None  # set once it listens after a restart
        self._closed = False
        self._scope = trio.CancelScope()

    def close(self) -> None:
        """Accept nothing any more; links go on to their end."""
        self._closed = True
        self._listener.close()

    async def restart(self, end_links: Callable[[], None]) -> None:
        """Stop listening, have every link end, listen again. Raises Refused where that takes too long."""
        if self._closed:
            raise Refused(Reason.NODE_NOT_CONNECTED, "the proxy stops")
        if self._again is None:
            self._again = trio.Event()
            self._listener.close()
            end_links()
            self._scope.deadline = trio.current_time() + LINKS_END_S
        again = self._again
        with trio.move_on_after(RESTART_S_MAX):
            await again.wait()
            return
        raise Refused(
            Reason.NODE_NOT_CONNECTED, f"port {self.port} could not be opened again yet; it is tried on"
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until it is closed for good."""
        try:
            while True:
                with trio.CancelScope() as self._scope:
                    await serve_listener(
                        self._listener, self._serve, self._observer, connections_max=self._connections_max, name=NAME,
                        task_status=task_status,
                    )  # fmt: skip
                if self._closed or self._again is None:
                    return
                self._listener = await self._bind()
                self._observer.log.info("messaging_restarted", host=self.host, port=self.port)
                self._again.set()
                self._again, task_status = None, trio.TASK_STATUS_IGNORED
        finally:
            self._listener.close()

    async def _bind(self) -> Listener:
        while True:
            try:
                return await self._world.listen_tcp(self.host, self.port)
            except OSError as error:
                self._observer.sampled(
                    "error", "messaging_not_restarted", port=self.port, error=str(error), then="tried again"
                )
            await trio.sleep(AGAIN_EVERY_S)
