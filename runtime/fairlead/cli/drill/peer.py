"""A hand-made peer of the control channel, whose every byte may be wrong on purpose.

Built on the lower parts of the protocol (Noise, preamble, envelope encoding) and never on a channel's own checks, which
would not let it send what has to be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, TypeVar

import msgpack
import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.channel import FRAME_CLOSE, FRAME_DATA
from fairlead.protocol.envelope import encode_body, encode_envelope
from fairlead.protocol.keys import IdentityKey, Role
from fairlead.protocol.noise import CipherState, Handshake
from fairlead.protocol.preamble import Preamble
from fairlead.protocol.reasons import Reason
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World

M = TypeVar("M", bound=m.Message)
WAIT_S: Final = 5.0
TTL_MS: Final = 5_000


class PeerFailed(Exception):
    """The other end did not say what the drill waits for."""


class Peer:
    """One connection in one role. Use it as an async context."""

    def __init__(
        self, world: World, host: str, port: int, role: Role, identity: str, key: IdentityKey, audience: str,
        wire: tuple[int, int] = (1, 1),
    ) -> None:  # fmt: skip
        self._world, self._address, self._us, self.audience = world, (host, port), identity, audience
        clear = Preamble(role, identity, key.key_id, *wire).encode()
        self._handshake = Handshake(
            initiator=True, prologue=clear, psk=key.psk, ephemeral_private=world.random_bytes(32)
        )
        first = self._handshake.write_first(b"")
        self.opening = clear + len(first).to_bytes(2, "big") + first
        self.sent = b""
        self._nonce = 0
        self._wire, self._messages = bytearray(), bytearray()
        self._out: CipherState | None = None
        self._in: CipherState | None = None

    async def __aenter__(self) -> Peer:
        with trio.fail_after(WAIT_S):
            self._stream: ByteStream = await self._world.connect_tcp(*self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._out is not None and error is None:
            with trio.move_on_after(1.0, shield=True), suppress(trio.BrokenResourceError):
                await self.send(
                    self._frame(FRAME_CLOSE, f"{Reason.LINK_CLOSED.value}\nend of the drill".encode())
                )
        self._stream.close()

    # -- saying

    async def send(self, data: bytes) -> None:
        """Bytes as they are; remembered, so that they can be sent again."""
        self.sent += data
        with trio.fail_after(WAIT_S):
            await self._stream.send_all(data)

    async def shake(self) -> tuple[str, str]:
        """Both messages of the handshake; the proxy's verdict (reason and detail) and its id as who to speak to."""
        await self.send(self.opening)
        second = await self._take_prefixed()
        if second is None:
            raise PeerFailed(
                "closed instead of answering the handshake: another secret, or the id is not listed"
            )
        reason, _, detail, proxy_id = msgpack.unpackb(self._handshake.read_second(second), raw=False)
        self.audience = self.audience or proxy_id
        self._out, self._in = self._handshake.split()
        return reason, detail

    def envelope(self, message: m.Message, **fields: Any) -> bytes:
        """A message, right in every field that is not overridden."""
        self._nonce += 1
        given = {
            "version": 1, "sender": self._us, "issued_at_ms": self._world.wall_ms(), "nonce": self._nonce, **fields,
        }  # fmt: skip
        return encode_envelope(
            given["version"], int(m.TYPE_OF[type(message)]), given["sender"], self.audience, given["issued_at_ms"],
            TTL_MS, given["nonce"], "", encode_body(message),
        )  # fmt: skip

    async def say(self, message: m.Message, **fields: Any) -> None:
        raw = self.envelope(message, **fields)
        await self.send(self._frame(FRAME_DATA, len(raw).to_bytes(4, "big") + raw))

    def now_ms(self) -> int:
        """The clock that its envelopes are stamped with."""
        return self._world.wall_ms()

    def _frame(self, kind: int, payload: bytes) -> bytes:
        assert self._out is not None, "nothing is said before the handshake"
        sealed = self._out.encrypt(bytes((kind,)) + payload)
        return len(sealed).to_bytes(2, "big") + sealed

    # -- hearing

    async def expect(self, wanted: type[M], timeout_s: float = WAIT_S) -> M:
        """The next message of a type; what comes before it is passed over. Raises PeerFailed."""
        found = await self.hears(lambda message: isinstance(message, wanted), timeout_s)
        if found is None:
            raise PeerFailed(f"no {wanted.__name__} within {timeout_s:g} s")
        assert isinstance(found, wanted)
        return found

    async def hears(self, looked_for: Callable[[m.Message], bool], timeout_s: float) -> m.Message | None:
        """The next message that is looked for, or None within the time. Raises PeerFailed where the link ends."""
        with trio.move_on_after(timeout_s):
            while True:
                message = await self._message()
                if looked_for(message):
                    return message
        return None

    async def is_closed(self, timeout_s: float = WAIT_S) -> bool:
        """Whether the other end closes without having said a word."""
        with trio.move_on_after(timeout_s):
            try:
                return not await self._stream.receive_some(1)
            except trio.BrokenResourceError:
                return True
        return False

    async def _message(self) -> m.Message:
        while True:
            if len(self._messages) >= 4:
                end = 4 + int.from_bytes(self._messages[:4], "big")
                if len(self._messages) >= end:
                    _, number, *_, body = msgpack.unpackb(bytes(self._messages[4:end]), raw=False)
                    del self._messages[:end]
                    return msgspec.convert(body, m.CATALOGUE[m.MessageType(number)][0])
            sealed = await self._take_prefixed()
            if sealed is None:
                raise PeerFailed("the link ended")
            assert self._in is not None
            plain = self._in.decrypt(sealed)
            if plain[0] == FRAME_CLOSE:
                reason, _, detail = plain[1:].decode(errors="replace").partition("\n")
                raise PeerFailed(f"the link was ended: {reason} {detail}".strip())
            self._messages += plain[1:]

    async def _take_prefixed(self) -> bytes | None:
        """The next handshake message or frame; None at the end of the connection."""
        while len(self._wire) < 2 or len(self._wire) < 2 + int.from_bytes(self._wire[:2], "big"):
            try:
                with trio.fail_after(WAIT_S * 2):
                    data = await self._stream.receive_some(65_536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._wire += data
        end = 2 + int.from_bytes(self._wire[:2], "big")
        taken = bytes(self._wire[2:end])
        del self._wire[:end]
        return taken
