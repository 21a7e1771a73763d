"""Every secret is rotated while applications submit, callers sign and players play: nobody notices.

What callers were promised is held against the store afterwards: every accepted run ended COMPLETED. The clients'
sessions through the edge are the same connections from the first to the last moment.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.ctl import Said, ctl, ctl_json
from tests.support.issuer import IssuerKey
from tests.support.processes import PROXY, Fleet, http_call, run_cli, until

from fairlead.cli.main import main
from fairlead.client import open_client
from fairlead.protocol.reasons import Reason
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.request_signing import sign, signing_keys
from fairlead.runtime.world import RealWorld

pytestmark = pytest.mark.e2e

ISSUER, AUDIENCE = "https://issuer.test/", "fairlead-e2e"
QUIET_S = 2


class KeyFolder:
    """The files in which an operator keeps secrets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, secret: str) -> str:
        path = self.folder / name
        path.touch(0o600)
        path.write_text(secret)
        return str(path)


def fleet_of(folder: Path) -> tuple[Fleet, KeyFolder, dict[str, str]]:
    """A fleet whose secrets are all in files, and those secrets. Clients come through gates, and each request over a
    connection of its own, so that proofs of proxy are rotated with the rest."""
    keys = KeyFolder(folder / "keys")
    held = {name: secrets.token_hex(32) for name in ("proxy", "hmac", "jwt")}
    named = {name: keys.put(name, secret) for name, secret in held.items()}
    fleet = Fleet(
        folder,
        gated=True,
        proxy={
            "limits": {"upstream_idle_max": 0},
            "security": {"proxy_secret_file": named["proxy"]},
            "dispatch": {"hmac_secret_file": named["hmac"]},
            "jwt": {
                "issuer": ISSUER, "audience": AUDIENCE, "hs256_secret_file": named["jwt"], "default_role": "operator",
            },
            "clients": [{"id": "shop"}],
        },
    )  # fmt: skip
    for process in fleet.processes.values():
        unset = ("SECURITY_PROXY_SECRET", "FAIRLEAD_PROXY_SECRET")
        process.environ = {key: value for key, value in process.environ.items() if key not in unset}
    for node in fleet.nodes:
        configure(fleet, node, proxy_secret_file=keys.put(f"{node}-proxy", held["proxy"]))
    return fleet, keys, held


def configure(fleet: Fleet, node: str, **keys: Any) -> None:
    """Set keys at the top of a node's configuration."""
    path = fleet.folder / f"{node}.toml"
    kept = [line for line in path.read_text().splitlines() if not re.match(r"(proxy_secret|node_key)", line)]
    path.write_text("\n".join([*(f"{key} = {json.dumps(value)}" for key, value in keys.items()), *kept, ""]))


def rotate(fleet: Fleet, step: str, kind: str = "proxy", *more: str) -> Said:
    """`fairlead secret rotate`, which tells the proxy to reload and waits until it did."""
    words = [
        "secret",
        "rotate",
        step,
        "--url",
        f"http://127.0.0.1:{fleet.ops_port}",
        "--ops-key",
        fleet.ops_key,
    ]
    if step != "status":
        words += [
            "--config",
            str(fleet.folder / "proxy.toml"),
            "--kind",
            kind,
            "--pid",
            str(fleet.processes[PROXY].pid),
        ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*words, "--quiet", f"{QUIET_S}s", *more])
    return Said(status, out.getvalue(), err.getvalue())


def done(said: Said) -> Said:
    assert said.status == 0, said
    return said


def new_secret(fleet: Fleet, said: Said) -> str:
    """What `prepare` made."""
    return Path(said.out.split(" holds a new secret")[0]).read_text().strip()


def key_of(fleet: Fleet, node: str) -> str:
    found = fleet.node_state(node)
    return str(found["key"]) if found["connected"] and found["registry"]["synchronized"] else ""


def standing(fleet: Fleet, kind: str = "proxy") -> Any:
    answer = fleet.ops("GET", f"/api/secrets?quiet_s={QUIET_S}").json()
    return next(each for each in answer["secrets"] if each["kind"] == kind)


def audited(fleet: Fleet) -> Any:
    return fleet.ops("GET", "/api/ops/reliability/audit?limit=200").json()["events"]


def signed_run(fleet: Fleet, secret: str, command: str, target: str, **args: Any) -> Any:
    """A run to its end, submitted with an operator's key and a signature."""
    body = json.dumps({"command": command, "target": target, "args": args}).encode()
    (key,) = signing_keys([bytes.fromhex(secret)])
    signature = sign(key, "POST", "/api/dispatch", body, int(time.time() * 1000), secrets.token_hex(16))
    return fleet.ops("POST", "/api/dispatch", body, {"x-signature": signature, "prefer": "wait=10"}).json()


# -- load


