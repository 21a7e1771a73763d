"""The SQL of operator keys: made, revoked, read again, and when each was last used.

Rows grant authority and revocations take it away, so rows and list are sealed (`sealed_tables`): a key that somebody
put into the table, changed or brought back is as if it were not there. When a key was last used is not sealed, for it
grants nothing and is written often. What was revoked or has expired goes after a month, as new keys are made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store import sealed_tables
from fairlead.proxy.store.audit import audit
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.records import AuditEvent, OperatorKey
from fairlead.proxy.store.sealed_tables import OPERATOR_KEYS
from fairlead.proxy.store.seals import Seals

KEPT_MS: Final = 30 * 86_400_000
TOPIC: Final = "operator_keys"


def keys(db: Db, seals: Seals) -> list[OperatorKey]:
    """Those that can be believed, oldest first."""
    used = dict(db.execute("SELECT id, last_used_at_ms FROM operator_keys").fetchall())
    found = [_key(values) for values in sealed_tables.read(db, seals, OPERATOR_KEYS).rows.values()]
    found.sort(key=lambda key: (key.created_at_ms, key.id))
    return [key.used(used.get(key.id, 0)) for key in found]


def create(db: Db, seals: Seals, key: OperatorKey, keys_max: int, event: AuditEvent) -> Refused | None:
    """Keep a new key; or why not. The same key is kept once: a job may run twice."""
    sealed_tables.lock(db, OPERATOR_KEYS)
    held = {each.id: each for each in keys(db, seals)}
    if key.id in held:
        return None
    for each in list(held.values()):
        ended_at_ms = min(at_ms for at_ms in (each.revoked_at_ms, each.expires_at_ms, event.at_ms) if at_ms)
        if ended_at_ms < event.at_ms - KEPT_MS:
            sealed_tables.delete(db, seals, OPERATOR_KEYS, (each.id,), event.at_ms)
            del held[each.id]
    if len(held) >= keys_max:
        return Refused(Reason.OPERATOR_KEY_LIMIT, f"{len(held)} keys, at most {keys_max}")
    _write(db, seals, key, event.at_ms)
    audit(db, event, after=_state(key))
    return None


def revoke(db: Db, seals: Seals, key_id: str, event: AuditEvent) -> OperatorKey | None:
    """Make a key worthless, and say which it was; None where there is none. Revoked is revoked the first time."""
    sealed_tables.lock(db, OPERATOR_KEYS)
    held = next((each for each in keys(db, seals) if each.id == key_id), None)
    if held is None:
        return None
    revoked = held if held.revoked_at_ms else replace(held, revoked_at_ms=event.at_ms)
    if revoked is not held:
        _write(db, seals, revoked, event.at_ms)
    audit(db, event, before=_state(held), after=_state(revoked))
    return revoked


def note_uses(db: Db, uses: Sequence[tuple[str, int]]) -> None:
    """(id, when) of keys that were used. Never backwards: proxies tell of it in any order."""
    db.executemany(
        "UPDATE operator_keys SET last_used_at_ms = ? WHERE id = ? AND last_used_at_ms < ?",
        [(at_ms, key_id, at_ms) for key_id, at_ms in uses],
    )


def _write(db: Db, seals: Seals, key: OperatorKey, now_ms: int) -> None:
    values = (
        key.id, key.hash, key.role, json.dumps(list(key.scopes)), key.tenant, key.read_scope, key.subject_type,
        key.note, key.created_at_ms, key.created_by, key.expires_at_ms, key.revoked_at_ms,
    )  # fmt: skip
    sealed_tables.write(db, seals, OPERATOR_KEYS, values, now_ms)
    db.notify(TOPIC, key.id)


def _key(values: tuple[Any, ...]) -> OperatorKey:
    (key_id, hash_, role, scopes_json, tenant, read_scope, subject_type, note, created_at_ms, created_by, expires_at_ms,
     revoked_at_ms) = values  # fmt: skip
    return OperatorKey(
        key_id, bytes(hash_), role, created_at_ms, created_by, tuple(json.loads(scopes_json)), tenant, read_scope,
        subject_type, note, expires_at_ms, revoked_at_ms,
    )  # fmt: skip


def _state(key: OperatorKey) -> dict[str, Any]:
    """What the audit trail keeps the hash of: everything but when it was used."""
    return {
        "id": key.id, "role": key.role, "scopes": list(key.scopes), "tenant": key.tenant,
        "read_scope": key.read_scope, "subject_type": key.subject_type, "note": key.note,
        "expires_at_ms": key.expires_at_ms, "revoked_at_ms": key.revoked_at_ms,
    }  # fmt: skip
