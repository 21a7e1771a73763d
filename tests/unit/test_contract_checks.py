"""`fairlead check openapi|reason-codes|sdk-drift`: what they find, and with which exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.cli.main import main
from fairlead.cli.reason_codes import given_in, judged
from fairlead.cli.reasons_page import INCIDENTS, markdown
from fairlead.protocol.reasons import TRAITS, Reason
from fairlead.proxy.ops.openapi import document
from fairlead.runtime.version import VERSION


def test_a_description_that_is_the_codes_passes_and_another_names_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "openapi.json"
    assert main(["check", "openapi", "--write", "--file", str(kept)]) == 0
    assert json.loads(kept.read_text()) == json.loads(json.dumps(document(VERSION)))
    assert main(["check", "openapi", "--file", str(kept)]) == 0
    capsys.readouterr()
    changed = document(VERSION)
    changed["paths"]["/api/runs"]["get"]["x-required-scope"] = "open"
    del changed["paths"]["/status"]
    kept.write_text(json.dumps(changed))
    assert main(["check", "openapi", "--json", "--file", str(kept)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["check"], report["passed"]) == ("openapi", False)
    (wrong,) = [each for each in report["findings"] if each["level"] == "error"]
    assert "#/paths//api/runs/get/x-required-scope" in wrong["detail"]
    assert "#/paths//status" in wrong["detail"]
    assert main(["check", "openapi", "--file", str(tmp_path / "nowhere")]) == 1
    assert main(["check", "openapi", "--file", str(kept), "--url", "http://127.0.0.1:1"]) == 1


def test_the_client_library_can_say_what_the_api_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "sdk-drift", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_codes_and_table_are_the_same_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "reason-codes"]) == 0
    out = capsys.readouterr().out
    assert "QUEUE_FULL" in out
    assert out.endswith("reason-codes: passed: 1 in order, 0 not judged, 0 wrong\n")


def test_a_code_that_is_used_and_not_mapped_or_mapped_and_never_used(tmp_path: Path) -> None:
    source = tmp_path / "code.py"
    source.write_text("raise Refused(Reason.NOT_IN_THE_TABLE)\n_say(Reason.QUEUE_FULL, Reason.value)\n")
    given = given_in([source])
    assert given == {"NOT_IN_THE_TABLE": ["code.py:1"], "QUEUE_FULL": ["code.py:2"]}
    table = {Reason.QUEUE_FULL: TRAITS[Reason.QUEUE_FULL], Reason.RUN_UNKNOWN: TRAITS[Reason.RUN_UNKNOWN]}
    found = judged(given, table)
    assert [(each.level, each.check) for each in found] == [
        ("error", "NOT_IN_THE_TABLE"),
        ("error", "RUN_UNKNOWN"),
    ]


def test_the_tree_for_incidents_has_every_branch_of_the_runbook() -> None:
    named = {reason for branch in INCIDENTS for reason in branch.reasons}
    assert named >= {
        Reason.SECURITY_MISSING_IDENTITY_ENVELOPE, Reason.SECURITY_MISSING_INTERNAL_TRUST_CONTEXT,
        Reason.SECURITY_REPLAY_DETECTED, Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, Reason.HITL_TIMEOUT_FAIL_CLOSED,
        Reason.HITL_TERMINAL_STATE_IMMUTABLE, Reason.SECURITY_READ_TENANT_MISMATCH,
    }  # fmt: skip
    assert all(branch.steps for branch in INCIDENTS)
    assert "never turn a check off" in markdown()
