"""Turns the kill switch on and off, and keeps every place that can say so in step. Thin I/O around `kill_switch`.

On: this process stops at once, then the local file has it (fsynced), then the store, with its row of the audit trail.
Where the store is down the file's line waits, and is imported into the store and the trail once that answers. Off: the
store first, so that nothing is off that another proxy takes for on, then the file.

Invariants: nothing waits for the store to stop; a statement is lost only if file and store both refuse it, and then
whoever made it is told; what the store says is believed only under its seal, and one that is broken means on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.rollout.kill_switch import BY_HAND, KillSwitch, Line, Said, Source, SwitchFile, read
from fairlead.proxy.store.records import AuditEvent
from fairlead.proxy.store.rollout_records import KILL_SWITCH, ControlOverride, SteeringStore
from fairlead.runtime.observer import Observer
from fairlead.runtime.whole_file import WholeFile
from fairlead.runtime.world import World

LOOK_EVERY_S: Final = 0.25  # at the file
STORE_EVERY_S: Final = 2.0  # at the store, where no other proxy says that something changed
STORE_TIMEOUT_S: Final = 1.0  # for a statement; then it is imported later
REACH_TIMEOUT_S: Final = 1.0


class Nodes(Protocol):
    """Who is told."""

    def tell(self, halted: bool, epoch: int) -> None: ...
    async def wait_reached(self, timeout_s: float) -> None: ...
    def status(self) -> dict[str, Any]: ...


class Halting:
    """The kill switch of this proxy. `load` before anything is served; `run` beside everything."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: SteeringStore,
        file: WholeFile,
        nodes: Nodes,
        apply: Callable[[bool], None],
        *,
        configured: bool,
        principal: str,
    ) -> None:
        """`apply`: stops dispatch in this process, or lets it go on."""
        self._world, self._observer, self._store, self._file = world, observer, store, file
        self._nodes, self._apply, self._principal = nodes, apply, principal
        self._configured = configured
        self.switch = KillSwitch({})
        self._read = SwitchFile()
        self._kept: list[Line] = []  # for the store, and not of the file
        self._files, self._speaking = trio.Lock(), trio.Lock()  # over the file; over what the store is told
        self._signal, self._wake, self._imported = trio.Event(), trio.Event(), trio.Event()
        self._file_problem = self._store_problem = ""
        metrics = observer.metrics
        metrics.computed(
            "kill_switch_on", "Whether a source says that the kill switch is on.", ("source",),
            lambda: {(source.value,): float(source in self.switch.sources) for source in Source},
        )  # fmt: skip
        self._changed = metrics.counter("kill_switch_changes_total", "Changes of the kill switch as a whole.")
        self._changed.cell()

    async def load(self) -> None:
        """What configuration, file and store say. Raises what the store raises."""
        self.configure(self._configured)
        await self._look_at_file()
        await self.refresh()

    async def run(self) -> None:
        """Look at the file and at the store, and import what waits; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_file)
            nursery.start_soon(self._follow_store)

    async def _watch_file(self) -> None:
        while True:
            with trio.move_on_after(LOOK_EVERY_S):
                await self._signal.wait()
            if self._signal.is_set():
                self._signal = trio.Event()
                now_ms = self._world.wall_ms()
                line = Line(True, now_ms, "signal", "SIGUSR1", self._world.new_id(), Source.SIGNAL.value)
                await self._write_down(line)
            await self._look_at_file()

    async def _follow_store(self) -> None:
        """Of its own, because a store that hangs must not keep anybody from the file."""
        while True:
            if not self._pending():
                with trio.move_on_after(STORE_EVERY_S):
                    await self._wake.wait()
            self._wake = trio.Event()
            try:
                await self._import()
                await self.refresh()
                self._store_problem = ""
            except Exception as error:  # it is on all the same; the next look tries again
                self._store_problem = f"store: {error}"
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"kill switch: {error}")
                await trio.sleep(LOOK_EVERY_S)

    # -- what the sources say

    def configure(self, on: bool) -> None:
        """The configuration was read, for the first time or again."""
        self._configured = on
        self._say(
            Source.CONFIGURATION, Said(on, 0, "configuration", "dispatch.kill_switch is set" if on else "")
        )

    def signalled(self) -> None:
        """SIGUSR1: on. Never waits; what has to be written is written by `run`."""
        self._say(Source.SIGNAL, Said(True, self._world.wall_ms(), "signal", "SIGUSR1"))
        self._signal.set()

    async def refresh(self) -> None:
        """What the store says. Raises what the store raises."""
        found = await self._store.control_override(KILL_SWITCH)
        self._say(Source.STORE, _said(found))

    def _say(self, source: Source, said: Said) -> None:
        if not self.switch.say(source, said, self._world.wall_ms()):
            return
        on, epoch = self.switch.is_on, self.switch.epoch
        self._apply(on)
        self._nodes.tell(on, epoch)
        self._changed.cell().inc()
        self._observer.log.warning(
            "kill_switch", on=on, epoch=epoch, source=source.value, by=said.by or None, why=said.why or None
        )

    async def _look_at_file(self) -> None:
        async with self._files:
            try:
                content = await self._world.run_in_thread(self._file.read)
            except OSError as error:  # one that cannot be read may say on
                self._file_problem = f"file: {error}"
                self._observer.sampled("error", "kill_switch_file_unreadable", error=str(error))
                return self._say(Source.FILE, Said(True, 0, BY_HAND, f"it cannot be read: {error}"))
            self._took(read(content))

    def _took(self, found: SwitchFile) -> None:
        was_by_hand, self._read = self._read.is_by_hand, found
        if found.is_by_hand and not was_by_hand:
            said = found.said
            at_ms = said.at_ms or self._world.wall_ms()
            self._kept.append(Line(True, at_ms, said.by, said.why, self._world.new_id(), Source.FILE.value))
            self._wake.set()
        self._say(Source.FILE, found.said)

    # -- on and off

    async def turn_on(self, event: AuditEvent, why: str) -> dict[str, Any]:
        """Stop everything. Raises Refused where neither file nor store took it: then it is on in this process only."""
        line = Line(
            True, event.at_ms, event.principal, why, event.id, Source.API.value, False, event.auth, event.address,
            event.correlation_id,
        )  # fmt: skip
        self._say(Source.API, Said(True, line.at_ms, line.by, line.why))
        problem = await self._write_down(line)
        with trio.move_on_after(STORE_TIMEOUT_S):
            while any(each.id == line.id for each in self._pending()):
                self._imported = trio.Event()
                await self._imported.wait()
        problems = [problem] if problem else []
        if any(each.id == line.id for each in self._pending()):
            problems.append(self._store_problem or "store: no answer yet")
        if len(problems) == 2:
            raise Refused(Reason.STORE_UNAVAILABLE, f"it is on in this process only: {'; '.join(problems)}")
        return await self._answer(problems)

    async def turn_off(self, event: AuditEvent, why: str) -> dict[str, Any]:
        """Let everything go on, unless a source says on that cannot be told otherwise. Raises what the store raises."""
        line = Line(
            False, event.at_ms, event.principal, why, event.id, Source.API.value, True, event.auth, event.address,
            event.correlation_id,
        )  # fmt: skip
        problems = []
        async with self._speaking:
            earlier = self._pending()
            await self._put(line, event, [self._event(each) for each in earlier])
            async with self._files:
                try:
                    content = await self._world.run_in_thread(self._file.read)
                    if content is not None:
                        done = frozenset(each.id for each in earlier)
                        await self._replace(read(content).imported(done).with_line(line))
                except OSError as error:
                    problems.append(f"file: {error}")
            self._kept.clear()
            for source in (Source.SIGNAL, Source.API, Source.STORE):
                self._say(source, Said(False, line.at_ms, line.by, line.why))
        return await self._answer(problems)

    async def _answer(self, problems: list[str]) -> dict[str, Any]:
        await self._nodes.wait_reached(REACH_TIMEOUT_S)
        return {**self.status(), "problems": problems}

    def status(self) -> dict[str, Any]:
        """For /status and the API."""
        problems = [each for each in (self._file_problem, self._store_problem) if each]
        return {
            **self.switch.status(), "reach": self._nodes.status(), "not_imported": len(self._pending()),
            "problems": problems,
        }  # fmt: skip

    # -- file and store

    async def _write_down(self, line: Line) -> str:
        """Into the file, fsynced; what went wrong, if something did. The store hears of it in any case."""
        try:
            async with self._files:
                content = await self._world.run_in_thread(self._file.read)
                await self._replace(read(content).with_line(line))
        except OSError as error:
            self._kept.append(line)
            self._file_problem = f"file: {error}"
            self._observer.log.error("kill_switch_not_written", error=str(error))
            return self._file_problem
        finally:
            self._wake.set()
        self._file_problem = ""
        return ""

    async def _replace(self, found: SwitchFile) -> None:
        await self._world.run_in_thread(lambda: self._file.replace(found.encoded()))
        self._took(found)

    def _pending(self) -> list[Line]:
        """What the store does not hold yet: of the file, and what the file did not take or a person wrote there."""
        return [*self._read.waiting, *self._kept]

    async def _import(self) -> None:
        """What was said while the store could not be written, in its order, with its rows of the audit trail."""
        async with self._speaking:
            pending = self._pending()
            for line in pending:
                await self._put(line, self._event(line), ())
            if not pending:
                return
            last = pending[-1]
            self._say(Source.STORE, Said(last.on, last.at_ms, last.by, last.why))
            done = frozenset(line.id for line in pending)
            self._kept = [line for line in self._kept if line.id not in done]
            async with self._files:
                try:
                    content = await self._world.run_in_thread(self._file.read)
                    found = read(content)
                    if any(line.id in done for line in found.waiting):
                        await self._replace(found.imported(done))
                except OSError as error:  # imported once more later: the same event, which is written once
                    self._file_problem = f"file: {error}"
            self._say(Source.SIGNAL, Said(False))
            self._say(Source.API, Said(False))
        self._imported.set()

    async def _put(self, line: Line, event: AuditEvent, earlier: Sequence[AuditEvent]) -> None:
        value = json.dumps({"on": line.on, "source": line.source})
        override = ControlOverride(KILL_SWITCH, value, line.at_ms, line.by, line.why)
        await self._store.put_control_override(override, event, earlier=earlier)

    def _event(self, line: Line) -> AuditEvent:
        action = "kill_switch_on" if line.on else "kill_switch_off"
        detail = {"on": line.on, "source": line.source}
        event = AuditEvent(
            action, line.at_ms, line.by, "", self._principal, 1, 1, 0, detail, line.correlation_id
        )
        return replace(event, id=line.id, why=line.why, auth=line.auth or line.source, address=line.address)


def _said(found: ControlOverride | None) -> Said:
    if found is None:
        return Said(False)
    if not found.holds:
        return Said(True, 0, found.changed_by, "what the store says of it cannot be believed")
    try:
        on = json.loads(found.value_json)["on"] is not False
    except (ValueError, KeyError, TypeError):
        on = True
    return Said(on, found.changed_at_ms, found.changed_by, found.why)
