"""Secrets are taken over while everything runs: judged, audited, whole; or nothing has changed.

The product's own composition roots over memory streams. The same over real processes, with files and signals, is in
tests/e2e/test_rotation_under_load.py. (pytest-trio looks for `autojump_clock` among a test's own arguments.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from tests.support.config_text import OPS_KEY, SECRET
from tests.support.memory_cluster import Cluster
from trio.testing import MockClock

from fairlead.backend.config import load_node_config
from fairlead.protocol.keys import fingerprint
from fairlead.protocol.reasons import Reason
from fairlead.proxy.config import load_proxy_config

NEW, NEWER = (
    "9f8e7d6c5b4a39281706f5e4d3c2b1a0" + tail for tail in ("00112233445566778899aabbccddeeff", "1" * 31 + "7")
)
EXPIRES = "2099-01-01T00:00:00Z"


async def running(
    tmp_path: Path, autojump_clock: MockClock, scenario: Callable[[Cluster], Awaitable[None]]
) -> None:
    with trio.fail_after(3_600):
        async with trio.open_nursery() as nursery:
            cluster = Cluster(tmp_path, nursery)
            await cluster.start()
            await scenario(cluster)
            nursery.cancel_scope.cancel()


async def reload_proxy(cluster: Cluster, current: str, previous: str = "", expires: str = EXPIRES) -> None:
    environ = {"SECURITY_PROXY_SECRET": current, "RELIABILITY_OPS_KEYS": OPS_KEY}
    if previous:
        environ |= {
            "SECURITY_PROXY_SECRET_PREVIOUS": previous,
            "SECURITY_PROXY_SECRET_PREVIOUS_EXPIRES_AT": expires,
        }
    cluster.proxy.reload(load_proxy_config(str(cluster.folder / "proxy.toml"), environ))
    await trio.sleep(3)


def reload_node(cluster: Cluster, name: str, current: str) -> None:
    path = str(cluster.folder / f"{name}.toml")
    cluster.nodes[name].reload(load_node_config(path, {"FAIRLEAD_PROXY_SECRET": current}))


async def held(cluster: Cluster) -> Any:
    status, answer = await cluster.ask("GET", "/api/secrets")
    assert status == 200, answer
    return next(each for each in answer["secrets"] if each["kind"] == "proxy")


def is_(found: Any, current: str, previous: str) -> bool:
    wanted = (fingerprint(bytes.fromhex(current)), fingerprint(bytes.fromhex(previous)) if previous else "")
    return (found["current"], found["previous"]) == wanted


async def changes(cluster: Cluster) -> int:
    _, answer = await cluster.ask("GET", "/api/ops/reliability/audit?limit=100")
    return sum(each["action"] == "secrets_changed" for each in answer["events"])


async def test_a_rotation_goes_through_its_steps_and_no_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ask("POST", "/api/nodes/alpha/pause")  # a sealed row that stays
        await reload_proxy(cluster, SECRET, NEW)
        assert (await held(cluster))["step"] == "switch"
        await reload_proxy(cluster, NEW, SECRET)
        found = await held(cluster)
        assert (found["step"], found["needed_by"]) == (
            "move",
            ["node alpha", "node beta"],
        )  # all is sealed anew
        await reload_proxy(cluster, NEW)
        assert is_(await held(cluster), NEW, SECRET), "whoever is still on the old one would be stranded"
        await reload_proxy(cluster, NEWER, NEW)
        assert is_(await held(cluster), NEW, SECRET), "a second rotation before the first is finished"
        assert cluster.observer.rejects()["ops"][Reason.SECRET_IN_USE.value] == 2
        for name in ("alpha", "beta"):
            reload_node(cluster, name, NEW)
        await trio.sleep(3)
        assert (await held(cluster))["step"] == "finish"
        await reload_proxy(cluster, NEW)
        assert is_(await held(cluster), NEW, "")
        assert await changes(cluster) == 3
        assert (await cluster.ask("GET", "/api/nodes/alpha"))[1]["paused"]
        assert (await cluster.ask("GET", "/status"))[1]["seals"]["distrusted"] == {}

    await running(tmp_path, autojump_clock, scenario)


async def test_without_its_audit_row_no_secret_changes(tmp_path: Path, autojump_clock: MockClock) -> None:
    async def scenario(cluster: Cluster) -> None:
        cluster.worlds["proxy"].store_fails = True
        await reload_proxy(cluster, NEW, SECRET)
        cluster.worlds["proxy"].store_fails = False
        assert is_(await held(cluster), SECRET, "")
        assert await changes(cluster) == 0
        await reload_proxy(cluster, NEW, SECRET)
        assert is_(await held(cluster), NEW, SECRET)
        assert await changes(cluster) == 1

    await running(tmp_path, autojump_clock, scenario)


async def test_what_a_node_runs_goes_on_when_it_is_given_other_keys(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its link ends and another one opens; runs under way, also those that never run twice, are told over that one."""

    async def scenario(cluster: Cluster) -> None:
        await reload_proxy(cluster, NEW, SECRET)
        runs = [
            (await cluster.submit(f"t:{effect}", f"{effect}-{node}", 5_000, target=node))["run_id"]
            for effect in ("step", "once", "add")
            for node in ("alpha", "beta")
        ]
        await trio.sleep(1)
        for name in ("alpha", "beta"):
            reload_node(cluster, name, NEW)
        await trio.sleep(10)
        for run_id in runs:
            run = await cluster.run(run_id)
            assert run["status"] == "COMPLETED", run
            assert run["attempts"] == 1, run
        assert (await held(cluster))["step"] == "finish"

    await running(tmp_path, autojump_clock, scenario)


async def test_links_under_an_expired_secret_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    async def scenario(cluster: Cluster) -> None:
        world = cluster.worlds["proxy"]
        ends = datetime.fromtimestamp(world.wall_ms() / 1000 + 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await reload_proxy(cluster, NEW, SECRET, ends)
        assert len(cluster.control.links) == 2
        assert 0 < (await cluster.metrics())["fairlead_secret_previous_seconds_left"] < 60
        reload_node(cluster, "alpha", NEW)
        await trio.sleep(65)
        assert list(cluster.control.links) == ["alpha"]
        assert cluster.observer.rejects()["handshake"][Reason.PREVIOUS_KEY_EXPIRED.value] >= 2
        reload_node(cluster, "beta", NEW)
        await cluster.until(lambda: len(cluster.control.links) == 2)

    await running(tmp_path, autojump_clock, scenario)
