"""Arguments and exit status. 0 stopped as asked, 2 configuration refused, 1 anything else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fairlead.protocol.limits import WIRE_VERSION_MAX, WIRE_VERSION_MIN
from fairlead.runtime.process import EXIT_STOPPED
from fairlead.runtime.version import VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point of `fairlead`."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == [
        "edge-worker"
    ]:  # a proxy starts these, nobody else, and wants them soon: see [edge] workers
        from fairlead.cli.edge_worker import run_edge_worker

        return run_edge_worker(given[1:])
    options = make_parser().parse_args(given)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except BrokenPipeError:  # `fairlead ctl ... | head`
        sys.stderr.close()
        return EXIT_STOPPED


def make_parser() -> argparse.ArgumentParser:
    """Every verb with its options."""
    parser = argparse.ArgumentParser(
        prog="fairlead",
        description="A proxy and backend control plane: clients and durable commands, one fleet.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"fairlead {VERSION}, wire {WIRE_VERSION_MIN}..{WIRE_VERSION_MAX}",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    proxy = verbs.add_parser("proxy", help="run a proxy")
    proxy.add_argument("--config", required=True, metavar="FILE")
    proxy.add_argument(
        "--take-over",
        action="store_true",
        help="take the listening sockets of the proxy that runs, so that no client is refused meanwhile",
    )
    proxy.set_defaults(run=_proxy)

    node = verbs.add_parser("node", help="run a node")
    node.add_argument("--config", required=True, metavar="FILE")
    node.add_argument(
        "--handlers", default="", metavar="PACKAGE.MODULE:NODE", help="overrides the configuration's"
    )
    node.add_argument(
        "--forget-registry",
        action="store_true",
        help="after moving to another fleet: start without a registry",
    )
    node.set_defaults(run=_node)

    demo = verbs.add_parser("demo", help="run a proxy, two nodes and a sample app on loopback")
    demo.set_defaults(run=_demo)

    check = verbs.add_parser("check", help="check something without running it")
    checks = check.add_subparsers(dest="what", required=True, metavar="WHAT")
    config = checks.add_parser("config", help="read a configuration and list every problem")
    config.add_argument("kind", choices=("proxy", "node"))
    config.add_argument("file")
    config.set_defaults(run=_check_config)
    from fairlead.cli import (
        alert_rules,
        callbacks,
        contract_checks,
        ctl,
        doctor,
        drill,
        gates,
        incident_options,
        reason_codes,
        replay_guards,
        schema_preflight,
        seals,
        secrets,
        sign,
    )

    reason_codes.add_to(checks)
    alert_rules.add_to(checks)
    schema_preflight.add_to(checks)
    contract_checks.add_to(checks)
    incident_options.add_checks(checks)
    gates.add_to(checks)
    gates.add_verbs(verbs)
    secrets.add_to(verbs)
    callbacks.add_to(verbs)
    replay_guards.add_to(verbs)
    seals.add_to(verbs)
    sign.add_to(verbs)
    ctl.add_to(verbs)
    drill.add_to(verbs)
    doctor.add_to(verbs)
    incident_options.add_verbs(verbs)
    return parser


def _proxy(options: argparse.Namespace) -> int:
    from fairlead.cli.serve import run_proxy

    return run_proxy(options.config, os.environ, options.take_over)


def _node(options: argparse.Namespace) -> int:
    from fairlead.cli.serve import run_node

    return run_node(options.config, options.handlers, os.environ, options.forget_registry)


def _demo(options: argparse.Namespace) -> int:
    from fairlead.cli.demo import run_demo

    return run_demo(os.environ)


def _check_config(options: argparse.Namespace) -> int:
    from fairlead.cli.check_config import check_config

    return check_config(options.kind, options.file, os.environ)


if __name__ == "__main__":
    sys.exit(main())
