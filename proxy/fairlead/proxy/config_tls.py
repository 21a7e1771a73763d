"""The tables of `proxy.toml` that TLS is configured by, and which of its keys contradict each other.

What a listener or a backend says of TLS stands in its own table, in `config_edge`. The same rules as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from fairlead.proxy.config_edge import BackendConfig, ListenerConfig
from fairlead.runtime.config_model import FileName, Finding, Id, Lax, Section

ServerName = Annotated[str, Field(max_length=255, pattern=r"^(\*\.)?[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*$")]


class CertificateConfig(Section):
    """[[certificates]]: what listeners show to their clients. Read again when a file changes."""

    id: Id = Field(examples=["example"])
    """Id in listeners, logs, metrics and /status."""
    chain_file: FileName = Field(examples=["/etc/fairlead/tls/example.pem"])
    """The certificate and those between it and its authority, in PEM form."""
    key_file: FileName = Field(examples=["/etc/fairlead/tls/example.key"])
    """Its key without a passphrase, in a file that others cannot read."""
    names: Annotated[tuple[ServerName, ...], Lax] = ()
    """Server names that it is shown for, like a.example.org or *.example.org. Empty: those it is made out for."""


class Tls(Section):
    """[tls]: how certificates are looked after."""

    reload_interval_s: int = Field(5, ge=1, le=86_400)
    """How often the files of certificates are looked at. What has changed is taken over without a restart."""
    expiry_warn_days: int = Field(14, ge=0, le=365)
    """How long before a certificate runs out health says so."""
    pins_file: FileName = "data/pins.json"
    """Where the first certificates of backends with tls = "tofu" are kept."""


def tls_findings(
    listeners: Sequence[ListenerConfig],
    backends: Sequence[BackendConfig],
    certificates: Sequence[CertificateConfig],
) -> Iterator[Finding]:
    """What listeners, backends and certificates say against each other."""
    known = {each.id for each in certificates}
    choices = f"(allowed: {', '.join(sorted(known)) or 'none, as there are no [[certificates]]'})"
    for index, listener in enumerate(listeners):
        where = f"listeners[{index}]"
        for place, wanted in enumerate(listener.tls_certificates):
            if wanted not in known:
                paths = (f"{where}.tls_certificates[{place}]", "certificates")
                yield Finding(
                    paths, wanted, f"is not the id of a certificate {choices}", "name one, or add it"
                )
        yield from _listener(listener, where)
    for index, backend in enumerate(backends):
        yield from _backend(backend, f"backends[{index}]")


def _listener(listener: ListenerConfig, where: str) -> Iterator[Finding]:
    certificates, asked, ca_file = (
        f"{where}.tls_certificates",
        f"{where}.tls_client_certificates",
        f"{where}.tls_client_ca_file",
    )
    if listener.tls_certificates and listener.sni != "off":
        paths = (f"{where}.sni", certificates)
        message = "passes TLS on without ending it, and tls_certificates ends it"
        yield Finding(paths, listener.sni, message, 'set it to "off", or take tls_certificates away')
    if listener.tls_client_certificates != "off":
        if not listener.tls_certificates:
            message, action = "needs TLS", "name tls_certificates"
            yield Finding((asked, certificates), listener.tls_client_certificates, message, action)
        if not listener.tls_client_ca_file:
            message, action = "is required to judge clients' certificates", "name the file of their authority"
            yield Finding((ca_file, asked), listener.tls_client_ca_file, message, action)
    elif listener.tls_client_ca_file:
        message, action = "judges nothing", 'set tls_client_certificates = "required" or "optional"'
        yield Finding((ca_file, asked), listener.tls_client_ca_file, message, action)


def _backend(backend: BackendConfig, where: str) -> Iterator[Finding]:
    tls = f"{where}.tls"
    if backend.tls == "strict" and not backend.tls_fingerprint_sha256:
        message, action = "is required by strict", "name it, or trust otherwise: tofu, ca"
        yield Finding((f"{where}.tls_fingerprint_sha256", tls), "", message, action)
    for key, value, kinds in (
        ("tls_fingerprint_sha256", backend.tls_fingerprint_sha256, ("strict",)),
        ("tls_ca_file", backend.tls_ca_file, ("ca",)),
        ("tls_server_name", backend.tls_server_name, ("strict", "tofu", "ca")),
    ):
        if value and backend.tls not in kinds:
            message = f'is for tls = "{kinds[0]}"' if len(kinds) == 1 else "is for backends with TLS"
            yield Finding((f"{where}.{key}", tls), value, message, "take it away, or change tls")
