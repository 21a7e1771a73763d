"""Who did what: the latest, the whole trail as a file, and whether a file holds together.

`verify` needs no proxy: it reads an export, or the file that a proxy writes, wherever that was copied to.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, BinaryIO

from fairlead.cli.ctl.calling import call, fetch, guard, query, shared
from fairlead.cli.ctl.showing import print_json, short, table, when
from fairlead.runtime.audit_chain import Verified, verify
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED

EXPORT = "/api/ops/reliability/audit/export"
EVERY_KEY_BYTES = 32


def add_to(parts: Any) -> None:
    """Add the verb and its parts."""
    audit = parts.add_parser("audit", help="who did what: tail, export, verify")
    kinds = audit.add_subparsers(dest="part", required=True, metavar="PART")
    parents = [shared()]
    tail = kinds.add_parser("tail", parents=parents, help="the latest events")
    tail.add_argument("--limit", type=int, default=20, help="so many (default 20)")
    tail.set_defaults(run=guard(_tail))
    export = kinds.add_parser(
        "export", parents=parents, help="write the trail to a file, for `verify`",
        description="Row by row as it was hashed, with the signed checkpoints; a new one is made at the end.",
    )  # fmt: skip
    export.add_argument(
        "--from-seq", type=int, default=1, metavar="N", help="from this row on (default: the first)"
    )
    export.add_argument("--output", metavar="FILE", help="where to (default: standard output)")
    export.set_defaults(run=guard(_export))
    check = kinds.add_parser(
        "verify", help="whether an export, or a proxy's audit file, holds together; needs no proxy",
        description="Finds changed, removed, repeated, moved and added rows, and a missing beginning or end. With the "
        "public key (`fairlead secret audit-key`) it also finds a trail that was written anew. Exit status 1 where "
        "something is wrong.",
    )  # fmt: skip
    check.add_argument("file", metavar="FILE")
    check.add_argument(
        "--public-key", action="append", default=[], metavar="HEX", help="whose checkpoints are believed; again for "
        "those of earlier secrets",
    )  # fmt: skip
    check.add_argument(
        "--expect-seq", type=int, default=0, metavar="N", help="it must reach this row, as seen elsewhere"
    )
    check.add_argument(
        "--live", action="store_true", help="a proxy still writes it: its end may be without checkpoint"
    )
    check.add_argument("--partial", action="store_true", help="it may begin anywhere (export --from-seq)")
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    check.set_defaults(run=_checked, url="")


def _tail(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", "/api/ops/reliability/audit" + query({"limit": options.limit}))
    if options.json:
        return print_json(answer)
    return table(("seq", "at (UTC)", "action", "by", "from", "tenant", "of", "result", "why", "detail"), [
        (each["seq"], when(each["at_ms"]), each["action"], each["principal"], each["address"], each["tenant"],
         short(each["scope"], 40), _counts(each), short(each["why"], 40),
         short(" ".join(f"{name}={value}" for name, value in each["detail"].items()), 80))
        for each in reversed(answer["events"])  # the newest last, as a tail has it
    ])  # fmt: skip


def _counts(each: dict[str, Any]) -> str:
    if each["target_count"] <= 1 and not each["failure_count"]:
        return str(each["result"])
    return f"{each['result']} {each['success_count']}/{each['target_count']}, {each['failure_count']} failed"


def _export(options: argparse.Namespace) -> None:
    lines = 0
    if options.output:
        with open(options.output, "wb") as file:
            lines = _copy(options, file)
    else:
        lines = _copy(options, sys.stdout.buffer)
    print(f"{lines} lines", file=sys.stderr)


def _copy(options: argparse.Namespace, output: BinaryIO) -> int:
    written: set[bytes] = set()  # checkpoints of the last page: the next one begins with the same
    seq: int | None = options.from_seq
    lines = 0
    while seq is not None:
        content, headers = fetch(options, EXPORT + query({"from_seq": seq}))
        page = [line for line in content.splitlines(keepends=True) if line not in written]
        written = {line for line in page if b'"kind":"checkpoint"' in line}
        output.writelines(page)
        lines += len(page)
        seq = int(headers["x-next-seq"]) if "x-next-seq" in headers else None
    output.flush()
    return lines


def _checked(options: argparse.Namespace) -> int:
    try:
        keys = [bytes.fromhex(each) for each in options.public_key]
        if any(len(each) != EVERY_KEY_BYTES for each in keys):
            raise ValueError("a public key has 64 hex digits")
        with open(Path(options.file), "rb") as file:
            found = verify(
                file, keys, expect_seq=options.expect_seq, live=options.live, partial=options.partial
            )
    except (OSError, ValueError) as error:
        print(f"fairlead ctl audit verify: {error}", file=sys.stderr)
        return EXIT_FAILED
    if options.json:
        print_json(_as_json(found))
    else:
        _print(found, bool(keys))
    return EXIT_FAILED if found.problems else EXIT_STOPPED


def _print(found: Verified, keys: bool) -> None:
    for problem in found.problems:
        print(problem)
    if found.problems:
        print(f"NOT INTACT: {len(found.problems)} problem(s), the first at seq {found.problems[0].seq}")
        return
    print(
        f"intact: rows {found.first_seq} to {found.position.seq} ({found.rows}), {found.checkpoints} checkpoints, the "
        f"last of row {found.covered_seq}"
    )
    if found.position.seq > found.covered_seq:
        print(f"no checkpoint covers rows {found.covered_seq + 1} to {found.position.seq} yet")
    if found.torn:
        print("the last line is being written, and was passed over")
    if not keys:
        print("signatures were NOT checked: give --public-key (see `fairlead secret audit-key`)")


def _as_json(found: Verified) -> dict[str, Any]:
    return {
        "intact": not found.problems, "rows": found.rows, "first_seq": found.first_seq, "last_seq": found.position.seq,
        "last_hash": found.position.hash, "checkpoints": found.checkpoints, "covered_seq": found.covered_seq,
        "signatures_checked": found.checkpoints > 0 and not found.unchecked,
        "problems": [{"seq": each.seq, "line": each.line, "problem": each.text} for each in found.problems],
    }  # fmt: skip
