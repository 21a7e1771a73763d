"""Minecraft clients: what they want, the proxy's own answers, and the relay of those who play.

Stands at the head of the client's journey on listeners of kind minecraft: `opening` reads, `status` answers, `joining`
leads a login to a node, the relay moves the rest.

Invariants: until it is clear what a client wants, its bytes and its time are bounded; nothing is forwarded that was not
understood; who cannot be served is told why wherever the protocol has words for it (before the node's first answer:
behind it the connection may be encrypted, and the proxy says nothing); a name is what the client claims.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.asked import Asked
from fairlead.proxy.edge.connect import Connector
from fairlead.proxy.edge.gatekeeper import Gatekeeper
from fairlead.proxy.edge.minecraft import host_token, legacy
from fairlead.proxy.edge.minecraft.joining import Joined, Lobby
from fairlead.proxy.edge.minecraft.legacy import LegacyPing
from fairlead.proxy.edge.minecraft.opening import Handshake, LegacyLogin, Login, Opening, StatusTalk, Wanted
from fairlead.proxy.edge.minecraft.packets import Malformed, login_disconnect, pong, status_response
from fairlead.proxy.edge.minecraft.playing import Playing, Shared
from fairlead.proxy.edge.minecraft.status import FAVICON_BYTES_MAX, StatusPage, favicon_url
from fairlead.proxy.edge.minecraft.status_of_node import StatusOfNode
from fairlead.proxy.edge.minecraft.turning_away import FIRST_BYTES, FIRST_BYTES_WITHIN_S, refusal
from fairlead.proxy.edge.minecraft.words import words
from fairlead.proxy.edge.proofs import for_client
from fairlead.proxy.edge.routing import Router
from fairlead.proxy.edge.sessions import Session, Sessions
from fairlead.proxy.edge.settings import Backend, EdgeConfig, EdgeLimits, GameConfig, ListenerConfig
from fairlead.proxy.edge.tcp import TcpListener
from fairlead.runtime.metrics import Family
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World

_READ_BYTES: Final = 4096
_OLDER_CLIENT_S: Final = 0.3  # of silence after which 0xFE was all that a client says
_FAREWELL_S: Final = 1.0

Say = Callable[[str], bytes]


class _Gone(Exception):
    """The client closed while it was expected to speak."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """Who serves what is not the game's protocol, and clients that say nothing for so long."""

    listener: TcpListener
    after_s: float


