"""The proxy's configuration: every key's range, and every contradiction between keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from tests.support.config_text import OPS_KEY, PREVIOUS, SECRET, all_keys, strong, to_toml, with_key

from fairlead.proxy.config import ALIASES, REFUSED_PREFIXES, ProxyConfig, load_proxy_config
from fairlead.runtime.config import ConfigError, environment_names, load
from fairlead.runtime.config_model import core_type
from fairlead.runtime.config_problems import bound

BASE: dict[str, Any] = {
    "schema_version": 1,
    "security": {"proxy_secret": SECRET},
    "listeners": [{"name": "http", "kind": "http", "port": 8080}],
    "backends": [{"id": "lobby-1", "host": "127.0.0.1", "port": 8081}],
    "nodes": [{"id": "worker-*"}],
    "clients": [{"id": "shop"}],
    "routing": {"default_backend_id": "lobby-1"},
    "routes": [{"id": "shop"}],
    "certificates": [{"id": "example", "chain_file": "example.pem", "key_file": "example.key"}],
    "reliability": {"ops_keys": [OPS_KEY]},
}

LISTENER: dict[str, Any] = {"name": "http", "kind": "http", "port": 8080}
SECURE: dict[str, Any] = {**LISTENER, "tls_certificates": ["example"]}


def read(data: dict[str, Any], environ: dict[str, str] | None = None) -> ProxyConfig:
    return load(
        ProxyConfig,
        to_toml(data),
        "proxy.toml",
        environ or {},
        aliases={},
        refused_prefixes=REFUSED_PREFIXES,
        read_file=lambda path: Path(path).read_text(),
    )


def refused(data: dict[str, Any], environ: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(data, environ)
    assert SECRET not in str(caught.value)
    assert PREVIOUS not in str(caught.value)
    assert OPS_KEY not in str(caught.value)
    return {problem.path: problem.message for problem in caught.value.problems}


def outcome(data: dict[str, Any]) -> str:
    """What was said of it; empty if it was accepted."""
    try:
        read(data)
    except ConfigError as error:
        return str(error)
    return ""


def changed(**sections: Any) -> dict[str, Any]:
    """BASE with keys of tables changed, and arrays of tables and top-level keys replaced."""
    data = dict(BASE)
    for name, value in sections.items():
        data[name] = {**data.get(name, {}), **value} if isinstance(value, dict) else value
    return data


KEYS = list(all_keys(ProxyConfig))
SECRET_OF_CALLERS = strong("callers")
NUMBERS = [(path, field, array) for path, field, array in KEYS if core_type(field.annotation) is int]


def label(part: Any) -> str:
    return ".".join(part) if isinstance(part, tuple) else ""


def told_at(path: tuple[str, ...], in_array: bool) -> str:
    return f"{path[0]}[0].{path[1]}" if in_array else ".".join(path)


def test_the_base_is_accepted():
    config = read(BASE)
    assert config.security.secret == bytes.fromhex(SECRET)
    assert config.security.secret_previous is None
    assert config.security.secret_previous_expires_at_ms is None
    assert config.backends[0].node_id == "lobby-1"
    assert config.store.path == "data/fairlead.db"


@pytest.mark.parametrize(("path", "field", "in_array"), NUMBERS, ids=label)
def test_every_number_is_refused_past_both_ends_and_accepted_at_them(
    path: tuple[str, ...], field: FieldInfo, in_array: bool
) -> None:
    low, high = bound(field, "ge"), bound(field, "le")
    assert low is not None, "every number has both ends"
    assert high is not None, "every number has both ends"
    at = told_at(path, in_array)
    allowed = f"(allowed: {low} to {high})" if low != high else f"(allowed: {low})"
    assert refused(with_key(BASE, path, in_array, low - 1))[at] == f"is too small {allowed}"
    assert refused(with_key(BASE, path, in_array, high + 1))[at] == f"is too large {allowed}"
    for value in (low, high):
        # At the ends a contradiction with another key may remain, but nothing about the range.
        assert allowed not in outcome(with_key(BASE, path, in_array, value))


@pytest.mark.parametrize(("path", "field", "in_array"), KEYS, ids=label)
def test_every_key_refuses_another_type(path: tuple[str, ...], field: FieldInfo, in_array: bool) -> None:
    wrong = "yes" if core_type(field.annotation) in (int, bool) else 5
    assert told_at(path, in_array) in refused(with_key(BASE, path, in_array, wrong))


@pytest.mark.parametrize(("name", "path"), environment_names(ProxyConfig).items(), ids=str)
def test_every_key_can_be_set_from_the_environment(name: str, path: tuple[str, ...]) -> None:
    field = next(field for key, field, _ in KEYS if key == path)
    core = core_type(field.annotation)
    if core in (int, bool, float):
        assert name in refused(BASE, {name: "neither"})
    config: Any = read(changed(environment="development"), {})
    value = config.model_dump(mode="json")
    for part in path:
        value = value[part]
    if isinstance(
        value, bool | int | float
    ):  # SLO_MAX_ERROR_RATE, and every number with a point, was refused once
        text = str(value).lower()
        again: Any = read(changed(environment="development"), {name: text})
        for part in path:
            again = getattr(again, part)
        assert again == value
        assert type(again) is type(value)


def test_names_of_the_runbooks_work_as_written():
    environ = {
        "DISPATCH_KILL_SWITCH": "true",
        "RELIABILITY_OPS_KEYS": f"{OPS_KEY}, {strong('second')}",
        "RELIABILITY_ENABLE_IDEMPOTENCY": "false",
        "LIMITS_TRUSTED_FORWARDERS": "10.0.0.0/8,fd00::/8",
        "FAIRLEAD_ENVIRONMENT": "development",
        "FAIRLEAD_SERVER_ID": "lobby-1",  # a node's
    }
    config = read(BASE, environ)
    assert config.dispatch.kill_switch
    assert not config.reliability.enable_idempotency
    assert len(config.reliability.ops_keys) == 2
    assert config.limits.trusted_forwarders == ("10.0.0.0/8", "fd00::/8")
    assert config.environment == "development"


@pytest.mark.parametrize(
    "name", ["DISPATCH_KILLSWITCH", "RELIABILITY_OPS_KEY", "SLO_MAX", "RETRY_MAX_ATTEMPT", "FAIRLEAD_URI"]
)
def test_unknown_names_with_our_prefixes_are_refused(name):
    assert refused(BASE, {name: "1"}) == {name: "unknown environment variable"}


WEAK = ["changeme", "secret", "00" * 32, "ab" * 32, bytes(range(32)).hex(), SECRET[:60]]


@pytest.mark.parametrize("weak", WEAK)
@pytest.mark.parametrize("key", ["proxy_secret", "proxy_secret_previous"])
def test_weak_secrets_are_refused(key, weak):
    expires = {"proxy_secret_previous_expires_at": "2030-01-01T00:00:00Z"}
    found = refused(changed(security={**expires, key: weak}))
    assert list(found) == [f"security.{key}"]


def test_a_previous_secret():
    expires = {"proxy_secret_previous_expires_at": "2030-01-01T00:00:00+01:00"}
    config = read(changed(security={"proxy_secret_previous": PREVIOUS, **expires}))
    assert config.security.secret_previous == bytes.fromhex(PREVIOUS)
    assert config.security.secret_previous_expires_at_ms == 1_893_452_400_000
    at = "security.proxy_secret_previous_expires_at"
    assert list(refused(changed(security={"proxy_secret_previous": PREVIOUS}))) == [at]
    same = changed(security={"proxy_secret_previous": SECRET.upper(), **expires})
    assert refused(same) == {"security.proxy_secret_previous": "is the current secret too"}
    wrong = changed(security={"proxy_secret_previous": PREVIOUS, at.split(".")[1]: "2030-01-01"})
    assert list(refused(wrong)) == [at]


def listener(name: str, port: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "http", "port": port, **more}


def backend(name: str, port: int, **more: Any) -> dict[str, Any]:
    return {"id": name, "host": "127.0.0.1", "port": port, **more}


TWO = [backend("lobby-1", 8081), backend("lobby-2", 8082)]


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        # secrets
        ({"security": {"proxy_secret": "correct horse"}}, "security.proxy_secret", "neither hex"),
        # ids, hosts
        ({"nodes": [{"id": "wor*ker"}]}, "nodes[0].id", "is not an id"),
        ({"nodes": [{"id": "a" * 64}]}, "nodes[0].id", "is not an id"),
        ({"nodes": [{"id": "Worker-*"}]}, "nodes[0].id", "is not an id"),
        ({"nodes": [{"id": "w", "namespaces": ["a.b"]}]}, "nodes[0].namespaces[0]", "is not a namespace"),
        ({"listeners": [listener("http", 8080, host="http://x")]}, "listeners[0].host", "is not a host"),
        ({"backends": [backend("lobby-1", 1, host="0.0.0.0")]}, "backends[0].host", "is a wildcard"),
        ({"backends": [backend("lobby-1", 1, host="::")]}, "backends[0].host", "is a wildcard"),
        ({"messaging": {"control_sender_id": ""}}, "messaging.control_sender_id", "is not an id"),
        # names are unique
        ({"listeners": [listener("a", 1), listener("a", 2)]}, "listeners[1].name", "used by listeners[0]"),
        ({"backends": [TWO[0], {**TWO[1], "id": "lobby-1"}]}, "backends[1].id", "used by backends[0]"),
        ({"backends": [TWO[0], {**TWO[1], "port": 8081}]}, "backends[1].port", "used by backends[0]"),
        ({"nodes": [{"id": "w"}, {"id": "w"}]}, "nodes[1].id", "used by nodes[0]"),
        ({"clients": [{"id": "w"}, {"id": "w"}]}, "clients[1].id", "used by clients[0]"),
        ({"clients": [{"id": "proxy"}]}, "clients[0].id", "the proxy's own"),
        ({"clients": [{"id": "w", "tenant": "a b"}]}, "clients[0].tenant", "is not a tenant"),
        ({"clients": [{"id": "w", "scopes": ["A b"]}]}, "clients[0].scopes[0]", "is not a scope"),
        ({"nodes": [{"id": "lobby-1"}]}, "nodes[0].id", "listed by a backend"),
        ({"nodes": [{"id": "proxy"}]}, "nodes[0].id", "the proxy's own"),
        ({"messaging": {"control_sender_id": "lobby-1"}}, "backends[0].id", "the proxy's own"),
        # TLS
        (
            {"listeners": [{**LISTENER, "tls_certificates": ["none"]}]},
            "listeners[0].tls_certificates[0]",
            "not the id of a certificate (allowed: example)",
        ),
        (
            {"listeners": [{**LISTENER, "kind": "tcp", "sni": "prefer", "tls_certificates": ["example"]}]},
            "listeners[0].sni",
            "tls_certificates ends it",
        ),
        (
            {
                "listeners": [
                    {**LISTENER, "tls_client_certificates": "required", "tls_client_ca_file": "ca.pem"}
                ]
            },
            "listeners[0].tls_client_certificates",
            "needs TLS",
        ),
        (
            {"listeners": [{**SECURE, "tls_client_certificates": "optional"}]},
            "listeners[0].tls_client_ca_file",
            "is required",
        ),
        (
            {"listeners": [{**SECURE, "tls_client_ca_file": "ca.pem"}]},
            "listeners[0].tls_client_ca_file",
            "judges nothing",
        ),
        (
            {"backends": [backend("lobby-1", 1, gate=True, send_proxy="v2")]},
            "backends[0].send_proxy",
            "stands beside gate",
        ),
        (
            {"backends": [backend("lobby-1", 1, gate=True, tls="tofu")]},
            "backends[0].tls",
            "hides from the gate",
        ),
        (
            {"backends": [backend("lobby-1", 1, tls="strict")]},
            "backends[0].tls_fingerprint_sha256",
            "required by strict",
        ),
        (
            {"backends": [backend("lobby-1", 1, tls="tofu", tls_fingerprint_sha256="0" * 64)]},
            "backends[0].tls_fingerprint_sha256",
            'is for tls = "strict"',
        ),
        (
            {"backends": [backend("lobby-1", 1, tls="tofu", tls_ca_file="ca.pem")]},
            "backends[0].tls_ca_file",
            'is for tls = "ca"',
        ),
        (
            {"backends": [backend("lobby-1", 1, tls_server_name="lobby.test")]},
            "backends[0].tls_server_name",
            "is for backends with TLS",
        ),
        # routes
        ({"routing": {"default_backend_id": "x"}}, "routing.default_backend_id", "(allowed: lobby-1)"),
        ({"routing": {"default_backend_id": ""}}, "routing.default_backend_id", "is required by a listener"),
        ({"backends": []}, "routing.default_backend_id", "there are no [[backends]]"),
        ({"listeners": [listener("a", 1, backends=["x"])]}, "listeners[0].backends[0]", "not the id"),
        (
            {"listeners": [listener("a", 1, default_backend_id="x")]},
            "listeners[0].default_backend_id",
            "not the id",
        ),
        (
            {"backends": TWO, "listeners": [listener("a", 1, backends=["lobby-2"])]},
            "listeners[0].default_backend_id",
            "leads to lobby-1, which is not among",
        ),
        ({"listeners": [], "messaging": {"enabled": False}}, "listeners", "nothing to serve"),
        ({"listeners": [listener("a", 1, sni="require")]}, "listeners[0].sni", "of kind tcp"),
        (
            {"listeners": [listener("a", 1, proxy_protocol_from=["10.0.0.1/8"])]},
            "listeners[0].proxy_protocol_from[0]",
            "is not a network",
        ),
        (
            {"listeners": [listener("a", 1, proxy_protocol_from=["10.0.0.0/8", "::/0"])]},
            "listeners[0].proxy_protocol_from[1]",
            "lets every client say that it is another",
        ),
        # ports
        ({"listeners": [listener("a", 80), listener("b", 80)]}, "listeners[1].port", "taken by listeners[0]"),
        ({"listeners": [listener("a", 25570)]}, "messaging.port", "taken by listeners[0]"),
        ({"listeners": [listener("a", 9100, host="0.0.0.0")]}, "observability.port", "taken by listeners[0]"),
        ({"observability": {"port": 25570}}, "observability.port", "taken by messaging"),
        ({"observability": {"port": 0}}, "observability.port", "development only"),
        # relations
        (
            {"messaging": {"control_replay_window_millis": 249_999}},
            "messaging.control_replay_window_millis",
            "at least ttl + 2 x skew = 250000",
        ),
        (
            {"messaging": {"control_max_skew_millis": 145_001}},
            "messaging.control_replay_window_millis",
            "at least ttl + 2 x skew = 300002",
        ),
        ({"messaging": {"node_timeout_millis": 5_999}}, "messaging.node_timeout_millis", "at least 3"),
        (
            {"messaging": {"control_max_payload": 33_000}, "dispatch": {"args_bytes_max": 64}},
            "messaging.control_max_payload",
            "chunk of the registry",
        ),
        ({"dispatch": {"args_bytes_max": 61_441}}, "dispatch.args_bytes_max", "= 61440"),
        (
            {"dispatch": {"deadline_default_ms": 2, "deadline_max_ms": 100}},
            "dispatch.deadline_default_ms",
            "small",
        ),
        (
            {"dispatch": {"deadline_max_ms": 59_999}},
            "dispatch.deadline_default_ms",
            "longer than deadline_max_ms",
        ),
        ({"dispatch": {"lease_ms": 3_999}}, "dispatch.lease_ms", "at least 2 heartbeats = 4000"),
        # operators
        ({"reliability": {"ops_keys": []}}, "reliability.ops_keys", "is required"),
        ({"reliability": {"ops_keys": [OPS_KEY, OPS_KEY]}}, "reliability.ops_keys", "a key twice"),
        (
            {"reliability": {"ops_keys": [OPS_KEY[:31]]}},
            "reliability.ops_keys[0]",
            "too short: 31 characters",
        ),
        ({"reliability": {"ops_keys": [OPS_KEY + " x"]}}, "reliability.ops_keys[0]", "not allowed"),
        ({"reliability": {"ops_keys": ["ab" * 16]}}, "reliability.ops_keys[0]", "distinct"),
        # production opens nothing
        (
            {"reliability": {"ops_require_operator_key": False}},
            "reliability.ops_require_operator_key",
            "allowed in production: true",
        ),
        ({"nodes": [{"id": "*"}]}, "nodes[0].id", "development only"),
        ({"clients": [{"id": "*"}]}, "clients[0].id", "development only"),
        (
            {"limits": {"trusted_forwarders": ["10.0.0.0/8", "0.0.0.0/0"]}},
            "limits.trusted_forwarders[1]",
            "everybody's X-Forwarded-For",
        ),
        (
            {
                "environment": "development",
                "reliability": {"ops_require_operator_key": False},
                "observability": {"host": "0.0.0.0"},
            },
            "observability.host",
            "lets everybody operate",
        ),
        # guards of the dispatch surface
        ({"dispatch": {"require_auth": False}}, "dispatch.require_auth", "allowed in production: true"),
        ({"dispatch": {"auth_mode": "off"}}, "dispatch.auth_mode", "allowed in production: observe, enforce"),
        ({"dispatch": {"auth_mode": "observe"}}, "dispatch.auth_mode", "observe for ever"),
        (
            {"dispatch": {"integrity_mode": "off", "hmac_secret": strong("hmac")}},
            "dispatch.integrity_mode",
            "checks nothing",
        ),
        ({"dispatch": {"integrity_mode": "enforce"}}, "dispatch.integrity_mode", "no secret to judge"),
        (
            {"environment": "development", "dispatch": {"integrity_mode": "observe"}},
            "dispatch.integrity_mode",
            "no secret to judge",
        ),
        (
            {"environment": "development", "dispatch": {"require_auth": False, "auth_mode": "observe"}},
            "dispatch.auth_mode",
            "require_auth = false does not ask for",
        ),
        ({"dispatch": {"nonce_ttl_ms": 599_999}}, "dispatch.nonce_ttl_ms", "2 x max_skew_ms = 600000"),
        ({"dispatch": {"max_skew_ms": 300_001}}, "dispatch.nonce_ttl_ms", "signatures are still valid"),
        (
            {"dispatch": {"hmac_secret_previous": strong("hmac")}},
            "dispatch.hmac_secret_previous",
            "without a current",
        ),
        (
            {"dispatch": {"hmac_secret": strong("hmac"), "hmac_secret_previous": strong("hmac")}},
            "dispatch.hmac_secret_previous",
            "is the current secret too",
        ),
        ({"dispatch": {"hmac_secret": "a" * 64}}, "dispatch.hmac_secret", "one byte repeated"),
        ({"dispatch": {"observe_until": "tomorrow"}}, "dispatch.observe_until", "RFC 3339"),
        # the rest
        ({"limits": {"trusted_forwarders": ["10.0.0.1/8"]}}, "limits.trusted_forwarders[0]", "not a network"),
        ({"store": {"url": "postgresql://"}}, "store.url", "names no database"),
        ({"store": {"url": "sqlite:///"}}, "store.url", "is not a store"),
        ({"store": {"url": "mysql://u@h/db"}}, "store.url", "is not a store"),
        (
            {"dispatch": {"dead_letter_retention_hours": 24}},
            "dispatch.dead_letter_retention_hours",
            "forgets",
        ),
        ({"store": {"url": "sqlite:///:memory:"}}, "store.url", "is not a store"),
        ({"store": {"url": "data/fairlead.db"}}, "store.url", "is not a store"),
        ({"environment": "staging"}, "environment", '"production" or "development"'),
        ({"routing": {"strategy": "random"}}, "routing.strategy", "not one of"),
        ({"logging": {"level": "INFO"}}, "logging.level", "not one of"),
        ({"schema_version": 2}, "schema_version", "is too large (allowed: 1)"),
    ],
)
def test_contradictions_and_malformed_values(change, path, message):
    found = refused(changed(**change))
    assert list(found) == [path]
    assert message in found[path]


@pytest.mark.parametrize(
    "change",
    [
        {"listeners": [], "backends": [], "routing": {"default_backend_id": ""}},
        {"listeners": [listener("a", 80), listener("b", 80, host="127.0.0.2")]},
        {"listeners": [listener("a", 80, host="0.0.0.0"), listener("b", 80, host="::")]},
        {"listeners": [listener("a", 25570)], "messaging": {"enabled": False}},
        {"listeners": [listener("a", 9100)], "observability": {"enabled": False}},
        {
            "routing": {"default_backend_id": ""},
            "listeners": [listener("a", 80, default_backend_id="lobby-1")],
        },
        {
            "backends": TWO,
            "listeners": [listener("a", 1, backends=["lobby-2"], default_backend_id="lobby-2")],
        },
        {
            "backends": [backend("a", 1, node="n"), backend("b", 2, node="n")],
            "routing": {"default_backend_id": "b"},
        },
        {"messaging": {"control_replay_window_millis": 250_000}},
        {"messaging": {"node_timeout_millis": 6_000}},
        {"dispatch": {"args_bytes_max": 61_440}},
        {"dispatch": {"lease_ms": 4_000}},
        {"store": {"url": "sqlite:////var/lib/fairlead/fairlead.db"}},
        {"environment": "development", "reliability": {"ops_require_operator_key": False, "ops_keys": []}},
        {"environment": "development", "nodes": [{"id": "*"}], "observability": {"port": 0}},
    ],
)
def test_what_only_looks_like_a_contradiction_is_accepted(change):
    read(changed(**change))


def test_a_secret_is_required_and_the_operators_key_too():
    found = refused({"schema_version": 1})
    assert found == {"security.proxy_secret": "is required", "reliability.ops_keys": "is required"}
    assert "schema_version" in refused({})


def test_all_sections_are_judged_even_when_every_one_has_an_error():
    data = changed(
        security={"proxy_secret": "changeme"},
        listeners=[listener("A", 9100), listener("b", 9100)],
        routing={"default_backend_id": "gone", "backend_down_ms": 1},
        limits={"head_bytes_max": 1},
        messaging={"control_replay_window_millis": 5_000, "port": 0},
        dispatch={"lease_ms": 1_000, "public": "no"},
        store={"url": "mysql://"},
        logging={"levle": "info"},
    )
    found = refused(data, {"DISPATCH_PENDING_MAX": "0"})
    assert set(found) == {
        "security.proxy_secret",
        "listeners[0].name",
        "listeners[1].port",
        "observability.port",
        "routing.backend_down_ms",
        "routing.default_backend_id",
        "limits.head_bytes_max",
        "messaging.control_replay_window_millis",
        "messaging.port",
        "dispatch.lease_ms",
        "dispatch.public",
        "DISPATCH_PENDING_MAX",
        "store.url",
        "logging.levle",
    }


def test_nothing_shows_the_secrets_of_what_was_loaded():
    expires = {"proxy_secret_previous_expires_at": "2030-01-01T00:00:00Z"}
    config = read(changed(security={"proxy_secret_previous": PREVIOUS, **expires}))
    for text in (repr(config), str(config), config.model_dump_json(), repr(config.security)):
        assert not re.search(f"{SECRET}|{PREVIOUS}|{OPS_KEY}", text)


def test_the_shell_reads_the_file_and_the_secret_file(tmp_path):
    secret, config = tmp_path / "secret", tmp_path / "proxy.toml"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    data = {**BASE, "security": {"proxy_secret_file": str(secret)}}
    config.write_text(to_toml(data))
    assert load_proxy_config(str(config), {}).security.secret == bytes.fromhex(SECRET)
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match=r"^security.proxy_secret_file: cannot be used: its mode 0644"):
        load_proxy_config(str(config), {})
    with pytest.raises(ConfigError, match="No such file"):
        load_proxy_config(str(tmp_path / "gone.toml"), {})


@pytest.mark.parametrize(
    ("keys", "modes"),
    [
        ({}, ("enforce", "off")),
        ({"hmac_secret": SECRET_OF_CALLERS}, ("enforce", "enforce")),
        ({"hmac_secret": SECRET_OF_CALLERS, "integrity_mode": "observe"}, ("enforce", "observe")),
        ({"require_auth": False}, ("off", "off")),
        ({"auth_mode": "off"}, ("off", "off")),
        ({"auth_mode": "observe"}, ("observe", "off")),
    ],
)
def test_what_the_guards_modes_are(keys: dict[str, Any], modes: tuple[str, str]) -> None:
    dispatch = read(changed(environment="development", dispatch=keys)).dispatch
    assert (dispatch.auth_mode_now, dispatch.integrity_mode_now) == modes


def test_production_may_observe_until_a_day_that_it_names() -> None:
    keys = {"auth_mode": "observe", "observe_until": "2030-01-31T12:00:00Z"}
    assert read(changed(dispatch=keys)).dispatch.observe_until_ms == 1_896_091_200_000


def test_runbook_001s_name_of_the_signing_secret_works_and_is_one_with_000s() -> None:
    environ = {"SECURITY_PROXY_SECRET": SECRET, "RELIABILITY_OPS_KEYS": OPS_KEY}

    def read_with(**names: str) -> ProxyConfig:
        return load(
            ProxyConfig, "schema_version = 1", "proxy.toml", {**environ, **names}, aliases=ALIASES,
            refused_prefixes=REFUSED_PREFIXES, read_file=lambda name: "",
        )  # fmt: skip

    found = read_with(TRANSBOT_HMAC_SECRET=SECRET_OF_CALLERS)
    assert found.dispatch.hmac_secrets == (bytes.fromhex(SECRET_OF_CALLERS),)
    with pytest.raises(ConfigError, match=r"sets dispatch\.hmac_secret a second time") as caught:
        read_with(TRANSBOT_HMAC_SECRET=SECRET_OF_CALLERS, DISPATCH_HMAC_SECRET=SECRET_OF_CALLERS)
    assert SECRET_OF_CALLERS not in str(caught.value)
