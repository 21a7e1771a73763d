"""What the gates judge, without a deployment: configurations, sources, reports, figures, versions."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.processes import merged, to_toml

from fairlead.cli import gate_reports, open_loop, release_readiness, sdk_drift, smoke, verify_deployment
from fairlead.cli.findings import ERROR
from fairlead.cli.main import main
from fairlead.cli.open_loop import Answered, Load
from fairlead.cli.release_readiness import Step
from fairlead.cli.sdk_calls import Document, read_source
from fairlead.cli.verify_deployment import Part
from fairlead.proxy.ops.openapi import document
from fairlead.runtime.version import SOFTWARE, VERSION, Build, build_of
from fairlead.runtime.world import RealWorld

SECRET = "db27344b643782906698dafbd988cb1eadf6b0cc83d1a8702c7419268915b284"
OTHER = "d4c976b7eb82f1b89e595a11b1b513c2295e9e980d8f2f40966c42b0519d5ab8"
OPS_KEY = "a1e109cf3da392e651a1c182551625869d1adabe817c4f5cb88173cdf9bfafc7"
ENVIRON = {
    "SECURITY_PROXY_SECRET": SECRET, "FAIRLEAD_PROXY_SECRET": SECRET, "RELIABILITY_OPS_KEYS": OPS_KEY,
}  # fmt: skip
PROXY: dict[str, Any] = {
    "schema_version": 1, "environment": "production",
    "listeners": [{"name": "http", "kind": "http", "host": "127.0.0.1", "port": 8080}],
    "backends": [{"id": "lobby-1", "host": "127.0.0.1", "port": 8081, "gate": True}],
    "routing": {"default_backend_id": "lobby-1"},
}  # fmt: skip
NODE: dict[str, Any] = {
    "schema_version": 1, "environment": "production", "server_id": "lobby-1", "proxies": ["10.0.0.5:25570"],
    "gates": [{"name": "app", "kind": "http", "port": 8081, "target_port": 9081}],
}  # fmt: skip


def failures(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit status, and what the report says is wrong."""
    capsys.readouterr()
    status = main(["check", *arguments, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is (status == 0)
    assert report["started_at_ms"] <= report["ended_at_ms"]
    assert report["software"] == SOFTWARE
    wrong = [f"{each['check']} {each['detail']}" for each in report["findings"] if each["level"] == "error"]
    return status, "\n".join(wrong)


def wrong(found: Any) -> list[str]:
    return [f"{each.check}: {each.detail}" for each in found if each.level == ERROR]


# -- env-matrix


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("FAIRLEAD_ENVIRONMENT", "FAIRLEAD_BENCH", "FAIRLEAD_PORT_OFFSET", "FAIRLEAD_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def files(folder: Path, proxy: Mapping[str, Any], node: Mapping[str, Any]) -> list[str]:
    found = []
    for name, content in (("proxy.toml", proxy), ("node.toml", node)):
        (folder / name).write_text(to_toml(content))
        found.append(str(folder / name))
    return found


@pytest.mark.usefixtures("environ")
def test_a_fleet_of_production_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failures(capsys, "env-matrix", *files(tmp_path, PROXY, NODE)) == (0, "")


def test_without_secrets_everything_else_is_judged(
    tmp_path: Path, environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ENVIRON:
        environ.delenv(name)
    both = files(tmp_path, PROXY, NODE)
    assert failures(capsys, "env-matrix", *both)[0] == 1
    assert failures(capsys, "env-matrix", *both, "--without-secrets") == (0, "")
    both = files(tmp_path, PROXY, {**NODE, "control_expected_sender_id": "another"})
    assert failures(capsys, "env-matrix", *both, "--without-secrets")[0] == 1


DEMO = [{"id": "lobby-1", "host": "127.0.0.1", "port": 8081, "gate": True, "namespaces": ["demo"]}]
GATES = [{"name": "app", "kind": "http", "port": 8099, "target_port": 9081}]
CAUSES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str], str]] = {
    "development": ({"environment": "development"}, {}, {}, "is 'development', not exactly"),
    "not exactly": ({"environment": "Production"}, {}, {}, "is 'Production', not exactly"),
    "overridden": ({}, {}, {"FAIRLEAD_ENVIRONMENT": "development"}, "FAIRLEAD_ENVIRONMENT makes it"),
    "node in development": ({}, {"environment": "development"}, {}, "node.toml: environment"),
    "ops to everybody": ({"observability": {"host": "0.0.0.0"}}, {}, {}, "on every network of the machine"),
    "ops on a public address": ({"observability": {"host": "8.8.8.8"}}, {}, {}, "is a public address"),
    "node's port to everybody": ({}, {"health": {"host": "::"}}, {}, "on every network of the machine"),
    "demo writes": ({"reliability": {"ops_allow_demo_write": True}}, {}, {}, "without credentials write"),
    "no operator key": ({"reliability": {"ops_require_operator_key": False}}, {}, {}, "opens operations"),
    "everybody's id": ({"nodes": [{"id": "*"}]}, {}, {}, "admits every id"),
    "a trust check is off": ({}, {"enforce_proxy": False}, {}, "turns a trust check off"),
    "a port of the system's": ({}, {"health": {"port": 0}}, {}, "lets the system choose"),
    "the demo's namespace": ({"backends": DEMO}, {}, {}, "namespace demo"),
    "the demo's handlers": ({}, {"handlers": "fairlead.backend.demo:node"}, {}, "the demo's commands"),
    "a benchmark's variable": ({}, {}, {"FAIRLEAD_BENCH": "1"}, "FAIRLEAD_BENCH is set"),
    "observes for long": (
        {"dispatch": {"auth_mode": "observe", "observe_until": "2099-01-01T00:00:00Z"}}, {}, {}, "days ahead",
    ),
    "an unknown key": ({"observabilty": {}}, {}, {}, "unknown key"),
    "another secret": ({}, {}, {"FAIRLEAD_PROXY_SECRET": OTHER}, "HANDSHAKE_KEY_UNKNOWN"),
    "another sender": ({}, {"control_expected_sender_id": "edge"}, {}, "UNEXPECTED_SENDER"),
    "not listed": ({}, {"server_id": "arena-1"}, {}, "IDENTITY_NOT_LISTED"),
    "another port": ({}, {"proxies": ["10.0.0.5:25571"]}, {}, "port 25571 is no proxy's"),
    "another gate": ({}, {"gates": GATES}, {}, "leads to a gate on port 8081"),
    "another payload": ({}, {"control_max_payload": 524_288}, {}, "control_max_payload is 524288"),
    "trust on one side": (
        {"security": {"internal_trust_shared_secret": OTHER}}, {}, {}, "security_trust_token_invalid",
    ),
    "no messaging": ({"messaging": {"enabled": False}}, {}, {}, "no node can link"),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_alone_is_refused(
    cause: str, tmp_path: Path, environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy, node, names, expected = CAUSES[cause]
    for name, value in names.items():
        environ.setenv(name, value)
    status, told = failures(capsys, "env-matrix", *files(tmp_path, merged(PROXY, proxy), merged(NODE, node)))
    assert status == 1
    assert expected in told
    assert SECRET not in told
    assert OTHER not in told


@pytest.mark.usefixtures("environ")
def test_an_environment_that_is_not_written_and_files_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = {key: value for key, value in PROXY.items() if key != "environment"}
    status, told = failures(capsys, "env-matrix", *files(tmp_path, proxy, NODE))
    assert (status, 'is not written: add environment = "production"' in told) == (1, True)
    assert failures(capsys, "env-matrix", str(tmp_path / "nothing.toml"))[0] == 1
    (tmp_path / "broken.toml").write_text("environment = ")
    assert failures(capsys, "env-matrix", str(tmp_path / "broken.toml"))[0] == 1


@pytest.mark.usefixtures("environ")
def test_proxies_of_one_fleet_share_a_store_and_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = files(tmp_path, PROXY, NODE)
    second = tmp_path / "second.toml"
    second.write_text(to_toml(merged(PROXY, {"messaging": {"control_sender_id": "proxy-2"}})))
    status, told = failures(capsys, "env-matrix", *both, str(second))
    assert status == 1
    assert "share no SQLite file" in told
    assert "messaging.control_sender_id is not the same" in told


# -- sdk-drift


def drift(made: Mapping[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    (folder / "openapi.json").write_text(json.dumps(made))
    (folder / "messages.json").write_text(json.dumps(sdk_drift.described_messages()))
    return failures(
        capsys,
        "sdk-drift",
        "--file",
        str(folder / "openapi.json"),
        "--messages",
        str(folder / "messages.json"),
    )


def test_what_the_command_line_uses_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift(document(VERSION), tmp_path, capsys) == (0, "")


def test_each_drift_of_the_api_is_seen() -> None:
    made = json.loads(json.dumps(document(VERSION)))
    texts = [
        (name, text) for name, text in sdk_drift.sources() if name in ("ctl/controls.py", "ctl/audit.py")
    ]

    def problems(change: Any) -> str:
        changed = copy.deepcopy(made)
        change(changed)
        found = [*sdk_drift.over_http(Document(changed), texts), *sdk_drift.of_a_submission(changed)]
        return "\n".join(wrong(found))

    def no_field(changed: Any) -> None:
        for schema in changed["components"]["schemas"].values():
            schema.get("properties", {}).pop("daily_used", None)

    def no_query(changed: Any) -> None:
        changed["paths"]["/api/ops/reliability/audit"]["get"]["parameters"] = []

    def without(schema: str, name: str) -> Any:
        return lambda changed: changed["components"]["schemas"][schema]["properties"].pop(name)

    assert problems(lambda changed: None) == ""
    gone = problems(lambda changed: changed["paths"]["/api/budgets"].pop("put"))
    assert "asks PUT /api/budgets, which does not exist" in gone
    assert "with ?limit=, which it does not take" in problems(no_query)
    assert "a 'daily_limit', which it does not take" in problems(without("BudgetChange", "daily_limit"))
    assert "reads 'daily_used', which no answer has" in problems(no_field)
    assert "takes priority, which HTTP does not" in problems(without("Submission", "priority"))


def test_what_is_no_document_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.json").write_text("{}")
    assert failures(capsys, "sdk-drift", "--file", str(tmp_path / "none.json"))[0] == 1


def test_each_drift_of_a_message_is_seen() -> None:
    made = sdk_drift.described_messages()

    def problem(change: Any) -> str:
        kept = copy.deepcopy(made)
        change(kept)
        (found,) = sdk_drift.message_problems(kept, made)
        return found

    submit = "Submission"
    assert list(sdk_drift.message_problems(made, made)) == []
    assert "is misread from field 0" in problem(lambda kept: kept[submit]["fields"].pop(0))
    assert "is misread from field 1" in problem(lambda kept: kept[submit]["fields"][1].update(name="cmd"))
    assert "has quiet appended" in problem(lambda kept: kept[submit]["fields"].pop())
    assert "is new" in problem(lambda kept: kept.pop("44"))
    assert "is gone" in problem(lambda kept: kept.update({"99": {"name": "X", "fields": []}}))
    assert "numbers are never reused" in problem(lambda kept: kept["44"].update(name="SEND"))
    assert "is sent by" in problem(lambda kept: kept["44"].update(sent_by=["NODE"]))
    assert "without a default" in problem(lambda kept: kept["44"]["fields"].clear())


def test_a_path_that_is_put_together_is_told_and_not_passed_over() -> None:
    described = Document(document(VERSION))
    read = read_source("x.py", "def f(options, what):\n    _, a = call(options, 'GET', what())\n", described)
    assert [(each.method, each.paths) for each in read.calls] == [("GET", ())]
    found = list(sdk_drift.over_http(described, [("x.py", "def f():\n    ask('GET', '/api/nothing')\n")]))
    assert ("error", "x.py:2 asks GET /api/nothing, which does not exist") in [
        (f.level, f.detail) for f in found
    ]


# -- reports


def report(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "check": name, "passed": True, "software": SOFTWARE, "build": Build().told(), "started_at_ms": 900_000,
        "ended_at_ms": 1_000_000, "counts": {"ok": 3, "warning": 0, "error": 0},
        "findings": [{"level": "ok", "check": "x", "detail": ""}], **fields,
    }  # fmt: skip


VERDICTS: dict[str, tuple[dict[str, Any] | str, str]] = {
    "passed": ({}, "passed"),
    "failed": ({"passed": False}, "FAILED"),
    "says passed, and found something": (
        {"findings": [{"level": "error", "check": "x", "detail": "y"}]},
        "FAILED",
    ),
    "found nothing in order": ({"counts": {"ok": 0, "warning": 2, "error": 0}}, "FAILED"),
    "stale": ({"ended_at_ms": 1_000_000 - 61_000}, "STALE"),
    "of tomorrow": ({"ended_at_ms": 9_000_000}, "BROKEN"),
    "another's": ({"check": "openapi"}, "BROKEN"),
    "another version's": ({"software": "fairlead/0.0.1"}, "OTHER VERSION"),
    "no report": ("{}", "BROKEN"),
    "no JSON": ("passed!", "BROKEN"),
}


@pytest.mark.parametrize("how", VERDICTS)
def test_only_a_report_that_is_whole_and_fresh_is_green(how: str, tmp_path: Path) -> None:
    fields, verdict = VERDICTS[how]
    path = tmp_path / "env-matrix.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(report("env-matrix", **fields)))
    assert gate_reports.row_of(path, "env-matrix", 1_000_500, 60).verdict == verdict


def test_a_gate_without_a_report_is_not_green(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = failures(capsys, "report", "--reports", str(tmp_path / "none"))
    assert status == 1
    assert told.count("MISSING") == len(gate_reports.REQUIRED)
    now_ms = RealWorld().wall_ms()
    (tmp_path / "openapi.json").write_text(json.dumps(report("openapi", ended_at_ms=now_ms)))
    here = ("--reports", str(tmp_path), "--require", "openapi")
    assert failures(capsys, "report", *here) == (0, "")
    (tmp_path / "smoke.json").write_text(json.dumps(report("smoke", ended_at_ms=now_ms, passed=False)))
    assert failures(capsys, "report", *here)[0] == 1
    assert main(["check", "report", *here]) == 1
    assert "smoke    FAILED" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_fails_its_gate(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = failures(capsys, "security-parity", "--static", "--report", "/proc/nowhere/report.json")
    assert (status, told.partition(" ")[0]) == (1, "--report")


# -- release-readiness


def test_a_gate_that_could_not_run_has_failed(tmp_path: Path) -> None:
    found, _ = release_readiness.passed(Step("no-such-gate"))
    assert (found.level, "gave no report" in found.detail) == (ERROR, True)
    quick = Step("security-parity", ("--static",))
    found, _ = release_readiness.passed(quick, timeout_s=0.001)
    assert (found.level, "did not end" in found.detail) == (ERROR, True)
    found, made = release_readiness.passed(quick, str(tmp_path))
    assert (found.level, made["check"]) == ("ok", "security-parity")
    assert json.loads((tmp_path / "security-parity.json").read_text())["run_id"] == made["run_id"]


def test_only_the_report_of_this_very_run_counts() -> None:
    good = report("openapi")
    assert release_readiness.report_problem(good, "openapi", 900_000) == ""
    for fields, name, began_ms in (
        ({}, "sdk-drift", 900_000), ({}, "openapi", 900_001), ({"started_at_ms": 2_000_000}, "openapi", 900_000),
        ({"findings": []}, "openapi", 900_000), ({"counts": None}, "openapi", 900_000),
    ):  # fmt: skip
        assert release_readiness.report_problem({**good, **fields}, name, began_ms)
    assert release_readiness.report_problem([], "openapi", 0)


# -- smoke


async def test_what_a_request_took_counts_from_when_it_was_due(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A server that stands still for two seconds: one that waited for its answers would report one slow request."""
    free = trio.Lock()

    async def request(index: int) -> Answered:
        async with free:
            await trio.sleep(2.0 if index == 0 else 0.01)
        return Answered()

    load = Load(21)
    await open_loop.run(load, 10.0, request, timeout_s=5.0)
    took = sorted(each.took_ms for each in load.samples)
    assert len(took) == 21
    assert sum(each > 500 for each in took) > 12, took
    assert open_loop.percentile(took, 0.95) > 1_800


async def test_load_is_bounded_and_silence_is_a_failure(autojump_clock: trio.testing.MockClock) -> None:
    async def request(index: int) -> Answered:
        await trio.sleep_forever()

    load = Load(10)
    await open_loop.run(load, 100.0, request, timeout_s=1.0, under_way_max=4)
    assert (load.failed, load.under_way) == (10, 0)
    assert (
        sorted(each.failed.partition(":")[0] for each in load.samples)
        == ["no answer within 1 s"] * 4 + ["not sent"] * 6
    )


GOOD = smoke.Figures(
    requests=200, p95_ms=30.0, accepted=150, looked_up=150, ended={"COMPLETED": 150}, lag_p95_ms=20.0, lag_avg_ms=5.0,
    lags=150, replay_answered="200",
)  # fmt: skip
WANTED = smoke.Wanted("http://x", "", None)


def test_figures_within_the_thresholds_pass() -> None:
    assert [each for each in smoke.judged(GOOD, WANTED) if each.level == ERROR] == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"failed": 4}, "requests failed"),
        ({"p95_ms": 2_500.0}, "p95 of requests"),
        ({"lag_p95_ms": 5_000.0}, "p95 of outbox lag"),
        ({"lag_avg_ms": 2_000.0}, "average outbox lag"),
        ({"not_delivered": 1}, "outbox lag"),
        ({"lags": 0}, "outbox lag"),
        ({"ended": {"COMPLETED": 147, "FAILED": 3}}, "agents' success"),
        ({"looked_up": 0, "ended": {}}, "agents' success"),
        ({"nodes_out": ["lobby-2"]}, "nodes"),
        ({"dead_letters": 10}, "more dead letters"),
        ({"replay_answered": "403 SCOPE_MISSING"}, "a dry run of a replay"),
        ({"requests": 19}, "requests"),
    ],
)
def test_each_threshold_fails_by_itself(change: dict[str, Any], named: str) -> None:
    wrong = [each.check for each in smoke.judged(replace(GOOD, **change), WANTED) if each.level == ERROR]
    assert wrong == [named]


def test_lag_is_from_when_a_run_was_due_to_its_first_delivery() -> None:
    steps = [{"at_ms": 100, "event": "accepted"}, {"at_ms": 400, "event": "due"}, {"at_ms": 900, "event": "delivered"},
             {"at_ms": 2_000, "event": "delivered"}]  # fmt: skip
    assert smoke.lag_of({"accepted_at_ms": 100, "timeline": steps}) == 500
    assert smoke.lag_of({"accepted_at_ms": 100, "timeline": steps[:2]}) is None


def test_the_nearest_rank() -> None:
    assert open_loop.percentile([], 0.95) == 0
    assert open_loop.percentile([3.0], 0.95) == 3.0
    assert open_loop.percentile(list(map(float, range(1, 101))), 0.95) == 95.0
    assert open_loop.percentile([1.0, 2.0, 3.0], 0.5) == 2.0


# -- verify-deployment


BUILT = Build("v1.2.0", "0a1b2c3d4e5f", "2030-01-31T12:00:00Z").told()
PARTS = [Part("proxy p", "1.2.0", BUILT, (1, 2)), Part("node n", "1.2.0", BUILT, (1, 2))]


def test_one_set_of_versions_and_one_artifact() -> None:
    assert wrong(verify_deployment.one_set(PARTS)) == []
    assert wrong(verify_deployment.built(PARTS, "v1.2.0", "0a1b2c3", required=True)) == []


def test_what_does_not_fit_is_named() -> None:
    one_set, built = verify_deployment.one_set, verify_deployment.built
    mixed = [PARTS[0], replace(PARTS[1], version="1.1.0")]
    assert "a mixed set: proxy p 1.2.0; node n 1.1.0" in wrong(one_set(mixed))[0]
    apart = [PARTS[0], replace(PARTS[1], wire=(3, 4))]
    assert "no wire version that all speak" in wrong(one_set(apart))[0]
    assert wrong(one_set([]))
    assert "not v1.3.0" in wrong(built(PARTS, "v1.3.0", "", required=False))[0]
    assert "not ffffffff" in wrong(built(PARTS, "", "ffffffff", required=False))[0]
    unknown = [replace(PARTS[0], build=Build().told())]
    assert wrong(built(unknown, "", "", required=False)) == []
    assert "does not say its ref, sha, created_at" in wrong(built(unknown, "", "", required=True))[0]
    other = [PARTS[0], replace(PARTS[1], build={**BUILT, "sha": "99999999"})]
    assert "of 2 commits" in wrong(built(other, "", "", required=False))[0]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("1.3.0/2..3", True),
        ("1.2.0/1..2", True),
        ("1.3.0/2", True),
        ("1.3.0/3..4", False),
        ("1.3.0", False),
        ("", False),
    ],
)
def test_a_mixed_set_is_told_before_it_is_deployed(text: str, fits: bool) -> None:
    found = list(verify_deployment.beside(text, PARTS))
    assert (wrong(found) == []) is fits
    if fits:
        assert "would speak wire version" in found[0].detail


def test_an_installation_says_how_it_is_named_beside_another() -> None:
    assert wrong(verify_deployment.beside(verify_deployment.own_set(), PARTS)) == []


def test_where_a_build_came_from() -> None:
    written = {"ref": "v1", "sha": "abcdef1", "created_at": "2030-01-31T12:00:00Z"}
    assert build_of({}, written) == Build("v1", "abcdef1", "2030-01-31T12:00:00Z")
    assert build_of({"FAIRLEAD_BUILD_SHA": "0000000"}, written).sha == "0000000"
    assert build_of({}, {"sha": "not a commit", "ref": "two words", "created_at": "yesterday"}) == Build()
    assert build_of({}, {}).told() == {"ref": "", "sha": "", "created_at": ""}


def test_each_proxy_of_a_release_has_a_preflight_and_a_report_of_its_own(tmp_path: Path) -> None:
    both = [*files(tmp_path, PROXY, NODE), str(tmp_path / "proxy-2.toml")]
    options = Namespace(files=both, url="", without_secrets=True, openapi="o", messages="m", reports="")
    steps = release_readiness.steps(options)
    assert [each.label for each in steps if each.name == "schema-preflight"] == [
        "schema-preflight",
        "schema-preflight@2",
    ]
    assert "prod-gate" not in [each.name for each in steps]
    none = Namespace(**{**vars(options), "files": [str(tmp_path / "node.toml")]})
    assert "schema-preflight" in [each.name for each in release_readiness.steps(none)], "and it will fail"
    path = tmp_path / "schema-preflight@2.json"
    path.write_text(json.dumps(report("schema-preflight")))
    assert gate_reports.row_of(path, "schema-preflight@2", 1_000_500, 60).verdict == "passed"
