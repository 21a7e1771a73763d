"""The SQL of what operators set and what is counted for them: budgets, pauses, flags, audit.

The tables keep the names that runbook 001 queries, and what it prints takes effect at once: every decision reads them
in its own transaction. But rows are sealed: a statement can stop what goes on, and give nothing that was not given.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason
from fairlead.proxy.store import sealed_tables
from fairlead.proxy.store.audit import audit, counted
from fairlead.proxy.store.db import Db, texts
from fairlead.proxy.store.records import AgentControl, AuditEvent, Budget
from fairlead.proxy.store.sealed_rows import REPLAY_BUDGETS
from fairlead.proxy.store.sealed_tables import AGENT_CONTROLS, DISTRUSTED, Believed
from fairlead.proxy.store.seals import Seals

DAY_MS: Final = 86_400_000


@functools.lru_cache(1_024)  # an application's runs have one and the same
def principal_of(identity_json: bytes) -> str:
    """On whose behalf a run executes."""
    return msgspec.json.decode(identity_json, type=Identity).principal


# -- budgets


def _windows(now_ms: int) -> tuple[int, int]:
    """The day and the month of a moment, in UTC: days since the epoch, and YYYYMM."""
    moment = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC)
    return now_ms // DAY_MS, moment.year * 100 + moment.month


def spend(
    db: Db, seals: Seals, tenant: str, daily_default: int, monthly_default: int, now_ms: int
) -> Reason | None:
    """One replay from a tenant's budget, or the window that has none left. The defaults hold where it has no limits of
    its own. Windows are told by the clock that proxies share, so that two of them do not reset one in turns. Of a
    budget that somebody wrote by hand nothing is left."""
    day, month = _windows(db.clock_ms(now_ms))
    row = _locked_budget(db, seals, tenant)
    if not REPLAY_BUDGETS.holds(seals, row):
        return Reason.SECURITY_SEAL_INVALID
    _, daily, monthly, day_used, day_window, month_used, month_window, _ = row
    used_today = day_used if day_window == day else 0
    used_this_month = month_used if month_window == month else 0
    today, this_month = Budget(tenant, daily, monthly, used_today, used_this_month).left(
        daily_default, monthly_default
    )
    if not today or not this_month:
        return Reason.DLQ_BUDGET_DAILY if not today else Reason.DLQ_BUDGET_MONTHLY
    db.execute(
        "UPDATE replay_budgets SET daily_used = ?, daily_window = ?, monthly_used = ?, monthly_window = ?,"
        " daily_default = ?, monthly_default = ?, seal = ? WHERE company_id = ?",
        (
            used_today + 1, day, used_this_month + 1, month, daily_default, monthly_default,
            REPLAY_BUDGETS.seal(seals, tenant, daily, monthly, used_today + 1, day, used_this_month + 1, month),
            tenant,
        ),
    )  # fmt: skip
    return None


def _locked_budget(db: Db, seals: Seals, tenant: str) -> Any:
    """A tenant's row, made where there is none: what is sealed of it, and its seal."""
    db.execute(
        "INSERT INTO replay_budgets (company_id, seal) VALUES (?, ?) ON CONFLICT (company_id) DO NOTHING",
        (tenant, REPLAY_BUDGETS.seal(seals, tenant, None, None, 0, 0, 0, 0)),
    )
    return db.execute(
        f"SELECT {REPLAY_BUDGETS.listed}, seal FROM replay_budgets WHERE company_id = ?{db.dialect.for_update}",
        (tenant,),
    ).fetchone()


def budgets(db: Db, seals: Seals, tenants: Sequence[str], now_ms: int) -> dict[str, Budget]:
    """The budgets that have a row; of no tenants in particular: of all, a thousand at most."""
    day, month = _windows(db.clock_ms(now_ms))
    rows = db.execute(
        f"SELECT {REPLAY_BUDGETS.listed}, seal FROM replay_budgets"
        + (f" WHERE company_id {db.dialect.one_of}" if tenants else " ORDER BY company_id LIMIT 1000"),
        (texts(tenants),) if tenants else (),
    ).fetchall()
    return {
        row[0]: Budget(
            row[0], row[1], row[2], row[3] if row[4] == day else 0, row[5] if row[6] == month else 0
        )
        if REPLAY_BUDGETS.holds(seals, row)
        else Budget(row[0], 0, 0, holds=False)
        for row in rows
    }


def save_budget(db: Db, seals: Seals, tenant: str, daily: int, monthly: int, event: AuditEvent) -> None:
    """What was used stays used, also where somebody wrote by hand: the limits are what an operator says now."""
    row = _locked_budget(db, seals, tenant)
    db.execute(
        "UPDATE replay_budgets SET daily_limit = ?, monthly_limit = ?, changed_at_ms = ?, seal = ?"
        " WHERE company_id = ?",
        (daily, monthly, event.at_ms, REPLAY_BUDGETS.seal(seals, tenant, daily, monthly, *row[3:7]), tenant),
    )
    held = None if row[1] is None and row[2] is None else [row[1], row[2]]
    audit(db, event, before=held, after=[daily, monthly])


# -- pauses and flags


def agent_controls(believed: Believed) -> dict[str, AgentControl]:
    """Of a tenant whose row cannot be believed, and of everybody where the table cannot: paused and draining."""
    found = {
        row[0]: AgentControl(row[0], bool(row[1]), bool(row[2]), row[3], row[4])
        for row in believed.rows.values()
    }
    distrusted = [key[0] for key in believed.distrusted] if believed.whole else ["*"]
    found.update({tenant: AgentControl(tenant, True, True, 0, DISTRUSTED) for tenant in distrusted})
    return found


def save_agent_control(db: Db, seals: Seals, control: AgentControl, event: AuditEvent) -> None:
    sealed_tables.lock(db, AGENT_CONTROLS)
    held = db.execute(
        "SELECT agents_paused, draining FROM agent_controls WHERE company_id = ?", (control.tenant,)
    ).fetchone()
    values = (control.tenant, control.paused, control.draining, control.changed_at_ms, control.changed_by)
    sealed_tables.write(db, seals, AGENT_CONTROLS, values, control.changed_at_ms)
    audit(db, event, before=held and [bool(held[0]), bool(held[1])], after=[control.paused, control.draining])
    db.notify("agents", control.tenant)


def flag_enabled(believed: Believed, key: str) -> bool | None:
    """None where there is none of that name. One that cannot be believed is off."""
    if not believed.whole or (key,) in believed.distrusted:
        return False
    row = believed.rows.get((key,))
    return None if row is None else bool(row[1])


# -- retention


def prune_guards(db: Db, now_ms: int, limit: int, event: AuditEvent | None, *, apply: bool) -> int:
    """What expired: replay guards and receipts of callbacks. `event`: of the operator who asked for it."""
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
    if apply and event is not None:
        audit(db, counted(event, count))
    return count
