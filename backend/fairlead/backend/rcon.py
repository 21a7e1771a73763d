"""Source RCON, the protocol by which game servers take commands: one question, one answer.

Packets by plain functions, the conversation in `ask`. A connection for each question: they are rare, and a server that
was restarted meanwhile is asked all the same.

Invariants: no command leaves before the server took the password; an answer is bounded, and the whole of it has one
deadline; the password is in no error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World

AUTH: Final = 3
COMMAND: Final = 2
AUTH_ANSWER: Final = 2
ANSWER: Final = 0
BODY_BYTES_MAX: Final = 4_096  # of one packet, as servers cut longer answers
COMMAND_BYTES_MAX: Final = 1_446  # what every server takes
_HEAD_BYTES: Final = 8
_AUTH_ID, _COMMAND_ID = 1, 2


class RconFailed(Exception):
    """The server could not be asked; the message says why."""


class RconUnreached(RconFailed):
    """The command did not leave, and may another time."""


class RconRefused(RconFailed):
    """The command did not leave, and would not another time."""


@dataclass(frozen=True, slots=True)
class RconSettings:
    """Where the server takes commands."""

    host: str
    port: int
    password: str = field(repr=False)
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet."""

    id: int
    kind: int
    body: bytes


def encode(packet: Packet) -> bytes:
    content = (
        packet.id.to_bytes(4, "little", signed=True) + packet.kind.to_bytes(4, "little", signed=True) + packet.body
        + b"\0\0"
    )  # fmt: skip
    return len(content).to_bytes(4, "little") + content


def decode(buffer: bytes) -> tuple[Packet, bytes] | None:
    """The first packet and what follows it; None where more is needed. Raises RconFailed where it is none."""
    if len(buffer) < 4:
        return None
    size = int.from_bytes(buffer[:4], "little")
    if not _HEAD_BYTES + 2 <= size <= _HEAD_BYTES + BODY_BYTES_MAX + 2:
        raise RconFailed(f"a packet of {size} bytes: that is no RCON")
    if len(buffer) < 4 + size:
        return None
    content, rest = buffer[4 : 4 + size], buffer[4 + size :]
    number = int.from_bytes(content[:4], "little", signed=True)
    kind = int.from_bytes(content[4:8], "little", signed=True)
    return Packet(number, kind, content[_HEAD_BYTES:-2]), rest


async def ask(world: World, settings: RconSettings, command: str) -> str:
    """What the server answers to a command. Raises RconFailed: as RconRefused or RconUnreached where it did nothing."""
    raw = command.encode()
    if len(raw) > COMMAND_BYTES_MAX or any(byte < 0x20 for byte in raw):
        raise RconRefused("the command is too long, or has control characters")
    where, left = f"{settings.host}:{settings.port}", False
    try:
        with trio.fail_after(settings.timeout_s):
            stream = await world.connect_tcp(settings.host, settings.port)
            try:
                buffer = await _log_in(stream, settings.password)
                left = True
                return await _question(stream, buffer, raw)
            finally:
                stream.close()
    except RconRefused:
        raise
    except trio.TooSlowError:
        problem = f"{where} did not answer within {settings.timeout_s:g} s"
    except RconFailed as error:
        problem = str(error)
    except (OSError, trio.BrokenResourceError) as error:
        problem = f"{where}: {error}"
    raise RconFailed(problem) if left else RconUnreached(problem)


async def _log_in(stream: ByteStream, password: str) -> bytes:
    """What came after the server took the password."""
    await stream.send_all(encode(Packet(_AUTH_ID, AUTH, password.encode())))
    buffer = b""
    while True:
        packet, buffer = await _next(stream, buffer)
        if packet.kind == AUTH_ANSWER:  # some servers send an empty answer before it
            break
    if packet.id != _AUTH_ID:
        raise RconRefused("the server refused the password")
    return buffer


async def _question(stream: ByteStream, buffer: bytes, command: bytes) -> str:
    await stream.send_all(encode(Packet(_COMMAND_ID, COMMAND, command)))
    packet, _ = await _next(stream, buffer)
    if packet.id != _COMMAND_ID:
        raise RconFailed("the server answered another question")
    return packet.body.decode("utf-8", "replace")


async def _next(stream: ByteStream, buffer: bytes) -> tuple[Packet, bytes]:
    while (found := decode(buffer)) is None:
        more = await stream.receive_some(4_096)
        if not more:
            raise RconFailed("the server closed the connection")
        buffer += more
    return found
