"""Pure. What a main process and its edge workers say to each other, typed: the bodies of the EDGE_ messages.

Invariants: what is not of these types is refused as a whole; every table has a bound.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

ROWS_MAX: Final = 2_000  # sessions in one report
EVENTS_MAX: Final = 2_000

Text = Annotated[str, msgspec.Meta(max_length=1_024)]


class _Said(msgspec.Struct, frozen=True, array_like=True):
    """Base of all of them."""


class Served(_Said, frozen=True, array_like=True):
    """EDGE_WELCOME: what a worker is to serve. `config`: see `config_codec`."""

    config: bytes
    tag: str  # stands before every session's id
    log_level: str
    token_ttl_ms: int
    certificate_loads: int  # how often the main process has read certificates, and found them good
    public_paths: tuple[str, ...]  # that the main process answers: exact, or with a / at the end


class NodeFacts(_Said, frozen=True, array_like=True):
    """A node: its state, and what proofs for it are made with."""

    state: str
    key: bytes = b""
    key_id: bytes = b""
    boot: bytes = b""


class Standing(_Said, frozen=True, array_like=True):
    """EDGE_STATE: how things stand."""

    nodes: dict[str, NodeFacts]
    unwell: dict[str, str]  # backends whose active checks fail, and how
    shares: dict[str, dict[str, float]]  # of rollouts, by route
    drains: dict[str, int]  # nodes with a deadline: milliseconds until then
    players_elsewhere: int
    players_some: tuple[tuple[str, str], ...]


class Row(_Said, frozen=True, array_like=True):
    """A session of a worker as it is."""

    id: Text
    kind: str
    listener: Text
    peer: Text
    since_ms: int
    state: str
    backend: Text
    route: Text
    player_name: Text
    player_uuid: Text
    protocol: int
    previous_session: Text
    bytes_in: int
    bytes_out: int


# What happened at a worker that the main process keeps for all. Nobody waits for an answer.


class TakeEasy(_Said, frozen=True, array_like=True, tag=1):
    """A node is to be led to slowly."""

    node: Text


class PlaceLeft(_Said, frozen=True, array_like=True, tag=2):
    """A place of the waiting room is free."""


class Remember(_Said, frozen=True, array_like=True, tag=3):
    """A player belongs to a backend, for so long."""

    name: Text
    address: Text
    backend: Text
    left_s: float


class Forget(_Said, frozen=True, array_like=True, tag=4):
    """It is there again."""

    name: Text
    address: Text


class ThrownOut(_Said, frozen=True, array_like=True, tag=5):
    """A node ended a player's connection."""

    player: Text
    node: Text


class Playing(_Said, frozen=True, array_like=True, tag=6):
    """A node has answered a player's login."""

    session: Text


class TurnedAway(_Said, frozen=True, array_like=True, tag=7):
    """No node took the player."""

    session: Text
    reason: Text
    detail: Text


Event = TakeEasy | PlaceLeft | Remember | Forget | ThrownOut | Playing | TurnedAway


class BackendNumbers(_Said, frozen=True, array_like=True):
    """A backend at one worker. `out`: why it is tried only after the others there."""

    live: int
    requests: int
    errors: int
    idle: int
    out: str = ""
    detail: str = ""


class Report(_Said, frozen=True, array_like=True):
    """EDGE_REPORT: what changed since the last one. Connections and handshakes are counted from the start."""

    taken: int  # connections that were received
    left: int  # of these, that are over
    handshakes_ended: int
    rows: tuple[Row, ...] = ()
    ended: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    counters: tuple[tuple[str, tuple[str, ...], tuple[float, ...]], ...] = ()
    recent: bytes = b""  # refusals worth showing, as JSON
    backends: dict[str, BackendNumbers] | None = None
    routing: int = 0
    requests: int = 0
    cpu_ms: int = 0


# Questions.


class AskAdmit(_Said, frozen=True, array_like=True, tag=1):
    """May a client come from this address, which a listed load balancer names?"""

    host: Text


class AskHandshake(_Said, frozen=True, array_like=True, tag=2):
    """May it begin a handshake? A yes is a place, which a report gives back."""

    host: Text


class AskLogin(_Said, frozen=True, array_like=True, tag=3):
    """A player has said its name."""

    row: Row
    token: bytes
    address: Text  # what counts as one client


class AskPlace(_Said, frozen=True, array_like=True, tag=4):
    """A place in the waiting room."""


class AskTurn(_Said, frozen=True, array_like=True, tag=5):
    """A turn at a node, within so long."""

    node: Text
    until_s: float


class AskPin(_Said, frozen=True, array_like=True, tag=6):
    """Is this the certificate that a backend is known by?"""

    backend: Text
    sha256: Text


class AskHttp(_Said, frozen=True, array_like=True, tag=7):
    """A request that the main process answers."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    peer: Text
    correlation_id: str


Ask = AskAdmit | AskHandshake | AskLogin | AskPlace | AskTurn | AskPin | AskHttp


class LoginAnswer(_Said, frozen=True, array_like=True):
    """To AskLogin: where the player belongs, and where not."""

    bound: str
    previous_session: str
    remembered: str
    barred: tuple[str, ...]


class TurnAnswer(_Said, frozen=True, array_like=True):
    """To AskTurn. Below 0: too long."""

    wait_s: float


class HttpAnswer(_Said, frozen=True, array_like=True):
    """To AskHttp."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


# Orders.


class CutSession(_Said, frozen=True, array_like=True, tag=1):
    """End what is under way, for this reason."""

    session: str
    reason: str
    detail: str


class MoveSession(_Said, frozen=True, array_like=True, tag=2):
    """A session's state and the backend it is bound to, as the main process has them now."""

    session: str
    bound: str
    state: str
    transfer_id: str


class Drain(_Said, frozen=True, array_like=True, tag=3):
    """Serve who is here to the end, and who is on the way: so many were given in all."""

    passed: int
    idle_s: float


class DrainNode(_Said, frozen=True, array_like=True, tag=4):
    """Clients of the node are to leave. Below 0: without a deadline."""

    node: str
    deadline_s: float


class UndrainNode(_Said, frozen=True, array_like=True, tag=5):
    """They may stay."""

    node: str


Order = CutSession | MoveSession | Drain | DrainNode | UndrainNode


def pack(said: msgspec.Struct) -> bytes:
    return _encoder.encode(said)


_encoder = msgspec.msgpack.Encoder()
read_served = msgspec.msgpack.Decoder(Served).decode
read_standing = msgspec.msgpack.Decoder(Standing).decode
read_report = msgspec.msgpack.Decoder(Report).decode
read_ask = msgspec.msgpack.Decoder(Ask).decode
read_order = msgspec.msgpack.Decoder(Order).decode
read_login_answer = msgspec.msgpack.Decoder(LoginAnswer).decode
read_turn_answer = msgspec.msgpack.Decoder(TurnAnswer).decode
read_http_answer = msgspec.msgpack.Decoder(HttpAnswer).decode
