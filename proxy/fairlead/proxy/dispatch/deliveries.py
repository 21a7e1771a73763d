"""From a durable claim to the wire: which link, in which message, and what happens where there is none.

A delivery is sent only after its claim is durable. One that was never sent under its fence and cannot be now is given
back, and must then never be sent under that fence; one that may have arrived stays where it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.limits import ENVELOPE_HEADER_BYTES_MAX
from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.registry import Registry
from fairlead.proxy.control.link import RunLink
from fairlead.proxy.dispatch.fleet import Fleet, Outstanding, Slot
from fairlead.proxy.dispatch.outbox import Outbox
from fairlead.proxy.store.records import Attempt, Report
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

GIVEN_BACK_MAX: Final = 10_000  # far more than can be given back while one read of the store is under way
DELIVERY_BYTES: Final = 700  # of one delivery, beside its arguments and identity
_IDENTITY: Final = msgspec.json.Decoder(m.Identity)


@lru_cache(maxsize=4_096)
def _identity(raw: bytes) -> m.Identity:
    """Few principals submit many runs."""
    return _IDENTITY.decode(raw)


class Deliveries:
    """Sends attempts to nodes and cancellations after them."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        outbox: Outbox,
        registry: Callable[[], Registry],
        payload_bytes_max: int,
        give_back: Callable[[Report], None],
        halted: Callable[[], bool],
    ) -> None:
        self._world, self._observer, self._outbox, self._registry = world, observer, outbox, registry
        self._give_back, self._bytes_max = give_back, payload_bytes_max - ENVELOPE_HEADER_BYTES_MAX
        self._halted = halted  # the kill switch: nothing is sent that has not been, cancellations excepted
        self.fleet = Fleet()
        self.links: dict[str, RunLink] = {}
        # What was given back must not be delivered any more, even if the store was read just before it knew.
        self._given_back: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._delivered = observer.metrics.counter("deliveries_total", "Attempts sent to nodes.")
        observer.metrics.computed(
            "runs_outstanding", "Deliveries without an end.", (), lambda: {(): self.fleet.outstanding()}
        )

    def deliver(self, attempts: Sequence[Attempt], *, again: bool = False) -> None:
        """Send attempts that are durable. `again`: they may be executing already, so what cannot be sent stays."""
        if len(attempts) == 1:
            self._deliver_to(attempts[0].node_id, attempts, again)
            return
        by_node: dict[str, list[Attempt]] = {}
        for attempt in attempts:
            by_node.setdefault(attempt.node_id, []).append(attempt)
        for node_id, each in by_node.items():
            self._deliver_to(node_id, each, again)

    def _deliver_to(self, node_id: str, attempts: Sequence[Attempt], again: bool) -> None:
        link, slot = self.links.get(node_id), self.fleet.slots.get(node_id)
        now_ms = self._world.wall_ms()
        sendable: list[tuple[Attempt, m.Deliver]] = []
        for attempt in attempts:
            if link is not None and attempt.cancelled and again:
                link.send(m.Cancel(attempt.run_id, attempt.fence), attempt.correlation_id)
                continue
            message = None if link is None or self._halted() else self._message(link, slot, attempt, now_ms)
            if slot is not None and message is not None:
                if attempt.run_id not in slot.outstanding:
                    # The link is another than when the run was claimed; what is sent over it is watched over it.
                    slot.outstanding[attempt.run_id] = Outstanding(attempt.fence, 0, trio.current_time())
                sendable.append((attempt, message))
            elif not again:
                self.give_back_unsent(attempt)
        if link is None:
            return
        for part in _parts(sendable, self._bytes_max):
            self._send(link, part, again, now_ms)

    def _send(
        self, link: RunLink, part: Sequence[tuple[Attempt, m.Deliver]], again: bool, now_ms: int
    ) -> None:
        if len(part) == 1:
            attempt, message = part[0]
            refused = link.send(message, attempt.correlation_id)
        else:
            refused = link.send(m.DeliverMany(tuple(message for _, message in part)))
        if refused is not None:
            if len(part) > 1:
                for each in part:
                    self._send(link, [each], again, now_ms)
            elif not again:
                self._never_fits(part[0][0], refused)
            return
        self._delivered.cell().inc(len(part))
        if not again:
            for attempt, _ in part:
                self._outbox.delivered(now_ms - (attempt.due_at_ms or attempt.accepted_at_ms))

    def _message(self, link: RunLink, slot: Slot | None, attempt: Attempt, now_ms: int) -> m.Deliver | None:
        item = self._registry().get(attempt.command)
        if slot is None or slot.incarnation != attempt.incarnation or item is None:
            return None
        message = m.Deliver(
            attempt.run_id, attempt.root_id or attempt.run_id, attempt.fence, attempt.command, item.digest,
            attempt.args_json, _identity(attempt.identity_json), attempt.tenant, attempt.deadline_at_ms,
            attempt.timeout_ms, attempt.accepted_at_ms, attempt.is_retry, attempt.correlation_id,
        )  # fmt: skip
        return link.trusted(message, now_ms)

    def give_back_unsent(self, attempt: Attempt) -> None:
        """Nothing was sent under this fence, and this proxy knows it: the run may go elsewhere."""
        self._not_sent(
            attempt, Reason.NODE_NOT_CONNECTED, "the link ended before the delivery was sent", refused=True
        )

    def hold_back(self, attempt: Attempt, why: str) -> None:
        """It was claimed, and must not be delivered now: as if it had not been."""
        self._not_sent(attempt, Reason.BRIDGE_PAUSED, why, refused=True)

    def _never_fits(self, attempt: Attempt, why: Reject) -> None:
        """No message holds it, on this link or another: the run ends, instead of being claimed again for ever."""
        self._not_sent(attempt, why.reason, why.detail, refused=False)

    def _not_sent(self, attempt: Attempt, reason: Reason, detail: str, *, refused: bool) -> None:
        slot = self.fleet.slots.get(attempt.node_id)
        if slot is not None:
            slot.outstanding.pop(attempt.run_id, None)
        self._given_back[attempt.run_id, attempt.fence] = None
        while len(self._given_back) > GIVEN_BACK_MAX:
            self._given_back.popitem(last=False)
        self._give_back(
            Report(
                attempt.run_id,
                attempt.fence,
                attempt.node_id,
                False,
                b"",
                reason.value,
                detail,
                0,
                0,
                refused=refused,
            )
        )

    def was_given_back(self, attempt: Attempt) -> bool:
        return (attempt.run_id, attempt.fence) in self._given_back

    def cancel(self, run_id: str, fence: int, node_id: str) -> bool:
        """Tell the node. False: it has no link here, and hears of it when it comes back."""
        link = self.links.get(node_id)
        return link is not None and link.send(m.Cancel(run_id, fence)) is None

    def drop(self, node_id: str, run_id: str) -> None:
        """The run is not outstanding with the node any more."""
        slot = self.fleet.slots.get(node_id)
        if slot is not None:
            slot.outstanding.pop(run_id, None)


def _parts(
    sendable: Sequence[tuple[Attempt, m.Deliver]], bytes_max: int
) -> Iterator[Sequence[tuple[Attempt, m.Deliver]]]:
    """As few messages as they fit in."""
    start = total = 0
    for index, (attempt, _) in enumerate(sendable):
        size = DELIVERY_BYTES + len(attempt.args_json) + len(attempt.identity_json)
        if total + size > bytes_max and index > start:
            yield sendable[start:index]
            start, total = index, 0
        total += size
    if start < len(sendable):
        yield sendable[start:]
