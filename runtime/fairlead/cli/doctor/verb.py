"""`fairlead doctor`: joins what configurations, processes and the machine say.

Exit status: 0 nothing is wrong (there may be warnings), 1 something is.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from fairlead.backend.config import NodeConfig, load_node_config
from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.cli.doctor import machine, running
from fairlead.cli.doctor.compare import compare
from fairlead.cli.doctor.finding import Finding, error, ok, warning
from fairlead.cli.schema_preflight import look
from fairlead.proxy.config import ProxyConfig, load_proxy_config
from fairlead.runtime.config import ConfigError
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import RealWorld, World

ASK_S: Final = 5.0
SKEW_MS_MAX: Final = 120_000  # where no configuration says it
EXPIRY_WARN_DAYS: Final = 14
# One environment may hold what belongs to the other kind of process.
_OF_NODES: Final = ("FAIRLEAD_PROXY_SECRET", "FAIRLEAD_NODE_KEY")
_OF_PROXIES: Final = ("DISPATCH_", "RELIABILITY_", "SLO_", "RETRY_", "TRANSBOT_")
_LABELS: Final = {"ok": "ok", "warning": "WARN", "error": "ERROR"}


def run(options: argparse.Namespace) -> int:
    findings = trio.run(examine, RealWorld(), options, dict(os.environ))
    wrong = [each for each in findings if each.level == "error"]
    if options.json:
        report = {
            "check": "doctor", "passed": not wrong, "software": SOFTWARE, "at_ms": RealWorld().wall_ms(),
            "findings": [each.told() for each in findings],
        }  # fmt: skip
        print(json.dumps(report, indent=2))
    else:
        for each in findings:
            print(f"{_LABELS[each.level]:6} {each.check}: {each.detail}")
            if each.next:
                print(f"       next: {each.next}")
        counts = [sum(each.level == level for each in findings) for level in ("ok", "warning", "error")]
        print(f"doctor: {counts[0]} in order, {counts[1]} to look at, {counts[2]} wrong")
    return EXIT_FAILED if wrong else EXIT_STOPPED


async def examine(world: World, options: argparse.Namespace, environ: Mapping[str, str]) -> list[Finding]:
    """Everything that can be told."""
    found: list[Finding] = []
    proxy = _proxy_config(options.proxy_config, environ, found)
    nodes = [
        config for path in options.node_config if (config := _node_config(path, environ, found)) is not None
    ]
    for path in (options.proxy_config, *options.node_config):
        if path:
            found += await world.run_in_thread(partial(machine.file_modes, path))
    for node in nodes if proxy is not None else ():
        assert proxy is not None
        found += compare(proxy, node)
    status = await _proxy_status(world, options, environ, proxy, found)
    if proxy is not None:
        found += await _of_proxy(world, proxy, is_running=status is not None)
    for node in nodes:
        found += await _of_node(world, node, [status] if status is not None else [])
    return found


def of_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment as a proxy would have it."""
    return {name: value for name, value in environ.items() if not name.startswith(_OF_NODES)}


