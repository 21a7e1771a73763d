"""The SQL of what operators set and what is counted for them: budgets, rate limits, pauses, flags, audit.

The tables keep the names that runbook 001 queries, so its statements work as printed, and take effect at once: every
decision reads them in its own transaction.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.db import Db, dicts, texts
from fairlead.proxy.store.records import AgentControl, AuditEvent, Budget

DAY_MS: Final = 86_400_000


def principal_of(identity_json: bytes) -> str:
    """On whose behalf a run executes."""
    return msgspec.json.decode(identity_json, type=Identity).principal


# -- budgets


def _windows(now_ms: int) -> tuple[int, int]:
    """The day and the month of a moment, in UTC: days since the epoch, and YYYYMM."""
    moment = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC)
    return now_ms // DAY_MS, moment.year * 100 + moment.month


def spend(db: Db, tenant: str, daily_default: int, monthly_default: int, now_ms: int) -> Reason | None:
    """One replay from a tenant's budget, or the window that has none left. The defaults hold where it has no limits of
    its own. Windows are told by the clock that proxies share, so that two of them do not reset one in turns."""
    day, month = _windows(db.clock_ms(now_ms))
    db.execute(
        "INSERT INTO replay_budgets (company_id) VALUES (?) ON CONFLICT (company_id) DO NOTHING", (tenant,)
    )
    row = db.execute(
        "SELECT daily_limit, monthly_limit, daily_used, daily_window, monthly_used, monthly_window"
        f" FROM replay_budgets WHERE company_id = ?{db.dialect.for_update}",
        (tenant,),
    ).fetchone()
    used_today = row[2] if row[3] == day else 0
    used_this_month = row[4] if row[5] == month else 0
    today, this_month = Budget(tenant, row[0], row[1], used_today, used_this_month).left(
        daily_default, monthly_default
    )
    if not today or not this_month:
        return Reason.DLQ_BUDGET_DAILY if not today else Reason.DLQ_BUDGET_MONTHLY
    db.execute(
        "UPDATE replay_budgets SET daily_used = ?, daily_window = ?, monthly_used = ?, monthly_window = ?,"
        " daily_default = ?, monthly_default = ? WHERE company_id = ?",
        (used_today + 1, day, used_this_month + 1, month, daily_default, monthly_default, tenant),
    )
    return None


def budgets(db: Db, tenants: Sequence[str], now_ms: int) -> dict[str, Budget]:
    """The budgets that have a row; of no tenants in particular: of all, a thousand at most."""
    day, month = _windows(db.clock_ms(now_ms))
    rows = db.execute(
        "SELECT company_id, daily_limit, monthly_limit, daily_used, daily_window, monthly_used, monthly_window"
        " FROM replay_budgets"
        + (f" WHERE company_id {db.dialect.one_of}" if tenants else " ORDER BY company_id LIMIT 1000"),
        (texts(tenants),) if tenants else (),
    ).fetchall()
    return {
        row[0]: Budget(
            row[0], row[1], row[2], row[3] if row[4] == day else 0, row[5] if row[6] == month else 0
        )
        for row in rows
    }


def save_budget(db: Db, tenant: str, daily: int, monthly: int, event: AuditEvent) -> None:
    db.execute(
        "INSERT INTO replay_budgets (company_id, daily_limit, monthly_limit, changed_at_ms) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (company_id) DO UPDATE SET daily_limit = excluded.daily_limit,"
        " monthly_limit = excluded.monthly_limit, changed_at_ms = excluded.changed_at_ms",
        (tenant, daily, monthly, event.at_ms),
    )
    audit(db, event)


# -- rate limits


def rate_limit(db: Db, key: str, limit: int, window_ms: int, now_ms: int) -> int:
    clock_ms = db.clock_ms(now_ms)
    db.execute(
        "INSERT INTO edge_rate_limits (key, count, window_start_ms) VALUES (?, 0, ?) ON CONFLICT (key) DO NOTHING",
        (key, clock_ms),
    )
    count, start_ms = db.execute(
        f"SELECT count, window_start_ms FROM edge_rate_limits WHERE key = ?{db.dialect.for_update}", (key,)
    ).fetchone()
    if not 0 <= clock_ms - start_ms < window_ms:  # the window is over, or the clock was set back
        count, start_ms = 0, clock_ms
    if count >= limit:
        return int(start_ms + window_ms - clock_ms)
    db.execute(
        "UPDATE edge_rate_limits SET count = ?, window_start_ms = ? WHERE key = ?", (count + 1, start_ms, key)
    )
    return 0


def clear_rate_limits(db: Db, prefix: str, event: AuditEvent) -> int:
    pattern = prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    gone = db.execute("DELETE FROM edge_rate_limits WHERE key LIKE ? ESCAPE '\\'", (pattern,)).rowcount
    audit(db, event)
    return gone


# -- pauses and flags


def agent_controls(db: Db) -> dict[str, AgentControl]:
    rows = db.execute(
        "SELECT company_id, agents_paused, draining, changed_at_ms, changed_by FROM agent_controls"
    ).fetchall()
    return {row[0]: AgentControl(row[0], bool(row[1]), bool(row[2]), row[3], row[4]) for row in rows}


def save_agent_control(db: Db, control: AgentControl, event: AuditEvent) -> None:
    db.execute(
        "INSERT INTO agent_controls (company_id, agents_paused, draining, changed_at_ms, changed_by)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (company_id) DO UPDATE SET agents_paused = excluded.agents_paused,"
        " draining = excluded.draining, changed_at_ms = excluded.changed_at_ms, changed_by = excluded.changed_by",
        (control.tenant, control.paused, control.draining, control.changed_at_ms, control.changed_by),
    )
    audit(db, event)
    db.notify("agents", control.tenant)


def flag_enabled(db: Db, key: str) -> bool | None:
    row = db.execute("SELECT enabled FROM feature_flags WHERE key = ?", (key,)).fetchone()
    return None if row is None else bool(row[0])


# -- audit


def event(
    action: str,
    at_ms: int,
    principal: str,
    *,
    tenant: str = "",
    scope: str = "",
    target_count: int = 0,
    success_count: int = 0,
    failure_count: int = 0,
    detail: Mapping[str, Any] | None = None,
    correlation_id: str = "",
) -> AuditEvent:
    return AuditEvent(
        action, at_ms, principal, tenant, scope, target_count, success_count, failure_count, detail or {},
        correlation_id,
    )  # fmt: skip


def audit(db: Db, event: AuditEvent) -> None:
    values = (
        event.action, event.at_ms, event.principal, event.tenant, event.scope, event.target_count,
        event.success_count, event.failure_count, json.dumps(event.detail, default=str, sort_keys=True),
        event.correlation_id,
    )  # fmt: skip
    # The same in every word and in the same millisecond is the same event: a job may run twice.
    there = db.execute(
        "SELECT 1 FROM audit_logs WHERE action = ? AND at_ms = ? AND principal = ? AND company_id = ? AND scope = ?"
        " AND target_count = ? AND success_count = ? AND failure_count = ? AND detail_json = ? AND correlation_id = ?",
        values,
    ).fetchone()
    if there is None:
        db.execute(
            "INSERT INTO audit_logs (action, at_ms, principal, company_id, scope, target_count, success_count,"
            " failure_count, detail_json, correlation_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )


def audit_events(db: Db, limit: int) -> list[dict[str, Any]]:
    found = dicts(
        db.execute(
            "SELECT id, action, at_ms, principal, company_id AS tenant, scope, target_count, success_count,"
            " failure_count, detail_json, correlation_id FROM audit_logs ORDER BY id DESC LIMIT ?",
            (limit,),
        )
    )
    for each in found:
        each["detail"] = json.loads(each.pop("detail_json"))
    return found


# -- retention


def prune_guards(db: Db, now_ms: int, limit: int, *, apply: bool) -> int:
    """What expired: replay guards and receipts of callbacks."""
    count = 0
    for table, column, key in (
        ("replay_guards", "expires_at", "key"),
        ("job_source_callback_events", "expires_at_ms", "event_id"),
    ):
        if apply:
            count += db.execute(
                f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE {column} < ? LIMIT ?)",
                (now_ms, limit),
            ).rowcount
        else:
            count += db.execute(f"SELECT count(*) FROM {table} WHERE {column} < ?", (now_ms,)).fetchone()[0]
    return count


def prune_audit(db: Db, before_ms: int, limit: int) -> int:
    return db.execute(
        "DELETE FROM audit_logs WHERE id IN (SELECT id FROM audit_logs WHERE at_ms < ? LIMIT ?)",
        (before_ms, limit),
    ).rowcount