class MinecraftListener:
    """What all sessions of one such listener share."""

    def __init__(
        self,
        name: str,
        config: GameConfig,
        observer: Observer,
        gatekeeper: Gatekeeper,
        lobby: Lobby,
        shared: Shared,
        playing: Playing,
        fallback: Fallback | None = None,
    ) -> None:
        self.name, self._config, self._observer = name, config, observer
        self._gatekeeper, self._lobby, self._shared, self._playing = gatekeeper, lobby, shared, playing
        self._fallback = fallback
        self._page = _page(config)
        self._of_node = StatusOfNode(lobby.connector, config.status_timeout_s)

    async def start(self, world: World) -> None:
        """Read what is shown. Raises OSError where the favicon cannot be."""
        path = self._config.favicon_file
        if path:
            self._page = replace(self._page, favicon=await world.run_in_thread(lambda: read_favicon(path)))

    @property
    def limits(self) -> EdgeLimits:
        return self._playing.limits

    @limits.setter
    def limits(self, limits: EdgeLimits) -> None:
        self._playing.limits = limits

    def change(self, config: GameConfig) -> None:
        """Show and allow something else from now on. Another favicon is read at the next start."""
        self._config = self._playing.config = self._lobby.config = config
        self._page = replace(_page(config), favicon=self._page.favicon)
        self._of_node.timeout_s = config.status_timeout_s

    def drain(self, idle_s: float) -> None:
        """Who has no node yet is told to come again; who plays goes on."""
        self._lobby.drained.set()

    async def serve(self, arrival: Arrival, session: Session) -> None:
        """One client, to its end. Nothing of its opening is kept while it plays."""
        joined = await self._open(arrival, session)
        if joined is not None:
            await self._playing.relay(arrival.stream, joined, session)

    async def _open(self, arrival: Arrival, session: Session) -> Joined | None:
        """The client, until a node has its player. None: it is served, or refused."""
        stream, opening = arrival.stream, Opening()
        refused = await self._gatekeeper.begin_handshake(arrival.peer_host)
        if refused is not None:
            first = arrival.first
            with trio.move_on_after(FIRST_BYTES_WITHIN_S):
                try:
                    first = first or await stream.receive_some(FIRST_BYTES)
                except trio.BrokenResourceError as error:
                    refused = Reject(Reason.CLIENT_GONE, str(error))
            await self._refuse(refused, stream, session, lambda text: refusal(first, text))
            return None
        try:
            wanted = await self._wanted(arrival, opening, session)
        except Malformed as malformed:
            wanted = Reject(Reason.GAME_PACKET_MALFORMED, str(malformed))
        except _Gone as gone:
            wanted = Reject(Reason.CLIENT_GONE, str(gone))
        except trio.BrokenResourceError as error:
            wanted = Reject(Reason.CLIENT_GONE, str(error))
        match wanted:
            case Login():
                joined = await self._playing.join(arrival, wanted, opening.rest, session)
                if not isinstance(joined, Reject):
                    return joined
                await self._refuse(joined, stream, session, login_disconnect)
            case LegacyLogin():
                refused = Reject(Reason.GAME_VERSION_UNSUPPORTED, "a client of 1.6 or older")
                await self._refuse(refused, stream, session, legacy.kick)
            case Reject():
                is_joining = opening.is_begun and not opening.is_status
                await self._refuse(wanted, stream, session, login_disconnect if is_joining else None)
            case None if self._fallback is not None:
                session.kind = "tcp"
                await self._fallback.listener.serve(replace(arrival, first=opening.rest), session)
            case _:
                stream.close()  # it was answered
        return None

    # -- what it wants

    async def _wanted(self, arrival: Arrival, opening: Opening, session: Session) -> Wanted | Reject | None:
        """What the client wants; what the proxy answers by itself is answered. None: it speaks something else."""
        until = trio.current_time() + self._config.opening_timeout_s
        try:
            with trio.move_on_at(until) as scope:
                wanted = await self._read(arrival, opening)
        finally:
            self._gatekeeper.end_handshake()  # who is only shown something is in nobody's way
        if scope.cancelled_caught:
            detail = f"{len(opening.rest)} bytes of it in {self._config.opening_timeout_s:g} s"
            return Reject(Reason.GAME_OPENING_TIMEOUT, detail)
        if isinstance(wanted, Handshake):
            return await self._show(arrival, wanted, opening.rest, until, session)
        if isinstance(wanted, LegacyPing):
            await _farewell(arrival.stream, self._legacy_status(arrival, wanted))
        return wanted

    async def _show(
        self, arrival: Arrival, handshake: Handshake, rest: bytes, until: float, session: Session
    ) -> Wanted | Reject:
        """Status and ping. Many ask and never ping: that is in order."""
        talk, data, is_answered = StatusTalk(rest), b"", False
        with trio.move_on_at(until):
            try:
                while True:
                    asked = talk.next(data)
                    data = b""
                    if asked is None:
                        data = await arrival.stream.receive_some(_READ_BYTES)
                        if not data:
                            return handshake
                    elif asked:
                        is_answered = True
                        await _farewell(arrival.stream, pong(asked))
                        return handshake
                    else:
                        await arrival.stream.send_all(await self._status(arrival, handshake, session))
                        is_answered = True
            except trio.BrokenResourceError:
                if not is_answered:
                    raise
        if is_answered:
            return handshake
        return Reject(Reason.GAME_OPENING_TIMEOUT, "it asked for nothing after its handshake")

    async def _read(self, arrival: Arrival, opening: Opening) -> Wanted | None:
        fallback, data = self._fallback, arrival.first
        while True:
            try:
                wanted = opening.feed(data) if data else None
            except Malformed:
                if fallback is None or opening.is_begun:
                    raise
                return None
            if isinstance(wanted, LegacyLogin) and fallback is not None:
                return None
            if wanted is not None:
                return wanted
            silence_s = float("inf")
            if opening.may_be_older:
                silence_s = _OLDER_CLIENT_S
            elif fallback is not None and not opening.is_begun:
                silence_s = fallback.after_s
            data = b""
            with trio.move_on_after(silence_s) as scope:
                data = await arrival.stream.receive_some(_READ_BYTES)
            if not data:
                wanted = opening.silent()
                if wanted is not None or scope.cancelled_caught:
                    return wanted
                raise _Gone("it closed before it had said what it wants")

    # -- the list of servers

    async def _status(self, arrival: Arrival, handshake: Handshake, session: Session) -> bytes:
        asked = Asked(host=_domain(handshake.address.host), peer=arrival.peer_host)
        backend = self._best(asked)
        if backend is not None and self._config.status_of_node:
            answer = await self._of_node.ask(
                backend, handshake.protocol, handshake.packet(), for_client(arrival, session.id), session.id,
                session.peer,
            )  # fmt: skip
            if answer:
                return answer
        players = self._shared.players
        sample = players.some() if self._config.sample else ()
        return status_response(
            self._page.text(handshake.protocol, backend is not None, players.online, sample)
        )

    def _legacy_status(self, arrival: Arrival, ping: LegacyPing) -> bytes:
        is_up = self._best(Asked(host=_domain(ping.host.lower()), peer=arrival.peer_host)) is not None
        online = self._shared.players.online
        return legacy.ping_answer(
            ping, self._page.plain_motd(is_up), self._page.version_name, online, self._page.shown_max(online)
        )

    def _best(self, asked: Asked) -> Backend | None:
        """The node that a player would be led to; None where there is none that is known to be well."""
        now = trio.current_time()
        try:
            choice = self._lobby.router.candidates(now, asked)
        except Refused:
            return None
        return next((each for each in choice.backends if self._lobby.router.is_ready(each, now)), None)

    # -- refusals

    async def _refuse(self, reject: Reject, stream: ByteStream, session: Session, say: Say | None) -> None:
        is_gone = reject.reason is Reason.CLIENT_GONE
        self._observer.refused(
            reject.reason, reject.detail, level="debug" if is_gone else "info", correlation_id=session.id,
            peer=session.peer, listener=self.name, backend=session.backend, player=session.player_name,
        )  # fmt: skip
        if say is None or is_gone:
            stream.abort()
        else:
            await _farewell(stream, say(words(reject.reason, session.id)))
            stream.close()


