"""Every reason of runs, replays, callbacks and applications that a socket can provoke, on real processes.

Judged as in test_reject_reasons.py. A guard of replays refuses no request: it is a verdict in a dry run's answer, or
the reason for which the worker lets a record wait, and is counted there.
"""

from __future__ import annotations

import hashlib
import hmac
import http.server
import itertools
import json
import secrets
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import PROXY, Answer, Fleet, http_call, until
from tests.support.provocations import ELSEWHERE, OF_RUNS, Provocations, refused
from tests.support.raw_peer import Closed, RawPeer, node_key

from fairlead.protocol import messages as m
from fairlead.protocol.keys import Role
from fairlead.protocol.reasons import TRAITS, Reason

pytestmark = pytest.mark.e2e

TESTS = Path(__file__).parents[1]
DLQ = "/api/ops/reliability/dlq"
RUN = {"command": "demo:echo", "args": {"text": "x"}}
HOUR_MS = 3_600_000
SIGNING_SECRET = secrets.token_hex(32)
SECOND_KEY = secrets.token_hex(24)
TOKEN = secrets.token_hex(24)
_here = Provocations()
provokes, _provoked = _here.provokes, _here.reasons
_tenants = (f"tenant-{number}" for number in itertools.count(1))


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> None:
    _here.tests_run.add(request.node.name)


@pytest.fixture
def tenant() -> str:
    """One of its own for each test: what is counted for a tenant is counted for nobody else."""
    return next(_tenants)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("fleet"),
        proxy={
            "reliability": {
                "dlq_replay_worker_enabled": True, "dlq_replay_interval_ms": 100, "dlq_replay_min_age_ms": 0,
                "dlq_replay_min_retry_interval_ms": HOUR_MS, "dlq_replay_max_count": 2,
            },
            "retry": {"max_attempts": 1},
            "clients": [
                {"id": "shop"}, {"id": "other"}, {"id": "reader", "scopes": []}, {"id": "single", "links_max": 1},
            ],
            "worker": {"callback_allowed_hosts": ["127.0.0.1"]},
        },
    )  # fmt: skip
    more(made, PROXY, WORKER_CALLBACK_SIGNING_SECRET=SIGNING_SECRET,
         RELIABILITY_OPS_KEYS=f"{made.ops_key},{SECOND_KEY}")  # fmt: skip
    more(made, "lobby-1", TASKS_AUTH_TOKEN=TOKEN)
    with closing(made.start()):
        yield made


@pytest.fixture(scope="module")
def reluctant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Lets every dead letter rest for an hour, and has one replay a month."""
    made = Fleet(
        tmp_path_factory.mktemp("reluctant"),
        nodes=("lobby-1",),
        proxy={
            "reliability": {
                "dlq_replay_worker_enabled": True, "dlq_replay_interval_ms": 100, "dlq_replay_min_age_ms": HOUR_MS,
                "dlq_replay_daily_limit": 5, "dlq_replay_monthly_limit": 1,
            },
            "retry": {"max_attempts": 1},
        },
    )  # fmt: skip
    with closing(made.start()):
        yield made


def more(fleet: Fleet, process: str, **environ: str) -> None:
    """Put into a process's environment, before it starts."""
    found = fleet.processes[process]
    found.environ = {**found.environ, **environ}


# -- submissions and their ends


def dispatch(fleet: Fleet, **body: Any) -> Answer:
    return fleet.ops("POST", "/api/dispatch", {**RUN, **body})


def the_run(fleet: Fleet, run_id: str) -> Any:
    return fleet.ops("GET", f"/api/runs/{run_id}").json()


@pytest.mark.parametrize("at", ["tomorrow", "2100-01-01T00:00:00Z", "2030-01-01T00:00:00"])
def test_a_schedule_that_is_none(fleet: Fleet, at: str) -> None:
    with provokes(fleet, Reason.SCHEDULE_INVALID):
        refused(dispatch(fleet, schedule_at=at), Reason.SCHEDULE_INVALID)


