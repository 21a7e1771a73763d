"""Guards of the dispatch surface on real processes: what was used stays used, whatever is restarted; what is limited
stays limited; and every reason with which a guard refuses.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.config_text import strong
from tests.support.ctl import ctl
from tests.support.postgres import Databases
from tests.support.processes import PROXY, Answer, Fleet, http_call, until
from tests.support.provocations import OF_GUARDS, Provocations, refused

from fairlead.protocol.reasons import Reason
from fairlead.runtime.request_signing import sign, signing_keys

pytestmark = pytest.mark.e2e

HMAC_SECRET = strong("e2e guards")
(SIGNING,) = signing_keys([bytes.fromhex(HMAC_SECRET)])
OTHER = "proxy-b"
DISPATCH, REPLAY = "/api/dispatch", "/api/ops/reliability/dlq/replay"
ECHO = json.dumps({"command": "demo:echo", "args": {"text": "x"}}).encode()
_nonces = (f"nonce-{number:016}" for number in itertools.count())
_here = Provocations()
provokes = _here.provokes


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> None:
    _here.tests_run.add(request.node.name)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Signatures are observed, so that others are served without one; who has nothing else is held to theirs."""
    made = Fleet(
        tmp_path_factory.mktemp("guards"), nodes=("lobby-1",), lab=True,
        proxy={"dispatch": {"integrity_mode": "observe", "max_nonces": 100}, "retry": {"max_attempts": 1}},
        environ={"DISPATCH_HMAC_SECRET": HMAC_SECRET},
    )  # fmt: skip
    with closing(made.start()):
        yield made


def strict(folder: Path, **more: Any) -> Fleet:
    """Nothing is submitted without a signature. The secret's name is runbook 001's."""
    return Fleet(folder, nodes=("lobby-1",), environ={"TRANSBOT_HMAC_SECRET": HMAC_SECRET}, **more)


def signed(nonce: str, body: bytes = ECHO, target: str = DISPATCH) -> dict[str, str]:
    return {"x-transbot-signature": sign(SIGNING, "POST", target, body, int(time.time() * 1000), nonce)}


def submit(
    fleet: Fleet, headers: dict[str, str], at: str = PROXY, body: bytes = ECHO, wait_s: int = 0
) -> Answer:
    """As a program would that has the signing secret and nothing else."""
    return http_call(fleet.ops_ports[at], "POST", DISPATCH, body, {**headers, "prefer": f"wait={wait_s}"})


def key_of(fleet: Fleet, role: str = "operator", **fields: Any) -> str:
    answer = fleet.ops("POST", "/api/operator-keys", {"role": role, **fields})
    assert answer.status == 201, answer
    return str(answer.json()["key"])


# -- tenants and permissions


def test_another_tenants_runs_and_commands_without_their_permission(fleet: Fleet) -> None:
    acme, limited = key_of(fleet, tenant="acme"), key_of(fleet, scopes=["dispatch"])
    theirs = fleet.dispatch("demo:echo", text="x").json()["run_id"]
    with provokes(fleet, Reason.SECURITY_TENANT_MISMATCH):
        body = {"command": "demo:echo", "args": {"text": "x"}, "tenant": "other"}
        refused(fleet.ops("POST", DISPATCH, body, key=acme), Reason.SECURITY_TENANT_MISMATCH)
    with provokes(fleet, Reason.SECURITY_READ_TENANT_MISMATCH):
        refused(fleet.ops("GET", f"/api/runs/{theirs}", key=acme), Reason.SECURITY_READ_TENANT_MISMATCH)
    with provokes(fleet, Reason.PERMISSION_DENIED):
        refused(fleet.ops("POST", DISPATCH, {"command": "lab:kick"}, key=limited), Reason.PERMISSION_DENIED)
    assert fleet.dispatch("lab:kick").json()["result"] == "kicked"


# -- replay


def test_a_recorded_request_and_a_table_that_is_full(fleet: Fleet) -> None:
    headers = signed(next(_nonces))
    assert submit(fleet, headers, wait_s=5).json()["status"] == "COMPLETED"
    with provokes(fleet, Reason.SECURITY_REPLAY_DETECTED):
        refused(submit(fleet, headers), Reason.SECURITY_REPLAY_DETECTED)
    for _ in range(99):
        assert submit(fleet, signed(next(_nonces))).status == 202
    with provokes(fleet, Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, times=2):
        for _ in range(2):
            refused(submit(fleet, signed(next(_nonces))), Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE)
    refused(submit(fleet, headers), Reason.SECURITY_REPLAY_DETECTED)
    found = json.loads(fleet.ops("GET", "/metrics/reasons").body)
    assert found["last_5_minutes"]["security"]["security_replay_guard_unavailable"] == 2
    assert found["observed"]["since_start"]["security"]["SIGNATURE_MISSING"] > 0, "others were not signed"