def _page(config: GameConfig) -> StatusPage:
    return StatusPage(
        config.motd, config.offline_motd, config.version_name, config.protocol_min, config.protocol_max,
        config.players_max,
    )  # fmt: skip


def read_favicon(path: str) -> str:
    """The picture of the list of servers. Raises OSError with what is wrong with it."""
    try:
        with open(path, "rb") as file:
            return favicon_url(file.read(FAVICON_BYTES_MAX + 1))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"minecraft.favicon_file: {path} {error}") from None
    except OSError as error:
        raise OSError(error.errno, f"minecraft.favicon_file: {path}: {error.strerror}") from error


def game_listener(
    listener: ListenerConfig,
    config: EdgeConfig,
    observer: Observer,
    gatekeeper: Gatekeeper,
    router: Router,
    connector: Connector,
    shared: Shared,
    sessions: Sessions,
    moved: Family,
    fallback: TcpListener | None,
) -> MinecraftListener:
    """The listener, of what the edge shares with all of its kind. `fallback` counts where the listener has one."""
    lobby = Lobby(config.game, router, connector, shared.room)
    playing = Playing(listener.name, config.game, config.limits, observer, lobby, shared, sessions, moved)
    other = None
    if listener.fallback == "tcp" and fallback is not None:
        other = Fallback(fallback, listener.fallback_after_s)
    return MinecraftListener(listener.name, config.game, observer, gatekeeper, lobby, shared, playing, other)


def _domain(host: str) -> str:
    """The host as routing goes by it."""
    try:
        return host_token.split(host)[1]
    except host_token.NoToken:
        return host


async def _farewell(stream: ByteStream, last: bytes) -> None:
    """Send it so that it is read: to close with unread bytes before us would reset the connection and lose it."""
    with trio.move_on_after(_FAREWELL_S):
        try:
            await stream.send_all(last)
            await stream.send_eof()
            while await stream.receive_some(_READ_BYTES):
                pass
        except trio.BrokenResourceError:
            pass  # It has read what it wanted.
