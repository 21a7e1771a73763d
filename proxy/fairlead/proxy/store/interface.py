"""What a store must do, in domain words.

Every method is one transaction and returns after it is durable. Times are the caller's wall clock in milliseconds;
leases are judged by the store's own clock where several proxies share it. The values that cross this border are in
`records`. Both implementations share the contract suite in `tests/shell/test_store_contract*.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from fairlead.proxy.store.approval_records import Approval, ApprovalFilter, Decision, NewVote
from fairlead.proxy.store.records import (
    ALL_DEAD_LETTERS,
    NO_RETRIES,
    Accepted,
    AgentControl,
    ApprovalTerms,
    Attempt,
    AuditEvent,
    Budget,
    CallbackDue,
    CancelOutcome,
    DeadLetter,
    DeadLetterFilter,
    Ended,
    KeyEpochs,
    KeyReused,
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
    RunFilter,
    RunIdTaken,
    RunResult,
    Settled,
    StoredRegistry,
    Swept,
    Waiting,
)
from fairlead.proxy.store.rollout_records import SteeringStore
from fairlead.proxy.store.telemetry_records import (
    AlertDue,
    AlertNotice,
    RunningRuns,
    SampleRow,
    SavedAlert,
    SilenceRow,
)
from fairlead.runtime.audit_chain import Checkpoint, Row
from fairlead.runtime.gcra import Cell, Limit

AcceptOutcome = Accepted | KeyReused | RunIdTaken


class Reads(Protocol):
    """What people read."""

    async def find_key(self, tenant: str, key: str, payload_hash: bytes) -> Accepted | KeyReused | None:
        """What an idempotency key stands for, if anything."""

    async def run(self, run_id: str) -> dict[str, Any] | None:
        """A run with its timeline and children, as plain values; None where it does not exist."""

    async def lineage(self, root_id: str) -> list[dict[str, Any]]:
        """The runs of one lineage, first to last."""

    async def results(self, run_ids: Sequence[str]) -> dict[str, RunResult]:
        """How several runs stand; missing ones are left out."""

    async def owned(self, run_ids: Sequence[str], tenant: str, identity_json: bytes) -> list[str]:
        """Which of these runs somebody submitted."""

    async def runs(self, wanted: RunFilter) -> list[dict[str, Any]]: ...

    async def dead_letters(self, wanted: DeadLetterFilter) -> list[DeadLetter]: ...

    async def dead_letter_groups(self, wanted: DeadLetterFilter) -> list[dict[str, Any]]:
        """How many of each fingerprint, most first."""

    async def dead_letter_counts(self, wanted: DeadLetterFilter = ALL_DEAD_LETTERS) -> dict[str, int]:
        """How many in each state."""

    async def find_replay(self, tenant: str, key: str, payload_hash: bytes) -> Replay | None:
        """The replay that an idempotency key stands for. Raises Refused where it is another request's."""

    async def replays(self, limit: int, open_only: bool = False) -> list[Replay]: ...

    async def budgets(self, tenants: Sequence[str], now_ms: int) -> dict[str, Budget]: ...

    async def approval(self, approval_id: str) -> Approval | None: ...

    async def approvals(self, wanted: ApprovalFilter) -> list[Approval]:
        """Newest first, each with its votes."""

    async def audit_events(self, limit: int, tenant: str | None = None) -> list[dict[str, Any]]:
        """The latest, newest first."""


