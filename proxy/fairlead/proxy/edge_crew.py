"""What the edge's workers are given, from the configuration and the parts. With `app` the composition root.

Invariant: a worker's environment holds what an interpreter needs, and none of the proxy's secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import IdentityKey, Role, derive
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.control import Control
from fairlead.proxy.edge.http import LocalRoutes
from fairlead.proxy.edge.proofs import NodeProof
from fairlead.proxy.edge.sessions import Sessions
from fairlead.proxy.edge.workers.crew import CrewSettings, Workers
from fairlead.runtime.child import Child
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

PAYLOAD_BYTES_MIN: Final = 16 * 1024 * 1024  # for a configuration, a report, or a body of the public API
_PASSED_ON: Final = ("PATH", "HOME", "TZ", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR")
_PASSED_ON_PREFIXES: Final = ("PYTHON", "LC_", "SSL_CERT_", "OPENSSL_", "COVERAGE_")

StartChild = Callable[[tuple[str, ...], Mapping[str, str], bytes], Child]


def crew_of(
    config: ProxyConfig,
    world: World,
    observer: Observer,
    control: Control,
    sessions: Sessions,
    proof_of: Callable[[str], NodeProof | None],
    local: LocalRoutes | None,
    start: StartChild,
    environ: Mapping[str, str],
    log_level: Callable[[], str],
) -> Workers:
    """The workers, not started yet."""
    settings = CrewSettings(
        config.edge.workers, config.messaging.control_sender_id, config.logging.format == "json",
        config.security.token_ttl_millis, _public_paths(config),
        replace(ChannelLimits(), payload_bytes_max=max(PAYLOAD_BYTES_MIN, 2 * config.dispatch.body_bytes_max)),
        _bare(environ),
    )  # fmt: skip
    return Workers(
        settings, world, observer, sessions,
        lambda node: control.nodes.state(node, trio.current_time()).value,
        proof_of, partial(_key_of, control), start, log_level, local,
    )  # fmt: skip


def _key_of(control: Control, identity: str) -> IdentityKey:
    return derive(control.keys.secret, Role.EDGE, identity, 0)


def _public_paths(config: ProxyConfig) -> tuple[str, ...]:
    """As `assembly.is_public_path` has it; the main process asks that again."""
    found: tuple[str, ...] = ()
    if config.dispatch.public:
        found += ("/api/dispatch", "/api/dispatch/batch", "/api/runs/")
    if config.worker.public_callbacks:
        found += ("/callbacks/runs/",)
    return found


def _bare(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
