"""Sending players elsewhere: RCON's packets and conversation, and what a node answers."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer
from trio.testing import MockClock

from fairlead.backend import Node, Referral, ReferralRejected
from fairlead.backend.rcon import BODY_BYTES_MAX, Packet, RconFailed, RconSettings, ask, decode, encode
from fairlead.backend.referral import (
    UNDER_WAY_MAX,
    Referrer,
    command_line,
    command_problem,
    over_rcon,
)
from fairlead.backend.signature import HandlerInvalid
from fairlead.protocol.messages import Message, Refer, Referred

REFERRAL = Referral("t-1", "s-1", "ada", "", "play.example", 25565, 0, b"")
SETTINGS = RconSettings("127.0.0.1", 25575, "sesame", 2.0)


# -- packets


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 3),
    st.binary(max_size=BODY_BYTES_MAX),
    st.binary(max_size=9),
)
def test_packets_there_and_back(number: int, kind: int, body: bytes, rest: bytes) -> None:
    packet = Packet(number, kind, body)
    raw = encode(packet)
    assert decode(raw + rest) == (packet, rest)
    assert decode(raw[:-1]) is None


@pytest.mark.parametrize("size", [0, 9, BODY_BYTES_MAX + 11, 2**31, 2**32 - 1])
def test_what_is_no_packet_is_refused_by_its_length(size: int) -> None:
    with pytest.raises(RconFailed):
        decode(size.to_bytes(4, "little"))


def test_a_password_is_never_shown() -> None:
    assert "sesame" not in repr(SETTINGS)


# -- the conversation


class Console:
    """A server's console in memory."""

    def __init__(self, world: MemoryWorld, answer: str, *, empty_first: bool = False) -> None:
        self.world, self.answer, self.empty_first = world, answer, empty_first
        self.commands: list[str] = []

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listener = await self.world.listen_tcp("127.0.0.1", 25575)
        task_status.started()
        while True:
            stream = await listener.accept()
            buffer, known = b"", False
            while (found := decode(buffer)) is not None or (more := await stream.receive_some(100)):
                if found is None:
                    buffer += more
                    continue
                packet, buffer = found
                if packet.kind == 3:
                    known = packet.body == b"sesame"
                    if self.empty_first:
                        await stream.send_all(encode(Packet(packet.id, 0, b"")))
                    await stream.send_all(encode(Packet(packet.id if known else -1, 2, b"")))
                elif known and self.answer != "(silence)":
                    self.commands.append(packet.body.decode())
                    await stream.send_all(encode(Packet(packet.id, 0, self.answer.encode())))
            stream.close()


@pytest.fixture
def world() -> MemoryWorld:
    return MemoryWorld(MemoryNetwork(), 1)


@pytest.mark.parametrize("empty_first", [False, True])
async def test_a_console_is_asked(
    world: MemoryWorld, nursery: trio.Nursery, autojump_clock: MockClock, empty_first: bool
) -> None:
    console = Console(world, "Transferring ada to there", empty_first=empty_first)
    await nursery.start(console.run)
    assert await ask(world, SETTINGS, "list") == "Transferring ada to there"
    await over_rcon(world, SETTINGS, "transfer {host} {port} {player}", "transferring")(REFERRAL)
    assert console.commands == ["list", "transfer play.example 25565 ada"]
    console.answer = "No player was found"
    with pytest.raises(ReferralRejected, match="No player was found"):
        await over_rcon(world, SETTINGS, "transfer {host} {port} {player}", "transferring")(REFERRAL)
    nursery.cancel_scope.cancel()


