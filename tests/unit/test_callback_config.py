"""The [worker] tables of proxy and node: callbacks, their secrets, and the runbooks' names for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.config_text import OPS_KEY, SECRET, strong, to_toml

from fairlead.backend.config import NodeConfig, load_node_config
from fairlead.proxy.config import ProxyConfig, load_proxy_config
from fairlead.runtime.config import ConfigError

SIGNING, PREVIOUS, TOKEN = strong("callback"), strong("callback before"), strong("tasks token")
NODE: dict[str, Any] = {"schema_version": 1, "server_id": "lobby-1", "proxy_secret": SECRET}
PROXY: dict[str, Any] = {
    "schema_version": 1, "security": {"proxy_secret": SECRET}, "reliability": {"ops_keys": [OPS_KEY]},
}  # fmt: skip


@pytest.fixture
def proxy(tmp_path: Path) -> Any:
    def read(worker: dict[str, Any], environ: dict[str, str] | None = None) -> ProxyConfig:
        path = tmp_path / "proxy.toml"
        path.write_text(to_toml({**PROXY, "worker": worker}))
        return load_proxy_config(str(path), environ or {})

    return read


@pytest.fixture
def node(tmp_path: Path) -> Any:
    def read(worker: dict[str, Any], environ: dict[str, str] | None = None) -> NodeConfig:
        path = tmp_path / "node.toml"
        path.write_text(to_toml({**NODE, "worker": worker}))
        return load_node_config(str(path), environ or {})

    return read


def said(read: Any, worker: dict[str, Any], environ: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(worker, environ)
    assert SIGNING not in str(caught.value)
    assert PREVIOUS not in str(caught.value)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_without_anything_said_callbacks_are_off_and_closed(proxy: Any, node: Any) -> None:
    worker = proxy({}).worker
    assert (worker.callback_secrets, worker.public_callbacks, worker.callback_allowed_hosts) == (
        (),
        False,
        (),
    )
    assert worker.callback_signature_tolerance_sec == 300
    assert (node({}).worker.callback_url, node({}).worker.auth_token) == ("", None)


def test_the_current_secret_comes_first(proxy: Any) -> None:
    worker = proxy({"callback_signing_secret": SIGNING, "callback_signing_secret_previous": PREVIOUS}).worker
    assert worker.callback_secrets == (bytes.fromhex(SIGNING), bytes.fromhex(PREVIOUS))


def test_the_names_of_the_runbook_and_secrets_from_files(proxy: Any, node: Any, tmp_path: Path) -> None:
    file = tmp_path / "signing"
    file.write_text(SIGNING + "\n")
    file.chmod(0o600)
    # One environment for both processes, as where they share a machine.
    environ = {
        "WORKER_CALLBACK_SIGNING_SECRET_FILE": str(file),
        "WORKER_CALLBACK_SIGNATURE_TOLERANCE_SEC": "120",
        "WORKER_CALLBACK_ALLOWED_HOSTS": "hooks.internal, 127.0.0.1",
        "WORKER_CALLBACK_URL": "http://127.0.0.1:9100",
        "WORKER_MAX_CONCURRENT_TASKS": "3",
        "WORKER_BASE_URL": "http://127.0.0.1:9201",
        "TASKS_AUTH_TOKEN": TOKEN,
    }
    worker = proxy({}, environ).worker
    assert worker.callback_secrets == (bytes.fromhex(SIGNING),)
    assert worker.callback_signature_tolerance_sec == 120
    assert worker.callback_allowed_hosts == ("hooks.internal", "127.0.0.1")
    own = node({}, environ).worker
    assert (own.callback_secret, own.auth_token) == (bytes.fromhex(SIGNING), TOKEN)
    assert (own.callback_url, own.max_concurrent_tasks) == ("http://127.0.0.1:9100", 3)


@pytest.mark.parametrize("name", ["WORKER_CALLBACK_SIGNATURE_TOLERANCE", "WORKER_CALLBACK_OIDC_ISSUER"])
def test_a_name_that_nobody_reads_is_refused_by_both(proxy: Any, node: Any, name: str) -> None:
    """Whoever sets it believes that something is checked."""
    for read in (proxy, node):
        assert said(read, {}, {name: "1"}) == {name: "unknown environment variable"}


def test_a_token_that_is_set_twice_is_refused(node: Any) -> None:
    environ = {"TASKS_AUTH_TOKEN": TOKEN, "WORKER_TASKS_AUTH_TOKEN": TOKEN}
    assert "a second time" in "".join(said(node, {}, environ).values())


@pytest.mark.parametrize(
    ("worker", "path", "message"),
    [
        ({"callback_signing_secret": "changeme"}, "callback_signing_secret", "known default"),
        ({"callback_signing_secret": "ab" * 32}, "callback_signing_secret", "distinct"),
        (
            {"callback_signing_secret_previous": PREVIOUS},
            "callback_signing_secret_previous", "stands without a current one",
        ),
        (
            {"callback_signing_secret": SIGNING, "callback_signing_secret_previous": SIGNING.upper()},
            "callback_signing_secret_previous", "is the current secret too",
        ),
        ({"public_callbacks": True}, "public_callbacks", "would refuse every callback"),
        ({"callback_allowed_hosts": ["127.1"]}, "callback_allowed_hosts[0]", "is not a host"),
        ({"callback_allowed_hosts": ["ok.example", "10.0.0.0/8"]}, "callback_allowed_hosts[1]", "is not a host"),
        ({"callback_allowed_hosts": ["http://x/"]}, "callback_allowed_hosts[0]", "is not a host"),
        ({"callback_allowed_hosts": ["*"]}, "callback_allowed_hosts[0]", "is not a host"),
    ],
)  # fmt: skip
def test_what_a_proxy_refuses(proxy: Any, worker: dict[str, Any], path: str, message: str) -> None:
    assert message in said(proxy, worker)[f"worker.{path}"]


@pytest.mark.parametrize(
    ("worker", "path", "message"),
    [
        (
            {"callback_url": "http://127.0.0.1:9100"},
            "callback_signing_secret",
            "is required with callback_url",
        ),
        ({"callback_url": "127.0.0.1:9100"}, "callback_url", "is not an http or https URL"),
        ({"callback_url": "http://u:p@127.0.0.1"}, "callback_url", "has credentials"),
        ({"callback_url": "http://127.0.0.1/?x"}, "callback_url", "has a query"),
        ({"tasks_auth_token": "short"}, "tasks_auth_token", "too short"),
    ],
)
def test_what_a_node_refuses(node: Any, worker: dict[str, Any], path: str, message: str) -> None:
    assert message in said(node, worker)[f"worker.{path}"]