def test_a_draining_tenant(fleet: Fleet, tenant: str) -> None:
    agents = {"tenant": tenant, "draining": True}
    assert fleet.ops("PUT", "/api/controls/agents", agents).status == 200
    with provokes(fleet, Reason.TENANT_DRAINING):
        refused(dispatch(fleet, tenant=tenant), Reason.TENANT_DRAINING)


def test_a_cancelled_run_and_one_that_has_ended(fleet: Fleet) -> None:
    run_id = dispatch(fleet, delay_ms=600_000).json()["run_id"]
    with provokes(fleet, Reason.RUN_CANCELLED):
        assert fleet.ops("POST", f"/api/runs/{run_id}/cancel").status == 200
    run = the_run(fleet, run_id)
    assert (run["status"], run["reason"]) == ("CANCELLED", "RUN_CANCELLED")
    with provokes(fleet, Reason.RUN_ALREADY_ENDED):
        refused(fleet.ops("POST", f"/api/runs/{run_id}/cancel"), Reason.RUN_ALREADY_ENDED)


def test_a_retry_of_what_did_not_fail_of_anothers_and_of_what_is_retried(fleet: Fleet) -> None:
    good = fleet.dispatch("demo:echo", text="x").json()["run_id"]
    with provokes(fleet, Reason.RUN_NOT_FAILED):
        refused(fleet.ops("POST", f"/api/runs/{good}/retry"), Reason.RUN_NOT_FAILED)
    failed = fleet.dispatch("demo:fail", target="lobby-1").json()["run_id"]
    with provokes(fleet, Reason.RUN_NOT_OWNED):
        refused(fleet.ops("POST", f"/api/runs/{failed}/retry", key=SECOND_KEY), Reason.RUN_NOT_OWNED)
    with paused(fleet, "lobby-1"):
        assert fleet.ops("POST", f"/api/runs/{failed}/retry").status == 202
        with provokes(fleet, Reason.DLQ_NOT_QUEUED):
            refused(fleet.ops("POST", f"/api/runs/{failed}/retry"), Reason.DLQ_NOT_QUEUED)


@contextmanager
def paused(fleet: Fleet, node: str) -> Iterator[None]:
    assert fleet.ops("POST", f"/api/nodes/{node}/pause").status == 200
    try:
        yield
    finally:
        assert fleet.ops("POST", f"/api/nodes/{node}/resume").status == 200


def test_a_node_on_which_much_fails_for_passing_reasons(fleet: Fleet) -> None:
    """One after the other until its circuit opens: how many that takes depends on what went before."""
    with provokes(fleet, Reason.CIRCUIT_OPEN):
        before = fleet.rejects(Reason.CIRCUIT_OPEN)
        for _ in range(20):
            ended = fleet.dispatch("demo:fail", target="lobby-2", transient=True).json()
            assert ended["reason"] == "HANDLER_FAILED_TRANSIENT"
            if fleet.rejects(Reason.CIRCUIT_OPEN) > before:
                break
    assert fleet.metric("fairlead_circuits_opened_total", node="lobby-2") == 1
    assert fleet.dispatch("demo:echo", target="lobby-2", text="x").json()["status"] == "COMPLETED"


# -- applications


@contextmanager
def application(fleet: Fleet, identity: str) -> Iterator[RawPeer]:
    """A hand-made application with a link."""
    key = node_key(fleet.secret, identity, role=Role.CLIENT)
    with RawPeer(fleet.control, identity, key, role=Role.CLIENT) as made:
        assert made.shake()[0] == ""
        made.say(m.ClientHello("raw/1"))
        yield made


def submit(one: RawPeer, run_id: str) -> m.SubmitOutcome:
    one.say(m.Submit((m.Submission(run_id, "demo:echo", b'{"text":"x"}'),)))
    (outcome,) = one.expect(m.Submitted).items
    return outcome


