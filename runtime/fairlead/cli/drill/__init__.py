"""`fairlead drill`: proves on a deployment that runs that every guard refuses what it is for.

`plan` says what is proven and judges what was seen; `calls` asks over HTTP, `peer` speaks the control channel byte by
byte, `control` and `twin` prove the rest, `verb` joins them.

What is harmful to prove is proven on a twin: a proxy of the very version that is installed here, on loopback, with
secrets and a store of its own, which is broken on purpose. Each row says where it was proven.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

from fairlead.cli.ctl.calling import DEFAULT_URL

CLIENT_ID: Final = "drill"


def add_to(verbs: Any) -> None:
    """Add the verb."""
    drill = verbs.add_parser(
        "drill", help="prove on a running deployment that every guard refuses what it is for",
        description="Harmless: dry runs, a tenant of its own, and what is made is taken away again. Needs an "
        "administrator (ADMIN_JWT, or FAIRLEAD_OPS_KEY) and the secret that requests are signed with "
        "(DISPATCH_HMAC_SECRET or TRANSBOT_HMAC_SECRET). The control channel is proven where --control names it and "
        "the key of the application --client-id is at hand (--client-key-file, or the fleet's secret in "
        "SECURITY_PROXY_SECRET); else on a twin: a proxy of this very version that is started here, as is whatever "
        "would do harm to one that serves.",
    )  # fmt: skip
    drill.add_argument(
        "--url", default=None, help=f"ops address (default: BASE_URL, FAIRLEAD_URL or {DEFAULT_URL})"
    )
    drill.add_argument("--ops-key", default=None, help="an admin's operator key (default: FAIRLEAD_OPS_KEY)")
    drill.add_argument(
        "--tenant", default=None, help="whose name is used (default: TEST_COMPANY_ID, or drill)"
    )
    drill.add_argument("--secret-file", metavar="FILE", help="the signing secret, instead of the environment")
    drill.add_argument("--command", default="", metavar="NAME", help="what is submitted, and never executed")
    drill.add_argument("--args", default="{}", metavar="JSON", help="its arguments")
    drill.add_argument("--control", default="", metavar="HOST:PORT", help="the proxy's control port")
    drill.add_argument("--client-id", default=CLIENT_ID, metavar="ID", help="an application of [[clients]]")
    drill.add_argument("--client-key-file", metavar="FILE", help="its key (`fairlead secret client-key`)")
    drill.add_argument("--json", action="store_true", help="print a report as JSON")
    drill.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from fairlead.cli.drill.verb import run  # the command line need not wait for it

    return run(options)
