"""A node's own status, for the list of servers: asked by the proxy, remembered for a moment, bounded in time and size.

Stands behind the proxy's own `status`, which answers wherever this gives nothing.

Invariants: a node is asked once in a while for each version of the game, however many clients ask; an answer that is
not the protocol is never passed on; the memory is bounded.
"""

from __future__ import annotations

from typing import Final

import trio

from fairlead.protocol.reasons import Refused
from fairlead.proxy.edge.connect import Connector
from fairlead.proxy.edge.minecraft.packets import Malformed, write_frame
from fairlead.proxy.edge.minecraft.status import read_status
from fairlead.proxy.edge.proofs import Purpose
from fairlead.proxy.edge.settings import Backend
from fairlead.runtime.streams import ByteStream

_FRESH_S: Final = 1.0
_REMEMBERED_MAX: Final = 256
_REQUEST: Final = write_frame(0x00, b"")


class StatusOfNode:
    """Asks and remembers."""

    def __init__(self, connector: Connector, timeout_s: float) -> None:
        self._connector, self.timeout_s = connector, timeout_s
        self._known: dict[tuple[str, int], tuple[float, bytes]] = {}

    async def ask(
        self,
        backend: Backend,
        protocol: int,
        handshake: bytes,
        purpose: Purpose,
        correlation_id: str,
        peer: str,
    ) -> bytes:
        """The packet to pass on; b"" where the node gives none in time."""
        now = trio.current_time()
        known = self._known.get((backend.id, protocol))
        if known is not None and now - known[0] < _FRESH_S:
            return known[1]
        answer = b""
        with trio.move_on_after(self.timeout_s):
            try:
                stream, _ = await self._connector.connect((backend,), correlation_id, peer, purpose)
            except Refused:
                return b""
            try:
                answer = await self._read(stream, handshake)
            finally:
                stream.close()
        if len(self._known) >= _REMEMBERED_MAX:
            self._known.clear()  # Clients choose what they say they are: forgetting costs a question, nothing else.
        self._known[(backend.id, protocol)] = (now, answer)
        return answer

    async def _read(self, stream: ByteStream, handshake: bytes) -> bytes:
        held = bytearray()
        try:
            await stream.send_all(handshake + _REQUEST)
            while data := await stream.receive_some(64 * 1024):
                held += data
                packet = read_status(held)
                if packet is not None:
                    return packet
        except (trio.BrokenResourceError, Malformed):
            pass  # The node is asked again in a moment; its health is judged elsewhere.
        return b""
