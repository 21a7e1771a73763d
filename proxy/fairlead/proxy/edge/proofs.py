"""What a new connection to a backend begins with: nothing, a PROXY header, or one that proves the proxy.

Stands between connecting and the first byte that is relayed. Which of the three a backend wants, its configuration
says; what a node's gate believes (key, run of the gate), its link said.

Invariants: every token has a nonce of its own and is made when the connection stands, never before; a connection
that serves many clients (HTTP) names none of them, and carries a signer for its requests instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.proof import (
    NO_BOOT,
    NONCE_BYTES,
    TTL_MS_DEFAULT,
    ProofKey,
    ProofKind,
    request_key,
    write,
)
from fairlead.protocol.proxy_header import Endpoint, write_v1, write_v2
from fairlead.protocol.request_proof import RequestSigner, client_facts
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.settings import Backend
from fairlead.runtime.world import World


@dataclass(frozen=True, slots=True)
class NodeProof:
    """What tokens for one node are made with."""

    key: ProofKey
    boot: bytes = NO_BOOT  # the run of its gate, as far as the node said


@dataclass(slots=True)
class Purpose:
    """What a connection to a backend is opened for. `signer` is there once it stands, if its requests need proofs."""

    kind: ProofKind
    source: Endpoint | None = None  # the client
    target: Endpoint | None = None  # where it connected to
    session_id: str = ""
    signer: RequestSigner | None = None


def for_client(arrival: Arrival, session_id: str, target: Endpoint | None = None) -> Purpose:
    """One client's connection, to be relayed."""
    return Purpose(ProofKind.TCP, (arrival.peer_host, arrival.peer_port), target, session_id)


def facts_of(arrival: Arrival, session_id: str) -> bytes:
    """What the proofs of a client's requests say of it."""
    certificate = arrival.client_certificate
    return client_facts(
        arrival.peer_host, arrival.peer_port, session_id, arrival.is_tls, arrival.server_name,
        certificate.sha256 if certificate else "",
    )  # fmt: skip


class Proofs:
    """Makes what a connection begins with."""

    def __init__(
        self, world: World, proof_of: Callable[[str], NodeProof | None], ttl_ms: int = TTL_MS_DEFAULT
    ) -> None:
        """`proof_of`: by node id; None where no key can be had, and then nothing is proven."""
        self._world, self._proof_of, self._ttl_ms = world, proof_of, ttl_ms

    def header_for(self, backend: Backend, purpose: Purpose) -> bytes:
        """What goes out first on a connection to `backend` that has just been made."""
        purpose.signer = None
        if backend.gate:
            return self._proven(backend, purpose)
        if backend.send_proxy == "off":
            return b""
        if purpose.kind is not ProofKind.TCP:  # the proxy's own connection, whoever's requests it carries
            return _OWN[backend.send_proxy]
        target = purpose.target or _unspecified(purpose.source, backend.port)
        return (write_v1 if backend.send_proxy == "v1" else write_v2)(purpose.source, target)

    def _proven(self, backend: Backend, purpose: Purpose) -> bytes:
        proof = self._proof_of(backend.node or backend.id)
        if proof is None:
            return b""  # the gate refuses it, and says so
        nonce = self._world.random_bytes(NONCE_BYTES)
        if purpose.kind is not ProofKind.TCP:
            purpose.signer = RequestSigner(request_key(proof.key, nonce))
        return write(
            proof.key, backend.node or backend.id, purpose.kind, self._world.wall_ms(), nonce,
            source=purpose.source, target=purpose.target or _unspecified(purpose.source, backend.port),
            session_id=purpose.session_id, boot=proof.boot, ttl_ms=self._ttl_ms,
        )  # fmt: skip


_OWN: Final = {"v1": write_v1(None, None), "v2": write_v2(None, None, is_local=True)}


def _unspecified(source: Endpoint | None, port: int) -> Endpoint:
    """Where the client connected to, as far as is known: the port, on no address in particular."""
    return ("::" if source is not None and ":" in source[0] else "0.0.0.0"), port
