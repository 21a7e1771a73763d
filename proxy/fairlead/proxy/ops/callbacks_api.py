"""POST /callbacks/runs/{id}: a signed result of a worker whose link is down; POST /callbacks/replay: dead ones again.

The second door to the end of the command's journey. What comes through it is believed for its signature, then
becomes the same `Report` that a link delivers, and the store judges it by the same fence and node.

Invariants: nothing is decoded before the signature over the whole raw body fits; an event id stands for one body
(a receipt in `job_source_callback_events`, kept far longer than a signature is valid); a repeated event is settled
again, which changes nothing where it was settled before, so a receipt written before a crash loses no result.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec

from fairlead.protocol.limits import DETAIL_CHARS_MAX
from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.guard.rotation import KeyUses, Kind, print_of
from fairlead.proxy.guard.tenants import check_act
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.store.records import AuditEvent, Report, Verdict
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.signing import SIGNATURE_HEADER, TIMESTAMP_HEADER, judge_signature, worker_signature
from fairlead.runtime.strict_json import json_problem
from fairlead.runtime.world import World

# As long as a sender may go on trying (75.6 hours), and far above twice the largest tolerance of a signature's time.
RECEIPT_MEMORY_MS: Final = 4 * 86_400_000
REPLAY_LIMIT_MAX: Final = 10_000
_REASON_CHARS_MAX: Final = 64

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Ms = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class CallbackResult(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /callbacks/runs/{id}."""

    eventId: _Text
    runId: _Text
    fence: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    nodeId: _Text
    status: Literal["COMPLETED", "FAILED"]
    result: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    reason: str = ""
    detail: str = ""
    startedAtMs: _Ms = 0
    finishedAtMs: _Ms = 0


