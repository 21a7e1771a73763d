"""The one builder of audit events from requests: who did it, how they proved it, from where, and why.

On the journey of an operator's call after authorization and before the store, which writes the event in the
transaction of the action. The event has an id of its own, so that two equal calls in one millisecond are two events
and a job that runs twice writes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.registry import Registry
from fairlead.protocol.schema import redacted
from fairlead.proxy.store.records import AuditEvent
from fairlead.runtime.http.message import Request
from fairlead.runtime.world import World

REASON_HEADER: Final = "x-reason"
WHY_CHARS_MAX: Final = 500
BODY_BYTES_READ_MAX: Final = 65_536  # a larger body is no operator's form, and is not searched for its reason


class _Why(msgspec.Struct):
    why: Any = ""
    reason: Any = ""


def event_of(
    world: World,
    request: Request,
    caller: Identity,
    action: str,
    *,
    tenant: str = "",
    scope: str = "",
    detail: Mapping[str, Any] | None = None,
    target_count: int = 1,
    success_count: int = 1,
    failure_count: int = 0,
    result: str = "ok",
    why: str | None = None,
) -> AuditEvent:
    """What a request does, for the audit trail. `scope`: which one (a node, a run, a record); `why`: where the caller's
    own words are known already, else the header x-reason, or `why` or `reason` of the body."""
    return AuditEvent(
        action, world.wall_ms(), caller.principal, tenant, scope, target_count, success_count, failure_count,
        detail or {}, request.correlation_id, caller.auth, request.peer_host, why_of(request) if why is None else why,
        result, id=world.new_id(),
    )  # fmt: skip


def shown_run(run: dict[str, Any], registry: Registry) -> dict[str, Any]:
    """A run as people may see it: without the values that its command's schema calls secret. Of a command that the
    registry does not have any more nobody knows which those are, so none is shown."""
    item = registry.get(run["command"])
    run["args"] = redacted(item.descriptor.parameters if item else None, run["args"] or {})
    return run


def why_of(request: Request) -> str:
    """The caller's own words, or nothing."""
    said = _header(request)
    if not said and request.body[:1] == b"{" and len(request.body) <= BODY_BYTES_READ_MAX:
        try:
            found = msgspec.json.decode(request.body, type=_Why)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return ""  # whoever reads the body says what is wrong with it
        said = next((each for each in (found.why, found.reason) if isinstance(each, str) and each), "")
    return said[:WHY_CHARS_MAX]


def _header(request: Request) -> str:
    """Headers are read byte by byte; people write UTF-8."""
    said = request.header(REASON_HEADER) or ""
    try:
        return said.encode("latin-1").decode()
    except UnicodeError:
        return said
