"""Commands that players enter on nodes: from a node's message to a durable acceptance, and from the end to its answer.

On the command's journey where `desk` stands for applications. What proves a player is the node that speaks for it and
what this proxy sees itself: the player's session is here, and on that very node. Of a node that speaks for a player it
does not have nothing is accepted, whatever secret it holds.

Invariants: a player may do what `[players] scopes` grants and no more, whatever its node claims; its calls are counted
by the player, not by the node; at most `PENDING_MAX` commands wait for their ends, `PENDING_NODE_MAX` of one node;
whoever asks gets one answer, unless its link is gone: then it asks again under the same id, which is the run's.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Registry
from fairlead.protocol.schema import argument_problems
from fairlead.proxy.control.link import NodeLink
from fairlead.proxy.dispatch.desk import Denied, Dispatching
from fairlead.proxy.dispatch.privileged import guarded
from fairlead.proxy.dispatch.submit import (
    ANY,
    DEFAULT_TENANT,
    PLAYER_AUTH,
    SESSION_TARGET,
    NodesView,
    SubmitLimits,
    build,
    check_caller,
    resolve,
)
from fairlead.proxy.dispatch.waiters import STORE_FAILURES, Waiters
from fairlead.proxy.store.records import Accepted
from fairlead.runtime.gcra import Limit, decide
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

SCOPE: Final = "dispatch"
PENDING_MAX: Final = 1_000
PENDING_NODE_MAX: Final = 100
PLAYERS_COUNTED_MAX: Final = 10_000
WAIT_MS_DEFAULT: Final = 30_000
WAIT_MS_MAX: Final = 600_000
VALUE_ROOM_BYTES: Final = 2_048  # of an answer, beside its value
_RUN_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ARGUMENTS: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class PlayerRules:
    """`[players]`: what they may do, and how often."""

    scopes: tuple[str, ...] = (SCOPE,)
    tenant: str = DEFAULT_TENANT
    commands: Limit = field(default_factory=lambda: Limit(20, 10_000))


class Where(Protocol):
    """A player's session, as far as its commands go by it (`edge.sessions.SessionRow`)."""

    @property
    def id(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def player_name(self) -> str: ...
    @property
    def player_uuid(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Who is where: by a session's id, and by a player's name or uuid."""

    find: Callable[[str], Where | None]
    of_player: Callable[[str], list[Any]]


def located(where: Whereabouts, asked: m.PlayerCommand, node_id: str) -> Where:
    """Pure. The session that a node asks for. Raises Refused unless it plays on that very node."""
    if asked.session:
        found = where.find(asked.session)
        if found is None:
            raise Refused(Reason.SESSION_UNKNOWN, asked.session[:80])
        if asked.player and asked.player.lower() not in (
            found.player_name.lower(),
            found.player_uuid.lower(),
        ):
            raise Refused(Reason.PLAYER_NOT_ON_NODE, f"session {found.id} is not of {asked.player[:64]!r}")
    elif asked.player:
        known = where.of_player(asked.player)
        if not known:
            raise Refused(
                Reason.SESSION_UNKNOWN, f"no player {asked.player[:64]!r} is connected to this proxy"
            )
        found = next((each for each in known if each.node == node_id), known[0])
    else:
        raise Refused(Reason.BODY_MALFORMED, "neither a session nor a player is named")
    if found.node != node_id:
        raise Refused(Reason.PLAYER_NOT_ON_NODE, f"session {found.id} is on {found.node or 'no node'}")
    if found.state not in ("AUTHENTICATED", "PLAYING"):
        raise Refused(Reason.PLAYER_NOT_READY, f"session {found.id} is {found.state}")
    return found


def identity_of(where: Where, rules: PlayerRules) -> m.Identity:
    """Pure. On whose behalf a player's run executes. The uuid where the protocol tells one, for names change hands."""
    name = where.player_uuid or where.player_name or where.id
    return m.Identity(
        f"player:{name}"[:128],
        "human",
        ("operator",) if rules.scopes else (),
        rules.scopes,
        rules.tenant,
        where.id,
        PLAYER_AUTH,
        "self",
    )


class PlayerDesk:
    """Takes players' commands. `run` it beside the dispatcher."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        dispatcher: Dispatching,
        waiters: Waiters,
        registry: Callable[[], Registry],
        nodes: NodesView,
        bounds: SubmitLimits,
        where: Whereabouts,
        rules: PlayerRules,
        payload_bytes_max: int,
        denied: Denied,
    ) -> None:
        """`denied`: told of every refusal; must neither wait nor raise."""
        self._denied = denied
        self._world, self._observer, self._dispatcher, self._waiters = world, observer, dispatcher, waiters
        self._registry, self._nodes, self._bounds, self._where = registry, nodes, bounds, where
        self._rules, self._value_bytes_max = rules, payload_bytes_max - VALUE_ROOM_BYTES
        self._nursery: trio.Nursery | None = None
        self._pending: Counter[str] = Counter()  # by node
        self._next_at_us: OrderedDict[str, int] = OrderedDict()  # by principal
        self._counted = observer.metrics.counter(
            "player_commands_total",
            "Commands that players entered on nodes, by what became of them.",
            ("result",),
        )
        observer.metrics.computed(
            "player_commands_pending", "Players' commands without an answer.", (),
            lambda: {(): self._pending.total()},
        )  # fmt: skip

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def take(self, link: NodeLink, asked: m.PlayerCommand, correlation_id: str) -> None:
        """One command from a link, whose reader never waits for it."""
        total, mine = self._pending.total(), self._pending[link.node_id]
        if self._nursery is None or total >= PENDING_MAX or mine >= PENDING_NODE_MAX:
            why = Refused(Reason.INGRESS_BACKPRESSURE, f"{mine} players' commands of this node are under way")
            self._answer(link, asked, self._refused(link, asked, why, correlation_id))
            return
        self._pending[link.node_id] += 1
        self._nursery.start_soon(self._serve, link, asked, correlation_id)

    async def _serve(self, link: NodeLink, asked: m.PlayerCommand, correlation_id: str) -> None:
        try:
            try:
                answer = await self._run(link, asked, correlation_id)
            except Refused as refused:
                answer = self._refused(link, asked, refused, correlation_id)
            except STORE_FAILURES as error:
                unavailable = Refused(Reason.STORE_UNAVAILABLE, str(error))
                answer = self._refused(link, asked, unavailable, correlation_id)
            except Exception as error:  # whatever it is, the commands of other players go on
                text = "".join(traceback.format_exception(error))
                self._observer.log.error("player_command_failed", command=asked.command[:64], traceback=text)
                answer = self._refused(link, asked, Refused(Reason.INTERNAL_ERROR), correlation_id)
            else:
                self._counted.inc(answer.reason or answer.status)
            self._answer(link, asked, answer)
        finally:
            self._pending[link.node_id] -= 1
            if self._pending[link.node_id] <= 0:
                del self._pending[link.node_id]

    async def _run(self, link: NodeLink, asked: m.PlayerCommand, correlation_id: str) -> m.PlayerAnswer:
        where = located(self._where, asked, link.node_id)
        identity = identity_of(where, self._rules)
        if SCOPE not in identity.scopes:
            raise Refused(Reason.SCOPE_MISSING, f"[players] scopes does not have {SCOPE}")
        if not _RUN_ID.fullmatch(asked.request_id):
            raise Refused(Reason.BODY_MALFORMED, "request_id is not a lower-case UUID")
        self._count(identity.principal)
        item = resolve(self._registry(), asked.command)
        check_caller(item, identity, self._bounds)
        args_json = asked.args_json or b"{}"
        if len(args_json) > self._bounds.args_bytes_max:
            raise Refused(Reason.BODY_TOO_LARGE, f"args have {len(args_json)} bytes")
        try:
            arguments = _ARGUMENTS.decode(args_json)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise Refused(Reason.BODY_MALFORMED, f"args: {error}") from error
        problems = argument_problems(item.descriptor.parameters, arguments)
        if problems:
            raise Refused(Reason.ARGUMENTS_INVALID, "; ".join(problems))
        # What runs on nodes runs on the player's own, where that offers it.
        own = item.descriptor.runs_on == "node" and link.node_id in self._nodes.offering(item.descriptor.name)
        planned = build(
            item, args_json, f"{SESSION_TARGET}{where.id}" if own else ANY, self._nodes,
            msgspec.json.encode(identity), identity.tenant, correlation_id or asked.request_id, asked.request_id,
            self._world.wall_ms(), self._bounds, new_id=self._world.new_id, chosen_id=True,
        )  # fmt: skip
        planned = guarded(planned, identity, self._bounds, where.peer)
        (outcome,) = await self._dispatcher.accept([planned])
        if not isinstance(outcome, Accepted):
            raise Refused(Reason.RUN_ID_TAKEN, asked.request_id)
        return await self._end_of(asked)

    async def _end_of(self, asked: m.PlayerCommand) -> m.PlayerAnswer:
        wait_ms = min(asked.wait_ms or WAIT_MS_DEFAULT, WAIT_MS_MAX)
        ended = (await self._waiters.wait([asked.request_id], wait_ms / 1000)).get(asked.request_id)
        if ended is None:
            return m.PlayerAnswer(
                asked.request_id, "PENDING", b"", "", f"it has not ended within {wait_ms} ms"
            )
        value, reason, detail = ended.value_json or b"", ended.reason, ended.detail
        if len(value) > self._value_bytes_max:
            value, reason = b"", Reason.RESULT_TOO_LARGE.value
            detail = f"its result is too large for an answer; read GET /api/runs/{asked.request_id}"
        return m.PlayerAnswer(asked.request_id, ended.status.value, value, reason, detail[:500])

    def _count(self, principal: str) -> None:
        """Raises Refused where a player calls too often. The oldest makes room, whose burst is over by then."""
        now_us = self._world.wall_ms() * 1000
        cell = decide(self._rules.commands, self._next_at_us.pop(principal, 0), now_us)
        while len(self._next_at_us) >= PLAYERS_COUNTED_MAX:
            self._next_at_us.popitem(last=False)
        self._next_at_us[principal] = cell.next_at_us
        if not cell.allowed:
            retry_after_s = cell.retry_after_us / 1_000_000
            raise Refused(Reason.PLAYER_RATE_LIMITED, principal, retry_after_s=retry_after_s)

    def _refused(
        self, link: NodeLink, asked: m.PlayerCommand, refused: Refused, correlation_id: str
    ) -> m.PlayerAnswer:
        self._observer.refused(
            refused.reason, refused.detail, node=link.node_id, command=asked.command[:64],
            session=asked.session[:64], player=asked.player[:64], correlation_id=correlation_id, level="info",
        )  # fmt: skip
        self._counted.inc(refused.reason.value)
        self._denied(refused, m.Identity(f"node:{link.node_id}", "service", auth="link"), link.address)
        detail = refused.detail[:500]
        return m.PlayerAnswer(asked.request_id, "REFUSED", b"", refused.reason.value, detail)

    def _answer(self, link: NodeLink, asked: m.PlayerCommand, answer: m.PlayerAnswer) -> None:
        if not link.ended.is_set():
            link.send(answer)

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {"pending": self._pending.total(), "counted": len(self._next_at_us)}
