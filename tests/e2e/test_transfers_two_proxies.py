"""Two proxies on one PostgreSQL: a command about a client is executed by the proxy that has the client."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.postgres import Databases
from tests.support.processes import PROXY, Fleet

pytestmark = pytest.mark.e2e
OTHER = "proxy-b"


def test_the_proxy_that_has_the_session_executes_what_another_one_accepted(
    tmp_path: Path, postgres: Databases
) -> None:
    url = postgres.create_database()
    fleet = Fleet(
        tmp_path, more_proxies=(OTHER,), proxy={"store": {"url": url}, "dispatch": {"lease_ms": 2_000}}
    )
    try:
        with closing(fleet.start()), closing(http.client.HTTPConnection("127.0.0.1", fleet.http)) as client:
            client.request("GET", "/whoami")
            first = json.loads(client.getresponse().read())["node"]
            other = "lobby-2" if first == "lobby-1" else "lobby-1"
            sessions = fleet.ops("GET", f"/api/sessions?kind=http&backend={first}").json()["sessions"]
            session = sessions[-1]["id"]
            assert fleet.ops("GET", "/api/sessions", at=OTHER).json()["total"] == 0
            body = {"command": "fairlead:transfer", "args": {"session": session, "to": other}}
            ended = fleet.ops("POST", "/api/dispatch", body, {"prefer": "wait=10"}, at=OTHER).json()
            assert (ended["status"], ended["result"]["to"]) == ("COMPLETED", other), fleet.tails()
            assert ended["node_id"] == f"proxy:{session.partition('.')[0]}"
            client.request("GET", "/whoami")
            assert json.loads(client.getresponse().read())["node"] == other
            args = {"session": f"{session[:-4]}0000", "to": other}
            ended = fleet.ops(
                "POST", "/api/dispatch", {**body, "args": args}, {"prefer": "wait=10"}, at=OTHER
            )
            assert (ended.json()["status"], ended.reason) == ("FAILED", "SESSION_UNKNOWN")
            target = {"command": "demo:echo", "args": {"text": "x"}, "target": f"session:{session}"}
            assert fleet.ops("POST", "/api/dispatch", target, at=OTHER).reason == "SESSION_UNKNOWN"
            there = fleet.ops("POST", "/api/dispatch", target, {"prefer": "wait=10"}, at=PROXY).json()
            assert there["node_id"] == other
    finally:
        fleet.close()
        postgres.drop_database(url)
