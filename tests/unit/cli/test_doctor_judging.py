"""What the doctor makes of what processes say of themselves; each thing that is wrong has a next step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fairlead.cli.doctor.finding import Finding
from fairlead.cli.doctor.machine import disk, file_modes
from fairlead.cli.doctor.running import DAY_MS, expiry, judge_node, judge_probe, judge_proxy

NOW_MS = 1_800_000_000_000
NODE: dict[str, Any] = {
    "id": "lobby-1", "state": "ONLINE", "connected": True, "software": "fairlead/1.0", "skew_ms": 3,
    "registry": {"desired": 7, "acked": 7, "synchronized": True, "last_nack": None},
}  # fmt: skip
STATUS: dict[str, Any] = {
    "software": "fairlead/1.0", "proxy_id": "proxy", "now_ms": NOW_MS, "nodes": [NODE],
    "health": {"status": "READY", "checks": {}}, "registry": {"generation": 7, "digest": "ab" * 32},
    "seals": {"distrusted": {}}, "certificates": [],
}  # fmt: skip


def judged(now_ms: int = NOW_MS, software: str = "fairlead/1.0", **more: Any) -> list[Finding]:
    found = list(
        judge_proxy({**STATUS, **more}, now_ms, software=software, skew_ms_max=100_000, expiry_warn_days=14)
    )
    assert all(each.next for each in found if each.level != "ok")
    return found


def wrong(found: list[Finding]) -> list[tuple[str, str]]:
    return [(each.level, each.check) for each in found if each.level != "ok"]


def test_what_is_sound_is_in_order() -> None:
    assert wrong(judged()) == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"nodes": [{**NODE, "skew_ms": -100_001}]}, ("error", "clocks")),
        ({"nodes": [{**NODE, "skew_ms": 50_001}]}, ("warning", "clocks")),
        ({"nodes": [{**NODE, "software": "fairlead/0.9"}]}, ("warning", "versions")),
        ({"nodes": [{**NODE, "connected": False, "state": "OFFLINE"}]}, ("warning", "node lobby-1")),
        (
            {"nodes": [{**NODE, "registry": {**NODE["registry"], "acked": 5, "synchronized": False}}]},
            ("error", "registry"),
        ),
        ({"seals": {"distrusted": {"budget": ["acme"]}}}, ("error", "seals")),
        ({"certificates": [{"id": "example", "expires_at_ms": NOW_MS - 1}]}, ("error", "certificates")),
        ({"certificates": [{"id": "example", "expires_at_ms": NOW_MS + 3 * DAY_MS}]}, ("warning", "certificates")),
        (
            {"health": {"status": "FAILED", "checks": {
                "store": {"state": "fail", "reason": "STORE_UNAVAILABLE", "detail": "", "since": 0}}}},
            ("error", "health: store"),
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(more: dict[str, Any], expected: tuple[str, str]) -> None:
    assert wrong(judged(**more)) == [expected]


def test_our_own_clock_and_our_own_version() -> None:
    assert wrong(judged(now_ms=NOW_MS + 60_000)) == [("warning", "clocks")]
    assert wrong(judged(software="fairlead/2.0")) == [("warning", "versions")]


def test_a_node_with_another_registry_and_a_probe_that_fails() -> None:
    node = {"registry": {"generation": 6, "digest": "cd" * 32}, "health": {"checks": {}}}
    assert wrong(list(judge_node("lobby-1", node, [STATUS]))) == [("error", "registry of lobby-1")]
    same = {**node, "registry": STATUS["registry"]}
    assert wrong(list(judge_node("lobby-1", same, [STATUS]))) == []
    probe = {"store": {"ok": False, "ms": 5_000, "detail": "disk I/O error"}, "disk": {"ok": True, "ms": 1}}
    assert wrong(list(judge_probe(probe))) == [("error", "store (running)")]
    assert expiry("x", NOW_MS + 400 * DAY_MS, NOW_MS, 14).level == "ok"


def test_files_of_secrets_and_disks(tmp_path: Path) -> None:
    config, secret = tmp_path / "proxy.toml", tmp_path / "s"
    config.write_text(
        f'[security]\nproxy_secret = "{"ab" * 32}"\n[dispatch]\nhmac_secret_file = "{secret}"\n'
    )
    os.chmod(config, 0o644)
    found = file_modes(str(config))
    assert [(each.level, each.check) for each in found] == [
        ("error", f"file {config}"),
        ("error", f"file {secret}"),
    ]
    assert "ab" * 32 not in str(found)
    secret.write_text("x")
    for path in (config, secret):
        os.chmod(path, 0o600)
    assert [each.level for each in file_modes(str(config))] == ["ok"]
    assert {each.check for each in disk("store", tmp_path)} == {"disk of store", "flush of store"}
    there = list(disk("store", tmp_path / "later"))
    assert (there[0].level, "not there yet" in there[0].detail) == ("warning", True)
    assert not (tmp_path / "later").exists()
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".doctor")] == []
