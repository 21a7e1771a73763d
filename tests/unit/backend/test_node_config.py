"""A node's configuration: every key's range, its kinds of keys, and what only development may open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from tests.support.config_text import PREVIOUS, SECRET, all_keys, strong, to_toml, with_key

from fairlead.backend.config import REFUSED_PREFIXES, NodeConfig, load_node_config
from fairlead.runtime.config import ConfigError, load
from fairlead.runtime.config_model import core_type
from fairlead.runtime.config_problems import bound

BASE: dict[str, Any] = {"schema_version": 1, "server_id": "lobby-1", "proxy_secret": SECRET}
GATE: dict[str, Any] = {"name": "app", "port": 8081, "kind": "http", "target_port": 9081}
COMMAND: dict[str, Any] = {"name": "lobby:do", "run": ["/bin/true"]}
NODE_KEY, NODE_KEY_PREVIOUS = strong("node key"), strong("previous node key")


def read(data: dict[str, Any], environ: dict[str, str] | None = None) -> NodeConfig:
    return load(
        NodeConfig,
        to_toml(data),
        "node.toml",
        environ or {},
        aliases={},
        refused_prefixes=REFUSED_PREFIXES,
        read_file=lambda path: Path(path).read_text(),
    )


def refused(data: dict[str, Any], environ: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(data, environ)
    for secret in (SECRET, PREVIOUS, NODE_KEY, NODE_KEY_PREVIOUS):
        assert secret not in str(caught.value)
    return {problem.path: problem.message for problem in caught.value.problems}


KEYS = list(all_keys(NodeConfig))
NUMBERS = [(path, field, in_array) for path, field, in_array in KEYS if core_type(field.annotation) is int]
FULL = {**BASE, "gates": [GATE], "commands": [COMMAND]}


def label(part: Any) -> str:
    return ".".join(part) if isinstance(part, tuple) else ""


def test_the_base_is_accepted_with_its_readings():
    config = read(BASE)
    assert (config.secret, config.secret_previous, config.key, config.key_previous) == (
        bytes.fromhex(SECRET),
        None,
        None,
        None,
    )
    assert config.sender_id == "lobby-1"
    assert config.proxy_addresses == (("127.0.0.1", 25570),)
    assert read({**BASE, "control_sender_id": "lobby"}).sender_id == "lobby"
    assert read({**BASE, "labels": {"region": "eu"}}).labels == {"region": "eu"}


def told_at(path: tuple[str, ...], in_array: bool) -> str:
    return f"{path[0]}[0].{path[1]}" if in_array else ".".join(path)


@pytest.mark.parametrize(("path", "field", "in_array"), NUMBERS, ids=label)
def test_every_number_is_refused_past_both_ends(
    path: tuple[str, ...], field: FieldInfo, in_array: bool
) -> None:
    low, high = bound(field, "ge"), bound(field, "le")
    assert low is not None, "every number has both ends"
    assert high is not None, "every number has both ends"
    allowed = f"(allowed: {low} to {high})" if low != high else f"(allowed: {low})"
    at = told_at(path, in_array)
    assert refused(with_key(FULL, path, in_array, low - 1))[at] == f"is too small {allowed}"
    assert refused(with_key(FULL, path, in_array, high + 1))[at] == f"is too large {allowed}"


@pytest.mark.parametrize(("path", "field", "in_array"), KEYS, ids=label)
def test_every_key_refuses_another_type(path: tuple[str, ...], field: FieldInfo, in_array: bool) -> None:
    wrong = "yes" if core_type(field.annotation) in (int, bool) else 5
    assert told_at(path, in_array) in refused(with_key(FULL, path, in_array, wrong))


def test_everything_from_the_environment():
    environ = {
        "FAIRLEAD_SERVER_ID": "lobby-2",
        "FAIRLEAD_NODE_KEY": NODE_KEY,
        "FAIRLEAD_PROXIES": "10.0.0.1:25570, [fd00::1]:25570",
        "FAIRLEAD_LABELS": "region=eu,tier=1",
        "FAIRLEAD_ENFORCE_PROXY": "true",
        "FAIRLEAD_CONTROL_TTL_MILLIS": "9000",
        "WORKER_MAX_CONCURRENT_TASKS": "3",
        "WORKER_MAX_QUEUE_SIZE": "4",
        "WORKER_TASK_TIMEOUT_MS": "5000",
        "HEALTH_PORT": "9202",
        "DRAIN_TIMEOUT_S": "1",
        "LOGGING_FORMAT": "json",
        "DISPATCH_ANYTHING": "a proxy's business",
        "FAIRLEAD_OPS_KEY": "x",
    }
    config = read({"schema_version": 1}, environ)
    assert config.server_id == "lobby-2"
    assert config.key == bytes.fromhex(NODE_KEY)
    assert config.proxy_addresses == (("10.0.0.1", 25570), ("fd00::1", 25570))
    assert config.labels == {"region": "eu", "tier": "1"}
    assert (config.worker.max_concurrent_tasks, config.worker.max_queue_size) == (3, 4)
    assert (config.health.port, config.drain.timeout_s, config.logging.format) == (9202, 1, "json")


@pytest.mark.parametrize("name", ["WORKER_MAX_TASKS", "FAIRLEAD_SERVERID"])
def test_unknown_names_with_our_prefixes_are_refused(name):
    assert refused(BASE, {name: "1"}) == {name: "unknown environment variable"}


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({}, "proxy_secret", "or node_key is required"),
        ({"proxy_secret": SECRET, "node_key": NODE_KEY}, "node_key", "cannot stand beside proxy_secret"),
        (
            {"proxy_secret": SECRET, "node_key_previous": NODE_KEY_PREVIOUS},
            "node_key_previous",
            "is of another kind than proxy_secret",
        ),
        (
            {"node_key": NODE_KEY, "proxy_secret_previous": PREVIOUS},
            "proxy_secret_previous",
            "is of another kind than node_key",
        ),
        (
            {"proxy_secret": SECRET, "proxy_secret_previous": SECRET},
            "proxy_secret_previous",
            "is the current proxy_secret too",
        ),
        (
            {"node_key": NODE_KEY, "node_key_previous": NODE_KEY.upper()},
            "node_key_previous",
            "is the current node_key too",
        ),
        ({"node_key": NODE_KEY[:62]}, "node_key", "is not 64 hex digits"),
        ({"node_key": "00" * 32}, "node_key", "is one byte repeated"),
        ({"proxy_secret": "changeme"}, "proxy_secret", "is a known default"),
        ({"proxy_secret": SECRET, "proxy_secret_previous": "ab" * 32}, "proxy_secret_previous", "distinct"),
    ],
)
def test_exactly_one_kind_of_key_and_a_strong_one(keys, path, message):
    found = refused({"schema_version": 1, "server_id": "lobby-1", **keys})
    assert list(found) == [path]
    assert message in found[path]


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"server_id": "Lobby 1"}, "server_id", "is not an id"),
        ({"server_id": "proxy"}, "server_id", "is the proxy's id"),
        ({"control_sender_id": "proxy"}, "control_sender_id", "is the proxy's id"),
        ({"control_expected_sender_id": ""}, "control_expected_sender_id", "is not an id"),
        ({"proxies": []}, "proxies", "is empty"),
        ({"proxies": ["localhost"]}, "proxies[0]", "is not host:port"),
        ({"proxies": ["0.0.0.0:1"]}, "proxies[0]", "is a wildcard"),
        ({"proxies": ["a:1", "a:1"]}, "proxies[1]", "is listed twice"),
        ({"data_dir": ""}, "data_dir", "is empty"),
        ({"handlers": "lobby.handlers"}, "handlers", "is not package.module:attribute"),
        ({"handlers": "os; import x:y"}, "handlers", "is not package.module:attribute"),
        ({"labels": {"Region": "eu"}}, "labels", "has a name"),
        ({"labels": {"region": "e u"}}, "labels", "has a value"),
        ({"labels": {f"l{n}": "" for n in range(65)}}, "labels", "more than 64"),
        ({"reconnect_base_millis": 10_001}, "reconnect_base_millis", "longer than reconnect_max_millis"),
        ({"control_replay_window_millis": 249_999}, "control_replay_window_millis", "= 250000"),
        ({"control_ttl_millis": 60_001}, "control_replay_window_millis", "= 300001"),
        ({"control_max_payload": 33_000}, "control_max_payload", "chunk of the registry"),
        ({"enforce_proxy": False}, "enforce_proxy", "turns a trust check off"),
        ({"require_authenticated_mode": False}, "require_authenticated_mode", "turns a trust check off"),
        ({"health": {"port": 0}}, "health.port", "development only"),
        ({"health": {"host": "a/b"}}, "health.host", "is not a host"),
        ({"environment": "test"}, "environment", "not one of"),
        ({"schema_version": 0}, "schema_version", "is too small (allowed: 1)"),
        ({"workers": {"max_queue_size": 1}}, "workers", "unknown key"),
        ({"gates": [GATE, {**GATE, "port": 8082}]}, "gates[1].name", "is the name of another gate"),
        ({"gates": [GATE, {**GATE, "name": "b"}]}, "gates[1].port", "is another gate's"),
        ({"gates": [{**GATE, "target_port": 8081}]}, "gates[0].target_port", "is the gate itself"),
        ({"gates": [{**GATE, "port": 0}]}, "gates[0].port", "development only"),
        ({"gates": [{**GATE, "kind": "udp"}]}, "gates[0].kind", "not one of"),
        ({"gates": [{**GATE, "target_host": "0.0.0.0"}]}, "gates[0].target_host", "is a wildcard"),
        ({"gates": [{"name": "a", "kind": "tcp", "target_port": 1}]}, "gates[0].port", "is required"),
    ],
)
def test_contradictions_and_malformed_values(change, path, message):
    found = refused({**BASE, **change})
    assert list(found) == [path]
    assert message in found[path]


def test_development_may_open_what_production_refuses():
    opened = {"enforce_proxy": False, "require_authenticated_mode": False, "health": {"port": 0}}
    config = read({**BASE, **opened, "environment": "development"})
    assert not config.enforce_proxy
    found = refused({**BASE, **opened})
    assert set(found) == {"enforce_proxy", "require_authenticated_mode", "health.port"}


def test_all_problems_at_once():
    data = {
        "server_id": "A",
        "node_key": "short",
        "proxies": ["x"],
        "enforce_proxy": False,
        "reconnect_base_millis": 50_000,
        "worker": {"max_queue_sise": 1},
        "health": {"port": -1},
    }
    assert set(refused(data, {"FAIRLEAD_CONTROL_TTL_MILLIS": "200000"})) == {
        "schema_version",
        "server_id",
        "node_key",
        "proxies[0]",
        "enforce_proxy",
        "reconnect_base_millis",
        "control_replay_window_millis",
        "worker.max_queue_sise",
        "health.port",
    }


def test_nothing_shows_the_secrets_of_what_was_loaded():
    config = read(
        {"schema_version": 1, "server_id": "a", "node_key": NODE_KEY, "node_key_previous": NODE_KEY_PREVIOUS}
    )
    for text in (repr(config), str(config), config.model_dump_json()):
        assert NODE_KEY not in text
        assert NODE_KEY_PREVIOUS not in text


def test_the_shell_reads_the_file_and_the_key_file(tmp_path):
    key, config = tmp_path / "key", tmp_path / "node.toml"
    key.write_text(NODE_KEY + "\n")
    key.chmod(0o640)
    config.write_text(to_toml({"schema_version": 1, "server_id": "a", "node_key_file": str(key)}))
    assert load_node_config(str(config), {}).key == bytes.fromhex(NODE_KEY)
    found = load_node_config(str(config), {"FAIRLEAD_SERVER_ID": "b"})
    assert found.server_id == "b"
    with pytest.raises(ConfigError, match="gives a secret that FAIRLEAD_NODE_KEY gives too"):
        load_node_config(str(config), {"FAIRLEAD_NODE_KEY": NODE_KEY})
