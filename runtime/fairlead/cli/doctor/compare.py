"""Pure. A proxy's configuration against a node's: what has to be the same on both sides, and is not.

Secrets are compared by the ids of the keys that are derived from them, which logs and /api/nodes name too.
"""

from __future__ import annotations

from collections.abc import Iterator

from fairlead.backend.config import NodeConfig
from fairlead.cli.doctor.finding import Finding, error, ok, warning
from fairlead.protocol.keys import Role, derive, fingerprint, identity_key
from fairlead.proxy.config import ProxyConfig

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SAME_ON_BOTH = ("control_max_payload", "control_max_skew_millis", "control_ttl_millis")


def compare(proxy: ProxyConfig, node: NodeConfig) -> Iterator[Finding]:
    """Everything that a proxy and a node have to agree on."""
    yield secret_parity(proxy, node)
    yield trust_parity(proxy, node)
    yield from _ids(proxy, node)
    yield from _addresses(proxy, node)
    yield from _bounds(proxy, node)
    yield from _gates(proxy, node)
    yield from _callbacks(proxy, node)


def secret_parity(proxy: ProxyConfig, node: NodeConfig) -> Finding:
    """Whether the key that the node holds is one that the proxy derives for it."""
    name, check = node.sender_id, f"secret of {node.sender_id}"

    def of_proxy(secret: bytes | None) -> str:
        return "" if secret is None else derive(secret, Role.NODE, name, 0).key_id.hex()

    def of_node(key: bytes | None, secret: bytes | None) -> str:
        return identity_key(key).key_id.hex() if key is not None else of_proxy(secret)

    current, previous = of_proxy(proxy.security.secret), of_proxy(proxy.security.secret_previous)
    held, held_before = of_node(node.key, node.secret), of_node(node.key_previous, node.secret_previous)
    if held == current:
        return ok(check, f"key id {held} on both sides")
    if held == previous:
        return warning(check, f"the node holds the previous secret (key id {held})",
                       "give it the current one, and SIGHUP it (`fairlead secret rotate status`)")  # fmt: skip
    if held_before and held_before in (current, previous):
        return warning(check, f"the node is ahead: the proxy has only its previous secret (key id {held_before})",
                       "go on: `fairlead secret rotate switch --kind proxy`")  # fmt: skip
    return error(check, f"the node's key has the id {held}, the proxy expects {current}",
                 "put one secret on both sides (`fairlead secret fingerprint`), or make the node's key anew: "
                 f"`fairlead secret node-key {name}`; after a revoke, with --epoch")  # fmt: skip


def trust_parity(proxy: ProxyConfig, node: NodeConfig) -> Finding:
    """Whether the proxy has a trust secret that the node believes."""
    check = f"trust secret of {node.sender_id}"
    ours, theirs = proxy.security.trust_secrets, node.security.trust_secrets
    if not ours and not theirs:
        return ok(check, "derived from the node's key on both sides")
    if not ours or not theirs:
        where = "node" if theirs else "proxy"
        return error(check, f"internal_trust_shared_secret is set on the {where} alone",
                     "set it on both sides, or on neither: until then the node refuses every run")  # fmt: skip
    common = [fingerprint(each) for each in ours if each in theirs]
    if not common:
        return error(check, f"differs: {fingerprint(ours[0])} at the proxy, {fingerprint(theirs[0])} at the node",
                     "put the proxy's internal_trust_shared_secret on the node")  # fmt: skip
    if ours[0] != theirs[0]:
        return warning(check, f"only a previous one is the same ({common[0]})", "finish the rotation")
    return ok(check, f"{common[0]} on both sides")


def _ids(proxy: ProxyConfig, node: NodeConfig) -> Iterator[Finding]:
    name, awaited, is_called = (
        node.sender_id,
        node.control_expected_sender_id,
        proxy.messaging.control_sender_id,
    )
    if awaited == is_called:
        yield ok(f"sender ids of {name}", f"the node expects {awaited}, which is what the proxy is called")
    else:
        yield error(f"sender ids of {name}", f"the node expects {awaited}, the proxy is called {is_called}",
                    f'set control_expected_sender_id = "{is_called}" on the node')  # fmt: skip
    listed = [each.id for each in proxy.nodes] + [each.node_id for each in proxy.backends]
    if not any(name == each or (each.endswith("*") and name.startswith(each[:-1])) for each in listed):
        yield error(f"sender ids of {name}", f"the proxy lists no node {name}",
                    f'add `[[nodes]] id = "{name}"` to the proxy, or name it as the node of a backend')  # fmt: skip


