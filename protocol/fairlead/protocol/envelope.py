"""The envelope around every message, and the one chain of checks that lets a message in.

An envelope is a positional msgpack array:

    version, type, sender, audience, issued_at_ms, ttl_ms, nonce, correlation_id, body

The chain's order is fixed (`CHECK_ORDER`), each step has its own reason, and both ends call this one
function: nowhere else is any of these questions asked. Bytes reach it only after they authenticated, and
nothing is remembered before every check of what they claim has passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import msgspec

from fairlead.protocol import limits
from fairlead.protocol.keys import Role
from fairlead.protocol.messages import (
    CATALOGUE,
    REGISTRY_PUSHES,
    REGISTRY_REQUESTS,
    TYPE_OF,
    Message,
    MessageType,
)
from fairlead.protocol.reasons import Reason, Reject

_FIELDS: Final = 9
_SCALARS: Final = frozenset({str, bytes, int, bool, type(None), float})

# The order of the checks, as the design fixes it. In-flight slots come second and belong to the channel,
# which stops taking envelopes out of its buffer; the rest is `Guard.check`.
CHECK_ORDER: Final = (
    Reason.PACKET_TOO_LARGE,
    Reason.VERSION_MISMATCH,
    Reason.MALFORMED_ENVELOPE,
    Reason.UNEXPECTED_SENDER,
    Reason.WRONG_AUDIENCE,
    Reason.INVALID_TIMESTAMP,
    Reason.PAYLOAD_TOO_LARGE,
    Reason.REPLAYED_ENVELOPE,
    Reason.UNSUPPORTED_TYPE,
    Reason.UNAUTHORIZED_TYPE,
    Reason.MALFORMED_PAYLOAD,
)


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """What a channel takes. Times in milliseconds, sizes in bytes."""

    payload_bytes_max: int = limits.PAYLOAD_BYTES_MAX_DEFAULT
    ttl_ms_max: int = limits.TTL_MS_MAX_DEFAULT
    skew_ms_max: int = limits.SKEW_MS_MAX_DEFAULT
    inflight_max: int = limits.INFLIGHT_MAX_DEFAULT

    @property
    def envelope_bytes_max(self) -> int:
        return self.payload_bytes_max + limits.ENVELOPE_HEADER_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Envelope:
    """The header of a message that passed every check."""

    version: int
    type: MessageType
    sender: str
    audience: str
    issued_at_ms: int
    ttl_ms: int
    nonce: int
    correlation_id: str


def encode_body(message: Message) -> bytes:
    """A message's body, once for however many peers it goes to."""
    raw: bytes = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)), use_bin_type=True)
    return raw


def encode_envelope(
    version: int,
    number: int,
    sender: str,
    audience: str,
    issued_at_ms: int,
    ttl_ms: int,
    nonce: int,
    correlation_id: str,
    body: bytes,
) -> bytes:
    """Header and encoded body as one envelope."""
    head: bytes = msgpack.packb(
        (version, number, sender, audience, issued_at_ms, ttl_ms, nonce, correlation_id), use_bin_type=True
    )
    return bytes((0x90 | _FIELDS,)) + head[1:] + body


def peek_version(raw: bytes) -> int | None:
    """The version, read before anything else is decoded; None where the bytes are no envelope at all."""
    first = raw[0] if raw else 0
    at = 1 if 0x90 <= first <= 0x9F else 3 if first == 0xDC else 5 if first == 0xDD else 0  # array headers
    if not at or len(raw) <= at:
        return None
    if raw[at] == 0xCC:  # msgpack's spelling of 128 to 255
        return raw[at + 1] if len(raw) > at + 1 else None
    return raw[at] if raw[at] <= 0x7F else None


def _plain(value: Any, depth: int) -> bool:
    """Whether a decoded body holds only what this protocol speaks, no deeper than it may."""
    kind = type(value)
    if kind is dict:
        if not all(type(key) is str for key in value):
            return False
        value = value.values()
    elif kind is not list:
        return kind in _SCALARS
    if depth <= 0:
        return False
    for each in value:  # noqa: SIM110 - a loop, scalars without a call: every field of every message passes here
        if type(each) not in _SCALARS and not _plain(each, depth - 1):
            return False
    return True


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError("a key is given twice")
        found[key] = value
    return found