class Load:
    """Threads that go on until told to stop, and what went wrong in them."""

    def __init__(self, fleet: Fleet, held: dict[str, str]) -> None:
        self.fleet, self.held = fleet, held
        self.accepted: list[str] = []
        self.problems: list[str] = []
        self.played = {"http": 0, "tcp": 0, "signed": 0, "linked": 0}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(each,), daemon=True)
            for each in (self._browse, self._play, self._submit)
        ]
        self._app: threading.Thread | None = None
        self._app_stop = threading.Event()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        self.start_app()

    def stop(self) -> None:
        self._stop.set()
        self._app_stop.set()
        for thread in [*self._threads, *([self._app] if self._app else [])]:
            thread.join(20)
            if thread.is_alive():
                self.problems.append(f"{thread.name} does not end")

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            self.problems.append(f"{action.__name__}: {type(error).__name__}: {error}")

    def _browse(self) -> None:
        """One connection of a browser: another one would be a dropped client."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.fleet.http, timeout=10)) as connection:
            connection.connect()
            held = connection.sock
            while not self._stop.wait(0.03):
                connection.request("GET", "/whoami")
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200, answer.status
                assert connection.sock is held, "the session was dropped"
                self.played["http"] += 1

    def _play(self) -> None:
        with socket.create_connection(("127.0.0.1", self.fleet.game), 10) as player:
            file = player.makefile("rwb")
            assert file.readline().startswith(b"welcome")
            while not self._stop.wait(0.03):
                file.write(b"still here\n")
                file.flush()
                assert file.readline().endswith(b": still here\n")
                self.played["tcp"] += 1

    def _submit(self) -> None:
        """Signs each request, and says who it is with a token."""
        for number in itertools.count():
            if self._stop.wait(0.02):
                return
            body = json.dumps(
                {"command": "demo:add", "args": {"key": "apples", "amount": 1}, "deadline_ms": 60_000,
                 "idempotency_key": f"k-{number}"}
            ).encode()  # fmt: skip
            (key,) = signing_keys([bytes.fromhex(self.held["hmac"])])
            stamp = int(time.time() * 1000)
            signature = sign(key, "POST", "/api/dispatch", body, stamp, secrets.token_hex(16))
            claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop-clerk", "exp": stamp // 1000 + 60}
            token = IssuerKey("", "HS256", bytes.fromhex(self.held["jwt"])).token(claims)
            headers = {"x-signature": signature, "authorization": f"Bearer {token}"}
            answer = http_call(self.fleet.ops_port, "POST", "/api/dispatch", body, headers)
            assert answer.status in (200, 202), answer
            self.accepted.append(answer.json()["run_id"])
            self.played["signed"] += 1

    def start_app(self) -> None:
        """An application on a link; the one before, if any, finishes what it has."""
        before, before_stop = self._app, self._app_stop
        self._app_stop = threading.Event()
        args = (self.held["proxy"], self._app_stop)
        self._app = threading.Thread(target=self._guarded_app, args=args, daemon=True)
        self._app.start()
        if before is not None:
            before_stop.set()
            before.join(20)
            assert not before.is_alive()

    def _guarded_app(self, secret: str, stop: threading.Event) -> None:
        try:
            trio.run(self._application, secret, stop)
        except Exception as error:
            self.problems.append(f"application: {type(error).__name__}: {error}")

    async def _application(self, secret: str, stop: threading.Event) -> None:
        world = RealWorld()
        observer = Observer(Log(ListSink(), world.wall_ms, "shop"), Metrics(), world.wall_ms)
        address = f"127.0.0.1:{self.fleet.control}"
        async with open_client(address, client_id="shop", secret=secret, observer=observer) as client:
            while not stop.is_set():
                await client.call("demo:add", {"key": "pears", "amount": 1}, deadline_ms=60_000)
                self.played["linked"] += 1
                await trio.sleep(0.02)

    def goes_on(self, *names: str) -> None:
        """Each kind of load, or those named, does something more, and nothing of it has failed."""
        before = {name: self.played[name] for name in names or self.played}
        until(
            lambda: self.problems or all(self.played[name] > before[name] for name in before),
            "the load goes on", more=lambda: f"{before} {self.played}\n{self.fleet.tails()}",
        )  # fmt: skip
        assert not self.problems, self.problems

    def judge(self) -> None:
        """All that was accepted ended COMPLETED, each once."""
        assert not self.problems, (self.problems, self.fleet.tails())

        def counted() -> Any:
            return self.fleet.ops("GET", "/status").json()["dispatch"]["runs"]

        until(
            lambda: not (counted().get("PENDING") or counted().get("RUNNING")), "every run has ended", 15,
            self.fleet.tails,
        )  # fmt: skip
        counts = counted()
        assert set(counts) - {status for status, count in counts.items() if not count} == {"COMPLETED"}, (
            counts
        )
        for run_id in self.accepted:
            assert self.fleet.ops("GET", f"/api/runs/{run_id}").json()["status"] == "COMPLETED"
        totals = [
            signed_run(self.fleet, self.held["hmac"], "demo:total", node, key=fruit)["result"]["total"]
            for fruit in ("apples", "pears")
            for node in self.fleet.nodes
        ]
        assert sum(totals[:2]) == len(self.accepted)
        assert sum(totals[2:]) == self.played["linked"]


@contextmanager
def under_load(tmp_path: Path) -> Iterator[tuple[Fleet, KeyFolder, Load]]:
    fleet, keys, held = fleet_of(tmp_path)
    with closing(fleet.start()):
        load = Load(fleet, held)
        load.start()
        load.goes_on()
        try:
            yield fleet, keys, load
        finally:
            load.stop()
        load.judge()
        refused = {node: fleet.rejects(Reason.PROXY_TOKEN_REJECTED, node) for node in fleet.nodes}
        assert not any(refused.values()), refused


def test_the_proxy_secret_is_rotated_under_load_and_a_revoked_node_enrolls_again(tmp_path: Path) -> None:
    with under_load(tmp_path) as (fleet, keys, load):
        old = load.held["proxy"]
        new = new_secret(fleet, done(rotate(fleet, "prepare")))
        again = rotate(fleet, "prepare")
        assert again.status == 1
        assert "is not finished" in again.err
        assert standing(fleet)["step"] == "switch"

        done(rotate(fleet, "switch"))
        assert [key_of(fleet, node) for node in fleet.nodes] == ["previous", "previous"]
        load.goes_on()
        early = rotate(fleet, "finish")
        assert early.status == 1
        assert all(
            name in early.err for name in ("SECRET_IN_USE", "node lobby-1", "node lobby-2", "client shop")
        )
        health = fleet.ops("GET", "/health").json()
        assert (health["status"], health["checks"]["keys"]["reason"]) == ("DEGRADED", "PREVIOUS_KEY_EXPIRED")
        assert fleet.metric("fairlead_secret_previous_seconds_left") > 3_600
        until(
            lambda: not [who for who in standing(fleet)["needed_by"] if "sealed rows" in who],
            "all is sealed anew",
        )

        # One node is given the new secret, and goes on with what it runs.
        configure(
            fleet, "lobby-1", proxy_secret_file=keys.put("lobby-1-new", new),
            proxy_secret_previous_file=keys.put("lobby-1-proxy", old),
        )  # fmt: skip
        fleet.signal("lobby-1", signal.SIGHUP)
        until(lambda: key_of(fleet, "lobby-1") == "current", "lobby-1 is on the new key", more=fleet.tails)
        load.goes_on()
        early = rotate(fleet, "finish")
        assert "node lobby-1" not in early.err
        assert "node lobby-2" in early.err

        # The other one is revoked, and comes back with a key of its own under the next epoch.
        epoch = fleet.ops("POST", "/api/nodes/lobby-2/revoke").json()["key_epoch"]
        until(lambda: fleet.rejects(Reason.IDENTITY_REVOKED), "lobby-2 is turned away", more=fleet.tails)
        load.goes_on("http", "tcp", "signed")  # what had begun on it waits for it, an application's call too
        derived = run_cli(
            "secret", "node-key", "lobby-2", "--epoch", str(epoch), environ={"SECURITY_PROXY_SECRET": new}
        )
        configure(fleet, "lobby-2", node_key_file=keys.put("lobby-2-key", derived.stdout.strip()))
        fleet.signal("lobby-2", signal.SIGHUP)
        until(lambda: key_of(fleet, "lobby-2") == "current", "lobby-2 is enrolled again", more=fleet.tails)

        load.held["proxy"] = new
        load.start_app()
        load.goes_on()
        done(rotate(fleet, "finish"))
        assert standing(fleet)["step"] == "prepare"
        assert old not in "".join(each.read_text() for each in keys.folder.glob("proxy*"))
        load.goes_on()
        actions = [each["action"] for each in audited(fleet)]
        assert (actions.count("secrets_changed"), actions.count("secret_released")) == (3, 1)
    for process in fleet.processes.values():
        assert not [secret for secret in (old, new) if secret in process.log()], process.name


def test_an_expired_secret_opens_nothing_and_who_is_late_comes_back_with_the_current_one(
    tmp_path: Path,
) -> None:
    with under_load(tmp_path) as (fleet, keys, load):
        new = new_secret(fleet, done(rotate(fleet, "prepare", "proxy", "--valid", "10s")))
        done(rotate(fleet, "switch"))
        load.held["proxy"] = new
        load.start_app()
        configure(fleet, "lobby-2", proxy_secret_file=keys.put("lobby-2-new", new))
        fleet.signal("lobby-2", signal.SIGHUP)
        until(lambda: key_of(fleet, "lobby-2") == "current", "lobby-2 is on the new key", more=fleet.tails)
        until(
            lambda: fleet.rejects(Reason.PREVIOUS_KEY_EXPIRED) >= 2,
            "lobby-1 is cut off, and turned away",
            15,
            fleet.tails,
        )
        assert not fleet.node_state("lobby-1")["connected"]
        load.goes_on("http", "tcp", "signed")
        configure(fleet, "lobby-1", proxy_secret_file=keys.put("lobby-1-new", new))
        fleet.signal("lobby-1", signal.SIGHUP)
        until(lambda: key_of(fleet, "lobby-1") == "current", "lobby-1 is back", more=fleet.tails)
        until(lambda: standing(fleet)["step"] == "finish", "nobody needs the old one", more=fleet.tails)
        done(rotate(fleet, "finish"))


def test_signing_secrets_and_operator_keys_are_rotated_under_load(tmp_path: Path) -> None:
    with under_load(tmp_path) as (fleet, _, load):
        for kind in ("hmac", "jwt"):
            old = standing(fleet, kind)["current"]
            new = new_secret(fleet, done(rotate(fleet, "prepare", kind)))
            done(rotate(fleet, "switch", kind))
            load.goes_on()
            early = rotate(fleet, "finish", kind)
            assert early.status == 1
            assert f"SECRET_IN_USE: {kind}: {old} is still needed by" in early.err
            load.held[kind] = new
            load.goes_on()
            until(
                lambda kind=kind: standing(fleet, kind)["step"] == "finish",
                f"{kind} is quiet",
                more=fleet.tails,
            )
            done(rotate(fleet, "finish", kind))
            load.goes_on()

        first = fleet.ops("POST", "/api/operator-keys", {"role": "operator", "note": "first"}).json()
        assert ctl(fleet, "nodes", key=first["key"]).status == 0
        second = ctl_json(fleet, "keys", "create", "--role", "operator", "--note", "second")
        assert ctl(fleet, "nodes", key=second["key"]).status == 0
        ctl_json(fleet, "keys", "revoke", first["id"])
        late = ctl(fleet, "nodes", key=first["key"])
        assert "OPERATOR_KEY_REVOKED" in late.err
        load.goes_on()


def test_a_reload_that_would_strand_somebody_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """By hand, past the command: the last good secrets stay in force until an operator insists."""
    fleet, _, held = fleet_of(tmp_path)
    with closing(fleet.start()):
        before = standing(fleet)
        path = Path(fleet.folder / "keys" / "proxy")
        path.write_text(secrets.token_hex(32))
        fleet.signal(PROXY, signal.SIGHUP)
        until(lambda: "reload_refused" in fleet.processes[PROXY].log(), "it is refused", more=fleet.tails)
        assert standing(fleet) == {**before, "needed_by": []}
        path.write_text("no secret at all")
        fleet.signal(PROXY, signal.SIGHUP)
        until(lambda: fleet.processes[PROXY].log().count("reload_refused") == 2, "so is what is no secret")
        path.write_text(held["proxy"])
        signed_run(fleet, held["hmac"], "demo:echo", "any", text="x")

        new_secret(fleet, done(rotate(fleet, "prepare")))
        done(rotate(fleet, "switch"))
        assert rotate(fleet, "finish").status == 1
        forced = done(rotate(fleet, "finish", "proxy", "--force", "--because", "the old one leaked"))
        assert "cut off: node lobby-1" in forced.err
        (event,) = [each for each in audited(fleet) if each["action"] == "secret_released"]
        assert (event["detail"]["force"], event["why"]) == (True, "the old one leaked")
        until(
            lambda: fleet.rejects(Reason.PREVIOUS_KEY_EXPIRED) == 2,
            "both nodes are cut off",
            more=fleet.tails,
        )


def test_what_is_in_no_file_is_for_whoever_keeps_it(tmp_path: Path) -> None:
    with closing(Fleet(tmp_path, nodes=("lobby-1",)).start()) as fleet:
        said = done(rotate(fleet, "prepare"))
        found = re.search(r"SECURITY_PROXY_SECRET_PREVIOUS=([0-9A-F]{64})\n", said.out)
        assert found, said
        assert "SECURITY_PROXY_SECRET_PREVIOUS_EXPIRES_AT=20" in said.out
        assert rotate(fleet, "switch").status == 1
        nothing = rotate(fleet, "finish")
        assert "there is no previous secret" in nothing.err
        assert found[1].lower() not in (fleet.folder / "proxy.toml").read_text().lower()
        shown = done(rotate(fleet, "status"))
        assert "prepare" in shown.out
        assert "fairlead ctl keys create" in shown.err
