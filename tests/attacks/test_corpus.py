"""Every attack of the corpus against real processes: refused with its status and reason, and no handler was reached."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.attacks.corpus import (
    ADD,
    AUDIENCE,
    CORPUS,
    DISPATCH,
    HMAC_SECRET,
    ISSUER,
    JWT_SECRET,
    PREVIOUS,
    RUNS,
    Attack,
    Scene,
    claims,
    fresh,
    part,
)
from tests.attacks.corpus import ED as ED_KEY
from tests.e2e.test_callers import ED, ES, RS, Issuer
from tests.support.issuer import key_set
from tests.support.processes import Answer, Fleet, free_port, until
from tests.support.provocations import refused

from fairlead.protocol.reasons import Family, Reason, traits
from fairlead.proxy.ops.endpoints import ENDPOINTS

pytestmark = pytest.mark.e2e

NONCES_MAX = 150


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    with closing(Issuer(tmp_path_factory.mktemp("issuer"))) as made:
        made.document = key_set(RS, ES, ED)
        yield made


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Scene]:
    fleet = Fleet(
        tmp_path_factory.mktemp("attacks"), nodes=("lobby-1",),
        proxy={"jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": issuer.url}},
        environ={
            "SSL_CERT_FILE": str(issuer.certificate), "JWT_HS256_SECRET": JWT_SECRET,
            "DISPATCH_HMAC_SECRET": HMAC_SECRET,
            "DISPATCH_HMAC_SECRET_PREVIOUS": PREVIOUS,
        },
    )  # fmt: skip
    with closing(fleet.start()):
        yield prepared(fleet)


def prepared(fleet: Fleet) -> Scene:
    made = Scene(fleet)
    for name, fields in {
        "admin": {"role": "admin"}, "operator": {"role": "operator"}, "viewer": {"role": "viewer"},
        "revoked": {"role": "admin"},
        "expired": {"role": "admin", "valid_s": 1}, "acme": {"role": "admin", "tenant": "acme"},
    }.items():  # fmt: skip
        answer = fleet.ops("POST", "/api/operator-keys", fields)
        assert answer.status == 201, answer
        made.keys[name] = answer.json()["key"]
        if name == "revoked":
            fleet.ops("POST", f"/api/operator-keys/{answer.json()['id']}/revoke")
    body = ADD.replace(b"acme", b"another")
    honest = made.call("POST", DISPATCH, body, key="admin", x_signature=fresh(body), prefer="wait=10")
    assert honest.json()["status"] == "COMPLETED", honest
    made.run_of_another = honest.json()["run_id"]
    until(lambda: made.call("GET", RUNS, key="expired").status == 401, "its key expired")
    return made


def reached(fleet: Fleet) -> tuple[float, int, object]:
    """What handlers did, how many runs there are, and what the counter of the demo's handler says."""
    lines = fleet.exposition("lobby-1").splitlines()
    executed = sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("fairlead_node_runs_total{")
    )
    runs = fleet.ops("GET", "/api/runs?limit=1000").json()["runs"]
    return executed, len(runs), fleet.ops("GET", "/api/nodes/lobby-1").json()["draining"]


@pytest.mark.parametrize(
    "attack", [each for table in CORPUS.values() for each in table],
    ids=[f"{table}: {each.name}" for table, rows in CORPUS.items() for each in rows],
)  # fmt: skip
def test_it_is_refused_and_reaches_no_handler(scene: Scene, attack: Attack) -> None:
    before = reached(scene.fleet)
    answer = attack.send(scene)
    assert (answer.status, answer.reason) == (traits(attack.reason).status, attack.reason), answer
    if traits(attack.reason).family is not Family.EDGE:
        refused(answer, attack.reason)
    assert reached(scene.fleet) == before


def test_every_name_is_one_attack() -> None:
    for rows in CORPUS.values():
        assert len({each.name for each in rows}) == len(rows)
        assert all(each.origin for each in rows)


def test_a_key_given_twice_is_refused_by_every_endpoint_with_a_body(scene: Scene) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.body and endpoint.name != "callback":  # whose signature comes first
            path, body = endpoint.path.replace("{id}", "hmac"), b'{"tenant": "a", "tenant": "b"}'
            signature = {"x_signature": fresh(body, path, endpoint.method)} if endpoint.public else {}
            answer = scene.call(endpoint.method, path, body, key="admin", **signature)
            assert answer.status == 400, (endpoint, answer)
            assert "twice" in answer.json()["detail"], (endpoint, answer)


def test_nothing_failed_unexpectedly_and_honest_callers_are_served(scene: Scene) -> None:
    assert scene.fleet.rejects(Reason.INTERNAL_ERROR) == 0, scene.fleet.tails()
    answer = scene.call("POST", DISPATCH, ADD, x_signature=fresh(), prefer="wait=10")
    assert answer.json()["status"] == "COMPLETED", answer


# -- where something is missing or full


@pytest.fixture(scope="module")
def starved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Its issuer is away, and it remembers few nonces."""
    fleet = Fleet(
        tmp_path_factory.mktemp("starved"), nodes=("lobby-1",),
        proxy={
            "jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": f"https://localhost:{free_port()}/"},
            "dispatch": {"max_nonces": NONCES_MAX},
        },
        environ={"DISPATCH_HMAC_SECRET": HMAC_SECRET},
    )  # fmt: skip
    with closing(fleet.start()):
        yield Scene(fleet)


def test_while_the_issuer_is_away_no_token_of_theirs_is_believed(starved: Scene) -> None:
    refused(starved.bearer(ED_KEY.token(claims())), Reason.JWKS_UNAVAILABLE)


def test_a_flood_of_nonces_without_the_secret_fills_nothing(starved: Scene) -> None:
    for _ in range(2 * NONCES_MAX):
        refused(starved.submit(part(fresh(), "sig", "0" * 64)), Reason.SIGNATURE_INVALID)
    assert starved.call("GET", RUNS, x_signature=fresh(b"", RUNS, "GET")).status == 200


def test_a_full_memory_of_nonces_refuses_and_lets_nothing_recorded_pass(starved: Scene) -> None:
    """Where the oldest were forgotten instead, a flood would make room for a recording (ancestor hole 2)."""
    recorded = fresh(b"", RUNS, "GET")

    def get(signature: str) -> Answer:
        return starved.call("GET", RUNS, x_signature=signature)

    assert get(recorded).status == 200
    before = reached(starved.fleet)
    until(lambda: get(fresh(b"", RUNS, "GET")).status == 503, "it is full", 30)
    refused(starved.submit(fresh()), Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE)
    refused(get(recorded), Reason.SECURITY_REPLAY_DETECTED)
    time.sleep(0.2)
    assert reached(starved.fleet) == before
