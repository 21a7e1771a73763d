"""`fairlead secret`: make secrets, compare them without showing them, derive a node's own key, rotate them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from fairlead.cli import rotate
from fairlead.protocol.keys import Role, derive, fingerprint
from fairlead.runtime.audit_chain import Signer
from fairlead.runtime.process import EXIT_CONFIG, EXIT_STOPPED
from fairlead.runtime.secret import decode_secret
from fairlead.runtime.world import RealWorld

_ROLES = {"node-key": Role.NODE, "client-key": Role.CLIENT}


def add_to(verbs: Any) -> None:
    """Add the verb and its parts."""
    secret = verbs.add_parser("secret", help="make, compare and rotate secrets")
    parts = secret.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_audit_key(parts)
    rotate.add_to(parts)
    new = parts.add_parser("new", help="print a new secret: 32 random bytes in hex")
    new.set_defaults(run=_new)
    for name, text in (
        ("fingerprint", "print which secret it is"),
        ("node-key", "print the key of one node"),
        ("client-key", "print the key of one application"),
    ):
        each = parts.add_parser(name, help=text)
        if name == "fingerprint":
            each.add_argument("--id", default="", help="print the key id of this node too, as logs name it")
        if name != "fingerprint":
            each.add_argument("id")
            each.add_argument(
                "--epoch", type=int, default=0, help="the identity's key epoch; raised by a revoke"
            )
        each.add_argument(
            "--file",
            help="file with the secret; else from the environment",
        )
        each.set_defaults(run=_fingerprint if name == "fingerprint" else _peer_key, role=_ROLES.get(name))


def _add_audit_key(parts: Any) -> None:
    key = parts.add_parser(
        "audit-key", help="print the public key of the audit trail's checkpoints",
        description="Keep it where the trail is verified: `fairlead ctl audit verify FILE --public-key HEX`. It is "
        "derived from the fleet's secret, so it is another one after a rotation: keep the old ones too.",
    )  # fmt: skip
    key.add_argument("--file", help="file with the secret; else from the environment")
    key.set_defaults(run=_audit_key)


def _audit_key(options: argparse.Namespace) -> int:
    secret = _read(options)
    if secret is None:
        return EXIT_CONFIG
    signer = Signer(secret)
    print(signer.public_key.hex())
    print(f"key id {signer.key_id}, as checkpoints name it", file=sys.stderr)
    return EXIT_STOPPED


def _new(options: argparse.Namespace) -> int:
    print(RealWorld().random_bytes(32).hex())
    return EXIT_STOPPED


def _read(options: argparse.Namespace) -> bytes | None:
    text = Path(options.file).read_text() if options.file else _from_environment()
    if not text.strip():
        print("no secret: give --file FILE, or set SECURITY_PROXY_SECRET", file=sys.stderr)
        return None
    decoded = decode_secret(text.strip())
    if isinstance(decoded, str):
        print(decoded, file=sys.stderr)
        return None
    return decoded


def _from_environment() -> str:
    """A proxy's variable, or else a node's."""
    return os.environ.get("SECURITY_PROXY_SECRET") or os.environ.get("FAIRLEAD_PROXY_SECRET") or ""


def _fingerprint(options: argparse.Namespace) -> int:
    secret = _read(options)
    if secret is None:
        return EXIT_CONFIG
    print(fingerprint(secret))
    if options.id:
        print(f"key id of {options.id}: {derive(secret, Role.NODE, options.id, 0).key_id.hex()}")
    return EXIT_STOPPED


def _peer_key(options: argparse.Namespace) -> int:
    secret = _read(options)
    if secret is None:
        return EXIT_CONFIG
    key = derive(secret, options.role, options.id, options.epoch)
    print(key.psk.hex())
    shown = "nodes" if options.role is Role.NODE else "clients"
    print(f"key id {key.key_id.hex()} (public; compare it with /api/{shown})", file=sys.stderr)
    return EXIT_STOPPED
