"""The backends as the whole edge knows them: load, health, what may be asked again; counted, logged, shown.

Shell around `health` and `retry_budget`. Everybody on a client's journey reports here: who connects (through
`marks`), who begins and ends a request or a session, who saw it fail, and the active checks.

Invariants: each change of a backend is one log line; a backend that is ejected, unwell or changed keeps no idle
connection; the counters of a backend outlive a reload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.edge.health import Change, Health
from fairlead.proxy.edge.retry_budget import RetryBudget
from fairlead.proxy.edge.routing import Marks, NodeState
from fairlead.proxy.edge.settings import EdgeConfig
from fairlead.runtime.observer import Observer

# What is a backend's failure, not its client's or ours. Connecting is reported by whoever connects.
GATEWAY_FAILURES: Final = frozenset(
    {Reason.BACKEND_TIMEOUT, Reason.BACKEND_CLOSED_EARLY, Reason.BACKEND_RESPONSE_MALFORMED}
)
OUT_REASONS: Final = ("down", "ejected", "unwell", "offline", "draining")
_BAD: Final = frozenset({"ejected", "unwell", "down"})


class Roster:
    """All backends of the edge."""

    def __init__(
        self,
        config: EdgeConfig,
        observer: Observer,
        state: Callable[[str], NodeState],
        dropped: Callable[[str], None],
    ) -> None:
        """`dropped`: told the id of a backend whose idle connections are worth nothing any more."""
        self._observer, self._state, self._dropped = observer, state, dropped
        self.health = Health(config.backends, config.routing.health, config.limits.backend_down_s)
        self.marks = Marks(self.health, self._tell)
        self._budget = RetryBudget(config.routing.retry)
        metrics = observer.metrics
        self._ejections = metrics.counter(
            "edge_backend_ejections_total", "Backends left alone for failing too often.", ("backend",)
        )
        self._retries = metrics.counter(
            "edge_retries_total",
            "Requests asked again of another backend, or not for want of budget.",
            ("done",),
        )
        self._retried, self._not_retried = self._retries.cell("yes"), self._retries.cell("no")
        read = metrics.computed
        read("edge_backend_up", "Whether a backend is as good as any (1), or tried only after the others.",
             ("backend",), self._up)  # fmt: skip
        read(
            "edge_backend_out",
            "Why a backend is tried only after the others.",
            ("backend", "reason"),
            self._out,
        )
        read("edge_backend_live", "Requests and sessions under way.", ("backend",),
             lambda: {(name,): each.live for name, each in self.health.standings.items()})  # fmt: skip
        read("edge_backend_requests_total", "Requests and sessions led to a backend that ended.", ("backend",),
             lambda: {(name,): each.requests for name, each in self.health.standings.items()}, "counter")  # fmt: skip
        read("edge_backend_errors_total", "Of these, those that failed or were answered 5xx.", ("backend",),
             lambda: {(name,): each.errors for name, each in self.health.standings.items()}, "counter")  # fmt: skip

    # -- what the journey reports

    def begin(self, backend: str) -> None:
        """A request or a session is led there."""
        standing = self.health.standings.get(backend)
        if standing is not None:
            standing.live += 1

    def leave(self, backend: str) -> None:
        """It is not there any more: a request, which its answer counts, or one that goes elsewhere."""
        standing = self.health.standings.get(backend)
        if standing is not None and standing.live:
            standing.live -= 1

    def end(self, backend: str) -> None:
        """A session has ended, and counts as served."""
        self.leave(backend)
        standing = self.health.standings.get(backend)
        if standing is not None:
            standing.requests += 1

    def answered(self, backend: str, status: int, now: float) -> None:
        """It gave a final answer."""
        self._budget.asked()
        changes = self.health.answered(backend, status, now)
        if changes:
            self._tell(changes)

    def failed(self, backend: str, reason: Reason, now: float) -> None:
        """What was led there ended by a gateway failure."""
        if backend and reason in GATEWAY_FAILURES:
            self._tell(self.health.failed(backend, reason.value, now))

    def may_retry(self, now: float) -> bool:
        """Whether one more request may be asked of another backend; counted."""
        if self._budget.take(now):
            self._retried.value += 1
            return True
        self._not_retried.value += 1
        return False

    def checked(self, backend: str, ok: bool, detail: str) -> None:
        """What an active check found."""
        self._tell(self.health.checked(backend, ok, detail, trio.current_time()))

    def told(self, unwell: Mapping[str, str]) -> None:
        """What active checks found that another process makes: the backends that are not well, and how."""
        now = trio.current_time()
        for name in self.health.standings:
            self._tell(self.health.told(name, unwell.get(name, ""), now))

    def unwell(self) -> dict[str, str]:
        """The backends whose active checks fail, and how."""
        return {
            name: each.unwell_detail or "its checks fail"
            for name, each in self.health.standings.items()
            if each.is_unwell
        }

    def add(self, backend: str, live: int, requests: int, errors: int) -> None:
        """Count what another process led there."""
        standing = self.health.standings.get(backend)
        if standing is not None:
            standing.live = max(0, standing.live + live)
            standing.requests += requests
            standing.errors += errors

    def why_out(self, name: str, now: float) -> tuple[str, str]:
        """Why a backend is tried only after the others, and what is known of that. Empty: it is not."""
        return self._why_out(name, now), self._detail(name, now)

    def tick(self) -> None:
        """What time has changed. Once a second is enough: who asks in between, compares times."""
        self._tell(self.health.tick(trio.current_time()))

    def replace(self, config: EdgeConfig) -> None:
        """Other backends and rules."""
        for name in self.health.replace(config.backends, config.routing.health, config.limits.backend_down_s):
            self._dropped(name)
        self._budget = RetryBudget(config.routing.retry)

    def live_on(self, node: str) -> int:
        """Requests and sessions under way on the backends of a node."""
        return sum(
            standing.live for standing in self.health.standings.values() if standing.backend.node == node
        )

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            level = "warning" if change.event in _BAD else "info"
            self._observer.log.event(
                level, f"backend_{change.event}", backend=change.backend, detail=change.detail
            )
            if change.event == "ejected":
                self._ejections.inc(change.backend)
            if change.event in _BAD:
                self._dropped(change.backend)

    # -- what is shown

    def _why_out(self, name: str, now: float) -> str:
        standing = self.health.standings[name]
        node = standing.backend.node
        state = self._state(node) if node else "UNKNOWN"
        if state == "DRAINING":
            return "draining"
        if standing.is_unwell:
            return "unwell"
        if standing.is_ejected(now):
            return "ejected"
        if standing.is_down(now):
            return "down"
        return "offline" if state == "OFFLINE" else ""

    def _up(self) -> dict[tuple[str, ...], float]:
        now = trio.current_time()
        return {(name,): float(not self._why_out(name, now)) for name in self.health.standings}

    def _out(self) -> dict[tuple[str, ...], float]:
        now = trio.current_time()
        whys = {name: self._why_out(name, now) for name in self.health.standings}
        return {(name, reason): float(why == reason) for name, why in whys.items() for reason in OUT_REASONS}

    def rows(self, now: float) -> list[dict[str, Any]]:
        """For /status: each backend, whatever its listeners."""
        return [
            {
                "backend": name,
                "node": standing.backend.node,
                "out": self._why_out(name, now),
                "detail": self._detail(name, now),
                "live": standing.live,
                "requests": standing.requests,
                "errors": standing.errors,
                "ejected_for_s": round(max(0.0, standing.ejected_until - now), 1),
                "share": round(standing.share(now, self.health.rules.slow_start_s), 2),
                "weight": standing.backend.weight,
            }
            for name, standing in self.health.standings.items()
        ]

    def _detail(self, name: str, now: float) -> str:
        standing = self.health.standings[name]
        details = {
            "unwell": standing.unwell_detail, "ejected": standing.ejected_detail, "down": standing.down_detail
        }  # fmt: skip
        return details.get(self._why_out(name, now), "")
