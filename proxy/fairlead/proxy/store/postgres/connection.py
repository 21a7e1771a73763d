"""One connection to PostgreSQL: opened within a bound, checked, never waited for longer than allowed; and its `Db`.

libpq by itself would wait for ever on a server that has stopped answering. So every wait has a deadline here, on
our side of the wire (`BoundedConnection.wait`), beside the time-outs that the server itself is told.

Stands at the edge of the world, as `runtime/world` does: libpq opens the sockets, and the deadlines read a
monotonic clock. In a simulation the store is SQLite's, and nothing here runs.
"""

from __future__ import annotations

import enum
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.sql import quote
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.db import POSTGRES, Cursor
from fairlead.proxy.store.postgres.placeholders import numbered
from fairlead.proxy.store.schema import StoreUnfit

CHANNEL = "fairlead"
EVERYBODY = "*"  # as `fairlead.tenant`: the proxy itself
NOTICE_BYTES_MAX = 7_900  # PostgreSQL fails the transaction at 8000
SERVER_VERSION_MIN = 130_000
MIGRATION_S = 1_800.0  # a migration may have to rewrite a large table
DURABLE = ("on", "local", "remote_write", "remote_apply")
_PREPARE_OFF = re.compile(r"(?<=[?&])prepare=off(?:&|$)")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long anything may take. `answer_s` is what a caller may count on, reconnecting included."""

    connect_s: float = 3.0
    statement_s: float = 5.0  # told to the server; our own wait gives up a second later
    lock_s: float = 3.0
    answer_s: float = 10.0  # from the moment a job's turn comes until its caller is answered
    queued_s: float = 10.0  # in the queue, before its turn comes


class Access(enum.Enum):
    """What a connection is for."""

    WRITE = "write"
    READ = "read"
    SCHEMA = "schema"  # migrations and checks: as WRITE, with more time for each statement
    LISTEN = "listen"


# As whom a connection works, once the migrations have made these roles; whoever logged in must be a member of them.
ROLES = {Access.WRITE: "fairlead_writer", Access.READ: "fairlead_reader"}


class Silent(Exception):
    """The server did not answer in time. What it was asked may have happened."""


def now_s() -> float:
    """The monotonic clock of deadlines; the writer's thread is outside trio and cannot ask trio's."""
    return time.monotonic()


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which no wait outlasts `deadline_s`, nor `silence_s` for one statement."""

    deadline_s: float = float("inf")
    silence_s: float = float("inf")

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        until_s = min(self.deadline_s, now_s() + self.silence_s)
        try:
            return super().wait(_bounded(gen, until_s), *args, **kwargs)
        except Silent:
            self.deadline_s = float("-inf")  # whoever tidies up after this does not wait as long again
            raise


def _bounded(steps: Generator[Any, Any, Any], deadline_s: float) -> Generator[Any, Any, Any]:
    """psycopg's own steps of one exchange. They are resumed at each event and, since psycopg 3.3, when nothing came
    for a tenth of a second."""
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and now_s() >= deadline_s:
                raise Silent("the server did not answer in time")
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value


def _conninfo(url: str, access: Access, bounds: Bounds) -> str:
    """What the operator wrote, over what we would have chosen. Raises StoreUnfit."""
    ours: dict[str, Any] = {
        "application_name": "fairlead",
        "connect_timeout": max(2, round(bounds.connect_s)),  # libpq knows no less than 2
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": round(bounds.answer_s * 1000),
        # Of several hosts, the one that can be written: after a failover that is another one.
        "target_session_attrs": "any" if access is Access.READ else "read-write",
    }
    try:
        given = conninfo_to_dict(_PREPARE_OFF.sub("", url).rstrip("?&"))
        return make_conninfo("", **{**ours, **given, "client_encoding": "UTF8"})
    except psycopg.ProgrammingError as error:
        # libpq quotes the part that it did not understand, which can be the password.
        named = re.search(r'query parameter: "\w+"|connection option "\w+"', str(error))
        raise StoreUnfit(f"store.url: not a PostgreSQL URL ({named[0] if named else 'malformed'})") from None