def test_a_link_too_many_of_one_application(fleet: Fleet) -> None:
    with application(fleet, "single") as first:
        first.expect(m.ClientWelcome)
        with provokes(fleet, Reason.CLIENT_LINK_LIMIT), application(fleet, "single") as second:
            told = second.rest()[-1]
            assert isinstance(told, Closed)
            assert told.reason == "CLIENT_LINK_LIMIT"
        assert submit(first, str(uuid.uuid4())).reason == ""


def test_an_application_without_the_scope(fleet: Fleet) -> None:
    with application(fleet, "reader") as one, provokes(fleet, Reason.SCOPE_MISSING):
        assert submit(one, str(uuid.uuid4())).reason == "SCOPE_MISSING"


def test_a_run_id_that_is_anothers(fleet: Fleet) -> None:
    run_id = str(uuid.uuid4())
    with application(fleet, "shop") as one, application(fleet, "other") as another:
        assert submit(one, run_id).reason == ""
        with provokes(fleet, Reason.RUN_ID_TAKEN):
            assert submit(another, run_id).reason == "RUN_ID_TAKEN"
        assert submit(one, run_id).reason == "", "who has it may say it again"


def test_an_application_that_is_not_listed(fleet: Fleet) -> None:
    with provokes(fleet, Reason.CLIENT_UNKNOWN):
        refused(fleet.ops("POST", "/api/clients/nobody/revoke"), Reason.CLIENT_UNKNOWN)


# -- dead letters


def failed(fleet: Fleet, tenant: str, target: str = "any", *, transient: bool = True) -> str:
    """A dead letter; the id of its record."""
    run = fleet.dispatch("demo:fail", target, tenant=tenant, transient=transient).json()
    assert run["status"] == "FAILED", run
    return f"dlq-{run['run_id']}"


def replay(fleet: Fleet, tenant: str, **body: Any) -> Answer:
    return fleet.ops("POST", f"{DLQ}/replay", {"tenant": tenant, **body})


def record(fleet: Fleet, record_id: str) -> Any:
    return fleet.ops("GET", f"{DLQ}/{record_id}").json()


def replayed(fleet: Fleet, tenant: str, record_id: str, **body: Any) -> None:
    """Replay it, and wait until it has failed again."""
    count = record(fleet, record_id)["replay_count"]
    assert replay(fleet, tenant, id=record_id, **body).status == 202
    until(
        lambda: (
            (found := record(fleet, record_id))["state"] == "queued"
            and not found["replay_run_id"]
            and found["replay_count"] == count + 1
        ),
        f"{record_id} was replayed", more=fleet.tails,
    )  # fmt: skip


def verdicts(fleet: Fleet, tenant: str) -> list[str]:
    """What a dry run says of every dead letter of a tenant, those that would run first."""
    found = replay(fleet, tenant, dryRun=True).json()["verdicts"]
    return sorted(each.get("reason", "") for each in found)


def held_back(fleet: Fleet, reason: Reason) -> int:
    """How often the worker let a record wait for this reason."""
    return int(fleet.ops("GET", f"{DLQ}/replay-worker").json()["skippedByReason"].get(reason.value, 0))


def test_a_replay_of_nothing(fleet: Fleet, tenant: str) -> None:
    with provokes(fleet, Reason.DLQ_RECORD_UNKNOWN, times=2):
        refused(replay(fleet, tenant, id="dlq-nothing"), Reason.DLQ_RECORD_UNKNOWN)
        refused(fleet.ops("GET", f"{DLQ}/dlq-nothing"), Reason.DLQ_RECORD_UNKNOWN)


def test_a_plan_that_is_not_what_was_shown(fleet: Fleet, tenant: str) -> None:
    record_id = failed(fleet, tenant)
    with provokes(fleet, Reason.DLQ_PLAN_CHANGED):
        refused(replay(fleet, tenant, id=record_id, plan_hash="0" * 32), Reason.DLQ_PLAN_CHANGED)
    assert record(fleet, record_id)["state"] == "queued"


