"""Where client links hand their submissions in: from a message to a durable acceptance, and from an end to a message.

The command's journey at its fast entrance. What gathers on a link while one acceptance is being made durable is
accepted by the next one, together; its outcomes go out as one message, and so do the ends that one settled batch
brought. What depends only on who and what (the scope, the command, how its arguments are checked) is worked out once
per link and registry, not per run.

Invariants: a run is open on a link from its submission until its end was handed to the link, and at most
`runs_open_max` are; an outcome is told after it is durable; nothing of a link is left here when it is gone. An end may
be told before the acceptance that it follows: the client takes it for both.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Item, Registry
from fairlead.protocol.schema import argument_problems
from fairlead.proxy.control.client_link import LinkedClient
from fairlead.proxy.dispatch.privileged import guarded, is_privileged
from fairlead.proxy.dispatch.submit import NodesView, Planned, SubmitLimits, build, check_caller, resolve
from fairlead.proxy.dispatch.waiters import STORE_FAILURES, Waiters
from fairlead.proxy.store.interface import AcceptOutcome
from fairlead.proxy.store.records import Accepted, RunResult, RunStatus
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

SCOPE: Final = "dispatch"
ACCEPT_MAX: Final = 512  # runs of one link in one transaction
CREDIT_PAUSE_MS: Final = 100
STORE_PAUSE_MS: Final = 500
DETAIL_CHARS_MAX: Final = 500
ITEM_OVERHEAD_BYTES: Final = 192  # of an outcome or an end, beside its value and its detail
TIDY_TYPES: Final[dict[str, type]] = {"boolean": bool, "integer": int, "string": str}
_RUN_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

_Told = TypeVar("_Told", m.SubmitOutcome, m.RunEnd)
# Which of these runs this principal of this tenant submitted.
Owned = Callable[[Sequence[str], str, bytes], Awaitable[Collection[str]]]


class Dispatching(Protocol):
    """What the desk needs of the dispatcher."""

    async def accept(self, planned: Sequence[Planned]) -> list[AcceptOutcome]: ...
    async def cancel(self, run_id: str, by: str, principal: str | None) -> object: ...


class ArgumentCheck:
    """Pure. Whether arguments fit one command: the plain case in a few lookups, the rest as the schema says."""

    __slots__ = ("_item", "_kinds", "_required")

    def __init__(self, item: Item) -> None:
        self._item = item
        parameters = item.descriptor.parameters
        self._kinds = {
            each.name: TIDY_TYPES[each.type]
            for each in parameters
            if each.type in TIDY_TYPES and not each.choices_json
        }
        self._required = tuple(each.name for each in parameters if each.required)

    def problems(self, arguments: dict[str, Any]) -> list[str]:
        """Every way in which they do not fit."""
        kinds = self._kinds
        for name, value in arguments.items():
            if kinds.get(name) is not type(value):
                return argument_problems(self._item.descriptor.parameters, arguments)
        for name in self._required:
            if name not in arguments:
                return argument_problems(self._item.descriptor.parameters, arguments)
        return []


Denied = Callable[[Refused, m.Identity, str], None]  # who asked, and from which address


def _nobody_is_told(refused: Refused, caller: m.Identity, address: str) -> None:
    pass


class Session:
    """One client link's runs. Its link feeds it and never waits for it; `run` does the work."""

    def __init__(self, desk: Desk, client: LinkedClient) -> None:
        self._desk, self._client = desk, client
        self._identity_json = msgspec.json.encode(client.identity)
        self._tenant = client.identity.tenant
        self._may_dispatch = SCOPE in client.identity.scopes
        self._open: set[str] = set()
        self._gathered: list[m.Submission] = []
        self._watched: list[str] = []
        self._cancelled: list[str] = []
        self._something, self._something_else = trio.Event(), trio.Event()
        self._registry: Registry | None = None
        self._commands: dict[str, tuple[Item, ArgumentCheck, bool]] = {}
        self._listener = self._on_ended
        self.submitted = 0

    @property
    def runs_open(self) -> int:
        return len(self._open)

    # -- what the link says (never waits)

    def submit(self, items: Sequence[m.Submission]) -> None:
        """Take them, as far as the credit goes; each one beyond it is answered at once."""
        self.submitted += len(items)
        opened, room = self._open, self._client.runs_open_max - len(self._open)
        refused = []
        for item in items:
            run_id = item.run_id
            if run_id in opened:
                refused.append(
                    self._refuse(run_id, Refused(Reason.BODY_MALFORMED, "it is under way already"))
                )
            elif room <= 0:
                refused.append(self._over_credit(run_id))
            else:
                room -= 1
                opened.add(run_id)
                self._gathered.append(item)
        self._tell(refused)
        self._something.set()

    def watch(self, run_ids: Sequence[str]) -> None:
        """Tell the ends of these runs, which were accepted over an earlier link."""
        refused = []
        for run_id in run_ids:
            if run_id in self._open:
                continue
            if len(self._open) >= self._client.runs_open_max:
                refused.append(self._over_credit(run_id))
            else:
                self._open.add(run_id)
                self._watched.append(run_id)
        self._tell(refused)
        self._something_else.set()

    def cancel(self, run_ids: Sequence[str]) -> None:
        """Cancel what is open here; anything else is no business of this link."""
        room = self._client.runs_open_max - len(self._cancelled)
        self._cancelled.extend([run_id for run_id in run_ids if run_id in self._open][: max(0, room)])
        self._something_else.set()

    def close(self) -> None:
        """The link is gone. What was accepted goes on; nobody here is told of it any more."""
        for run_id in self._open:
            self._desk.waiters.unsubscribe(run_id, self._listener)
        self._open.clear()
        self._gathered.clear()

    # -- work

    async def run(self) -> None:
        """Accept, watch and cancel until the link ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_and_cancel)
            while True:
                await self._something.wait()
                self._something = trio.Event()
                while self._gathered:
                    batch = self._gathered[:ACCEPT_MAX]
                    del self._gathered[: len(batch)]
                    await self._accept(batch)

    async def _accept(self, batch: list[m.Submission]) -> None:
        refused, planned = self._plan(batch)
        told: list[m.SubmitOutcome] = []
        waiters, listener = self._desk.waiters, self._listener
        for each in planned:
            waiters.subscribe(each.run.run_id, listener)
        earlier: list[str] = []
        quiet = {each.run_id for each in batch if each.quiet}
        if planned:
            try:
                outcomes = await self._desk.dispatcher.accept(planned)
            except STORE_FAILURES as error:  # none of them was accepted now
                why = error if isinstance(error, Refused) else _unavailable(error)
                refused.extend((each.run.run_id, why) for each in planned)
            else:
                for outcome in outcomes:
                    if type(outcome) is Accepted:
                        if outcome.run_id not in quiet or outcome.status is RunStatus.PENDING_APPROVAL:
                            told.append(m.SubmitOutcome(outcome.run_id, outcome.status.value))
                        if outcome.replayed or outcome.status.terminal:
                            earlier.append(outcome.run_id)
                    else:
                        taken = Refused(Reason.RUN_ID_TAKEN, outcome.run_id)
                        told.append(self._give_up(outcome.run_id, taken))
        if refused:
            told += await self._refused_now(refused, earlier)
        self._tell(told)
        if earlier:
            await self._look(earlier)

    async def _refused_now(
        self, refused: list[tuple[str, Refused]], earlier: list[str]
    ) -> list[m.SubmitOutcome]:
        """The answers to what cannot be accepted now. What was accepted before stays so, whatever would be said to it
        today: it is said again because our answer was never heard."""
        told: list[m.SubmitOutcome] = []
        ids = [run_id for run_id, _ in refused if _RUN_ID.fullmatch(run_id)]
        try:
            mine = set(await self._desk.owned(ids, self._tenant, self._identity_json)) if ids else set()
        except STORE_FAILURES as error:
            unknown = _unavailable(error)
            return [self._give_up(run_id, unknown) for run_id, _ in refused]
        for run_id, why in refused:
            if run_id in mine:
                self._desk.waiters.unsubscribe(
                    run_id, self._listener
                )  # where it was planned it is there already
                self._desk.waiters.subscribe(run_id, self._listener)
                told.append(m.SubmitOutcome(run_id, RunStatus.PENDING.value))
                earlier.append(run_id)
            else:
                told.append(self._give_up(run_id, why))
        return told

    def _plan(self, batch: list[m.Submission]) -> tuple[list[tuple[str, Refused]], list[Planned]]:
        """What may be accepted, and why the rest may not."""
        desk = self._desk
        registry = desk.registry()
        if registry is not self._registry:
            self._registry, self._commands = registry, {}
        now_ms = desk.world.wall_ms()
        refused: list[tuple[str, Refused]] = []
        planned: list[Planned] = []
        for each in batch:
            try:
                planned.append(self._plan_one(each, registry, now_ms))
            except Refused as reason:
                refused.append((each.run_id, reason))
        return refused, planned

    def _plan_one(self, asked: m.Submission, registry: Registry, now_ms: int) -> Planned:
        desk = self._desk
        if not self._may_dispatch:
            raise Refused(Reason.SCOPE_MISSING, f"{self._client.client_id} does not have {SCOPE}")
        if not _RUN_ID.fullmatch(asked.run_id):
            raise Refused(Reason.BODY_MALFORMED, "run_id is not a lower-case UUID")
        command = desk.bounds.variant(asked.command, self._tenant)
        known = self._commands.get(command)
        if known is None:
            item = resolve(registry, command)
            check_caller(item, self._client.identity, desk.bounds)
            known = self._commands[command] = (
                item, ArgumentCheck(item),
                is_privileged(item.descriptor) or desk.bounds.approvals.terms(item) is not None,
            )  # fmt: skip
        item, check, privileged = known
        args_json = asked.args_json
        if len(args_json) > desk.bounds.args_bytes_max:
            raise Refused(
                Reason.BODY_TOO_LARGE,
                f"args have {len(args_json)} bytes, at most {desk.bounds.args_bytes_max}",
            )
        try:
            problems = check.problems(_DECODE_ARGUMENTS(args_json))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise Refused(Reason.BODY_MALFORMED, f"args: {error}") from error
        if problems:
            raise Refused(Reason.ARGUMENTS_INVALID, "; ".join(problems))
        planned = build(
            item, args_json, asked.target, desk.nodes, self._identity_json, self._tenant, asked.run_id,
            asked.run_id, now_ms, desk.bounds, deadline_ms=asked.deadline_ms or None, delay_ms=asked.delay_ms,
            ordering_key=asked.ordering_key, priority=asked.priority, callback_url=asked.callback_url,
            new_id=desk.world.new_id, chosen_id=True,
        )  # fmt: skip
        if privileged:
            return guarded(planned, self._client.identity, desk.bounds, self._client.address)
        return planned

    async def _watch_and_cancel(self) -> None:
        while True:
            await self._something_else.wait()
            self._something_else = trio.Event()
            while self._watched:
                batch = self._watched[:ACCEPT_MAX]
                del self._watched[: len(batch)]
                await self._watch(batch)
            while self._cancelled:
                await self._cancel(self._cancelled.pop(0))

    async def _watch(self, batch: list[str]) -> None:
        try:
            mine = set(await self._desk.owned(batch, self._tenant, self._identity_json))
        except STORE_FAILURES as error:
            self._tell([self._give_up(run_id, _unavailable(error)) for run_id in batch])
            return
        self._tell([
            self._give_up(run_id, Refused(Reason.RUN_UNKNOWN, run_id)) for run_id in batch if run_id not in mine
        ])  # fmt: skip
        owned = [run_id for run_id in batch if run_id in mine]
        for run_id in owned:
            self._desk.waiters.subscribe(run_id, self._listener)
        await self._look(owned)

    async def _look(self, run_ids: list[str]) -> None:
        """Some may have ended already, and then nobody will say so again."""
        try:
            await self._desk.waiters.look(run_ids)
        except STORE_FAILURES:
            pass  # `Waiters.run` looks again.

    async def _cancel(self, run_id: str) -> None:
        principal = self._client.identity.principal
        try:
            await self._desk.dispatcher.cancel(run_id, principal, principal)
        except Refused as refused:
            self._desk.denied(refused, self._client.identity, self._client.address)
            self._desk.observer.refused(
                refused.reason, refused.detail, run=run_id, client=self._client.client_id, level="info"
            )
            self._client.send(m.Notice(refused.reason.value, f"cancel {run_id}: {refused.detail}"[:200]))

    # -- telling

    def _over_credit(self, run_id: str) -> m.SubmitOutcome:
        most = self._client.runs_open_max
        refused = Refused(
            Reason.INGRESS_BACKPRESSURE, f"{most} runs are open", retry_after_s=CREDIT_PAUSE_MS / 1000
        )
        return self._refuse(run_id, refused)

    def _give_up(self, run_id: str, refused: Refused) -> m.SubmitOutcome:
        """It was taken, and cannot be accepted or watched."""
        self._open.discard(run_id)
        self._desk.waiters.unsubscribe(run_id, self._listener)
        return self._refuse(run_id, refused)

    def _refuse(self, run_id: str, refused: Refused) -> m.SubmitOutcome:
        """Count and log it; the answer."""
        self._desk.denied(refused, self._client.identity, self._client.address)
        self._desk.observer.refused(
            refused.reason, refused.detail, run=run_id[:64], client=self._client.client_id, level="info"
        )
        return m.SubmitOutcome(
            run_id, "REFUSED", refused.reason.value, refused.detail[:DETAIL_CHARS_MAX],
            round((refused.retry_after_s or 0) * 1000),
        )  # fmt: skip

    def _tell(self, outcomes: list[m.SubmitOutcome]) -> None:
        for part in parts(outcomes, _outcome_bytes, self._client.body_bytes_max):
            self._client.send(m.Submitted(part))

    def _on_ended(self, ended: list[RunResult]) -> None:
        """A settled batch brought these ends. Called by `Waiters`."""
        ends = []
        for each in ended:
            self._open.discard(each.run_id)
            ends.append(
                m.RunEnd(
                    each.run_id,
                    each.status.value,
                    each.value_json or b"",
                    each.reason,
                    each.detail,
                    each.node_id,
                )
            )
        for part in parts(ends, _end_bytes, self._client.body_bytes_max):
            if self._client.send(m.RunsEnded(part)) is not None:
                self._client.send(m.RunsEnded(tuple(without_value(each) for each in part)))


class Desk:
    """Opens a session for every client link."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        dispatcher: Dispatching,
        waiters: Waiters,
        registry: Callable[[], Registry],
        nodes: NodesView,
        bounds: SubmitLimits,
        owned: Owned,
        denied: Denied = _nobody_is_told,
    ) -> None:
        """`denied`: told of every refusal; must neither wait nor raise."""
        self.world, self.observer, self.dispatcher, self.waiters = world, observer, dispatcher, waiters
        self.registry, self.nodes, self.bounds, self.owned = registry, nodes, bounds, owned
        self.denied = denied

    def open(self, client: LinkedClient) -> Session:
        return Session(self, client)


