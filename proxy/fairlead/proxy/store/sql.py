"""`SqlStore`: the interface over either database, each method one job for the engine.

An engine runs a job in a transaction of its own making and answers after COMMIT; reads may go another way. `owner`
names this proxy's process: what it claimed is its own until its leases run out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeVar

from fairlead.protocol.reasons import Refused
from fairlead.proxy.store import (
    approval_decisions,
    approvals,
    audit,
    callbacks,
    controls,
    dead_letters,
    ends,
    fleet,
    guards,
    journey,
    leases,
    operator_keys,
    resealing,
    sealed_tables,
    views,
)
from fairlead.proxy.store.approval_records import Decision, NewVote
from fairlead.proxy.store.db import Db, Engine
from fairlead.proxy.store.gathered import GatheredNonces
from fairlead.proxy.store.interface import AcceptOutcome
from fairlead.proxy.store.reads import SqlReads
from fairlead.proxy.store.records import (
    NO_RETRIES,
    Accepted,
    AgentControl,
    ApprovalTerms,
    Attempt,
    AuditEvent,
    CallbackDue,
    CancelOutcome,
    Ended,
    KeyEpochs,
    NewReplay,
    NewRun,
    NodeOverride,
    NonceReservation,
    OperatorKey,
    Replay,
    ReplayStart,
    ReplayStarted,
    Report,
    RetryGrant,
    Settled,
    StoredRegistry,
    Swept,
    Waiting,
)
from fairlead.proxy.store.sealed_rows import DESCRIPTORS
from fairlead.proxy.store.sealed_tables import (
    AGENT_CONTROLS,
    FEATURE_FLAGS,
    KEY_EPOCHS,
    NODE_OVERRIDES,
    OPERATOR_KEYS,
    Believed,
    SealedTable,
)
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.steering import SqlSteering
from fairlead.proxy.store.telemetry_store import SqlTelemetry
from fairlead.runtime.audit_chain import Checkpoint, Row
from fairlead.runtime.gcra import Cell, Limit

T = TypeVar("T")


class StoreBroken(Exception):
    """The store did not return what was written."""


class SqlStore(SqlTelemetry, SqlSteering):
    """A `Store`. Owns its engine."""

    def __init__(self, engine: Engine, owner: str, seals: Seals) -> None:
        super().__init__(engine, seals)
        self._owner = owner
        self._ended_by_claims: list[Ended] = []  # and not told yet
        self._nonces = GatheredNonces(engine.write)
        self._distrusted: dict[str, tuple[str, ...]] = {}
        self.on_distrusted: Callable[[str, Sequence[str]], Awaitable[None]] | None = None
        """Told of rows whose seals do not hold: their kind and keys, each once."""
        # Who dispatched a run matters only where somebody else could have.
        self._other = owner if engine.shared else None

    @property
    def shared(self) -> bool:
        return self._engine.shared

    @property
    def warnings(self) -> Sequence[str]:
        return self._engine.warnings

    # -- the command's journey

    async def accept(
        self, runs: Sequence[NewRun], nonce: NonceReservation | None = None, now_ms: int = 0
    ) -> list[AcceptOutcome]:
        if nonce is None:
            return await self._engine.write(lambda db: journey.accept(db, self._seals, runs, self._owner))

        def both(db: Db) -> list[AcceptOutcome] | Refused:
            return guards.reserve(db, nonce, now_ms) or journey.accept(db, self._seals, runs, self._owner)

        outcome = await self._engine.write(both)
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

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
        digests: Mapping[str, str] | None = None,
    ) -> list[Attempt]:
        earlier: list[Attempt] = []
        forged: dict[str, Ended] = {}
        claimed = await self._engine.write(
            lambda db: journey.claim(
                db,
                self._seals,
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
                forged,
                digests,
            )
        )
        self._ended_by_claims += forged.values()
        return claimed

    def ended_by_claims(self) -> list[Ended]:
        ended, self._ended_by_claims = self._ended_by_claims, []
        return ended

    async def held_by(self, node_id: str) -> list[Attempt]:
        return await self._engine.write(lambda db: leases.held_by(db, self._seals, node_id, self._other))

    async def settle(
        self, reports: Sequence[Report], now_ms: int, retry: RetryGrant = NO_RETRIES
    ) -> list[Settled]:
        return await self._engine.write(
            lambda db: journey.settle(db, self._seals, reports, now_ms, retry, self._owner)
        )

    async def renew(
        self, node_id: str, runs: Sequence[tuple[str, int]], lease_ms: int, now_ms: int
    ) -> list[str]:
        return await self._engine.write(
            lambda db: leases.renew(db, node_id, runs, lease_ms, now_ms, self._other)
        )

    async def sweep(self, now_ms: int, grace_ms: int, lease_ms: int, linked: Sequence[str]) -> Swept:
        return await self._engine.write(
            lambda db: leases.sweep(db, self._seals, now_ms, grace_ms, lease_ms, linked, self._owner)
        )

    async def forsake(self, node_id: str, incarnation: str, now_ms: int) -> list[Ended]:
        return await self._engine.write(
            lambda db: leases.forsake(db, self._seals, node_id, incarnation, now_ms, self._owner)
        )

    async def cancel(
        self, run_id: str, by: str, now_ms: int, event: AuditEvent | None = None
    ) -> CancelOutcome | None:
        return await self._engine.write(
            lambda db: leases.cancel(db, self._seals, run_id, by, now_ms, self._owner, event)
        )

    async def retry_failed(
        self,
        run_id: str,
        new_run_id: str,
        principal: str,
        now_ms: int,
        event: AuditEvent | None = None,
        terms: ApprovalTerms | None = None,
    ) -> Accepted:
        return await self._engine.write(
            lambda db: dead_letters.retry_failed(
                db, self._seals, run_id, new_run_id, principal, now_ms, self._owner, event, terms
            )
        )

    # -- approvals

    async def tenant_of_approval(self, approval_id: str) -> str | None:
        return await self._engine.read(lambda db: approvals.tenant_of(db, approval_id))

    async def approval_counts(self) -> dict[str, int]:
        return await self._engine.read(approvals.counts)

    async def vote(self, asked: NewVote, now_ms: int) -> Decision | None:
        earlier: list[Decision] = []
        return await self._engine.write(
            lambda db: approval_decisions.vote(db, self._seals, asked, now_ms, self._owner, earlier)
        )

    # -- what people read: `SqlReads`

    def bound_to(self, tenant: str) -> SqlReads:
        return SqlReads(self._engine, self._seals, tenant) if tenant else self

    async def tenant_of_run(self, run_id: str) -> str | None:
        return await self._engine.read(lambda db: views.tenant_of_run(db, run_id))

    async def tenants_of_dead_letters(self, record_ids: Sequence[str]) -> dict[str, str]:
        return await self._engine.read(lambda db: dead_letters.tenants(db, record_ids))

    async def waiting_runs(self, now_ms: int) -> Waiting:
        return await self._engine.write(lambda db: views.waiting_runs(db, now_ms))

    async def status_counts(self) -> dict[str, int]:
        return await self._engine.read(views.status_counts)

    # -- dead letters and their replay

    async def request_replay(self, asked: NewReplay, now_ms: int) -> Replay:
        return await self._engine.write(lambda db: dead_letters.request(db, self._seals, asked, now_ms))

    async def start_replays(self, starts: Sequence[ReplayStart], now_ms: int) -> list[ReplayStarted]:
        return await self._engine.write(
            lambda db: dead_letters.start(db, self._seals, starts, now_ms, self._owner)
        )

    async def defer_replays(self, deferrals: Sequence[tuple[str, str, bool]], now_ms: int) -> None:
        await self._engine.write(lambda db: dead_letters.defer(db, deferrals, now_ms))

    async def advance_replay(self, replay_id: str, stage: int, now_ms: int) -> None:
        await self._engine.write(lambda db: dead_letters.advance(db, replay_id, stage, now_ms))

    async def end_replay(self, replay_id: str, status: str, now_ms: int) -> int:
        return await self._engine.write(lambda db: dead_letters.end(db, replay_id, status, now_ms))

    async def save_budget(self, tenant: str, daily: int, monthly: int, event: AuditEvent) -> None:
        await self._engine.write(
            lambda db: controls.save_budget(db, self._seals, tenant, daily, monthly, event)
        )

    async def rate_limit(self, key: str, limit: Limit, now_ms: int) -> Cell:
        passed: list[Cell] = []
        return await self._engine.write(lambda db: guards.rate_limit(db, key, limit, now_ms, passed))

    async def rates(self, prefix: str, now_ms: int, limit: int) -> dict[str, int]:
        return await self._engine.read(lambda db: guards.rates(db, prefix, now_ms, limit))

    async def save_rates(self, next_at_us: Mapping[str, int], now_ms: int) -> None:
        await self._engine.write(lambda db: guards.save_rates(db, next_at_us, now_ms))

    async def clear_rate_limits(self, prefix: str, event: AuditEvent) -> int:
        return await self._engine.write(lambda db: guards.clear_rate_limits(db, prefix, event))

    async def prune_rates(self, now_ms: int, limit: int) -> int:
        return await self._engine.write(lambda db: guards.prune_rates(db, now_ms, limit))

    async def reserve_nonce(self, asked: NonceReservation, now_ms: int) -> None:
        await self._nonces.reserve(asked, now_ms)

    async def agent_controls(self) -> dict[str, AgentControl]:
        return controls.agent_controls(await self._believed(AGENT_CONTROLS))

    async def save_agent_control(self, control: AgentControl, event: AuditEvent) -> None:
        await self._engine.write(lambda db: controls.save_agent_control(db, self._seals, control, event))

    async def flag_enabled(self, key: str) -> bool | None:
        return controls.flag_enabled(await self._believed(FEATURE_FLAGS), key)

    async def waiting_tenants(self, limit: int) -> list[str]:
        return await self._engine.read(lambda db: views.waiting_tenants(db, limit))

    async def audit(self, event: AuditEvent) -> None:
        await self._engine.write(lambda db: audit.audit(db, event))

    async def audit_rows(self, after_seq: int, limit: int) -> list[Row]:
        return await self._engine.read(lambda db: audit.rows_after(db, after_seq, limit))

    async def audit_checkpoints(self, from_seq: int, limit: int) -> list[Checkpoint]:
        return await self._engine.read(lambda db: audit.checkpoints_from(db, from_seq, limit))

    async def last_audit_checkpoint(self) -> Checkpoint | None:
        return await self._engine.read(audit.last_checkpoint)

    async def save_audit_checkpoint(self, made: Checkpoint) -> None:
        await self._engine.write(lambda db: audit.save_checkpoint(db, made))

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
        self, event_ids: Sequence[str] | None, tenant: str | None, limit: int, now_ms: int, event: AuditEvent
    ) -> int:
        return await self._engine.write(
            lambda db: callbacks.replay(db, event_ids, tenant, limit, now_ms, event)
        )

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
        stored = await self._engine.write(lambda db: fleet.load_registry(db, self._seals, new_fleet_id))
        await self._saw(DESCRIPTORS.kind, stored.distrusted)
        return stored

    async def save_registry(
        self,
        generation: int,
        upserts: Mapping[str, tuple[bytes, str]],
        removals: Sequence[str],
        now_ms: int,
        event: AuditEvent,
    ) -> bool:
        return await self._engine.write(
            lambda db: fleet.save_registry(
                db, self._seals, generation, upserts, removals, now_ms, self._owner, event
            )
        )

    async def node_overrides(self) -> dict[str, NodeOverride]:
        return fleet.node_overrides(await self._believed(NODE_OVERRIDES))

    async def save_node_override(self, override: NodeOverride, event: AuditEvent) -> None:
        await self._engine.write(lambda db: fleet.save_node_override(db, self._seals, override, event))

    async def key_epochs(self) -> KeyEpochs:
        return fleet.key_epochs(await self._believed(KEY_EPOCHS))

    async def raise_key_epoch(self, role: int, identity: str, now_ms: int, by: str, event: AuditEvent) -> int:
        return await self._engine.write(
            lambda db: fleet.raise_key_epoch(db, self._seals, role, identity, now_ms, by, event)
        )

    # -- operator keys

    async def operator_keys(self) -> list[OperatorKey]:
        await self._believed(OPERATOR_KEYS)  # for what is to be shown of it
        return await self._engine.read(lambda db: operator_keys.keys(db, self._seals))

    async def create_operator_key(self, key: OperatorKey, keys_max: int, event: AuditEvent) -> None:
        refused = await self._engine.write(
            lambda db: operator_keys.create(db, self._seals, key, keys_max, event)
        )
        if refused is not None:
            raise refused

    async def revoke_operator_key(self, key_id: str, event: AuditEvent) -> OperatorKey | None:
        return await self._engine.write(lambda db: operator_keys.revoke(db, self._seals, key_id, event))

    async def note_operator_key_uses(self, uses: Sequence[tuple[str, int]]) -> None:
        await self._engine.write(lambda db: operator_keys.note_uses(db, uses))

    # -- seals

    async def begin_seals(self, now_ms: int) -> None:
        await self._engine.write(lambda db: fleet.begin_seals(db, self._seals, now_ms))

    async def _believed(self, table: SealedTable) -> Believed:
        believed = await self._engine.read(lambda db: sealed_tables.read(db, self._seals, table))
        await self._saw(table.kind, believed.problems)
        return believed

    async def _saw(self, kind: str, distrusted: Sequence[str]) -> None:
        """What a look at all rows of a kind found. What is new is told once."""
        new = sorted(set(distrusted) - set(self._distrusted.get(kind, ())))
        self._distrusted[kind] = tuple(distrusted)
        if new and self.on_distrusted is not None:
            await self.on_distrusted(kind, new)

    def distrusted(self) -> dict[str, tuple[str, ...]]:
        return {kind: keys for kind, keys in self._distrusted.items() if keys}

    def rekey(self, current: bytes, previous: bytes | None) -> None:
        """Seal under another secret from now on. A job that has begun goes on under the one before."""
        self._seals = Seals(current, previous)

    async def renew_seals(self, limit: int, now_ms: int) -> int:
        if not self._seals.has_previous:
            return 0
        return await self._engine.write(lambda db: resealing.renew(db, self._seals, limit, now_ms))

    async def seals_on_previous(self) -> dict[str, int]:
        if not self._seals.has_previous:
            return {}
        return await self._engine.read(lambda db: resealing.not_current(db, self._seals))

    async def check_seals(self) -> dict[str, list[str]]:
        return await self._engine.read(lambda db: resealing.distrusted(db, self._seals))

    async def adopt_seals(self, kinds: Sequence[str], now_ms: int, event: AuditEvent) -> dict[str, int]:
        return await self._engine.write(lambda db: resealing.adopt(db, self._seals, kinds, now_ms, event))

    # -- upkeep

    async def prune(self, finished_before_ms: int, limit: int) -> int:
        return await self._engine.write(lambda db: ends.prune(db, finished_before_ms, limit, self._owner))

    async def prune_dead_letters(self, before_ms: int, limit: int) -> int:
        return await self._engine.write(lambda db: dead_letters.prune(db, before_ms, limit))

    async def prune_guards(
        self, now_ms: int, limit: int, event: AuditEvent | None = None, *, apply: bool
    ) -> int:
        return await self._engine.write(
            lambda db: controls.prune_guards(db, now_ms, limit, event, apply=apply)
        )

    async def prune_audit(self, before_ms: int, limit: int) -> int:
        return await self._engine.write(lambda db: audit.prune_audit(db, before_ms, limit))

    async def check(self, now_ms: int) -> None:
        if not await self._engine.write(lambda db: fleet.check(db, now_ms)):
            raise StoreBroken("the store did not return what was written")

    def waiting(self) -> int:
        return self._engine.waiting()

    async def aclose(self) -> None:
        await self._engine.aclose()
