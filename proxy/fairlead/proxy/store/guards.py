"""The SQL of guards that several proxies share: nonces that were used, and rates of calls.

Invariants: a nonce is reserved once, and forgotten only after nothing signed with it can be believed any more; a full
table refuses and never makes room by forgetting a nonce that still counts; how many there are is counted by triggers
beside the rows, so that no reservation scans the table and statements of an operator are counted too. A key that is
refused by its rate is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.audit import audit
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.records import AuditEvent, NonceReservation
from fairlead.runtime.gcra import Cell, Limit, decide

EXPIRED_ROOM: Final = 1_000  # expired nonces that one reservation clears away where the table is full
ROWS_MAX: Final = 256  # of one statement
IDLE_RATE_MS: Final = 86_400_000  # how long a rate that nobody uses stays to be looked at


# -- nonces


def reserve(db: Db, asked: NonceReservation, now_ms: int) -> Refused | None:
    """Reserve a nonce, or say why not. Nothing is raised: a job that raises costs its neighbours their shared
    commit."""
    if _take(db, asked, now_ms):  # one statement, where all is as it should be
        return None
    found = db.execute("SELECT reserved_by FROM replay_guards WHERE key = ?", (asked.key,)).fetchone()
    if found is not None:
        return None if found[0] == asked.by else _replayed()  # by this very job, run twice
    gone = db.execute(
        "DELETE FROM replay_guards WHERE key IN (SELECT key FROM replay_guards WHERE expires_at < ?"
        " ORDER BY expires_at LIMIT ?)",
        (now_ms, EXPIRED_ROOM),
    ).rowcount
    if gone and _take(db, asked, now_ms):
        return None
    detail = f"{asked.nonces_max} nonces are remembered, and none is forgotten before its time"
    return Refused(Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, detail, retry_after_s=5)


def reserve_many(db: Db, asked: Sequence[tuple[NonceReservation, int]]) -> list[Refused | None]:
    """The same for many, each with its moment: what is new in one statement, what is known in another. A nonce that
    two of them ask for is the first one's."""
    if len(asked) == 1:
        return [reserve(db, *asked[0])]
    known: dict[str, str] = {}  # key -> for which job
    for start in range(0, len(asked), ROWS_MAX):
        new: dict[str, tuple[NonceReservation, int]] = {}
        for each, now_ms in asked[start : start + ROWS_MAX]:
            if each.key not in known:
                new.setdefault(each.key, (each, now_ms))
        # Taken first and looked up after, for that is how it is where all is as it should be.
        known |= _take_many(db, list(new.values())[: _room(db, new.values())])
        known |= _known(db, [key for key in new if key not in known])
    outcomes: list[Refused | None] = []
    full: Refused | None = None
    for each, now_ms in asked:
        by = known.get(each.key)
        if by is not None:
            outcomes.append(None if by == each.by else _replayed())
            continue
        outcome = full or reserve(db, each, now_ms)
        if outcome is not None and outcome.reason is Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE:
            full = outcome  # and for those that follow: nothing makes room meanwhile
        elif outcome is None:
            known[each.key] = each.by
        outcomes.append(outcome)
    return outcomes


def _room(db: Db, asked: Iterable[tuple[NonceReservation, int]]) -> int:
    (held,) = db.execute("SELECT COALESCE(sum(nonces), 0) FROM replay_guard_totals").fetchone()
    return max(0, min((each.nonces_max for each, _ in asked), default=0) - int(held))


def _take_many(db: Db, asked: Sequence[tuple[NonceReservation, int]]) -> dict[str, str]:
    """Those that nobody had used; what another proxy reserves at this moment stays that one's."""
    if not asked:
        return {}
    values: list[Any] = []
    for each, now_ms in asked:
        values += (each.key, now_ms, each.expires_at_ms, each.by)
    taken = db.execute(
        f"INSERT INTO replay_guards (key, created_at_ms, expires_at, reserved_by) VALUES {_marks(len(asked), 4)}"
        " ON CONFLICT (key) DO NOTHING RETURNING key, reserved_by",
        values,
    )
    return dict(taken.fetchall())


def _known(db: Db, keys: Sequence[str]) -> dict[str, str]:
    if not keys:
        return {}
    found = db.execute(
        f"SELECT key, reserved_by FROM replay_guards WHERE key IN {_marks(1, len(keys))}", keys
    )
    return dict(found.fetchall())