def test_a_recorded_request_is_refused_after_a_sigkill_too(tmp_path: Path) -> None:
    with closing(strict(tmp_path).start()) as fleet:
        taken = [signed(next(_nonces)) for _ in range(20)]
        for headers in taken:
            assert submit(fleet, headers).status == 202
        fleet.kill(PROXY)
        fleet.restart(PROXY)
        fleet.wait_ready()
        for headers in taken:
            refused(submit(fleet, headers), Reason.SECURITY_REPLAY_DETECTED)
        refused(fleet.ops("POST", DISPATCH, json.loads(ECHO)), Reason.SIGNATURE_MISSING)


def test_two_proxies_take_a_recorded_request_once(tmp_path: Path, postgres: Databases) -> None:
    url = postgres.create_database()
    try:
        with closing(strict(tmp_path, more_proxies=(OTHER,), proxy={"store": {"url": url}}).start()) as fleet:
            statuses: list[int] = []

            def send(at: str, headers: dict[str, str]) -> None:
                statuses.append(submit(fleet, headers, at).status)

            for _ in range(15):
                headers = signed(next(_nonces))
                threads = [threading.Thread(target=send, args=(at, headers)) for at in (PROXY, OTHER) * 2]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(20)
            assert Counter(statuses) == {202: 15, 409: 45}
            runs = fleet.ops("GET", "/api/runs?limit=1000").json()["runs"]
            assert len(runs) == 15
    finally:
        postgres.drop_database(url)


def test_a_store_that_is_gone_closes_the_guard_and_leaves_people_their_eyes(
    tmp_path: Path, postgres: Databases
) -> None:
    url = postgres.create_database()
    with closing(strict(tmp_path, proxy={"store": {"url": url}}).start()) as fleet:
        assert submit(fleet, signed(next(_nonces))).status == 202
        postgres.drop_database(url)
        headers = signed(next(_nonces))
        refused(submit(fleet, headers), Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE)
        for path in ("/status", "/metrics", "/metrics/reasons"):
            assert fleet.ops("GET", path).status == 200, path
        assert fleet.ops("GET", "/health").status in (200, 503)
        refused(fleet.ops("POST", "/api/nodes/lobby-1/resync"), Reason.STORE_UNAVAILABLE)


AT_ONCE = {
    "reliability": {"dlq_replay_min_age_ms": 0, "dlq_replay_worker_enabled": True},
    "retry": {"max_attempts": 1},
}


def test_the_drill_of_runbook_001_with_nothing_but_a_signature(tmp_path: Path) -> None:
    """A bad one is 401, a good one 200, on the replay itself. It replays what it submitted, and nobody else's; with
    force nothing; and where the configuration takes replay from it, it is 403."""
    target = "/api/ops/reliability/dlq/replay"

    def call(path: str, asked: dict[str, Any], **headers: str) -> Answer:
        body = json.dumps(asked).encode()
        return http_call(fleet.ops_port, "POST", path, body, {**signed(next(_nonces), body, path), **headers})

    def failed(**headers: str) -> str:
        asked = {"command": "demo:fail", "args": {"transient": True, "message": "on purpose"}}
        run = call(DISPATCH, asked, prefer="wait=10", **headers).json()
        assert run["status"] == "FAILED", run
        return f"dlq-{run['run_id']}"

    drill = {"company_id": "default", "max": 25, "dry_run": True}
    with closing(strict(tmp_path, proxy=AT_ONCE).start()) as fleet:
        assert call(target, drill, **{"x-transbot-signature": "v1=" + "0" * 64}).status == 401
        assert call(target, drill).status == 200
        own, others = failed(), failed(**{"x-ops-key": key_of(fleet)})
        assert call(target, drill).json()["matched"] == 1
        refused(call(target, {"id": others}), Reason.DLQ_RECORD_UNKNOWN)
        refused(call(target, {"id": own, "force": True}), Reason.DLQ_FORCE_FORBIDDEN)
        assert call(target, {"id": own}).status == 202
        refused(call("/api/nodes/lobby-1/pause", {}), Reason.SCOPE_MISSING)
    narrow = {"dispatch": {"hmac_scopes": ["dispatch", "read"]}}
    with closing(strict(tmp_path / "narrow", proxy=narrow).start()) as fleet:
        refused(call(target, drill), Reason.SCOPE_MISSING)


NONCES = 10_000
SENDERS = 8


