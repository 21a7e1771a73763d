"""Certificates of backends that are trusted as they were first seen."""

from __future__ import annotations

import argparse
from typing import Any

from fairlead.cli.ctl.calling import call, guard, path_to, shared
from fairlead.cli.ctl.showing import print_json, table, when


def add_to(parts: Any) -> None:
    """Add the verb and its parts."""
    pins = parts.add_parser(
        "pins", parents=[shared()], help="certificates of backends: list, accept another one",
        description="A backend with tls = \"tofu\" is known by the certificate it showed first. Another one is refused "
        "(BACKEND_CERTIFICATE_CHANGED) until it is accepted by its fingerprint.",
    )  # fmt: skip
    pins.set_defaults(run=guard(_list))
    kinds = pins.add_subparsers(dest="part", metavar="PART")
    parents = [shared(again=True)]
    listed = kinds.add_parser(
        "list", parents=parents, help="what each backend is known by, and what it shows"
    )
    listed.set_defaults(run=guard(_list))
    accept = kinds.add_parser("accept", parents=parents, help="know a backend by the certificate that waits")
    accept.add_argument("backend", help="its id")
    accept.add_argument("sha256", help="of the certificate that waits, as `list` shows it")
    accept.set_defaults(run=guard(_accept))


def _list(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", "/api/backends/pins")
    _show(options, answer)


def _accept(options: argparse.Namespace) -> None:
    path = path_to("api", "backends", options.backend, "pin", "accept")
    _, answer = call(options, "POST", path, {"sha256": options.sha256})
    _show(options, answer)


def _show(options: argparse.Namespace, answer: Any) -> None:
    if options.json:
        return print_json(answer)
    return table(("backend", "trust", "known by (SHA-256)", "since (UTC)", "accepted by", "waiting (SHA-256)"), [
        (each["backend"], each["trust"], each["sha256"], when(each["since_ms"]), each["accepted_by"],
         each["waiting_sha256"])
        for each in answer["pins"]
    ])  # fmt: skip
