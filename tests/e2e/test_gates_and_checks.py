"""Gates and checks against real processes: what passes on a deployment that is well, and fails on one that is not."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.ctl import Said, cli
from tests.support.processes import Fleet, free_port, run_cli, to_toml

from fairlead.cli import sdk_drift
from fairlead.cli.main import main
from fairlead.cli.verify_deployment import own_set

pytestmark = pytest.mark.e2e

HMAC = secrets.token_hex(32)
BUILT = {
    "FAIRLEAD_BUILD_REF": "v9.9.9", "FAIRLEAD_BUILD_SHA": "0a1b2c3d4e5f6071",
    "FAIRLEAD_BUILD_CREATED_AT": "2030-01-31T12:00:00Z",
}  # fmt: skip
# Loaded by a proxy's process before anything else: guards are gone, one by one.
WITHOUT_GUARDS = """
import fairlead.proxy.guard.access as access
access.require = lambda caller, scope: None
import fairlead.proxy.guard.chain as chain
class Forgets(chain.NoncesLately):
    def __contains__(self, key): return False
chain.NoncesLately = Forgets
async def reserves_nothing(self, nonce): nonce.used = True
chain.Chain.use_up = reserves_nothing
chain.check_fleet = lambda caller, reading: None
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("gates"), nodes=("lobby-1",), environ=BUILT,
        proxy={"dispatch": {"public": True, "hmac_secret": HMAC}},
    )  # fmt: skip
    made.processes["lobby-1"].environ = {**made.processes["lobby-1"].environ, **BUILT}
    with closing(made.start()):
        yield made


def said(fleet: Fleet, *words: str, **environ: str) -> Said:
    """One command line against the fleet."""
    (found,) = cli(fleet, (words, {"DISPATCH_HMAC_SECRET": HMAC, **environ}))
    return found


def wrong(answer: Said) -> dict[str, str]:
    """What the report says is wrong; its verdict is the exit status."""
    report = answer.json()
    assert report["passed"] is (answer.status == 0), answer.err
    return {each["check"]: each["detail"] for each in report["findings"] if each["level"] == "error"}


# -- prod-gate


def test_the_critical_suite_passes_and_leaves_nothing_behind(fleet: Fleet) -> None:
    before = fleet.node_state("lobby-1")
    runs = len(fleet.ops("GET", "/api/runs").json()["runs"])
    answer = said(fleet, "check", "prod-gate", "--json")
    assert (answer.status, wrong(answer)) == (0, {})
    assert len(answer.json()["findings"]) >= 18
    keys = [
        each for each in fleet.ops("GET", "/api/operator-keys").json()["keys"] if "prod-gate" in each["note"]
    ]
    assert len(keys) == 2
    assert all(each["revoked_at_ms"] for each in keys)
    assert len(fleet.ops("GET", "/api/runs").json()["runs"]) == runs + 1, "one echo"
    after = fleet.node_state("lobby-1")
    assert [after[name] for name in ("paused", "draining", "connected")] == [
        before[name] for name in ("paused", "draining", "connected")
    ]


def test_without_what_it_needs_it_fails(fleet: Fleet) -> None:
    viewer = fleet.ops("POST", "/api/operator-keys", {"role": "viewer"}).json()["key"]
    rows = {
        "no key": ({"FAIRLEAD_OPS_KEY": ""}, (), "could not run"),
        "a viewer's key": ({"FAIRLEAD_OPS_KEY": viewer}, (), "keys"),
        "nobody there": ({}, ("--url", f"http://127.0.0.1:{free_port()}"), "health"),
        "no address": ({}, ("--url", "nowhere"), "health"),
        "no secret": ({"DISPATCH_HMAC_SECRET": ""}, (), "a signed request"),
        "another secret": ({"DISPATCH_HMAC_SECRET": secrets.token_hex(32)}, (), "a signed request is taken"),
    }
    asked = [
        (("check", "prod-gate", *more, "--json"), {"DISPATCH_HMAC_SECRET": HMAC, **environ})
        for environ, more, _ in rows.values()
    ]
    for (name, (_, _, expected)), answer in zip(rows.items(), cli(fleet, *asked), strict=True):
        assert answer.status == 1, name
        assert expected in wrong(answer), name


def test_each_guard_that_is_gone_is_missed(tmp_path: Path) -> None:
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text(WITHOUT_GUARDS)
    made = Fleet(
        tmp_path,
        nodes=("lobby-1",),
        environ={"PYTHONPATH": str(patched)},
        proxy={"dispatch": {"hmac_secret": HMAC}},
    )
    with closing(made.start()):
        missed = wrong(said(made, "check", "prod-gate", "--json"))
        assert {
            "no key reads nothing", "no key submits nothing", "no key operates nothing", "a viewer operates nothing",
            "a viewer replays nothing", "a signed request is not taken twice", "a tenant reads nothing of the fleet",
        } <= set(missed)  # fmt: skip
        state = made.node_state("lobby-1")
        assert (state["paused"], state["draining"]) == (False, False)


