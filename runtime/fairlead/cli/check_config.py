"""`fairlead check config`: whether a process would accept a configuration, before it is asked to run it.

Owns only what is printed. Invariant: it judges through the same loaders as the processes, so that an "ok"
here and a refusal at start cannot differ under the same environment.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from fairlead.backend.config import load_node_config
from fairlead.proxy.config import load_proxy_config
from fairlead.runtime.config import ConfigError

STATUS_OK: Final = 0
STATUS_REFUSED: Final = 2
KINDS: Final = ("proxy", "node")


def check_config(kind: str, path: str, environ: Mapping[str, str]) -> int:
    """Judge the file at `path` as a proxy's or a node's. Returns the exit status, 0 or 2."""
    try:
        summary = _summary(kind, path, environ)
    except ConfigError as error:
        count = len(error.problems)
        print(f"{path}: refused, {count} problem{'' if count == 1 else 's'}", file=sys.stderr)
        print(error, file=sys.stderr)
        return STATUS_REFUSED
    print(f"{path}: ok, {summary}")
    return STATUS_OK


def _summary(kind: str, path: str, environ: Mapping[str, str]) -> str:
    if kind == "node":
        node = load_node_config(path, environ)
        return f"node {node.server_id} ({node.environment}), proxies: {', '.join(node.proxies)}"
    assert kind == "proxy", "the command line offers KINDS"
    proxy = load_proxy_config(path, environ)
    counts = (len(proxy.listeners), len(proxy.backends), len(proxy.nodes))
    return "proxy ({}): {} listeners, {} backends, {} node entries".format(proxy.environment, *counts)
