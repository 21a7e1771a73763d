"""Pure. From a request's body to a run that may be accepted, or the reason why not.

On the command's journey after authentication and before the store. Everything that can be judged from the
request, the registry and the known nodes is judged here, and every problem of the arguments is named at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Item, Registry
from fairlead.protocol.schema import argument_problems
from fairlead.proxy.store.interface import NewRun

_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DEFAULT_TENANT: Final = "default"
ANY: Final = "any"
ALL: Final = "all"


class Submission(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/dispatch."""

    command: str
    args: dict[str, Any] = {}
    target: str = ANY
    tenant: str = DEFAULT_TENANT
    idempotency_key: str | None = None
    deadline_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SubmitLimits:
    """Bounds of a submission, from the configuration."""

    args_bytes_max: int
    batch_items_max: int
    deadline_default_ms: int
    deadline_max_ms: int
    idempotency_enabled: bool


def parse_one(body: bytes) -> Submission:
    """Raises Refused(BODY_MALFORMED) with the path of the problem."""
    try:
        return msgspec.json.decode(body, type=Submission)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error


def parse_batch(body: bytes, bounds: SubmitLimits) -> list[Submission | Refused]:
    """A JSON array, or an object with `items`: each item judged by itself. Raises Refused for the whole."""
    try:
        decoded = msgspec.json.decode(body, type=list[msgspec.Raw] | dict[str, list[msgspec.Raw]])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error
    if isinstance(decoded, dict):
        if set(decoded) != {"items"}:
            raise Refused(Reason.BODY_MALFORMED, "expected an array, or an object with `items` only")
        decoded = decoded["items"]
    if not decoded:
        raise Refused(Reason.BODY_MALFORMED, "the batch is empty")
    if len(decoded) > bounds.batch_items_max:
        raise Refused(Reason.BATCH_TOO_LARGE, f"{len(decoded)} items, at most {bounds.batch_items_max}")
    found: list[Submission | Refused] = []
    for raw in decoded:
        try:
            found.append(parse_one(bytes(raw)))
        except Refused as refused:
            found.append(refused)
    return found


@dataclass(frozen=True, slots=True)
class Planned:
    """A submission that may be accepted: its run and the descriptor it will execute."""

    run: NewRun
    item: Item


def plan(
    asked: Submission,
    header_key: str | None,
    registry: Registry,
    node_ids: Collection[str],
    offering: Callable[[str], list[str]],
    identity: Identity,
    correlation_id: str,
    bounds: SubmitLimits,
    new_id: Callable[[], str],
    now_ms: int,
) -> Planned:
    """Raises Refused. `offering(command)` lists the linked nodes that can execute it."""
    item = _resolve(registry, asked.command)
    descriptor = item.descriptor
    if not _TENANT.fullmatch(asked.tenant):
        raise Refused(Reason.BODY_MALFORMED, "tenant must be 1 to 64 letters, digits, dots, dashes")
    args_json = msgspec.json.encode(asked.args)
    if len(args_json) > bounds.args_bytes_max:
        raise Refused(
            Reason.BODY_TOO_LARGE, f"args have {len(args_json)} bytes, at most {bounds.args_bytes_max}"
        )
    problems = argument_problems(descriptor.parameters, asked.args)
    if problems:
        raise Refused(Reason.ARGUMENTS_INVALID, "; ".join(problems))
    deadline_ms = bounds.deadline_default_ms if asked.deadline_ms is None else asked.deadline_ms
    if not 1 <= deadline_ms <= bounds.deadline_max_ms:
        raise Refused(Reason.DEADLINE_INVALID, f"deadline_ms must be from 1 to {bounds.deadline_max_ms}")
    key = idempotency_key(asked, header_key, bounds)
    payload_hash = payload_hash_of(asked) if key else b""
    run_id = new_id()

    def run(identifier: str, target: str, node: str, **more: Any) -> NewRun:
        return NewRun(
            run_id=identifier, tenant=asked.tenant, command=descriptor.name, effect=descriptor.effect,
            args_json=args_json, target=target, target_node=node,
            identity_json=msgspec.json.encode(identity), correlation_id=correlation_id, accepted_at_ms=now_ms,
            deadline_at_ms=now_ms + deadline_ms, timeout_ms=descriptor.timeout_ms,
            attempts_max=descriptor.attempts_max, **more,
        )  # fmt: skip

    if asked.target == ALL:
        nodes = offering(descriptor.name)
        if not nodes:
            raise Refused(Reason.TARGET_UNKNOWN, f"no linked node offers {descriptor.name}")
        children = tuple(run(new_id(), node, node, parent_id=run_id) for node in nodes)
        whole = run(run_id, ALL, "", children=children, idempotency_key=key, payload_hash=payload_hash)
        return Planned(whole, item)
    node = "" if asked.target == ANY else asked.target
    if asked.target != ANY and node not in node_ids:
        if ":" in node or "=" in node or not node:
            raise Refused(Reason.TARGET_INVALID, f"{asked.target!r}: use a node id, `any` or `all`")
        raise Refused(Reason.TARGET_UNKNOWN, f"no node {node!r}")
    single = run(run_id, asked.target, node, idempotency_key=key, payload_hash=payload_hash)
    return Planned(single, item)


def _resolve(registry: Registry, name: str) -> Item:
    found = registry.resolve(name)
    if isinstance(found, Item):
        return found
    if found:
        raise Refused(Reason.COMMAND_UNKNOWN, f"{name!r} is ambiguous: {', '.join(found)}")
    raise Refused(Reason.COMMAND_UNKNOWN, f"{name!r}")


def payload_hash_of(asked: Submission) -> bytes:
    """What makes two requests under one key the same request: everything but the key."""
    payload = (asked.command, asked.args, asked.target, asked.deadline_ms)
    encoded = msgspec.json.encode(payload, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=32).digest()


def idempotency_key(asked: Submission, header_key: str | None, bounds: SubmitLimits) -> str:
    """The key of a submission, or "". Raises Refused(IDEMPOTENCY_KEY_INVALID)."""
    if header_key is not None and header_key[:1] == '"' == header_key[-1:] and len(header_key) > 1:
        header_key = header_key[1:-1]  # the header is a structured-field string where written by the draft
    given = [key for key in (header_key, asked.idempotency_key) if key is not None]
    if not given:
        return ""
    if len(given) == 2 and given[0] != given[1]:
        raise Refused(Reason.IDEMPOTENCY_KEY_INVALID, "header and body name different keys")
    if not bounds.idempotency_enabled:
        raise Refused(Reason.IDEMPOTENCY_KEY_INVALID, "idempotency keys are turned off here")
    if not _KEY.fullmatch(given[0]):
        raise Refused(Reason.IDEMPOTENCY_KEY_INVALID, "use 1 to 200 visible ASCII characters")
    return given[0]