# -- verify-deployment


def addresses(fleet: Fleet) -> dict[str, str]:
    return {
        "API_BASE_URL": f"http://127.0.0.1:{fleet.ops_port}",
        "WORKER_BASE_URL": f"http://127.0.0.1:{fleet.processes['lobby-1'].health_port}",
        "WEB_BASE_URL": f"http://127.0.0.1:{fleet.http}",
    }


def test_a_deployment_that_is_one_set_is_verified(fleet: Fleet) -> None:
    answer = said(
        fleet, "verify-deployment", "--json", "--require-build", "--expect-ref", "v9.9.9", "--expect-sha", "0a1b2c3",
        "--with", own_set(), "--with", "9.9.9/1..2", **addresses(fleet),
    )  # fmt: skip
    assert (answer.status, wrong(answer)) == (0, {})
    parts = {each["part"]: each for each in answer.json()["parts"]}
    assert parts["proxy proxy"]["build"] == parts["node lobby-1"]["build"]
    assert fleet.ops("GET", "/status").json()["artifact"]["build"]["created_at"] == "2030-01-31T12:00:00Z"


def test_each_thing_that_does_not_fit_fails(fleet: Fleet) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    rows: dict[str, tuple[tuple[str, ...], Mapping[str, str], str]] = {
        "no proxy": ((), {"API_BASE_URL": nobody}, "proxy"),
        "no node": ((), {"WORKER_BASE_URL": nobody}, "node"),
        "no clients' port": ((), {"WEB_BASE_URL": nobody}, "clients' port"),
        "not a node": ((), {"WORKER_BASE_URL": addresses(fleet)["WEB_BASE_URL"]}, "node"),
        "another ref": (("--expect-ref", "v1"), {}, "proxy proxy: artifact"),
        "another commit": (("--expect-sha", "ffffffffff"), {}, "node lobby-1: artifact"),
        "cannot speak": (("--with", "9.9.9/7..8"), {}, "with 9.9.9/7..8: proxy proxy"),
        "no set": (("--with", "9.9.9"), {}, "--with"),
    }
    asked = [
        (("verify-deployment", "--json", *more), {**addresses(fleet), **environ})
        for more, environ, _ in rows.values()
    ]
    for (name, (_, _, expected)), answer in zip(rows.items(), cli(fleet, *asked), strict=True):
        assert answer.status == 1, name
        assert expected in wrong(answer), (name, wrong(answer))


# -- smoke and the gated rollout


QUICK = ("--rate", "40", "--duration", "1", "--settle", "5")


def flag(fleet: Fleet, key: str = "outbox.enabled") -> dict[str, Any]:
    return next(each for each in fleet.ops("GET", "/api/flags").json()["flags"] if each["key"] == key)


def test_smoke_passes_and_a_rollout_gate_sets_the_flag(fleet: Fleet) -> None:
    report = fleet.folder / "smoke.json"
    answer = said(fleet, "smoke", *QUICK, "--json", "--report", str(report))
    assert (answer.status, wrong(answer)) == (0, {})
    figures = answer.json()["figures"]
    assert (figures["requests"], figures["accepted"], figures["ended"]) == (40, 30, {"COMPLETED": 30})
    assert figures["lag_p95_ms"] > 0
    assert json.loads(report.read_text()) == answer.json()
    try:
        answer = said(fleet, "rollout-gate", *QUICK, "--json")
        assert (answer.status, wrong(answer)) == (0, {})
        assert (flag(fleet)["enabled"], flag(fleet)["rollout_percentage"]) == (True, 50)
    finally:
        fleet.ops("PUT", "/api/flags", {"key": "outbox.enabled", "enabled": True, "rollout_percentage": 100})


def test_a_rollout_gate_whose_checks_fail_turns_the_flag_off(fleet: Fleet) -> None:
    made = {"key": "gate.test", "enabled": True, "rollout_percentage": 10, "owner": "tests"}
    assert fleet.ops("PUT", "/api/flags", made).status in (200, 201)
    failing = ("--command", "demo:fail", "--args", '{"transient": false}')
    answer = said(fleet, "rollout-gate", *QUICK, *failing, "--flag", "gate.test", "--json")
    assert answer.status == 1
    assert {"agents' success", "more dead letters", "dead letters"} <= set(wrong(answer))
    assert flag(fleet, "gate.test")["enabled"] is False
    no_command = ("--command", "demo:none", "--flag", "gate.test", "--json")
    fleet.ops("PUT", "/api/flags", made)
    answer = said(fleet, "rollout-gate", *QUICK, *no_command)
    assert (answer.status, "no node offers demo:none" in wrong(answer)["checks"]) == (1, True)
    assert flag(fleet, "gate.test")["enabled"] is False, "what could not be checked is not rolled out"
    answer = said(fleet, "rollout-gate", *QUICK, "--flag", "no.such.flag", "--json")
    assert (answer.status, "COULD NOT BE TURNED OFF" in str(wrong(answer))) == (1, True)


