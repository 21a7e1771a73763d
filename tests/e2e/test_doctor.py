"""The doctor on a deployment of real processes, sound and broken in each way that it tells apart."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import PROXY, Fleet, run_cli


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("doctor"), nodes=("lobby-1",), gated=True)
    with closing(made.start()):
        yield made


def doctor(fleet: Fleet, **more: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit status and what was found. `more`: environment; `proxy` and `node` name other configurations."""
    proxy, node = (more.pop(name, str(fleet.folder / f"{file}.toml")) for name, file in
                   (("proxy", PROXY), ("node", "lobby-1")))  # fmt: skip
    environ = {
        "SECURITY_PROXY_SECRET": fleet.secret, "FAIRLEAD_PROXY_SECRET": fleet.secret,
        "RELIABILITY_OPS_KEYS": fleet.ops_key, "FAIRLEAD_OPS_KEY": fleet.ops_key, **more,
    }  # fmt: skip
    done = run_cli("doctor", "--json", "--proxy-config", proxy, "--node-config", node, environ=environ)
    assert done.stdout, done.stderr
    assert fleet.secret not in done.stdout
    return done.returncode, json.loads(done.stdout)["findings"]


def errors(found: list[dict[str, Any]]) -> list[str]:
    assert all(each["next"] for each in found if each["level"] != "ok"), "each says what to do next"
    return [f"{each['check']}: {each['detail']}" for each in found if each["level"] == "error"]


def changed(fleet: Fleet, name: str, old: str, new: str) -> str:
    """The configuration with one text replaced, in a file of its own."""
    text = (fleet.folder / f"{name}.toml").read_text()
    assert old in text
    path = fleet.folder / f"{name}-changed.toml"
    path.write_text(text.replace(old, new))
    return str(path)


def test_a_sound_deployment_is_in_order(fleet: Fleet) -> None:
    status, found = doctor(fleet)
    assert (status, errors(found)) == (0, [])
    checks = {each["check"] for each in found if each["level"] == "ok"}
    assert {
        "secret of lobby-1", "trust secret of lobby-1", "sender ids of lobby-1", "control port of lobby-1",
        "gate of lobby-1", "registry of lobby-1", "versions", "clocks", "seals", "store (running)",
        "disk of store and audit file", f"port {fleet.control} (control)", f"port {fleet.ops_port} (ops)",
    } <= checks  # fmt: skip


def test_other_secrets_are_told_by_their_key_ids(fleet: Fleet) -> None:
    status, found = doctor(fleet, FAIRLEAD_PROXY_SECRET=secrets.token_hex(32))
    assert status == 1
    (wrong,) = errors(found)
    assert wrong.startswith("secret of lobby-1: the node's key has the id ")


def test_what_does_not_fit_together(fleet: Fleet) -> None:
    node = changed(
        fleet, "lobby-1", "schema_version = 1", 'schema_version = 1\ncontrol_expected_sender_id = "other"'
    )
    assert any(
        "expects other, the proxy is called proxy" in each for each in errors(doctor(fleet, node=node)[1])
    )
    node = changed(fleet, "lobby-1", f"127.0.0.1:{fleet.control}", "127.0.0.1:1")
    assert any("the node dials 127.0.0.1:1" in each for each in errors(doctor(fleet, node=node)[1]))
    proxy = changed(fleet, PROXY, "gate = true", "gate = false")
    assert any(each.startswith("gate of lobby-1: ") for each in errors(doctor(fleet, proxy=proxy)[1]))
    trusting = {"SECURITY_INTERNAL_TRUST_SHARED_SECRET": secrets.token_hex(32)}
    status, found = doctor(fleet, **trusting)  # on both sides, for both read this environment
    assert (status, errors(found)) == (0, [])


def test_ports_that_are_not_there_and_files_that_others_read(fleet: Fleet) -> None:
    proxy = changed(fleet, PROXY, f"port = {fleet.http}", "port = 1")
    assert any(each.startswith("port 1 (http): ") for each in errors(doctor(fleet, proxy=proxy)[1]))
    proxy = changed(fleet, PROXY, "schema_version = 1", "schema_version = 1\n[jwt]\n")
    assert doctor(fleet, proxy=proxy)[0] == 1
    secret = fleet.folder / "open.secret"
    secret.write_text(secrets.token_hex(32))
    os.chmod(secret, 0o644)
    folder = changed(fleet, PROXY, "[dispatch]", f'[dispatch]\nhmac_secret_file = "{secret}"')
    wrong = errors(doctor(fleet, proxy=folder)[1])
    assert any(f"file {secret}: " in each for each in wrong), wrong
    assert any(each.startswith("proxy configuration: ") for each in wrong)


def test_a_proxy_that_does_not_run_is_judged_by_its_configuration(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, nodes=("lobby-1",))
    status, found = doctor(fleet)
    assert (status, errors(found)) == (0, [])
    free = {each["check"] for each in found if "is free" in each["detail"]}
    assert f"port {fleet.control} (control)" in free
    with closing(fleet.start()):
        taken = Fleet(tmp_path / "second", nodes=("lobby-1",))
        taken.secret, taken.ops_key = fleet.secret, fleet.ops_key
        proxy = changed(taken, PROXY, f"port = {taken.http}", f"port = {fleet.http}")
        wrong = errors(doctor(taken, proxy=proxy)[1])
        assert [
            each for each in wrong if f"port {fleet.http} (http): 127.0.0.1 cannot be listened on" in each
        ], wrong


def test_a_node_that_is_gone_and_a_proxy_that_answers_nobody(fleet: Fleet) -> None:
    done = run_cli("doctor", "--json", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    (only,) = json.loads(done.stdout)["findings"]
    assert (only["check"], only["level"]) == ("proxy", "error")
    fleet.kill("lobby-1")
    status, found = doctor(fleet)
    warned = {each["check"] for each in found if each["level"] == "warning"}
    assert "node lobby-1" in warned, found
    assert (status, errors(found)) == (0, []), "it may be away on purpose"
