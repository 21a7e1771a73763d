"""`fairlead check env-matrix`: whether configurations are production's, and open nothing that only development may.

The four rules of runbook 002, for each file: `environment` stands in it and is exactly "production", and nothing
overrides it; no opening of development (judged by the same findings as a start, as if it were in production, whatever
the file says); operations are not served to the public; nothing is left of a demo, a benchmark or a trial. Then the
files together (`fleet_files`). Invariant: a file that cannot be judged fails.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import tomli

from fairlead.backend.config import NodeConfig, load_node_config
from fairlead.cli import findings
from fairlead.cli.findings import ERROR, OK, WARNING, Found
from fairlead.cli.fleet_files import compared
from fairlead.proxy.config import ProxyConfig, load_proxy_config
from fairlead.runtime.config import ConfigError, read_private_file, read_text
from fairlead.runtime.config_model import instant_ms
from fairlead.runtime.world import RealWorld

PRODUCTION: Final = "production"
ENVIRONMENT_NAME: Final = "FAIRLEAD_ENVIRONMENT"
# What a demo or a benchmark sets, and what their files name.
TRIAL_NAMES: Final = ("FAIRLEAD_BENCH", "FAIRLEAD_PORT_OFFSET", "FAIRLEAD_DATA")
DEMO_NAMESPACE: Final = "demo"
DEMO_HANDLERS: Final = "fairlead.backend.demo:"
OBSERVING_DAYS_MAX: Final = 30
# Written for whoever has no secrets where files are judged, and made good for everything but comparing.
_STAND_INS: Final = {
    "proxy": {
        "SECURITY_PROXY_SECRET": ("security", "proxy_secret"), "RELIABILITY_OPS_KEYS": ("reliability", "ops_keys"),
    },
    "node": {"FAIRLEAD_PROXY_SECRET": ("", "proxy_secret")},
}  # fmt: skip


@dataclass(slots=True)
class Read:
    """A file as it was read. `config`: as it would be in production; None where even that is refused."""

    path: str
    kind: str
    written: Mapping[str, Any]
    config: ProxyConfig | NodeConfig | None = None
    problems: list[str] = field(default_factory=list)


def check(options: argparse.Namespace) -> int:
    """`fairlead check env-matrix`."""
    gate = findings.Gate("env-matrix", options)
    try:
        found = list(judged(options.files, os.environ, with_secrets=not options.without_secrets))
    except ConfigError as error:
        return gate.could_not_run(str(error))
    except tomli.TOMLDecodeError as error:
        return gate.could_not_run(f"not TOML: {error}")
    return gate.end(found, files=options.files)


def judged(paths: Sequence[str], environ: Mapping[str, str], *, with_secrets: bool) -> Iterator[Found]:
    """Every file, then all together."""
    files = [read(path, environ, with_secrets=with_secrets) for path in paths]
    now_ms = RealWorld().wall_ms()
    for each in files:
        yield from _environment(each, environ)
        yield from _openings(each)
        yield from _public(each)
        yield from _trials(each, environ, now_ms)
    whole = [each for each in files if each.config is not None]
    if len(whole) < len(files):
        yield Found(ERROR, "together", "not compared: not every file could be loaded")
        return
    yield from compared(
        {each.path: each.config for each in whole if isinstance(each.config, ProxyConfig)},
        {each.path: each.config for each in whole if isinstance(each.config, NodeConfig)},
        with_secrets=with_secrets,
    )


def read(path: str, environ: Mapping[str, str], *, with_secrets: bool) -> Read:
    """One file, as production would take it. Raises ConfigError or TOMLDecodeError where it is no configuration."""
    written = tomli.loads(read_text(path))
    kind = "node" if "server_id" in written or "proxies" in written else "proxy"
    found = Read(path, kind, written)
    names = {**environ, ENVIRONMENT_NAME: PRODUCTION}
    if not with_secrets:
        names = _with_stand_ins(kind, written, names)
    reads: Callable[[str], str] = read_private_file if with_secrets else _stand_in
    try:
        found.config = (load_node_config if kind == "node" else load_proxy_config)(path, names, reads)
    except ConfigError as error:
        found.problems = [str(each) for each in error.problems]
    return found


def _with_stand_ins(kind: str, written: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    names = dict(environ)
    for name, (table, key) in _STAND_INS[kind].items():
        given = written.get(table, {}) if table else written
        in_file = {key, f"{key}_file", *(("node_key", "node_key_file") if kind == "node" else ())}
        outside = {
            name,
            f"{name}_FILE",
            *(("FAIRLEAD_NODE_KEY", "FAIRLEAD_NODE_KEY_FILE") if kind == "node" else ()),
        }
        if not in_file & set(given) and not outside & set(names):
            names[name] = _stand_in(name)
    return names


def _stand_in(name: str) -> str:
    """Something that may stand where a secret is wanted, and is none."""
    return hashlib.sha256(f"stands in for {name}".encode()).hexdigest()


# -- the rules


def _environment(each: Read, environ: Mapping[str, str]) -> Iterator[Found]:
    where, said = f"{each.path}: environment", each.written.get("environment")
    override = environ.get(ENVIRONMENT_NAME)
    if said is None:
        yield Found(ERROR, where, f'is not written: add environment = "{PRODUCTION}"')
    elif said != PRODUCTION:
        yield Found(ERROR, where, f'is {said!r}, not exactly "{PRODUCTION}"')
    elif override is not None and override != PRODUCTION:
        yield Found(ERROR, where, f"{ENVIRONMENT_NAME} makes it {override!r}")
    else:
        yield Found(OK, where, PRODUCTION)


def _openings(each: Read) -> Iterator[Found]:
    where = f"{each.path}: as in production"
    yield from (Found(ERROR, where, problem) for problem in each.problems)
    if not each.problems:
        yield Found(OK, where, f"loads as a {each.kind}, and opens nothing of development")


def _public(each: Read) -> Iterator[Found]:
    config = each.config
    if config is None:
        return
    if isinstance(config, ProxyConfig):
        own = [("observability", config.observability.host)] if config.observability.enabled else []
    else:
        own = [("health", config.health.host)] if config.health.enabled else []
        for gate in config.gates:
            if not _only_here(gate.target_host):
                where = f"{each.path}: gates {gate.name}"
                yield Found(
                    WARNING, where, f"its server at {gate.target_host} may be reached beside the gate"
                )
    for table, host in own:
        where = f"{each.path}: {table}.host"
        problem = public_problem(host)
        yield Found(ERROR if problem else OK, where, problem or f"{host} is not public")


def public_problem(host: str) -> str:
    """Why operations must not be served there; empty where only this machine or a private network reaches it."""
    if host == "localhost":
        return ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{host} is a name: whom it lets in cannot be told; write an address"
    if address.is_unspecified:
        return f"{host} serves operations on every network of the machine"
    if address.is_loopback or (address.is_private and not address.is_multicast):
        return ""
    return f"{host} is a public address"


def _only_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trials(each: Read, environ: Mapping[str, str], now_ms: int) -> Iterator[Found]:
    """What was meant to be tried out, and is not taken back."""
    where, before = f"{each.path}: switches", 0
    for found in (*_left_over(each.config, now_ms), *(
        (ERROR, f"{name} is set, which is for a demo or a benchmark") for name in TRIAL_NAMES if environ.get(name)
    )):  # fmt: skip
        before += 1
        yield Found(found[0], where, found[1])
    if not before and each.config is not None:
        yield Found(OK, where, "nothing is left of a demo or a trial")


def _left_over(config: ProxyConfig | NodeConfig | None, now_ms: int) -> Iterator[tuple[str, str]]:
    if config is None:
        return
    if config.logging.level == "debug":
        yield WARNING, "logging.level is debug, which tells more than anybody reads"
    if isinstance(config, NodeConfig):
        if config.handlers.startswith(DEMO_HANDLERS):
            yield ERROR, f"handlers = {config.handlers!r}: the demo's commands"
        return
    granted = [*(b.namespaces for b in config.backends), *(n.namespaces for n in config.nodes)]
    if any(DEMO_NAMESPACE in namespaces for namespaces in granted):
        yield ERROR, "a node may announce the namespace demo"
    dispatch = config.dispatch
    observes = "observe" in (dispatch.auth_mode, dispatch.integrity_mode)
    if observes and dispatch.public:
        yield ERROR, "dispatch.public serves commands to clients while a guard only observes"
    if observes and dispatch.observe_until is not None:
        days = (instant_ms(dispatch.observe_until) - now_ms) / 86_400_000
        if days > OBSERVING_DAYS_MAX:
            yield ERROR, f"dispatch.observe_until is {days:.0f} days ahead (allowed: {OBSERVING_DAYS_MAX})"
