"""The rows of the control channel: an application's link, and a node's on the twin.

An application leaves no trace: nothing is submitted, and no list of nodes grows by it. A node would stay on the proxy's
list as one that is gone, so that row belongs to the twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import trio

from fairlead.cli.drill.peer import Peer, PeerFailed
from fairlead.cli.drill.plan import Seen
from fairlead.protocol import messages as m
from fairlead.protocol.keys import IdentityKey, Role, derive, identity_key
from fairlead.protocol.noise import NoiseError
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Descriptor, Effect, Position, canonical_item
from fairlead.runtime.world import World

SOFTWARE: Final = "fairlead-drill"
FAILURES: Final = (PeerFailed, NoiseError, OSError, ValueError, trio.TooSlowError, trio.BrokenResourceError)
HOUR_MS: Final = 3_600_000
NOT_DELIVERED_FOR_S: Final = 0.7
NOOP: Final = canonical_item(
    Descriptor("drill:noop", version=1, description="Nothing.", usage="drill:noop", effect=Effect.IDEMPOTENT.value,
               timeout_ms=5_000)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ControlPort:
    """Where links are opened, and as which application."""

    host: str
    port: int
    client_id: str
    key: IdentityKey
    where: str


async def prove_links(world: World, at: ControlPort) -> dict[str, Seen]:
    """Every row of `CONTROL_ROWS`."""
    found: dict[str, Seen] = {}

    async def prove(name: str, proof: Callable[[], Any]) -> bool:
        """Whether something was seen, and no refusal of what is right."""
        try:
            reason, detail = await proof()
        except FAILURES as error:
            found[name] = Seen(at.where, wrong=str(error) or type(error).__name__)
            return False
        found[name] = Seen(at.where, reason=reason, detail=detail)
        return not reason

    def peer(**more: Any) -> Peer:
        key = more.pop("key", at.key)
        return Peer(world, at.host, at.port, Role.CLIENT, at.client_id, key, "", **more)

    async def wrong_key() -> tuple[str, str]:
        async with peer(key=identity_key(world.random_bytes(32))) as one:
            await one.send(one.opening)
            return _closed(await one.is_closed())

    async def wrong_version() -> tuple[str, str]:
        async with peer(wire=(200, 201)) as one:
            return await one.shake()

    await prove("wrong-key", wrong_key)
    await prove("wrong-version", wrong_version)
    try:
        async with peer() as one:
            await _on_a_link(one, peer, prove)
    except FAILURES as error:
        found.setdefault("good-link", Seen(at.where, wrong=str(error) or type(error).__name__))
    return found


async def _on_a_link(one: Peer, peer: Callable[[], Peer], prove: Any) -> None:
    """What is proven on one link, which has to survive all of it."""

    async def good() -> tuple[str, str]:
        reason, detail = await one.shake()
        if not reason:
            await one.say(m.ClientHello(SOFTWARE))
            await one.expect(m.ClientWelcome)
            await one.say(m.ClientBeat(1))
            await one.expect(m.ClientBeatAck)
        return reason, detail

    async def recorded() -> tuple[str, str]:
        async with peer() as other:
            await other.send(recording)
            return _closed(await other.is_closed())

    async def refused(**fields: Any) -> tuple[str, str]:
        await one.say(m.ClientBeat(2), **fields)
        answer = await one.hears(lambda message: isinstance(message, m.Notice | m.ClientBeatAck), 5.0)
        if not isinstance(answer, m.Notice):
            return "", "it was acted upon"
        return answer.reason, answer.detail

    if not await prove("good-link", good):
        return  # nothing can be said on it, so nothing is proven
    recording = one.sent
    await prove("recorded-handshake", recorded)
    await prove("wrong-sender", lambda: refused(sender="somebody-else"))
    await prove("wrong-version-envelope", lambda: refused(version=2))
    await prove("stale-timestamp", lambda: refused(issued_at_ms=one.now_ms() - HOUR_MS))
    await prove("replayed-envelope", lambda: refused(nonce=1))  # of the first message


def _closed(closed: bool) -> tuple[str, str]:
    return (Reason.HANDSHAKE_CLOSED.value, "closed without a word") if closed else ("", "it was answered")


async def prove_unsynchronized(
    world: World, host: str, port: int, node_id: str, secret: bytes, submit: Callable[[], Any], where: str
) -> Seen:
    """A node that offers a command and holds no registry: nothing is delivered to it until it says that it does."""
    key = derive(secret, Role.NODE, node_id, 0)
    try:
        async with Peer(world, host, port, Role.NODE, node_id, key, "") as node:
            await node.shake()
            await node.say(m.Hello("drill", SOFTWARE, world.wall_ms(), 4, Position()))
            await node.expect(m.Welcome)
            await node.say(m.Announce((NOOP.canonical,)))
            await node.expect(m.AnnounceResult)
            refused = await world.run_in_thread(submit)
            if refused:
                return Seen(where, wrong=f"the run was not accepted: {refused}")
            early = await node.hears(lambda message: isinstance(message, m.Deliver), NOT_DELIVERED_FOR_S)
            if early is not None:
                return Seen(where, wrong="a run was delivered to a node that holds no registry")
            await node.say(m.RegistryRequest(Position(), True))
            begin = await node.expect(m.SnapshotBegin)
            await node.expect(m.SnapshotEnd)
            await node.say(m.RegistryAck(begin.position))
            run = await node.expect(m.Deliver)
            now_ms = world.wall_ms()
            await node.say(m.Result(run.run_id, run.fence, True, b"null", "", "", now_ms, now_ms))
            await node.expect(m.ResultAck)
    except FAILURES as error:
        return Seen(where, wrong=str(error) or type(error).__name__)
    return Seen(where, request_id=run.run_id, detail="delivered once it held the registry")
