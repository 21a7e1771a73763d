"""Whether the configurations of one fleet's processes fit each other: secrets, ids, ports, versions, limits.

Beside `env_matrix`, which reads the files. Judges values only, of configurations that load by themselves. Invariant: of
a secret nothing is told but its fingerprint, which an operator may print and compare.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fairlead.backend.config import NodeConfig
from fairlead.cli.findings import ERROR, OK, WARNING, Found
from fairlead.protocol.keys import Role, derive, fingerprint, identity_key
from fairlead.proxy.config import ProxyConfig

Proxies = Mapping[str, ProxyConfig]
Nodes = Mapping[str, NodeConfig]
EPOCHS_MAX: Final = 16  # revocations of one node after which its key is not told any more
# The same on proxy and nodes, says the description of each.
SHARED_LIMITS: Final = ("control_max_payload", "control_max_skew_millis", "control_ttl_millis")


def compared(proxies: Proxies, nodes: Nodes, *, with_secrets: bool) -> Iterator[Found]:
    """Every comparison; errors are what a fleet of these files would stumble over."""
    yield from _versions(proxies, nodes)
    yield from _among_proxies(proxies, with_secrets=with_secrets)
    yield from _ids(proxies, nodes)
    if not proxies or not nodes:
        yield Found(WARNING, "proxy and node", "give the files of both to have them compared")
        return
    for name, node in nodes.items():
        wrong = [*_senders(name, node, proxies), *_ports(name, node, proxies), *_limits(name, node, proxies)]
        if with_secrets:
            wrong += _secrets(name, node, proxies)
        yield from wrong or [
            Found(OK, f"{name}: beside the proxy", "ids, ports, limits" + ", secrets" * with_secrets)
        ]
    if not with_secrets:
        yield Found(WARNING, "secrets", "not compared: --without-secrets")


def _versions(proxies: Proxies, nodes: Nodes) -> Iterator[Found]:
    found = {name: proxy.schema_version for name, proxy in proxies.items()}
    found |= {name: node.schema_version for name, node in nodes.items()}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} has {version}" for name, version in found.items())
        yield Found(ERROR, "schema_version", f"is not the same everywhere: {told}")
    elif found:
        yield Found(OK, "schema_version", f"{next(iter(found.values()))} in {len(found)} files")


def _among_proxies(proxies: Proxies, *, with_secrets: bool) -> Iterator[Found]:
    if len(proxies) < 2:
        return
    differ = {
        "messaging.control_sender_id": {name: each.messaging.control_sender_id for name, each in proxies.items()},
        "store.url": {name: "the same" if each.store.url == _first(proxies).store.url else "another one"
                      for name, each in proxies.items()},
    }  # fmt: skip
    if with_secrets:
        differ["security.proxy_secret"] = {
            name: fingerprint(each.security.secret) for name, each in proxies.items()
        }
    for key, values in differ.items():
        if len(set(values.values())) > 1:
            told = ", ".join(f"{name}: {value}" for name, value in values.items())
            yield Found(ERROR, key, f"is not the same on the proxies of the fleet: {told}")
        else:
            yield Found(OK, key, f"the same on {len(values)} proxies")
    if not _first(proxies).store.is_postgres:
        yield Found(ERROR, "store.url", "several proxies share no SQLite file: PostgreSQL is needed")


def _first(proxies: Proxies) -> ProxyConfig:
    return next(iter(proxies.values()))


def _ids(proxies: Proxies, nodes: Nodes) -> Iterator[Found]:
    first: dict[str, str] = {}
    for name, node in nodes.items():
        before = first.setdefault(node.sender_id, name)
        if before != name:
            yield Found(ERROR, f"{name}: server_id", f"{node.sender_id} is the id of {before} too")
    for name, proxy in proxies.items():
        missing = sorted(
            {backend.node_id for backend in proxy.backends if backend.gate}
            - {node.sender_id for node in nodes.values()}
        )
        if nodes and missing:
            yield Found(WARNING, f"{name}: backends", f"no file was given for the nodes {', '.join(missing)}")


def _senders(name: str, node: NodeConfig, proxies: Proxies) -> Iterator[Found]:
    for proxy_name, proxy in proxies.items():
        own = proxy.messaging.control_sender_id
        if node.control_expected_sender_id != own:
            yield Found(
                ERROR, f"{name}: control_expected_sender_id",
                f"expects {node.control_expected_sender_id}, and {proxy_name} is {own}: UNEXPECTED_SENDER",
            )  # fmt: skip
        if not _listed(node.sender_id, proxy):
            yield Found(
                ERROR, f"{name}: server_id",
                f"{node.sender_id} is under neither [[backends]] nor [[nodes]] of {proxy_name}: IDENTITY_NOT_LISTED",
            )  # fmt: skip


def _listed(node_id: str, proxy: ProxyConfig) -> bool:
    grants = [*(backend.node_id for backend in proxy.backends), *(node.id for node in proxy.nodes)]
    return any(node_id.startswith(each[:-1]) if each.endswith("*") else node_id == each for each in grants)


def _ports(name: str, node: NodeConfig, proxies: Proxies) -> Iterator[Found]:
    served = {proxy.messaging.port: proxy_name for proxy_name, proxy in proxies.items()}
    dialled = {port for _, port in node.proxy_addresses}
    for port in sorted(dialled - set(served)):
        told = ", ".join(f"{each} has {at}" for at, each in served.items())
        yield Found(ERROR, f"{name}: proxies", f"port {port} is no proxy's messaging.port ({told})")
    gates = {gate.port: gate for gate in node.gates} if node.gate.enabled else {}
    for proxy_name, proxy in proxies.items():
        if not proxy.messaging.enabled:
            yield Found(ERROR, f"{proxy_name}: messaging.enabled", "is false: no node can link")
        for backend in proxy.backends:
            if backend.node_id != node.sender_id or not backend.gate:
                continue
            if backend.port not in gates:
                ports = ", ".join(map(str, sorted(gates))) or "none"
                yield Found(
                    ERROR, f"{proxy_name}: backends {backend.id}",
                    f"leads to a gate on port {backend.port}, and {name} has gates on {ports}",
                )  # fmt: skip


def _limits(name: str, node: NodeConfig, proxies: Proxies) -> Iterator[Found]:
    for proxy_name, proxy in proxies.items():
        for key in SHARED_LIMITS:
            theirs, own = getattr(proxy.messaging, key), getattr(node, key)
            if theirs != own:
                yield Found(ERROR, f"{name}: {key}", f"is {own}, and {theirs} on {proxy_name}")
        if node.gates and node.gate.head_bytes_max < proxy.limits.head_bytes_max:
            yield Found(
                ERROR, f"{name}: gate.head_bytes_max",
                f"{node.gate.head_bytes_max} refuses what {proxy_name} lets through ({proxy.limits.head_bytes_max})",
            )  # fmt: skip


# -- secrets


def _secrets(name: str, node: NodeConfig, proxies: Proxies) -> Iterator[Found]:
    for proxy_name, proxy in proxies.items():
        held, where = _held_under(node, proxy)
        if not held:
            yield Found(
                ERROR, f"{name}: {where}", f"is of another secret than {proxy_name}'s: HANDSHAKE_KEY_UNKNOWN"
            )
        elif held == "previous":
            yield Found(WARNING, f"{name}: {where}", f"is of {proxy_name}'s previous secret: move it on")
        trusts = [fingerprint(each) for each in node.security.trust_secrets]
        makes = [fingerprint(each) for each in proxy.security.trust_secrets]
        if bool(trusts) != bool(makes) or (makes and not set(makes) & set(trusts)):
            yield Found(
                ERROR, f"{name}: security.internal_trust_shared_secret",
                f"{_told(trusts)}, and {_told(makes)} on {proxy_name}: security_trust_token_invalid",
            )  # fmt: skip
        signs = node.worker.callback_secret
        reads = [each for each in _callback_secrets(proxy) if each is not None]
        if signs is not None and signs not in reads:
            yield Found(
                ERROR, f"{name}: worker.callback_signing_secret",
                f"is {fingerprint(signs)}, and {_told([fingerprint(each) for each in reads])} on {proxy_name}",
            )  # fmt: skip


def _callback_secrets(proxy: ProxyConfig) -> Sequence[bytes | None]:
    worker = proxy.worker
    return [
        None if each is None else _bytes(each.get_secret_value())
        for each in (worker.callback_signing_secret, worker.callback_signing_secret_previous)
    ]


def _bytes(text: str) -> bytes:
    from fairlead.runtime.secret import decode_secret

    found = decode_secret(text.strip())
    assert isinstance(found, bytes), "it was accepted as one"
    return found


def _held_under(node: NodeConfig, proxy: ProxyConfig) -> tuple[str, str]:
    """current, previous or nothing; and which key says so."""
    secrets = {"current": proxy.security.secret}
    if proxy.security.secret_previous is not None:
        secrets["previous"] = proxy.security.secret_previous
    for which, secret in secrets.items():
        if node.secret is not None and hmac.compare_digest(node.secret, secret):
            return which, "proxy_secret"
        if node.key is not None:
            own = identity_key(node.key).key_id
            if any(derive(secret, Role.NODE, node.sender_id, at).key_id == own for at in range(EPOCHS_MAX)):
                return which, "node_key"
    return "", "proxy_secret" if node.secret is not None else "node_key"


def _told(prints: Sequence[str]) -> str:
    return f"is {' or '.join(prints)}" if prints else "there is none"
