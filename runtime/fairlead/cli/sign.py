"""`fairlead sign`: the signature of one request, and the curl line that sends exactly what was signed.

The options are those of runbook 001's signer; without --body they make the body of a replay of dead letters. Nothing is
sent and no secret is printed. A line holds for minutes (DISPATCH_MAX_SKEW_MS) and for one call: its nonce is used up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fairlead.cli.ctl import DEFAULT_URL
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.request_signing import NONCE_BYTES, SIGNATURE_HEADERS, SigningKey, sign, signing_keys
from fairlead.runtime.secret import decode_secret
from fairlead.runtime.world import RealWorld, World

METHODS: Final = ("GET", "POST", "PUT", "DELETE")
REPLAY_PATH: Final = "/api/ops/reliability/dlq/replay"
OPS_KEY_NAME: Final = "FAIRLEAD_OPS_KEY"
SECRET_NAMES: Final = ("DISPATCH_HMAC_SECRET", "TRANSBOT_HMAC_SECRET")
BODY_ON_THE_LINE_MAX: Final = 65_536
_URL: Final = re.compile(r"(https?://[\x21-\x22\x24-\x2e\x30-\x3e\x40-\x7e]+)(/[\x21-\x22\x24-\x7e]*)?")


class NotSigned(Exception):
    """What the caller reads instead of a traceback."""


@dataclass(frozen=True)
class SignedCall:
    """A request with the headers that go with it."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    body_file: str = ""
    with_ops_key: bool = False

    @property
    def curl(self) -> str:
        """The line that sends it, byte for byte."""
        words = ["curl", "-sS", "--globoff", "--path-as-is", "-X", self.method, self.url]
        for name, value in self.headers:
            words += ["-H", f"{name}: {value}"]
        if self.body_file:
            words += ["--data-binary", f"@{self.body_file}"]
        elif self.body or self.method not in ("GET", "DELETE"):
            words += ["--data-raw", _text(self.body)]
        # What asks for more than a signature gives (a replay of what others submitted does) goes with an operator key,
        # which is not printed.
        return shlex.join(words) + (f' -H "x-ops-key: ${OPS_KEY_NAME}"' if self.with_ops_key else "")


def add_to(verbs: Any) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "sign", help="sign a request; print its headers and a curl line",
        description="The secret comes from --secret-file, DISPATCH_HMAC_SECRET or TRANSBOT_HMAC_SECRET. Without "
        "--body, the body is a replay of dead letters, made of the options. With FAIRLEAD_OPS_KEY set, the curl line "
        "sends that too: a signature alone submits commands, and a replay takes an operator.",
    )  # fmt: skip
    parser.add_argument("-c", "--company", "--tenant", dest="tenant", metavar="ID", help="whose dead letters")
    parser.add_argument("-m", "--max", type=int, metavar="N", help="at most so many")
    parser.add_argument(
        "-k", "--idempotency-key", metavar="KEY", help="so that saying it again replays nothing more"
    )
    parser.add_argument("-d", "--dry-run", action="store_true", help="only show what would be done")
    parser.add_argument(
        "-f", "--force", action="store_true", help="pass over the guards of age, count and transience"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say what was signed, on the standard error"
    )
    parser.add_argument("--method", default="POST", help="GET, POST, PUT or DELETE (default: POST)")
    parser.add_argument(
        "--url", default="", help=f"default: FAIRLEAD_URL or {DEFAULT_URL}, with {REPLAY_PATH}"
    )
    parser.add_argument(
        "--body", metavar="TEXT", help="what is sent instead: the text, @FILE, or - for stdin"
    )
    parser.add_argument(
        "--secret-file", metavar="FILE", help="a file with the secret, instead of the environment"
    )
    parser.add_argument(
        "--transbot", action="store_true", help="under runbook 001's header, X-Transbot-Signature"
    )
    parser.add_argument(
        "--only-signature", action="store_true", help="print the header's value and nothing else"
    )
    parser.set_defaults(run=_sign)


