"""Pure. From a request's body to a run that may be accepted, or the reason why not.

On the command's journey after authentication and before the store. Everything that can be judged from the
request, the registry and the known nodes is judged here, and every problem of the arguments is named at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Flag, Item, Registry
from fairlead.protocol.schema import argument_problems
from fairlead.proxy.dispatch.approvals import ApprovalSettings
from fairlead.proxy.store.records import NewRun
from fairlead.runtime.addresses import callback_url_problem
from fairlead.runtime.strict_json import json_problem

_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DEFAULT_TENANT: Final = "default"
ANY: Final = "any"
ALL: Final = "all"
PRIORITY_DEFAULT: Final = 5
UNKNOWN_PERMISSION: Final = "(unknown)"  # no scope can name it
SESSION_TARGET: Final = "session:"
PLAYER_AUTH: Final = "player"  # how a player is known: the node that has it said so, and the proxy looked
PRIORITY_MAX: Final = 9
_TERM: Final = re.compile(r"([a-z0-9][a-z0-9._-]{0,62})(!?=)([A-Za-z0-9._-]{0,63})")


class Submission(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/dispatch."""

    command: str
    args: dict[str, Any] = {}
    target: str = ANY
    tenant: str | None = None  # the caller's own, else "default"
    idempotency_key: str | None = None
    deadline_ms: int | None = None
    ordering_key: str = ""
    priority: int = PRIORITY_DEFAULT
    delay_ms: int = 0
    schedule_at: str | None = None
    callback_url: str = ""


def needs_none(caller: Identity, permission: str) -> bool:
    """What holds where nobody says who has which permission: nobody has any."""
    return not permission


class SessionPlaces(Protocol):
    """What planning asks about clients' sessions."""

    def node_of(self, session_id: str) -> str:
        """The node that holds it now. Raises Refused where none does, or nobody here knows the session."""

    def proxy_of(self, session_id: str) -> str:
        """The proxy that holds it, as a place for runs; of "": this one. Raises Refused where there is no such."""


class NoSessions:
    """Where no clients come in."""

    def node_of(self, session_id: str) -> str:
        raise Refused(Reason.SESSION_UNKNOWN, session_id[:80])

    def proxy_of(self, session_id: str) -> str:
        raise Refused(Reason.SESSION_UNKNOWN, session_id[:80] or "this proxy has no clients")


@dataclass(frozen=True, slots=True)
class SubmitLimits:
    """Bounds of a submission, from the configuration."""

    args_bytes_max: int
    batch_items_max: int
    deadline_default_ms: int
    deadline_max_ms: int
    idempotency_enabled: bool
    schedule_max_ms: int = 30 * 86_400_000
    callback_hosts: tuple[str, ...] = ()
    callbacks_signed: bool = True  # a secret is configured to sign callbacks with
    permits: Callable[[Identity, str], bool] = (
        needs_none  # whether a caller has the permission that a command names
    )
    approvals: ApprovalSettings = field(default_factory=ApprovalSettings)
    sessions: SessionPlaces = field(default_factory=NoSessions)
    variant: Callable[[str, str], str] = lambda command, tenant: (
        command
    )  # what executes in a rollout of a command


class NodesView(Protocol):
    """What planning asks about nodes."""

    def node_ids(self) -> Collection[str]:
        """All that are known, linked or not."""

    def offering(self, command: str) -> list[str]:
        """Linked nodes that can execute a command."""

    def labels(self, node_id: str) -> dict[str, str]: ...


def parse_one(body: bytes) -> Submission:
    """Raises Refused(BODY_MALFORMED) with the path of the problem."""
    check_json(body)
    return _decode(body)


def check_json(body: bytes) -> None:
    """Raises Refused(BODY_MALFORMED) where a body can be read in two ways, or not at all."""
    problem = json_problem(body)
    if problem:
        raise Refused(Reason.BODY_MALFORMED, problem)


def _decode(body: bytes) -> Submission:
    try:
        return msgspec.json.decode(body, type=Submission)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error


def parse_batch(body: bytes, bounds: SubmitLimits) -> list[Submission | Refused]:
    """A JSON array, or an object with `items`: each item judged by itself. Raises Refused for the whole."""
    check_json(body)
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
            found.append(_decode(bytes(raw)))
        except Refused as refused:
            found.append(refused)
    return found


class Planned(msgspec.Struct, frozen=True):
    """A submission that may be accepted: its run and the descriptor it will execute."""

    run: NewRun
    item: Item