def test_what_no_replay_mends_and_asking_too_often(fleet: Fleet, tenant: str) -> None:
    record_id = failed(fleet, tenant, transient=False)
    assert verdicts(fleet, tenant) == ["DLQ_NOT_TRANSIENT"]
    with provokes(fleet, Reason.DLQ_REPLAY_EMPTY, times=3):
        for _ in range(3):
            answer = refused(replay(fleet, tenant, id=record_id), Reason.DLQ_REPLAY_EMPTY)
            assert "DLQ_NOT_TRANSIENT" in answer.json()["detail"]
    _provoked.add(Reason.DLQ_NOT_TRANSIENT)
    with provokes(fleet, Reason.REPLAY_RATE_LIMITED):
        refused(replay(fleet, tenant, id=record_id), Reason.REPLAY_RATE_LIMITED)
    assert verdicts(fleet, tenant) == ["DLQ_NOT_TRANSIENT"], "a dry run is not limited"


def test_a_replay_that_goes_on_failing(fleet: Fleet, tenant: str) -> None:
    records = [failed(fleet, tenant) for _ in range(2)]
    with provokes(fleet, Reason.DLQ_REPLAY_STOPPED):
        assert replay(fleet, tenant).status == 202
    found = [record(fleet, each) for each in records]
    assert {each["state"] for each in found} == {"queued"}
    assert sorted(each["replay_count"] for each in found) == [0, 1]
    assert sorted(each["deferred_reason"] for each in found) == ["", "DLQ_REPLAY_STOPPED"]


def test_a_record_that_was_replayed_as_often_as_it_may_be(fleet: Fleet, tenant: str) -> None:
    record_id = failed(fleet, tenant)
    for _ in range(2):
        replayed(fleet, tenant, record_id, force=True)
    assert verdicts(fleet, tenant) == ["DLQ_MAX_REPLAYS"]
    assert "DLQ_MAX_REPLAYS" in refused(
        replay(fleet, tenant, id=record_id), Reason.DLQ_REPLAY_EMPTY
    ).json()["detail"]  # fmt: skip
    _provoked.add(Reason.DLQ_MAX_REPLAYS)


def test_a_record_that_was_replayed_a_moment_ago_waits(fleet: Fleet, tenant: str) -> None:
    record_id = failed(fleet, tenant)
    replayed(fleet, tenant, record_id)
    before = held_back(fleet, Reason.DLQ_TOO_SOON)
    assert replay(fleet, tenant, id=record_id).status == 202, "it may be asked for, and waits"
    until(lambda: held_back(fleet, Reason.DLQ_TOO_SOON) > before, "it waits", more=fleet.tails)
    until(lambda: record(fleet, record_id)["deferred_reason"] == "DLQ_TOO_SOON", "and says why")
    assert record(fleet, record_id)["replay_count"] == 1
    _provoked.add(Reason.DLQ_TOO_SOON)


def test_a_young_record_waits(reluctant: Fleet, tenant: str) -> None:
    record_id = failed(reluctant, tenant)
    assert replay(reluctant, tenant, id=record_id).status == 202
    until(lambda: held_back(reluctant, Reason.DLQ_TOO_YOUNG), "it waits", more=reluctant.tails)
    until(lambda: record(reluctant, record_id)["deferred_reason"] == "DLQ_TOO_YOUNG", "and says why")
    assert record(reluctant, record_id)["replay_count"] == 0
    reluctant.serves()
    _provoked.add(Reason.DLQ_TOO_YOUNG)


