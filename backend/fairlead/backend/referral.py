"""Sending a player elsewhere: what a node does when its proxy asks it to (REFER), and what it answers (REFERRED).

On a transfer's way between the proxy that wants it and the game server that has the player. The author of the node says
how with `@node.on_refer`; without, and with `[rcon]` in node.toml, the local server is told over RCON.

Invariants: every request gets one answer, within its time; one transfer is asked of the server once, however often the
proxy says it; nothing of a player's name or of a host reaches a server's console that names and hosts cannot have.
"""

from __future__ import annotations

import re
import string
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from fairlead.backend.rcon import RconFailed, RconSettings, ask
from fairlead.protocol.messages import Message, Refer, Referred
from fairlead.protocol.reasons import Reason
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

UNDER_WAY_MAX: Final = 256
REMEMBERED_MAX: Final = 1_000
DETAIL_CHARS_MAX: Final = 300
_PLAYER: Final = re.compile(r"[A-Za-z0-9_]{1,32}")
_HOST: Final = re.compile(r"[A-Za-z0-9.:-]{1,253}")
FIELDS: Final = frozenset({"host", "port", "player"})


class ReferralRejected(Exception):
    """Raise it from `on_refer` where the player is not sent; the message is told to who asked for it."""


@dataclass(frozen=True, slots=True)
class Referral:
    """Whom to send where. `token`: for what a server can give the client to bring along (`host` may hold it)."""

    transfer_id: str
    session: str
    player_name: str
    player_uuid: str
    host: str
    port: int
    expires_at_ms: int
    token: bytes = field(repr=False)


OnRefer = Callable[[Referral], Awaitable[None]]


class Answering(Protocol):
    """The link that asked."""

    def send(self, message: Message, correlation_id: str = "") -> None: ...


class Referrer:
    """The node's referrals. `run` it beside the links."""

    def __init__(self, world: World, observer: Observer, handler: OnRefer | None) -> None:
        self._world, self._observer, self._handler = world, observer, handler
        self._nursery: trio.Nursery | None = None
        self._under_way = 0
        self._answered: OrderedDict[str, Referred | None] = OrderedDict()  # None: under way
        self._counted = observer.metrics.counter(
            "node_referrals_total",
            "Players that were to be sent elsewhere, by what became of it.",
            ("result",),
        )

    @property
    def can_refer(self) -> bool:
        return self._handler is not None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def refer(self, asked: Refer, link: Answering) -> None:
        """A proxy asks. Never waits."""
        if asked.transfer_id in self._answered:
            before = self._answered[asked.transfer_id]
            if before is not None:
                link.send(before)
            return
        if self._handler is None:
            self._answer(asked, link, "this node has neither @node.on_refer nor [rcon]")
        elif self._nursery is None or self._under_way >= UNDER_WAY_MAX:
            self._answer(asked, link, f"{self._under_way} referrals are under way")
        else:
            self._answered[asked.transfer_id] = None
            self._under_way += 1
            self._nursery.start_soon(self._serve, asked, self._handler, link)

    async def _serve(self, asked: Refer, handler: OnRefer, link: Answering) -> None:
        left_s = (asked.expires_at_ms - self._world.wall_ms()) / 1000
        referral = Referral(
            asked.transfer_id, asked.session, asked.player_name, asked.player_uuid, asked.host, asked.port,
            asked.expires_at_ms, asked.token,
        )  # fmt: skip
        problem: str | None = f"it was to be done within {max(0.0, left_s):g} s"
        try:
            with trio.move_on_after(max(0.0, left_s)):
                await handler(referral)
                problem = None
        except (ReferralRejected, RconFailed) as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            self._observer.log.warning("on_refer_failed", transfer=asked.transfer_id, error=problem)
        finally:
            self._under_way -= 1
        self._answer(asked, link, problem)

    def _answer(self, asked: Refer, link: Answering, problem: str | None) -> None:
        if problem is None:
            self._counted.inc("referred")
            self._observer.log.info(
                "player_referred", transfer=asked.transfer_id, player=asked.player_name[:64]
            )
        else:
            self._counted.inc("rejected")
            self._observer.refused(
                Reason.REFERRAL_REJECTED, problem[:DETAIL_CHARS_MAX], transfer=asked.transfer_id,
                player=asked.player_name[:64],
            )  # fmt: skip
        answer = Referred(asked.transfer_id, problem is None, (problem or "")[:DETAIL_CHARS_MAX])
        self._answered[asked.transfer_id] = answer
        while len(self._answered) > REMEMBERED_MAX:
            self._answered.popitem(last=False)
        link.send(answer)


def over_rcon(world: World, settings: RconSettings, command: str, expected: str) -> OnRefer:
    """Tells the local server's console. `command` has {host}, {port} and {player}; `expected`: what its answer holds
    where the player is sent (empty: any answer will do)."""

    async def refer(referral: Referral) -> None:
        line = command_line(command, referral)
        answer = await ask(world, settings, line)
        if expected and expected.lower() not in answer.lower():
            raise ReferralRejected(f"the server says: {answer.strip()[:DETAIL_CHARS_MAX] or '(nothing)'}")

    return refer


def command_line(command: str, referral: Referral) -> str:
    """Pure. The console's line. Raises ReferralRejected for names that would say something else there."""
    if not _PLAYER.fullmatch(referral.player_name):
        raise ReferralRejected(f"{referral.player_name[:40]!r} is no player's name")
    if not _HOST.fullmatch(referral.host) or not 0 < referral.port < 65_536:
        raise ReferralRejected(f"{referral.host[:80]!r} port {referral.port} is no address")
    return command.format(host=referral.host, port=referral.port, player=referral.player_name)


def command_problem(command: str) -> str | None:
    """Pure. What is wrong with a configured command, if so."""
    try:
        named = {name for _, name, _, _ in string.Formatter().parse(command) if name is not None}
    except ValueError as error:
        return f"cannot be read: {error}"
    if not named <= FIELDS:
        return f"names {', '.join(sorted(named - FIELDS))} (allowed: {{host}}, {{port}}, {{player}})"
    return None if "player" in named and "host" in named else "does not say {player} and {host}"
