"""A program that is run to its end: what it is given, how much of what it says is kept, and how it is stopped.

Part of the seam (`World.run_program`): nothing else starts one, and a simulation has none. No shell is involved.

Invariants: the program has a process group of its own, and when this returns or is cancelled nothing of that group is
left, its children included (asked first where it is cancelled, killed after `grace_s`); the group is killed before its
leader is reaped, so that the number cannot be somebody else's by then; what is kept of its output is bounded, and what
goes beyond is read and thrown away, so that a program which says too much ends as it would have. A descendant that
made itself a session of its own is out of reach, and so is one that runs as another user: `ProgramLeft` says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

READ_BYTES: Final = 64 * 1024
POLL_S: Final = 0.01
PIPES_S: Final = 1.0  # for what the pipes still hold, once nothing of the group lives
KILLED_S: Final = 5.0  # for the kernel to take away what was killed


class ProgramLeft(Exception):
    """It was to be stopped and could not be: it goes on."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `environ` is all of its environment; `arguments[0]` is looked for in its PATH."""

    arguments: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    given: bytes = field(repr=False)  # on its standard input
    output_bytes_max: int
    errors_bytes_max: int = 4_096  # the last ones
    grace_s: float = 1.0  # between the question to stop and the end


@dataclass(frozen=True, slots=True)
class ProgramEnd:
    """How it ended. `output` is the beginning of what it said, `errors` the end of what it complained."""

    status: int  # below zero: the signal that killed it
    output: bytes
    output_bytes: int
    errors: bytes

    @property
    def how(self) -> str:
        """In words."""
        if self.status >= 0:
            return f"exit status {self.status}"
        try:
            return f"killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"killed by signal {-self.status}"


async def run_program(program: Program) -> ProgramEnd:
    """Run it to its end. Raises OSError or ValueError where it cannot be started, and ProgramLeft."""
    process = await trio.lowlevel.open_process(
        list(program.arguments), env=dict(program.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = _Head(program.output_bytes_max), _Tail(program.errors_bytes_max)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_give, process.stdin, program.given)
            nursery.start_soon(_take, process.stdout, output)
            nursery.start_soon(_take, process.stderr, errors)
            await _ended(process.pid)
            _signal_group(process.pid, signal.SIGKILL)
            nursery.cancel_scope.deadline = trio.current_time() + PIPES_S
    finally:
        with trio.CancelScope(shield=True):
            await _stop(process, program.grace_s)
    assert process.returncode is not None
    return ProgramEnd(process.returncode, bytes(output.kept), output.count, bytes(errors.kept))


async def _stop(process: trio.Process, grace_s: float) -> None:
    """Ask, kill, reap. Where it has ended already, only the last of these."""
    try:
        with trio.move_on_after(grace_s) as asked:
            if not _has_ended(process.pid):
                _signal_group(process.pid, signal.SIGTERM)
            await _ended(process.pid)
        # The group again, whether or not its leader went: it may have children that did not.
        _signal_group(process.pid, signal.SIGKILL)
        if asked.cancelled_caught:
            with trio.move_on_after(KILLED_S) as killed:
                await _ended(process.pid)
            if killed.cancelled_caught:
                raise ProgramLeft(f"process {process.pid} cannot be killed by this user, and goes on")
        await process.wait()
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)


def _has_ended(pid: int) -> bool:
    """Without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


async def _ended(pid: int) -> None:
    """Until the process has ended. It is not reaped, so that its number stays its own."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):  # a kernel that has none
        while not _has_ended(pid):  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(POLL_S)
        return
    try:
        await trio.lowlevel.wait_readable(handle)
    finally:
        os.close(handle)


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # Nobody is there, or they are another user's: whoever waits for them finds out.


async def _give(stream: trio.abc.SendStream, data: bytes) -> None:
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # A program need not read what it is given.


async def _take(stream: trio.abc.ReceiveStream, into: _Head | _Tail) -> None:
    try:
        while data := await stream.receive_some(READ_BYTES):
            into.add(data)
    except trio.BrokenResourceError:
        pass  # A pipe that broke has no more to say.


class _Head:
    """The first bytes, and how many there were."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.kept = bytearray()
        self.count = 0

    def add(self, data: bytes | bytearray) -> None:
        self.count += len(data)
        self.kept += data[: self._bytes_max - len(self.kept)]


class _Tail:
    """The last bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.kept = bytearray()

    def add(self, data: bytes | bytearray) -> None:
        self.kept += data[-self._bytes_max :]
        del self.kept[: -self._bytes_max]
