"""The status page: what is wrong comes first, and nothing from outside becomes markup."""

from __future__ import annotations

from typing import Any

from fairlead.proxy.ops.page import render

HOSTILE = '<script>alert("&")</script>'
NODE: dict[str, Any] = {
    "id": "lobby-1", "state": "ONLINE", "paused": False, "connected": True, "last_end": None, "announce_refused": [],
    "registry": {"acked": 4, "desired": 4, "lag": 0, "last_nack": None},
    "queue": {"running": 1, "waiting": 0, "capacity": 272}, "skew_ms": None, "key": "current", "offers": ["a:b"],
}  # fmt: skip


def status(**changes: Any) -> dict[str, Any]:
    ok = {"state": "ok", "since": 0, "reason": "", "detail": ""}
    whole: dict[str, Any] = {
        "software": "fairlead/0", "proxy_id": "proxy", "uptime_s": 3, "store": "sqlite",
        "health": {"status": "READY", "checks": {"store": ok, "siblings": ok}},
        "registry": {"generation": 4, "commands": 1, "digest": "ab" * 32},
        "nodes": [NODE], "clients": [], "listeners": [], "rejects": {},
        "dispatch": {
            "runs": {"COMPLETED": 3}, "pending": 0, "delayed": 0, "outstanding": 0, "circuits": {},
            "paused_tenants": [], "callbacks": {"pending": 0, "dead": 0},
            "dead_letters": {"queued": 0, "replay_requested": 0, "replayed": 0},
            "lag": {"p50_ms": None, "p95_ms": None, "p99_ms": None, "samples": 0, "oldest_due_ms": 0},
        },
    }  # fmt: skip
    for path, value in changes.items():
        target = whole
        *way, last = path.split("__")
        for part in way:
            target = target[part]
        target[last] = value
    return whole


def tile(page: str, name: str) -> str:
    """What a tile says."""
    return page.partition(f"<small>{name}</small><b>")[2].partition("</b>")[0]


def test_a_healthy_proxy_says_that_nothing_is_wrong() -> None:
    page = render(status())
    assert "Nothing is wrong" in page
    assert 'class="t w"' not in page
    assert tile(page, "lag p50 / p95 / p99, ms") == "- / - / -"


def test_what_is_wrong_comes_before_everything_else() -> None:
    failing = {"state": "fail", "since": 0, "reason": "STORE_UNAVAILABLE", "detail": HOSTILE}
    page = render(status(
        health__checks={"store": failing, "siblings": failing}, store="postgresql",
        dispatch__dead_letters={"queued": 7, "replay_requested": 2, "replayed": 5},
        dispatch__lag={"p50_ms": 0.25, "p95_ms": 20.4, "p99_ms": 300.0, "samples": 9, "oldest_due_ms": 6_000},
        dispatch__circuits={"lobby-1": "open"}, dispatch__paused_tenants=["*", HOSTILE],
        dispatch__callbacks={"pending": 1, "dead": 2},
    ))  # fmt: skip
    assert page.index("STORE_UNAVAILABLE") < page.index("7 queued") < page.index("<h2>Nodes</h2>")
    assert "does not hear its siblings" in page
    assert [tile(page, name) for name in ("dead letters queued", "replay requested", "replayed")] == [
        "7",
        "2",
        "5",
    ]
    assert tile(page, "lag p50 / p95 / p99, ms") == "0.2 / 20 / 300"
    assert tile(page, "circuits open") == "lobby-1"
    assert "circuit open" in page
    assert "everybody" in tile(page, "tenants paused")
    assert tile(page, "callbacks dead") == "2"
    assert page.count('class="t w"') == 5, "dead letters, age, circuit, pause, callbacks"


def test_nothing_from_outside_becomes_markup() -> None:
    node = {**NODE, "id": HOSTILE, "last_end": {"reason": HOSTILE, "detail": ""}, "connected": False}
    client = {"id": HOSTILE, "tenant": HOSTILE, "address": HOSTILE, "runs_open": 1, "runs_open_max": 2,
              "submitted": 3, "key": HOSTILE}  # fmt: skip
    page = render(status(
        nodes=[node], clients=[client], dispatch__circuits={HOSTILE: HOSTILE}, rejects={HOSTILE: {HOSTILE: 1}},
        dispatch__runs={HOSTILE: 1},
    ))  # fmt: skip
    assert "<script" not in page
    assert "&lt;script&gt;" in page
