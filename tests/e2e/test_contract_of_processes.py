"""The checks of the contract against real processes, and against one whose guard was taken out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.processes import Fleet, run_cli

pytestmark = pytest.mark.e2e

# Loaded by the proxy's process before anything else: nobody's scopes are asked for any more.
WITHOUT_SCOPES = """
import fairlead.proxy.guard.access as access
access.require = lambda caller, scope: None
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with closing(Fleet(tmp_path_factory.mktemp("contract"), nodes=("lobby-1",)).start()) as made:
        assert made.dispatch("demo:echo", text="x").json()["status"] == "COMPLETED"
        made.dispatch("demo:fail")
        yield made


def check(fleet: Fleet, *arguments: str) -> tuple[int, dict[str, object]]:
    environ = {"FAIRLEAD_OPS_KEY": fleet.ops_key}
    done = run_cli(
        "check",
        *arguments,
        "--url",
        f"http://127.0.0.1:{fleet.ops_port}",
        "--json",
        environ=environ,
        timeout_s=60,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_running_proxy_describes_itself_as_the_code_does(fleet: Fleet) -> None:
    file = str(Path(__file__).parents[2] / "docs/openapi.json")
    status, report = check(fleet, "openapi", "--file", file)
    assert (status, report["passed"]) == (0, True), report


def test_a_running_proxy_refuses_whom_it_must(fleet: Fleet) -> None:
    runs = len(fleet.ops("GET", "/api/runs").json()["runs"])
    status, report = check(fleet, "security-parity")
    assert (status, report["passed"]) == (0, True), report
    assert len(report["findings"]) > 250  # type: ignore[arg-type]
    assert len(fleet.ops("GET", "/api/runs").json()["runs"]) == runs
    assert all(each["revoked_at_ms"] for each in fleet.ops("GET", "/api/operator-keys").json()["keys"])


def test_without_an_admins_key_it_says_so(fleet: Fleet) -> None:
    viewer = fleet.ops("POST", "/api/operator-keys", {"role": "viewer"}).json()["key"]
    done = run_cli(
        "check", "security-parity", "--url", f"http://127.0.0.1:{fleet.ops_port}", "--ops-key", viewer
    )
    assert done.returncode == 1
    assert "an admin's is needed" in done.stdout
    assert run_cli("check", "security-parity", environ={"FAIRLEAD_OPS_KEY": ""}).returncode == 1


def test_a_proxy_whose_scopes_were_taken_out_fails_and_nothing_is_done_to_it(tmp_path: Path) -> None:
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text(WITHOUT_SCOPES)
    with closing(Fleet(tmp_path, nodes=("lobby-1",), environ={"PYTHONPATH": str(patched)}).start()) as made:
        before = made.node_state("lobby-1")
        status, report = check(made, "security-parity")
        assert (status, report["passed"]) == (1, False)
        wrong = {each["check"] for each in report["findings"] if each["level"] == "error"}  # type: ignore[attr-defined]
        assert "POST /api/nodes/{id}/drain: a role that is not enough" in wrong
        after = made.node_state("lobby-1")
        assert [after[name] for name in ("paused", "draining", "connected")] == [
            before[name] for name in ("paused", "draining", "connected")
        ]