def open_connection(url: str, access: Access, bounds: Bounds) -> tuple[BoundedConnection, list[str]]:
    """Connect, set up and check; with what an operator should be warned of.

    Blocks. Raises psycopg.Error or Silent when there is no such server, StoreUnfit when it must not be used.
    """
    conninfo = _conninfo(url, access, bounds)
    connection = BoundedConnection.connect(
        conninfo,
        autocommit=True,  # transactions are begun and ended by the writer, in so many words
        prepare_threshold=None if _PREPARE_OFF.search(url) else 2,
        cursor_factory=psycopg.RawCursor,
    )
    try:
        connection.prepared_max = 256
        connection.deadline_s = now_s() + bounds.connect_s + 1
        _adapt(connection)
        _set_up(connection, access, bounds)
        warnings = _check(connection)
        if access in ROLES:
            warnings += _take_role(connection, ROLES[access])
        connection.deadline_s = float("inf")
        connection.silence_s = (MIGRATION_S if access is Access.SCHEMA else bounds.statement_s) + 1
    except BaseException:
        connection.close()
        raise
    return connection, warnings


class _Flag(psycopg.adapt.Dumper):
    """A bool as an untyped literal: '1' is true in a boolean column and 1 in an integer one, as in SQLite."""

    def dump(self, obj: Any) -> bytes:
        return b"1" if obj else b"0"


class _Number(psycopg.adapt.Loader):
    """numeric, which is what sums of bigint are, as the number that SQLite would give."""

    def load(self, data: Any) -> int | float:
        text = bytes(data).decode()
        return int(text) if text.lstrip("-").isdigit() else float(text)


def _adapt(connection: BoundedConnection) -> None:
    """One type for all whole numbers: their size must not make another prepared statement of the same SQL."""
    for dumper in (Int8Dumper, Int8BinaryDumper):
        connection.adapters.register_dumper(int, dumper)
    connection.adapters.register_dumper(bool, _Flag)
    connection.adapters.register_loader("numeric", _Number)


def _set_up(connection: BoundedConnection, access: Access, bounds: Bounds) -> None:
    schema = access is Access.SCHEMA
    settings = {
        "statement_timeout": f"{(MIGRATION_S if schema else bounds.statement_s) * 1000:.0f}ms",
        "lock_timeout": f"{(60 if schema else bounds.lock_s) * 1000:.0f}ms",
        # Should this process be frozen in a transaction, its locks do not outlive this.
        "idle_in_transaction_session_timeout": f"{bounds.answer_s * 1000:.0f}ms",
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "on" if access is Access.READ else "off",
        "timezone": "UTC",
    }
    calls = ", ".join(f"set_config('{name}', $${value}$$, false)" for name, value in settings.items())
    connection.execute(f"SELECT {calls}", prepare=False)


def _take_role(connection: BoundedConnection, role: str) -> list[str]:
    """Put down what the login may do beyond reading and writing rows, where the migrations made a role for that; what
    an operator should know where tenants then have no second wall."""
    if may_take(connection, role):
        # The schemas by name first: "$user" would mean another one.
        connection.execute(
            "SELECT set_config('search_path', coalesce((SELECT string_agg(quote_ident(each.name), ', '"
            "  ORDER BY each.number) FROM unnest(current_schemas(false)) WITH ORDINALITY AS each (name, number)),"
            "  current_setting('search_path')), false), set_config('role', $1, false)",
            (role,),
            prepare=False,
        )
    who = bypasses_walls(connection)
    if who:
        return [
            f"{who} bypasses row level security, so that nothing but our own queries keeps tenants apart:"
            " connect as another role, as docs/operations.md says"
        ]
    return []


