"""Pure. Every node the proxy knows, and what can be said of it at a given moment.

States, worked out from facts and never stored:

    UNKNOWN   not heard of since this proxy started
    ONLINE    linked and heard lately, or its link broke less than a heartbeat ago
    DRAINING  linked, and takes nothing new (it says so, or an operator does)
    OFFLINE   it said goodbye, or its link has been gone for longer
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from fairlead.protocol.messages import Heartbeat, Hello
from fairlead.protocol.reasons import Reason
from fairlead.proxy.control.sync import NodeSync


class NodeState(enum.StrEnum):
    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"
    UNKNOWN = "UNKNOWN"
    DRAINING = "DRAINING"


@dataclass(slots=True)
class NodeRecord:
    """Facts about one node. Kept for the life of the process: losing a link clears nothing."""

    node_id: str
    connected: bool = False
    heard_at_s: float | None = None
    lost_at_s: float | None = None
    said_goodbye: bool = False
    last_end: tuple[Reason, str] | None = None
    links: int = 0
    address: str = ""
    key: str = ""
    key_id: str = ""
    trust_key: str = ""  # current, previous, or none where the node holds none of ours
    refers: bool = False  # it can send a player of its local server elsewhere
    gate_boot: bytes = b""  # of its gate's run, empty where it has none
    wire_version: int = 0
    software: str = ""
    incarnation: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    capacity: int = 0
    running: int = 0
    waiting: int = 0
    skew_ms: int | None = None
    round_trip_ms: int | None = None
    says_draining: bool = False
    paused: bool = False
    drained_by_operator: bool = False
    halt_epoch: int = 0  # of what the node last said to have in force of the kill switch
    halt_reached_s: float | None = None  # how long the last change of the switch took to get there
    offers: dict[str, bytes] = field(default_factory=dict)  # command -> digest of the handler's descriptor
    announce_refused: tuple[tuple[str, str, str], ...] = ()
    sync: NodeSync = field(default_factory=NodeSync)

    @property
    def draining(self) -> bool:
        return self.says_draining or self.drained_by_operator

    def state(self, now_s: float, timeout_s: float, grace_s: float) -> NodeState:
        if self.connected and self.heard_at_s is not None:
            if now_s - self.heard_at_s > timeout_s:
                return NodeState.OFFLINE
            return NodeState.DRAINING if self.draining else NodeState.ONLINE
        if self.heard_at_s is None:
            return NodeState.UNKNOWN
        if self.said_goodbye or self.lost_at_s is None or now_s - self.lost_at_s > grace_s:
            return NodeState.OFFLINE
        return NodeState.DRAINING if self.draining else NodeState.ONLINE

    # -- what happens to a node

    def linked(self, hello: Hello, now_s: float) -> None:
        self.connected, self.said_goodbye, self.lost_at_s = True, False, None
        self.heard_at_s = now_s
        self.links += 1
        self.software, self.incarnation = hello.software, hello.incarnation
        self.capacity, self.labels = hello.capacity, dict(hello.labels)
        self.says_draining = hello.draining
        self.gate_boot, self.refers = hello.gate_boot, hello.refers
        self.offers, self.announce_refused = {}, ()
        self.sync = NodeSync()

    def beat(self, beat: Heartbeat, now_s: float) -> None:
        self.heard_at_s = now_s
        self.running, self.waiting, self.capacity = beat.running, beat.waiting, beat.capacity
        self.skew_ms, self.round_trip_ms = beat.skew_ms, beat.round_trip_ms
        self.says_draining = beat.draining

    def lost(self, reason: Reason, detail: str, goodbye: bool, now_s: float) -> None:
        self.connected, self.lost_at_s = False, now_s
        self.said_goodbye = goodbye
        self.last_end = (reason, detail)
        self.running = self.waiting = 0


class NodeTable:
    """All nodes by id: configured ones from the start, others once they proved themselves."""

    def __init__(self, configured: Iterable[str], timeout_s: float, grace_s: float) -> None:
        self.nodes = {node_id: NodeRecord(node_id) for node_id in configured}
        self.timeout_s, self.grace_s = timeout_s, grace_s

    def record(self, node_id: str) -> NodeRecord:
        found = self.nodes.get(node_id)
        if found is None:
            found = self.nodes[node_id] = NodeRecord(node_id)
        return found

    def state(self, node_id: str, now_s: float) -> NodeState:
        found = self.nodes.get(node_id)
        return found.state(now_s, self.timeout_s, self.grace_s) if found else NodeState.UNKNOWN

    def counts(self, now_s: float) -> dict[NodeState, int]:
        counts = dict.fromkeys(NodeState, 0)
        for record in self.nodes.values():
            counts[record.state(now_s, self.timeout_s, self.grace_s)] += 1
        return counts
