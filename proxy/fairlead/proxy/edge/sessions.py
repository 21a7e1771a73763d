"""The clients that are connected now: who, since when, where, and how far they have come.

For /status, /api/sessions, the gauge of sessions, targets of dispatch (`session:<id>`) and transfers. What others read
is rows of plain data, so that an edge in another process can report its own to the one that keeps this table.

Invariants: as large as admission allows connections, no larger; an entry lives as long as its connection; an id says
which proxy holds the session (`tag.uuid`), so that any proxy of a fleet knows whom to ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from fairlead.protocol.reasons import Reject

SHOWN_MAX: Final = 20


class SessionState(StrEnum):
    """How far a client has come."""

    CONNECTING = "CONNECTING"  # it has not said yet who it is or what it wants
    AUTHENTICATED = "AUTHENTICATED"  # it has; no node serves it at this moment
    PLAYING = "PLAYING"  # a node serves it
    TRANSFERRING = "TRANSFERRING"  # it was asked to go to another node
    DISCONNECTED = "DISCONNECTED"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session as it is at a moment."""

    id: str
    kind: str
    listener: str
    peer: str
    since_ms: int
    state: str
    backend: str
    node: str
    bound: str
    route: str
    player_name: str
    player_uuid: str
    protocol: int
    previous_session: str
    transfer_id: str
    bytes_in: int
    bytes_out: int


class Session:
    """One client's connection. Its listener fills it in as it learns more."""

    __slots__ = (
        "backend", "bound", "bytes_in", "bytes_out", "cut", "id", "kind", "listener", "peer", "player_name",
        "player_uuid", "previous_session", "protocol", "route", "since_ms", "state", "transfer_id",
    )  # fmt: skip

    def __init__(self, session_id: str, listener: str, kind: str, peer: str, since_ms: int) -> None:
        self.id, self.listener, self.kind, self.peer, self.since_ms = (
            session_id,
            listener,
            kind,
            peer,
            since_ms,
        )
        self.backend = ""
        self.bound = ""  # the backend that a transfer moved it to: it stands before every other choice
        self.bytes_in = 0  # from the client
        self.bytes_out = 0  # to the client
        self.player_name = ""  # as the client claims
        self.player_uuid = ""
        self.previous_session = ""  # that it was transferred from
        self.protocol = 0  # the version of the game's protocol, where it has one
        self.route = ""
        self.state = SessionState.CONNECTING
        self.transfer_id = ""  # under way
        self.cut: Callable[[Reject], None] | None = None  # ends it for this reason, as its protocol can


class SessionDirectory(Protocol):
    """Who is where. `Sessions` for what this process holds; with edge workers, for what they report."""

    tag: str  # of the proxy: it stands before every id

    def find(self, session_id: str) -> SessionRow | None: ...

    def of_player(self, player: str) -> list[SessionRow]:
        """By name, whatever its case, or by uuid."""

    def on_node(self, node: str) -> list[SessionRow]: ...

    def per_backend(self) -> Mapping[str, int]: ...

    def transferring(self, session_id: str, transfer_id: str) -> bool:
        """The session is asked to go elsewhere. False: it is gone."""

    def stays(self, session_id: str, transfer_id: str) -> bool:
        """That transfer came to nothing: the session plays on where it is. False: it is gone."""

    def rebind(self, session_id: str, backend: str) -> bool:
        """From its next request on the session is led to this backend. False: it is gone."""


