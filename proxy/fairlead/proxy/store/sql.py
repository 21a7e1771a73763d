"""`SqlStore`: the interface over either database, each method one job for the engine.

An engine runs a job in a transaction of its own making and answers after COMMIT; reads may go another way. `owner`
names this proxy's process: what it claimed is its own until its leases run out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from fairlead.proxy.store import callbacks, controls, dead_letters, ends, fleet, journey, leases, views
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.interface import AcceptOutcome
from fairlead.proxy.store.records import (
    NO_RETRIES,
    Accepted,
    AgentControl,
    Attempt,
    AuditEvent,
    Budget,
    CallbackDue,
    CancelOutcome,
    DeadLetter,
    DeadLetterFilter,
    Ended,
    KeyReused,
    NewReplay,
    NewRun,
    NodeOverride,
    Replay,
    ReplayStart,
    ReplayStarted,
    Report,
    RetryGrant,
    RunFilter,
    RunResult,
    Settled,
    StoredRegistry,
    Swept,
    Waiting,
)

T = TypeVar("T")


class Engine(Protocol):
    """A database with its writer."""

    @property
    def shared(self) -> bool:
        """Whether other processes may write to the same database."""

    async def write(self, job: Callable[[Db], T]) -> T:
        """Run `job` in a transaction; its value after it is durable, or what it raised. A job may run twice."""

    async def read(self, job: Callable[[Db], T]) -> T:
        """The same for a job that writes nothing."""

    def waiting(self) -> int: ...
    async def aclose(self) -> None: ...


class StoreBroken(Exception):
    """The store did not return what was written."""


class SqlStore:
    """A `Store`. Owns its engine."""

    def __init__(self, engine: Engine, owner: str) -> None:
        self._engine, self._owner = engine, owner
        # Who dispatched a run matters only where somebody else could have.
        self._other = owner if engine.shared else None

    @property
    def shared(self) -> bool:
        return self._engine.shared

    # -- the command's journey

    async def accept(self, runs: Sequence[NewRun]) -> list[AcceptOutcome]:
        return await self._engine.write(lambda db: journey.accept(db, runs, self._owner))

    async def find_key(self, tenant: str, key: str, payload_hash: bytes) -> Accepted | KeyReused | None:
        return await self._engine.read(lambda db: journey.find_key(db, tenant, key, payload_hash, ""))

    async def claim(
        self,
        node_id: str,
        incarnation: str,
        commands: Sequence[str],
        limit: int,
        lease_ms: int,
        now_ms: int,
        without_tenants: Sequence[str] = (),
        anybodys: bool = True,
    ) -> list[Attempt]:
        earlier: list[Attempt] = []
        return await self._engine.write(
            lambda db: journey.claim(
                db,
                node_id,
                incarnation,
                commands,
                limit,
                lease_ms,
                now_ms,
                without_tenants,
                anybodys,
                self._owner,
                earlier,
            )
        )

    async def held_by(self, node_id: str) -> list[Attempt]:
        return await self._engine.write(lambda db: leases.held_by(db, node_id, self._other))

    async def settle(
        self, reports: Sequence[Report], now_ms: int, retry: RetryGrant = NO_RETRIES
    ) -> list[Settled]:
        return await self._engine.write(lambda db: journey.settle(db, reports, now_ms, retry, self._owner))

    async def renew(
        self, node_id: str, runs: Sequence[tuple[str, int]], lease_ms: int, now_ms: int
    ) -> list[str]:
        return await self._engine.write(
            lambda db: leases.renew(db, node_id, runs, lease_ms, now_ms, self._other)
        )

    async def sweep(self, now_ms: int, grace_ms: int, lease_ms: int, linked: Sequence[str]) -> Swept:
        return await self._engine.write(
            lambda db: leases.sweep(db, now_ms, grace_ms, lease_ms, linked, self._owner)
        )

    async def forsake(self, node_id: str, incarnation: str, now_ms: int) -> list[Ended]:
        return await self._engine.write(
            lambda db: leases.forsake(db, node_id, incarnation, now_ms, self._owner)
        )

    async def cancel(self, run_id: str, by: str, now_ms: int) -> CancelOutcome | None:
        return await self._engine.write(lambda db: leases.cancel(db, run_id, by, now_ms, self._owner))

    async def retry_failed(self, run_id: str, new_run_id: str, principal: str, now_ms: int) -> Accepted:
        return await self._engine.write(
            lambda db: dead_letters.retry_failed(db, run_id, new_run_id, principal, now_ms, self._owner)
        )

    # -- what people read

    async def run(self, run_id: str) -> dict[str, Any] | None:
        return await self._engine.read(lambda db: views.run(db, run_id))

    async def lineage(self, root_id: str) -> list[dict[str, Any]]:
        return await self._engine.read(lambda db: views.lineage(db, root_id))

    async def results(self, run_ids: Sequence[str]) -> dict[str, RunResult]:
        return await self._engine.read(lambda db: views.results(db, run_ids))

    async def owned(self, run_ids: Sequence[str], tenant: str, identity_json: bytes) -> list[str]:
        return await self._engine.read(lambda db: views.owned(db, run_ids, tenant, identity_json))

    async def runs(self, wanted: RunFilter) -> list[dict[str, Any]]:
        return await self._engine.read(lambda db: views.runs(db, wanted))

    async def waiting_runs(self, now_ms: int) -> Waiting:
        return await self._engine.write(lambda db: views.waiting_runs(db, now_ms))

    async def status_counts(self) -> dict[str, int]:
        return await self._engine.read(views.status_counts)

    # -- dead letters and their replay

    async def dead_letters(self, wanted: DeadLetterFilter) -> list[DeadLetter]:
        return await self._engine.read(lambda db: dead_letters.find(db, wanted))

    async def dead_letter_groups(self, wanted: DeadLetterFilter) -> list[dict[str, Any]]:
        return await self._engine.read(lambda db: dead_letters.groups(db, wanted))

    async def dead_letter_counts(self) -> dict[str, int]:
        return await self._engine.read(dead_letters.counts)

    async def request_replay(self, asked: NewReplay, now_ms: int) -> Replay:
        return await self._engine.write(lambda db: dead_letters.request(db, asked, now_ms))

    async def find_replay(self, tenant: str, key: str, payload_hash: bytes) -> Replay | None:
        return await self._engine.read(lambda db: dead_letters.find_replay(db, tenant, key, payload_hash))

    async def replays(self, limit: int, open_only: bool = False) -> list[Replay]:
        return await self._engine.read(lambda db: dead_letters.replays(db, limit, open_only))

    async def start_replays(self, starts: Sequence[ReplayStart], now_ms: int) -> list[ReplayStarted]:
        return await self._engine.write(lambda db: dead_letters.start(db, starts, now_ms, self._owner))

    async def defer_replays(self, deferrals: Sequence[tuple[str, str, bool]], now_ms: int) -> None:
        await self._engine.write(lambda db: dead_letters.defer(db, deferrals, now_ms))

    async def advance_replay(self, replay_id: str, stage: int, now_ms: int) -> None:
        await self._engine.write(lambda db: dead_letters.advance(db, replay_id, stage, now_ms))

    async def end_replay(self, replay_id: str, status: str, now_ms: int) -> int:
        return await self._engine.write(lambda db: dead_letters.end(db, replay_id, status, now_ms))

    async def budgets(self, tenants: Sequence[str], now_ms: int) -> dict[str, Budget]:
        return await self._engine.read(lambda db: controls.budgets(db, tenants, now_ms))

    async def save_budget(self, tenant: str, daily: int, monthly: int, event: AuditEvent) -> None:
        await self._engine.write(lambda db: controls.save_budget(db, tenant, daily, monthly, event))

    async def rate_limit(self, key: str, limit: int, window_ms: int, now_ms: int) -> int:
        return await self._engine.write(lambda db: controls.rate_limit(db, key, limit, window_ms, now_ms))

    async def clear_rate_limits(self, prefix: str, event: AuditEvent) -> int:
        return await self._engine.write(lambda db: controls.clear_rate_limits(db, prefix, event))

    async def agent_controls(self) -> dict[str, AgentControl]:
        return await self._engine.read(controls.agent_controls)

    async def save_agent_control(self, control: AgentControl, event: AuditEvent) -> None:
        await self._engine.write(lambda db: controls.save_agent_control(db, control, event))

    async def flag_enabled(self, key: str) -> bool | None:
        return await self._engine.read(lambda db: controls.flag_enabled(db, key))

    async def audit(self, event: AuditEvent) -> None:
        await self._engine.write(lambda db: controls.audit(db, event))

    async def audit_events(self, limit: int) -> list[dict[str, Any]]:
        return await self._engine.read(lambda db: controls.audit_events(db, limit))

    # -- callbacks

    async def claim_callbacks(self, limit: int, now_ms: int, lease_ms: int) -> list[CallbackDue]:
        return await self._engine.write(lambda db: callbacks.claim(db, limit, now_ms, lease_ms))

    async def settle_callback(
        self,
        event_id: str,
        state: Literal["delivered", "pending", "dead"],
        next_at_ms: int,
        detail: str,
        now_ms: int,
    ) -> None:
        await self._engine.write(lambda db: callbacks.settle(db, event_id, state, next_at_ms, detail, now_ms))

    async def replay_callbacks(
        self, event_ids: Sequence[str] | None, tenant: str | None, limit: int, now_ms: int
    ) -> int:
        return await self._engine.write(lambda db: callbacks.replay(db, event_ids, tenant, limit, now_ms))

    async def callback_counts(self) -> dict[str, int]:
        return await self._engine.read(callbacks.counts)

    async def receive_callback_event(
        self, event_id: str, body_hash: bytes, run_id: str, now_ms: int, expires_at_ms: int
    ) -> Literal["new", "duplicate", "conflict"]:
        return await self._engine.write(
            lambda db: callbacks.receive(db, event_id, body_hash, run_id, now_ms, expires_at_ms)
        )

    # -- registry, nodes, keys

    async def load_registry(self, new_fleet_id: str) -> StoredRegistry:
        return await self._engine.write(lambda db: fleet.load_registry(db, new_fleet_id))

    async def save_registry(
        self, generation: int, upserts: Mapping[str, tuple[bytes, str]], removals: Sequence[str], now_ms: int
    ) -> bool:
        return await self._engine.write(
            lambda db: fleet.save_registry(db, generation, upserts, removals, now_ms, self._owner)
        )

    async def node_overrides(self) -> dict[str, NodeOverride]:
        return await self._engine.read(fleet.node_overrides)

    async def save_node_override(self, override: NodeOverride) -> None:
        await self._engine.write(lambda db: fleet.save_node_override(db, override))

    async def key_epochs(self) -> dict[tuple[int, str], int]:
        return await self._engine.read(fleet.key_epochs)

    async def raise_key_epoch(self, role: int, identity: str, now_ms: int, by: str) -> int:
        return await self._engine.write(lambda db: fleet.raise_key_epoch(db, role, identity, now_ms, by))

    # -- upkeep

    async def prune(self, finished_before_ms: int, limit: int) -> int:
        return await self._engine.write(lambda db: ends.prune(db, finished_before_ms, limit, self._owner))

    async def prune_dead_letters(self, before_ms: int, limit: int) -> int:
        return await self._engine.write(lambda db: dead_letters.prune(db, before_ms, limit))

    async def prune_guards(self, now_ms: int, limit: int, *, apply: bool) -> int:
        return await self._engine.write(lambda db: controls.prune_guards(db, now_ms, limit, apply=apply))

    async def prune_audit(self, before_ms: int, limit: int) -> int:
        return await self._engine.write(lambda db: controls.prune_audit(db, before_ms, limit))

    async def check(self, now_ms: int) -> None:
        if not await self._engine.write(lambda db: fleet.check(db, now_ms)):
            raise StoreBroken("the store did not return what was written")

    def waiting(self) -> int:
        return self._engine.waiting()

    async def aclose(self) -> None:
        await self._engine.aclose()
