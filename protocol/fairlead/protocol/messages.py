"""Every message of the control channel, typed, with who may send it. One screen, on purpose.

Bodies are positional: a newer peer may append fields (they need defaults), never reorder or remove. What a
handler takes and returns travels as JSON text inside a message, so that nobody re-encodes it on the way.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec

from fairlead.protocol.keys import Role
from fairlead.protocol.registry import Count, Position, Signed

# Names and ids that are kept or shown for long, so nobody may make them long.
Name = Annotated[str, msgspec.Meta(max_length=128)]
Labels = Annotated[dict[Name, Name], msgspec.Meta(max_length=64)]


class MessageType(enum.IntEnum):
    """The number of a message on the wire. Numbers are never reused."""

    HELLO = 1
    WELCOME = 2
    HEARTBEAT = 3
    HEARTBEAT_ACK = 4
    NODE_CONTROL = 5
    NOTICE = 6
    ANNOUNCE = 10
    ANNOUNCE_RESULT = 11
    REGISTRY_REQUEST = 12
    REGISTRY_UP_TO_DATE = 13
    REGISTRY_DELTA = 14
    SNAPSHOT_BEGIN = 15
    SNAPSHOT_CHUNK = 16
    SNAPSHOT_END = 17
    REGISTRY_ACK = 18
    REGISTRY_NACK = 19
    DELIVER = 30
    RESULT = 31
    RESULT_ACK = 32
    DELIVERY_REFUSED = 33
    DELIVER_MANY = 34
    RESULT_MANY = 35
    CANCEL = 36
    CLIENT_HELLO = 40
    CLIENT_WELCOME = 41
    CLIENT_BEAT = 42
    CLIENT_BEAT_ACK = 43
    SUBMIT = 44
    SUBMITTED = 45
    RUNS_ENDED = 46
    WATCH = 47
    CANCEL_RUNS = 48
    PLAYER_COMMAND = 49
    PLAYER_ANSWER = 50
    REFER = 51
    REFERRED = 52
    EDGE_HELLO = 60
    EDGE_WELCOME = 61
    EDGE_STATE = 62
    EDGE_REPORT = 63
    EDGE_ASK = 64
    EDGE_ANSWER = 65
    EDGE_TELL = 66


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class Hello(Message, frozen=True, array_like=True):
    """First message of a node: what process this is and what registry it holds."""

    incarnation: Name
    software: Name
    started_at_ms: Count
    capacity: Count
    registry: Position
    labels: Labels = {}
    draining: bool = False
    trust_key_ids: tuple[bytes, ...] = ()  # of the keys it believes trust tokens under
    refers: bool = False  # it can send a player of its local server to another address
    gate_boot: bytes = b""  # which run of its gate proofs of proxy are made for; empty: it has none


class Welcome(Message, frozen=True, array_like=True):
    """The proxy's answer: what it is, and the rhythm it expects."""

    proxy_id: Name
    fleet_id: Name
    software: Name
    heartbeat_interval_ms: Count
    node_timeout_ms: Count
    lease_ms: Count
    skew_ms_max: Count
    paused: bool = False
    draining: bool = False


class Heartbeat(Message, frozen=True, array_like=True):
    """The node is alive: its load, its clock, its registry and the runs whose leases it renews."""

    sequence: Count
    running: Count
    waiting: Count
    capacity: Count
    registry: Position
    skew_ms: Signed | None = None
    round_trip_ms: Signed | None = None
    draining: bool = False
    holding: tuple[tuple[Name, Count], ...] = ()
    halt_epoch: Count = 0  # of the last statement about the kill switch that is in force here


class HeartbeatAck(Message, frozen=True, array_like=True):
    """Echo with the proxy's clock, from which the node works out its skew."""

    sequence: Count
    proxy_now_ms: Count


class NodeControl(Message, frozen=True, array_like=True):
    """What operators decided about this node. `halted`: the kill switch is on; nothing that waits here begins."""

    paused: bool
    draining: bool
    halted: bool = False
    epoch: Count = 0  # grows with every change of the kill switch


class Notice(Message, frozen=True, array_like=True):
    """What the other side refused of ours, so that both logs name it."""

    reason: str
    detail: str = ""
    refused_type: Count = 0


class Announce(Message, frozen=True, array_like=True):
    """Canonical descriptors of the commands a node's handlers offer. `final` ends the list."""

    descriptors: tuple[bytes, ...]
    final: bool = True


class AnnounceResult(Message, frozen=True, array_like=True):
    """Which of them stand, and why the others do not: (name, reason, detail)."""

    accepted: tuple[str, ...]
    refused: tuple[tuple[str, str, str], ...] = ()


