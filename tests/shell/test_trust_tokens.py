"""A node and deliveries that no proxy of its fleet meant, and a proxy that chooses the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from tests.support.engine import INCARNATION, KEY, T0_MS, Engine, running_engine
from tests.support.trust import SKEW_MS_MAX, key_of, trusted

from fairlead.backend.context import Context
from fairlead.backend.handlers import Node
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.messages import Deliver, DeliveryRefused, Result
from fairlead.protocol.reasons import Reason
from fairlead.protocol.trust import link_trust_key, shared_trust_key
from fairlead.proxy.control.admission import KeyRing

SECRET, OLD, SHARED, SHARED_OLD = b"s" * 32, b"o" * 32, b"t" * 32, b"u" * 32


def node(called: list[str]) -> Node:
    made = Node()

    @made.command("t:do", effect="once")
    async def do(ctx: Context) -> int:
        called.append(ctx.run_id)
        return 1

    @made.command("t:slow", effect="idempotent")
    async def slow(ctx: Context) -> int:
        called.append(ctx.run_id)
        await trio.sleep(1)
        return 2

    return made


async def rows(engine: Engine) -> list[tuple[str, int, str]]:
    return [tuple(row) for row in await engine.query("SELECT run_id, fence, state FROM inbox")]


def forged(engine: Engine, way: str, **more: object) -> Deliver:
    delivery = engine.delivery(**more)  # type: ignore[arg-type]
    now_ms = engine.world.wall_ms()
    match way:
        case "no token":
            return engine.delivery(**more, trust=b"")  # type: ignore[arg-type]
        case "another secret":
            return trusted(delivery, key_of(b"theirs" * 8, "n1"), "n1", INCARNATION, now_ms)
        case "another node":
            return trusted(delivery, KEY, "n2", INCARNATION, now_ms)
        case "another incarnation":
            return trusted(delivery, KEY, "n1", "i0", now_ms)
        case "no identity":
            return engine.delivery(**more, identity=None)  # type: ignore[arg-type]
    raise AssertionError(way)


FORGED = {
    "no token": Reason.SECURITY_MISSING_INTERNAL_TRUST_CONTEXT,
    "another secret": Reason.SECURITY_TRUST_TOKEN_INVALID,
    "another node": Reason.SECURITY_TRUST_TOKEN_INVALID,
    "another incarnation": Reason.SECURITY_TRUST_TOKEN_INVALID,
    "no identity": Reason.SECURITY_MISSING_IDENTITY_ENVELOPE,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.db"


@pytest.mark.parametrize(("way", "reason"), FORGED.items())
async def test_what_no_proxy_meant_reaches_no_handler_and_leaves_no_trace(
    path: Path, way: str, reason: Reason
) -> None:
    called: list[str] = []
    async with running_engine(path, node(called)) as engine:
        engine.executor.offer(forged(engine, way), "corr")
        found = await engine.next_report()
        assert isinstance(found, Result)
        assert (found.completed, found.reason) == (False, reason.value)
        assert (called, await rows(engine)) == ([], [])
        # The same run, as a proxy means it, is executed: nobody can spoil a run by its name.
        assert (await engine.result()).completed
        assert called == ["r1"]


@pytest.mark.parametrize("way", FORGED)
async def test_of_a_run_that_is_known_nothing_is_said(path: Path, way: str) -> None:
    """A failure would end, at the proxy, what has completed here."""
    called: list[str] = []
    async with running_engine(path, node(called)) as engine:
        assert (await engine.result()).completed
        engine.executor.offer(forged(engine, way, fence=9), "corr")
        await trio.testing.wait_all_tasks_blocked()
        again = await engine.result(fence=2)
        assert (again.completed, again.fence) == (True, 2), "nor does its fence rise"
        assert (called, len(engine.reports)) == (["r1"], 2)


@pytest.mark.parametrize("way", FORGED)
async def test_a_run_that_executes_is_left_alone(
    path: Path, way: str, autojump_clock: trio.testing.MockClock
) -> None:
    called: list[str] = []
    async with running_engine(path, node(called)) as engine:
        engine.offer("t:slow")
        await trio.sleep(0.1)
        engine.executor.offer(forged(engine, way, command="t:slow", fence=9), "corr")
        found = await engine.next_report()
        assert isinstance(found, Result)
        assert (found.completed, found.fence, len(engine.reports)) == (True, 1, 1)


async def test_a_token_that_is_too_old_gives_the_run_back(path: Path) -> None:
    """It is genuine, so the run is not lost by it: durably not started, and delivered again under a new fence."""
    called: list[str] = []
    async with running_engine(path, node(called)) as engine:
        now_ms = T0_MS - 3 * SKEW_MS_MAX
        old = trusted(engine.delivery(trust=b"x"), KEY, "n1", INCARNATION, now_ms, 1_000)
        engine.executor.offer(old, "corr")
        found = await engine.next_report()
        assert isinstance(found, DeliveryRefused)
        assert found.reason == Reason.SECURITY_TRUST_TOKEN_EXPIRED.value
        assert (called, await rows(engine)) == ([], [("r1", 1, "refused")])
        assert (await engine.result(fence=2)).completed


async def test_a_recorded_delivery_executes_nothing_a_second_time(path: Path) -> None:
    """Within its time the token is good; the inbox remembers the run for longer."""
    called: list[str] = []
    async with running_engine(path, node(called)) as engine:
        recorded = engine.delivery()
        for _ in range(3):
            engine.executor.offer(recorded, "corr")
            assert isinstance(await engine.next_report(), Result)
        assert called == ["r1"]


# -- which key a proxy uses


def test_the_key_follows_the_link_unless_there_is_a_secret_for_it() -> None:
    ring = KeyRing(SECRET, OLD, 1 << 60)
    for secret in (SECRET, OLD):
        channel = derive(secret, Role.NODE, "n1", 0)
        key = link_trust_key(channel.psk)
        assert ring.trust_key("n1", channel.key_id, [key.key_id]) == (key, "current")
        assert ring.trust_key("n1", channel.key_id, []) == (key, "none"), "a node that does not say"


def test_a_node_that_still_holds_the_previous_trust_secret_gets_tokens_under_it() -> None:
    ring = KeyRing(SECRET, trust_secrets=(SHARED, SHARED_OLD))
    new, old = shared_trust_key(SHARED, "n1"), shared_trust_key(SHARED_OLD, "n1")
    assert ring.trust_key("n1", b"", [old.key_id, new.key_id]) == (new, "current")
    assert ring.trust_key("n1", b"", [old.key_id]) == (old, "previous")
    assert ring.trust_key("n1", b"", [b"else"]) == (new, "none")


def test_raising_the_epoch_makes_another_trust_key() -> None:
    ring = KeyRing(SECRET)
    channel = derive(SECRET, Role.NODE, "n1", 0)
    before, _ = ring.trust_key("n1", channel.key_id, [])
    ring.epochs[int(Role.NODE), "n1"] = 1
    after, _ = ring.trust_key("n1", derive(SECRET, Role.NODE, "n1", 1).key_id, [])
    assert before != after
