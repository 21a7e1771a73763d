"""Follows the audit trail as the store has it: signs checkpoints over it, and writes it to a file beside the store.

Behind the journey: an action is audited in its own transaction and never waits for anything here. Each turn first looks
whether the new rows follow from what was seen before, and signs a checkpoint where one is due; then the file catches
up. Invariants: only what was followed row by row is signed, and nothing behind a break; the file has each row once, in
order, fsynced before the next turn, and goes on after a restart where its own last line ends; a full disk holds up
nothing but the file. Proxies that share a store each write their own file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import AuditEvent
from fairlead.runtime.append_file import AppendFile
from fairlead.runtime.audit_chain import (
    Checkpoint,
    Line,
    Position,
    Row,
    Signer,
    break_at,
    line_of,
    lines_of,
    read_line,
    signature_holds,
)
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

T = TypeVar("T")
TURN_EVERY_S: Final = 1.0
ROWS_MAX: Final = 500  # in one read, and so in one fsync
READS_MAX: Final = 20  # of one turn; what is left is a matter of the next one
TAIL_BYTES: Final = 4 * 1024 * 1024  # of a file, to find its last line; one has at most a megabyte
FINISH_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """From the configuration. `file`: "" is none."""

    file: str
    checkpoint_every_rows: int
    checkpoint_every_s: int


class AuditTrail:
    """The follower of one proxy."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        signer: Signer,
        public_keys: Sequence[bytes],
        fleet_id: str,
        settings: AuditSettings,
    ) -> None:
        """`public_keys`: whose checkpoints are believed: of the current secret, and of the one before it."""
        self._world, self._observer, self._store = world, observer, store
        self._signer, self._keys, self._fleet_id = signer, tuple(public_keys), fleet_id
        self._settings = settings
        self._turning = trio.Lock()
        self._seen: Position | None = None  # followed up to here; None: not begun
        self._checkpoint_seq = 0  # the newest one that is known
        self._checkpoint_at_s = trio.current_time()
        self._file = _File(world, store, settings.file) if settings.file else None
        self.broken = ""
        """Where the trail does not follow from what was seen before; nothing is signed any more."""
        observer.metrics.computed(
            "audit_seq", "Audit rows that were followed, in the file, and under a checkpoint.", ("what",),
            self._measure,
        )  # fmt: skip

    def rekey(self, signer: Signer, public_keys: Sequence[bytes]) -> None:
        """Sign under another key from now on; what was believed stays believed for the life of this process."""
        self._signer, self._keys = signer, tuple(dict.fromkeys((*public_keys, *self._keys)))

    @property
    def file_problem(self) -> str:
        """Why the file does not keep up, or nothing."""
        return self._file.problem if self._file else ""

    def _measure(self) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {("followed",): self._seen.seq if self._seen else 0}
        found["signed",] = self._checkpoint_seq
        if self._file:
            found["file",] = self._file.position.seq if self._file.position else 0
        return found

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                await self.turn()
                await trio.sleep(TURN_EVERY_S)
        finally:
            if self._file:
                self._file.close()

    async def checkpoint_now(self) -> int:
        """Sign what there is, at once, as somebody is about to read it: up to which row. Behind a break nothing is
        signed, and then it is the last row. Raises what the store raises."""
        async with self._turning:
            await self._follow(now=True)
            assert self._seen is not None
            return self._seen.seq if self.broken else self._checkpoint_seq

    async def finish(self) -> None:
        """The last turn, at a stop: a checkpoint of the last row, and both in the file."""
        with trio.move_on_after(FINISH_S, shield=True):
            await self.turn(now=True)
        if self._file:
            self._file.close()

    async def turn(self, now: bool = False) -> None:
        """Once: follow, sign where it is due (or `now`), and write. A failure is told, and left to the next one."""
        try:
            async with self._turning:
                await self._follow(now)
                if self._file:
                    await self._write()
        except Exception as error:  # the next turn tries again
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"audit trail: {error}", level="error")

    # -- following and signing

    async def _follow(self, now: bool) -> None:
        if self._seen is None:
            self._seen = await self._begin()
        for _ in range(READS_MAX):
            rows = await self._store.audit_rows(self._seen.seq, ROWS_MAX)
            for row in rows:
                why = break_at(row, self._seen)
                if why:
                    await self._break(f"row {row.seq} {why}")
                self._seen = Position(row.seq, row.hash)
            if len(rows) < ROWS_MAX:
                break
        await self._sign(now)

    async def _begin(self) -> Position:
        """Where following begins: at the newest checkpoint that holds, which is believed as far as its signature goes;
        else at the first row that is kept."""
        last = await self._store.last_audit_checkpoint()
        if last is None:
            return Position()
        self._checkpoint_seq = last.seq
        if not signature_holds(last, self._keys):
            # Made under a secret from before the last two, or by nobody who has one: then it says nothing.
            detail = f"checkpoint {last.seq} is signed by key {last.key_id}, which is not known here"
            self._observer.refused(Reason.SECURITY_AUDIT_CHAIN_BROKEN, detail, level="warning")
            base = await _base(self._store)
            return Position(base.seq, base.hash) if base else Position()
        rows = await self._store.audit_rows(last.seq - 1, 1)
        if rows and (rows[0].seq, rows[0].hash) == (last.seq, last.hash):
            return Position(last.seq, last.hash)
        if not rows or rows[0].seq == last.seq:  # where it was pruned, the row after it says more
            await self._break(f"row {last.seq} is not the one that its checkpoint was made of")
        return Position(last.seq, last.hash)

    async def _sign(self, now: bool) -> None:
        assert self._seen is not None
        rows = self._seen.seq - self._checkpoint_seq
        waited_s = trio.current_time() - self._checkpoint_at_s
        due = now or rows >= self._settings.checkpoint_every_rows
        if self.broken or rows <= 0 or not (due or waited_s >= self._settings.checkpoint_every_s):
            return
        last = await self._store.last_audit_checkpoint()
        if last is not None and last.seq > self._checkpoint_seq and not now:  # another proxy was first
            self._checkpoint_seq, self._checkpoint_at_s = last.seq, trio.current_time()
            return
        made = self._signer.checkpoint(self._fleet_id, self._seen.seq, self._seen.hash, self._world.wall_ms())
        await self._store.save_audit_checkpoint(made)
        self._checkpoint_seq, self._checkpoint_at_s = made.seq, trio.current_time()

    async def _break(self, why: str) -> None:
        """Say so where operators look, and in the trail itself; once."""
        self._observer.refused(Reason.SECURITY_AUDIT_CHAIN_BROKEN, why, level="error")
        if not self.broken:
            self.broken = why
            event = AuditEvent(
                "audit_chain_broken", self._world.wall_ms(), "proxy", detail={"why": why}, result="broken",
                id=self._world.new_id(),
            )  # fmt: skip
            await self._store.audit(event)

    # -- the file

    async def _write(self) -> None:
        assert self._file is not None
        assert self._seen is not None
        was = self._file.problem
        try:
            apart = await self._file.catch_up(self._seen.seq, self._checkpoint_seq)
        except OSError as error:
            self._file.problem = str(error)
            if not was:
                self._observer.refused(Reason.AUDIT_FILE_UNWRITABLE, str(error), level="error")
            return
        self._file.problem = ""
        if was:
            self._observer.log.info(
                "audit_file_caught_up", seq=self._file.position and self._file.position.seq
            )
        if apart:
            await self._break(apart)