async def test_a_console_that_cannot_be_asked(
    world: MemoryWorld, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    with pytest.raises(RconFailed):
        await ask(world, SETTINGS, "list")
    await nursery.start(Console(world, "(silence)").run)
    with pytest.raises(RconFailed, match="password"):
        await ask(world, RconSettings("127.0.0.1", 25575, "wrong", 2.0), "list")
    with pytest.raises(RconFailed, match="did not answer"):
        await ask(world, SETTINGS, "list")
    for command in ("say\nstop", "x" * 2_000):
        with pytest.raises(RconFailed, match="too long"):
            await ask(world, SETTINGS, command)
    nursery.cancel_scope.cancel()


# -- lines and configured commands


@pytest.mark.parametrize(
    "bad",
    [
        {"player_name": "ada stop"}, {"player_name": "@a"}, {"player_name": ""}, {"player_name": "x" * 33},
        {"host": "a b"}, {"host": ""}, {"host": "a;stop"}, {"port": 0}, {"port": 65_536},
    ],
)  # fmt: skip
def test_no_name_says_something_else_to_a_console(bad: dict[str, object]) -> None:
    from dataclasses import replace

    with pytest.raises(ReferralRejected):
        command_line("transfer {host} {port} {player}", replace(REFERRAL, **bad))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("transfer {host} {port} {player}", None), ("send {player} {host}", None), ("send {player}", "does not say"),
        ("send {player} {host} {x}", "names x"), ("send {player", "cannot be read"), ("{} {player} {host}", "names "),
    ],
)  # fmt: skip
def test_a_configured_command_is_judged(command: str, words: str | None) -> None:
    problem = command_problem(command)
    assert problem is None if words is None else problem is not None and words in problem


# -- what a node answers


class Link:
    """Keeps what is answered."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message, correlation_id: str = "") -> None:
        self.sent.append(message)


def refer(world: MemoryWorld, number: int = 1, in_ms: int = 5_000) -> Refer:
    return Refer(f"t-{number}", "s", "ada", "", "play.example", 25565, b"token", world.wall_ms() + in_ms)


async def test_every_request_gets_one_answer(
    world: MemoryWorld, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    told: list[str] = []

    async def handler(referral: Referral) -> None:
        told.append(referral.transfer_id)
        if referral.transfer_id == "t-2":
            raise ReferralRejected("in a fight")
        if referral.transfer_id == "t-3":
            raise RuntimeError("broken")
        if referral.transfer_id == "t-4":
            await trio.sleep_forever()

    referrer, link = Referrer(world, quiet_observer(world), handler), Link()
    await nursery.start(referrer.run)
    for number in (1, 2, 3, 4, 1, 4):
        referrer.refer(refer(world, number), link)
        await trio.sleep(0.1)
    await trio.sleep(6)
    assert told == ["t-1", "t-2", "t-3", "t-4"], "said again, it is not done again"
    answers = [each for each in link.sent if isinstance(each, Referred)]
    assert [(each.transfer_id, each.ok) for each in answers] == [
        ("t-1", True), ("t-2", False), ("t-3", False), ("t-1", True), ("t-4", False),
    ]  # fmt: skip
    assert [each.detail for each in answers[1:3]] == ["in a fight", "RuntimeError: broken"]
    nursery.cancel_scope.cancel()


async def test_a_node_that_cannot_and_one_that_is_flooded(
    world: MemoryWorld, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    without, link = Referrer(world, quiet_observer(world), None), Link()
    without.refer(refer(world), link)
    assert not without.can_refer
    assert "on_refer" in str(link.sent)

    async def forever(referral: Referral) -> None:
        await trio.sleep_forever()

    flooded, link = Referrer(world, quiet_observer(world), forever), Link()
    await nursery.start(flooded.run)
    for number in range(UNDER_WAY_MAX + 1):
        flooded.refer(refer(world, number), link)
    assert len(link.sent) == 1
    assert "under way" in str(link.sent)
    nursery.cancel_scope.cancel()


def test_one_async_function_refers() -> None:
    node = Node()
    with pytest.raises(HandlerInvalid):
        node.on_refer(lambda referral: None)  # type: ignore[arg-type,return-value]

    @node.on_refer
    async def refer(referral: Referral) -> None: ...

    with pytest.raises(HandlerInvalid):
        node.on_refer(refer)
