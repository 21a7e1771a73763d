"""The bundle of an incident on real processes: everything that the checklist asks for, and never a secret."""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.processes import PROXY, Fleet, run_cli

from fairlead.runtime.audit_chain import verify

PASSWORD = "correct-horse-battery"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("incident"), nodes=("lobby-1",))
    with closing(made.start()):
        yield made


def bundle(fleet: Fleet, output: Path, *more: str, **environ: str) -> tuple[int, str, str]:
    given = {
        "FAIRLEAD_URL": f"http://127.0.0.1:{fleet.ops_port}", "FAIRLEAD_OPS_KEY": fleet.ops_key,
        "SECURITY_PROXY_SECRET": fleet.secret, **environ,
    }  # fmt: skip
    done = run_cli("incident-bundle", "-o", str(output), *more, environ=given)
    return done.returncode, done.stdout, done.stderr


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {each.name.partition("/")[2]: archive.extractfile(each) for each in archive}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_it_holds_what_the_checklist_asks_for(fleet: Fleet, tmp_path: Path) -> None:
    before = time.time()
    refused = fleet.ops("POST", "/api/dispatch", {"command": "demo:nothing", "args": {}})
    other = fleet.ops("POST", "/api/dispatch", {"command": "demo:neither", "args": {}})
    wanted, unwanted = (each.headers["x-correlation-id"] for each in (refused, other))
    fleet.ops("PUT", "/api/controls/agents", {"tenant": "acme", "paused": True})
    config = fleet.folder / f"{PROXY}.toml"
    file = tmp_path / "incident.tar.gz"
    node = fleet.processes["lobby-1"].health_port
    status, said, error = bundle(
        fleet, file, "--since", "5m", "--correlation-id", wanted, "--log", str(fleet.processes[PROXY].log_path),
        "--proxy-config", str(config), "--node-config", str(fleet.folder / "lobby-1.toml"),
        "--node-url", f"http://127.0.0.1:{node}", "--because", "INC-7",
    )  # fmt: skip
    assert status == 0, error
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    files = read(file)
    assert {
        "manifest.json", "checklist.md", "proxy/status.json", "proxy/metrics.txt", "proxy/metrics-reasons.json",
        "proxy/health.json", "proxy/audit.jsonl", "configuration/environment.json",
    } <= set(files)  # fmt: skip
    (log,) = (data for name, data in files.items() if name.startswith("logs/"))
    assert wanted.encode() in log
    assert unwanted.encode() not in log, "only what was asked for"
    rows = [json.loads(line) for line in files["proxy/audit.jsonl"].splitlines()]
    assert any(row.get("action") == "agents_changed" for row in rows)
    assert all(row["at_ms"] >= (before - 400) * 1000 for row in rows)
    trail = tmp_path / "trail.jsonl"
    trail.write_bytes(files["proxy/audit.jsonl"])
    with open(trail, "rb") as lines:
        assert verify(lines, [], partial=True).problems == []
    assert b"fairlead_" in files["proxy/metrics.txt"]
    assert any(name.startswith("nodes/") and b"lobby-1" in data for name, data in files.items())
    series = [json.loads(data) for name, data in files.items() if name.startswith("proxy/series/")]
    assert any(each["points"] for each in series)
    manifest = json.loads(files["manifest.json"])
    assert manifest["missing"] == {}
    assert manifest["why"] == "INC-7"
    assert manifest["versions"]["nodes"] == {"lobby-1": manifest["versions"]["proxy"]}
    checklist = files["checklist.md"].decode()
    assert "COMMAND_UNKNOWN (dispatch): " in checklist
    assert "- [x] logs/" in checklist
    assert "- [ ] Root cause:" in checklist
    assert wanted in checklist
    settings = next(data for name, data in files.items() if name.endswith("proxy.toml.json"))
    assert json.loads(settings)["observability"]["port"] == fleet.ops_port
    whole = b"".join(files.values())
    assert fleet.secret.encode() not in whole
    assert fleet.ops_key.encode() not in whole
    assert "next: fill in checklist.md" in said
    done = run_cli("check", "leaks", str(file), environ={"SECURITY_PROXY_SECRET": fleet.secret})
    assert done.returncode == 0, done.stdout


def test_a_bundle_that_would_hold_a_secret_is_not_written(fleet: Fleet, tmp_path: Path) -> None:
    leak = base64.b64encode(b"x" + bytes.fromhex(fleet.secret) + b"more").decode()
    log = tmp_path / "careless.log"
    log.write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} INFO app said {leak}\n")
    file = tmp_path / "incident.tar.gz"
    status, said, error = bundle(fleet, file, "--log", str(log))
    assert status == 1
    assert not file.exists()
    assert list(tmp_path.glob("*.part")) == []
    assert "careless.log, line 1: " in error
    assert leak not in said + error, "it is named, not shown"


def test_a_proxy_that_does_not_answer_leaves_what_is_on_this_machine(tmp_path: Path) -> None:
    log = tmp_path / "proxy.log"
    log.write_text("2026-01-01T10:00:00.000Z INFO early\n2026-01-01T11:00:00.000Z INFO inside\n  and what follows\n"
                   "2026-01-01T12:00:00.000Z INFO late\n")  # fmt: skip
    file = tmp_path / "b.tar.gz"
    done = run_cli(
        "incident-bundle", "--url", "http://127.0.0.1:1", "--since", "2026-01-01T10:30:00Z", "--until",
        "2026-01-01T11:30:00Z", "--log", str(log), "-o", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = read(file)
    (lines,) = (data for name, data in files.items() if name.startswith("logs/"))
    assert lines == b"2026-01-01T11:00:00.000Z INFO inside\n  and what follows\n"
    assert "proxy/status.json" in json.loads(files["manifest.json"])["missing"]
    assert "What could not be gathered" in files["checklist.md"].decode()


def test_files_with_secrets_are_named_by_check_leaks(tmp_path: Path) -> None:
    secret = secrets.token_hex(32)
    config = tmp_path / "proxy.toml"
    config.write_text(
        f'[store]\nurl = "postgresql://me:{PASSWORD}@db/x"\n[dispatch]\nhmac_secret_file = "{tmp_path}/s"\n'
    )
    (tmp_path / "s").write_text(secret)
    clean, dirty, packed = tmp_path / "clean", tmp_path / "dirty", tmp_path / "packed.tar.gz"
    clean.write_text("nothing of note; proxy_secret=[redacted]\n")
    dirty.write_bytes(b"\n\nraw " + bytes.fromhex(secret) + b" and " + PASSWORD.encode())
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(dirty, "inside/dirty")
    done = run_cli("check", "leaks", str(clean), "--proxy-config", str(config))
    assert done.returncode == 0, done.stdout
    for each, name in ((dirty, str(dirty)), (packed, f"{packed}:inside/dirty")):
        done = run_cli("check", "leaks", "--json", str(clean), str(each), "--proxy-config", str(config))
        assert done.returncode == 1
        found = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "error"]
        assert {one["check"] for one in found} == {name}
        told = " ".join(one["detail"] for one in found)
        assert "line 3: dispatch.hmac_secret (raw bytes)" in told
        assert "the password in store.url" in told
        assert PASSWORD not in done.stdout
        assert secret not in done.stdout
    assert run_cli("check", "leaks", str(tmp_path / "absent")).returncode == 1