def test_ten_thousand_nonces_are_each_taken_once(tmp_path: Path) -> None:
    """As fast as they can be sent; then some of them again."""
    with closing(strict(tmp_path, proxy={"dispatch": {"max_nonces": NONCES}}).start()) as fleet:
        lock, answers = threading.Lock(), Counter[int]()
        ready = [[signed(next(_nonces)) for _ in range(NONCES // SENDERS)] for _ in range(SENDERS)]

        def send(mine: list[dict[str, str]]) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", fleet.ops_port, timeout=30)
            found: Counter[int] = Counter()
            for headers in mine:
                connection.request("POST", DISPATCH, ECHO, headers)
                response = connection.getresponse()
                response.read()
                found[response.status] += 1
            connection.close()
            with lock:
                answers.update(found)

        threads = [threading.Thread(target=send, args=(mine,)) for mine in ready]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert answers == {202: NONCES}
        refused(submit(fleet, signed(next(_nonces))), Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE)
        for mine in ready:
            for headers in (mine[0], mine[-1]):
                refused(submit(fleet, headers), Reason.SECURITY_REPLAY_DETECTED)
        until(
            lambda: fleet.ops("GET", "/status").json()["dispatch"]["runs"].get("COMPLETED") == NONCES,
            "all ran",
            60,
        )


# -- rates


def failed(fleet: Fleet, tenant: str) -> str:
    run_id = fleet.dispatch("demo:fail", tenant=tenant).json()["run_id"]
    return f"dlq-{run_id}"


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("limited"), nodes=("lobby-1",),
        proxy={
            "reliability": {"ops_rate_max": 40, "ops_rate_window_ms": 3_600_000, "dlq_replay_min_age_ms": 0},
            "retry": {"max_attempts": 1},
        },
    )  # fmt: skip
    with closing(made.start()):
        yield made


def test_the_fourth_replay_is_too_many_and_stays_so_after_a_restart(limited: Fleet) -> None:
    """Runbook 001's drill: three pass, the fourth is 429; and a restart gives nobody another burst."""
    key = key_of(limited)
    records = [failed(limited, "drill") for _ in range(5)]

    def replay(number: int) -> Answer:
        return limited.ops("POST", REPLAY, {"id": records[number], "tenant": "drill", "force": True}, key=key)

    said = [replay(number) for number in range(3)]
    assert [answer.status for answer in said] == [202] * 3
    assert said[0].headers["ratelimit-policy"] == '"replay";q=3;w=300, "ops";q=40;w=3600'
    fourth = refused(replay(3), Reason.REPLAY_RATE_LIMITED)
    assert 90 <= int(fourth.headers["retry-after"]) <= 100
    assert fourth.headers["ratelimit"].startswith('"replay";r=0;t='), fourth
    limited.kill(PROXY)
    limited.restart(PROXY)
    until(lambda: http_call(limited.ops_port, "GET", "/health").status == 200, "it is back")
    refused(replay(4), Reason.REPLAY_RATE_LIMITED)


def test_operators_calls_are_limited_across_a_restart_until_somebody_clears_them(limited: Fleet) -> None:
    key = key_of(limited, "viewer")
    calls = [limited.ops("GET", "/api/commands", key=key) for _ in range(41)]
    assert [answer.status for answer in calls] == [200] * 40 + [429]
    refused(calls[-1], Reason.OPS_RATE_LIMITED)
    assert calls[-1].headers["ratelimit"].startswith('"ops";r=0;t=')
    assert calls[0].headers["ratelimit-policy"] == '"ops";q=40;w=3600'
    assert limited.ops("GET", "/api/commands").status == 200, "another caller"
    assert limited.ops("GET", "/health", key=key).status == 200, "load balancers ask here"
    time.sleep(1.5)  # what is counted by the process is written down once a second
    limited.kill(PROXY)
    limited.restart(PROXY)
    until(lambda: http_call(limited.ops_port, "GET", "/health").status == 200, "it is back")
    refused(limited.ops("GET", "/api/commands", key=key), Reason.OPS_RATE_LIMITED)
    cleared = ctl(limited, "rate-limits", "clear", "ops:")
    assert cleared.status == 0, cleared
    assert limited.ops("GET", "/api/commands", key=key).status == 200
    events = limited.ops("GET", "/api/ops/reliability/audit").json()["events"]
    assert "rate_limits_cleared" in [each["action"] for each in events]


def test_too_many_calls_harm_nobody_else(fleet: Fleet, limited: Fleet) -> None:
    key = key_of(limited, "viewer")
    for _ in range(40):
        assert limited.ops("GET", "/api/commands", key=key).status == 200
    before = limited.rejects(Reason.OPS_RATE_LIMITED)
    refused(limited.ops("GET", "/api/commands", key=key), Reason.OPS_RATE_LIMITED)
    assert limited.rejects(Reason.OPS_RATE_LIMITED) == before + 1
    assert limited.refusals_logged(Reason.OPS_RATE_LIMITED)
    limited.serves()
    _here.reasons.add(Reason.OPS_RATE_LIMITED)


# -- the end


def test_every_reason_of_guards_was_provoked(request: pytest.FixtureRequest) -> None:
    ours = {item.name for item in request.session.items if item.path == Path(__file__)}
    if ours != _here.tests_run:
        pytest.skip("only with the whole file")
    missing = sorted(each.value for each in OF_GUARDS - _here.reasons)
    assert not missing, f"not provoked: {', '.join(missing)}"
