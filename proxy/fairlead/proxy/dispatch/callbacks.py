"""Telling those who asked for it that a run has ended: due rows out of the store, one signed POST each.

After the last step of the command's journey. The row was written in the transaction that ended the run, so an end
that is durable is told, whatever is killed meanwhile; told at least once, always under the same event id.

    claim (with a lease) -> wait for a place -> POST -> ladder -> settle

Invariants: what is attempted is leased to this proxy for longer than the attempt can take; at most `concurrent_max`
attempts at once, of which one receiver's host never holds more than `HOST_CONCURRENT_MAX`; what waits here is
bounded, and what does not fit is let go: its lease runs out and it is claimed again; nothing leaves unsigned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import msgspec
import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.callback_ladder import Answered, Step, Unanswered, next_step, read_retry_after
from fairlead.proxy.store.records import CallbackDue
from fairlead.runtime.addresses import Destination, callback_url_problem, read_url
from fairlead.runtime.observer import Observer
from fairlead.runtime.posting import OutboundFailed, Post
from fairlead.runtime.signing import signed_headers
from fairlead.runtime.world import World

SCHEMA_VERSION: Final = "v1"
RUN_ENDED: Final = "run.ended"
HOST_CONCURRENT_MAX: Final = 4
CLAIM_MAX: Final = 256
WAITING_MAX: Final = 4_096
HOST_WAITING_MAX: Final = 512
LEASE_MARGIN_MS: Final = 60_000  # how long a claimed callback may wait for its place
SETTLE_MARGIN_MS: Final = 5_000  # and what is left for writing down how it went
POLL_S: Final = 1.0
COUNT_EVERY_POLLS: Final = 5
DETAIL_CHARS_MAX: Final = 300


class CallbackStore(Protocol):
    """What this loop needs of the store."""

    async def claim_callbacks(self, limit: int, now_ms: int, lease_ms: int) -> list[CallbackDue]: ...

    async def settle_callback(
        self,
        event_id: str,
        state: Literal["delivered", "pending", "dead"],
        next_at_ms: int,
        detail: str,
        now_ms: int,
    ) -> None: ...

    async def callback_counts(self) -> dict[str, int]: ...

    async def run(self, run_id: str) -> dict[str, Any] | None: ...


@dataclass(frozen=True, slots=True)
class CallbackSettings:
    """What callbacks need of the configuration. `secrets`: the current one first; none: nothing is sent."""

    secrets: tuple[bytes, ...]
    allowed_hosts: tuple[str, ...]
    timeout_ms: int
    concurrent_max: int
    poll_s: float = POLL_S


@dataclass(frozen=True, slots=True)
class _Claimed:
    due: CallbackDue
    host: str
    lease_until_ms: int


def url_problem(settings: CallbackSettings, url: str) -> str | None:
    """Why a submission may not name this callback_url, or None."""
    if not settings.secrets:
        return "cannot be called: worker.callback_signing_secret is not set, and nothing is sent unsigned"
    return callback_url_problem(url, settings.allowed_hosts)


def event_body(event_id: str, run: dict[str, Any]) -> bytes:
    """What a receiver reads. The same bytes for the same end, so that it can tell a repetition."""
    return msgspec.json.encode({
        "schemaVersion": SCHEMA_VERSION, "eventId": event_id, "eventType": RUN_ENDED, "runId": run["run_id"],
        "rootRunId": run["root_id"], "command": run["command"], "tenant": run["tenant"], "status": run["status"],
        "result": run["result"], "reason": run["reason"], "detail": run["detail"], "attempts": run["attempts"],
        "finishedAtMs": run["finished_at_ms"], "correlationId": run["correlation_id"],
    })  # fmt: skip


class Callbacks:
    """The loop. `run` it once; `wake` it when a run with a callback has ended."""

    def __init__(
        self, world: World, observer: Observer, settings: CallbackSettings, store: CallbackStore, post: Post
    ) -> None:
        self._world, self._observer, self._settings = world, observer, settings
        self._store, self._post = store, post
        self._lease_ms = LEASE_MARGIN_MS + settings.timeout_ms + SETTLE_MARGIN_MS
        self._waiting: dict[str, deque[_Claimed]] = {}  # by host
        self._held: set[str] = set()  # event ids that wait or are under way
        self._under_way: dict[str, int] = {}  # by host
        self._wake = trio.Event()
        self.counts: dict[str, int] = {}
        self.on_outcome: Callable[[str], None] = lambda outcome: (
            None
        )  # of each attempt; never waits or raises
        metrics = observer.metrics
        self._outcomes = metrics.counter(
            "callbacks_total", "Attempts at callbacks, by outcome.", ("outcome",)
        )
        for outcome in ("delivered", "retried", "dead"):
            self._outcomes.cell(outcome)
        metrics.computed(
            "callbacks_pending", "Callbacks to be sent.", (), lambda: {(): self._count("pending")}
        )
        metrics.computed("callbacks_dead", "Callbacks given up.", (), lambda: {(): self._count("dead")})
        metrics.computed(
            "callbacks_under_way", "Callbacks being sent.", (),
            lambda: {(): sum(self._under_way.values())},
        )  # fmt: skip

    def wake(self) -> None:
        """Look for what is due now instead of at the next poll."""
        self._wake.set()

    def _count(self, state: str) -> int:
        return self.counts.get(state, 0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what is due until cancelled. What is under way then is sent again by whoever claims it next."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count_loop)
            task_status.started()
            while True:
                more = await self._take_in()
                self._start(nursery)
                if more:
                    await trio.lowlevel.checkpoint()
                    continue
                with trio.move_on_after(self._settings.poll_s):
                    await self._wake.wait()
                self._wake = trio.Event()

    # -- taking in

    async def _take_in(self) -> bool:
        """Claim what is due. True where more is, and there is room for it."""
        limit = min(CLAIM_MAX, WAITING_MAX - len(self._held))
        if limit <= 0:
            return False
        now_ms = self._world.wall_ms()
        try:
            found = await self._store.claim_callbacks(limit, now_ms, self._lease_ms)
        except Exception as error:  # the next turn tries again
            self._store_failed("claim", error)
            return False
        let_go = 0
        for due in found:
            host = _host_of(due.url)
            queue = self._waiting.setdefault(host, deque())
            if due.event_id in self._held or len(queue) >= HOST_WAITING_MAX:
                let_go += 1
                continue
            self._held.add(due.event_id)
            queue.append(_Claimed(due, host, now_ms + self._lease_ms))
        # One receiver's backlog is passed over in steps, so that the rest of its own comes again, and others' soon.
        return len(found) == limit and not let_go

    def _start(self, nursery: trio.Nursery) -> None:
        """Give out the free places, to hosts in turn."""
        started = True
        while started:
            started = False
            for host in list(self._waiting):
                queue = self._waiting[host]
                if not queue:
                    del self._waiting[host]
                    continue
                if sum(self._under_way.values()) >= self._settings.concurrent_max:
                    return
                if self._under_way.get(host, 0) >= HOST_CONCURRENT_MAX:
                    continue
                claimed = queue.popleft()
                started = True
                left_ms = claimed.lease_until_ms - self._world.wall_ms()
                if left_ms < self._settings.timeout_ms + SETTLE_MARGIN_MS:
                    self._held.discard(claimed.due.event_id)  # somebody else may have it already
                    continue
                self._under_way[host] = self._under_way.get(host, 0) + 1
                nursery.start_soon(self._deliver, claimed, nursery)

    # -- one attempt

    async def _deliver(self, claimed: _Claimed, nursery: trio.Nursery) -> None:
        due, host = claimed.due, claimed.host
        try:
            step = await self._attempt(due)
            detail = step.detail[:DETAIL_CHARS_MAX]
            now_ms = self._world.wall_ms()
            await self._store.settle_callback(due.event_id, step.state, step.next_at_ms, detail, now_ms)
            self._tell(due, step)
        except Exception as error:  # not written down: the lease runs out, and it is sent again
            self._store_failed(due.event_id, error)
        finally:
            self._held.discard(due.event_id)
            self._under_way[host] -= 1
            if not self._under_way[host]:
                del self._under_way[host]
            self._start(nursery)

    def rekey(self, secrets: tuple[bytes, ...]) -> None:
        """Sign with other secrets from now on."""
        self._settings = replace(self._settings, secrets=secrets)

    async def _attempt(self, due: CallbackDue) -> Step:
        outcome = await self._send(due)
        return next_step(due.attempts, outcome, self._world.wall_ms(), self._world.random_unit())

    async def _send(self, due: CallbackDue) -> Answered | Unanswered:
        if not self._settings.secrets:
            why = "worker.callback_signing_secret is not set, and nothing is sent unsigned"
            return Unanswered(Reason.CALLBACK_DEAD, why, is_final=True)
        run = await self._store.run(due.run_id)
        if run is None:
            return Unanswered(Reason.CALLBACK_DEAD, "the run is not kept any more", is_final=True)
        problem = callback_url_problem(due.url, self._settings.allowed_hosts)
        if problem is not None:  # the configuration has changed since it was accepted
            return Unanswered(Reason.CALLBACK_URL_REFUSED, f"the URL {problem}", is_final=True)
        body = event_body(due.event_id, run)
        now_ms = self._world.wall_ms()
        headers = signed_headers(self._settings.secrets, due.event_id, now_ms, body)
        try:
            answer = await self._post(due.url, headers, body, self._settings.timeout_ms / 1000)
        except Refused as refused:
            return Unanswered(refused.reason, refused.detail, is_final=True)
        except OutboundFailed as failed:
            return Unanswered(Reason.CALLBACK_NOT_DELIVERED, str(failed))
        except Exception as error:  # a receiver that we do not understand climbs the ladder like any other
            return Unanswered(Reason.CALLBACK_NOT_DELIVERED, f"{type(error).__name__}: {error}")
        return Answered(answer.status, read_retry_after(answer.header("retry-after"), self._world.wall_ms()))

    def _tell(self, due: CallbackDue, step: Step) -> None:
        outcome = "retried" if step.state == "pending" else step.state
        self._outcomes.inc(outcome)
        self.on_outcome(outcome)
        if step.reason is not None:
            self._observer.refused(
                step.reason, step.detail[:DETAIL_CHARS_MAX], run=due.run_id, event=due.event_id,
                host=_host_of(due.url), attempt=due.attempts + 1,
                level="info" if step.state == "pending" else "warning",
            )  # fmt: skip
        else:
            self._observer.log.debug(
                "callback_delivered", run=due.run_id, event=due.event_id, attempt=due.attempts + 1
            )

    # -- upkeep

    async def _count_loop(self) -> None:
        while True:
            try:
                self.counts = await self._store.callback_counts()
            except Exception as error:  # the next turn tries again
                self._store_failed("count", error)
            await trio.sleep(COUNT_EVERY_POLLS * self._settings.poll_s)

    def _store_failed(self, what: str, error: Exception) -> None:
        detail = f"callbacks, {what}: {type(error).__name__}: {error}"
        self._observer.refused(Reason.STORE_UNAVAILABLE, detail, level="error")


def _host_of(url: str) -> str:
    read = read_url(url)
    return read.host if isinstance(read, Destination) else ""
