"""What newcomers ran into, each once: kept so that nobody does again."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.processes import PROXY, Fleet, clean_environ, free_port, http_call, run_cli, until

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def test_a_client_that_simply_leaves_is_nobodys_fault(tmp_path: Path) -> None:
    """A full close by the player, while the game still says goodbye, was booked as the backend's failure."""
    with closing(Fleet(tmp_path, nodes=("lobby-1",)).start()) as fleet:
        for _ in range(30):
            player = socket.create_connection(("127.0.0.1", fleet.game))
            assert player.recv(99)
            player.close()
        until(lambda: fleet.metric("fairlead_edge_sessions", listener="game") == 0, "all have left")
        assert fleet.rejects(Reason.BACKEND_CLOSED_EARLY) == 0
        fleet.serves()


def test_a_caller_who_waits_is_answered_when_the_proxy_stops(tmp_path: Path) -> None:
    """The run goes on; its caller is told its id instead of nothing."""
    with closing(
        Fleet(tmp_path, nodes=("lobby-1",), proxy={"limits": {"shutdown_grace_s": 1}}).start()
    ) as fleet:
        answers = []
        caller = threading.Thread(
            target=lambda: answers.append(fleet.dispatch("demo:sleep", "lobby-1", wait_s=30, ms=20_000))
        )
        caller.start()
        until(lambda: fleet.metric("fairlead_runs_outstanding") == 1, "it is executing")
        assert fleet.stop(PROXY) == 0
        caller.join(10)
        assert [answer.status for answer in answers] == [202]
        assert answers[0].json()["status"] == "RUNNING"


def test_a_node_that_stops_does_not_link_again(tmp_path: Path) -> None:
    """The back-off's jitter may be close to nothing: once in twenty stops a node dialled again on its way out."""
    at_once = {"reconnect_base_millis": 10, "reconnect_max_millis": 10}
    with closing(Fleet(tmp_path, nodes=("lobby-1",), node=at_once).start()) as fleet:
        for _ in range(3):
            before = fleet.processes["lobby-1"].log().count("link_established")
            assert fleet.stop("lobby-1") == 0
            assert fleet.processes["lobby-1"].log().count("link_established") == before
            fleet.restart("lobby-1")
            fleet.wait_ready()


def test_handlers_are_found_in_the_folder_one_is_in(tmp_path: Path) -> None:
    (tmp_path / "my_mod.py").write_text("from fairlead.backend import Node\nnode = Node()\n")
    (tmp_path / "node.toml").write_text(
        f'schema_version = 1\nserver_id = "n1"\nproxies = ["127.0.0.1:{free_port()}"]\n'
        f'data_dir = "{tmp_path}/data"\n[health]\nport = {free_port()}\n'
    )
    environ = {**clean_environ(), "FAIRLEAD_PROXY_SECRET": os.urandom(32).hex()}

    def start(handlers: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "fairlead.cli", "node", "--config", "node.toml", "--handlers", handlers],
            cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    good = start("my_mod:node")
    assert good.stdout is not None
    assert "node_ready" in next(line for line in good.stdout if "node_ready" in line)
    good.terminate()
    good.communicate(timeout=15)
    assert good.returncode == 0
    for handlers, wanted in (
        ("nowhere:node", "it is looked for in"), ("my_mod:nope", "no attribute 'nope'"), ("my_mod", "my_mod:node"),
    ):  # fmt: skip
        bad = start(handlers)
        out, _ = bad.communicate(timeout=15)
        assert bad.returncode == 2
        assert wanted in out
        assert "Traceback" not in out


DEMO_PORTS = (8080, 8081, 8082, 8083, 8084, 9100, 9201, 9202, *range(25565, 25571))


def free_offset() -> int:
    """An offset at which nobody has any of the demo's ports: beside those of `free_port`, below connections."""
    for offset in random.sample(range(100, 7_000), 500):
        try:
            for port in DEMO_PORTS:
                with closing(socket.socket()) as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return offset
    raise AssertionError("no free offset")


