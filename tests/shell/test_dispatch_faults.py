"""Dispatch when something is wrong: the store fails or hangs, a link comes and goes, somebody says what makes no sense.

(pytest-trio looks for `autojump_clock` among a test's own arguments, so each test names it.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from tests.support.memory_cluster import CONTROL, Cluster
from tests.support.store_contract import audit_event
from trio.testing import MockClock

from fairlead.protocol import messages as m
from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Refused, Reject
from fairlead.proxy.dispatch.submit import Planned
from fairlead.proxy.store.records import Accepted, NewRun, Report, RunIdTaken, RunStatus


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    return Cluster(tmp_path, nursery)


def refused(cluster: Cluster, reason: str) -> int:
    return sum(reason in line for line in cluster.observer.lines)


# -- the store


@pytest.mark.parametrize("cut", [False, True])
async def test_every_run_ends_after_a_store_that_failed_for_a_while(
    cluster: Cluster, autojump_clock: MockClock, cut: bool
) -> None:
    """Results come in meanwhile, links break, and nothing is done twice."""
    await cluster.start()
    cluster.script.failures["retried"] = 1
    answers = [await cluster.submit("t:add", f"n{number}", 1_000, deadline_ms=120_000) for number in range(6)]
    answers.append(await cluster.submit("t:step", "retried", 1_000, deadline_ms=120_000))
    answers.append(await cluster.submit("t:once", "once", 1_000, deadline_ms=120_000))
    await cluster.until(lambda: len(cluster.script.began) == 8)
    cluster.worlds["proxy"].store_fails = True
    await trio.sleep(2)
    body = {"command": "t:step", "args": {"name": "x"}}
    status, answer = await cluster.ask("POST", "/api/dispatch", body)
    assert (status, answer["reason"]) == (503, "STORE_UNAVAILABLE")
    if cut:
        cluster.network.cut(CONTROL)
    await trio.sleep(30)
    cluster.worlds["proxy"].store_fails = False
    runs = await cluster.ended(*answers)
    assert [run["status"] for run in runs] == ["COMPLETED"] * 8
    assert set(cluster.script.totals.values()) == {1}
    assert cluster.script.began.count("once") == 1
    await trio.sleep(10)
    assert cluster.outstanding() == 0
    assert (await cluster.status())["pending"] == 0


async def test_a_node_that_links_while_the_store_fails_comes_again(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """What it holds is not known, so nothing may be given to it; and the connection does not simply fall over."""
    await cluster.start()
    cluster.worlds["proxy"].store_fails = True
    cluster.network.cut(CONTROL)
    await trio.sleep(10)
    assert cluster.dispatcher.fleet.slots == {}
    assert refused(cluster, "INTERNAL_ERROR") == 0
    cluster.worlds["proxy"].store_fails = False
    answer = await cluster.submit("t:step", "a", 1, wait_s=60)
    assert answer["status"] == "COMPLETED"


async def test_what_was_accepted_is_answered_even_if_the_store_fails_right_after(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """A caller who hears 503 submits again; this one's run is durable."""
    await cluster.start()
    accept = cluster.dispatcher.accept

    async def accept_then_fail(planned: Any) -> Any:
        outcomes = await accept(planned)
        cluster.worlds["proxy"].store_fails = True
        return outcomes

    cluster.dispatcher.accept = accept_then_fail  # type: ignore[method-assign]
    answer = await cluster.submit("t:step", "a", 1, wait_s=3)
    cluster.worlds["proxy"].store_fails = False
    (run,) = await cluster.ended(answer)
    assert run["status"] == "COMPLETED"


