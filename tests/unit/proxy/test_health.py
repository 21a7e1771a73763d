"""What a proxy's checks make of it as a whole."""

from __future__ import annotations

import pytest

from fairlead.proxy.ops.health import OK, CheckState, Finding, Health

WARN, FAIL = (
    Finding(CheckState.WARN, "QUEUE_FULL"),
    Finding(CheckState.FAIL, "STORE_UNAVAILABLE", "disk I/O error"),
)


def health(*findings: Finding) -> Health:
    found = Health(
        {f"check-{number}": lambda each=each: each for number, each in enumerate(findings)}, lambda: 7
    )
    found.started = True
    return found


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ((OK, OK), "READY"), ((OK, WARN), "DEGRADED"), ((WARN, OK), "DEGRADED"), ((FAIL, OK), "FAILED"),
        ((OK, FAIL), "FAILED"), ((FAIL, WARN), "FAILED"), ((WARN, FAIL, OK), "FAILED"), ((), "READY"),
    ],
)  # fmt: skip
def test_the_whole_is_as_well_as_its_worst_part_and_not_as_its_listener(
    findings: tuple[Finding, ...], status: str
) -> None:
    report = health(*findings).report()
    assert report["status"] == status
    assert [each["state"] for each in report["checks"].values()] == [each.state.value for each in findings]


def test_a_process_that_has_not_started_or_stops_says_so_whatever_its_checks_find() -> None:
    found = health(OK)
    found.draining = True
    assert found.report()["status"] == "DRAINING"
    found.started = False
    assert found.report()["status"] == "STARTING"


def test_a_check_tells_since_when_it_finds_what_it_finds() -> None:
    now_ms, finding = 1_000, OK
    found = Health({"store": lambda: finding}, lambda: now_ms)
    assert found.report()["checks"]["store"]["since"] == 1_000
    now_ms = 2_000
    assert found.report()["checks"]["store"]["since"] == 1_000
    finding = FAIL
    assert found.report()["checks"]["store"]["since"] == 2_000