def _no_extension(code: int, _data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not part of this protocol")


class Guard:
    """The check chain of one direction of one link. Remembers one number: the last nonce."""

    __slots__ = ("_audience", "_last_nonce", "_limits", "_role", "_sender", "_version")

    def __init__(
        self, *, version: int, sender: str, role: Role, audience: str, bounds: ChannelLimits
    ) -> None:
        """`sender` and `role` are what the handshake proved; `audience` is who we are."""
        self._version, self._sender, self._role = version, sender, role
        self._audience, self._limits = audience, bounds
        self._last_nonce = 0

    def check(self, raw: bytes, now_ms: int) -> tuple[Envelope, Message] | Reject:
        """The message, or the first reason against it. `now_ms` is our wall clock."""
        if len(raw) > self._limits.envelope_bytes_max:
            return Reject(Reason.PACKET_TOO_LARGE, f"{len(raw)} bytes")
        version = peek_version(raw)
        if version is not None and version != self._version:
            return Reject(Reason.VERSION_MISMATCH, f"version {version}, agreed on {self._version}")
        decoded = self._decode(raw)
        if isinstance(decoded, Reject):
            return decoded
        _, number, sender, audience, issued_at_ms, ttl_ms, nonce, correlation_id, body = decoded
        if sender != self._sender:
            return Reject(Reason.UNEXPECTED_SENDER, f"says {sender!r}, the key proves {self._sender!r}")
        if audience != self._audience:
            return Reject(Reason.WRONG_AUDIENCE, f"meant for {audience!r}, we are {self._audience!r}")
        skew = self._limits.skew_ms_max
        if not 0 < ttl_ms <= self._limits.ttl_ms_max:
            return Reject(Reason.INVALID_TIMESTAMP, f"ttl of {ttl_ms} ms, at most {self._limits.ttl_ms_max}")
        if not issued_at_ms - skew <= now_ms <= issued_at_ms + ttl_ms + skew:
            return Reject(Reason.INVALID_TIMESTAMP, f"issued {now_ms - issued_at_ms} ms ago by our clock")
        # The header is bounded apart from the body, so what is left of a packet is its payload.
        if len(raw) - _header_bytes(sender, audience, correlation_id) > self._limits.payload_bytes_max:
            return Reject(Reason.PAYLOAD_TOO_LARGE, f"at most {self._limits.payload_bytes_max} bytes")
        if nonce <= self._last_nonce:
            return Reject(_replay_reason(number), f"nonce {nonce} after {self._last_nonce}")
        self._last_nonce = nonce
        row = CATALOGUE.get(number)
        if row is None:
            return Reject(Reason.UNSUPPORTED_TYPE, f"type {number}")
        if self._role not in row[1]:
            return Reject(Reason.UNAUTHORIZED_TYPE, f"{row[0].__name__} from role {self._role.name.lower()}")
        try:
            message: Message = msgspec.convert(body, row[0], strict=True)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            return Reject(Reason.MALFORMED_PAYLOAD, f"{row[0].__name__}: {error}")
        header = Envelope(
            self._version, MessageType(number), sender, audience, issued_at_ms, ttl_ms, nonce, correlation_id
        )
        return header, message

    def _decode(self, raw: bytes) -> list[Any] | Reject:
        try:
            decoded = msgpack.unpackb(
                raw, raw=False, strict_map_key=True, ext_hook=_no_extension, timestamp=0, object_pairs_hook=_unique,
                max_str_len=len(raw), max_bin_len=len(raw), max_array_len=len(raw), max_map_len=len(raw),
            )  # fmt: skip
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            return Reject(Reason.MALFORMED_ENVELOPE, f"cannot be decoded: {type(error).__name__}")
        if type(decoded) is not list or len(decoded) != _FIELDS:
            return Reject(Reason.MALFORMED_ENVELOPE, "not an array of nine")
        for index, kind in ((0, int), (1, int), (2, str), (3, str), (4, int), (5, int), (6, int), (7, str)):
            if type(decoded[index]) is not kind:  # exact: a bool is not an integer here, nor a float
                return Reject(Reason.MALFORMED_ENVELOPE, f"field {index} is not {kind.__name__}")
        if type(decoded[8]) is not list or not _plain(decoded[8], limits.ARGUMENT_DEPTH_MAX):
            return Reject(Reason.MALFORMED_ENVELOPE, "the body is not a plain array")
        if len(decoded[7]) > limits.CORRELATION_ID_CHARS_MAX:
            return Reject(Reason.MALFORMED_ENVELOPE, "the correlation id is too long")
        return decoded


def _header_bytes(sender: str, audience: str, correlation_id: str) -> int:
    """A lower bound of the header's size, so that body bytes are never taken for header."""
    return 2 + len(sender) + len(audience) + len(correlation_id)


def _replay_reason(number: int) -> Reason:
    if number in REGISTRY_REQUESTS:
        return Reason.REPLAYED_REQUEST
    if number in REGISTRY_PUSHES:
        return Reason.REPLAYED_SNAPSHOT
    return Reason.REPLAYED_ENVELOPE


class Stamper:
    """The sending side: puts header and nonce on outgoing messages."""

    __slots__ = ("_audience", "_bounds", "_nonce", "_sender", "_version")

    def __init__(self, *, version: int, sender: str, audience: str, bounds: ChannelLimits) -> None:
        self._version, self._sender, self._audience, self._bounds = version, sender, audience, bounds
        self._nonce = 0

    def stamp(self, message: Message, now_ms: int, correlation_id: str = "") -> bytes | Reject:
        return self.stamp_encoded(TYPE_OF[type(message)], encode_body(message), now_ms, correlation_id)

    def stamp_encoded(
        self, number: MessageType, body: bytes, now_ms: int, correlation_id: str = ""
    ) -> bytes | Reject:
        if len(body) > self._bounds.payload_bytes_max - limits.ENVELOPE_HEADER_BYTES_MAX:
            return Reject(Reason.OUTBOUND_PAYLOAD_TOO_LARGE, f"{number.name}: {len(body)} bytes")
        self._nonce += 1
        return encode_envelope(
            self._version, int(number), self._sender, self._audience, now_ms, self._bounds.ttl_ms_max,
            self._nonce, correlation_id[: limits.CORRELATION_ID_CHARS_MAX], body,
        )  # fmt: skip
