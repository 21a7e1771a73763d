"""What a handler is given: who asks, until when, and the one door to an exactly-once effect."""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from fairlead.backend.asks import TIMEOUT_S, Asks
from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.log import BoundLog

T = TypeVar("T")
_CONTROL_WORDS = frozenset({
    "BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH", "PRAGMA", "VACUUM",
})  # fmt: skip
# What SQLite skips before a statement's first word, and behind which a COMMIT could hide.
_LEADING = re.compile(r"(?:[\s;\ufeff]|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]*")
_RESERVED_TABLES = ("inbox", "node_meta", "registry_items", "crashes")
_REMEMBERED_SQL_CHARS_MAX = (
    2_000  # handlers say the same few statements; one with data in it is judged each time
)


class TransactionMisused(Exception):
    """A handler tried to leave, end or look behind the transaction it was given."""


class Rows:
    """What a statement gave. Not a cursor: that could execute on its own, and outlive the transaction."""

    __slots__ = ("_cursor", "_door")

    def __init__(self, cursor: sqlite3.Cursor, door: Transaction) -> None:
        self._cursor, self._door = cursor, door

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    @property
    def description(self) -> Any:
        return self._cursor.description

    def fetchone(self) -> Any:
        self._door.check_open()
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        self._door.check_open()
        return self._cursor.fetchall()

    def __iter__(self) -> Iterator[Any]:
        self._door.check_open()
        return iter(self._cursor.fetchall())


class Transaction:
    """The database inside `ctx.transaction`: the handler's own tables, in the inbox's transaction."""

    __slots__ = ("_connection", "_open")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._open = True

    def execute(self, sql: str, parameters: Any = ()) -> Rows:
        """One statement. Beginning or ending transactions, and the inbox's own tables, are refused."""
        self._check(sql)
        return Rows(self._connection.execute(sql, parameters), self)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Rows:
        """One statement for each row of parameters."""
        self._check(sql)
        return Rows(self._connection.executemany(sql, parameters), self)

    def close(self) -> None:
        self._open = False

    def check_open(self) -> None:
        """Raises TransactionMisused once the function has returned."""
        if not self._open:
            raise TransactionMisused("the transaction is over; use `db` only inside the function")

    def _check(self, sql: str) -> None:
        self.check_open()
        if not self._connection.in_transaction:
            self._open = False
            raise TransactionMisused("the transaction was rolled back; nothing of it remains")
        misuse = _misuse_of(sql) if len(sql) <= _REMEMBERED_SQL_CHARS_MAX else _misuse_of.__wrapped__(sql)
        if misuse:
            raise TransactionMisused(misuse)


@functools.lru_cache(maxsize=512)
def _misuse_of(sql: str) -> str:
    """Why a statement may not pass; empty where it may."""
    skipped = _LEADING.match(sql)
    start = skipped.end() if skipped else 0
    found = _WORD.match(sql, start)
    word = found[0].upper() if found else ""
    if word in _CONTROL_WORDS:
        return f"{word} is not allowed here: the effect and the result commit together"
    lowered = sql.lower()
    for table in _RESERVED_TABLES:
        if table in lowered:
            return f"table {table} belongs to the node's inbox"
    return ""


@dataclass(slots=True)
class Context:
    """One execution. Times are wall-clock milliseconds."""

    run_id: str
    attempt: int
    idempotency_key: str
    identity: Identity
    tenant: str
    deadline_at_ms: int
    correlation_id: str
    node_id: str
    _bind_log: Callable[[], BoundLog]
    _transact: Callable[[Callable[[Transaction], Any]], Awaitable[Any]]
    _asks: Asks | None = None
    _log: BoundLog | None = None  # made when it is first used

    @property
    def deadline(self) -> int:
        """The same as `deadline_at_ms`: when the run ends at the latest."""
        return self.deadline_at_ms

    @property
    def log(self) -> BoundLog:
        """A log whose lines carry the run."""
        if self._log is None:
            self._log = self._bind_log()
        return self._log

    async def transaction(self, function: Callable[[Transaction], T]) -> T:
        """Run `function(db)` in the inbox's writer, its effect and its value durable together.

        Only for commands with effect "transactional", and once per run. What the function returns is the
        run's result, whatever happens to the handler afterwards; if it raises, nothing of it remains.
        """
        value: T = await self._transact(function)
        return value

    async def player_command(
        self, command: str, *, session: str = "", player: str = "", timeout_s: float = TIMEOUT_S, **args: Any
    ) -> Any:
        """The value of a command that a player on this node entered (without `session` and `player`: the one on whose
        behalf this run executes), which the proxy has executed as that player. Raises Refused."""
        if self._asks is None:
            raise Refused(Reason.PROXY_UNREACHABLE, "this node has no links")
        if not (session or player):
            session = self.identity.session
        return await self._asks.player_command(
            command, args, session=session, player=player, timeout_s=timeout_s
        )

    def transaction_from_thread(self, function: Callable[[Transaction], T]) -> T:
        """`transaction` for a plain (non-async) handler, which runs in a thread."""
        return trio.from_thread.run(self.transaction, function)