def _addresses(proxy: ProxyConfig, node: NodeConfig) -> Iterator[Finding]:
    name, messaging = f"control port of {node.sender_id}", proxy.messaging
    if not messaging.enabled:
        yield error(
            name, "messaging.enabled is false: no node can link", "set it to true, and restart the proxy"
        )
        return
    ports = {port for _, port in node.proxy_addresses}
    if messaging.port not in ports:
        yield error(name, f"the proxy listens on port {messaging.port}, the node dials {', '.join(node.proxies)}",
                    "correct `proxies` on the node, or messaging.port")  # fmt: skip
        return
    dialled = [host for host, port in node.proxy_addresses if port == messaging.port]
    if messaging.host in LOOPBACK and not any(host in LOOPBACK for host in dialled):
        yield error(name, f"the proxy listens on {messaging.host} only, the node dials {dialled[0]}",
                    "set messaging.host to an address that the node reaches")  # fmt: skip
        return
    yield ok(name, f"the node dials port {messaging.port}, where the proxy listens")


def _bounds(proxy: ProxyConfig, node: NodeConfig) -> Iterator[Finding]:
    for name in SAME_ON_BOTH:
        ours, theirs = getattr(proxy.messaging, name), getattr(node, name)
        if ours != theirs:
            yield warning(f"bounds of {node.sender_id}", f"{name} is {ours} at the proxy and {theirs} at the node",
                          "set the same on both sides: what the one sends the other may refuse")  # fmt: skip
    if proxy.environment != node.environment:
        yield warning(f"environment of {node.sender_id}",
                      f"{proxy.environment} at the proxy, {node.environment} at the node",
                      "development opens what production refuses: set both to production")  # fmt: skip


def _gates(proxy: ProxyConfig, node: NodeConfig) -> Iterator[Finding]:
    """A gate resets who does not prove to be the proxy, and a server without one takes the proof for a request."""
    ports = {gate.port: gate.name for gate in node.gates} if node.gate.enabled else {}
    mine = [each for each in proxy.backends if each.node_id == node.sender_id]
    for backend in mine:
        check = f"gate of {backend.id}"
        if backend.port in ports and not backend.gate:
            yield error(check, f"port {backend.port} is the node's gate {ports[backend.port]}, and the backend has no "
                        "`gate = true`: clients get 502 or are reset", f"set gate = true for {backend.id}")  # fmt: skip
        elif backend.gate and backend.port not in ports:
            yield error(check, f"`gate = true`, and the node has no gate at port {backend.port}",
                        "add it under [[gates]] on the node, or take gate = true away")  # fmt: skip
        elif backend.gate:
            yield ok(check, f"port {backend.port} is the node's gate {ports[backend.port]}")
    for gate in node.gates:
        if gate.target_host not in LOOPBACK:
            yield warning(f"gate {gate.name}", f"the server behind it is at {gate.target_host}",
                          "leave it on loopback: whoever reaches it there passes by the gate")  # fmt: skip


def _callbacks(proxy: ProxyConfig, node: NodeConfig) -> Iterator[Finding]:
    if not node.worker.callback_url:
        return
    check, secret = f"callback secret of {node.sender_id}", node.worker.callback_signing_secret
    theirs = None if secret is None else fingerprint(_bytes(secret.get_secret_value()))
    ours = [fingerprint(each) for each in proxy.worker.callback_secrets]
    if theirs in ours:
        yield ok(check, f"{theirs} on both sides")
    else:
        yield error(check, f"{theirs} at the node, {', '.join(ours) or 'none'} at the proxy",
                    "put the proxy's worker.callback_signing_secret on the node")  # fmt: skip


def _bytes(text: str) -> bytes:
    from fairlead.runtime.secret import decode_secret

    decoded = decode_secret(text)
    return decoded if isinstance(decoded, bytes) else b""