class TelemetryStore(Protocol):
    """What is measured over time, and what is told of it."""

    async def save_samples(self, rows: Sequence[SampleRow]) -> None: ...

    async def samples(
        self,
        from_ms: int,
        until_ms: int,
        limit: int,
        metric: str | None = None,
        without_owner: str | None = None,
    ) -> list[SampleRow]:
        """Samples that begin in a time, newest first; `without_owner`: but those of one process."""

    async def sampled_metrics(self, from_ms: int) -> dict[str, int]:
        """What there are samples of since a time, and how many."""

    async def merge_samples(self, before_ms: int, limit: int) -> int:
        """Minutes from before a time become hours. Returns how many did."""

    async def prune_telemetry(self, before_ms: int) -> int:
        """Forget samples, and what was told and silenced, from before a time."""

    async def alert_states(self) -> list[SavedAlert]: ...

    async def save_alerts(
        self, states: Sequence[SavedAlert], notices: Sequence[AlertNotice], now_ms: int
    ) -> None:
        """States of alerts, and what is to be told of them, together."""

    async def hold_alert_lease(self, owner: str, lease_ms: int, now_ms: int) -> bool:
        """Whether this process is the one of its fleet that evaluates alerts now."""

    async def claim_alerts(self, limit: int, now_ms: int, lease_ms: int) -> list[AlertDue]: ...

    async def settle_alert(
        self,
        event_id: str,
        state: Literal["delivered", "pending", "dead"],
        next_at_ms: int,
        detail: str,
        now_ms: int,
    ) -> None: ...

    async def alert_events(self, limit: int) -> list[dict[str, Any]]:
        """What was told, newest first."""

    async def silences(self) -> list[SilenceRow]: ...

    async def save_silence(self, row: SilenceRow, event: AuditEvent) -> None: ...

    async def remove_silence(self, rule: str, event: AuditEvent) -> bool:
        """False: there was none."""

    async def running_runs(self, now_ms: int) -> RunningRuns: ...


