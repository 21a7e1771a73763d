"""`fairlead check schema-preflight`: what a start would find in the store. It changes nothing."""

from __future__ import annotations

import json
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.postgres import Databases
from tests.support.processes import run_cli, to_toml

from fairlead.cli.main import main
from fairlead.proxy.store.sqlite.migrate import migrate, migrations
from fairlead.proxy.store.sqlite.preflight import preflight
from fairlead.runtime.sqlite import open_connection

ENVIRON = {"SECURITY_PROXY_SECRET": secrets.token_hex(32), "RELIABILITY_OPS_KEYS": secrets.token_hex(24)}
NEWEST = migrations()[-1][0]


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)


def config(folder: Path, url: str) -> str:
    path = folder / "proxy.toml"
    path.write_text(to_toml({"schema_version": 1, "environment": "development", "store": {"url": url}}))
    return str(path)


def levels(path: Path) -> dict[str, str]:
    return {each.check: each.level for each in preflight(path)}


def made(path: Path) -> Path:
    open_connection(path, migrate).close()
    return path


def content(path: Path) -> dict[str, bytes]:
    """Of the database and of what lies beside it, as far as it says anything."""
    return {each.name: each.read_bytes() for each in path.parent.iterdir() if not each.name.endswith("-shm")}


def test_a_store_as_this_version_left_it(tmp_path: Path) -> None:
    path = made(tmp_path / "a.db")
    before = content(path)
    assert levels(path) == {"connect": "ok", "journal": "ok", "schema": "ok"}
    after = content(path)
    assert before.items() <= after.items(), "nothing was changed"
    assert not any(after[name] for name in after.keys() - before.keys()), "at most an empty log was made"
    open_connection(path, migrate).close()


def test_no_store_yet_is_made_by_a_start_and_not_by_a_look(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    assert levels(path) == {"connect": "ok", "schema": "warning"}
    assert not path.exists()


def test_an_older_schema_names_what_a_start_would_apply(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE something (x)")
        connection.execute("PRAGMA user_version=1")
    found = {each.check: each for each in preflight(path)}
    assert found["schema"].level == "warning"
    for number in range(2, NEWEST + 1):
        assert f"{number:04}" in found["schema"].detail
    assert found["journal"].level == "warning", "not in WAL yet"


def test_a_schema_from_the_future_and_what_is_no_database_are_errors(tmp_path: Path) -> None:
    path = made(tmp_path / "new.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={NEWEST + 1}")
    assert levels(path)["schema"] == "error"
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"this is no database, and long enough to be read as one" * 40)
    assert levels(junk) == {"connect": "error"}


def test_what_a_killed_proxy_left_in_the_log_is_seen(tmp_path: Path) -> None:
    """A look at the file alone would show the schema before the last commits."""
    path, copy = tmp_path / "live.db", tmp_path / "killed" / "live.db"
    copy.parent.mkdir()
    with closing(open_connection(path, migrate)):
        for name in ("live.db", "live.db-wal"):
            (copy.parent / name).write_bytes((tmp_path / name).read_bytes())
    assert (copy.parent / "live.db-wal").stat().st_size > 0
    assert levels(copy) == {"connect": "ok", "journal": "ok", "schema": "ok"}
    open_connection(copy, migrate).close()


def test_a_file_that_a_proxy_holds_is_an_error_that_says_so(tmp_path: Path) -> None:
    with closing(open_connection(tmp_path / "held.db", migrate)):
        (finding,) = preflight(tmp_path / "held.db")
    assert finding.level == "error"
    assert "a proxy holds it" in finding.detail


@pytest.mark.usefixtures("environ")
def test_the_exit_status_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path / "a.db")
    file = config(tmp_path, f"sqlite:///{path}")

    def check(*more: str) -> tuple[int, str]:
        status = main(["check", "schema-preflight", "--config", file, *more])
        return status, capsys.readouterr().out

    status, text = check()
    assert (status, f"ok     schema  schema {NEWEST}, this version needs {NEWEST}" in text) == (0, True), text
    report: Any = json.loads(check("--json")[1])
    assert (report["check"], report["passed"], report["store"]) == ("schema-preflight", True, "sqlite")
    assert [each["check"] for each in report["findings"]] == ["connect", "journal", "schema"]
    with closing(open_connection(path, migrate)):
        status, text = check("--json")
    assert (status, json.loads(text)["passed"]) == (1, False)
    assert main(["check", "schema-preflight", "--config", str(tmp_path / "nothing.toml")]) == 2
    assert "configuration refused" in capsys.readouterr().err


@pytest.mark.usefixtures("environ")
def test_a_postgresql_before_and_after_its_first_start(
    tmp_path: Path, postgres: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairlead.proxy.store.postgres.migrate import migrate as migrate_postgres

    url = postgres.create_database()
    try:
        file = config(tmp_path, url)

        def check() -> tuple[int, dict[str, str]]:
            status = main(["check", "schema-preflight", "--config", file, "--json"])
            report = json.loads(capsys.readouterr().out)
            assert report["store"] == "postgresql"
            return status, {each["check"]: each["level"] for each in report["findings"]}

        status, found = check()
        assert (status, found["connect"], found["schema"]) == (0, "ok", "warning")
        migrate_postgres(url)
        status, found = check()
        assert (status, found["schema"]) == (0, "ok")
        postgres.execute("UPDATE fairlead_schema SET checksum = 'another'", url)
        status, found = check()
        assert (status, found["schema"]) == (1, "error")
    finally:
        postgres.drop_database(url)
    assert main(["check", "schema-preflight", "--config", file]) == 1
    assert "ERROR" in capsys.readouterr().out


def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    file = config(tmp_path, f"sqlite:///{tmp_path}/x.db")
    done = run_cli("check", "schema-preflight", "--config", file, environ=ENVIRON)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert not (tmp_path / "x.db").exists()
