"""Denials that matter, in the audit trail: who was turned away, and for what, without a flood filling the table.

Behind the answer: the refusal is not held up by its record, which a task writes. Invariants: of one reason and caller
(or address, where nobody knows who called) one row a minute at most, and a bounded number of rows over all; what is
left out is counted, and the next row of its kind says how many there were.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import trio

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Family, Reason, Refused, traits
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import AuditEvent
from fairlead.runtime.http.message import Request
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

WINDOW_S: Final = 60.0
ROWS_MAX: Final = 60  # in a window, over all
BUCKETS_MAX: Final = 4_096
WAITING_MAX: Final = 128
ELSEWHERE: Final = "*"  # whose bucket takes those that have none of their own
LINK: Final = "client_link"  # where an endpoint is named otherwise
NOBODY: Final = Identity("anonymous", "anonymous")


def matters(reason: Reason) -> bool:
    """Whether somebody was turned away for who they are, what they may, or what they forged."""
    row = traits(reason)
    return row.status in (401, 403) or row.family is Family.SECURITY


@dataclass(slots=True)
class _Bucket:
    row_at_s: float
    left_out: int = 0


class DenialSampler:
    """Which denials get a row. A decision: input and `now` in, what to do out."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()
        self._homeless: dict[str, int] = {}  # left out, by reason, of those whose bucket had to go
        self._window_at_s = float("-inf")
        self._rows = 0

    def take(self, reason: str, who: str, now_s: float) -> int | None:
        """How many of its kind were left out since the last row, where this one gets a row; else None."""
        if now_s - self._window_at_s >= WINDOW_S:
            self._window_at_s, self._rows = now_s, 0
        bucket = self._bucket(reason, who, now_s)
        if self._rows >= ROWS_MAX or now_s - bucket.row_at_s < WINDOW_S:
            bucket.left_out += 1
            return None
        left_out, bucket.left_out, bucket.row_at_s = bucket.left_out, 0, now_s
        self._rows += 1
        return left_out + self._homeless.pop(reason, 0)

    def put_back(self, reason: str, who: str, count: int) -> None:
        """A row that was granted could not be written: it is left out, with what it would have told of."""
        bucket = self._bucket(reason, who, float("-inf"))
        bucket.left_out += count

    def _bucket(self, reason: str, who: str, now_s: float) -> _Bucket:
        key = (reason, who)
        if key not in self._buckets and len(self._buckets) >= BUCKETS_MAX:
            (of, _), oldest = next(iter(self._buckets.items()))
            if now_s - oldest.row_at_s >= WINDOW_S:
                self._buckets.popitem(last=False)
                self._homeless[of] = self._homeless.get(of, 0) + oldest.left_out
            else:
                key = (reason, ELSEWHERE)  # as many as there are reasons
        if key not in self._buckets:
            self._buckets[key] = _Bucket(float("-inf"))
        return self._buckets[key]


class Denials:
    """Takes down denials. `note` never waits; `run` writes."""

    def __init__(self, world: World, observer: Observer, store: Store) -> None:
        self._world, self._observer, self._store = world, observer, store
        self._sampler = DenialSampler()
        self._send, self._receive = trio.open_memory_channel[tuple[AuditEvent, str]](WAITING_MAX)
        self._counted = observer.metrics.counter(
            "audit_denials_total",
            "Denials that matter, written to the audit trail or left out.",
            ("outcome",),
        )

    def note(self, refused: Refused, request: Request, endpoint: str, caller: Identity | None = None) -> None:
        """A request was turned away, or an item of it. What is no denial is passed over."""
        who = caller.principal if caller else request.peer_host
        left_out = self._left_out(refused.reason, who)
        if left_out is None:
            return
        reason = refused.reason.value
        detail = {"detail": refused.detail[:200], "endpoint": endpoint, "left_out": left_out}
        event = event_of(
            self._world, request, caller or NOBODY, "denied", scope=reason, detail=detail, success_count=0,
            failure_count=1, result=reason,
        )  # fmt: skip
        self._write_soon(event, who)

    def note_on_link(self, refused: Refused, caller: Identity, address: str) -> None:
        """The same of something that an application asked over its link."""
        left_out = self._left_out(refused.reason, caller.principal)
        if left_out is None:
            return
        reason = refused.reason.value
        detail = {"detail": refused.detail[:200], "endpoint": LINK, "left_out": left_out}
        event = AuditEvent(
            "denied", self._world.wall_ms(), caller.principal, caller.tenant, reason, 1, 0, 1, detail, "",
            caller.auth, address, "", reason, id=self._world.new_id(),
        )  # fmt: skip
        self._write_soon(event, caller.principal)

    def _left_out(self, reason: Reason, who: str) -> int | None:
        """How many before it have no row of their own; None where this one has none either, or is no denial."""
        if not matters(reason):
            return None
        left_out = self._sampler.take(reason.value, who, trio.current_time())
        if left_out is None:
            self._counted.inc("left out")
        return left_out

    def _write_soon(self, event: AuditEvent, who: str) -> None:
        try:
            self._send.send_nowait((event, who))
        except trio.WouldBlock:
            self._put_back(event, who)

    async def run(self) -> None:
        """Write what was taken down, until cancelled. Where the store fails, the next row says how many are missing."""
        async for event, who in self._receive:
            try:
                await self._store.audit(event)
                self._counted.inc("written")
            except Exception as error:
                self._put_back(event, who)
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"audit of a denial: {error}", level="error")

    def _put_back(self, event: AuditEvent, who: str) -> None:
        self._counted.inc("left out")
        self._sampler.put_back(event.result, who, int(event.detail["left_out"]) + 1)
