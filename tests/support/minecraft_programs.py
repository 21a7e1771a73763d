"""The programs of tests/minecraft, run beside a test: a real client and a real server, which speak in JSON lines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from tests.support.tools import minecraft_environment, tool

PROGRAMS = Path(__file__).parents[1] / "minecraft"
STARTS_WITHIN_S = 30.0


class Program:
    """One of tests/minecraft: what it says, and what it is told."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []
        self._news = trio.Condition()

    async def listen(self) -> None:
        assert self.process.stdout is not None
        held = b""
        async for data in self.process.stdout:
            *lines, held = (held + data).split(b"\n")
            async with self._news:
                self.said += [json.loads(line) for line in lines if line.startswith(b"{")]
                self._news.notify_all()

    async def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(line.encode() + b"\n")

    async def until(self, event: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th time that it said this."""
        with trio.move_on_after(STARTS_WITHIN_S):
            async with self._news:
                while True:
                    found = [each for each in self.said if each["event"] == event]
                    if len(found) >= count:
                        return found[count - 1]
                    await self._news.wait()
        raise AssertionError(f"no {event} number {count}: {self.said}")


@asynccontextmanager
async def running(program: str, **options: Any) -> AsyncIterator[Program]:
    process = await trio.lowlevel.open_process(
        [str(tool("node")), str(PROGRAMS / program), json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=minecraft_environment(),
    )  # fmt: skip
    made = Program(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.listen)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()