def test_pauses_hold_replays_back(fleet: Fleet, tenant: str) -> None:
    failed(fleet, tenant, "lobby-1")
    assert verdicts(fleet, tenant) == [""]
    with paused(fleet, "lobby-1"):
        assert verdicts(fleet, tenant) == ["DLQ_NODE_PAUSED"]
    agents = {"tenant": tenant, "paused": True}
    assert fleet.ops("PUT", "/api/controls/agents", agents).status == 200
    assert verdicts(fleet, tenant) == ["DLQ_TENANT_PAUSED"]
    assert tenant in fleet.ops("GET", "/health", key=None).json()["checks"]["dispatch"]["detail"]
    _provoked.update((Reason.DLQ_NODE_PAUSED, Reason.DLQ_TENANT_PAUSED))


def test_budgets_hold_replays_back(fleet: Fleet, reluctant: Fleet, tenant: str) -> None:
    for _ in range(2):
        failed(fleet, tenant)
        failed(reluctant, tenant)
    budget = {"tenant": tenant, "daily_limit": 1, "monthly_limit": 5}
    assert fleet.ops("PUT", "/api/budgets", budget).status == 200
    assert verdicts(fleet, tenant) == ["", "DLQ_BUDGET_DAILY"]
    assert verdicts(reluctant, tenant) == ["", "DLQ_BUDGET_MONTHLY"]
    _provoked.update((Reason.DLQ_BUDGET_DAILY, Reason.DLQ_BUDGET_MONTHLY))


def test_replay_that_is_turned_off(reluctant: Fleet) -> None:
    """The last test that needs this fleet: its worker stays off."""
    reluctant.kill(PROXY)
    more(reluctant, PROXY, RELIABILITY_DLQ_REPLAY_WORKER_ENABLED="false")
    reluctant.restart(PROXY)
    worker = until(
        lambda: (found := reluctant.ops("GET", f"{DLQ}/replay-worker").json())["state"] == "off" and found,
        "the worker is off", more=reluctant.tails,
    )  # fmt: skip
    assert worker["reason"] == "DLQ_REPLAY_OFF"
    _provoked.add(Reason.DLQ_REPLAY_OFF)


# -- callbacks


class _Receiver(http.server.BaseHTTPRequestHandler):
    """Answers what the path says, and wants to be left alone for a while."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(int(self.path[1:]))
        self.send_header("retry-after", "300")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    """Somebody else's server; its URL up to the path."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "http://127.1/", "http://[::1]/", "http://localhost/", "ftp://x/"]
)
def test_a_callback_to_where_nobody_outside_may_send_us(fleet: Fleet, url: str) -> None:
    with provokes(fleet, Reason.CALLBACK_URL_REFUSED):
        refused(dispatch(fleet, callback_url=url), Reason.CALLBACK_URL_REFUSED)


@pytest.mark.parametrize(
    ("status", "reason"), [(503, Reason.CALLBACK_NOT_DELIVERED), (410, Reason.CALLBACK_DEAD)]
)
def test_a_callback_that_is_not_taken(fleet: Fleet, receiver: str, status: int, reason: Reason) -> None:
    with provokes(fleet, reason):
        run_id = dispatch(fleet, callback_url=f"{receiver}/{status}").json()["run_id"]
        until(lambda: the_run(fleet, run_id)["status"] == "COMPLETED", "the run is none the worse")


def told(run_id: str, **changed: Any) -> dict[str, Any]:
    """A result as a worker tells it."""
    event = {
        "eventId": str(uuid.uuid4()),
        "runId": run_id,
        "fence": 1,
        "nodeId": "lobby-1",
        "status": "COMPLETED",
    }
    return {**event, **changed}  # fmt: skip