class Store(Reads, TelemetryStore, SteeringStore, Protocol):
    """The interface. See the module's docstring for what holds of every method."""

    @property
    def shared(self) -> bool:
        """Whether other proxies may use the same store: then what they change has to be looked for."""

    @property
    def warnings(self) -> Sequence[str]:
        """What an operator should know of how the database is set up."""

    # -- the command's journey

    async def accept(
        self, runs: Sequence[NewRun], nonce: NonceReservation | None = None, now_ms: int = 0
    ) -> list[AcceptOutcome]:
        """Make runs durable. `nonce`: of the request that asks for them; it is used up with them, or all is refused."""

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
        """Pin up to `limit` pending runs that the node may execute, most urgent first, each with a new fence.
        `anybodys`: also those that are meant for no node in particular. `digests`: of the commands' descriptors now,
        which what was approved is bound to."""

    def ended_by_claims(self) -> list[Ended]:
        """Runs that claims of this proxy ended since this was asked last: they are not as they were accepted or
        approved."""

    async def held_by(self, node_id: str) -> list[Attempt]:
        """The attempts of this proxy that the node may be executing: what is delivered again when it returns."""

    async def settle(
        self, reports: Sequence[Report], now_ms: int, retry: RetryGrant = NO_RETRIES
    ) -> list[Settled]: ...

    async def renew(
        self, node_id: str, runs: Sequence[tuple[str, int]], lease_ms: int, now_ms: int
    ) -> list[str]:
        """Renew leases; returns the runs that are not this proxy's any more."""

    async def sweep(self, now_ms: int, grace_ms: int, lease_ms: int, linked: Sequence[str]) -> Swept:
        """End what passed its deadline; free or take over what a proxy or node let slip."""

    async def forsake(self, node_id: str, incarnation: str, now_ms: int) -> list[Ended]:
        """The node came back without its inbox: end or free what its earlier self was given."""

    async def cancel(
        self, run_id: str, by: str, now_ms: int, event: AuditEvent | None = None
    ) -> CancelOutcome | None:
        """Cancel a run that waits; mark one that is delivered. None: no such run. `event`: where an operator did it."""

    async def retry_failed(
        self,
        run_id: str,
        new_run_id: str,
        principal: str,
        now_ms: int,
        event: AuditEvent | None = None,
        terms: ApprovalTerms | None = None,
    ) -> Accepted:
        """A user's retry: a new run after a FAILED one of the same owner. `terms`: where its command asks for approval.
        Raises Refused."""

    # -- approvals

    async def tenant_of_approval(self, approval_id: str) -> str | None:
        """Whose it is; None where there is none of that id."""

    async def approval_counts(self) -> dict[str, int]:
        """How many wait for a decision."""

    async def vote(self, asked: NewVote, now_ms: int) -> Decision | None:
        """Count a vote, with all that follows from it; None where there is no such approval."""

    # -- what people read

    def bound_to(self, tenant: str) -> Reads:
        """The same for a caller that is bound to a tenant: where the database has a wall of its own between tenants,
        nothing of another is found, whatever is asked for. Empty: bound to none."""

    async def tenant_of_run(self, run_id: str) -> str | None:
        """Whose a run is that was not found for a caller: it is told so."""

    async def tenants_of_dead_letters(self, record_ids: Sequence[str]) -> dict[str, str]:
        """The same of records, as far as they exist."""

    async def waiting_runs(self, now_ms: int) -> Waiting:
        """Make due what has become due, and say how many runs wait for a node, and for their moment."""

    async def status_counts(self) -> dict[str, int]: ...

    # -- dead letters and their replay

    async def request_replay(self, asked: NewReplay, now_ms: int) -> Replay:
        """Mark records for replay and record the request, with its audit row. Raises Refused."""

    async def start_replays(self, starts: Sequence[ReplayStart], now_ms: int) -> list[ReplayStarted]:
        """Make the new runs of records that still wait for it, within the tenants' budgets."""

    async def defer_replays(self, deferrals: Sequence[tuple[str, str, bool]], now_ms: int) -> None:
        """(record id, reason, back to queued): why a requested replay did not start."""

    async def advance_replay(self, replay_id: str, stage: int, now_ms: int) -> None: ...

    async def end_replay(self, replay_id: str, status: str, now_ms: int) -> int:
        """Completed, or stopped: what did not start goes back to queued. Returns how many did."""

    async def save_budget(self, tenant: str, daily: int, monthly: int, event: AuditEvent) -> None: ...

    async def rate_limit(self, key: str, limit: Limit, now_ms: int) -> Cell:
        """Count one call of a key, unless it comes too early."""

    async def rates(self, prefix: str, now_ms: int, limit: int) -> dict[str, int]:
        """The keys of a prefix that are ahead of the clock, with how far."""

    async def save_rates(self, next_at_us: Mapping[str, int], now_ms: int) -> None:
        """What a process counted by itself, for the one after it."""

    async def prune_rates(self, now_ms: int, limit: int) -> int:
        """Forget keys that nobody has used for a day."""

    async def reserve_nonce(self, asked: NonceReservation, now_ms: int) -> None:
        """Use a nonce up. Raises Refused where it was used before, or where no more are remembered."""

    async def clear_rate_limits(self, prefix: str, event: AuditEvent) -> int: ...

    async def agent_controls(self) -> dict[str, AgentControl]:
        """Pauses and drains by tenant; "*" is everybody's."""

    async def save_agent_control(self, control: AgentControl, event: AuditEvent) -> None: ...

    async def flag_enabled(self, key: str) -> bool | None:
        """A feature flag, None where there is none of that name."""

    async def waiting_tenants(self, limit: int) -> list[str]:
        """Tenants of whom something waits for a node."""

    async def audit(self, event: AuditEvent) -> None: ...

    async def audit_rows(self, after_seq: int, limit: int) -> list[Row]:
        """The rows that follow one, in the order of the chain."""

    async def audit_checkpoints(self, from_seq: int, limit: int) -> list[Checkpoint]: ...

    async def last_audit_checkpoint(self) -> Checkpoint | None: ...

    async def save_audit_checkpoint(self, made: Checkpoint) -> None: ...

    # -- callbacks

    async def claim_callbacks(self, limit: int, now_ms: int, lease_ms: int) -> list[CallbackDue]: ...

    async def settle_callback(
        self,
        event_id: str,
        state: Literal["delivered", "pending", "dead"],
        next_at_ms: int,
        detail: str,
        now_ms: int,
    ) -> None: ...

    async def replay_callbacks(
        self, event_ids: Sequence[str] | None, tenant: str | None, limit: int, now_ms: int, event: AuditEvent
    ) -> int:
        """Dead ones become due again. Returns how many."""

    async def callback_counts(self) -> dict[str, int]: ...

    async def receive_callback_event(
        self, event_id: str, body_hash: bytes, run_id: str, now_ms: int, expires_at_ms: int
    ) -> Literal["new", "duplicate", "conflict"]: ...

    # -- registry, nodes, keys

    async def load_registry(self, new_fleet_id: str) -> StoredRegistry:
        """The registry; a fleet id is recorded the first time."""

    async def save_registry(
        self,
        generation: int,
        upserts: Mapping[str, tuple[bytes, str]],
        removals: Sequence[str],
        now_ms: int,
        event: AuditEvent,
    ) -> bool:
        """Publish `generation`, which must follow the one that is stored. False: another proxy was first."""

    async def node_overrides(self) -> dict[str, NodeOverride]:
        """What operators decided about nodes; EVERY_NODE's counts for those of which nothing else is said."""

    async def save_node_override(self, override: NodeOverride, event: AuditEvent) -> None: ...

    async def key_epochs(self) -> KeyEpochs:
        """Raised key epochs by (role, identity); what is missing is at 0."""

    async def raise_key_epoch(
        self, role: int, identity: str, now_ms: int, by: str, event: AuditEvent
    ) -> int: ...

    # -- operator keys

    async def operator_keys(self) -> list[OperatorKey]:
        """Those that can be believed, oldest first."""

    async def create_operator_key(self, key: OperatorKey, keys_max: int, event: AuditEvent) -> None:
        """Keep a new key. Raises Refused where there are too many."""

    async def revoke_operator_key(self, key_id: str, event: AuditEvent) -> OperatorKey | None:
        """Make a key worthless; None where there is none of that id."""

    async def note_operator_key_uses(self, uses: Sequence[tuple[str, int]]) -> None:
        """(id, when) of keys that were used."""

    # -- seals

    async def begin_seals(self, now_ms: int) -> None:
        """Before anything else: a database that holds nothing yet is sealed from now on."""

    def distrusted(self) -> dict[str, tuple[str, ...]]:
        """Rows whose seals did not hold when they were last read: keys by kind; "*": all rows of it."""

    def rekey(self, current: bytes, previous: bytes | None) -> None:
        """Seal under another fleet secret from now on, and believe the previous one beside it."""

    async def renew_seals(self, limit: int, now_ms: int) -> int:
        """Seal about so many rows under the current key that hold under the previous one. How many there were."""

    async def seals_on_previous(self) -> dict[str, int]:
        """How many rows of each kind still need the previous secret; what has none is left out."""

    # -- upkeep

    async def prune(self, finished_before_ms: int, limit: int) -> int:
        """Forget up to `limit` runs that ended before a time and that no open dead letter needs."""

    async def prune_dead_letters(self, before_ms: int, limit: int) -> int:
        """Forget records that were resolved before a time. Open ones are never forgotten."""

    async def prune_guards(
        self, now_ms: int, limit: int, event: AuditEvent | None = None, *, apply: bool
    ) -> int:
        """Replay guards and callback receipts whose time is over: how many, and forget them if `apply`."""

    async def prune_audit(self, before_ms: int, limit: int) -> int:
        """Forget audit rows that a checkpoint from before a time covers."""

    async def check(self, now_ms: int) -> None:
        """Write and read one row: the store answers and its disk takes bytes."""

    def waiting(self) -> int:
        """Transactions that wait now."""

    async def aclose(self) -> None: ...