class Sessions:
    """The table."""

    def __init__(
        self, listeners: Iterable[str] = (), nodes: Mapping[str, str] | None = None, tag: str = ""
    ) -> None:
        """`nodes`: the node of each backend; `tag`: what stands before every id, to say which proxy it is of."""
        self._live: dict[str, Session] = {}
        self._players: dict[str, set[Session]] = {}
        self._counts: dict[tuple[str, ...], float] = {(listener,): 0 for listener in listeners}
        self._nodes = dict(nodes or {})
        self.tag = tag
        # Told of a session whose state or bound backend was changed by others than its listener.
        self.moved: Callable[[Session], None] = lambda session: None

    def __len__(self) -> int:
        return len(self._live)

    def lead(self, nodes: Mapping[str, str]) -> None:
        """Other backends from now on: the node of each. A session goes on counting as its backend's."""
        self._nodes = {**self._nodes, **nodes}

    # -- what listeners tell

    def open(self, session_id: str, listener: str, kind: str, peer: str, now_ms: int) -> Session:
        if self.tag:
            session_id = f"{self.tag}.{session_id}"
        session = Session(session_id, listener, kind, peer, now_ms)
        self.adopt(session)
        return session

    def adopt(self, session: Session) -> None:
        """One that has its id already: an edge worker's."""
        self._live[session.id] = session
        self._counts[(session.listener,)] = self._counts.get((session.listener,), 0) + 1

    def live(self) -> Iterable[Session]:
        """All of them, to look at."""
        return self._live.values()

    def get(self, session_id: str) -> Session | None:
        return self._live.get(session_id)

    def identify(self, session: Session, player_name: str, player_uuid: str = "", protocol: int = 0) -> None:
        """The client said who it is. Nobody has proven it."""
        self._forget_player(session)
        session.player_name, session.player_uuid, session.protocol = player_name, player_uuid, protocol
        for key in _player_keys(session):
            self._players.setdefault(key, set()).add(session)

    def close(self, session: Session) -> None:
        session.state = SessionState.DISCONNECTED
        self._forget_player(session)
        if self._live.pop(session.id, None) is not None:
            self._counts[(session.listener,)] -= 1

    def _forget_player(self, session: Session) -> None:
        for key in _player_keys(session):
            held = self._players.get(key)
            if held is not None:
                held.discard(session)
                if not held:
                    del self._players[key]

    # -- who is where

    def counts(self) -> dict[tuple[str, ...], float]:
        """Live sessions by listener, as labels of a gauge."""
        return self._counts

    def states(self) -> dict[str, int]:
        """Live sessions by state."""
        return dict(Counter(each.state.value for each in self._live.values()))

    def row(self, session: Session) -> SessionRow:
        return SessionRow(
            session.id, session.kind, session.listener, session.peer, session.since_ms, session.state.value,
            session.backend, self._nodes.get(session.backend, ""), session.bound, session.route, session.player_name,
            session.player_uuid, session.protocol, session.previous_session, session.transfer_id, session.bytes_in,
            session.bytes_out,
        )  # fmt: skip

    def rows(self) -> list[SessionRow]:
        """The oldest `SHOWN_MAX`."""
        return [self.row(each) for each, _ in zip(self._live.values(), range(SHOWN_MAX), strict=False)]

    def page(self, wanted: Wanted, after: str, limit: int) -> tuple[list[SessionRow], int, str]:
        """Sessions that fit, oldest first, from the one that follows `after`; how many fit in all; and the id to go on
        after, empty at the end. One that left meanwhile is not missed: ids are in the order of their time."""
        fitting = sorted(self._fitting(wanted), key=lambda each: each.id)
        total = len(fitting)
        later = [each for each in fitting if each.id > after] if after else fitting
        found = [self.row(each) for each in later[:limit]]
        return found, total, found[-1].id if len(later) > limit else ""

    def _fitting(self, wanted: Wanted) -> Iterator[Session]:
        for each in self._live.values():
            if (
                (not wanted.node or self._nodes.get(each.backend, "") == wanted.node)
                and (not wanted.backend or each.backend == wanted.backend)
                and (not wanted.kind or each.kind == wanted.kind)
                and (not wanted.state or each.state.value == wanted.state)
                and (not wanted.address or each.peer == wanted.address)
                and (not wanted.player or wanted.player.lower() in _player_keys(each))
            ):
                yield each

    def find(self, session_id: str) -> SessionRow | None:
        session = self._live.get(session_id)
        return None if session is None else self.row(session)

    def of_player(self, player: str) -> list[SessionRow]:
        found = self._players.get(player.lower(), ())
        return [self.row(each) for each in sorted(found, key=lambda each: each.id)]

    def on_node(self, node: str) -> list[SessionRow]:
        return [self.row(each) for each in self._live.values() if self._nodes.get(each.backend, "") == node]

    def per_backend(self) -> Mapping[str, int]:
        return Counter(each.backend for each in self._live.values() if each.backend)

    def cut(self, backends: Collection[str], reject: Reject) -> int:
        """End what is under way on these backends. Returns how many that were."""
        found = [
            each for each in self._live.values()
            if each.backend in backends and each.cut is not None
            and each.state in (SessionState.PLAYING, SessionState.TRANSFERRING)
        ]  # fmt: skip
        for session in found:
            if session.cut is not None:
                session.cut(reject)
        return len(found)

    # -- transfers

    def transferring(self, session_id: str, transfer_id: str) -> bool:
        session = self._live.get(session_id)
        if session is None:
            return False
        session.state, session.transfer_id = SessionState.TRANSFERRING, transfer_id
        self.moved(session)
        return True

    def stays(self, session_id: str, transfer_id: str) -> bool:
        session = self._live.get(session_id)
        if session is None:
            return False
        if session.transfer_id == transfer_id:
            session.transfer_id = ""
            if session.state is SessionState.TRANSFERRING:
                session.state = SessionState.PLAYING
            self.moved(session)
        return True

    def rebind(self, session_id: str, backend: str) -> bool:
        session = self._live.get(session_id)
        if session is None:
            return False
        session.bound = backend
        self.moved(session)
        return True


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sessions somebody asks for. What is empty does not matter."""

    node: str = ""
    backend: str = ""
    kind: str = ""
    state: str = ""
    player: str = ""
    address: str = ""


def shown(row: SessionRow) -> dict[str, Any]:
    """A row as JSON has it."""
    return {name: getattr(row, name) for name in row.__slots__}


def _player_keys(session: Session) -> list[str]:
    return [each.lower() for each in (session.player_name, session.player_uuid) if each]
