"""`fairlead secret rotate`: a secret's rotation, step by step, as SECURITY.md describes it.

Changes files, and asks the running proxies before each change: what they hold, who still needs the previous one, and
whether it may go. A proxy takes the files over when it is told to (SIGHUP, or `--pid`). Secrets that are not in files
are for whoever keeps them: then it says what to set. Nothing that is printed is a secret, but for one that is to be set
by hand.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import tomli

from fairlead.cli.ctl.calling import Failed, call, guard, shared
from fairlead.cli.ctl.keys import UNITS_S
from fairlead.cli.ctl.showing import print_json, short, table, when
from fairlead.cli.toml_lines import NotEditable, with_keys
from fairlead.protocol.keys import fingerprint
from fairlead.runtime.config import read_private_file
from fairlead.runtime.secret import decode_secret
from fairlead.runtime.world import RealWorld

KEYS: Final = {
    "proxy": ("security", "proxy_secret"),
    "trust": ("security", "internal_trust_shared_secret"),
    "hmac": ("dispatch", "hmac_secret"),
    "jwt": ("jwt", "hs256_secret"),
    "callback": ("worker", "callback_signing_secret"),
}
VERIFIERS: Final = {
    "proxy": "every proxy",
    "trust": "every proxy, and every node (as its internal_trust_shared_secret_previous_file)",
    "hmac": "every proxy",
    "jwt": "every proxy",
    "callback": "every proxy, and every receiver of callbacks",
}
USERS: Final = {
    "proxy": "nodes and applications (a node with its own key: `fairlead secret node-key ID --file FILE`)",
    "trust": "nodes, as internal_trust_shared_secret_file",
    "hmac": "who signs requests",
    "jwt": "the issuer of tokens",
    "callback": "nodes with a callback_url",
}
TAKEN_OVER_S: Final = 10.0
ELSEWHERE: Final = (
    "node keys: after POST /api/nodes/ID/revoke, `fairlead secret node-key ID --epoch N`",
    "operator keys: `fairlead ctl keys create`, `list` (last use of the old one), `revoke`",
    "the audit trail's checkpoint key follows the proxy secret; keep the old public key (`secret audit-key`)",
    "tokens of players' transfers follow the proxy secret: those of the previous one are good for as long as it is",
)


def add_to(parts: Any) -> None:
    """Add the verb and its parts."""
    rotate = parts.add_parser("rotate", help="rotate a secret: status, prepare, switch, finish")
    steps = rotate.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, run, text in (
        ("status", _status, "how far each rotation is, and who still needs the previous secret"),
        ("prepare", _prepare, "make a new secret beside the one in use: believed, not used yet"),
        ("switch", _switch, "use the new one; the old one is still believed"),
        ("finish", _finish, "take the old one away, unless somebody needs it"),
    ):
        each = steps.add_parser(name, parents=[shared()], help=text)
        each.add_argument(
            "--proxy", action="append", metavar="URL", help="ops address of each proxy, if several"
        )
        each.add_argument(
            "--quiet", default="1h", metavar="TIME",
            help="so long nobody must have signed with the old one, where nobody can be named (default: 1h)",
        )  # fmt: skip
        each.set_defaults(run=guard(run))
        if name == "status":
            continue
        each.add_argument("--config", required=True, metavar="FILE", help="the proxy's")
        each.add_argument(
            "--kind", choices=tuple(KEYS), default="proxy", help="which secret (default: proxy)"
        )
        each.add_argument("--pid", type=int, help="of the proxy: tell it to reload, and wait until it did")
        if name == "prepare":
            each.add_argument(
                "--valid", default="7d", metavar="TIME",
                help="how long the old fleet secret is believed, from now on (default: 7d)",
            )  # fmt: skip
        if name == "finish":
            each.add_argument("--force", action="store_true", help="cut off whoever needs it; audited")


# -- what stands in the files


@dataclass(frozen=True)
class _Files:
    """How a configuration names the secrets of one kind."""

    config: Path
    text: str
    kind: str
    current: str
    previous: str

    @property
    def key(self) -> str:
        return KEYS[self.kind][1]

    def write(self, values: Mapping[str, str | None]) -> None:
        """Set these keys, at once or not at all."""
        try:
            text = with_keys(self.text, KEYS[self.kind][0], values)
        except NotEditable as error:
            wanted = ", ".join(f"{name} = {value!r}" for name, value in values.items())
            raise Failed(f"{self.config}: {error}; set by hand: {wanted}") from error
        _write_new(
            beside := self.config.with_name(f"{self.config.name}.new"),
            text,
            self.config.stat().st_mode & 0o777,
        )
        os.replace(beside, self.config)


def _files(options: argparse.Namespace) -> _Files | None:
    """None where the secret is in no file that this configuration names."""
    path = Path(options.config)
    try:
        text = path.read_text(encoding="utf-8")
        data = tomli.loads(text)
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: {error}") from error
    section, key = KEYS[options.kind]
    given = data.get(section, {})
    current, previous = given.get(f"{key}_file", ""), given.get(f"{key}_previous_file", "")
    return _Files(path, text, options.kind, current, previous) if current else None


def _write_new(path: Path, text: str, mode: int = 0o600) -> None:
    """A file that was not there, whole and on disk."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from error


def _print_in(path: str) -> str:
    try:
        decoded = decode_secret(read_private_file(path))
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: {error}") from error
    if isinstance(decoded, str):
        raise Failed(f"{path}: {decoded}")
    return fingerprint(decoded)


# -- what the proxies say


