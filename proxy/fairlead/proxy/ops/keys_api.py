"""Operator keys over HTTP: made (and shown that once), listed, revoked.

Behind the scope admin. Nobody gives more than they have: not a role, not a scope, and not another tenant. Each change
is one transaction with its audit event; this proxy knows of it before it answers, the others within seconds.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.guard import access, operator_keys
from fairlead.proxy.guard.callers import Callers
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import OperatorKey
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

NOTE_CHARACTERS_MAX: Final = 200
SCOPES_MAX: Final = 64
VALID_S_MAX: Final = 10 * 366 * 86_400
SUBJECT_TYPES: Final = ("human", "service", "agent")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/operator-keys. `valid_s` 0: until it is revoked. `read_scope` "": tenant for a key with a
    tenant, else any."""

    role: str
    scopes: list[str] = []
    tenant: str = ""
    read_scope: str = ""
    subject_type: str = "service"
    note: str = ""
    valid_s: int = 0


class KeysApi:
    """The HTTP face of operator keys."""

    def __init__(self, world: World, observer: Observer, store: Store, callers: Callers) -> None:
        self._world, self._observer, self._store, self._callers = world, observer, store, callers

    async def list(self, caller: Identity) -> Response:
        await self._callers.refresh()
        visible = [key for key in self._callers.keys.all() if caller.tenant in ("", key.tenant)]
        return json_response({"keys": [_shown(key) for key in visible]})

    async def create(self, request: Request, caller: Identity) -> Response:
        asked = _read(request.body)
        wrong = access.widens(caller, asked.role, asked.scopes)
        if wrong or (caller.tenant and asked.tenant != caller.tenant):
            lacking = wrong or f"a key for tenant {asked.tenant or 'none'}"
            raise Refused(Reason.SCOPE_MISSING, f"{caller.principal} cannot give {lacking}, having less")
        now_ms = self._world.wall_ms()
        key_id, text = operator_keys.new_key(
            self._world.random_bytes(operator_keys.ID_BYTES),
            self._world.random_bytes(operator_keys.SECRET_BYTES),
        )
        key = OperatorKey(
            key_id, operator_keys.hash_of(text), asked.role, now_ms, caller.principal, tuple(asked.scopes),
            asked.tenant, asked.read_scope or ("tenant" if asked.tenant else "any"), asked.subject_type, asked.note,
            now_ms + asked.valid_s * 1000 if asked.valid_s else 0,
        )  # fmt: skip
        shown = _shown(key)
        event = event_of(
            self._world, request, caller, "operator_key_create", tenant=key.tenant, scope=key.id, detail=shown
        )
        await self._store.create_operator_key(key, operator_keys.KEYS_MAX, event)
        await self._callers.refresh()
        self._observer.log.info("operator_key_created", key=key.id, role=key.role, by=caller.principal)
        return json_response({**shown, "key": text}, 201)

    async def revoke(self, request: Request, caller: Identity, key_id: str) -> Response:
        held = self._callers.keys.find(key_id)
        if held is not None and caller.tenant not in ("", held.tenant):
            held = None  # another tenant's keys are none of theirs, and they are not told that it exists
        if held is None:
            raise Refused(Reason.OPERATOR_KEY_UNKNOWN, key_id[:64])
        event = event_of(
            self._world, request, caller, "operator_key_revoke", tenant=held.tenant, scope=key_id,
            detail={"role": held.role, "note": held.note},
        )  # fmt: skip
        revoked = await self._store.revoke_operator_key(key_id, event)
        await self._callers.refresh()
        if revoked is None:
            raise Refused(Reason.OPERATOR_KEY_UNKNOWN, key_id[:64])
        self._observer.log.info("operator_key_revoked", key=key_id, by=caller.principal)
        return json_response(_shown(revoked))


def _read(body: bytes) -> KeyRequest:
    check_json(body)
    try:
        asked = msgspec.json.decode(body, type=KeyRequest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error
    wrong = ""
    if asked.role not in access.ROLES:
        wrong = f"role must be one of {', '.join(access.ROLES)}"
    elif len(asked.scopes) > SCOPES_MAX or len(set(asked.scopes)) != len(asked.scopes):
        wrong = f"at most {SCOPES_MAX} scopes, each once"
    elif asked.scopes:
        wrong = next((why for each in asked.scopes if (why := access.scope_problem(each, asked.role))), "")
    if not wrong and asked.tenant and not _TENANT.fullmatch(asked.tenant):
        wrong = "tenant must be 1 to 64 letters, digits, dots, dashes"
    if not wrong and asked.read_scope not in ("", *access.READS):
        wrong = f"read_scope must be one of {', '.join(access.READS)}"
    if not wrong and asked.read_scope == "tenant" and not asked.tenant:
        wrong = "read_scope tenant needs a tenant"
    if not wrong and asked.subject_type not in SUBJECT_TYPES:
        wrong = f"subject_type must be one of {', '.join(SUBJECT_TYPES)}"
    if not wrong and (len(asked.note) > NOTE_CHARACTERS_MAX or not asked.note.isprintable()):
        wrong = f"note must be printable, of at most {NOTE_CHARACTERS_MAX} characters"
    if not wrong and not 0 <= asked.valid_s <= VALID_S_MAX:
        wrong = f"valid_s must be from 0 (no end) to {VALID_S_MAX}"
    if wrong:
        raise Refused(Reason.BODY_MALFORMED, wrong)
    return asked


def _shown(key: OperatorKey) -> dict[str, Any]:
    """Everything but the hash."""
    return {
        "id": key.id, "role": key.role, "scopes": list(key.scopes), "tenant": key.tenant, "read_scope": key.read_scope,
        "subject_type": key.subject_type, "note": key.note, "created_at_ms": key.created_at_ms,
        "created_by": key.created_by, "expires_at_ms": key.expires_at_ms or None,
        "revoked_at_ms": key.revoked_at_ms or None, "last_used_at_ms": key.last_used_at_ms or None,
    }  # fmt: skip
