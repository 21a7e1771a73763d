"""The command registry as a value: descriptors, their canonical bytes, digest, and positions.

Both ends compute the same digest from the same canonical bytes, so after every change they can prove to each
other that they hold the same commands. Content is compared, never inferred from a generation alone.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgpack
import msgspec

from fairlead.protocol.limits import (
    ALIASES_MAX,
    DESCRIPTOR_BYTES_MAX,
    NAME_CHARS_MAX,
    PARAMETERS_MAX,
    REGISTRY_BYTES_MAX,
    REGISTRY_COMMANDS_MAX,
    TEXT_CHARS_MAX,
)
from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.schema import Parameter, parameter_problem

NAME_PATTERN: Final = re.compile(r"([a-z0-9][a-z0-9_-]{0,31}):([a-z0-9][a-z0-9_.-]{0,63})")
ALIAS_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


# Integers on the wire are bounded by what a database holds; msgpack itself would carry twice as much.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Signed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Effect(enum.StrEnum):
    """What may be concluded when nobody saw the end of an execution."""

    IDEMPOTENT = "idempotent"  # may run again, anywhere
    TRANSACTIONAL = "transactional"  # its effect shares the inbox's transaction: exactly once
    ONCE = "once"  # everything else: never re-run by itself


class Flag(enum.IntFlag):
    """Bits of `Descriptor.flags`."""

    PLAYER_ONLY = 1
    HIDDEN = 2
    REQUIRES_APPROVAL = 4


class Descriptor(msgspec.Struct, frozen=True, array_like=True):
    """A command: what it is called, takes, may do, and where it runs."""

    name: str
    version: int = 1
    aliases: tuple[str, ...] = ()
    description: str = ""
    usage: str = ""
    parameters: tuple[Parameter, ...] = ()
    permission: str = ""
    flags: int = 0
    effect: str = Effect.ONCE.value
    timeout_ms: int = 30_000
    attempts_max: int = 0  # 0: as the proxy is configured
    runs_on: str = "node"

    @property
    def namespace(self) -> str:
        return self.name.partition(":")[0]


PARAMETERS_AT: Final = Descriptor.__struct_fields__.index("parameters")


@dataclass(frozen=True, slots=True)
class Item:
    """A descriptor with the bytes it is known by."""

    descriptor: Descriptor
    canonical: bytes
    digest: bytes


def canonical_item(descriptor: Descriptor) -> Item:
    """The one encoding of a descriptor: positional msgpack, no maps, so nothing can be ordered two ways."""
    fields = list(msgspec.to_builtins(descriptor))
    # What came later and is not used is left out, so that the same command has the same digest in every version.
    fields[PARAMETERS_AT] = [each if each[-1] else each[:-1] for each in fields[PARAMETERS_AT]]
    raw: bytes = msgpack.packb(fields, use_bin_type=True)
    return Item(descriptor, raw, hashlib.blake2b(raw, digest_size=32).digest())


def decode_item(raw: bytes) -> Item | Reject:
    """A descriptor from the wire, or why it is refused. Bytes that are not canonical are refused."""
    if len(raw) > DESCRIPTOR_BYTES_MAX:
        return Reject(Reason.DESCRIPTOR_INVALID, f"{len(raw)} bytes; at most {DESCRIPTOR_BYTES_MAX}")
    try:
        descriptor = msgspec.convert(msgpack.unpackb(raw, raw=False, strict_map_key=True), Descriptor)
    except (ValueError, TypeError, msgspec.ValidationError, msgpack.UnpackException) as error:
        return Reject(Reason.DESCRIPTOR_INVALID, f"cannot be decoded: {error}")
    problem = descriptor_problem(descriptor)
    if problem:
        return Reject(Reason.DESCRIPTOR_INVALID, problem)
    item = canonical_item(descriptor)
    if item.canonical != raw:
        return Reject(Reason.DESCRIPTOR_INVALID, "the bytes are not the canonical encoding")
    return item


def descriptor_problem(descriptor: Descriptor) -> str | None:
    """The first rule that a descriptor breaks, as a sentence."""
    if not NAME_PATTERN.fullmatch(descriptor.name) or len(descriptor.name) > NAME_CHARS_MAX:
        return f"name {descriptor.name!r} must look like namespace:name, lower case"
    if descriptor.version < 1:
        return "version must be at least 1"
    if len(descriptor.aliases) > ALIASES_MAX:
        return f"at most {ALIASES_MAX} aliases"
    for alias in descriptor.aliases:
        if not ALIAS_PATTERN.fullmatch(alias):
            return f"alias {alias!r} has characters that names may not have"
    for text in (descriptor.description, descriptor.usage, descriptor.permission):
        if len(text) > TEXT_CHARS_MAX:
            return f"a text is longer than {TEXT_CHARS_MAX} characters"
    if len(descriptor.parameters) > PARAMETERS_MAX:
        return f"at most {PARAMETERS_MAX} parameters"
    seen: set[str] = set()
    for parameter in descriptor.parameters:
        problem = parameter_problem(parameter)
        if problem:
            return problem
        if parameter.name in seen:
            return f"parameter {parameter.name} is declared twice"
        seen.add(parameter.name)
    if descriptor.effect not in tuple(Effect):
        return f"effect {descriptor.effect!r} must be one of {', '.join(Effect)}"
    if not 1 <= descriptor.timeout_ms <= 3_600_000:
        return "timeout must be from 1 ms to 1 hour"
    if not 0 <= descriptor.attempts_max <= 20:
        return "attempts_max must be from 0 (as configured) to 20"
    if descriptor.runs_on not in ("node", "proxy"):
        return "runs_on must be node or proxy"
    return None


class Position(msgspec.Struct, frozen=True, array_like=True):
    """Where a holder of the registry stands. Ordered by (epoch, generation) within one fleet."""

    fleet_id: str = ""
    epoch: Count = 0
    generation: Count = 0
    digest: bytes = b""

    def precedes(self, other: Position) -> bool:
        return (self.epoch, self.generation) < (other.epoch, other.generation)


def registry_digest(items: Iterable[Item]) -> bytes:
    """BLAKE2b-256 over name and digest of every item, sorted by name."""
    total = hashlib.blake2b(digest_size=32, person=b"fairlead-regist")
    for item in sorted(items, key=lambda each: each.descriptor.name):
        name = item.descriptor.name.encode()
        total.update(len(name).to_bytes(2, "big") + name + item.digest)
    return total.digest()


@dataclass(slots=True)
class Registry:
    """A consistent set of commands at a position. Replaced whole, never edited in place."""

    position: Position
    items: Mapping[str, Item] = field(default_factory=dict)
    _short: dict[str, tuple[str, ...]] | None = None

    def get(self, name: str) -> Item | None:
        return self.items.get(name)

    def resolve(self, name: str) -> Item | tuple[str, ...]:
        """The command called `name`: its full name always, a short name or alias only while it is free.

        Returns the names that claim it where there are none or several: a name that changes its meaning
        because somebody else registered something would be worse than one that stops working.
        """
        found = self.items.get(name)
        if found is not None:
            return found
        if self._short is None:
            short: dict[str, tuple[str, ...]] = {}
            for full in sorted(self.items):
                descriptor = self.items[full].descriptor
                names = dict.fromkeys((full.partition(":")[2], *descriptor.aliases))
                if not descriptor.flags & Flag.HIDDEN:
                    for each in names:
                        short[each] = (*short.get(each, ()), full)
            self._short = short
        claims = self._short.get(name, ())
        return self.items[claims[0]] if len(claims) == 1 else claims

    def with_changes(
        self, fleet_id: str, epoch: int, generation: int, upserts: Iterable[Item], removals: Iterable[str]
    ) -> Registry | Reject:
        """The registry after a change, its digest computed; or why it would be too large."""
        items = dict(self.items)
        for name in removals:
            items.pop(name, None)
        for item in upserts:
            items[item.descriptor.name] = item
        return build(fleet_id, epoch, generation, items)


def build(fleet_id: str, epoch: int, generation: int, items: Mapping[str, Item]) -> Registry | Reject:
    """A registry of `items` at a position, its digest computed; or a refusal if it breaks a limit."""
    if len(items) > REGISTRY_COMMANDS_MAX:
        return Reject(Reason.REGISTRY_TOO_LARGE, f"{len(items)} commands; at most {REGISTRY_COMMANDS_MAX}")
    size = sum(len(item.canonical) for item in items.values())
    if size > REGISTRY_BYTES_MAX:
        return Reject(Reason.REGISTRY_TOO_LARGE, f"{size} bytes; at most {REGISTRY_BYTES_MAX}")
    return Registry(Position(fleet_id, epoch, generation, registry_digest(items.values())), items)