_DECODE_ARGUMENTS: Final = msgspec.json.Decoder(dict[str, Any]).decode


def parts(
    items: Sequence[_Told], size: Callable[[_Told], int], bytes_max: int
) -> Iterator[tuple[_Told, ...]]:
    """Pure. The items in their order, in as few messages as fit. One that fits none comes alone."""
    start = total = 0
    for index, item in enumerate(items):
        more = size(item)
        if total + more > bytes_max and index > start:
            yield tuple(items[start:index])
            start, total = index, 0
        total += more
    if start < len(items):
        yield tuple(items[start:])


def without_value(end: m.RunEnd) -> m.RunEnd:
    """Pure. An end whose value no message can hold: how it ended is told, and where the value is."""
    detail = (
        f"its result has {len(end.value_json)} bytes, too many for a message; read GET /api/runs/{end.run_id}"
    )
    return m.RunEnd(end.run_id, end.status, b"", Reason.RESULT_TOO_LARGE.value, detail, end.node_id)


def _unavailable(error: Exception) -> Refused:
    return Refused(Reason.STORE_UNAVAILABLE, str(error), retry_after_s=STORE_PAUSE_MS / 1000)


def _outcome_bytes(outcome: m.SubmitOutcome) -> int:
    return ITEM_OVERHEAD_BYTES + 4 * len(outcome.detail) + 4 * len(outcome.run_id)


def _end_bytes(end: m.RunEnd) -> int:
    return ITEM_OVERHEAD_BYTES + len(end.value_json) + 4 * len(end.detail)
