"""A client's TLS handshake: between its PROXY header, if there was one, and its protocol.

Shell around `runtime.tls`. Invariants: handshakes at once are bounded, and each has a deadline; each that fails is
counted once, with what went wrong, and its place is free again before it is waited for that the client reads why.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

import trio

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.arrival import Arrival, ClientCertificate
from fairlead.proxy.edge.certificates import Certificates
from fairlead.proxy.edge.gatekeeper import Gatekeeper
from fairlead.proxy.edge.settings import ListenerConfig
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.tls import NeverBegan, TlsStream, server_handshake

_LINGER_S: Final = 0.5
_LINGER_BYTES_MAX: Final = 64 * 1024


class TlsArrivals:
    """Ends TLS for the listeners that have it."""

    def __init__(
        self, certificates: Certificates, gatekeeper: Gatekeeper, observer: Observer, timeout_s: float
    ) -> None:
        self._certificates, self._gatekeeper, self._observer = certificates, gatekeeper, observer
        self._timeout_s = timeout_s

    async def secure(self, arrival: Arrival, listener: ListenerConfig) -> Arrival | None:
        """The arrival after its handshake; None where there was none, which has been counted and ended."""
        context = self._certificates.of_listener(listener.name)
        assert context is not None, "certificates are read before anything is bound"
        refused = await self._gatekeeper.begin_handshake(arrival.peer_host)
        if refused is not None:
            self._end(arrival, listener, refused)
            return None
        stream, failed = arrival.stream, None
        tls: TlsStream | None = None
        try:
            with trio.move_on_after(self._timeout_s):
                tls = await server_handshake(
                    stream, context, first=arrival.first, strict_end=listener.kind != "http"
                )
        except NeverBegan as error:
            self._end(arrival, listener, Reject(Reason.CLIENT_GONE, str(error)))
            return None
        except trio.BrokenResourceError as error:
            failed = Reject(Reason.TLS_HANDSHAKE_FAILED, str(error))
        finally:
            self._gatekeeper.end_handshake()
        if failed is not None:
            self._told(arrival, listener, failed)
            await _linger(stream)
            return None
        if tls is None:
            late = Reject(Reason.TLS_HANDSHAKE_TIMEOUT, f"not done within {self._timeout_s:g} s")
            self._end(arrival, listener, late)
            return None
        return replace(
            arrival, stream=tls, first=b"", is_tls=True, server_name=tls.server_name, alpn=tls.alpn,
            client_certificate=_certificate_of(tls),
        )  # fmt: skip

    def _end(self, arrival: Arrival, listener: ListenerConfig, reject: Reject) -> None:
        self._told(arrival, listener, reject)
        arrival.stream.abort()

    def _told(self, arrival: Arrival, listener: ListenerConfig, reject: Reject) -> None:
        self._observer.refused(
            reject.reason, reject.detail, level="debug" if reject.reason is Reason.CLIENT_GONE else "info",
            peer=arrival.peer_host, listener=listener.name,
        )  # fmt: skip


def _certificate_of(tls: TlsStream) -> ClientCertificate | None:
    """None where the client was not asked for one, or had none. One that does not hold has ended the handshake."""
    shown = tls.peer_certificate()
    return None if shown is None else ClientCertificate(tls.peer_subject(), hashlib.sha256(shown).hexdigest())


async def _linger(stream: ByteStream) -> None:
    """Close so that the client can read the alert: with unread bytes a close would be a reset, and lose it."""
    try:
        with trio.move_on_after(_LINGER_S):
            await stream.send_eof()
            left = _LINGER_BYTES_MAX
            while left > 0 and (data := await stream.receive_some(4096)):
                left -= len(data)
    except trio.BrokenResourceError:
        pass  # It is gone, or never was there.
    finally:
        stream.close()
