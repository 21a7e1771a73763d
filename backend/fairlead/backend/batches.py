"""What gathers for a proxy, cut into messages that fit a payload.

Owns how a node packs several things into one envelope: results of one turn, and the descriptors of its commands. On
the command's journey at its end, on the registry's at its beginning; bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from fairlead.protocol.limits import CHUNK_BYTES_MAX, ENVELOPE_HEADER_BYTES_MAX
from fairlead.protocol.messages import Announce, MessageType, Result

_MANY_HEAD_BYTES: Final = 6  # an array of one field, and in it an array of up to 2**32 results


def result_batches(
    results: Sequence[Result], payload_bytes_max: int
) -> Iterator[tuple[MessageType, bytes, str]]:
    """Results as encoded bodies that fit a payload: (type, body, correlation id). Together where they fit, each
    with its own correlation id; one alone as a RESULT, whose envelope carries it."""
    room = payload_bytes_max - ENVELOPE_HEADER_BYTES_MAX - _MANY_HEAD_BYTES
    held: list[Result] = []
    encoded: list[bytes] = []
    size = 0
    for result in results:
        raw = msgspec.msgpack.encode(result)
        if encoded and size + len(raw) > room:
            yield _batch(held, encoded)
            held, encoded, size = [], [], 0
        held.append(result)
        encoded.append(raw)
        size += len(raw)
    if encoded:
        yield _batch(held, encoded)


def _batch(results: list[Result], encoded: list[bytes]) -> tuple[MessageType, bytes, str]:
    if len(results) == 1:
        (alone,) = results
        raw = msgspec.msgpack.encode(msgspec.structs.replace(alone, correlation_id=""))
        return MessageType.RESULT, raw, alone.correlation_id
    head = b"\x91\xdd" + len(encoded).to_bytes(4, "big")
    return MessageType.RESULT_MANY, head + b"".join(encoded), ""


def announcements(descriptors: Sequence[bytes]) -> list[Announce]:
    """What a node offers, in messages that fit a payload. The last one is final, even if it is empty."""
    chunks: list[list[bytes]] = [[]]
    size = 0
    for raw in descriptors:
        if size + len(raw) > CHUNK_BYTES_MAX and chunks[-1]:
            chunks.append([])
            size = 0
        chunks[-1].append(raw)
        size += len(raw)
    last = len(chunks) - 1
    return [Announce(tuple(chunk), index == last) for index, chunk in enumerate(chunks)]
