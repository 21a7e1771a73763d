"""Guards of the proxy, each taken out by one change of one text, and which rows of the drill have to notice.

`environment` makes a process start without a guard: the change is made while the file is imported, so that the tree on
disk stays as it is (see `tests.sim.mutation`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.sim.mutation import ROOT, Mutant

GUARD: Final = "proxy/fairlead/proxy/guard/"
OPS: Final = "proxy/fairlead/proxy/ops/"
DISPATCH: Final = "proxy/fairlead/proxy/dispatch/"
PROTOCOL: Final = "protocol/fairlead/protocol/"
SIGNING: Final = "runtime/fairlead/runtime/request_signing.py"


@dataclass(frozen=True, slots=True)
class Removed:
    """A guard that is gone. `rows`: those of the drill that have to fail."""

    name: str
    path: str
    old: str
    new: str
    rows: tuple[str, ...]

    @property
    def mutant(self) -> Mutant:
        return Mutant(self.name, f"There is no guard: {self.name}.", self.path, self.old, self.new, ())


LIVE: Final = (
    Removed(
        "authentication",
        f"{GUARD}access.py",
        'NOBODY: Final = Identity(ANONYMOUS, ANONYMOUS, auth="open", reads="self")',
        'NOBODY: Final = Identity(ANONYMOUS, ANONYMOUS, ("operator",), auth="open", reads="any")',
        ("no-credentials",),
    ),
    Removed(
        "tokens verified",
        f"{GUARD}callers.py",
        'return Reject(Reason.UNAUTHENTICATED, "no issuer of tokens is configured (jwt.issuer)")',
        'return Identity("anybody", "human", ("admin",), auth="jwt", reads="any")',
        ("bad-token",),
    ),
    Removed("roles", f"{GUARD}access.py", "    if may(caller, scope):\n        return\n",
            "    if may(caller, scope) or caller.roles:\n        return\n", ("role-guard",)),
    Removed(
        "tenants",
        f"{GUARD}tenants.py",
        "on what is a tenant's.\"\"\"\n    if caller.tenant and tenant != caller.tenant:",
        "on what is a tenant's.\"\"\"\n    if False:",
        ("tenant-guard",),
    ),
    Removed("signatures verified", SIGNING, "if not fits:", "if False:", ("bad-signature", "bad-signature-submits")),
    Removed("signatures demanded", f"{GUARD}chain.py", "if not signatures and not submits:", "if not signatures:",
            ("unsigned-submits",)),
    Removed("time of signatures", SIGNING, "if abs(late_ms) > skew_ms_max:", "if False:", ("stale-signature",)),
    Removed(
        "nonces",
        f"{GUARD}chain.py",
        "        limits = self._nonces\n        nonce = Nonce(",
        "        return None\n        nonce = Nonce(",
        ("nonce-replay", "nonce-replay-submits"),
    ),
    Removed(
        "rate of replays",
        f"{OPS}dead_letters_api.py",
        "if not cell.allowed:\n            detail = f\"{limit.calls_max} in",
        "if False:\n            detail = f\"{limit.calls_max} in",
        ("fourth-replay",),
    ),
    Removed("idempotency", f"{DISPATCH}submit.py", "    return given[0]\n", '    return ""\n',
            ("duplicate-key", "key-reused")),
    Removed("size of replays", f"{OPS}dead_letters_api.py", "if not 1 <= most <= items_max:", "if not 1 <= most:",
            ("oversized-replay",)),
    Removed("size of arguments", f"{DISPATCH}submit.py", "if len(args_json) > bounds.args_bytes_max:", "if False:",
            ("oversized-body",)),
    Removed("sender of envelopes", f"{PROTOCOL}envelope.py", "if sender != self._sender:", "if False:",
            ("wrong-sender",)),
    Removed("version of envelopes", f"{PROTOCOL}envelope.py",
            "if version is not None and version != self._version:", "if False:", ("wrong-version-envelope",)),
    Removed("version of links", f"{PROTOCOL}channel.py",
            "common = version >= max(self._wire_min, self._opening.wire_min)", "common = True", ("wrong-version",)),
    Removed("time of envelopes", f"{PROTOCOL}envelope.py",
            "if not issued_at_ms - skew <= now_ms <= issued_at_ms + ttl_ms + skew:", "if False:", ("stale-timestamp",)),
    Removed("nonces of envelopes", f"{PROTOCOL}envelope.py", "if nonce <= self._last_nonce:", "if False:",
            ("replayed-envelope",)),
    Removed("recorded handshakes", "proxy/fairlead/proxy/control/admission.py", "if ephemeral in self._seen:",
            "if False:", ("recorded-handshake",)),
)  # fmt: skip
ON_TWIN: Final = (
    Removed("registry before runs", f"{DISPATCH}dispatcher.py", "confirmed = record.sync.confirmed\n",
            "confirmed = True\n", ("unsynchronized-registry",)),
    Removed("closed where nobody knows", f"{GUARD}chain.py", "raise unavailable(error) from error", "return",
            ("guard-down",)),
)  # fmt: skip
BY_NAME: Final = {each.name: each for each in (*LIVE, *ON_TWIN)}


def environment(removed: Removed, folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that starts without a guard. `folder` is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "from tests.sim.mutation import install\n"
        "from tests.support.guards_removed import BY_NAME\n"
        f"install(BY_NAME[{removed.name!r}].mutant)\n"
    )
    return {**base, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
