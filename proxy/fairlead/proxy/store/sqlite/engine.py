"""SQLite as an engine: one writer, through which reads go too (see `fairlead.runtime.sqlite` for why)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

from fairlead.proxy.store.db import Db, SqliteDb
from fairlead.runtime.sqlite import Writer

T = TypeVar("T")


class SqliteEngine:
    """One file, one process. Owns its writer."""

    shared = False
    warnings: Sequence[str] = ()

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def write(self, job: Callable[[Db], T]) -> T:
        def run(connection: sqlite3.Connection) -> T:
            return job(SqliteDb(connection))

        return await self._writer.submit(run)

    async def read(self, job: Callable[[Db], T], tenant: str | None = None) -> T:
        return await self.write(job)  # there is one wall between tenants here: the one in the queries

    def waiting(self) -> int:
        return self._writer.waiting()

    async def aclose(self) -> None:
        await self._writer.aclose()
