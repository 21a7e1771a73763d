"""The checks behind /health: each a few facts and a judgement. The list is what health means here.

A lost node degrades, it does not fail: clients go on being served by the others. The proxy fails where it cannot
do its work at all: a listener gone, the store not writing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.control import Control
from fairlead.proxy.control.nodes import NodeState
from fairlead.proxy.dispatch.callbacks import Callbacks
from fairlead.proxy.dispatch.circuit import CircuitState
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.replayer import Replayer
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.ops.health import OK, CheckState, Finding
from fairlead.proxy.store.interface import Store

STORE_FAIL_AFTER_S = 5.0
SYNC_WARN_AFTER_S = 5.0
OUTBOX_WARN_SHARE = 0.8


class Trail(Protocol):
    """The follower of the audit trail, as far as this knows it."""

    broken: str

    @property
    def file_problem(self) -> str: ...


class Checks:
    """Every check, over the parts it asks."""

    def __init__(
        self,
        config: ProxyConfig,
        control: Control,
        dispatcher: Dispatcher,
        store: Store,
        edge: Edge,
        replayer: Replayer,
        callbacks: Callbacks,
        hears_siblings: Callable[[], bool],
        trail: Trail,
        observing: Callable[[], list[str]],
        now_ms: Callable[[], int],
    ) -> None:
        self._config, self._control, self._dispatcher = config, control, dispatcher
        self._store, self._edge, self._replayer, self._callbacks = store, edge, replayer, callbacks
        self._hears_siblings, self._trail, self._observing = hears_siblings, trail, observing
        self._now_ms = now_ms
        self._unsynchronized_since_s: dict[str, float] = {}

    def all(self) -> dict[str, Callable[[], Finding]]:
        return {
            "listeners": self.listeners,
            "store": self.store,
            "workers": self.workers,
            "certificates": self.certificates,
            "pins": self.pins,
            "messaging": self.messaging,
            "nodes": self.nodes,
            "registry": self.registry,
            "clocks": self.clocks,
            "keys": self.keys,
            "trust": self.trust,
            "seals": self.seals,
            "outbox": self.outbox,
            "dispatch": self.dispatch,
            "circuits": self.circuits,
            "guards": self.guards,
            "replay_worker": self.replay_worker,
            "callbacks": self.callbacks,
            "siblings": self.siblings,
            "audit file": self.audit_file,
            "audit chain": self.audit_chain,
        }

    def listeners(self) -> Finding:
        down = self._edge.listeners_down()
        if down:
            return Finding(
                CheckState.FAIL, Reason.CONNECTION_LIMIT.value, f"not listening: {', '.join(down)}"
            )
        return OK

    def workers(self) -> Finding:
        """One that ended and is not there again yet: the others serve its share."""
        missing = self._edge.crew.missing() if self._edge.crew is not None else []
        if missing:
            return Finding(
                CheckState.WARN, Reason.EDGE_WORKER_LOST.value, f"not serving: {', '.join(missing)}"
            )
        return OK

    def certificates(self) -> Finding:
        """One that runs out, or that has been put in its place and cannot be used."""
        notes = self._edge.certificates.notes()
        if notes:
            return Finding(CheckState.WARN, notes[0].reason, "; ".join(each.detail for each in notes[:10]))
        return OK

    def pins(self) -> Finding:
        """A backend that shows another certificate than the one it is known by."""
        waiting = self._edge.upstream_tls.waiting()
        if waiting:
            detail = f"show another certificate: {', '.join(waiting[:10])}; see `fairlead ctl pins list`"
            return Finding(CheckState.WARN, Reason.BACKEND_CERTIFICATE_CHANGED.value, detail)
        return OK

    def store(self) -> Finding:
        since = self._dispatcher.store_failing_since_s
        if since is None:
            if self._store.warnings:
                return Finding(CheckState.WARN, "STORE_SETTINGS", "; ".join(self._store.warnings))
            return OK
        failing_s = trio.current_time() - since
        state = CheckState.FAIL if failing_s > STORE_FAIL_AFTER_S else CheckState.WARN
        return Finding(state, Reason.STORE_UNAVAILABLE.value, f"writes have failed for {failing_s:.0f} s")

    def messaging(self) -> Finding:
        if not self._config.messaging.enabled:
            return Finding(
                CheckState.WARN, "MESSAGING_DISABLED", "messaging.enabled is false: no node can link"
            )
        return OK

    def nodes(self) -> Finding:
        now_s = trio.current_time()
        out = {
            node_id: state.value
            for node_id in sorted(self._control.nodes.nodes)
            if (state := self._control.nodes.state(node_id, now_s)) in (NodeState.OFFLINE, NodeState.UNKNOWN)
        }
        if out:
            detail = ", ".join(f"{node_id} {state}" for node_id, state in list(out.items())[:10])
            return Finding(CheckState.WARN, Reason.NODE_NOT_CONNECTED.value, detail)
        return OK

    def registry(self) -> Finding:
        """A linked node that is behind for a while, or that refused what it was sent."""
        now_s = trio.current_time()
        behind = [node_id for node_id in self._control.links if not self._control.is_synchronized(node_id)]
        self._unsynchronized_since_s = {
            node_id: self._unsynchronized_since_s.get(node_id, now_s) for node_id in behind
        }
        late = [
            node_id
            for node_id, since_s in self._unsynchronized_since_s.items()
            if now_s - since_s > SYNC_WARN_AFTER_S
        ]
        if late:
            detail = f"behind for more than {SYNC_WARN_AFTER_S:g} s: {', '.join(sorted(late)[:10])}"
            return Finding(CheckState.WARN, Reason.REGISTRY_NOT_SYNCHRONIZED.value, detail)
        return OK

    def clocks(self) -> Finding:
        limit_ms = self._config.messaging.control_max_skew_millis // 2
        skewed = [
            f"{node_id} {record.skew_ms} ms"
            for node_id, record in sorted(self._control.nodes.nodes.items())
            if record.connected and record.skew_ms is not None and abs(record.skew_ms) > limit_ms
        ]
        if skewed:
            return Finding(CheckState.WARN, Reason.INVALID_TIMESTAMP.value, ", ".join(skewed[:10]))
        return OK

    def trust(self) -> Finding:
        """A node that believes no delivery of ours, or only those under a secret that is to go."""
        held: dict[str, list[str]] = {"none": [], "previous": []}
        for node_id in sorted(self._control.links):
            held.get(self._control.nodes.record(node_id).trust_key, []).append(node_id)
        if held["none"]:
            detail = f"hold none of our trust keys, and refuse deliveries: {', '.join(held['none'][:10])}"
            return Finding(CheckState.WARN, Reason.SECURITY_TRUST_TOKEN_INVALID.value, detail)
        if held["previous"]:
            detail = f"still on the previous trust secret: {', '.join(held['previous'][:10])}"
            return Finding(CheckState.WARN, Reason.PREVIOUS_KEY_EXPIRED.value, detail)
        return OK

    def seals(self) -> Finding:
        """Rows that no proxy of this fleet wrote. Where a whole table cannot be believed, what rests on it stands
        still: no link is opened, nothing is delivered."""
        found = self._store.distrusted()
        if not found:
            return OK
        state = CheckState.FAIL if any("*" in keys for keys in found.values()) else CheckState.WARN
        detail = "; ".join(f"{kind}: {', '.join(keys[:5])}" for kind, keys in sorted(found.items()))
        said = f"not as a proxy wrote them: {detail}. After a deliberate restore: `fairlead seals adopt`"
        return Finding(state, Reason.SECURITY_SEAL_INVALID.value, said)

    def keys(self) -> Finding:
        """Who would be cut off when the previous secret ends."""
        keys = self._control.keys
        if keys.previous is None:
            return OK
        old = [
            node_id
            for node_id in self._control.links
            if self._control.nodes.record(node_id).key == "previous"
        ]
        old += [f"client {client_id}" for client_id in self._control.clients.on_previous()]
        if old:
            left_s = (keys.previous_expires_at_ms - self._now_ms()) / 1000
            ends = f"ends in {left_s:.0f} s" if left_s > 0 else f"ended {-left_s:.0f} s ago"
            detail = f"still on the previous secret, which {ends}: {', '.join(sorted(old)[:10])}"
            return Finding(CheckState.WARN, Reason.PREVIOUS_KEY_EXPIRED.value, detail)
        return OK

    def outbox(self) -> Finding:
        waiting, most = self._dispatcher.outbox.due_total, self._config.dispatch.pending_max
        if waiting >= most * OUTBOX_WARN_SHARE:
            return Finding(CheckState.WARN, Reason.QUEUE_FULL.value, f"{waiting} of {most} runs are waiting")
        return OK

    def dispatch(self) -> Finding:
        if self._dispatcher.kill_switch:
            return Finding(CheckState.WARN, Reason.DISPATCH_KILL_SWITCH.value, "the kill switch is on")
        paused = self._dispatcher.paused_tenants()
        if paused:
            return Finding(
                CheckState.WARN, Reason.DLQ_TENANT_PAUSED.value, f"paused: {', '.join(sorted(paused)[:10])}"
            )
        return OK

    def guards(self) -> Finding:
        """What is only observed where it should be enforced: somebody has to end that."""
        observing = self._observing()
        if observing:
            detail = f"{', '.join(observing)} of submissions would be refused, and is let pass"
            return Finding(CheckState.WARN, "GUARDS_OBSERVE", detail)
        return OK

    def circuits(self) -> Finding:
        """A node that is left alone because much fails on it."""
        opened = [
            node_id
            for node_id, slot in sorted(self._dispatcher.fleet.slots.items())
            if slot.circuit.state is not CircuitState.CLOSED
        ]
        if opened:
            return Finding(CheckState.WARN, Reason.CIRCUIT_OPEN.value, ", ".join(opened[:10]))
        return OK

    def replay_worker(self) -> Finding:
        """Off on purpose is no finding; failing is, and so is a worker that has not had a turn for long."""
        if self._replayer.failing:
            return Finding(CheckState.WARN, Reason.STORE_UNAVAILABLE.value, self._replayer.failing)
        return OK

    def callbacks(self) -> Finding:
        dead = self._callbacks.counts.get("dead", 0)
        if dead:
            return Finding(
                CheckState.WARN,
                Reason.CALLBACK_DEAD.value,
                f"{dead} given up; `fairlead callbacks replay` sends them again",
            )
        return OK

    def siblings(self) -> Finding:
        """Without their hints what other proxies do is seen a moment later, and nothing else changes."""
        if self._store.shared and not self._hears_siblings():
            return Finding(
                CheckState.WARN, Reason.STORE_UNAVAILABLE.value, "no connection for hints of other proxies"
            )
        return OK

    def audit_file(self) -> Finding:
        problem = self._trail.file_problem
        return Finding(CheckState.WARN, Reason.AUDIT_FILE_UNWRITABLE.value, problem) if problem else OK

    def audit_chain(self) -> Finding:
        broken = self._trail.broken
        return Finding(CheckState.WARN, Reason.SECURITY_AUDIT_CHAIN_BROKEN.value, broken) if broken else OK
