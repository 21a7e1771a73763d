"""Operator keys: who may call, made one by one, and taken back."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, shared
from fairlead.cli.ctl.showing import print_json, short, table, when

KEYS = "/api/operator-keys"
ROLES = ("viewer", "operator", "admin")
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def add_to(parts: Any) -> None:
    """Add the verb and its parts."""
    keys = parts.add_parser(
        "keys", parents=[shared()], help="operator keys: list, create, revoke",
        description="Keys that the store holds, of which it knows the hashes alone. Those of the configuration "
        "(RELIABILITY_OPS_KEYS) are admin, are not listed here, and are taken back there.",
    )  # fmt: skip
    keys.set_defaults(run=guard(_list))
    kinds = keys.add_subparsers(dest="part", metavar="PART")
    parents = [shared(again=True)]
    listed = kinds.add_parser("list", parents=parents, help="every key, newest first, with its last use")
    listed.set_defaults(run=guard(_list))
    create = kinds.add_parser(
        "create", parents=parents, help="make a key, and print it this once",
        description="The key alone goes to the standard output, what it is to the standard error.",
    )  # fmt: skip
    create.add_argument(
        "--role", choices=ROLES, required=True, help="viewer looks, operator acts, admin makes keys too"
    )
    create.add_argument("--scope", action="append", metavar="SCOPE", help="only this of what the role allows: read, "
                        "dispatch, operate, approve, admin, or a permission of commands (kick.*)")  # fmt: skip
    create.add_argument("--tenant", default="", help="bound to this tenant (default: to none)")
    create.add_argument(
        "--read-scope", choices=("self", "tenant", "any"), default="", help="whose runs it may look at"
    )
    create.add_argument(
        "--subject-type", choices=("human", "service", "agent"), default="service", help="who holds it"
    )
    create.add_argument("--note", default="", help="who it is for")
    create.add_argument(
        "--valid", default="", metavar="TIME", help="ends by itself: 90d, 12h, 30m (default: never)"
    )
    create.set_defaults(run=guard(_create))
    revoke = kinds.add_parser("revoke", parents=parents, help="make a key worthless")
    revoke.add_argument("id", help="of the key, as `list` shows it")
    revoke.set_defaults(run=guard(_revoke))


def _list(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", KEYS)
    if options.json:
        return print_json(answer)
    return table(
        ("id", "role", "scopes", "tenant", "reads", "held by", "last used (UTC)", "expires (UTC)", "revoked (UTC)",
         "created by", "note"),
        [
            (each["id"], each["role"], short(" ".join(each["scopes"]) or "all", 40), each["tenant"],
             each["read_scope"], each["subject_type"], when(each["last_used_at_ms"]), when(each["expires_at_ms"]),
             when(each["revoked_at_ms"]), each["created_by"], short(each["note"], 40))
            for each in answer["keys"]
        ],
    )  # fmt: skip


def _create(options: argparse.Namespace) -> None:
    _, answer = call(options, "POST", KEYS, {
        "role": options.role, "scopes": options.scope or [], "tenant": options.tenant,
        "read_scope": options.read_scope, "subject_type": options.subject_type, "note": options.note,
        "valid_s": _seconds(options.valid),
    })  # fmt: skip
    if options.json:
        return print_json(answer)
    print(answer["key"])
    until = f", until {when(answer['expires_at_ms'])} UTC" if answer["expires_at_ms"] else ""
    print(f"key {answer['id']}: {answer['role']}{until}. It is not shown again.", file=sys.stderr)
    return None


def _seconds(text: str) -> int:
    if not text:
        return 0
    matched = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if matched is None:
        raise Failed("--valid takes a number and s, m, h or d: 90d")
    return int(matched[1]) * UNITS_S[matched[2]]


def _revoke(options: argparse.Namespace) -> None:
    _, answer = call(options, "POST", path_to("api", "operator-keys", options.id, "revoke"))
    if options.json:
        return print_json(answer)
    print(f"revoked {answer['id']}, at {when(answer['revoked_at_ms'])} UTC")
    return None