def _ask(options: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """(address, its secrets by kind) of every proxy."""
    found = []
    for url in options.proxy or [options.url]:
        options.url = url
        _, answer = call(options, "GET", f"/api/secrets?quiet_s={_seconds(options.quiet)}")
        found.append((url, {each["kind"]: each for each in answer["secrets"]}))
    return found


def _seconds(text: str) -> int:
    matched = re.fullmatch(r"(0|[1-9][0-9]{0,8})([smhd])", text)
    if matched is None:
        raise Failed(f"{text!r} is no time: a number and s, m, h or d")
    return int(matched[1]) * UNITS_S[matched[2]]


def _taken_over(options: argparse.Namespace, current: str, previous: str) -> None:
    """Tell the proxy to reload, and wait until it holds these."""
    if options.pid is None:
        print("next: SIGHUP to every proxy (`systemctl reload`), then `fairlead secret rotate status`")
        return
    os.kill(options.pid, signal.SIGHUP)
    until = time.perf_counter() + TAKEN_OVER_S
    while True:
        (_, found), *_ = _ask(options)
        held = found[options.kind]
        if (held["current"], held["previous"]) == (current, previous):
            print(f"the proxy has taken it over; next: {held['step']} ({held['why']})")
            return
        if time.perf_counter() > until:
            raise Failed("the proxy has not taken it over: see its log for reload_refused")
        time.sleep(0.05)


# -- the steps


def _status(options: argparse.Namespace) -> None:
    proxies = _ask(options)
    if options.json:
        return print_json({url: list(found.values()) for url, found in proxies})
    rows: list[Sequence[Any]] = []
    for url, found in proxies:
        for kind, each in found.items():
            ends = when(each["previous_expires_at_ms"]) if each["previous_expires_at_ms"] else ""
            rows.append(
                (url, kind, each["current"], each["previous"], ends, each["step"],
                 short("; ".join(each["needed_by"]) or each["why"], 90))
            )  # fmt: skip
    table(
        ("proxy", "kind", "current", "previous", "ends (UTC)", "next", "why, or who needs the previous one"),
        rows,
    )
    for line in ELSEWHERE:
        print(line, file=sys.stderr)
    return None


def _prepare(options: argparse.Namespace) -> None:
    for url, found in _ask(options):
        held = found[options.kind]
        if not held["current"]:
            raise Failed(f"{url} has no secret of this kind: set one, and restart it")
        if held["previous"]:
            who = "; ".join(held["needed_by"]) or "nobody"
            raise Failed(f"{url}: the rotation before is not finished; {held['previous']} is needed by {who}")
    files = _files(options)
    new = RealWorld().random_bytes(32).hex()
    ends = datetime.fromtimestamp(RealWorld().wall_ms() / 1000 + _seconds(options.valid), UTC)
    expiry = {"proxy_secret_previous_expires_at": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
    values: dict[str, str | None] = dict(expiry) if options.kind == "proxy" else {}
    if files is None:
        section, key = KEYS[options.kind]
        print(f"the secret is in no file that {options.config} names. Where it is kept, set")
        print(f"  {section}_{key}_previous={new}".upper())
        for name, value in values.items():
            print(f"  {section}_{name}={value}".upper())
        print(
            "and restart (an environment does not change while a process runs); then exchange the two, and restart"
        )
        return
    if files.previous:
        raise Failed(f"{files.config} names a previous secret already: finish that rotation, or take it out")
    name = f"{re.sub(r'[.][0-9a-f]{8}$', '', files.current)}.{fingerprint(bytes.fromhex(new))[:8]}"
    _write_new(Path(name), new + "\n")
    files.write({f"{files.key}_previous_file": name, **values})
    print(f"{name} holds a new secret; {files.config} has it believed beside {files.current}")
    print(f"it has to be believed by {VERIFIERS[options.kind]} before it is used")
    _taken_over(options, _print_in(files.current), _print_in(name))


def _switch(options: argparse.Namespace) -> None:
    files = _files(options)
    if files is None or not files.previous:
        raise Failed(f"{options.config} names no file with a prepared secret: see `prepare`")
    used, new = _print_in(files.current), _print_in(files.previous)
    for url, found in _ask(options):
        held = found[options.kind]
        if new not in (held["current"], held["previous"]):
            raise Failed(f"{url} does not believe {new} yet: tell it to reload (SIGHUP)")
    files.write({f"{files.key}_file": files.previous, f"{files.key}_previous_file": files.current})
    print(f"{files.previous} is the secret in use; {files.current} is believed until it is taken away")
    print(f"give the new one to {USERS[options.kind]}")
    _taken_over(options, new, used)


def _finish(options: argparse.Namespace) -> None:
    for url in options.proxy or [options.url]:
        options.url = url
        body = {"force": options.force, "quiet_s": _seconds(options.quiet)}
        _, answer = call(options, "POST", f"/api/secrets/{options.kind}/release", body)
        for who in answer["stranded"]:
            print(f"{url}: cut off: {who}", file=sys.stderr)
    files = _files(options)
    if files is None or not files.previous:
        section, key = KEYS[options.kind]
        print(
            f"the proxies let it go. Unset {f'{section}_{key}_previous'.upper()} where it is kept, and restart"
        )
        return
    values: dict[str, str | None] = {f"{files.key}_previous_file": None}
    if options.kind == "proxy":
        values["proxy_secret_previous_expires_at"] = None
    files.write(values)
    Path(files.previous).unlink(missing_ok=True)
    print(f"{files.previous} is gone, and {files.config} names it no more")
    _taken_over(options, _print_in(files.current), "")
