"""The door to an exactly-once effect: nothing but the handler's own statements passes through it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from fairlead.backend.context import Transaction, TransactionMisused


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    found = sqlite3.connect(":memory:", isolation_level=None)
    found.execute("CREATE TABLE own (id INTEGER PRIMARY KEY, text TEXT)")
    found.execute("CREATE TABLE inbox (run_id TEXT)")
    found.execute("BEGIN")
    found.execute("SAVEPOINT handler")
    yield found
    found.close()


@pytest.fixture
def door(connection: sqlite3.Connection) -> Transaction:
    return Transaction(connection)


WORDS = ("COMMIT", "END", "ROLLBACK", "BEGIN IMMEDIATE", "SAVEPOINT mine", "RELEASE handler", "ROLLBACK TO handler",
         "ATTACH ':memory:' AS other", "DETACH main", "PRAGMA synchronous=OFF", "VACUUM")  # fmt: skip
HIDING_PLACES = {
    "plain": "{}",
    "lower case": "{lower}",
    "mixed case": "{swapped}",
    "spaces": "  \t\r\n {}",
    "other white space": "\x0b\x0c{}",
    "a line comment": "-- nothing here\n{}",
    "two comments": "-- a\n/* b\n * c */ -- d\n {}",
    "a block comment": "/* harmless */{}",
    "an empty block comment": "/**/{}",
    "a comment with a star": "/***/{}",
    "a comment that names another statement": "/* SELECT 1; */ {}",
    "a semicolon": ";{}",
    "semicolons": " ; ;;\n{}",
    "a semicolon and a comment": ";--x\n;/**/{}",
    "a byte order mark": "\ufeff{}",
    "a byte order mark within": " \ufeff ;\ufeff{}",
    "a semicolon after it": "{};",
    "a comment after it": "{}/* there */",
    "a line comment after it": "{}--there",
    "both after it": "{};-- there",
}


@pytest.mark.parametrize("place", HIDING_PLACES.values(), ids=HIDING_PLACES.keys())
@pytest.mark.parametrize("word", WORDS)
def test_beginning_and_ending_transactions_is_refused_wherever_it_hides(
    door: Transaction, connection: sqlite3.Connection, word: str, place: str
) -> None:
    sql = place.format(word, lower=word.lower(), swapped=word.swapcase().title())
    door.execute("INSERT INTO own (text) VALUES ('kept together')")
    with pytest.raises(TransactionMisused):
        door.execute(sql)
    with pytest.raises(TransactionMisused):
        door.executemany(sql, [()])
    assert connection.in_transaction
    connection.execute("ROLLBACK TO handler")  # the savepoint stands, and what was done goes with it
    assert connection.execute("SELECT count(*) FROM own").fetchone() == (0,)


@pytest.mark.parametrize(
    "sql",
    ["SELECT * FROM inbox", "DELETE FROM Inbox", 'UPDATE "inbox" SET run_id = 1', "DROP TABLE main.INBOX",
     "SELECT 1 UNION SELECT value FROM node_meta", "INSERT INTO registry_items VALUES (1, 2)",
     "CREATE VIEW mine AS SELECT * FROM [inbox]", "ALTER TABLE inbox RENAME TO mine",
     "/* inbox */ DELETE FROM inbox", "-- nothing\nDELETE FROM inbox"],
)  # fmt: skip
def test_the_inboxs_own_tables_are_refused(door: Transaction, sql: str) -> None:
    with pytest.raises(TransactionMisused):
        door.execute(sql)


def test_the_handlers_own_statements_pass(door: Transaction) -> None:
    assert door.execute("-- why\nINSERT INTO own (text) VALUES (?)", ("commit",)).rowcount == 1
    door.executemany("INSERT INTO own (text) VALUES (?)", [("a",), ("; COMMIT",)])
    assert door.execute("  SELECT text FROM own ORDER BY id").fetchall() == [
        ("commit",),
        ("a",),
        ("; COMMIT",),
    ]
    assert door.execute("WITH x AS (SELECT 1) SELECT * FROM x").fetchone() == (1,)
    door.execute("CREATE TABLE endings (commit_id INTEGER)")
    door.execute("INSERT OR IGNORE INTO own (id, text) VALUES (1, 'again')")
    door.execute("")
    door.execute("-- only a comment")


def test_two_statements_at_once_are_refused(door: Transaction, connection: sqlite3.Connection) -> None:
    with pytest.raises((TransactionMisused, sqlite3.Error)):
        door.execute("INSERT INTO own (text) VALUES ('x'); COMMIT")
    assert connection.in_transaction


def test_it_is_closed_after_the_function(door: Transaction) -> None:
    door.close()
    for use in (lambda: door.execute("SELECT 1"), lambda: door.executemany("SELECT 1", [])):
        with pytest.raises(TransactionMisused, match="over"):
            use()


def test_after_a_rollback_by_sqlite_itself_nothing_more_is_written(
    door: Transaction, connection: sqlite3.Connection
) -> None:
    """`OR ROLLBACK` ends the transaction; what came next would be durable without the run's result."""
    door.execute("INSERT INTO own (id) VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError):
        door.execute("INSERT OR ROLLBACK INTO own (id) VALUES (1)")
    with pytest.raises(TransactionMisused):
        door.execute("INSERT INTO own (id) VALUES (2)")
    assert connection.execute("SELECT count(*) FROM own").fetchone() == (0,)


def test_what_execute_returns_is_no_second_door(door: Transaction, connection: sqlite3.Connection) -> None:
    """A cursor of sqlite3 can execute and knows its connection: rows are handed out, not that."""
    found = door.execute("SELECT 1")
    with pytest.raises((TransactionMisused, AttributeError)):
        found.execute("COMMIT")
    with pytest.raises((TransactionMisused, AttributeError)):
        found.connection.commit()
    assert connection.in_transaction
