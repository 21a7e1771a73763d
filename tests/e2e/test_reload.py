"""A proxy's configuration read again, by signal and by an operator, while clients are connected."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.ctl import ctl_json
from tests.support.processes import PROXY, Fleet, until
from tests.support.provocations import refused
from tests.support.raw_peer import dial

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e


def rewrite(fleet: Fleet, old: str, new: str) -> None:
    path = fleet.folder / "proxy.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_routes_and_limits_change_and_sessions_do_not_notice(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    with closing(fleet.start()), dial(fleet.game) as game:
        assert game.recv(100).startswith(b"welcome")
        assert fleet.client().json()["node"] == "lobby-1"
        rewrite(fleet, 'default_backend_id = "lobby-1"', 'default_backend_id = "lobby-2"')
        rewrite(fleet, "connection_per_ip_max = 100000", "connection_per_ip_max = 100001")
        assert ctl_json(fleet, "reload") == {
            "applied": ["rate_limits.connection_per_ip_max", "routing.default_backend_id"], "waiting": [],
        }  # fmt: skip
        assert fleet.client().json()["node"] == "lobby-2"
        game.sendall(b"still here\n")
        assert b"still here" in game.recv(100)


def test_a_bad_file_is_refused_and_the_last_good_one_stays(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, nodes=("lobby-1",))
    with closing(fleet.start()):
        rewrite(fleet, 'default_backend_id = "lobby-1"', 'default_backend_id = "nowhere"')
        answer = refused(fleet.ops("POST", "/api/reload", {}), Reason.CONFIGURATION_REFUSED)
        assert "routing.default_backend_id" in answer.json()["detail"]
        fleet.signal(PROXY, signal.SIGHUP)
        until(lambda: fleet.processes[PROXY].log().count("reload_refused") == 2, "refused", more=fleet.tails)
        fleet.serves()


def test_a_node_that_is_listed_later_may_link_and_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, nodes=("lobby-1",), lab=True)
    path = fleet.folder / "proxy.toml"
    granted = path.read_text()
    assert 'id = "lab-1"' in granted
    path.write_text(granted.replace('id = "lab-1"', 'id = "lab-9"'))
    lab = fleet.processes.pop("lab-1")
    with closing(fleet.start()):
        fleet.processes["lab-1"] = lab
        lab.start()
        until(
            lambda: fleet.refusals_logged(Reason.IDENTITY_NOT_LISTED), "it is turned away", more=fleet.tails
        )
        path.write_text(granted.replace("node_timeout_millis = 5000", "node_timeout_millis = 6000"))
        answer = fleet.ops("POST", "/api/reload", {}).json()
        assert answer["applied"] == ["nodes"]
        assert answer["waiting"] == ["messaging.node_timeout_millis"]
        until(lambda: fleet.node_state("lab-1")["state"] == "ONLINE", "it links", more=fleet.tails)
