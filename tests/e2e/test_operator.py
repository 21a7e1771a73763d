"""What operators see and do: health, status, metrics, node actions, the command line, starting and stopping."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.ctl import cli
from tests.support.processes import PROXY, Answer, Fleet, http_call, metric_in, run_cli, until
from tests.support.raw_peer import dial, node_key
from tests.support.tools import tool

from fairlead.protocol.keys import Role
from fairlead.protocol.reasons import TRAITS, Reason, traits

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[2] / "README.md"
_answers: list[str] = []  # everything that anybody was told, for the search for secrets


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("operator"))
    with closing(made.start()):
        yield made


def told(answer: Answer) -> Answer:
    _answers.append(f"{dict(answer.headers)}\n{answer.body.decode(errors='replace')}")
    return answer


def health(fleet: Fleet) -> Any:
    return told(fleet.ops("GET", "/health", key=None)).json()


# -- metrics


def test_every_counter_exists_at_zero_from_the_start(fleet: Fleet) -> None:
    text = fleet.exposition()
    for reason, row in TRAITS.items():
        name = f"fairlead_{row.family.value}_reject_total"
        assert metric_in(text, name, reason=reason.value) == 0, f"{reason}\n{fleet.tails()}"
    for name in (
        "runs_accepted_total",
        "runs_idempotent_replays_total",
        "deliveries_total",
        "registry_nacks_total",
    ):
        assert f"# TYPE fairlead_{name} counter" in text
    assert metric_in(text, "fairlead_runs_accepted_total") == 0
    for status in ("COMPLETED", "FAILED", "CANCELLED", "EXPIRED"):
        assert metric_in(text, "fairlead_runs_ended_total", status=status, reason="") == 0
    for state, count in {"ONLINE": 2, "OFFLINE": 0, "UNKNOWN": 0, "DRAINING": 0}.items():
        assert metric_in(text, "fairlead_nodes", state=state) == count
    assert metric_in(text, "fairlead_node_links", key="current") == 2
    assert metric_in(text, "fairlead_node_links", key="previous") == 0


@pytest.mark.parametrize("process", [PROXY, "lobby-1"])
def test_metrics_are_what_prometheus_reads(fleet: Fleet, process: str) -> None:
    fleet.serves()
    text = fleet.exposition(process)
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families) > 5
    for family in families:
        assert family.documentation, family.name
        assert family.name.startswith("fairlead_")
        keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(set(keys)) == len(keys), f"{family.name} has a sample twice"
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), family.name
        if family.type == "histogram":
            buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
            (count,) = (sample.value for sample in family.samples if sample.name.endswith("_count"))
            assert buckets == sorted(buckets)
            assert buckets[-1] == count


def test_metrics_pass_promtool(fleet: Fleet) -> None:
    promtool = tool("promtool")
    for process in (PROXY, "lobby-1"):
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=fleet.exposition(process), capture_output=True, text=True,
            timeout=20, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr


# -- health and status


def test_a_healthy_fleet_says_so_with_every_check(fleet: Fleet) -> None:
    report = until(lambda: (found := health(fleet))["status"] == "READY" and found, "READY", more=fleet.tails)
    assert set(report["checks"]) >= {"listeners", "store", "nodes", "registry", "clocks", "keys", "dispatch"}
    for check in report["checks"].values():
        assert set(check) == {"state", "since", "reason", "detail"}
        assert check["state"] == "ok"
    assert fleet.ops("GET", "/health/live", key=None).json() == {"status": "alive"}
    assert fleet.ops("GET", "/health/ready", key=None).json() == {"status": "READY"}
    for name in ("lobby-1", "lobby-2"):
        node = http_call(fleet.processes[name].health_port, "GET", "/health").json()
        assert node["status"] == "READY"
        assert set(node["queue"]) == {"running", "waiting", "capacity"}


def test_a_lost_node_degrades_health_and_its_return_mends_it(fleet: Fleet) -> None:
    fleet.kill("lobby-2")
    try:
        report = until(
            lambda: (found := health(fleet))["status"] == "DEGRADED" and found, "DEGRADED", more=fleet.tails
        )
        check = report["checks"]["nodes"]
        assert (check["state"], check["reason"]) == ("warn", "NODE_NOT_CONNECTED")
        assert "lobby-2 OFFLINE" in check["detail"]
        assert fleet.ops("GET", "/health", key=None).status == 200, "the others go on being served"
        assert fleet.ops("GET", "/health/ready", key=None).json() == {"status": "DEGRADED"}
        node = told(fleet.ops("GET", "/api/nodes/lobby-2")).json()
        assert (node["state"], node["connected"]) == ("OFFLINE", False)
        assert node["last_end"]["reason"] == "LINK_TRUNCATED"
        fleet.serves()
    finally:
        fleet.restart("lobby-2")
        fleet.wait_ready()
    until(lambda: health(fleet)["status"] == "READY", "READY again", more=fleet.tails)


def test_health_test_writes_and_reads(fleet: Fleet) -> None:
    answer = told(fleet.ops("GET", "/health/test", key=None))
    assert answer.status == 200
    found = answer.json()
    assert found["status"] == "ok"
    for part in ("store", "disk"):
        assert found[part]["ok"] is True
        assert found[part]["ms"] >= 0
    assert not list(fleet.folder.glob(".probe-*")), "it leaves nothing behind"


def test_status_has_everything_at_a_glance(fleet: Fleet) -> None:
    answer = told(fleet.ops("GET", "/status", key=None))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"].lower() == "accept"
    status = answer.json()
    assert set(status) >= {
        "software", "proxy_id", "environment", "uptime_s", "now_ms", "health", "secrets", "listeners", "sessions",
        "registry", "nodes", "dispatch", "rejects", "recent_rejects",
    }  # fmt: skip
    assert [each["name"] for each in status["listeners"]] == ["http", "game"]
    assert [each["port"] for each in status["listeners"]] == [fleet.http, fleet.game]
    node = next(each for each in status["nodes"] if each["id"] == "lobby-1")
    assert set(node["registry"]) >= {"desired", "sent", "acked", "lag", "synchronized", "last_nack"}
    assert (node["registry"]["acked"], node["registry"]["lag"]) == (status["registry"]["generation"], 0)
    assert (node["key"], node["state"], node["wire_version"]) == ("current", "ONLINE", 1)
    until(lambda: fleet.node_state("lobby-1")["skew_ms"] is not None, "a skew is measured", more=fleet.tails)
    assert abs(fleet.node_state("lobby-1")["skew_ms"]) < 1_000, "one clock on one machine"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html", "text/html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/html;q=0.1, application/json", "application/json"),
    ],
)
def test_status_is_a_page_for_who_prefers_one(fleet: Fleet, accept: str, kind: str) -> None:
    answer = told(fleet.ops("GET", "/status", headers={"accept": accept}, key=None))
    assert answer.headers["content-type"].startswith(kind)
    if kind == "text/html":
        page = answer.body.decode()
        assert "lobby-1" in page
        assert "<script" not in page


# -- what operators do to nodes


def served_by(fleet: Fleet) -> str:
    return str(fleet.client().json()["node"])


def test_drain_and_undrain(fleet: Fleet) -> None:
    assert served_by(fleet) == "lobby-1"
    answer = told(fleet.ops("POST", "/api/nodes/lobby-1/drain"))
    assert (answer.status, answer.json()["state"]) == (200, "DRAINING")
    try:
        assert served_by(fleet) == "lobby-2", "new clients go elsewhere"
        ran = {fleet.dispatch("demo:echo", text="x").json()["node_id"] for _ in range(4)}
        assert ran == {"lobby-2"}
        waiting = fleet.dispatch("demo:echo", target="lobby-1", wait_s=0, text="for you alone").json()
        until(
            lambda: http_call(fleet.processes["lobby-1"].health_port, "GET", "/health").json()["status"]
            == "DRAINING",
            "the node knows", more=fleet.tails,
        )  # fmt: skip
        assert fleet.ops("GET", f"/api/runs/{waiting['run_id']}").json()["status"] == "PENDING"
        fleet.kill(PROXY)  # a decision survives the proxy
        fleet.restart(PROXY)
        fleet.wait_ready()
        assert fleet.node_state("lobby-1")["state"] == "DRAINING"
        assert served_by(fleet) == "lobby-2"
    finally:
        fleet.ops("POST", "/api/nodes/lobby-1/undrain")
    until(lambda: fleet.node_state("lobby-1")["state"] == "ONLINE", "ONLINE again", more=fleet.tails)
    assert served_by(fleet) == "lobby-1"
    run = until(lambda: ended(fleet, waiting["run_id"]), "what waited for it is run", more=fleet.tails)
    assert (run["status"], run["node_id"]) == ("COMPLETED", "lobby-1")


def ended(fleet: Fleet, run_id: str) -> Any:
    run = told(fleet.ops("GET", f"/api/runs/{run_id}")).json()
    return run if run["status"] not in ("PENDING", "RUNNING") else None


def test_pause_and_resume(fleet: Fleet) -> None:
    assert told(fleet.ops("POST", "/api/nodes/lobby-1/pause")).json()["paused"] is True
    try:
        assert served_by(fleet) == "lobby-1", "a pause is for commands, not for clients"
        assert {fleet.dispatch("demo:echo", text="x").json()["node_id"] for _ in range(4)} == {"lobby-2"}
        waiting = fleet.dispatch("demo:echo", target="lobby-1", wait_s=0, text="later").json()
        assert fleet.ops("GET", f"/api/runs/{waiting['run_id']}").json()["status"] == "PENDING"
        node_health = fleet.processes["lobby-1"].health_port
        until(
            lambda: http_call(node_health, "GET", "/health").json()["checks"]["bridge"]["reason"]
            == "BRIDGE_PAUSED",
            "the node says so too", more=fleet.tails,
        )  # fmt: skip
    finally:
        assert fleet.ops("POST", "/api/nodes/lobby-1/resume").json()["paused"] is False
    run = until(lambda: ended(fleet, waiting["run_id"]), "what waited for it is run", more=fleet.tails)
    assert (run["status"], run["node_id"]) == ("COMPLETED", "lobby-1")


def test_resync_is_acknowledged_again(fleet: Fleet) -> None:
    before = fleet.metric("fairlead_registry_acks_total")
    generation = fleet.node_state("lobby-1")["registry"]["desired"]
    assert told(fleet.ops("POST", "/api/nodes/lobby-1/resync")).status == 202
    until(lambda: fleet.metric("fairlead_registry_acks_total") == before + 1, "another ACK", more=fleet.tails)
    registry = fleet.node_state("lobby-1")["registry"]
    assert (registry["acked"], registry["synchronized"]) == (generation, True)
    fleet.serves()


def test_revoke_and_a_new_key(fleet: Fleet) -> None:
    assert told(fleet.ops("POST", "/api/nodes/lobby-2/revoke")).json() == {"id": "lobby-2", "key_epoch": 1}
    until(lambda: not fleet.node_state("lobby-2")["connected"], "its link is ended", more=fleet.tails)
    assert fleet.node_state("lobby-2")["last_end"]["reason"] == "IDENTITY_REVOKED"
    until(lambda: fleet.rejects(Reason.IDENTITY_REVOKED) >= 2, "it dials again in vain", more=fleet.tails)
    fleet.serves()
    fleet.kill(PROXY)  # a restart gives nothing back
    fleet.restart(PROXY)
    until(lambda: fleet.rejects(Reason.IDENTITY_REVOKED) >= 1, "it dials again in vain", more=fleet.tails)
    until(lambda: fleet.node_state("lobby-1")["registry"]["synchronized"], "the other is back")
    assert fleet.node_state("lobby-2")["connected"] is False
    fleet.kill("lobby-2")
    made = run_cli(
        "secret", "node-key", "lobby-2", "--epoch", "1", environ={"SECURITY_PROXY_SECRET": fleet.secret}
    )
    assert made.returncode == 0, made.stderr
    process = fleet.processes["lobby-2"]
    rest = {name: value for name, value in process.environ.items() if name != "FAIRLEAD_PROXY_SECRET"}
    process.environ = {**rest, "FAIRLEAD_NODE_KEY": made.stdout.strip()}
    fleet.restart("lobby-2")
    fleet.wait_ready()
    assert fleet.node_state("lobby-2")["state"] == "ONLINE"


# -- fairlead ctl

Ctl = tuple[int | str, str, str]


def ctl(fleet: Fleet, *asked: tuple[tuple[str, ...], dict[str, str]]) -> list[Ctl]:
    """Exit status, standard output and standard error of `fairlead ctl` for each command line."""
    found = cli(fleet, *((("ctl", *words), environ) for words, environ in asked))
    _answers.extend(each.out + each.err for each in found)
    return [(each.status, each.out, each.err) for each in found]


def test_ctl_says_and_does_what_the_api_does(fleet: Fleet) -> None:
    run_id = fleet.dispatch("demo:add", key="ctl", amount=2, target="lobby-1").json()["run_id"]
    asked: dict[str, tuple[str, ...]] = {
        "status": ("status",),
        "nodes": ("nodes",),
        "commands": ("commands",),
        "runs": ("runs", "--limit", "1000"),
        "run": ("runs", run_id),
        "dispatch": ("dispatch", "demo:echo", "text=hello"),
        "all": ("dispatch", "demo:echo", "text=hello", "--target", "all"),
        "fail": ("dispatch", "demo:fail", "message=on purpose"),
        "later": ("dispatch", "demo:sleep", "ms=1", "--wait", "0"),
        "resync": ("nodes", "resync", "lobby-1"),
        "sessions": ("sessions",),
    }
    told_as = ctl(
        fleet,
        *((words, {}) for words in asked.values()),
        *(((*words, "--json"), {}) for words in asked.values()),
    )
    texts = dict(zip(asked, told_as[: len(asked)], strict=True))
    jsons = dict(zip(asked, told_as[len(asked) :], strict=True))
    for name, (status, out, err) in [*texts.items(), *jsons.items()]:
        assert status == (1 if name == "fail" else 0), f"{name}: {status} {out}{err}"
        assert err == ""

    def lines(name: str) -> str:
        return re.sub(r" +", " ", texts[name][1])

    assert "proxy READY" in lines("status")
    assert re.search(r"^lobby-1 ONLINE ", lines("nodes"), re.MULTILINE)
    assert re.search(r"^demo:add 1 transactional lobby-1,lobby-2 ", lines("commands"), re.MULTILINE)
    assert f"{run_id} demo:add COMPLETED lobby-1" in lines("runs")
    assert '"key": "ctl"' in lines("run")
    assert "COMPLETED" in lines("dispatch")
    assert '"text": "hello"' in lines("dispatch")
    assert re.search(r"^ lobby-2 COMPLETED ", lines("all"), re.MULTILINE)
    assert "FAILED" in lines("fail")
    assert "HANDLER_FAILED: RuntimeError: on purpose" in lines("fail")
    assert "ask again: fairlead ctl runs " in lines("later")

    decoded = {name: json.loads(out) for name, (_, out, _) in jsons.items()}
    assert decoded["status"]["proxy_id"] == "proxy"
    assert {node["id"] for node in decoded["nodes"]["nodes"]} == {"lobby-1", "lobby-2"}
    assert any(each["name"] == "demo:total" for each in decoded["commands"]["commands"])
    assert run_id in [each["run_id"] for each in decoded["runs"]["runs"]]
    assert decoded["run"]["timeline"]
    assert decoded["dispatch"]["result"]["text"] == "hello"
    assert len(decoded["all"]["children"]) == 2
    assert decoded["fail"]["reason"] == "HANDLER_FAILED"
    assert decoded["resync"]["id"] == "lobby-1"
    assert "sessions" in decoded["sessions"]


def test_ctl_errors_say_what_to_do(fleet: Fleet) -> None:
    another = f"http://127.0.0.1:{fleet.app_http['lobby-1']}/echo?"  # answers JSON, and is no ops port
    expected: list[tuple[tuple[str, ...], dict[str, str], int, str]] = [
        (("nodes",), {"FAIRLEAD_OPS_KEY": "wrong" * 8}, 1, "UNAUTHENTICATED"),
        (("nodes",), {"FAIRLEAD_OPS_KEY": ""}, 1, "UNAUTHENTICATED"),
        (("nodes", "drain", "nobody"), {}, 1, "NODE_UNKNOWN"),
        (("nodes", "drain"), {}, 1, "which node?"),
        (("nodes", "explode", "lobby-1"), {}, 1, "is no action"),
        (("runs", "nothing"), {}, 1, "RUN_UNKNOWN"),
        (("dispatch", "demo:nothing"), {}, 1, "COMMAND_UNKNOWN"),
        (("dispatch", "demo:add", "key=x", "amount=many"), {}, 1, "ARGUMENTS_INVALID"),
        (("dispatch", "demo:echo", "text"), {}, 1, "is not key=value"),
        (("commands", "remove", "demo:nothing"), {}, 1, "COMMAND_UNKNOWN"),
        (("status",), {"FAIRLEAD_URL": "http://127.0.0.1:1"}, 1, "Is the proxy running?"),
        (("status",), {"FAIRLEAD_URL": "not a url"}, 1, "did not answer"),
        (("status",), {"FAIRLEAD_URL": another}, 1, "not an ops port"),
        (("nodes", "--json"), {"FAIRLEAD_URL": f"http://127.0.0.1:{fleet.http}/x"}, 1, "ROUTE_UNKNOWN"),
    ]
    found = ctl(fleet, *((words, environ) for words, environ, _, _ in expected))
    for (words, environ, status, wanted), (ended_with, out, err) in zip(expected, found, strict=True):
        assert ended_with == status, f"{words} {environ}: {ended_with} {out}{err}"
        assert wanted in err, f"{words} {environ}: {err}"
        assert out == "", words


def test_ctl_as_a_process_of_its_own(fleet: Fleet) -> None:
    url = f"http://127.0.0.1:{fleet.ops_port}"
    good = run_cli("ctl", "nodes", "--url", url, "--ops-key", fleet.ops_key)
    assert (good.returncode, good.stderr) == (0, "")
    bad = run_cli("ctl", "nodes", "--url", url, "--ops-key", "wrong" * 8)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "correlation id" in bad.stderr


# -- the README


def test_the_curl_lines_of_the_readme_work_as_printed(fleet: Fleet) -> None:
    text = README.read_text().replace("\\\n", " ")
    commands = [line.strip() for line in text.splitlines() if line.startswith("    curl ")]
    assert len(commands) >= 3, "the README shows how to ask"
    path = f"{tool('curl').parent}:{os.environ['PATH']}"
    environ = {"PATH": path, "FAIRLEAD_OPS_KEY": fleet.ops_key, "HOME": str(fleet.folder)}
    for command in commands:
        bare = command.partition("  #")[0]
        here = bare.replace(":8080", f":{fleet.http}").replace(":9100", f":{fleet.ops_port}")
        assert here != bare, f"no demo port in: {bare}"
        done = subprocess.run(
            ["bash", "-c", here], env=environ, capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 0, f"{here}\n{done.stderr}"
        _answers.append(done.stdout)
        answer = json.loads(done.stdout)
        assert "reason" not in answer or answer["reason"] == "", f"{here}\n{answer}"
        if "/api/dispatch" in here:
            assert answer["status"] == "COMPLETED", answer


# -- starting


def test_a_bad_configuration_is_refused_with_all_its_problems(tmp_path: Path) -> None:
    made = Fleet(
        tmp_path,
        proxy={
            "routing": {"default_backend_id": "nowhere"},
            "limits": {"head_timeout_s": 0, "no_such_key": 1},
            "messaging": {"control_replay_window_millis": 1_000},
        },
    )  # fmt: skip
    process = made.processes[PROXY]
    weak = "00112233" * 8
    process.environ = {**process.environ, "SECURITY_PROXY_SECRET": weak, "DISPATCH_NO_SUCH": "1"}
    with closing(made):
        process.start()
        assert process.wait() == 2
    said = process.log()
    for each in (
        "routing.default_backend_id", "limits.head_timeout_s", "limits.no_such_key", "SECURITY_PROXY_SECRET",
        "messaging.control_replay_window_millis", "DISPATCH_NO_SUCH",
    ):  # fmt: skip
        assert each in said, f"{each} is not told:\n{said}"
    assert weak not in said
    assert made.ops_key not in said
    assert "Traceback" not in said
    assert not (tmp_path / "fairlead.db").exists(), "nothing was begun"
    for port in (made.http, made.game, made.control, made.ops_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, "something listens"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for verb in ("proxy", "node"):
        done = run_cli(verb, "--config", str(tmp_path / "nothing.toml"))
        assert done.returncode == 2
        assert "nothing.toml" in done.stderr
        assert "Traceback" not in done.stderr


def test_ports_in_use_are_told_and_nothing_stays(tmp_path: Path) -> None:
    with ExitStack() as stack:
        fleets = {taken: Fleet(tmp_path / taken) for taken in ("http", "game", "control", "ops_port")}
        for taken, made in fleets.items():
            stack.enter_context(closing(socket.create_server(("127.0.0.1", getattr(made, taken)))))
            stack.callback(made.close)
            made.processes[PROXY].start()
        for taken, made in fleets.items():
            assert made.processes[PROXY].wait() == 1
            said = made.processes[PROXY].log()
            assert "start_refused" in said
            assert f"127.0.0.1:{getattr(made, taken)}" in said, f"{taken}: {said}"
            assert "Traceback" not in said


# -- stopping


def test_sigterm_drains_and_a_second_one_stops_at_once(tmp_path: Path) -> None:
    with closing(Fleet(tmp_path).start()) as made:
        with dial(made.game) as game:
            assert game.recv(100).startswith(b"welcome")
            made.signal(PROXY, signal.SIGTERM)
            until(lambda: made.ops("GET", "/health").json()["status"] == "DRAINING", "it drains")
            assert made.ops("GET", "/health").status == 503
            with socket.socket() as late:
                assert late.connect_ex(("127.0.0.1", made.http)) != 0, "no new clients"
            game.sendall(b"hello\n")
            assert game.recv(100) == b"lobby-1: hello\n", "who is here is served to the end"
            made.signal(PROXY, signal.SIGTERM)
            assert made.processes[PROXY].wait() == 0
        assert "Traceback" not in made.processes[PROXY].log()
        made.restart(PROXY)
        made.wait_ready()
        run_id = made.dispatch("demo:sleep", target="lobby-1", wait_s=0, ms=500).json()["run_id"]
        node_port = made.processes["lobby-1"].health_port
        until(lambda: http_call(node_port, "GET", "/health").json()["queue"]["running"] == 1, "it runs")
        assert made.stop("lobby-1") == 0
        run = until(lambda: ended(made, run_id), "the run has ended", more=made.tails)
        assert run["status"] == "COMPLETED", "a stopping node finishes what it began"
        assert made.node_state("lobby-1")["last_end"]["reason"] == "LINK_CLOSED"
        made.serves()
        assert made.stop("lobby-2") == 0
        assert made.stop(PROXY) == 0
        for process in made.processes.values():
            assert "Traceback" not in process.log(), process.log()


# -- secrets


def test_no_secret_is_ever_shown(fleet: Fleet) -> None:
    """Looks through all that was logged and answered in this file, and asks once more for everything."""
    for path in ("/status", "/metrics", "/metrics/reasons", "/health", "/api/nodes", "/api/commands", "/api/sessions",
                 "/api/runs", "/openapi.json", "/nothing", f"/api/runs/{'x' * 40}"):  # fmt: skip
        told(fleet.ops("GET", path))
        told(fleet.ops("GET", path, key="guess" * 8))
        told(fleet.client(path, headers={"x-ops-key": fleet.ops_key}))
    told(fleet.ops("GET", "/status", headers={"accept": "text/html"}))
    for name in fleet.nodes:
        for path in ("/status", "/metrics", "/health"):
            told(http_call(fleet.processes[name].health_port, "GET", path))
    told(fleet.ops("POST", "/api/dispatch", b"{"))
    ctl(fleet, (("status", "--json"), {}))
    for process in fleet.processes.values():  # a refused reload shows the configuration's problems
        os.kill(process.pid, signal.SIGHUP)
    until(
        lambda: all("reload" in each.log() for each in fleet.processes.values()), "reloaded", more=fleet.tails
    )

    secret = bytes.fromhex(fleet.secret)
    hidden: dict[str, str] = {"the secret": fleet.secret, "the operator key": fleet.ops_key}
    keys = {f"the key of {name} at {epoch}": node_key(fleet.secret, name, epoch).psk
            for name in (*fleet.nodes, "proxy") for epoch in (0, 1)}  # fmt: skip
    keys |= {f"a {role.name} key": node_key(fleet.secret, "lobby-1", 0, role).psk
             for role in (Role.CLIENT, Role.EDGE)}  # fmt: skip
    for what, raw in {"the secret": secret, **keys}.items():
        hidden[f"{what} in hex"] = raw.hex()
        hidden[f"{what} in base64"] = base64.b64encode(raw).decode().rstrip("=")
        hidden[f"{what} in base64url"] = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        hidden[f"{what} as Python shows it"] = repr(raw)[2:-1]
    seen = {process.name: process.log() for process in fleet.processes.values()}
    seen["what was answered"] = "\n".join(_answers)
    assert len(_answers) > 60
    for where, text in seen.items():
        for what, value in hidden.items():
            assert value.lower() not in text.lower(), f"{what} is in {where}"
            assert value[:24].lower() not in text.lower(), f"the beginning of {what} is in {where}"


def test_nothing_failed_unexpectedly(fleet: Fleet) -> None:
    for process in fleet.processes.values():
        assert "Traceback" not in process.log(), fleet.tails()
        assert "INTERNAL_ERROR" not in process.log(), fleet.tails()
    assert fleet.rejects(Reason.INTERNAL_ERROR) == 0
    assert traits(Reason.INTERNAL_ERROR).status == 500
