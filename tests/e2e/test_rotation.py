"""Rotating the secret as SECURITY.md says: nobody is lost on the way, and who is late is seen."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.processes import PROXY, Fleet, run_cli, until

pytestmark = pytest.mark.e2e


def restart(fleet: Fleet, name: str, environ: Mapping[str, str], *removed: str) -> None:
    """Stop a process and start it with another environment."""
    assert fleet.stop(name) == 0
    process = fleet.processes[name]
    kept = {key: value for key, value in process.environ.items() if key not in removed}
    process.environ = {**kept, **environ}
    process.start()


def key_of(fleet: Fleet, node: str) -> str:
    found = fleet.node_state(node)
    return str(found["key"]) if found["connected"] and found["registry"]["synchronized"] else ""


def test_the_secret_is_rotated_without_losing_a_node(tmp_path: Path) -> None:
    new = secrets.token_hex(32)
    with closing(Fleet(tmp_path).start()) as fleet:
        old = fleet.secret
        overlap = {
            "SECURITY_PROXY_SECRET": new,
            "SECURITY_PROXY_SECRET_PREVIOUS": old,
            "SECURITY_PROXY_SECRET_PREVIOUS_EXPIRES_AT": "2099-01-01T00:00:00Z",
        }
        restart(fleet, PROXY, overlap)
        fleet.wait_ready()
        assert [key_of(fleet, node) for node in fleet.nodes] == ["previous", "previous"]
        assert fleet.metric("fairlead_node_links", key="previous") == 2
        health = fleet.ops("GET", "/health").json()
        assert (health["status"], health["checks"]["keys"]["reason"]) == ("DEGRADED", "PREVIOUS_KEY_EXPIRED")
        fleet.serves()

        # One node gets the secret, the other only its own derived key: both speak with the new one.
        restart(fleet, "lobby-1", {"FAIRLEAD_PROXY_SECRET": new, "FAIRLEAD_PROXY_SECRET_PREVIOUS": old})
        derived = run_cli(
            "secret", "node-key", "lobby-2", environ={"SECURITY_PROXY_SECRET": new}
        ).stdout.strip()
        restart(fleet, "lobby-2", {"FAIRLEAD_NODE_KEY": derived}, "FAIRLEAD_PROXY_SECRET")
        for node in fleet.nodes:
            until(
                lambda node=node: key_of(fleet, node) == "current", f"{node} on the new key", more=fleet.tails
            )
        assert fleet.metric("fairlead_node_links", key="previous") == 0
        until(lambda: fleet.ops("GET", "/health").json()["checks"]["keys"]["state"] == "ok", "health is good")

        restart(
            fleet, PROXY, {"SECURITY_PROXY_SECRET": new}, "SECURITY_PROXY_SECRET_PREVIOUS",
            "SECURITY_PROXY_SECRET_PREVIOUS_EXPIRES_AT",
        )  # fmt: skip
        fleet.wait_ready()
        fleet.serves()
        for process in fleet.processes.values():
            text = process.log()
            assert old not in text, process.name
            assert new not in text, process.name
            assert derived not in text, process.name


def test_a_node_that_is_ahead_of_the_proxy_falls_back_to_its_previous_key(tmp_path: Path) -> None:
    """Nodes may be given the new secret first: they link with the previous one until the proxy knows the new."""
    with closing(Fleet(tmp_path, nodes=("lobby-1",)).start()) as fleet:
        new = secrets.token_hex(32)
        restart(
            fleet, "lobby-1", {"FAIRLEAD_PROXY_SECRET": new, "FAIRLEAD_PROXY_SECRET_PREVIOUS": fleet.secret}
        )
        fleet.wait_ready()
        assert key_of(fleet, "lobby-1") == "current"
        fleet.serves()
