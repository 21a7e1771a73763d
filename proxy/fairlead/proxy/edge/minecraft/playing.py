"""A player from its login to its end: who it says it is, where it belongs, the relay, and what its end means.

Stands between `opening` and `joining` and the relay. Name and UUID are claims: a node in online mode asks Mojang's
servers who it is, over a connection that it encrypts; the proxy in front of it cannot know.

Invariants: who may not join is refused before a node is dialled; the login goes to the node as it came, but for the
intent of a transfer and a token in the host; a player counts as playing from the node's first answer to the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import trio

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.admission import address_key
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.asked import Asked
from fairlead.proxy.edge.minecraft import host_token
from fairlead.proxy.edge.minecraft.joining import Joined, Lobby, Waiting
from fairlead.proxy.edge.minecraft.opening import LOGIN, SNAPSHOT, TRANSFER, Login
from fairlead.proxy.edge.minecraft.players import Players
from fairlead.proxy.edge.minecraft.remembered import Memory, RememberedPlayers
from fairlead.proxy.edge.minecraft.room import Room
from fairlead.proxy.edge.minecraft.waiting_room import LoopBreaker
from fairlead.proxy.edge.proofs import for_client
from fairlead.proxy.edge.sessions import Session, Sessions, SessionState
from fairlead.proxy.edge.settings import EdgeLimits, GameConfig
from fairlead.runtime.metrics import Family
from fairlead.runtime.observer import Observer
from fairlead.runtime.relay import Relay
from fairlead.runtime.streams import ByteStream


class Recognition(Protocol):
    """Who knows of transfers. `token` is what the host name brought, b"" for none."""

    async def arrived(self, session: Session, token: bytes) -> Reject | None:
        """The player has said its name: bind the session to where it was told to go, or refuse its token."""

    def playing(self, session: Session) -> None:
        """A node has answered its login."""

    def turned_away(self, session: Session, why: Reject) -> None:
        """No node took it."""


class NoTransfers:
    """Where nothing is known of transfers: a token opens nothing."""

    async def arrived(self, session: Session, token: bytes) -> Reject | None:
        return Reject(Reason.GAME_TOKEN_MALFORMED, "no tokens are known here") if token else None

    def playing(self, session: Session) -> None:
        pass

    def turned_away(self, session: Session, why: Reject) -> None:
        pass


class Shared:
    """What the game listeners of a process share: who plays, who belongs where, who is in a loop, who waits."""

    def __init__(self, config: GameConfig) -> None:
        self.players = Players()
        self.remembered: Memory = RememberedPlayers(config.players_remembered_max)
        self.loops = LoopBreaker(config.loop_max, config.loop_window_s, config.players_remembered_max)
        self.room = Room(config.hold_max, config.hold_s, config.readmit_per_s, config.recovery_s)
        self.recognition: Recognition = NoTransfers()

    def change(self, config: GameConfig) -> None:
        """Go by other bounds from now on."""
        self.room.change(config.hold_max, config.hold_s, config.readmit_per_s, config.recovery_s)
        self.loops.change(config.loop_max, config.loop_window_s, config.players_remembered_max)

    def counts(self) -> dict[tuple[str, ...], float]:
        """For the gauge of players."""
        return {("playing",): self.players.online, ("waiting",): self.room.held}

    def status(self) -> dict[str, int]:
        """For /status."""
        return {"players": self.players.online, "waiting": self.room.held, "in_loops": len(self.loops)}


@dataclass(frozen=True, slots=True)
class _Player:
    """A name from an address: what is remembered of anybody goes by both."""

    name: str
    address: str

    @property
    def key(self) -> str:
        return f"{self.name.lower()} {self.address}"


class Playing:
    """What the players of one listener share."""

    def __init__(
        self,
        name: str,
        config: GameConfig,
        limits: EdgeLimits,
        observer: Observer,
        lobby: Lobby,
        shared: Shared,
        sessions: Sessions,
        moved: Family,
    ) -> None:
        self._name, self.config, self.limits, self._observer = name, config, limits, observer
        self._lobby, self._shared, self._sessions = lobby, shared, sessions
        self._bytes_in, self._bytes_out = moved.cell(name, "in"), moved.cell(name, "out")

    async def join(self, arrival: Arrival, login: Login, rest: bytes, session: Session) -> Joined | Reject:
        """Lead a player to a node, for `relay`; or why it cannot join, where the client can still be told so."""
        handshake = login.handshake
        self._sessions.identify(session, login.name, login.uuid, handshake.protocol)
        session.state = SessionState.AUTHENTICATED
        refused = self._judge(login)
        if refused is not None:
            return refused
        try:
            token, host = host_token.split(handshake.address.host)
        except host_token.NoToken as malformed:
            return Reject(Reason.GAME_TOKEN_MALFORMED, str(malformed))
        refused = await self._shared.recognition.arrived(session, token)
        if refused is not None:
            return refused
        player, now = _Player(login.name, address_key(session.peer)), trio.current_time()
        asked = Asked(
            host=host, peer=arrival.peer_host, is_tls=arrival.is_tls,
            bound=session.bound or self._shared.remembered.backend_for(player.name, player.address, now),
        )  # fmt: skip
        joined = await self._lobby.join(
            Waiting(
                arrival.stream, asked, frozenset(self._shared.loops.barred(player.key, now)),
                self._said(login, host if token else None), rest, for_client(arrival, session.id), session.id,
                session.peer,
            )
        )  # fmt: skip
        if isinstance(joined, Reject):
            self._shared.recognition.turned_away(session, joined)
        elif joined.backend.id == asked.bound:
            self._shared.remembered.forget(player.name, player.address)
        return joined

    def _judge(self, login: Login) -> Reject | None:
        config, protocol = self.config, login.handshake.protocol
        if self._lobby.drained.is_set():
            return Reject(Reason.EDGE_DRAINING, "it came as the proxy was stopping")
        if not protocol & SNAPSHOT and not config.protocol_min <= protocol <= config.protocol_max:
            allowed = f"{config.protocol_min} to {config.protocol_max}"
            return Reject(Reason.GAME_VERSION_UNSUPPORTED, f"protocol {protocol} (allowed: {allowed})")
        if config.forwarded == "refuse" and login.handshake.address.is_forwarded:
            return Reject(Reason.GAME_ADDRESS_FORWARDED, "an address and a UUID behind the host")
        if config.players_max and self._shared.players.online >= config.players_max:
            return Reject(Reason.PLAYER_LIMIT, f"{config.players_max} play")
        return None

    def _said(self, login: Login, host: str | None) -> bytes:
        """What the node hears. `host`: instead of one with a token, which is none of its business."""
        handshake = login.handshake
        intent, address = handshake.intent, handshake.server_address
        if intent == TRANSFER and self.config.transfer_intent == "login":
            intent = LOGIN
        if host is not None:
            address = host + handshake.address.suffix
        return handshake.packet(intent, address) + login.login_start

    async def relay(self, stream: ByteStream, joined: Joined, session: Session) -> None:
        """A player who joined, to its end. What stands here is kept for as long as it plays: little."""
        ended: Reject | None = Reject(Reason.INTERNAL_ERROR)
        relay = Relay(
            stream, joined.stream, session, self.limits.tcp_idle_timeout_s, first=joined.early
        )  # fmt: skip
        session.backend, session.route, session.state = joined.backend.id, joined.route, SessionState.PLAYING
        session.cut = relay.cut
        self._lobby.connector.roster.begin(session.backend)
        self._shared.players.joined(session.id, session.player_name, session.player_uuid)
        try:
            self._shared.recognition.playing(session)
            ended = await self._answer(stream, joined, session) or await relay.run()
        finally:
            session.cut = None
            self._lobby.connector.roster.end(session.backend)
            self._shared.players.left(session.id)
            self._bytes_in.inc(session.bytes_in)
            self._bytes_out.inc(session.bytes_out)
            for side in (stream, joined.stream):
                if ended is None:
                    side.close()
                else:
                    side.abort()
        if relay.is_client_first is False and session.state is not SessionState.TRANSFERRING:
            self._thrown_out(session)
        if ended is not None:
            self._observer.refused(
                ended.reason, ended.detail, level="debug" if ended.reason is Reason.CLIENT_GONE else "info",
                correlation_id=session.id, peer=session.peer, listener=self._name, backend=session.backend,
                player=session.player_name,
            )  # fmt: skip

    async def _answer(self, stream: ByteStream, joined: Joined, session: Session) -> Reject | None:
        """What the node said first, to the client; and forget it."""
        answer, joined.answer, joined.early = joined.answer, b"", b""
        with trio.move_on_after(self.limits.client_write_timeout_s):
            try:
                await stream.send_all(answer)
            except trio.BrokenResourceError as error:
                return Reject(Reason.CLIENT_GONE, str(error))
            session.bytes_out += len(answer)
            return None
        return Reject(Reason.CLIENT_WRITE_TIMEOUT, "it does not take the node's first answer")

    def _thrown_out(self, session: Session) -> None:
        """The node ended it: it died, or it does not want the player. Either way it will not play there for now."""
        player, now = _Player(session.player_name, address_key(session.peer)), trio.current_time()
        self._shared.loops.thrown_out(player.key, session.backend, now)
        if self.config.origin_s:
            until = now + self.config.origin_s
            self._shared.remembered.remember(player.name, player.address, session.backend, until)
