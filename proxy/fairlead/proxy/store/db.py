"""What SQL needs of a database, and the few places where two databases differ.

The SQL of the store is written once, in the functions beside this file; an engine (`sqlite/`, `postgres/`) hands them a
`Db` inside a transaction that its writer owns. Placeholders are `?`. Lists travel as JSON text, because both
databases can unfold that and neither needs a statement for each length.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dialect:
    """Fragments of SQL that are spelled differently."""

    name: str
    one_of: str  # after a column: whether it is in a JSON array of texts. No join, so that an index keeps its order
    for_update: str  # lock the rows that were read until the transaction ends
    skip_locked: str  # the same, passing over what another proxy holds
    shared: bool  # other proxies may use the same database at the same time


SQLITE = Dialect("sqlite", "IN (SELECT value FROM json_each(?))", "", "", shared=False)
POSTGRES = Dialect(
    "postgres", "= ANY (ARRAY(SELECT jsonb_array_elements_text(?::jsonb)))", " FOR UPDATE", " FOR UPDATE SKIP LOCKED",
    shared=True,
)  # fmt: skip


class Cursor(Protocol):
    """What a statement gave."""

    @property
    def rowcount(self) -> int: ...
    @property
    def description(self) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Db(Protocol):
    """A connection inside a transaction."""

    @property
    def dialect(self) -> Dialect: ...
    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor: ...
    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None: ...

    def clock_ms(self, now_ms: int) -> int:
        """The clock that leases are judged by: the database's own where several proxies share it, else ours."""

    def serialize_on(self, key: str) -> None:
        """Until this transaction ends, no other one passes here with the same key."""

    def notify(self, topic: str, payload: str) -> None:
        """Once this transaction has committed, hint to the other proxies that something changed."""


class Engine(Protocol):
    """A database with its writer."""

    @property
    def shared(self) -> bool:
        """Whether other processes may write to the same database."""

    @property
    def warnings(self) -> Sequence[str]:
        """What an operator should know of how the database is set up."""

    async def write(self, job: Callable[[Db], T]) -> T:
        """Run `job` in a transaction; its value after it is durable, or what it raised. A job may run twice."""

    async def read(self, job: Callable[[Db], T], tenant: str | None = None) -> T:
        """The same for a job that writes nothing. `tenant`: on whose behalf; then a database with walls of its own
        shows nothing of another, whatever the job asks for."""

    def waiting(self) -> int: ...
    async def aclose(self) -> None: ...


class SqliteDb:
    """A SQLite connection as a `Db`. It has one process, so there is nobody to lock out or to notify."""

    __slots__ = ("_connection",)
    dialect = SQLITE

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        return self._connection.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def clock_ms(self, now_ms: int) -> int:
        return now_ms

    def serialize_on(self, key: str) -> None:
        return None

    def notify(self, topic: str, payload: str) -> None:
        return None


def texts(values: Iterable[str]) -> str:
    """The parameter for `dialect.one_of`."""
    return json.dumps(list(values))


def dicts(cursor: Cursor) -> list[dict[str, Any]]:
    """All rows, by column name."""
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