def plan(
    asked: Submission,
    header_key: str | None,
    registry: Registry,
    nodes: NodesView,
    identity: Identity,
    correlation_id: str,
    bounds: SubmitLimits,
    new_id: Callable[[], str],
    now_ms: int,
) -> Planned:
    """A submission as it comes over HTTP. Raises Refused."""
    tenant = tenant_of(asked, identity)
    item = resolve(registry, bounds.variant(asked.command, tenant))
    check_caller(item, identity, bounds)
    args_json = msgspec.json.encode(asked.args)
    if len(args_json) > bounds.args_bytes_max:
        raise Refused(
            Reason.BODY_TOO_LARGE, f"args have {len(args_json)} bytes, at most {bounds.args_bytes_max}"
        )
    problems = argument_problems(item.descriptor.parameters, asked.args)
    if problems:
        raise Refused(Reason.ARGUMENTS_INVALID, "; ".join(problems))
    key = idempotency_key(asked, header_key, bounds)
    return build(
        item, args_json, asked.target, nodes, msgspec.json.encode(identity), tenant, correlation_id, new_id(),
        now_ms, bounds, deadline_ms=asked.deadline_ms, delay_ms=delay_of(asked, now_ms),
        ordering_key=asked.ordering_key, priority=asked.priority, callback_url=asked.callback_url,
        idempotency_key=key, payload_hash=payload_hash_of(asked) if key else b"", new_id=new_id,
    )  # fmt: skip


def build(
    item: Item,
    args_json: bytes,
    target: str,
    nodes: NodesView,
    identity_json: bytes,
    tenant: str,
    correlation_id: str,
    run_id: str,
    now_ms: int,
    bounds: SubmitLimits,
    *,
    new_id: Callable[[], str],
    deadline_ms: int | None = None,
    delay_ms: int = 0,
    ordering_key: str = "",
    priority: int = PRIORITY_DEFAULT,
    callback_url: str = "",
    idempotency_key: str = "",
    payload_hash: bytes = b"",
    chosen_id: bool = False,
) -> Planned:
    """The run of a submission whose command and arguments have been judged. Raises Refused."""
    descriptor = item.descriptor
    if deadline_ms is None:
        deadline_ms = bounds.deadline_default_ms
    elif not 1 <= deadline_ms <= bounds.deadline_max_ms:
        raise Refused(Reason.DEADLINE_INVALID, f"deadline_ms must be from 1 to {bounds.deadline_max_ms}")
    if not 0 <= delay_ms <= bounds.schedule_max_ms:
        raise Refused(Reason.SCHEDULE_INVALID, f"at most {bounds.schedule_max_ms} ms ahead")
    if not 0 <= priority <= PRIORITY_MAX:
        raise Refused(Reason.BODY_MALFORMED, f"priority must be from 0 to {PRIORITY_MAX}, the highest first")
    if ordering_key and not _KEY.fullmatch(ordering_key):
        raise Refused(Reason.BODY_MALFORMED, "ordering_key must be 1 to 200 visible ASCII characters")
    if callback_url:
        problem = callback_url_problem(callback_url, bounds.callback_hosts)
        if not bounds.callbacks_signed:
            problem = "this proxy has no worker.callback_signing_secret to sign callbacks with"
        if problem:
            raise Refused(Reason.CALLBACK_URL_REFUSED, problem)
    not_before_ms = now_ms + delay_ms if delay_ms else 0
    run = NewRun(
        run_id, tenant, descriptor.name, descriptor.effect, args_json, target, "", identity_json, correlation_id,
        now_ms, now_ms + delay_ms + deadline_ms, descriptor.timeout_ms, descriptor.attempts_max,
        idempotency_key, payload_hash, None, (), "", "", "", ordering_key, priority, not_before_ms, callback_url,
        chosen_id,
    )  # fmt: skip
    if descriptor.runs_on == "proxy":
        place = _proxy_of(target, args_json, bounds.sessions)
        return Planned(msgspec.structs.replace(run, target_node=place), item)
    if target == ANY:
        return Planned(run, item)
    if target.startswith(SESSION_TARGET):
        node = bounds.sessions.node_of(target.removeprefix(SESSION_TARGET))
        return Planned(msgspec.structs.replace(run, target_node=node), item)
    if target == ALL or "=" in target:
        members = _members(target, descriptor.name, nodes)
        children = tuple(
            msgspec.structs.replace(
                run, run_id=new_id(), target=node, target_node=node, parent_id=run_id, idempotency_key="",
                payload_hash=b"", callback_url="", chosen_id=False,
            )
            for node in members
        )  # fmt: skip
        return Planned(msgspec.structs.replace(run, children=children), item)
    if target not in nodes.node_ids():
        if ":" in target or not target:
            raise Refused(
                Reason.TARGET_INVALID,
                f"{target!r}: use a node id, `any`, `all`, labels such as region=eu, or session:<id>",
            )
        raise Refused(Reason.TARGET_UNKNOWN, f"no node {target!r}")
    return Planned(msgspec.structs.replace(run, target_node=target), item)


def _proxy_of(target: str, args_json: bytes, sessions: SessionPlaces) -> str:
    """Which proxy executes what runs on proxies: the one that holds the session that it is about, else this one."""
    if target.startswith(SESSION_TARGET):
        return sessions.proxy_of(target.removeprefix(SESSION_TARGET))
    if target != ANY:
        raise Refused(
            Reason.TARGET_INVALID, f"{target!r}: the command runs on the proxy; use `any` or session:<id>"
        )
    named = msgspec.json.decode(args_json).get("session")
    return sessions.proxy_of(named if isinstance(named, str) else "")


