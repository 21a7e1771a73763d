"""Joins clients' sessions with nodes and commands: directory, transfers, players' commands, the proxy's own commands.

With `app` and `assembly` the composition root; of what is joined here nothing knows the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from fairlead.protocol import messages as m
from fairlead.protocol.registry import Registry
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.control import Control
from fairlead.proxy.control.link import NodeLink
from fairlead.proxy.dispatch.desk import Denied
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.own_place import OwnPlace
from fairlead.proxy.dispatch.players import PlayerDesk, PlayerRules, Whereabouts
from fairlead.proxy.dispatch.submit import NodesView, NoSessions, SessionPlaces, SubmitLimits
from fairlead.proxy.edge.sessions import Sessions
from fairlead.proxy.edge.transfers import TransferSettings
from fairlead.proxy.edge_assembly import edge_config
from fairlead.proxy.own_commands import own_commands, place_of, tag_of
from fairlead.proxy.store.interface import Store
from fairlead.proxy.transfer_desk import SessionDesk, TransferDesk
from fairlead.runtime.gcra import Limit
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World


class ClientTraffic:
    """What nodes and commands have to do with clients. Control tells it what nodes say (`control.Traffic`)."""

    def __init__(
        self, sessions: Sessions, desk: TransferDesk, players: PlayerDesk, own: OwnPlace | None
    ) -> None:
        self.sessions, self.desk, self.players, self._own = sessions, desk, players, own

    async def run(self) -> None:
        """Beside the dispatcher, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.desk.run)
            nursery.start_soon(self.players.run)
            if self._own is not None:
                nursery.start_soon(self._own.run)

    def referred(self, link: NodeLink, message: m.Referred) -> None:
        self.desk.referred(link, message)

    def player_command(self, link: NodeLink, message: m.PlayerCommand, correlation_id: str) -> None:
        self.players.take(link, message, correlation_id)


def open_sessions(config: ProxyConfig, owner: str, is_shared: bool) -> tuple[Sessions, SessionPlaces]:
    """The directory of clients, and where planning looks for them.

    With a store of its own this proxy has one name for good, so that the process after it answers for what it held;
    of several proxies each process has a name of its own, which dies with it."""
    tag = tag_of(owner if is_shared else config.messaging.control_sender_id)
    sessions = Sessions(
        [each.name for each in config.listeners], {each.id: each.node_id for each in config.backends}, tag
    )
    if not config.listeners and not is_shared:
        return sessions, NoSessions()
    return sessions, SessionDesk(sessions, is_shared, place_of)


async def join_traffic(
    config: ProxyConfig,
    world: World,
    observer: Observer,
    store: Store,
    control: Control,
    dispatcher: Dispatcher,
    registry: Callable[[], Registry],
    nodes: NodesView,
    bounds: SubmitLimits,
    sessions: Sessions,
    owner: str,
    denied: Denied,
) -> ClientTraffic:
    """Everything but what listens; the proxy's own commands are in the registry then. Raises what the store raises."""
    given = config.transfer
    settings = TransferSettings(
        given.timeout_ms / 1000, given.pending_max, given.host, given.port, given.host_suffix.strip(".")
    )
    desk = TransferDesk(
        world, observer, settings, partial(edge_config, config), sessions, control, store,
        has_control=config.messaging.enabled,
    )  # fmt: skip
    players = PlayerDesk(
        world, observer, dispatcher, dispatcher.waiters, registry, nodes, bounds,
        Whereabouts(sessions.find, sessions.of_player),
        PlayerRules(
            config.players.scopes, config.players.tenant,
            Limit(config.players.commands_max, config.players.commands_window_ms),
        ),
        config.messaging.control_max_payload, denied,
    )  # fmt: skip
    own = None
    if config.listeners:  # without clients there is nothing that its commands could be about
        commands = own_commands(desk)
        await control.publish_own([item for item, _ in commands.values()])
        own = OwnPlace(world, observer, dispatcher, registry, place_of(sessions.tag), owner, commands)
    traffic = ClientTraffic(sessions, desk, players, own)
    control.traffic = traffic
    return traffic