def may_take(connection: BoundedConnection, role: str) -> bool:
    """Whether there is such a role, made for this database, and the login may put itself into it."""
    held = "SET" if connection.info.server_version >= 160_000 else "MEMBER"
    row = connection.execute(
        f"SELECT pg_has_role(current_user, oid, '{held}') AND has_table_privilege(oid, to_regclass('runs'), 'SELECT')"
        " FROM pg_roles WHERE rolname = $1",
        (role,),
        prepare=False,
    ).fetchone()
    return row is not None and bool(row[0])


def bypasses_walls(connection: BoundedConnection) -> str:
    """Whom the connection works as, where no row level security holds for that role."""
    row = connection.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolbypassrls)",
        prepare=False,
    ).fetchone()
    return "" if row is None else str(row[0])


def _check(connection: BoundedConnection) -> list[str]:
    names = ("server_version_num", "server_encoding", "standard_conforming_strings", "synchronous_commit",
             "fsync", "full_page_writes")  # fmt: skip
    calls = ", ".join(f"current_setting('{name}')" for name in names)
    row = connection.execute(f"SELECT {calls}", prepare=False).fetchone()
    assert row is not None
    found = dict(zip(names, row, strict=True))
    if int(found["server_version_num"]) < SERVER_VERSION_MIN:
        version = connection.info.parameter_status("server_version")
        raise StoreUnfit(f"PostgreSQL {version} is too old: 13 or newer is needed")
    if found["server_encoding"] != "UTF8":
        raise StoreUnfit(
            f"the database's encoding is {found['server_encoding']}: create it with ENCODING 'UTF8'"
        )
    if found["standard_conforming_strings"] != "on":
        raise StoreUnfit("standard_conforming_strings is off: set it on for this role or database")
    if found["synchronous_commit"] not in DURABLE:
        raise StoreUnfit(
            "synchronous_commit is off: a crash of the server would lose runs that were accepted; "
            "set it to on (or local, remote_write, remote_apply) for this role or database"
        )
    return [
        f"{name} is off: a power cut can destroy this database"
        for name in ("fsync", "full_page_writes")
        if found[name] != "on"
    ]


class Connecting:
    """Opening a connection in a thread of its own, so that not even a name server can hold up who waits."""

    def __init__(self, opening: Callable[[], tuple[BoundedConnection, list[str]]]) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._given_up = False
        self._opened: tuple[BoundedConnection, list[str]] | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="postgres-connect", daemon=True).start()

    def _run(self) -> None:
        try:
            opened = self._opening()
        except BaseException as error:
            self._error = error
        else:
            with self._lock:
                if self._given_up:
                    opened[0].close()
                else:
                    self._opened = opened
        self._done.set()

    def result(self, timeout_s: float) -> tuple[BoundedConnection, list[str]]:
        """What came of it. Raises what connecting raised, or Silent; then what still opens will be closed."""
        self._done.wait(max(0.0, timeout_s))
        with self._lock:
            if self._opened is not None:
                return self._opened
            self._given_up = True
        raise self._error or Silent("no connection in time")

    def give_up(self) -> None:
        """Nobody wants it any more: what was opened is closed, and what will be."""
        with self._lock:
            self._given_up = True
            if self._opened is not None:
                self._opened[0].close()


