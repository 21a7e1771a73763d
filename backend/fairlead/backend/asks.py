"""Players' commands, from a node to its proxy and back: what was asked, until it is answered.

On a command's way before `dispatch.players`. The id that is chosen here is the run's, so a command that is said again
over another link is the same one. Which proxy has the player's session a node does not know: it asks one after another
until one does not answer that it knows of no such session.

Invariants: at most `UNDER_WAY_MAX` wait; every wait has a deadline; whoever asked gets the value, or a `Refused` with a
reason of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import trio

from fairlead.protocol.messages import Message, PlayerAnswer, PlayerCommand
from fairlead.protocol.reasons import Reason, Refused, parse_reason
from fairlead.runtime.world import World

UNDER_WAY_MAX: Final = 1_000
TIMEOUT_S: Final = 30.0
GRACE_S: Final = 2.0  # for the proxy's own answer that it has not ended in time


class AskedLink(Protocol):
    """A link to a proxy."""

    @property
    def connected(self) -> bool: ...
    def send(self, message: Message, correlation_id: str = "") -> None: ...


@dataclass(slots=True)
class _Ask:
    """One command under way."""

    message: PlayerCommand
    link: AskedLink | None = None  # that was asked last
    asked: list[AskedLink] = field(default_factory=list)  # all that were
    answer: PlayerAnswer | None = None
    over: trio.Event = field(default_factory=trio.Event)


class Asks:
    """All that this node asked and that is not answered. One for all links."""

    def __init__(self, world: World, links: Iterable[AskedLink]) -> None:
        self._world, self._links = world, links
        self._under_way: dict[str, _Ask] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    async def player_command(
        self,
        command: str,
        args: dict[str, Any] | None = None,
        *,
        session: str = "",
        player: str = "",
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        """The value that a command ended with which a player entered here. Raises Refused: with the reason of the
        refusal or of the failure, or OUTCOME_UNKNOWN where nothing was heard in time."""
        if not (session or player):
            raise ValueError("name the session or the player who entered it")
        if not (math.isfinite(timeout_s) and 0 < timeout_s <= 600):
            raise ValueError("timeout_s must be above 0 and at most 600")
        if len(self._under_way) >= UNDER_WAY_MAX:
            raise Refused(Reason.INGRESS_BACKPRESSURE, f"{UNDER_WAY_MAX} players' commands are under way")
        message = PlayerCommand(
            self._world.new_id(), session, player, command, msgspec.json.encode(args or {}),
            round(timeout_s * 1000),
        )  # fmt: skip
        ask = self._under_way[message.request_id] = _Ask(message)
        try:
            self._say(ask)
            with trio.move_on_after(timeout_s + GRACE_S):
                await ask.over.wait()
        finally:
            del self._under_way[message.request_id]
        return _value_of(ask)

    def _say(self, ask: _Ask) -> bool:
        """Ask the next proxy. False: there is none that was not asked."""
        link = next((each for each in self._links if each.connected and each not in ask.asked), None)
        ask.link = link
        if link is None:
            return False
        ask.asked.append(link)
        link.send(ask.message)
        return True

    def joined(self, link: AskedLink) -> None:
        """A link stands: what was asked over it before, or of nobody, is said over it."""
        for ask in self._under_way.values():
            if ask.link is None or ask.link is link or not ask.link.connected:
                ask.asked = [each for each in ask.asked if each is not link and each is not ask.link]
                self._say(ask)

    def answered(self, answer: PlayerAnswer, link: AskedLink) -> None:
        ask = self._under_way.get(answer.request_id)
        if ask is None or ask.link is not link:
            return  # too late: whoever asked has gone
        if answer.reason == Reason.SESSION_UNKNOWN.value and self._say(ask):
            return
        ask.answer = answer
        ask.over.set()


def _value_of(ask: _Ask) -> Any:
    answer = ask.answer
    if answer is None:
        if not ask.asked:
            raise Refused(Reason.PROXY_UNREACHABLE, "no link to a proxy came up in time")
        raise Refused(Reason.OUTCOME_UNKNOWN, f"no answer to run {ask.message.request_id} in time")
    if answer.status == "COMPLETED" and not answer.reason:
        return msgspec.json.decode(answer.value_json or b"null")
    if not answer.reason:
        raise Refused(Reason.OUTCOME_UNKNOWN, f"run {answer.request_id} is {answer.status}: {answer.detail}")
    raise Refused(parse_reason(answer.reason), answer.detail)
