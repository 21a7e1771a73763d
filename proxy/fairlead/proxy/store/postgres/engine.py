"""PostgreSQL as an engine: one writer with shared commits, one reader beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fairlead.proxy.store.db import Db
from fairlead.proxy.store.postgres.migrate import migrate
from fairlead.proxy.store.postgres.writer import PostgresReader, PostgresWriter

T = TypeVar("T")


class PostgresEngine:
    """One database that several proxies may share. Owns its connections."""

    shared = True

    def __init__(self, writer: PostgresWriter, reader: PostgresReader) -> None:
        self._writer, self._reader = writer, reader

    async def write(self, job: Callable[[Db], T]) -> T:
        return await self._writer.submit(job)

    async def read(self, job: Callable[[Db], T], tenant: str | None = None) -> T:
        return await self._reader.submit(job, tenant)

    def waiting(self) -> int:
        return self._writer.waiting()

    @property
    def warnings(self) -> list[str]:
        """What an operator should know of the server's settings, and of whom we connect as."""
        return list(dict.fromkeys(self._writer.warnings + self._reader.warnings))

    async def aclose(self) -> None:
        await self._reader.aclose()
        await self._writer.aclose()


def open_engine(url: str) -> PostgresEngine:
    """Bring the schema up to this version and connect. Blocks, so call it in a thread. Raises Refused, SchemaUnknown or
    StoreUnfit."""
    migrate(url)
    writer = PostgresWriter(url, "store")
    return PostgresEngine(writer, PostgresReader(url, "reads"))