class PostgresDb:
    """The connection as a `Db`. Its thread calls `begin` for each transaction, `flush` before each COMMIT."""

    __slots__ = ("_begin", "_begin_for", "_clock_ms", "_connection", "_notices", "_read_only")
    dialect = POSTGRES

    def __init__(self, connection: BoundedConnection, read_only: bool = False) -> None:
        self._connection, self._read_only = connection, read_only
        self._begin_for = f"BEGIN{' READ ONLY' if read_only else ''}; SET LOCAL fairlead.tenant ="
        self._begin = f"{self._begin_for} '{EVERYBODY}'"
        self._clock_ms: int | None = None
        self._notices: dict[tuple[str, str], None] = {}

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        return self._connection.execute(numbered(sql), parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(numbered(sql), rows)

    def clock_ms(self, now_ms: int) -> int:
        """The server's clock, so that proxies whose own clocks differ judge leases alike. One per transaction."""
        if self._clock_ms is None:
            row = self.execute(
                "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
            ).fetchone()
            self._clock_ms = int(row[0])
        return self._clock_ms

    def serialize_on(self, key: str) -> None:
        assert not self._read_only, "a read locks nothing"
        self.execute("SELECT pg_advisory_xact_lock(hashtextextended(?, 0))", (key,))

    def notify(self, topic: str, payload: str) -> None:
        """Sent with the COMMIT, all of a transaction in one statement, each once. A hint: see `listen`."""
        assert not self._read_only, "a read changes nothing"
        too_long = len(f"{topic} {payload}".encode()) > NOTICE_BYTES_MAX
        self._notices[topic, "" if too_long else payload] = None

    def begin(self, tenant: str | None = None) -> None:
        """Begin a transaction of one tenant, or (None) of the proxy itself, which works for all of them.

        In one message, and with it the wall between tenants (0003_tenants.sql) forgets the last one by itself.
        """
        if tenant == EVERYBODY:
            raise ValueError("no tenant is called that")
        self._clock_ms = None
        self._notices.clear()
        if tenant is None:
            statements = self._begin
        else:
            statements = f"{self._begin_for} {quote(tenant, self._connection)}"
        self._connection.execute(statements, prepare=False)

    def flush(self) -> None:
        """Hand over the notices of this transaction."""
        if self._notices:
            self.execute(
                f"SELECT pg_notify('{CHANNEL}', notice) FROM unnest(?::text[]) AS notice",
                ([f"{topic} {payload}" for topic, payload in self._notices],),
            )

    def idle(self) -> bool:
        """No transaction is open."""
        return self._connection.pgconn.transaction_status == TransactionStatus.IDLE

    def must_be_in_transaction(self) -> None:
        """COMMIT of a failed transaction is a ROLLBACK that looks like a success, so a job must not hide one."""
        if self._connection.pgconn.transaction_status != TransactionStatus.INTRANS:
            raise RuntimeError("the job ended its transaction, or went on after a statement of it had failed")


class Fate(enum.Enum):
    """What an error leaves behind."""

    LOST = "lost"  # the connection is of no use any more; what was sent may have happened
    CONFLICT = "conflict"  # nothing happened; the same again may well succeed
    FAILED = "failed"  # nothing happened, and the database said why
    RAISED = "raised"  # the job itself raised


# Serialization, deadlock, a prepared statement that a pooler lost; and a key that another transaction inserted first:
# the job looks again at what is there, and finds it.
_CONFLICTS = ("40001", "40P01", "26000", "23505")


def fate(error: BaseException, connection: BoundedConnection, access: Access) -> Fate:
    """Pure of effect: what `error`, raised while using `connection`, means for it and for the transaction."""
    if isinstance(error, Silent) or connection.closed or connection.pgconn.status == ConnStatus.BAD:
        return Fate.LOST
    if not isinstance(error, psycopg.Error):
        return Fate.RAISED
    state = error.sqlstate or ""
    if state[:2] == "08" or state in ("57P01", "57P02", "57P03", "57P05", "25P03"):
        return Fate.LOST
    if (
        state == "25006" and access is Access.WRITE
    ):  # it has become a standby: another server is the primary now
        return Fate.LOST
    if state in _CONFLICTS or (state == "0A000" and "cached plan" in str(error)):
        return Fate.CONFLICT
    return Fate.FAILED


def explained(error: BaseException) -> str:
    """One line of what the server or libpq said."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    state = getattr(error, "sqlstate", None)
    return f"{text} ({state})" if state else text


def unavailable(error: BaseException) -> Refused:
    """The refusal that callers get, who know nothing of psycopg."""
    refused = Refused(Reason.STORE_UNAVAILABLE, f"PostgreSQL: {explained(error)}", retry_after_s=1)
    refused.__cause__ = error
    return refused
