"""What client traffic of a run has seen: requests, sessions and logins at both of their ends, and what proxies decided.

Clients and servers write here; the witness hears through the product's own functions (wrapped for the time of a
simulation) who was admitted, how each session ended, and which tokens were redeemed. Oracles read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from fairlead.proxy.edge.admission import Admission
from fairlead.proxy.edge.sessions import Session, Sessions
from fairlead.proxy.transfer_desk import TransferDesk
from fairlead.testing import SimCluster
from fairlead.testing.scheduling import PROCESS

PROXIES_OWN: Final = b"application/problem+json"


def pattern(key: str, size: int) -> bytes:
    """Bytes that belong to one thing, and that differ wherever they are cut."""
    word = f"{key}:".encode()
    return b"".join(b"%b%d," % (word, number) for number in range(size // (len(word) + 2) + 1))[:size]


@dataclass(eq=False)
class Asked:
    """One HTTP request, as its client and as the servers saw it."""

    id: str
    method: str
    body: int
    mode: str
    proxy: str
    at_s: float
    calm: Calm
    is_first: bool = True  # on its connection: the next ones come to one that may have been idle for too long
    executed: list[str] = field(default_factory=list)  # by which servers
    lives: list[Any] = field(default_factory=list)  # and in which lives of their hosts
    saw_head: bool = False  # the client saw the beginning of an answer
    status: int = 0  # 0: no answer, or not a whole one
    by: str = ""  # who answered; "" for the proxy
    reason: str = ""

    @property
    def is_safe(self) -> bool:
        """Whether it may be asked again."""
        return self.method in ("GET", "HEAD", "PUT", "DELETE") and not self.body


@dataclass(eq=False)
class Talk:
    """One tcp session. `client` and `server` are its two ends."""

    id: str
    proxy: str
    address: str
    mode: str
    gives_up: bool
    life: Any  # of the proxy's process
    calm: Calm
    sent: bytearray = field(default_factory=bytearray)  # by the client
    heard: bytearray = field(default_factory=bytearray)
    end: str = ""  # what the client saw: eof, reset, gave up
    stream: Any = None
    server: str = ""
    server_sent: bytearray = field(default_factory=bytearray)
    server_heard: bytearray = field(default_factory=bytearray)
    server_end: str = ""
    server_stream: Any = None


@dataclass(eq=False)
class Player:
    """One login, and what follows."""

    name: str
    proxy: str
    life: Any
    refers: str
    node: str = ""  # whose server let it in
    playing_since: float | None = None
    is_over: bool = False
    token_host: str = ""  # where it was sent last
    late_ms: int = 0  # and after how long it goes there
    goes_elsewhere: bool = False  # by another proxy


@dataclass(frozen=True)
class Calm:
    """Nothing of the network or of processes changes as long as this stays the same."""

    number: int
    is_whole: bool


class ClientRecord:
    """All of it."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.asked: dict[str, Asked] = {}
        self.talks: dict[str, Talk] = {}
        self.players: dict[str, Player] = {}
        self.listeners: list[Any] = []
        self.under_way = 0
        self.gate_spoken: list[bytearray] = []  # what proxies said to gates
        self.surplus_s = float("-inf")  # when a server last said what nobody had asked for
        self.away = 0  # nodes whose servers are not there
        self.unserved: list[str] = []
        self._changes = 0
        self._hooks: dict[str, list[Any]] = {}
        for name in ("_set_path", "cut", "half_open", "drop"):
            self._count(name)

    def _count(self, name: str) -> None:
        original = getattr(self.cluster.network, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            self._changes += 1
            return original(*arguments, **more)

        setattr(self.cluster.network, name, counted)

    def disturb(self) -> None:
        """Somebody does something to servers or nodes."""
        self._changes += 1

    def calm(self) -> Calm:
        """How things are now."""
        network, processes = self.cluster.network, self.cluster.processes.values()
        usual = (network.default, network.path("user-1", "user-1"))
        is_whole = all(
            (path.delay_s in (usual[0].delay_s, usual[1].delay_s))
            and not path.blocked and not path.refused and not path.bytes_per_s
            and path.window_bytes == usual[0].window_bytes
            for path in network._paths.values()
        )  # fmt: skip
        is_whole = is_whole and not any(
            each.frozen or (each.life is not None and (each.life.stop.is_set() or not each.ready))
            for each in processes
        )
        running = all(each.running for each in processes if each.lives)
        return Calm(self._changes + self.cluster.trace.faults, is_whole and running)

    def was_calm(self, since: Calm) -> bool:
        """Whether nothing was broken then, nor since."""
        now = self.calm()
        return since.is_whole and now == since

    def tell(self, what: str, *arguments: Any) -> None:
        hooks = self._hooks.get(what)
        if hooks is None:
            hooks = self._hooks[what] = [getattr(each, what) for each in self.listeners if each.hears(what)]
        for hook in hooks:
            hook(*arguments)

    def playing(self) -> list[Player]:
        return [each for each in self.players.values() if each.playing_since is not None and not each.is_over]


@dataclass
class Witness:
    """Hears what proxies decide. `tell` is set once there is a record."""

    tell: Callable[..., None] = lambda *_: None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hears of all that happens inside."""
        before: tuple[Any, ...] = (Admission.enter, Admission.leave, Sessions.close, TransferDesk.redeem)

        def enter(admission: Admission, host: str, now: float) -> Any:
            refused = before[0](admission, host, now)
            self.tell("on_entered", PROCESS.get(), admission, host, now, refused)
            return refused

        def leave(admission: Admission) -> None:
            before[1](admission)
            self.tell("on_left", PROCESS.get(), admission)

        def close(sessions: Sessions, session: Session) -> None:
            before[2](sessions, session)
            self.tell("on_closed", PROCESS.get(), session)

        async def redeem(desk: TransferDesk, token: bytes, player: str) -> Any:
            arriving = await before[3](desk, token, player)
            self.tell("on_redeemed", PROCESS.get(), arriving.transfer_id, player)
            return arriving

        Admission.enter, Admission.leave, Sessions.close = enter, leave, close  # type: ignore[method-assign]
        TransferDesk.redeem = redeem  # type: ignore[method-assign]
        try:
            yield
        finally:
            Admission.enter, Admission.leave, Sessions.close, TransferDesk.redeem = before  # type: ignore[method-assign]


LOST: Final = (OSError, trio.BrokenResourceError, trio.TooSlowError, trio.ClosedResourceError)