def _sign(options: argparse.Namespace) -> int:
    try:
        world = RealWorld()
        key = read_key(options.secret_file, os.environ)
        call = signed_call(options, key, world, os.environ)
    except (NotSigned, OSError) as error:
        print(f"fairlead sign: {error}", file=sys.stderr)
        return EXIT_FAILED
    if options.verbose:
        print(f"key id {key.key_id}; {call.method} {call.url}; {len(call.body)} bytes", file=sys.stderr)
    if options.only_signature:
        print(call.headers[0][1])
        return EXIT_STOPPED
    for name, value in call.headers:
        print(f"{name}: {value}")
    print(f"\n{call.curl}")
    return EXIT_STOPPED


def read_key(file: str | None, environ: Mapping[str, str]) -> SigningKey:
    """The secret to sign with. Raises NotSigned."""
    if file:
        text = Path(file).read_text()
    else:
        given = {environ[name].strip() for name in SECRET_NAMES if environ.get(name, "").strip()}
        if len(given) > 1:
            raise NotSigned(f"{' and '.join(SECRET_NAMES)} differ: unset one")
        text = given.pop() if given else ""
    if not text.strip():
        raise NotSigned(f"no secret: give --secret-file FILE, or set {SECRET_NAMES[0]}")
    decoded = decode_secret(text)
    if isinstance(decoded, str):
        raise NotSigned(f"the secret {decoded}")
    return signing_keys([decoded])[0]


def signed_call(
    options: argparse.Namespace, key: SigningKey, world: World, environ: Mapping[str, str]
) -> SignedCall:
    """The request that the options ask for. Raises NotSigned."""
    url = options.url or environ.get("FAIRLEAD_URL", DEFAULT_URL).rstrip("/") + REPLAY_PATH
    matched = _URL.fullmatch(url)
    if matched is None:
        raise NotSigned(
            "--url must be http(s)://HOST/PATH?QUERY in ASCII, percent-encoded, without a fragment"
        )
    target = matched[2] or "/"
    method = options.method.upper()
    if method not in METHODS:
        raise NotSigned(f"--method is one of {', '.join(METHODS)}")
    body, body_file = _body(options)
    nonce = world.random_bytes(NONCE_BYTES).hex()
    try:
        value = sign(key, method, target, body, world.wall_ms(), nonce)
    except ValueError as error:
        raise NotSigned(str(error)) from error
    headers = [(SIGNATURE_HEADERS[1 if options.transbot else 0], value)]
    if body:
        headers.append(("content-type", "application/json"))
    return SignedCall(
        method, matched[1] + target, tuple(headers), body, body_file, bool(environ.get(OPS_KEY_NAME))
    )


def _body(options: argparse.Namespace) -> tuple[bytes, str]:
    """The body, and the file that curl sends it from, if it is one."""
    named = {
        "company_id": options.tenant, "max": options.max, "idempotency_key": options.idempotency_key,
        "dry_run": options.dry_run or None, "force": options.force or None,
    }  # fmt: skip
    asked = {name: value for name, value in named.items() if value is not None}
    if options.body is None:
        if options.method.upper() in ("GET", "DELETE") and not asked:
            return b"", ""
        if not asked:
            raise NotSigned("say what is replayed (--company, --max), or give --body")
        return json.dumps(asked, separators=(",", ":")).encode(), ""
    if asked:
        raise NotSigned(f"--body holds everything: put {', '.join(asked)} into it")
    if options.body.startswith("@"):
        return Path(options.body[1:]).read_bytes(), options.body[1:]
    body = sys.stdin.buffer.read() if options.body == "-" else options.body.encode()
    if not _fits_a_line(body):
        raise NotSigned(
            f"write it to a file and say --body @FILE: it is no text of at most {BODY_ON_THE_LINE_MAX} bytes"
        )
    return body, ""


def _fits_a_line(body: bytes) -> bool:
    try:
        return len(body) <= BODY_ON_THE_LINE_MAX and "\0" not in body.decode()
    except UnicodeDecodeError:
        return False


def _text(body: bytes) -> str:
    return body.decode()
