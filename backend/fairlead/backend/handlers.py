"""The table of commands that a node offers: what `@node.command` fills and the executor reads."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fairlead.backend.asks import TIMEOUT_S, Asks
from fairlead.backend.decisions import starts_durably
from fairlead.backend.referral import OnRefer
from fairlead.backend.signature import HandlerInvalid, description_of, parameters_of
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import (
    Descriptor,
    Effect,
    Flag,
    Item,
    canonical_item,
    descriptor_problem,
)
from fairlead.protocol.schema import Parameter
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

F = TypeVar("F", bound=Callable[..., Any])


class TransientFailure(Exception):
    """Raise it from a handler when trying again later may help."""


class CommandEnded(Exception):
    """How a command that is no Python ended without a value, where a reason says more than that it failed."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Handler:
    """A function with the descriptor it is announced by, and what every execution asks of that. `goes_on`: what it
    began elsewhere is not stopped by interrupting it."""

    item: Item
    function: Callable[..., Any]
    is_async: bool
    goes_on: bool = False
    effect: str = field(init=False)
    parameters: tuple[Parameter, ...] = field(init=False)
    starts_durably: bool = field(init=False)

    def __post_init__(self) -> None:
        descriptor = self.item.descriptor
        object.__setattr__(self, "effect", descriptor.effect)
        object.__setattr__(self, "parameters", descriptor.parameters)
        object.__setattr__(self, "starts_durably", starts_durably(descriptor.effect))

    @property
    def descriptor(self) -> Descriptor:
        return self.item.descriptor


@dataclass(frozen=True, slots=True)
class Background:
    """What a background function of a node is given."""

    world: World
    observer: Observer
    node_id: str
    asks: Asks | None = None

    async def player_command(
        self, command: str, *, session: str = "", player: str = "", timeout_s: float = TIMEOUT_S, **args: Any
    ) -> Any:
        """The value of a command that a player entered here (`session`, or `player`: name or uuid), which the proxy
        has executed as that player. Raises Refused."""
        if self.asks is None:
            raise Refused(Reason.PROXY_UNREACHABLE, "this node has no links")
        return await self.asks.player_command(
            command, args, session=session, player=player, timeout_s=timeout_s
        )


class Node:
    """What the author of handlers makes: a set of commands. The process is started around it."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        self.backgrounds: list[Callable[[Background], Awaitable[None]]] = []
        self.referring: OnRefer | None = None

    def background(
        self, function: Callable[[Background], Awaitable[None]]
    ) -> Callable[[Background], Awaitable[None]]:
        """Register an async function that runs beside the commands for as long as the node does."""
        self.backgrounds.append(function)
        return function

    def on_refer(self, function: OnRefer) -> OnRefer:
        """Register the async function that sends a player of the local server elsewhere. It returns once the server
        took it on, and raises ReferralRejected with the reason where the player stays."""
        if self.referring is not None or not inspect.iscoroutinefunction(function):
            raise HandlerInvalid("on_refer takes one async function")
        self.referring = function
        return function

    def command(
        self,
        name: str,
        *,
        effect: str = Effect.ONCE.value,
        timeout_s: float = 30.0,
        attempts: int = 0,
        version: int = 1,
        aliases: Sequence[str] = (),
        permission: str = "",
        usage: str = "",
        player_only: bool = False,
        hidden: bool = False,
        requires_approval: bool = False,
    ) -> Callable[[F], F]:
        """Register the decorated function, plain or async, as the handler of `name` ("namespace:command").

        `effect` says what may be concluded when nobody saw the end: "idempotent" (may run again, anywhere),
        "transactional" (its effect goes through `ctx.transaction`: exactly once) or "once" (never re-run by
        itself). `attempts` bounds automatic retries, which follow only TransientFailure and time-outs and
        never a "once" command; 0 leaves it to the proxy's configuration. Raises HandlerInvalid at import, not at
        the first command.
        """

        def register(function: F) -> F:
            flags = Flag(0)
            for wanted, flag in (
                (player_only, Flag.PLAYER_ONLY),
                (hidden, Flag.HIDDEN),
                (requires_approval, Flag.REQUIRES_APPROVAL),
            ):
                if wanted:
                    flags |= flag
            parameters = parameters_of(function)
            descriptor = Descriptor(
                name=name,
                version=version,
                aliases=tuple(aliases),
                description=description_of(function),
                usage=usage or " ".join([name, *(_usage(each.name, each.required) for each in parameters)]),
                parameters=parameters,
                permission=permission,
                flags=int(flags),
                effect=effect,
                timeout_ms=round(timeout_s * 1000),
                attempts_max=attempts,
            )
            problem = descriptor_problem(descriptor)
            if problem:
                raise HandlerInvalid(f"{name}: {problem}")
            if name in self.handlers:
                raise HandlerInvalid(f"{name}: registered twice")
            self.handlers[name] = Handler(
                canonical_item(descriptor), function, inspect.iscoroutinefunction(function)
            )
            return function

        return register


def _usage(name: str, required: bool) -> str:
    return f"{name}=" if required else f"[{name}=]"
