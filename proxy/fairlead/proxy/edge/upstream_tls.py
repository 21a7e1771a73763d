"""TLS towards backends: the handshake, and whether the certificate is the one that is trusted.

Stands in `connect` between a backend's connection (and its PROXY header) and the first byte of a client. Trust is
`strict` (the SHA-256 that the configuration names), `tofu` (the one seen first, see `pins`) or `ca` (an authority
vouches for the name).

Invariants: not a byte of a client goes to a backend whose certificate was not judged; a first certificate is on
the disk before it counts, so that a restart does not trust anew; the caller sets the deadline.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.edge.certificates import Certificates
from fairlead.proxy.edge.pins import Pin, Pins
from fairlead.proxy.edge.settings import Backend, EdgeConfig
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.tls import TlsStream, client_handshake
from fairlead.runtime.world import World


class UpstreamTls:
    """Secures connections to backends; owns their pins."""

    def __init__(
        self, config: EdgeConfig, world: World, observer: Observer, certificates: Certificates
    ) -> None:
        self._world, self._observer, self._certificates = world, observer, certificates
        self._backends = {each.id: each for each in config.backends if each.tls != "off"}
        self._path = Path(config.tls_files.pins_file)
        self._file = world.open_whole(self._path)
        self._pins, self._has_read = Pins(), False
        self._writing = trio.Lock()
        # In an edge worker: asks the main process, which has the pins, and raises Refused.
        self.judge_elsewhere: Callable[[str, str], Awaitable[None]] | None = None

    def replace(self, config: EdgeConfig) -> None:
        """Other backends. Pins stay: a backend that comes back is known by what it was."""
        self._backends = {each.id: each for each in config.backends if each.tls != "off"}

    async def start(self) -> None:
        """Read the pins, if there is a backend for them. Raises Refused."""
        if self.judge_elsewhere is None and any(each.tls == "tofu" for each in self._backends.values()):
            await self._read()

    async def _read(self) -> None:
        """Who cannot know what was trusted must not trust anew: raises Refused."""
        try:
            self._pins = Pins.read(await self._world.run_in_thread(self._file.read))
        except (OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            raise Refused(Reason.BACKEND_TLS_FAILED, f"{self._path}: {text}") from error
        self._has_read = True

    async def secure(self, stream: ByteStream, backend: Backend) -> TlsStream:
        """TLS over a new connection to a backend. Raises Refused; the caller closes `stream` then."""
        context = (
            self._certificates.of_authorities(backend.tls_ca_file)
            if backend.tls == "ca"
            else self._certificates.pinning
        )
        try:
            tls = await client_handshake(stream, context, backend.tls_server_name or backend.host)
        except trio.BrokenResourceError as error:
            distrusted = isinstance(error.__cause__, ssl.SSLCertVerificationError)
            reason = Reason.BACKEND_CERTIFICATE_REFUSED if distrusted else Reason.BACKEND_TLS_FAILED
            raise Refused(reason, str(error)) from error
        if backend.tls != "ca":
            shown = tls.peer_certificate()
            if shown is None:
                raise Refused(Reason.BACKEND_TLS_FAILED, "it showed no certificate")
            await self._judge(backend, hashlib.sha256(shown).hexdigest())
        return tls

    async def _judge(self, backend: Backend, sha256: str) -> None:
        if backend.tls == "strict":
            if sha256 != backend.tls_fingerprint_sha256:
                detail = f"it showed {sha256}, which is not its tls_fingerprint_sha256"
                raise Refused(Reason.BACKEND_CERTIFICATE_REFUSED, detail)
            return
        await (self.judge_elsewhere or self.judge_first_seen)(backend.id, sha256)

    async def judge_first_seen(self, backend_id: str, sha256: str) -> None:
        """Whether a backend is known by this certificate; the first one is kept. Raises Refused."""
        if not self._has_read:  # it is the first such backend, and came with a reload
            async with self._writing:
                if not self._has_read:
                    await self._read()
        known = self._pins.judge(backend_id, sha256, self._world.wall_ms())
        if known is None:
            known = await self._keep_first(backend_id, sha256)
        if not known:
            detail = f"it showed {sha256}, and is known by {self._pins.pins[backend_id].sha256}"
            raise Refused(Reason.BACKEND_CERTIFICATE_CHANGED, detail)

    async def _keep_first(self, backend_id: str, sha256: str) -> bool:
        async with self._writing:
            known = self._pins.judge(backend_id, sha256, self._world.wall_ms())
            if known is not None:  # another connection was first
                return known
            try:
                await self._keep(backend_id, Pin(sha256, self._world.wall_ms()))
            except OSError as error:
                detail = f"its first certificate could not be kept: {self._path}: {error.strerror or error}"
                raise Refused(Reason.BACKEND_TLS_FAILED, detail) from error
        self._observer.log.info("backend_pinned", backend=backend_id, sha256=sha256)
        return True

    async def _keep(self, backend_id: str, pin: Pin) -> None:
        content = self._pins.with_pin(backend_id, pin)
        with trio.CancelScope(shield=True):  # what is written counts: the next process believes it too
            await self._world.run_in_thread(lambda: self._file.replace(content))
        self._pins.keep(backend_id, pin)

    # -- for operators

    def must_wait(self, backend_id: str, sha256: str) -> None:
        """Raise Refused unless exactly this certificate waits to be accepted."""
        waiting = self._pins.waiting.get(backend_id)
        if waiting is None or waiting.sha256 != sha256:
            shown = waiting.sha256 if waiting is not None else "none"
            raise Refused(Reason.PIN_NOT_WAITING, f"of {backend_id} there waits: {shown}")

    async def accept(self, backend_id: str, sha256: str, by: str) -> None:
        """From now on a backend is known by the certificate that waits. Raises Refused, OSError."""
        async with self._writing:
            self.must_wait(backend_id, sha256)
            await self._keep(backend_id, Pin(sha256, self._world.wall_ms(), by))
        self._observer.log.warning("backend_pin_accepted", backend=backend_id, sha256=sha256, by=by)

    def waiting(self) -> list[str]:
        """Backends that show another certificate than the one they are known by."""
        return sorted(self._pins.waiting)

    def rows(self) -> list[dict[str, Any]]:
        """What each backend with TLS is known by."""
        found = []
        for backend in self._backends.values():
            pin, waiting = self._pins.pins.get(backend.id), self._pins.waiting.get(backend.id)
            is_tofu = backend.tls == "tofu"
            found.append({
                "backend": backend.id,
                "trust": backend.tls,
                "sha256": backend.tls_fingerprint_sha256 if not is_tofu else pin.sha256 if pin else "",
                "since_ms": pin.since_ms if is_tofu and pin else None,
                "accepted_by": pin.accepted_by if is_tofu and pin else "",
                "waiting_sha256": waiting.sha256 if waiting else "",
                "waiting_since_ms": waiting.since_ms if waiting else None,
            })  # fmt: skip
        return found