def _marks(rows: int, columns: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


def _take(db: Db, asked: NonceReservation, now_ms: int) -> bool:
    """Whether there was room, and nobody had used it. Proxies that look at the same moment may each find the last room:
    the bound is exceeded by as many at most as commit together."""
    taken = db.execute(
        "INSERT INTO replay_guards (key, created_at_ms, expires_at, reserved_by) SELECT ?, ?, ?, ?"
        " WHERE (SELECT COALESCE(sum(nonces), 0) FROM replay_guard_totals) < ? ON CONFLICT (key) DO NOTHING",
        (asked.key, now_ms, asked.expires_at_ms, asked.by, asked.nonces_max),
    )
    return bool(taken.rowcount)


def _replayed() -> Refused:
    return Refused(Reason.SECURITY_REPLAY_DETECTED, "a request with this nonce was taken before")


# -- rates


def rate_limit(db: Db, key: str, limit: Limit, now_ms: int, passed: list[Cell]) -> Cell:
    """Count one call, unless it comes too early. `passed`: what this very job answered when it ran before: if that took
    effect after all, it is still the answer."""
    now_us = db.clock_ms(now_ms) * 1000
    db.execute(
        "INSERT INTO edge_rate_limits (key, count, window_start_ms, next_at_us) VALUES (?, 0, ?, 0)"
        " ON CONFLICT (key) DO NOTHING",
        (key, now_us // 1000),
    )
    count, start_ms, next_at_us = db.execute(
        f"SELECT count, window_start_ms, next_at_us FROM edge_rate_limits WHERE key = ?{db.dialect.for_update}",
        (key,),
    ).fetchone()
    if passed and passed[0].next_at_us == next_at_us:
        return passed[0]
    cell = decide(limit, next_at_us, now_us)
    if not cell.allowed:
        return cell
    passed[:] = [cell]
    if not 0 <= now_us // 1000 - start_ms < limit.window_ms:  # what people look at starts over
        count, start_ms = 0, now_us // 1000
    db.execute(
        "UPDATE edge_rate_limits SET count = ?, window_start_ms = ?, next_at_us = ? WHERE key = ?",
        (count + 1, start_ms, cell.next_at_us, key),
    )
    return cell


def save_rates(db: Db, next_at_us: Mapping[str, int], now_ms: int) -> None:
    """What a process counted by itself. What the store knows of a key already is never taken back."""
    now_ms = db.clock_ms(now_ms)
    db.executemany(
        "INSERT INTO edge_rate_limits (key, count, window_start_ms, next_at_us) VALUES (?, 1, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET next_at_us = excluded.next_at_us, count = edge_rate_limits.count + 1"
        " WHERE edge_rate_limits.next_at_us < excluded.next_at_us",
        [(key, now_ms, at_us) for key, at_us in sorted(next_at_us.items())],
    )


def rates(db: Db, prefix: str, now_ms: int, limit: int) -> dict[str, int]:
    """The keys of a prefix that are ahead of the clock: what a process has to know of them when it starts."""
    rows = db.execute(
        "SELECT key, next_at_us FROM edge_rate_limits WHERE key LIKE ? ESCAPE '\\' AND next_at_us > ?"
        " ORDER BY next_at_us DESC LIMIT ?",
        (_starting_with(prefix), db.clock_ms(now_ms) * 1000, limit),
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def clear_rate_limits(db: Db, prefix: str, event: AuditEvent) -> int:
    gone = db.execute(
        "DELETE FROM edge_rate_limits WHERE key LIKE ? ESCAPE '\\'", (_starting_with(prefix),)
    ).rowcount
    audit(db, event)
    db.notify("rates", prefix)
    return gone


def prune_rates(db: Db, now_ms: int, limit: int) -> int:
    """Forget keys that nobody used for long: they are as if they had never been used."""
    before_us = (db.clock_ms(now_ms) - IDLE_RATE_MS) * 1000
    return db.execute(
        "DELETE FROM edge_rate_limits WHERE key IN (SELECT key FROM edge_rate_limits WHERE next_at_us < ? LIMIT ?)",
        (before_us, limit),
    ).rowcount


def _starting_with(prefix: str) -> str:
    return prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