class RegistryRequest(Message, frozen=True, array_like=True):
    """What the node holds; `full` asks for a snapshot whatever that is."""

    held: Position
    full: bool = False


class RegistryUpToDate(Message, frozen=True, array_like=True):
    """The node holds what the proxy holds."""

    position: Position


class RegistryDelta(Message, frozen=True, array_like=True):
    """From the position the node holds to a newer one."""

    base: Position
    position: Position
    upserts: tuple[bytes, ...]
    removals: tuple[str, ...]


class SnapshotBegin(Message, frozen=True, array_like=True):
    """A whole registry follows in chunks."""

    position: Position
    item_count: Count
    bytes_total: Count


class SnapshotChunk(Message, frozen=True, array_like=True):
    """Items number `index` onwards, in name order."""

    generation: Count
    index: Count
    items: tuple[bytes, ...]


class SnapshotEnd(Message, frozen=True, array_like=True):
    """All chunks were sent."""

    generation: Count
    chunk_count: Count


class RegistryAck(Message, frozen=True, array_like=True):
    """The node holds this now, durably."""

    position: Position


class RegistryNack(Message, frozen=True, array_like=True):
    """The node refused what was offered and keeps what it holds."""

    offered: Position
    held: Position
    reason: str
    command: Name = ""
    detail: str = ""


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """On whose behalf a run executes (runbook 002's identity envelope).

    `subject_type`: human, service, agent, or anonymous. `tenant` "": bound to none. `auth`: how it was proven
    (key:ID, jwt, signature:ID, link, open). `reads`: whose runs it may look at: self, tenant, any."""

    principal: Name
    subject_type: Name = "service"
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    tenant: Name = ""
    session: Name = ""
    auth: Name = ""
    reads: Name = "any"
    email: Name = ""


class Deliver(Message, frozen=True, array_like=True):
    """One attempt of one run."""

    run_id: Name
    root_run_id: Name
    fence: Count
    command: Name
    descriptor_digest: bytes
    args_json: bytes
    identity: Identity | None
    tenant: Name
    deadline_at_ms: Count
    timeout_ms: Count
    accepted_at_ms: Count
    retry: bool = False  # the last attempt failed and that failure is settled: execute again
    correlation_id: Name = ""  # where several share an envelope; else the envelope's own
    trust: bytes = b""  # proof that a proxy of the fleet means this very delivery: see `trust`


class Result(Message, frozen=True, array_like=True):
    """How an attempt ended. `value_json` only where it completed; `reason` only where it failed."""

    run_id: Name
    fence: Count
    completed: bool
    value_json: bytes
    reason: str
    detail: str
    started_at_ms: Count
    finished_at_ms: Count
    correlation_id: Name = ""  # where several share an envelope; else the envelope's own


class ResultAck(Message, frozen=True, array_like=True):
    """These results are durable at the proxy, or will never be wanted again: (run id, fence)."""

    runs: tuple[tuple[Name, Count], ...]


class DeliveryRefused(Message, frozen=True, array_like=True):
    """Durably not started, and never will be under this fence: the run may go elsewhere."""

    run_id: Name
    fence: Count
    reason: str
    detail: str = ""


class DeliverMany(Message, frozen=True, array_like=True):
    """Several attempts in one envelope: what gathered since the last write."""

    items: tuple[Deliver, ...]


class ResultMany(Message, frozen=True, array_like=True):
    """Several results in one envelope."""

    items: tuple[Result, ...]


class Cancel(Message, frozen=True, array_like=True):
    """Somebody cancelled the run: do not start it, or stop it where it can be stopped, and report."""

    run_id: Name
    fence: Count


class ClientHello(Message, frozen=True, array_like=True):
    """First message of an application's link."""

    software: Name


class ClientWelcome(Message, frozen=True, array_like=True):
    """The proxy's answer: on whose behalf the link speaks, the rhythm, and how much it may have under way."""

    proxy_id: Name
    fleet_id: Name
    software: Name
    tenant: Name
    heartbeat_interval_ms: Count
    idle_timeout_ms: Count
    runs_open_max: Count  # submitted over this link, their ends not yet pushed
    args_bytes_max: Count


class ClientBeat(Message, frozen=True, array_like=True):
    """The application is alive."""

    sequence: Count


class ClientBeatAck(Message, frozen=True, array_like=True):
    """Echo with the proxy's clock."""

    sequence: Count
    proxy_now_ms: Count