def test_smoke_fails_where_nothing_is_delivered_or_nobody_is_there(fleet: Fleet) -> None:
    fleet.ops("PUT", "/api/controls/agents", {"tenant": "smoke-paused", "paused": True})
    rows = {
        "paused": (("--tenant", "smoke-paused", "--settle", "0.5"), {"outbox lag", "agents' success"}),
        "nobody there": (("--url", f"http://127.0.0.1:{free_port()}"), {"could not run"}),
        "too little": (("--duration", "0.1", "--outbox"), {"requests"}),
    }
    asked = [
        (("smoke", *QUICK, *more, "--json"), {"DISPATCH_HMAC_SECRET": HMAC}) for more, _ in rows.values()
    ]
    for (name, (_, expected)), answer in zip(rows.items(), cli(fleet, *asked), strict=True):
        assert answer.status == 1, name
        assert expected <= set(wrong(answer)), (name, wrong(answer))


# -- release-readiness and report


def release(folder: Path, *, environment: str = "production") -> list[str]:
    """The files of a production fleet."""
    proxy = {
        "schema_version": 1, "environment": environment, "store": {"url": f"sqlite:///{folder}/release.db"},
        "listeners": [{"name": "http", "kind": "http", "port": 8080}],
        "backends": [{"id": "lobby-1", "host": "127.0.0.1", "port": 8081, "gate": True}],
        "routing": {"default_backend_id": "lobby-1"},
    }  # fmt: skip
    node = {
        "schema_version": 1, "environment": "production", "server_id": "lobby-1",
        "gates": [{"name": "app", "kind": "http", "port": 8081, "target_port": 9081}],
    }  # fmt: skip
    for name, content in (("proxy.toml", proxy), ("node.toml", node)):
        (folder / name).write_text(to_toml(content))
    (folder / "messages.json").write_text(json.dumps(sdk_drift.described_messages()))
    assert main(["check", "openapi", "--write", "--file", str(folder / "openapi.json")]) == 0
    kept = ("--openapi", str(folder / "openapi.json"), "--messages", str(folder / "messages.json"))
    return [str(folder / "proxy.toml"), str(folder / "node.toml"), *kept]


def test_a_release_is_ready_only_where_every_gate_ran_and_passed(fleet: Fleet, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    url = f"http://127.0.0.1:{fleet.ops_port}"
    environ = {
        "FAIRLEAD_OPS_KEY": fleet.ops_key, "DISPATCH_HMAC_SECRET": HMAC, "SECURITY_PROXY_SECRET": fleet.secret,
        "FAIRLEAD_PROXY_SECRET": fleet.secret, "RELIABILITY_OPS_KEYS": fleet.ops_key,
    }  # fmt: skip
    done = run_cli(
        "check", "release-readiness", *release(tmp_path), "--url", url, "--reports", str(reports), "--report",
        f"{reports}/", "--json", environ=environ, timeout_s=150,
    )  # fmt: skip
    answer = Said(done.returncode, done.stdout, done.stderr)
    assert (answer.status, wrong(answer)) == (0, {})
    assert sorted(path.stem for path in reports.iterdir()) == sorted(
        [*answer.json()["gates"], "release-readiness"]
    )
    shown = said(fleet, "check", "report", "--reports", str(reports))
    assert shown.status == 0, shown.out
    assert shown.out.count(" passed ") == 8
    held = reports / "prod-gate.json"
    text = held.read_text()
    held.unlink()
    shown = said(fleet, "check", "report", "--reports", str(reports))
    assert (shown.status, "MISSING" in shown.out) == (1, True)
    held.write_text(json.dumps({**json.loads(text), "ended_at_ms": 1_000}))
    shown = said(fleet, "check", "report", "--reports", str(reports))
    assert (shown.status, "STALE" in shown.out) == (1, True)


def test_a_release_with_everything_wrong_names_every_gate(tmp_path: Path) -> None:
    arguments = release(tmp_path, environment="development")
    (tmp_path / "release.db").write_text("this is no database, and long enough to be looked at as one" * 20)
    (tmp_path / "openapi.json").write_text("{}")
    messages = json.loads((tmp_path / "messages.json").read_text())
    messages["44"]["name"] = "ANOTHER"
    (tmp_path / "messages.json").write_text(json.dumps(messages))
    environ = {"SECURITY_PROXY_SECRET": secrets.token_hex(32), "RELIABILITY_OPS_KEYS": secrets.token_hex(24),
               "FAIRLEAD_OPS_KEY": secrets.token_hex(24)}  # fmt: skip
    nobody = f"http://127.0.0.1:{free_port()}"
    done = run_cli(
        "check", "release-readiness", *arguments, "--url", nobody, "--json", environ=environ, timeout_s=150
    )
    missed = wrong(Said(done.returncode, done.stdout, done.stderr))
    assert set(missed) == {
        "env-matrix", "openapi", "sdk-drift", "schema-preflight", "security-parity", "prod-gate",
    }, missed  # fmt: skip
