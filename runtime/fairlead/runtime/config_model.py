"""What a configuration is made of: tables, the kinds of keys both processes use, and their shared keys.

Owns the spelling rules of ids, hosts, ports and secrets in a configuration. Invariant: no message of a
validator quotes the value it refuses, so a message can always be shown.
"""

from __future__ import annotations

import ipaddress
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, Strict
from pydantic.fields import FieldInfo

from fairlead.protocol import limits
from fairlead.protocol.preamble import IDENTITY_PATTERN
from fairlead.runtime.secret import decode_node_key, decode_secret, weakness

OPS_KEY_CHARS_MIN: Final = 32
PAYLOAD_BYTES_MIN: Final = 1_024
PAYLOAD_BYTES_MAX: Final = 16 * 1024 * 1024
DAY_MS: Final = 86_400_000
_HOST: Final = re.compile(r"(?=.{1,253}$)[0-9A-Za-z_]([0-9A-Za-z_-]*[0-9A-Za-z_])?(\.[0-9A-Za-z_-]+)*\.?")
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_OPS_KEY: Final = re.compile(r"[!-+\--~]+")  # printable ASCII without space or comma
_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Finding:
    """Keys that contradict each other. `paths` are all keys it rests on; it is told at the first."""

    paths: tuple[str, ...]
    found: object
    message: str
    action: str


class Unfit(ValueError):
    """Raised by a validator: what is wrong with a value, and what to do. Never quotes the value."""

    def __init__(self, message: str, action: str = "change it") -> None:
        super().__init__(message)
        self.action = action


class Section(BaseModel):
    """A table of keys. Frozen and strict; the docstring under each key is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Configuration(Section):
    """A whole file. Required keys carry an example, which also stands in for a refused value meanwhile."""

    def findings(self) -> Iterator[Finding]:
        """Contradictions between keys. Runs once each key, or its stand-in, is valid by itself."""
        yield from ()


# -- looking at a model


def keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every key with its path, through tables, without the keys of tables in arrays."""
    for name, field in model.model_fields.items():
        table = table_of(field)
        if table is not None:
            yield from keys(table, (*prefix, name))
        elif element_table_of(field) is None:
            yield (*prefix, name), field


def table_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a `[table]` key."""
    core = core_type(field.annotation)
    return core if isinstance(core, type) and issubclass(core, BaseModel) else None


def element_table_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of the elements of a `[[table]]` key."""
    core = core_type(field.annotation)
    if get_origin(core) is not tuple:
        return None
    element = core_type(get_args(core)[0])
    return element if isinstance(element, type) and issubclass(element, BaseModel) else None


def is_secret(field: FieldInfo) -> bool:
    """Whether the key holds a secret or several."""
    core = core_type(field.annotation)
    return core is SecretStr or (get_origin(core) is tuple and core_type(get_args(core)[0]) is SecretStr)