class Submission(msgspec.Struct, frozen=True, array_like=True):
    """One run as an application asks for it. The application chooses the run's id (a UUID, version 7), so that
    saying it again after a broken link cannot make a second run."""

    run_id: Name
    command: Name
    args_json: bytes
    target: str = "any"
    deadline_ms: Count = 0  # 0: as configured
    ordering_key: Name = ""
    priority: Count = 5
    delay_ms: Count = 0
    callback_url: str = ""
    quiet: bool = False  # its acceptance need not be told, only its refusal or its end


class Submit(Message, frozen=True, array_like=True):
    """Several submissions: what gathered since the last write."""

    items: tuple[Submission, ...]


class SubmitOutcome(msgspec.Struct, frozen=True, array_like=True):
    """Accepted durably (`reason` is empty), or refused."""

    run_id: Name
    status: str
    reason: str = ""
    detail: str = ""
    retry_after_ms: Count = 0


class Submitted(Message, frozen=True, array_like=True):
    """What became of submissions; one outcome for each, in no particular order."""

    items: tuple[SubmitOutcome, ...]


class RunEnd(msgspec.Struct, frozen=True, array_like=True):
    """How a run ended. `value_json` is empty where it did not complete (a parent's holds its counts)."""

    run_id: Name
    status: str
    value_json: bytes
    reason: str = ""
    detail: str = ""
    node_id: Name = ""


class RunsEnded(Message, frozen=True, array_like=True):
    """Runs of this link that ended, durably."""

    items: tuple[RunEnd, ...]


class Watch(Message, frozen=True, array_like=True):
    """After a broken link: tell the ends of these runs too. What is unknown is answered by `Submitted`."""

    run_ids: tuple[Name, ...]


class CancelRuns(Message, frozen=True, array_like=True):
    """Cancel runs that this application submitted."""

    run_ids: tuple[Name, ...]


class PlayerCommand(Message, frozen=True, array_like=True):
    """A player entered a command on this node. The id, a UUID that the node chooses, becomes the run's: saying it
    again cannot make a second run. One of `session` and `player` (a name or a uuid) says who it is."""

    request_id: Name
    session: Name
    player: Name
    command: Name
    args_json: bytes
    wait_ms: Count = 0  # how long the node waits for the end; 0: as the command's own time


class PlayerAnswer(Message, frozen=True, array_like=True):
    """How a player's command ended, or why it was refused. `value_json` only where it completed."""

    request_id: Name
    status: Name
    value_json: bytes
    reason: str = ""
    detail: str = ""


class Refer(Message, frozen=True, array_like=True):
    """Send this player to this address: the server asks the client to connect there."""

    transfer_id: Name
    session: Name
    player_name: Name
    player_uuid: Name
    host: str  # where the client shall go; where the token can be part of the name, it is
    port: Count
    token: bytes  # for servers that can give the client something to bring along
    expires_at_ms: Count


class Referred(Message, frozen=True, array_like=True):
    """What became of it: the server took it on, or why not."""

    transfer_id: Name
    ok: bool
    detail: str = ""


# Between a proxy's process and its edge workers, children of the same software (`proxy/edge/workers`). What they say is
# typed there: none of it leaves the machine, or outlives the process.
class EdgeHello(Message, frozen=True, array_like=True):
    """First message of an edge worker."""

    software: Name
    pid: Count


class EdgeWelcome(Message, frozen=True, array_like=True):
    """The answer: what to serve. Said again, whole, whenever that changes."""

    generation: Count
    body: bytes


class EdgeState(Message, frozen=True, array_like=True):
    """How things stand: nodes, proofs, checks, drains, shares, players. Always all of it."""

    sequence: Count
    body: bytes


class EdgeReport(Message, frozen=True, array_like=True):
    """What changed at a worker since its last report: sessions, connections, counters, and what happened."""

    sequence: Count
    body: bytes


class EdgeAsk(Message, frozen=True, array_like=True):
    """Something that only the main process can say."""

    ask_id: Count
    body: bytes


class EdgeAnswer(Message, frozen=True, array_like=True):
    """The answer, or why it is no."""

    ask_id: Count
    body: bytes
    reason: Name = ""
    detail: str = ""
    retry_after_ms: Count = 0


class EdgeTell(Message, frozen=True, array_like=True):
    """What a worker shall do."""

    body: bytes


