"""Certificates as they stand in files, and the TLS contexts that are made of them. Blocks: call it in a thread.

Stands behind `certificates`, which owns what is in force. Invariants: a set is whole or it is not made (`Unusable` says
which file, and why); a key that others may read is refused; nobody is ever asked for a passphrase; each context speaks
TLS 1.2 at least, without renegotiation and compression.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fairlead.proxy.edge.settings import Certificate, EdgeConfig, ListenerConfig
from fairlead.runtime.config import read_private_file
from fairlead.runtime.tls import TlsObject, failure_text

_FILE_BYTES_MAX: Final = 1024 * 1024
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY: Final = {"off": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

Stamps = Mapping[str, tuple[int, ...]]


class Unusable(Exception):
    """What is wrong with which file."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a certificate says of itself."""

    id: str
    names: tuple[str, ...]  # lower case; exact, or *.suffix
    expires_at_ms: int
    sha256: str


class NameTable:
    """Server names and the contexts that answer to them. The first that claims a name has it."""

    def __init__(self) -> None:
        self._exact: dict[str, ssl.SSLContext] = {}
        self._wildcard: dict[str, ssl.SSLContext] = {}

    def add(self, names: Iterable[str], context: ssl.SSLContext) -> None:
        for name in names:
            table = self._wildcard if name.startswith("*.") else self._exact
            table.setdefault(name.removeprefix("*."), context)

    def find(self, name: str) -> ssl.SSLContext | None:
        """An exact name before a wildcard, which stands for one label."""
        return self._exact.get(name) or self._wildcard.get(name.partition(".")[2])


@dataclass(frozen=True, slots=True)
class CertificateSet:
    """All that TLS needs from files, read at one time."""

    listeners: Mapping[str, ssl.SSLContext] = field(default_factory=dict)
    backends: Mapping[str, ssl.SSLContext] = field(default_factory=dict)  # by CA file
    facts: Mapping[str, Facts] = field(default_factory=dict)
    stamps: Stamps = field(default_factory=dict)  # of the files, before they were read


def files_of(config: EdgeConfig) -> list[str]:
    """Every file that TLS reads, once."""
    found = [path for each in config.certificates for path in (each.chain_file, each.key_file)]
    found += [each.tls.client_ca_file for each in config.listeners]
    found += [each.tls_ca_file for each in config.backends if each.tls == "ca"]
    return [path for path in dict.fromkeys(found) if path]


def stamps_of(paths: Iterable[str]) -> Stamps:
    """What changes when a file does: also its mode, as that may be what has to be corrected."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode)


def load(config: EdgeConfig) -> CertificateSet:
    """Read all of them. Raises Unusable."""
    stamps = stamps_of(files_of(config))
    facts = {each.id: read_facts(each) for each in config.certificates}
    by_id = {each.id: each for each in config.certificates}
    listeners = {}
    for each in config.listeners:
        missing = [wanted for wanted in each.tls.certificates if wanted not in by_id]
        if missing:
            raise Unusable(f"listener {each.name} shows {', '.join(missing)}, which is no longer there")
        if each.tls.certificates:
            listeners[each.name] = _listener_context(
                each, [by_id[wanted] for wanted in each.tls.certificates], facts
            )
    authorities = dict.fromkeys(each.tls_ca_file for each in config.backends if each.tls == "ca")
    return CertificateSet(listeners, {path: verifying_context(path) for path in authorities}, facts, stamps)


def read_facts(certificate: Certificate) -> Facts:
    """What the first certificate of a chain says. Raises Unusable."""
    path = certificate.chain_file
    try:
        with open(path, "rb") as file:
            text = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror or error}") from error
    if len(text) > _FILE_BYTES_MAX:
        raise Unusable(f"{path}: larger than {_FILE_BYTES_MAX} bytes")
    try:
        leaf = x509.load_pem_x509_certificate(text)
        names = certificate.names or _names_in(leaf)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Unusable(f"{path}: no certificate in PEM form: {error}") from error
    expires_at_ms = round(leaf.not_valid_after_utc.timestamp() * 1000)
    lower = tuple(dict.fromkeys(name.lower().rstrip(".") for name in names))
    return Facts(certificate.id, lower, expires_at_ms, leaf.fingerprint(hashes.SHA256()).hex())


def _names_in(leaf: x509.Certificate) -> list[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.DNSName)


def _listener_context(
    listener: ListenerConfig, certificates: list[Certificate], facts: Mapping[str, Facts]
) -> ssl.SSLContext:
    table = NameTable()
    contexts = [_serving_context(listener, each) for each in certificates]
    for certificate, context in zip(certificates, contexts, strict=True):
        table.add(facts[certificate.id].names, context)

    def choose(tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        assert isinstance(tls, TlsObject)
        tls.asked_name = (name or "").lower().rstrip(".")
        chosen = table.find(tls.asked_name) if tls.asked_name else None
        if chosen is not None:
            tls.context = chosen

    contexts[0].sni_callback = choose
    return contexts[0]


def _serving_context(listener: ListenerConfig, certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[listener.tls.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 1  # a client that comes back needs one; each costs it and us a message
    if listener.kind == "http":
        context.set_alpn_protocols(["http/1.1"])
    try:
        read_private_file(certificate.key_file)
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{certificate.key_file}: {getattr(error, 'strerror', None) or error}") from error
    try:
        context.load_cert_chain(certificate.chain_file, certificate.key_file, password=_refuse_passphrase)
    except ssl.SSLError as error:
        where = f"{certificate.chain_file} with {certificate.key_file}"
        raise Unusable(f"{where}: {failure_text(error)}") from error
    except OSError as error:
        raise Unusable(f"{certificate.key_file}: {error.strerror or error}") from error
    if listener.tls.client_certificates != "off":
        _trust(context, listener.tls.client_ca_file)
        context.verify_mode = _VERIFY[listener.tls.client_certificates]
    return context


def _refuse_passphrase() -> str:
    """OpenSSL would ask on the terminal, and hold everything up meanwhile."""
    raise Unusable(
        "a key under a passphrase cannot be used: store it without one, readable by its owner alone"
    )


def verifying_context(ca_file: str) -> ssl.SSLContext:
    """For backends whose certificate an authority vouches for: those of the file, or the system's. Raises Unusable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        _trust(context, ca_file)
    else:
        context.load_default_certs()
    return context


def pinning_context() -> ssl.SSLContext:
    """For backends that are known by the certificate itself. Whoever uses it has to look at that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trust(context: ssl.SSLContext, ca_file: str) -> None:
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise Unusable(f"{ca_file}: no certificates in PEM form: {failure_text(error)}") from error
    except OSError as error:
        raise Unusable(f"{ca_file}: {error.strerror or error}") from error