def of_node(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment as a node would have it."""
    return {name: value for name, value in environ.items() if not name.startswith(_OF_PROXIES)}


def _proxy_config(path: str | None, environ: Mapping[str, str], found: list[Finding]) -> ProxyConfig | None:
    if not path:
        return None
    try:
        config = load_proxy_config(path, of_proxy(environ))
    except ConfigError as problem:
        found.append(
            error("proxy configuration", str(problem), "correct it; a start and a reload would refuse it too")
        )
        return None
    found.append(ok("proxy configuration", f"{path} can be loaded, for {config.environment}"))
    return config


def _node_config(path: str, environ: Mapping[str, str], found: list[Finding]) -> NodeConfig | None:
    try:
        config = load_node_config(path, of_node(environ))
    except ConfigError as problem:
        found.append(
            error(f"node configuration {path}", str(problem), "correct it; a start would refuse it too")
        )
        return None
    found.append(ok(f"node configuration {path}", f"{config.server_id} can be loaded"))
    return config


# -- what runs


async def _proxy_status(
    world: World, options: argparse.Namespace, environ: Mapping[str, str], proxy: ProxyConfig | None,
    found: list[Finding],
) -> Mapping[str, Any] | None:  # fmt: skip
    """What the proxy says of itself, judged; None where none answers."""
    own = (
        f"http://{proxy.observability.host}:{proxy.observability.port}" if proxy is not None else DEFAULT_URL
    )
    own = own.replace("0.0.0.0", "127.0.0.1").replace("://::", "://[::1]")
    asked = options.url or environ.get("FAIRLEAD_URL")
    url = (asked or own).rstrip("/")
    status, problem = await _ask(world, f"{url}/status", options.ops_key)
    if status is None:
        if asked or not (options.proxy_config or options.node_config):
            found.append(error("proxy", f"{url}: {problem}", "start it, or correct --url and --ops-key"))
        else:
            found.append(
                warning("proxy", f"{url}: {problem}", "what runs was not judged; start it, or give --ops-key")
            )
        return None
    messaging = None if proxy is None else proxy.messaging
    found += running.judge_proxy(
        status, world.wall_ms(), software=SOFTWARE,
        skew_ms_max=messaging.control_max_skew_millis if messaging else SKEW_MS_MAX,
        expiry_warn_days=proxy.tls.expiry_warn_days if proxy else EXPIRY_WARN_DAYS,
    )  # fmt: skip
    if messaging is not None and status.get("proxy_id") not in (None, messaging.control_sender_id):
        found.append(error("sender ids", f"{url} is proxy {status['proxy_id']}, configured is "
                           f"{messaging.control_sender_id}", "name that proxy's file, or restart it"))  # fmt: skip
    probe, _ = await _ask(world, f"{url}/health/test", options.ops_key)
    if probe is not None:
        found += running.judge_probe(probe)
    return status


async def _ask(world: World, url: str, ops_key: str = "") -> tuple[Mapping[str, Any] | None, str]:
    import httpx

    def ask() -> tuple[Mapping[str, Any] | None, str]:
        headers = {"accept": "application/json", **({"x-ops-key": ops_key} if ops_key else {})}
        try:
            answer = httpx.get(url, headers=headers, timeout=ASK_S, trust_env=False)
            decoded = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as problem:
            return None, str(problem) or type(problem).__name__
        if not isinstance(decoded, dict) or ("reason" in decoded and answer.status_code >= 400):
            return (
                None,
                f"answered {answer.status_code} {decoded.get('reason', '') if isinstance(decoded, dict) else ''}",
            )
        return decoded, ""

    return await world.run_in_thread(ask)


# -- this machine


async def _of_proxy(world: World, config: ProxyConfig, *, is_running: bool) -> list[Finding]:
    found: list[Finding] = []
    wanted = [(each.name, each.host, each.port) for each in config.listeners]
    if config.messaging.enabled:
        wanted.append(("control", config.messaging.host, config.messaging.port))
    if config.observability.enabled:
        wanted.append(("ops", config.observability.host, config.observability.port))
    found += await machine.ports(world, wanted, running=is_running, private=("ops",))
    folders: dict[str, Path] = {}
    if not config.store.is_postgres:
        folders["store"] = _folder(config.store.path)
    if config.audit.file:
        folders["audit file"] = _folder(config.audit.file)
    if config.store.is_postgres or not is_running:  # a SQLite file belongs to the proxy that runs
        found += [
            Finding(each.level, f"store: {each.check}", each.detail, "" if each.level == "ok" else
                    "`fairlead check schema-preflight` says more; a start applies what is missing")
            for each in await world.run_in_thread(lambda: look(config))
        ]  # fmt: skip
    return found + await _files(world, folders, config)


async def _files(world: World, folders: Mapping[str, Path], config: ProxyConfig | None) -> list[Finding]:
    seen: dict[Path, str] = {}
    for name, folder in folders.items():
        seen[folder] = f"{seen[folder]} and {name}" if folder in seen else name

    def look_at() -> Sequence[Finding]:
        found = [each for folder, name in seen.items() for each in machine.disk(name, folder)]
        return found + (list(machine.certificates(config, world.wall_ms())) if config is not None else [])

    return list(await world.run_in_thread(look_at))


async def _of_node(world: World, config: NodeConfig, proxies: Sequence[Mapping[str, Any]]) -> list[Finding]:
    name, health = config.server_id, config.health
    found: list[Finding] = []
    status: Mapping[str, Any] | None = None
    if health.enabled and health.port:
        host = "127.0.0.1" if health.host == "0.0.0.0" else health.host
        status, problem = await _ask(world, f"http://{host}:{health.port}/status")
        if status is None:
            found.append(
                warning(
                    f"node {name}", f"port {health.port}: {problem}", "start it; what it says was not judged"
                )
            )
        elif status.get("node") != name:
            found.append(
                error(f"node {name}", f"port {health.port} is {status.get('node')}'s", "correct health.port")
            )
            status = None
    if status is not None:
        found += running.judge_node(name, status, proxies)
    wanted = (
        [(f"gate {each.name}", each.host, each.port) for each in config.gates] if config.gate.enabled else []
    )
    wanted.append(("health of " + name, health.host, health.port if health.enabled else 0))
    found += await machine.ports(world, wanted, running=status is not None, private=("health of " + name,))
    return found + await _files(world, {f"inbox of {name}": _folder(config.data_dir, itself=True)}, None)


def _folder(path: str, *, itself: bool = False) -> Path:
    """Where a file stands, or will stand."""
    whole = Path(path).absolute()
    return whole if itself else whole.parent
