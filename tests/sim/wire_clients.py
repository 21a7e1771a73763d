"""HTTP/1.1 and the game's frames as simulated clients and servers speak them: as little as they need, strictly."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import trio

PROTOCOL = 767
LOGIN, TRANSFER = 2, 3


class Broken(Exception):
    """What came is not what it should be; or it ended in its middle, in order (`is_end`)."""

    def __init__(self, what: str, *, is_end: bool = False) -> None:
        super().__init__(what)
        self.is_end = is_end


class Reader:
    """A stream with what was read and not used."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.held, self.count, self.heads = stream, bytearray(), 0, 0

    async def more(self) -> bool:
        data = await self.stream.receive_some(65_536)
        self.held += data
        self.count += len(data)
        return bool(data)

    async def exactly(self, count: int) -> bytes:
        while len(self.held) < count:
            if not await self.more():
                raise Broken(f"it ended {count - len(self.held)} bytes too early", is_end=True)
        found = bytes(self.held[:count])
        del self.held[:count]
        return found

    async def line(self) -> bytes:
        while b"\r\n" not in self.held:
            if not await self.more():
                raise Broken("it ended within a line", is_end=True)
        line, _, rest = bytes(self.held).partition(b"\r\n")
        self.held = bytearray(rest)
        return line

    async def head(self) -> tuple[str, dict[str, str]] | None:
        """First line and fields; None at an end before it."""
        while b"\r\n\r\n" not in self.held:
            if not await self.more():
                if self.held:
                    raise Broken("it ended within a head", is_end=True)
                return None
        raw, _, rest = bytes(self.held).partition(b"\r\n\r\n")
        self.held = bytearray(rest)
        self.heads += 1
        first, *lines = raw.decode("latin-1").split("\r\n")
        return first, {
            name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)
        }

    async def body(self, fields: dict[str, str], *, until_close: bool = False) -> bytes:
        if "chunked" in fields.get("transfer-encoding", ""):
            found = b""
            while True:
                size = int((await self.line()).partition(b";")[0], 16)
                if not size:
                    while await self.line():
                        pass
                    return found
                found += await self.exactly(size)
                if await self.exactly(2) != b"\r\n":
                    raise Broken("a chunk without its end")
        if "content-length" in fields:
            return await self.exactly(int(fields["content-length"]))
        if until_close:
            while await self.more():
                pass
            found = bytes(self.held)
            self.held.clear()
            return found
        return b""


@dataclass(frozen=True)
class Answer:
    """An answer that is whole as far as its framing goes."""

    status: int
    fields: dict[str, str]
    body: bytes
    is_until_close: bool


def request(method: str, request_id: str, minor: int, do: str, body: bytes, *, chunked: bool) -> bytes:
    framing, payload = "", body
    if chunked and minor and body:
        framing, half = "transfer-encoding: chunked\r\n", max(1, len(body) // 2)
        pieces = [body[:half], body[half:]]
        payload = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces if each) + b"0\r\n\r\n"
    elif method in ("POST", "PUT"):
        framing = f"content-length: {len(body)}\r\n"
    head = f"{method} /{request_id} HTTP/1.{minor}\r\nhost: web.sim\r\nx-id: {request_id}\r\nx-do: {do}\r\n"
    return f"{head}{framing}\r\n".encode() + payload


async def read_answer(reader: Reader, method: str) -> Answer:
    """Raises Broken, and what the stream raises."""
    while True:
        head = await reader.head()
        if head is None:
            raise Broken("it ended before the answer", is_end=True)
        first, fields = head
        if not first.startswith("HTTP/1.1 "):
            raise Broken(f"it begins with {first[:40]!r}")
        status = int(first.split()[1])
        if status >= 200:
            break
    if method == "HEAD" or status in (204, 304):
        return Answer(status, fields, b"", False)
    is_until_close = "content-length" not in fields and "transfer-encoding" not in fields
    body = await reader.body(fields, until_close=is_until_close)
    return Answer(status, fields, body, is_until_close)


# -- the game


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes([*out, value])


def string(text: str) -> bytes:
    return varint(len(text.encode())) + text.encode()


def frame(packet_id: int, body: bytes) -> bytes:
    return varint(1 + len(body)) + bytes([packet_id]) + body


def login(name: str, host: str, port: int, intent: int = LOGIN) -> bytes:
    handshake = varint(PROTOCOL) + string(host) + struct.pack(">H", port) + varint(intent)
    return frame(0x00, handshake) + frame(0x00, string(name) + bytes(16))


async def read_frame(reader: Reader) -> tuple[int, bytes] | None:
    """Id and body; None at an end between two frames. Raises Broken."""
    if not reader.held and not await reader.more():
        return None
    length, shift = 0, 0
    while True:
        byte = (await reader.exactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    data = await reader.exactly(length)
    return data[0], data[1:]


async def read_login(reader: Reader) -> str:
    """The name of who wants in. Raises Broken."""
    for _ in range(2):
        found = await read_frame(reader)
        if found is None:
            raise Broken("it ended within a login", is_end=True)
        body = found[1]
    return body[1 : 1 + body[0]].decode()


async def until_ended(stream: Any) -> str:
    """Read on until it is over: eof or reset."""
    try:
        while await stream.receive_some(65_536):
            pass
    except trio.BrokenResourceError:
        return "reset"
    return "eof"
