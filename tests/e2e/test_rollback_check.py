"""The acceptance of a rollback: passes on what is sound, under load, and fails for each of its four points."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.processes import Fleet, run_cli

from fairlead.cli.findings import ERROR, OK, Found
from fairlead.cli.rollback_check import health, stable

CLIENT = {"id": "drill", "tenant": "default", "scopes": ["dispatch"]}


def check(fleet: Fleet, *more: str) -> tuple[int, dict[str, str], str]:
    """The exit status, and the level of each point."""
    environ = {
        "BASE_URL": f"http://127.0.0.1:{fleet.ops_port}", "FAIRLEAD_OPS_KEY": fleet.ops_key,
        "SECURITY_PROXY_SECRET": fleet.secret, "FAIRLEAD_PROXY_SECRET": fleet.secret,
    }  # fmt: skip
    done = run_cli(
        "check", "rollback", "--json", "--control", f"127.0.0.1:{fleet.control}", "--node-config",
        str(fleet.folder / "lobby-1.toml"), "--duration", "3", *more, environ=environ, timeout_s=60,
    )  # fmt: skip
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, {each["check"]: each["level"] for each in report["findings"]}, done.stdout


def test_a_sound_rollback_is_accepted(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, nodes=("lobby-1",), gated=True, proxy={"clients": [CLIENT]})
    with closing(fleet.start()):
        status, found, said = check(fleet)
        assert status == 0, said
        assert set(found.values()) <= {"ok", "warning"}
        assert {
            "authentication: submission", "authentication: reading", "authentication: mode", "authentication: lobby-1",
            "proxy enforced: gate gate-http of lobby-1", "control channel: wrong-sender",
            "control channel: wrong-version",
            "control channel: stale-timestamp", "one versioned set", "health", "stability", "p95 of requests",
            "agents' success",
        } <= {name for name, level in found.items() if level == "ok"}  # fmt: skip


def test_what_is_open_is_not_accepted(tmp_path: Path) -> None:
    """Submissions without proof, an app where the gate should be, and an application that the proxy does not list."""
    fleet = Fleet(tmp_path, nodes=("lobby-1",), proxy={"dispatch": {"require_auth": False}})
    config = tmp_path / "lobby-1.toml"
    gate = f'\n[[gates]]\nname = "app"\nkind = "http"\nport = {fleet.app_http["lobby-1"]}\ntarget_port = 1\n'
    with closing(fleet.start()):
        config.write_text(config.read_text() + gate)  # it says that there is a gate; the application answers
        status, found, said = check(fleet)
    assert status == 1
    wrong = {name for name, level in found.items() if level == "error"}
    assert {"authentication: submission", "authentication: mode", "proxy enforced: gate app of lobby-1",
            "control channel: good-link"} <= wrong, said  # fmt: skip


def test_a_point_that_moves_under_load_and_one_that_is_not_ready() -> None:
    before, after = (
        [Found(OK, "health", ""), Found(OK, "gate", "")],
        [Found(ERROR, "health", ""), Found(OK, "gate", "")],
    )
    assert [each.level for each in stable(before, before)] == ["ok"]
    (moved,) = stable(before, after)
    assert (moved.level, moved.detail.endswith(": health")) == ("error", True)
    said = {"status": "FAILED", "checks": {"store": {"state": "fail", "reason": "STORE_UNAVAILABLE"}}}
    assert [each.level for each in health({"health": said})] == ["error"]
    assert [each.level for each in health({"health": {**said, "status": "DEGRADED"}})] == ["warning"]
