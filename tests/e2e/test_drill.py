"""The proof drill on a deployment of real processes: everything is proven, nothing stays behind; and without a guard it
fails, whichever guard it is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.guards_removed import LIVE, ON_TWIN, Removed, environment
from tests.support.processes import PROXY, Fleet, clean_environ, run_cli, until

from fairlead.cli.drill.calls import Calls, Credentials, HttpDrill
from fairlead.cli.drill.control import ControlPort, prove_links
from fairlead.cli.drill.plan import CONTROL_ROWS, HTTP_ROWS, ROWS, TWIN, TWIN_ROWS, Seen, judge, judge_all
from fairlead.cli.drill.verb import other_version, prove_on_twin
from fairlead.protocol.keys import Role, derive
from fairlead.runtime.request_signing import signing_keys
from fairlead.runtime.world import RealWorld

SIGNING = secrets.token_hex(32)
TENANT = "drill-tenant"
CLIENT = {"id": "drill", "tenant": TENANT, "scopes": ["dispatch"]}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("drill"), nodes=("lobby-1",), proxy={"clients": [CLIENT]},
        environ={"DISPATCH_HMAC_SECRET": SIGNING},
    )  # fmt: skip
    with closing(made.start()):
        yield made


def run_drill(fleet: Fleet, *more: str, **environ: str) -> tuple[int, dict[str, Any], str]:
    """`fairlead drill --json` with the names of the runbook: exit status, report, standard error."""
    given = {
        "BASE_URL": f"http://127.0.0.1:{fleet.ops_port}", "TEST_COMPANY_ID": TENANT, "TRANSBOT_HMAC_SECRET": SIGNING,
        "FAIRLEAD_OPS_KEY": fleet.ops_key, **environ,
    }  # fmt: skip
    done = run_cli("drill", "--json", *more, environ=given, timeout_s=60)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_everything_is_proven_and_nothing_stays_behind(fleet: Fleet) -> None:
    control = f"127.0.0.1:{fleet.control}"
    status, report, said = run_drill(fleet, "--control", control, SECURITY_PROXY_SECRET=fleet.secret)
    rows = {row["name"]: row for row in report["rows"]}
    assert status == 0, [row for row in rows.values() if not row["passed"]] or said
    assert set(rows) == {row.name for row in ROWS}
    assert {name for name, row in rows.items() if row["where"] == "twin"} == {row.name for row in TWIN_ROWS}
    for row in HTTP_ROWS:
        run = rows[row.name]
        assert run["request_id"], row.name
        assert run["status"] in row.statuses
    assert report["left_behind"] == []
    assert report["seconds"] < 60
    text = json.dumps(report) + said
    assert SIGNING not in text
    assert fleet.ops_key not in text
    assert fleet.secret not in text
    # What it made is worthless, what it submitted never ran, and nobody's limits are used up.
    keys = fleet.ops("GET", "/api/operator-keys").json()["keys"]
    assert len(keys) == 2
    assert all(key["revoked_at_ms"] for key in keys)
    runs = fleet.ops("GET", f"/api/runs?tenant={TENANT}").json()["runs"]
    assert [(run["status"], run["node_id"]) for run in runs] == [("CANCELLED", "")]
    assert fleet.ops("GET", "/health").json()["status"] == "READY", "no node or application is missed"
    assert fleet.ops("GET", "/api/clients").json() == {"clients": []}
    assert fleet.client().status == 200


def test_without_the_control_port_the_twin_stands_in(fleet: Fleet) -> None:
    status, report, said = run_drill(fleet)
    rows = {row["name"]: row for row in report["rows"]}
    assert status == 0, [row for row in rows.values() if not row["passed"]] or said
    assert {rows[row.name]["where"] for row in CONTROL_ROWS} == {"twin"}


def test_what_cannot_be_proven_is_not_passed(fleet: Fleet) -> None:
    """Without a secret to sign with, with somebody who is no administrator, or with nobody at all."""
    status, report, _ = run_drill(fleet, TRANSBOT_HMAC_SECRET="")
    failed = {row["name"] for row in report["rows"] if not row["passed"]}
    assert status == 1
    assert {"good-signature", "bad-signature", "good-submission", "duplicate-key"} <= failed
    status, _, said = run_drill(fleet, FAIRLEAD_OPS_KEY="")
    assert status == 2
    assert "no administrator" in said
    status, _, said = run_drill(fleet, FAIRLEAD_OPS_KEY="0" * 48)
    assert (status == 2 and "UNAUTHENTICATED" in said) or "401" in said


def prove(fleet: Fleet) -> set[str]:
    """The rows that a running proxy does not pass, without the twin's."""
    world = RealWorld()
    credentials = Credentials((("x-ops-key", fleet.ops_key),), signing_keys([bytes.fromhex(SIGNING)])[0])
    key = derive(bytes.fromhex(fleet.secret), Role.CLIENT, "drill", 0)
    port = ControlPort("127.0.0.1", fleet.control, "drill", key, "live")
    with closing(Calls(world, f"http://127.0.0.1:{fleet.ops_port}", credentials, TENANT)) as calls:
        drill = HttpDrill(calls, world, TENANT, ("demo:echo", {"text": "x"}))
        drill.prove()
    seen = {**drill.found, **trio.run(prove_links, world, port)}
    return {each.row.name for each in judge_all(seen, (*HTTP_ROWS, *CONTROL_ROWS)) if not each.passed}


def test_a_proxy_without_one_of_its_guards_fails_the_drill(fleet: Fleet) -> None:
    """Each guard is taken out in turn: the proxy starts again without it."""
    fleet.kill("lobby-1")  # its command stays in the registry, and the proxy alone is quicker to start
    whole = dict(fleet.processes[PROXY].environ)
    assert prove(fleet) == set(), "with all of them it passes"
    unnoticed = {}
    for removed in LIVE:
        fleet.kill(PROXY)
        folder = fleet.folder / f"without {removed.name}"
        fleet.processes[PROXY].environ = environment(removed, folder, whole)
        fleet.restart(PROXY)
        until(
            lambda: fleet.ops("GET", "/health/live").status == 200,
            f"a proxy without {removed.name}",
            20.0,
            fleet.tails,
        )
        failed = prove(fleet)
        if not set(removed.rows) <= failed:
            unnoticed[removed.name] = failed
    assert unnoticed == {}


@pytest.mark.parametrize("removed", ON_TWIN, ids=lambda each: each.name)
def test_a_twin_without_one_of_its_guards_fails_the_drill(removed: Removed, tmp_path: Path) -> None:
    environ = environment(removed, tmp_path / "startup", clean_environ())
    seen = trio.run(prove_on_twin, RealWorld(), None, environ)
    failed = {each.row.name for each in judge_all(seen, (*CONTROL_ROWS, *TWIN_ROWS)) if not each.passed}
    assert set(removed.rows) <= failed


def test_a_twin_of_another_version_proves_nothing() -> None:
    passed = judge(TWIN_ROWS[0], Seen(TWIN))
    assert passed.passed
    assert not other_version(passed, "fairlead/9.9.9").passed