class _File:
    """The file, and how far it is."""

    def __init__(self, world: World, store: Store, path: str) -> None:
        self._world, self._store, self._path = world, store, path
        self._file: AppendFile = world.open_append(Path(path))
        self.position: Position | None = None  # of its last line; None: it is not open
        self._checkpoint_seq = 0  # of its last checkpoint
        self.problem = ""

    async def catch_up(self, seen_seq: int, checkpoint_seq: int) -> str:
        """Write what it does not have. What does not follow from it begins a new one, and is the answer. Raises
        OSError, after which it is opened anew."""
        apart = ""
        if self.position is None:
            apart = await self._open()
        assert self.position is not None
        if self.position.seq >= seen_seq and self._checkpoint_seq >= checkpoint_seq:
            return apart
        try:
            for _ in range(READS_MAX):
                rows = await self._store.audit_rows(self.position.seq, ROWS_MAX)
                checkpoints = await self._store.audit_checkpoints(self._checkpoint_seq + 1, ROWS_MAX)
                lines = self._lines(rows, checkpoints)
                if lines:
                    text = b"".join(line_of(each) for each in lines)
                    await self._in_thread(partial(self._file.append, text))
                    self._wrote(lines)
                if len(rows) < ROWS_MAX:
                    break
        except OSError:
            self.position = None
            raise
        return apart

    async def _in_thread(self, action: Callable[[], T]) -> T:
        """To its end, whatever is cancelled: a thread that was given up could write to a file closed since."""
        with trio.CancelScope(shield=True):
            value = await self._world.run_in_thread(action)
        return value

    def close(self) -> None:
        self._file.close()
        self.position = None

    def _lines(self, rows: Sequence[Row], checkpoints: Sequence[Checkpoint]) -> list[Line]:
        """Pure. In which order they are written: a checkpoint behind the row that it covers."""
        assert self.position is not None
        lines: list[Line] = []
        waiting = list(checkpoints)
        seq = self.position.seq
        if (
            rows and rows[0].seq > seq + 1
        ):  # pruned before we came to write them: go on behind what vouches for them
            waiting = [each for each in waiting if each.seq >= rows[0].seq - 1]
            seq = rows[0].seq - 1
        while waiting and waiting[0].seq <= seq:
            lines.append(waiting.pop(0))
        for row in rows:
            lines.append(row)
            while waiting and waiting[0].seq == row.seq:
                lines.append(waiting.pop(0))
        return lines

    def _wrote(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if isinstance(line, Checkpoint):
                self._checkpoint_seq = max(self._checkpoint_seq, line.seq)
        last = next((each for each in reversed(lines) if isinstance(each, Row)), None)
        if last is not None:
            self.position = Position(last.seq, last.hash)

    async def _open(self) -> str:
        """Find out how far the file is, and whether the store's trail follows from it."""
        tail = await self._in_thread(lambda: self._file.resume(TAIL_BYTES))
        self.position, self._checkpoint_seq = _end_of(lines_of(tail))
        base = await _base(self._store)
        if tail and self.position is None:
            why = "has no line of an audit trail at its end"
        elif self.position is None:
            why = ""
        else:
            why = await self._apart(self.position, base)
        if why:
            await self._in_thread(lambda: self._file.set_aside(f".apart-{self._world.wall_ms()}"))
            await self._in_thread(lambda: self._file.resume(TAIL_BYTES))
            self.position = None
        if self.position is None:
            self.position, self._checkpoint_seq = Position(), 0
            if base is not None:  # a new file begins with what vouches for the rows that are gone
                await self._in_thread(lambda: self._file.append(line_of(base)))
                self.position, self._checkpoint_seq = Position(base.seq, base.hash), base.seq
        return why and f"the audit file {self._path} {why}; it was set aside"

    async def _apart(self, end: Position, base: Checkpoint | None) -> str:
        """Why the store's trail does not follow from the file's, or nothing."""
        rows = await self._store.audit_rows(end.seq - 1, 1) if end.seq else []
        if rows and rows[0].seq == end.seq:
            same = rows[0].hash == end.hash
        elif base is not None and base.seq >= end.seq:  # pruned since
            same = base.seq > end.seq or base.hash == end.hash
        else:
            same = not end.seq
        return "" if same else f"ends with another row {end.seq} than the database has"


async def _base(store: Store) -> Checkpoint | None:
    """The checkpoint that vouches for what was pruned; None where nothing was."""
    rows = await store.audit_rows(0, 1)
    if rows and rows[0].seq == 1:
        return None
    found = await store.audit_checkpoints(0, 1)
    if rows and found and found[0].seq != rows[0].seq - 1:
        return None
    return found[0] if found else None


def _end_of(lines: Sequence[bytes]) -> tuple[Position | None, int]:
    """How far a file is by its last lines: its last row, and its last checkpoint."""
    position, checkpoint_seq = None, 0
    for raw in reversed(lines):
        line = read_line(raw)
        if line is None:
            break
        if isinstance(line, Checkpoint):
            checkpoint_seq = checkpoint_seq or line.seq
            position = position or Position(line.seq, line.hash)
        elif position is None or line.seq > position.seq:
            return Position(line.seq, line.hash), checkpoint_seq
        else:
            return position, checkpoint_seq
    return position, checkpoint_seq