class CallbackReplay(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /callbacks/replay. Empty: all of them, up to the limit."""

    eventIds: list[str] | None = None
    tenant: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=REPLAY_LIMIT_MAX)] = REPLAY_LIMIT_MAX


class ReceiptStore(Protocol):
    """What this needs of the store."""

    async def receive_callback_event(
        self, event_id: str, body_hash: bytes, run_id: str, now_ms: int, expires_at_ms: int
    ) -> Literal["new", "duplicate", "conflict"]: ...

    async def replay_callbacks(
        self, event_ids: Sequence[str] | None, tenant: str | None, limit: int, now_ms: int, event: AuditEvent
    ) -> int: ...


class Settling(Protocol):
    """The dispatcher, as far as this knows it."""

    async def settle_outside(self, report: Report, correlation_id: str) -> Verdict: ...


class Waking(Protocol):
    """The loop of outbound callbacks, as far as this knows it."""

    def wake(self) -> None: ...


_TURNED_DOWN: Final = {
    Verdict.STALE: (Reason.FENCE_STALE, "a newer attempt of the run exists; its result counts"),
    Verdict.UNKNOWN: (Reason.RUN_UNKNOWN, "no such run here: pruned, or another fleet's"),
    Verdict.FOREIGN: (Reason.FOREIGN_STATEMENT, "the run was not given to that node under that fence"),
}


class CallbacksApi:
    """The HTTP face of callbacks."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        settling: Settling,
        store: ReceiptStore,
        waking: Waking,
        secrets: Sequence[bytes],
        tolerance_s: int,
        body_bytes_max: int,
        uses: KeyUses | None = None,
        identify: Callable[[Request], Awaitable[object]] | None = None,
    ) -> None:
        """`secrets`: those of workers, the current one first; none: nothing is taken. `uses`: told who used which.
        `identify`: where a worker has to say besides who it is; raises Refused."""
        self._identify = identify
        assert 2 * tolerance_s * 1000 < RECEIPT_MEMORY_MS, "a signature must not outlive its receipt"
        self._world, self._observer, self._settling, self._store = world, observer, settling, store
        self._waking, self._secrets, self._tolerance_s = waking, tuple(secrets), tolerance_s
        self._body_bytes_max = body_bytes_max
        self._uses = uses or KeyUses(world.wall_ms())
        self._received = observer.metrics.counter(
            "callbacks_received_total", "Signed results of workers without a link, by outcome.", ("outcome",)
        )
        for outcome in ("duplicate", *(verdict.value for verdict in Verdict)):
            self._received.cell(outcome)

    def rekey(self, secrets: tuple[bytes, ...]) -> None:
        """Believe other secrets from now on."""
        self._secrets = secrets

    def _note_use(self, request: Request, signed_at_ms: int, now_ms: int) -> None:
        given = request.header_values(SIGNATURE_HEADER)[0].lower()
        for secret in self._secrets:
            if hmac.compare_digest(worker_signature(secret, signed_at_ms // 1000, request.body), given):
                self._uses.note(Kind.CALLBACK, print_of(secret), request.peer_host, now_ms)

    async def receive(self, request: Request, run_id: str) -> Response:
        """200 once the result is settled, with `idempotent` true where it was before. Raises Refused."""
        if len(request.body) > self._body_bytes_max:
            detail = f"{len(request.body)} bytes, at most {self._body_bytes_max}"
            raise Refused(Reason.BODY_TOO_LARGE, detail)
        now_ms = self._world.wall_ms()
        judged = judge_signature(
            self._secrets, request.header_values(SIGNATURE_HEADER), request.header_values(TIMESTAMP_HEADER),
            request.body, now_ms, self._tolerance_s,
        )  # fmt: skip
        if isinstance(judged, Reject):
            raise Refused(judged.reason, judged.detail)
        if self._identify is not None:
            await self._identify(request)
        self._note_use(request, judged, now_ms)
        told = _decode(request.body, CallbackResult)
        if told.runId != run_id:
            raise Refused(Reason.CALLBACK_EVENT_INVALID, f"the body speaks of run {told.runId}")
        report = _report(told)
        body_hash = hashlib.blake2b(request.body, digest_size=32).digest()
        try:
            receipt = await self._store.receive_callback_event(
                told.eventId, body_hash, told.runId, now_ms, now_ms + RECEIPT_MEMORY_MS
            )
            if receipt == "conflict":
                raise Refused(Reason.CALLBACK_EVENT_CONFLICT, f"event {told.eventId}")
            verdict = await self._settling.settle_outside(report, request.correlation_id)
        except (sqlite3.Error, OSError) as error:  # the sender keeps its result and comes again
            raise Refused(Reason.STORE_UNAVAILABLE, str(error), retry_after_s=1) from error
        self._received.inc("duplicate" if receipt == "duplicate" else verdict.value)
        # An event that was taken stays taken: its run has gone on since, and its sender never heard our answer.
        overtaken = receipt == "duplicate" and verdict is Verdict.STALE
        if verdict in _TURNED_DOWN and not overtaken:
            reason, detail = _TURNED_DOWN[verdict]
            raise Refused(reason, f"run {told.runId}, fence {told.fence}, node {told.nodeId}: {detail}")
        return json_response({
            "run_id": told.runId, "idempotent": receipt == "duplicate" or verdict is Verdict.ALREADY,
            "verdict": verdict.value,
        })  # fmt: skip

    async def replay(self, request: Request, caller: Identity) -> Response:
        """Make dead outbound callbacks due again, from the first rung."""
        asked = _decode(request.body, CallbackReplay) if request.body.strip() else CallbackReplay()
        tenant = asked.tenant if asked.tenant is not None else caller.tenant or None
        if tenant is not None:
            check_act(caller, tenant)
        detail = {"named": len(asked.eventIds or ()), "limit": asked.limit}
        event = event_of(
            self._world, request, caller, "callbacks_replayed", tenant=tenant or "", detail=detail
        )
        replayed = await self._store.replay_callbacks(
            asked.eventIds, tenant, asked.limit, self._world.wall_ms(), event
        )
        self._observer.log.info("callbacks_replayed", count=replayed, by=caller.principal)
        self._waking.wake()
        return json_response({"replayed": replayed})


def _decode(body: bytes, kind: type[Any]) -> Any:
    problem = json_problem(body)
    if problem:
        raise Refused(Reason.CALLBACK_EVENT_INVALID, problem)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.CALLBACK_EVENT_INVALID, str(error)) from error


def _report(told: CallbackResult) -> Report:
    completed = told.status == "COMPLETED"
    if completed == bool(told.reason):
        detail = "COMPLETED has no reason, FAILED needs one"
        raise Refused(Reason.CALLBACK_EVENT_INVALID, detail)
    # A Raw is taken over unread; a value that is not JSON would poison whoever reads it later.
    value_json = bytes(told.result) if completed else b""
    if completed:
        _decode(value_json, object)
    return Report(
        told.runId, told.fence, told.nodeId, completed, value_json, told.reason[:_REASON_CHARS_MAX],
        told.detail[:DETAIL_CHARS_MAX], told.startedAtMs, told.finishedAtMs,
    )  # fmt: skip