def core_type(annotation: Any) -> Any:
    """The type without `Annotated` and `| None`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return core_type(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return core_type(next(part for part in get_args(annotation) if part is not types.NoneType))
    return annotation


# -- kinds of keys


def _check_id(text: str) -> str:
    if not IDENTITY_PATTERN.fullmatch(text):
        raise Unfit(
            "is not an id (allowed: 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit)", "rename it"
        )
    return text


def _check_id_or_empty(text: str) -> str:
    return _check_id(text) if text else text


def _check_id_or_prefix(text: str) -> str:
    if text != "*":
        _check_id(text.removesuffix("*"))
    return text


def _check_namespace(text: str) -> str:
    if not _NAMESPACE.fullmatch(text):
        raise Unfit(
            "is not a namespace (allowed: 1 to 32 of a-z 0-9 _ -, beginning with a letter or digit)",
            "rename it",
        )
    if text == "fairlead":
        raise Unfit("is the proxy's own namespace, which no node may announce in", "choose another")
    return text


def _check_host(text: str) -> str:
    if ip_address(text) is None and not _HOST.fullmatch(text):
        raise Unfit("is not a host (allowed: a name or an address, without a port)", "correct it")
    return text


def _check_remote_host(text: str) -> str:
    address = ip_address(_check_host(text))
    if address is not None and address.is_unspecified:
        raise Unfit("is a wildcard, which cannot be dialled", "name one host")
    return text


def _check_endpoint(text: str) -> str:
    split_endpoint(text)
    return text


def _check_instant(text: str) -> str:
    instant_ms(text)
    return text


def _check_secret(secret: SecretStr) -> SecretStr:
    decoded = decode_secret(secret.get_secret_value())
    if isinstance(decoded, str):
        raise Unfit(
            f"{decoded} (allowed: 64 or more random hex digits, or base64 of at least 32 random bytes)",
            "make one with `fairlead secret new`",
        )
    return secret


def _check_node_key(secret: SecretStr) -> SecretStr:
    decoded = decode_node_key(secret.get_secret_value())
    if isinstance(decoded, str):
        raise Unfit(
            f"{decoded} (allowed: the 64 hex digits of a derived key)",
            "make one with `fairlead secret node-key ID`",
        )
    return secret


def _check_ops_key(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if len(text) < OPS_KEY_CHARS_MIN:
        wrong = f"is too short: {len(text)} characters"
    elif not _OPS_KEY.fullmatch(text):
        wrong = "has a character that is not allowed"
    else:
        wrong = weakness(text.encode())
    if wrong:
        raise Unfit(
            f"{wrong} (allowed: {OPS_KEY_CHARS_MIN} or more printable characters without space or comma)",
            "make one with `fairlead secret new`",
        )
    return secret


Environment = Literal["production", "development"]
Id = Annotated[str, AfterValidator(_check_id)]
IdOrEmpty = Annotated[str, AfterValidator(_check_id_or_empty)]
IdOrPrefix = Annotated[str, AfterValidator(_check_id_or_prefix)]
Namespace = Annotated[str, AfterValidator(_check_namespace)]  # that a node may be granted
Host = Annotated[str, AfterValidator(_check_host)]
RemoteHost = Annotated[str, AfterValidator(_check_remote_host)]
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]
Instant = Annotated[str, AfterValidator(_check_instant)]
FileName = Annotated[str, Field(min_length=1)]
Secret = Annotated[SecretStr, AfterValidator(_check_secret)]
NodeKey = Annotated[SecretStr, AfterValidator(_check_node_key)]
OpsKey = Annotated[SecretStr, AfterValidator(_check_ops_key)]
Lax = Strict(False)  # TOML has lists where a frozen model has tuples; what is in them stays strict


# -- reading values


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The numeric address, or None for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    address = _numeric(host)
    return address is not None and address.is_loopback


def may_clash(one: str, other: str) -> bool:
    """Whether two listeners of one port cannot both have these hosts. IPv6 sockets take no IPv4."""
    first, second = _numeric(one), _numeric(other)
    if first is None or second is None:
        return one == other or any(
            address is not None and address.is_unspecified for address in (first, second)
        )
    return first.version == second.version and (
        first == second or first.is_unspecified or second.is_unspecified
    )


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    return ip_address("127.0.0.1" if host == "localhost" else host)


def split_endpoint(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[address]:port`; `Unfit` if it is neither."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host or (":" in host) != bracketed or not re.fullmatch(r"[0-9]{1,5}", port):
        raise Unfit("is not host:port (an IPv6 address goes in brackets)", "correct it")
    if not 1 <= int(port) <= 65_535:
        raise Unfit("has no valid port (allowed: 1 to 65535)", "correct it")
    return _check_remote_host(host), int(port)


def instant_ms(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 date-time; `Unfit` if it is none."""
    try:
        if not _INSTANT.fullmatch(text):
            raise ValueError
        return int(datetime.fromisoformat(text.upper()).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise Unfit(
            "is not an RFC 3339 date-time with its offset (allowed: like 2030-01-31T12:00:00Z)", "correct it"
        ) from None


def decoded(secret: SecretStr | None) -> bytes | None:
    """The bytes of a secret that the model accepted."""
    found = decode_secret(secret.get_secret_value()) if secret is not None else None
    assert not isinstance(found, str), "a model holds no weak secret"
    return found


# -- keys that both processes have


class Logging(Section):
    """[logging]: what a process says."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["text", "json"] = "text"
    """How a line is written: key=value text, or one JSON object."""


class ControlKeys(Section):
    """What proxy and node must agree on about the control channel, with the same names and defaults."""

    control_max_payload: int = Field(
        limits.PAYLOAD_BYTES_MAX_DEFAULT, ge=PAYLOAD_BYTES_MIN, le=PAYLOAD_BYTES_MAX
    )
    """Largest payload of one message, in bytes. The same on proxy and nodes."""
    control_max_skew_millis: int = Field(limits.SKEW_MS_MAX_DEFAULT, ge=100, le=3_600_000)
    """How far the clocks of proxy and node may differ. Half of it degrades health."""
    control_ttl_millis: int = Field(limits.TTL_MS_MAX_DEFAULT, ge=100, le=3_600_000)
    """How long a message stays valid after it was issued."""
    control_max_inflight: int = Field(limits.INFLIGHT_MAX_DEFAULT, ge=1, le=65_536)
    """Messages of one link that may be in work at once; beyond it, reading stops."""
    control_replay_window_millis: int = Field(300_000, ge=1_000, le=DAY_MS)
    """How long a message is remembered. At least ttl + 2 x skew, so that none outlives its memory."""

    def control_findings(self, prefix: str) -> Iterator[Finding]:
        """The relations between these keys; `prefix` is the table they stand in."""
        window, ttl, skew, payload = (
            f"{prefix}control_{name}"
            for name in ("replay_window_millis", "ttl_millis", "max_skew_millis", "max_payload")
        )
        needed = self.control_ttl_millis + 2 * self.control_max_skew_millis
        if self.control_replay_window_millis < needed:
            yield Finding(
                (window, ttl, skew),
                self.control_replay_window_millis,
                f"forgets messages that are still valid (allowed: at least ttl + 2 x skew = {needed})",
                f"raise it, or lower {ttl} or {skew}",
            )
        chunk = limits.CHUNK_BYTES_MAX + 1_024
        if self.control_max_payload < chunk:
            yield Finding(
                (payload,),
                self.control_max_payload,
                f"is too small for a chunk of the registry (allowed: at least {chunk})",
                "raise it",
            )