def post(fleet: Fleet, run_id: str, event: Any, *, secret: str = SIGNING_SECRET, age_s: int = 0) -> Answer:
    body = json.dumps(event).encode()
    stamp = str(int(time.time()) - age_s)
    signed = hmac.new(bytes.fromhex(secret), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    headers = {"x-worker-signature": signed, "x-worker-timestamp": stamp}
    return http_call(fleet.ops_port, "POST", f"/callbacks/runs/{run_id}", body, headers)


def test_a_result_that_nobody_signed_or_long_ago(fleet: Fleet) -> None:
    run_id = dispatch(fleet, delay_ms=600_000).json()["run_id"]
    with provokes(fleet, Reason.CALLBACK_SIGNATURE_INVALID):
        answer = post(fleet, run_id, told(run_id), secret=secrets.token_hex(32))
        refused(answer, Reason.CALLBACK_SIGNATURE_INVALID)
    with provokes(fleet, Reason.CALLBACK_TIMESTAMP_INVALID, times=2):
        for age_s in (3_600, -3_600):
            answer = post(fleet, run_id, told(run_id), age_s=age_s)
            refused(answer, Reason.CALLBACK_TIMESTAMP_INVALID)
    assert the_run(fleet, run_id)["status"] == "PENDING"


def test_a_signed_result_that_is_none(fleet: Fleet) -> None:
    run_id = dispatch(fleet, delay_ms=600_000).json()["run_id"]
    events = [
        "text",
        told("another"),
        told(run_id, status="FAILED"),
        told(run_id, fence=0),
        told(run_id, x=1),
    ]
    with provokes(fleet, Reason.CALLBACK_EVENT_INVALID, times=len(events)):
        for event in events:
            refused(post(fleet, run_id, event), Reason.CALLBACK_EVENT_INVALID)
    assert the_run(fleet, run_id)["status"] == "PENDING"


def test_an_event_id_stands_for_one_body(fleet: Fleet) -> None:
    done = fleet.dispatch("demo:echo", target="lobby-1", text="x").json()["run_id"]
    event = told(done)
    assert post(fleet, done, event).json()["idempotent"] is True
    with provokes(fleet, Reason.CALLBACK_EVENT_CONFLICT):
        refused(post(fleet, done, {**event, "result": "another"}), Reason.CALLBACK_EVENT_CONFLICT)
    assert post(fleet, done, event).status == 200, "the first one goes on being taken"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer " + "0" * 48}, {"x-ops-key": TOKEN}])
def test_a_nodes_own_endpoint_wants_its_token(fleet: Fleet, headers: dict[str, str]) -> None:
    port = fleet.processes["lobby-1"].health_port
    with provokes(fleet, Reason.CALLBACK_TOKEN_INVALID, process="lobby-1"):
        answer = http_call(port, "POST", "/callbacks/replay", b"", headers)
        refused(answer, Reason.CALLBACK_TOKEN_INVALID)
    allowed = http_call(port, "POST", "/callbacks/replay", b"", {"authorization": f"Bearer {TOKEN}"})
    assert (allowed.status, allowed.json()) == (200, {"replayed": 0})


# -- the end


def test_nothing_failed_that_should_not_have(fleet: Fleet, reluctant: Fleet) -> None:
    for each in (fleet, reluctant):
        for process in each.processes.values():
            for word in ("Traceback", "INTERNAL_ERROR", " crashed "):
                assert word not in process.log(), f"{process.name}: {word}\n{each.tails()}"


@pytest.mark.parametrize("reason", ELSEWHERE, ids=[each.value for each in ELSEWHERE])
def test_what_is_provoked_elsewhere_is_named_there(reason: Reason) -> None:
    file, _ = ELSEWHERE[reason]
    text = (TESTS / file).read_text()
    assert reason.value in text or f"Reason.{reason.name}" in text


def test_every_reason_of_runs_was_provoked(request: pytest.FixtureRequest) -> None:
    assert set(TRAITS) >= OF_RUNS
    assert set() == OF_RUNS & set(ELSEWHERE)
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    if {item.name for item in ours} != _here.tests_run or len(ours) < 36 + len(ELSEWHERE):
        pytest.skip("only with the whole file")
    missing = sorted(each.value for each in OF_RUNS - _provoked)
    assert not missing, f"not provoked: {', '.join(missing)}"
    other = sorted(each.value for each in _provoked - OF_RUNS)
    assert not other, f"provoked and not listed: {', '.join(other)}"