# Type -> (class, roles that may send it). What is missing here does not exist.
CATALOGUE: Final[dict[MessageType, tuple[type[Message], frozenset[Role]]]] = {
    MessageType.HELLO: (Hello, frozenset({Role.NODE})),
    MessageType.WELCOME: (Welcome, frozenset({Role.PROXY})),
    MessageType.HEARTBEAT: (Heartbeat, frozenset({Role.NODE})),
    MessageType.HEARTBEAT_ACK: (HeartbeatAck, frozenset({Role.PROXY})),
    MessageType.NODE_CONTROL: (NodeControl, frozenset({Role.PROXY})),
    MessageType.NOTICE: (Notice, frozenset({Role.NODE, Role.PROXY, Role.CLIENT, Role.EDGE})),
    MessageType.ANNOUNCE: (Announce, frozenset({Role.NODE})),
    MessageType.ANNOUNCE_RESULT: (AnnounceResult, frozenset({Role.PROXY})),
    MessageType.REGISTRY_REQUEST: (RegistryRequest, frozenset({Role.NODE})),
    MessageType.REGISTRY_UP_TO_DATE: (RegistryUpToDate, frozenset({Role.PROXY})),
    MessageType.REGISTRY_DELTA: (RegistryDelta, frozenset({Role.PROXY})),
    MessageType.SNAPSHOT_BEGIN: (SnapshotBegin, frozenset({Role.PROXY})),
    MessageType.SNAPSHOT_CHUNK: (SnapshotChunk, frozenset({Role.PROXY})),
    MessageType.SNAPSHOT_END: (SnapshotEnd, frozenset({Role.PROXY})),
    MessageType.REGISTRY_ACK: (RegistryAck, frozenset({Role.NODE})),
    MessageType.REGISTRY_NACK: (RegistryNack, frozenset({Role.NODE})),
    MessageType.DELIVER: (Deliver, frozenset({Role.PROXY})),
    MessageType.RESULT: (Result, frozenset({Role.NODE})),
    MessageType.RESULT_ACK: (ResultAck, frozenset({Role.PROXY})),
    MessageType.DELIVERY_REFUSED: (DeliveryRefused, frozenset({Role.NODE})),
    MessageType.DELIVER_MANY: (DeliverMany, frozenset({Role.PROXY})),
    MessageType.RESULT_MANY: (ResultMany, frozenset({Role.NODE})),
    MessageType.CANCEL: (Cancel, frozenset({Role.PROXY})),
    MessageType.CLIENT_HELLO: (ClientHello, frozenset({Role.CLIENT})),
    MessageType.CLIENT_WELCOME: (ClientWelcome, frozenset({Role.PROXY})),
    MessageType.CLIENT_BEAT: (ClientBeat, frozenset({Role.CLIENT})),
    MessageType.CLIENT_BEAT_ACK: (ClientBeatAck, frozenset({Role.PROXY})),
    MessageType.SUBMIT: (Submit, frozenset({Role.CLIENT})),
    MessageType.SUBMITTED: (Submitted, frozenset({Role.PROXY})),
    MessageType.RUNS_ENDED: (RunsEnded, frozenset({Role.PROXY})),
    MessageType.WATCH: (Watch, frozenset({Role.CLIENT})),
    MessageType.CANCEL_RUNS: (CancelRuns, frozenset({Role.CLIENT})),
    MessageType.PLAYER_COMMAND: (PlayerCommand, frozenset({Role.NODE})),
    MessageType.PLAYER_ANSWER: (PlayerAnswer, frozenset({Role.PROXY})),
    MessageType.REFER: (Refer, frozenset({Role.PROXY})),
    MessageType.REFERRED: (Referred, frozenset({Role.NODE})),
    MessageType.EDGE_HELLO: (EdgeHello, frozenset({Role.EDGE})),
    MessageType.EDGE_WELCOME: (EdgeWelcome, frozenset({Role.PROXY})),
    MessageType.EDGE_STATE: (EdgeState, frozenset({Role.PROXY})),
    MessageType.EDGE_REPORT: (EdgeReport, frozenset({Role.EDGE})),
    MessageType.EDGE_ASK: (EdgeAsk, frozenset({Role.EDGE})),
    MessageType.EDGE_ANSWER: (EdgeAnswer, frozenset({Role.PROXY})),
    MessageType.EDGE_TELL: (EdgeTell, frozenset({Role.PROXY})),
}
TYPE_OF: Final[dict[type[Message], MessageType]] = {row[0]: number for number, row in CATALOGUE.items()}

REGISTRY_REQUESTS: Final = frozenset({MessageType.REGISTRY_REQUEST, MessageType.ANNOUNCE})
REGISTRY_PUSHES: Final = frozenset({
    MessageType.REGISTRY_UP_TO_DATE, MessageType.REGISTRY_DELTA, MessageType.SNAPSHOT_BEGIN,
    MessageType.SNAPSHOT_CHUNK, MessageType.SNAPSHOT_END,
})  # fmt: skip