async def test_a_store_that_answers_nothing_for_a_while_holds_up_and_loses_nothing(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    answers = [await cluster.submit("t:add", f"n{number}", 500, deadline_ms=300_000) for number in range(4)]
    world = cluster.worlds["proxy"]
    world.answers = trio.Event()
    more: list[Any] = []

    async def submit() -> None:
        more.append(await cluster.submit("t:add", "late", 1, deadline_ms=300_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(submit)
        await trio.sleep(25)
        assert more == []
        world.answers.set()
    runs = await cluster.ended(*answers, *more)
    assert [run["status"] for run in runs] == ["COMPLETED"] * 5
    assert set(cluster.script.totals.values()) == {1}


# -- reports


async def test_a_report_that_the_store_never_takes_does_not_hold_up_the_others(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    poisoned = await cluster.submit("t:step", "poisoned", 200, target="alpha", deadline_ms=5_000)
    await cluster.until(lambda: cluster.script.began)
    link = cluster.dispatcher.deliveries.links["alpha"]
    report = Report(poisoned["run_id"], 1, "alpha", True, b"1", "", "", 2**70, 0)
    await cluster.dispatcher.settler.report(link, [(report, "")])
    runs = await cluster.ended(
        *[await cluster.submit("t:step", f"n{number}", 1) for number in range(20)], poisoned
    )
    assert [run["status"] for run in runs] == ["COMPLETED"] * 21


async def test_a_report_on_an_id_that_no_run_can_have_is_refused(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """Not every store can even be asked about it (PostgreSQL knows no NUL in a text)."""
    await cluster.start()
    link = cluster.dispatcher.deliveries.links["alpha"]
    await cluster.dispatcher.reported(link, [(Report("a\0b", 1, "alpha", True, b"1", "", "", 0, 0), "")])
    assert cluster.dispatcher.settler.waiting == 0
    assert refused(cluster, "FOREIGN_STATEMENT") == 1
    answer = await cluster.submit("t:once", "a", 500, target="alpha")
    report = Report(answer["run_id"], 1, "alpha", False, b"", "HANDLER_FAILED", "a\0b", 0, 0)
    await cluster.dispatcher.reported(link, [(report, "")])
    (run,) = await cluster.ended(answer)
    assert (run["status"], run["detail"]) == ("FAILED", "ab")


async def test_reports_said_twice_or_too_late_or_by_another_change_nothing(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    answer = await cluster.submit("t:add", "a", 1_000, target="alpha")
    links = cluster.dispatcher.deliveries.links
    forged = Report(answer["run_id"], 1, "beta", True, b'"forged"', "", "", 0, 0)
    newer = Report(answer["run_id"], 7, "alpha", True, b'"newer"', "", "", 0, 0)
    await cluster.dispatcher.reported(links["beta"], [(forged, ""), (forged, "")])
    await cluster.dispatcher.reported(links["alpha"], [(newer, "")])
    (run,) = await cluster.ended(answer)
    assert (run["status"], run["result"]) == ("COMPLETED", "a")
    again = Report(answer["run_id"], 1, "alpha", False, b"", "HANDLER_FAILED", "", 0, 0)
    await cluster.dispatcher.reported(links["alpha"], [(again, ""), (again, "")])
    await trio.sleep(1)
    assert (await cluster.run(answer["run_id"]))["status"] == "COMPLETED"
    assert await cluster.dead_letters() == []
    assert cluster.outstanding() == 0


# -- places


def planned(
    cluster: Cluster, run_id: str, name: str, command: str = "t:step", target: str = "alpha"
) -> Planned:
    now_ms = cluster.worlds["proxy"].wall_ms()
    item = cluster.control.registry.registry.get(command)
    assert item is not None
    identity = msgspec.json.encode(Identity("me"))
    args = msgspec.json.encode({"name": name, "ms": 2_000})
    run = NewRun(
        run_id, "default", command, item.descriptor.effect, args, target, "" if target == "any" else target, identity,
        run_id, now_ms, now_ms + 60_000, 30_000, chosen_id=True,
    )  # fmt: skip
    return Planned(run, item)


async def test_a_submission_said_again_leaves_the_first_delivery_in_its_place(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """A client that heard no answer says its run again while the node executes it. The place must stay taken, or the
    lease is not renewed and the node is given more than it has room for."""
    await cluster.start()
    run_id = cluster.worlds["client"].new_id()
    (first,) = await cluster.dispatcher.accept([planned(cluster, run_id, "a")])
    assert first == Accepted(run_id, RunStatus.RUNNING)
    await cluster.until(lambda: cluster.script.began)
    (again,) = await cluster.dispatcher.accept([planned(cluster, run_id, "a")])
    assert again == Accepted(run_id, RunStatus.RUNNING, replayed=True)
    (other,) = await cluster.dispatcher.accept([planned(cluster, run_id, "b")])
    assert isinstance(other, RunIdTaken)
    assert run_id in cluster.dispatcher.fleet.slots["alpha"].outstanding
    (run,) = await cluster.ended({"run_id": run_id})
    assert (run["status"], cluster.script.began) == ("COMPLETED", ["a"])
    assert cluster.outstanding() == 0


@pytest.mark.parametrize("seed", range(4))
async def test_a_submission_said_twice_at_the_same_moment_is_delivered_once(
    cluster: Cluster, autojump_clock: MockClock, seed: int
) -> None:
    """Over two links of one client, or over one that was cut: the same run id in the same millisecond."""
    await cluster.start()
    for _ in range(seed):
        cluster.dispatcher.fleet.choose("t:once", "")
    run_id = cluster.worlds["client"].new_id()
    same = planned(cluster, run_id, "a", "t:once", "any")
    outcomes: list[Any] = []

    async def accept() -> None:
        outcomes.extend(await cluster.dispatcher.accept([same]))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(accept)
    assert {type(each) for each in outcomes} == {Accepted}
    (run,) = await cluster.ended({"run_id": run_id})
    assert (run["status"], cluster.script.began) == ("COMPLETED", ["a"])
    await trio.sleep(10)
    assert (cluster.script.began, cluster.outstanding()) == (["a"], 0)


async def test_a_refused_acceptance_frees_the_place_that_was_kept(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    cluster.worlds["proxy"].store_fails = True
    for number in range(5):
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await cluster.dispatcher.accept([planned(cluster, f"r{number}", "a")])
    assert cluster.outstanding() == 0
    cluster.worlds["proxy"].store_fails = False
    key = {"idempotency_key": "k"}
    first = await cluster.submit("t:step", "a", 500, **key)
    again = await cluster.submit("t:step", "a", 500, **key)
    assert (again["run_id"], again["replayed"], cluster.outstanding()) == (first["run_id"], True, 1)


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005])
async def test_runs_accepted_while_their_link_ends_are_delivered_all_the_same(
    cluster: Cluster, autojump_clock: MockClock, after_s: float
) -> None:
    """Accepted with a node in mind, and the link is gone before the delivery; or another link has taken its place."""
    await cluster.start()
    answers: list[Any] = []

    async def submit(number: int) -> None:
        answers.append(await cluster.submit("t:add", f"n{number}", 50, deadline_ms=40_000))

    async def cut() -> None:
        await trio.sleep(after_s)
        cluster.network.cut(CONTROL)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(submit, number)
        nursery.start_soon(cut)
    runs = await cluster.ended(*answers)
    assert [(run["status"], run["reason"]) for run in runs] == [("COMPLETED", "")] * 10
    assert set(cluster.script.totals.values()) == {1}
    assert cluster.outstanding() == 0


async def test_a_delivery_that_fits_no_message_ends_with_its_reason(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """Not claimed again and again until its deadline; and those that share its message go all the same."""
    await cluster.start()
    large = planned(cluster, "large", "large")
    identity = Identity("me", "service", (), ("x" * 5_000_000,))
    large = Planned(
        msgspec.structs.replace(large.run, identity_json=msgspec.json.encode(identity)), large.item
    )
    others = [planned(cluster, f"r{number}", f"n{number}") for number in range(3)]
    await cluster.dispatcher.accept([others[0], large, *others[1:]])
    run, *rest = await cluster.ended(*({"run_id": run_id} for run_id in ("large", "r0", "r1", "r2")))
    assert (run["status"], run["reason"], run["attempts"]) == ("FAILED", "OUTBOUND_PAYLOAD_TOO_LARGE", 1)
    assert [each["status"] for each in rest] == ["COMPLETED"] * 3
    assert cluster.outstanding() == 0


async def test_a_delivery_that_never_arrived_is_delivered_again_over_the_same_link(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(nodes=("alpha",))
    link = cluster.dispatcher.deliveries.links["alpha"]
    link.send = lambda *_: None  # type: ignore[method-assign,assignment]
    answer = await cluster.submit("t:once", "a", 1)
    del link.send
    (run,) = await cluster.ended(answer)
    assert (run["status"], cluster.script.began) == ("COMPLETED", ["a"])


async def test_a_delivery_that_never_arrived_does_not_wait_until_its_lease_runs_out(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start("[dispatch]\nlease_ms = 120000\n", nodes=("alpha",))
    link = cluster.dispatcher.deliveries.links["alpha"]
    link.send = lambda *_: None  # type: ignore[method-assign,assignment]
    answer = await cluster.submit("t:once", "a", 1)
    del link.send
    (run,) = await cluster.ended(answer)
    assert (run["status"], run["attempts"], trio.current_time() < 60) == ("COMPLETED", 1, True)


@contextlib.contextmanager
def held_up(cluster: Cluster, name: str) -> Iterator[None]:
    """Its disk takes what is written, and answers nothing until this is left."""
    cluster.worlds[name].answers = trio.Event()
    try:
        yield
    finally:
        cluster.worlds[name].answers.set()


def overheard(cluster: Cluster, node: str) -> list[m.Message]:
    """What the proxy says to a node from now on."""
    link, said = cluster.dispatcher.deliveries.links[node], list[m.Message]()
    send = link.send

    def listen(message: m.Message, correlation_id: str = "") -> Reject | None:
        said.append(message)
        return send(message, correlation_id)

    link.send = listen  # type: ignore[method-assign]
    return said


async def test_a_result_is_acknowledged_and_told_only_once_it_is_settled(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """A node lets go of what is acknowledged, a caller acts on what it is told: neither may be ahead of the disk."""
    await cluster.start(nodes=("alpha",))
    answer = await cluster.submit("t:step", "a", 1_000)
    said, told = overheard(cluster, "alpha"), list[object]()
    cluster.dispatcher.waiters.subscribe(answer["run_id"], told.extend)
    with held_up(cluster, "proxy"):
        await trio.sleep(4)
        assert cluster.script.ended == ["a"]
        assert ([each for each in said if isinstance(each, m.ResultAck)], told) == ([], [])
    await trio.sleep(1)
    assert (len([each for each in said if isinstance(each, m.ResultAck)]), len(told)) == (1, 1)


async def test_a_report_that_came_while_the_store_failed_is_settled_as_soon_as_it_works(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """It waits here: the node would say it again only when it is asked again."""
    await cluster.start(nodes=("alpha",))
    answer = await cluster.submit("t:step", "a", 1_000)
    cluster.worlds["proxy"].store_fails = True
    await trio.sleep(3)
    said = overheard(cluster, "alpha")
    cluster.worlds["proxy"].store_fails = False
    (run,) = await cluster.ended(answer)
    assert (run["status"], [each for each in said if isinstance(each, m.Deliver)]) == ("COMPLETED", [])


async def test_what_was_claimed_for_a_node_that_lost_its_inbox_meanwhile_is_not_sent_under_that_claim(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(nodes=("alpha",))
    said, slot = overheard(cluster, "alpha"), cluster.dispatcher.fleet.slots["alpha"]
    incarnation = slot.incarnation
    async with trio.open_nursery() as nursery:
        with held_up(cluster, "proxy"):
            nursery.start_soon(cluster.submit, "t:once", "a", 1)
            await cluster.until(lambda: slot.outstanding)
            slot.incarnation = "another"
    assert [each for each in said if isinstance(each, m.Deliver)] == []
    slot.incarnation = incarnation
    await cluster.until(lambda: cluster.script.ended)
    assert [each.fence for each in said if isinstance(each, m.Deliver)] == [2]


# -- the registry


async def test_a_node_acknowledges_a_registry_only_once_it_is_on_its_disk(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """Otherwise a node that dies then comes back with an older one than the proxy believes it to hold."""
    await cluster.start(nodes=("alpha",))

    async def synchronized() -> bool:
        _, answer = await cluster.ask("GET", "/api/nodes")
        return bool(answer["nodes"][0]["registry"]["synchronized"])

    with held_up(cluster, "alpha"):
        status, _ = await cluster.ask("DELETE", "/api/commands/t:step")
        assert status == 200
        await trio.sleep(5)
        assert not await synchronized()
    await trio.sleep(5)
    assert await synchronized()


async def test_a_stored_registry_that_cannot_be_followed_ends_a_removal_instead_of_looping(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    store, generation = cluster.control._store, cluster.control.registry.position.generation
    for step in (1, 2):  # as by another proxy, of another version
        assert await store.save_registry(
            generation + step, {"t:new": (b"no descriptor", "x")}, (), 0, audit_event(at_ms=step)
        )
    with trio.fail_after(10), pytest.raises(Refused, match="STORE_UNAVAILABLE"):
        await cluster.control.remove("t:step", audit_event("command_removed"))
    assert cluster.control.registry.registry.get("t:step") is not None
