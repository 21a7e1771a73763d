"""The audit trail of a whole cluster: what callers do, what they are refused, and what of it may be shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import trio
from tests.support.config_text import SECRET, strong
from tests.support.memory_cluster import Cluster, Script
from trio.testing import MockClock

from fairlead.backend import Node, Secret
from fairlead.runtime.audit_chain import Row, Signer, lines_of, read_line, verify
from fairlead.runtime.secret import decode_secret

AUDIT = "/api/ops/reliability/audit"


def public_key() -> bytes:
    decoded = decode_secret(SECRET)
    assert isinstance(decoded, bytes)
    return Signer(decoded).public_key


class Privileged(Script):
    """With a command that takes a secret and needs a permission."""

    def node(self) -> Node:
        node = super().node()

        @node.command("t:login", effect="once", permission="t.login")
        async def login(
            ctx: Any, user: str, password: Annotated[str, Secret], pin: Annotated[int, Secret] | None = None,
            options: dict[str, Any] | None = None,
        ) -> str:  # fmt: skip
            "Log somebody in."
            return f"{user} has {len(password)} characters"

        return node


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@pytest.fixture
async def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    made = Cluster(tmp_path, nursery)
    made.script = Privileged()
    await made.start(nodes=("alpha",))
    return made


async def events(cluster: Cluster, *actions: str) -> list[dict[str, Any]]:
    """Oldest first."""
    _, answer = await cluster.ask("GET", f"{AUDIT}?limit=1000")
    found = [each for each in reversed(answer["events"]) if not actions or each["action"] in actions]
    assert isinstance(found, list)
    return found


async def export(cluster: Cluster, query: str = "") -> bytes:
    _, answer = await cluster.ask("GET", f"{AUDIT}/export{query}")
    assert isinstance(answer, str), answer
    return answer.encode()


async def test_a_start_and_what_nodes_announce_are_in_the_trail(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    started, announced, *_ = await events(cluster)
    assert (started["action"], started["principal"], started["detail"]["kill_switch"]) == (
        "proxy_started", "proxy:proxy", False,
    )  # fmt: skip
    assert (announced["action"], announced["principal"], announced["auth"]) == (
        "registry_changed", "node:alpha", "link",
    )  # fmt: skip
    assert "t:login" in announced["detail"]["upserts"]
    assert announced["before_hash"] != announced["after_hash"]


async def test_what_operators_do_is_in_the_trail_with_who_from_where_and_why(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    done = [
        ("node_drain", "POST", "/api/nodes/alpha/drain"), ("node_undrain", "POST", "/api/nodes/alpha/undrain"),
        ("node_pause", "POST", "/api/nodes/alpha/pause"), ("node_resume", "POST", "/api/nodes/alpha/resume"),
        ("node_resync", "POST", "/api/nodes/alpha/resync"), ("command_removed", "DELETE", "/api/commands/t:once"),
        ("callbacks_replayed", "POST", "/callbacks/replay"), ("node_revoke", "POST", "/api/nodes/alpha/revoke"),
    ]  # fmt: skip
    for _, method, path in done:
        status, answer = await cluster.ask(method, path, headers={"x-reason": "INC-7"})
        assert status in (200, 202), (path, answer)
    found = await events(cluster, *(action for action, _, _ in done))
    assert [each["action"] for each in found] == [action for action, _, _ in done]
    for each in found:
        assert each["principal"]
        assert (each["address"], each["why"], each["result"]) == ("127.0.0.1", "INC-7", "ok")
        assert each["correlation_id"]
    assert found[0]["scope"] == "alpha"


async def test_a_privileged_run_is_audited_and_its_secrets_are_shown_to_nobody(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    secret = "correct horse"
    body = {"command": "t:login", "args": {
        "user": "ann", "password": secret, "pin": 4711, "options": {"token": "hidden?"},
    }}  # fmt: skip
    status, answer = await cluster.ask("POST", "/api/dispatch", body, headers={"prefer": "wait=10"})
    assert (status, answer["result"]) == (200, "ann has 13 characters"), answer
    (event,) = await events(cluster, "privileged_dispatch")
    assert event["scope"] == answer["run_id"]
    assert event["detail"]["command"] == "t:login"
    args = event["detail"]["args"]
    assert (args["user"], args["password"], args["pin"]) == ("ann", "[redacted]", "[redacted]")
    assert args["options"].startswith("sha256:")
    _, shown = await cluster.ask("GET", f"/api/runs/{answer['run_id']}")
    assert shown["args"] == {
        "user": "ann", "password": "[redacted]", "pin": "[redacted]", "options": {"token": "hidden?"},
    }  # fmt: skip
    _, commands = await cluster.ask("GET", "/api/commands")
    login = next(each for each in commands["commands"] if each["name"] == "t:login")
    assert [each["name"] for each in login["parameters"] if each["secret"]] == ["password", "pin"]
    assert secret not in json.dumps(await events(cluster))
    await cluster.ask("DELETE", "/api/commands/t:login")
    _, shown = await cluster.ask("GET", f"/api/runs/{answer['run_id']}")
    assert set(shown["args"].values()) == {"[redacted]"}, "nobody knows any more which are secret"


async def test_a_plain_run_leaves_no_row(autojump_clock: MockClock, cluster: Cluster) -> None:
    before = len(await events(cluster))
    await cluster.ask("POST", "/api/dispatch", {"command": "t:step", "args": {"name": "a"}})
    assert len(await events(cluster)) == before


async def test_an_operators_cancel_and_retry_are_in_the_trail(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    body = {"command": "t:step", "args": {"name": "late"}, "delay_ms": 60_000}
    _, answer = await cluster.ask("POST", "/api/dispatch", body)
    status, _ = await cluster.ask("POST", f"/api/runs/{answer['run_id']}/cancel")
    assert status == 200
    cluster.script.failing = True
    once = {"command": "t:once", "args": {"name": "bad"}}
    _, failed = await cluster.ask("POST", "/api/dispatch", once, headers={"prefer": "wait=10"})
    status, again = await cluster.ask("POST", f"/api/runs/{failed['run_id']}/retry")
    assert status == 202, again
    cancelled, retried = await events(cluster, "run_cancel", "run_retry")
    assert cancelled["scope"] == answer["run_id"]
    assert (retried["scope"], retried["detail"]) == (failed["run_id"], {"new_run_id": again["run_id"]})


async def test_a_flood_of_denials_is_a_row_a_minute_that_counts_the_others(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    for _ in range(50):
        status, _ = await cluster.ask("GET", "/api/nodes", key=strong("nobody"))
        assert status == 401
    await trio.sleep(1)
    (first,) = await events(cluster, "denied")
    assert (first["result"], first["address"], first["failure_count"], first["detail"]["left_out"]) == (
        first["scope"], "127.0.0.1", 1, 0,
    )  # fmt: skip
    await trio.sleep(61)
    await cluster.ask("GET", "/api/nodes", key=strong("nobody"))
    await trio.sleep(1)
    assert [each["detail"]["left_out"] for each in await events(cluster, "denied")] == [0, 49]


async def test_what_is_denied_of_a_batch_is_in_the_trail_item_by_item(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    _, made = await cluster.ask("POST", "/api/operator-keys", {"role": "operator", "tenant": "acme"})
    key = made["key"]
    body = {"items": [
        {"command": "t:step", "args": {"name": "a"}}, {"command": "t:step", "args": {"name": "b"}, "tenant": "other"},
        {"command": "t:unknown"},
    ]}  # fmt: skip
    status, answer = await cluster.ask("POST", "/api/dispatch/batch", body, key=key)
    assert (status, [each["status"] for each in answer["items"][1:]]) == (202, ["REFUSED", "REFUSED"])
    await trio.sleep(1)
    (row,) = await events(cluster, "denied")
    assert (row["result"], row["detail"]["endpoint"]) == ("security_tenant_mismatch", "dispatch_batch")


async def test_an_export_is_verified_elsewhere(autojump_clock: MockClock, cluster: Cluster) -> None:
    for _ in range(3):
        await cluster.ask("POST", "/api/nodes/alpha/drain")
    text = await export(cluster)
    found = verify(lines_of(text), [public_key()])
    assert not found.problems
    assert found.covered_seq == found.position.seq == (await events(cluster))[-1]["seq"]
    part = await export(cluster, "?from_seq=2&limit=2")
    assert not verify(lines_of(part), partial=True, live=True).problems
    assert [line.seq for line in map(read_line, lines_of(part)) if isinstance(line, Row)] == [2, 3]
    for bad in ("?from_seq=0", "?limit=0", "?limit=1001", "?from_seq=x"):
        status, answer = await cluster.ask("GET", f"{AUDIT}/export{bad}")
        assert (status, answer["reason"]) == (400, "QUERY_INVALID"), bad


async def test_a_stop_is_in_the_trail_and_the_file_is_whole(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    cluster.stops["proxy"].set()
    await trio.sleep(30)
    lines = lines_of((cluster.folder / "audit.jsonl").read_bytes())
    found = verify(lines, [public_key()])
    assert not found.problems, found.problems
    last = next(line for line in map(read_line, reversed(lines)) if isinstance(line, Row))
    assert last.action == "proxy_stopped"


async def test_a_crash_and_a_restart_leave_one_trail(autojump_clock: MockClock, cluster: Cluster) -> None:
    await cluster.ask("POST", "/api/nodes/alpha/drain")
    cluster.scopes["proxy"].cancel()
    await trio.sleep(1)
    await cluster.start_proxy()
    await trio.sleep(70)
    lines = lines_of((cluster.folder / "audit.jsonl").read_bytes())
    found = verify(lines, [public_key()], live=True)
    assert (found.problems, found.first_seq) == ([], 1)
    actions = [line.action for line in map(read_line, lines) if isinstance(line, Row)]
    assert actions.count("proxy_started") == 2
    assert actions.count("node_drain") == 1