def demo(folder: Path, offset: int, **more: str) -> subprocess.Popen[str]:
    environ = {**clean_environ(), "FAIRLEAD_DATA": str(folder), "FAIRLEAD_PORT_OFFSET": str(offset), **more}
    return subprocess.Popen(
        [sys.executable, "-m", "fairlead.cli", "demo"], env=environ, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} was never said:\n{seen}")


def test_the_demo_from_start_to_stop(tmp_path: Path) -> None:
    """One demo for each folder; environment that is no secret reaches it; a killed node comes back; it stops."""
    offset, older = free_offset(), secrets.token_hex(24)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo.env").write_text(
        f"FAIRLEAD_OPS_KEY={older}\nDEMO_PROXY_SECRET={secrets.token_hex(32)}\n"
    )
    with demo(tmp_path / "data", offset, DISPATCH_RETENTION_HOURS="99") as first:
        try:
            wait_for(first, "Ctrl-C stops everything")
            values = dict(
                line.split("=", 1)
                for line in (tmp_path / "data/demo.env").read_text().splitlines()
                if "=" in line
            )
            assert (tmp_path / "data/demo.env").stat().st_mode & 0o077 == 0
            assert values["FAIRLEAD_OPS_KEY"] == older, "what an earlier version wrote is kept, and completed"
            second = demo(tmp_path / "data", free_offset())
            out, _ = second.communicate(timeout=20)
            assert second.returncode == 1
            assert "another demo uses" in out
            pid = int((tmp_path / "data/demo/lobby-1.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            wait_for(first, "lobby-1 ended with status -9; starting it again")
            ctl = {"FAIRLEAD_OPS_KEY": values["FAIRLEAD_OPS_KEY"], "FAIRLEAD_URL": values["FAIRLEAD_URL"]}
            ended = run_cli(
                "ctl", "dispatch", "demo:add", "key=a", "amount=3", "--target", "lobby-1", environ=ctl
            )
            assert "COMPLETED" in ended.stdout, ended
            submitted = subprocess.run(
                [sys.executable, str(ROOT / "examples/submit.py")],
                env={**clean_environ(), "FAIRLEAD_DATA": str(tmp_path / "data")}, capture_output=True, text=True,
                timeout=30, check=False,
            )  # fmt: skip
            assert "100 of 100 completed" in submitted.stdout, submitted
            assert "'total': 3" in submitted.stdout
            assert "FAILED HANDLER_FAILED" in submitted.stdout, "and a dead letter is left"
            assert "1 queued" in run_cli("ctl", "dlq", environ=ctl).stdout
            told = run_cli(
                "ctl",
                "dispatch",
                "demo:echo",
                "--callback-url",
                f"http://127.0.0.1:{8080 + offset}/echo",
                environ=ctl,
            )
            assert "COMPLETED" in told.stdout, "a callback may reach the demo's own loopback"
            assert http_call(8080 + offset, "GET", "/whoami").status == 200
            assert http_call(9100 + offset, "GET", "/").status == 302
        finally:
            first.send_signal(signal.SIGINT)
            rest, _ = first.communicate(timeout=30)
        assert first.returncode == 0, rest
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # nothing of it is left
        try:
            socket.create_connection(("127.0.0.1", 9100 + offset), 1).close()
        except OSError:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the proxy outlived its demo")


def test_the_demo_keeps_its_runs_where_store_url_says(tmp_path: Path, database_url: str) -> None:
    offset = free_offset()
    with demo(tmp_path / "data", offset, STORE_URL=database_url) as process:
        try:
            said = wait_for(process, "Ctrl-C stops everything")
            assert "the store is postgresql" in said
            assert http_call(9100 + offset, "GET", "/status").json()["store"] == "postgresql"
            assert not (tmp_path / "data/fairlead.db").exists()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_demo_that_cannot_start_says_why_and_gives_up(tmp_path: Path) -> None:
    offset = free_offset()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/fairlead.db").write_bytes(
        b"this is no database, and long enough to be read as one" * 40
    )
    process = demo(tmp_path / "data", offset)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "proxy does not start" in out
    assert "not a database" in out