def _members(target: str, command: str, nodes: NodesView) -> list[str]:
    """The linked nodes that a target of several stands for, now."""
    terms = () if target == ALL else selector(target)
    found = [
        node
        for node in nodes.offering(command)
        if all((nodes.labels(node).get(name) == value) is equal for name, equal, value in terms)
    ]
    if not found:
        detail = f"no linked node offers {command}" + ("" if target == ALL else f" and has {target}")
        raise Refused(Reason.TARGET_UNKNOWN, detail)
    return found


def selector(text: str) -> tuple[tuple[str, bool, str], ...]:
    """`region=eu,tier!=spare` as (label, equal, value). Raises Refused(TARGET_INVALID)."""
    terms = []
    for part in text.split(","):
        match = _TERM.fullmatch(part.strip())
        if match is None:
            raise Refused(Reason.TARGET_INVALID, f"{part!r} is no label=value or label!=value")
        terms.append((match[1], match[2] == "=", match[3]))
    return tuple(terms)


def delay_of(asked: Submission, now_ms: int) -> int:
    """How long the run has to wait, in milliseconds: `delay_ms`, or until `schedule_at`. Raises Refused."""
    if asked.schedule_at is None:
        return asked.delay_ms
    if asked.delay_ms:
        raise Refused(Reason.SCHEDULE_INVALID, "use delay_ms or schedule_at, not both")
    try:
        moment = datetime.fromisoformat(asked.schedule_at)
    except ValueError as error:
        raise Refused(Reason.SCHEDULE_INVALID, f"schedule_at: {error}") from error
    if moment.tzinfo is None:
        raise Refused(Reason.SCHEDULE_INVALID, "schedule_at needs an offset, such as Z or +02:00 (RFC 3339)")
    return max(0, round(moment.timestamp() * 1000) - now_ms)


def tenant_of(asked: Submission, identity: Identity) -> str:
    """On whose behalf it executes: what the body names, else the caller's own. Raises Refused."""
    if asked.tenant is None:
        return identity.tenant or DEFAULT_TENANT
    if not _TENANT.fullmatch(asked.tenant):
        raise Refused(Reason.BODY_MALFORMED, "tenant must be 1 to 64 letters, digits, dots, dashes")
    if identity.tenant and asked.tenant != identity.tenant:
        detail = f"{identity.principal} is bound to {identity.tenant}, not to {asked.tenant}"
        raise Refused(Reason.SECURITY_TENANT_MISMATCH, detail)
    return asked.tenant


def check_caller(item: Item, identity: Identity, bounds: SubmitLimits) -> None:
    """Raises Refused where the command is not for this caller: for players only, or for who has a permission."""
    if item.descriptor.flags & Flag.PLAYER_ONLY and identity.auth != PLAYER_AUTH:
        raise Refused(Reason.PLAYER_ONLY, f"{item.descriptor.name}, called by {identity.principal}")
    if item.descriptor.runs_on == "proxy" and identity.tenant and identity.auth != PLAYER_AUTH:
        detail = (
            f"{item.descriptor.name} concerns all tenants, {identity.principal} is bound to {identity.tenant}"
        )
        raise Refused(Reason.SECURITY_TENANT_MISMATCH, detail)
    check_permission(item, identity, bounds)


def check_permission(item: Item, identity: Identity, bounds: SubmitLimits) -> None:
    """Raises Refused where the command asks for a permission that the caller lacks."""
    permission = item.descriptor.permission
    if permission and not bounds.permits(identity, permission):
        raise Refused(
            Reason.PERMISSION_DENIED,
            f"{item.descriptor.name} asks for {permission}, {identity.principal} lacks it",
        )


def check_permission_of(command: str, registry: Registry, identity: Identity, bounds: SubmitLimits) -> None:
    """The same for a run that there is already. What the registry does not know any more may have asked for
    anything."""
    item = registry.get(command)
    if item is not None:
        check_permission(item, identity, bounds)
    elif not bounds.permits(identity, UNKNOWN_PERMISSION):
        raise Refused(Reason.PERMISSION_DENIED, f"what {command} asks for is not known any more")


def resolve(registry: Registry, name: str) -> Item:
    found = registry.resolve(name)
    if isinstance(found, Item):
        return found
    if found:
        raise Refused(Reason.COMMAND_UNKNOWN, f"{name!r} is ambiguous: {', '.join(found)}")
    raise Refused(Reason.COMMAND_UNKNOWN, f"{name!r}")


def payload_hash_of(asked: Submission) -> bytes:
    """What makes two requests under one key the same request: everything but the key."""
    payload = (
        asked.command, asked.args, asked.target, asked.deadline_ms, asked.ordering_key, asked.priority, asked.delay_ms,
        asked.schedule_at, asked.callback_url,
    )  # fmt: skip
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
