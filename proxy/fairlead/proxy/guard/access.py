"""Pure. What an identity may do: roles, the scopes they allow, and permissions of commands.

The last of the guards: authentication says who calls, this says what they may. Read by the operators' HTTP surface for
every endpoint of its table, and by the dispatch surface for the permission that a command names.

A caller without scopes of its own may do what its roles allow. One with scopes has only those, and of them only what
its roles allow: a scope never widens a role. Beside the six scopes stand permissions of commands (`kick.players`, and
`kick.*` for all that begin with `kick.`).

Invariants: a role that is not in the table allows nothing; nobody is given more than who gives it has.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused


class Scope(enum.StrEnum):
    """What an endpoint needs. The first two are no scopes of callers."""

    OPEN = "open"  # nothing: load balancers ask here
    SIGNED = "signed"  # a worker's signature over the body, which the endpoint itself verifies
    READ = "read"
    DISPATCH = "dispatch"
    REPLAY = "replay"  # dead letters, within the guards; operate includes it
    OPERATE = "operate"
    APPROVE = "approve"
    ADMIN = "admin"


ROLES: Final = ("viewer", "operator", "admin")
ALLOWED: Final = {
    "viewer": frozenset({Scope.READ}),
    "operator": frozenset({Scope.READ, Scope.DISPATCH, Scope.REPLAY, Scope.OPERATE, Scope.APPROVE}),
    "admin": frozenset({Scope.READ, Scope.DISPATCH, Scope.REPLAY, Scope.OPERATE, Scope.APPROVE, Scope.ADMIN}),
}
_INCLUDED_IN: Final = {Scope.REPLAY: Scope.OPERATE.value}  # so that no key that had operate loses anything
GIVEN_SCOPES: Final = tuple(scope.value for scope in Scope if scope not in (Scope.OPEN, Scope.SIGNED))
# A permission of a command: words joined by dots, the last of which may be a star. A star never stands alone.
_PERMISSION: Final = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*(\.\*)?")
_SCOPE_CHARACTERS_MAX: Final = 64

READS: Final = ("self", "tenant", "any")
ANONYMOUS: Final = "anonymous"
# Somebody who proved nothing, and whom nothing is opened to.
NOBODY: Final = Identity(ANONYMOUS, ANONYMOUS, auth="open", reads="self")


def allowed(roles: Iterable[str]) -> frozenset[Scope]:
    """What roles allow, together."""
    return frozenset(scope for role in roles for scope in ALLOWED.get(role, ()))


def may(caller: Identity, scope: Scope) -> bool:
    """Whether the caller has a scope."""
    if scope not in allowed(caller.roles):
        return False
    return not caller.scopes or scope.value in caller.scopes or _INCLUDED_IN.get(scope, "") in caller.scopes


def require(caller: Identity, scope: Scope) -> None:
    """Raises Refused where the caller lacks it: 401 for somebody who proved nothing, 403 for anybody else."""
    if may(caller, scope):
        return
    if caller.subject_type == ANONYMOUS:
        raise Refused(
            Reason.UNAUTHENTICATED, "send an operator key as x-ops-key, or a token as Authorization: Bearer"
        )
    held = ", ".join(caller.scopes or caller.roles) or "nothing"
    raise Refused(Reason.SCOPE_MISSING, f"{caller.principal} has {held}; this needs {scope.value}")


def permits(caller: Identity, permission: str) -> bool:
    """Whether the caller may have a command executed that names this permission ("": none is needed).

    Somebody with scopes of their own needs the permission among them; without, the right to dispatch is enough."""
    if not may(caller, Scope.DISPATCH):
        return False
    if not permission or not caller.scopes:
        return True
    return any(covers(scope, permission) for scope in caller.scopes)


def covers(granted: str, permission: str) -> bool:
    """Whether one permission includes another: the same, or `kick.*` for what begins with `kick.`."""
    if granted == permission:
        return True
    return granted.endswith(".*") and len(granted) > 2 and permission.startswith(granted[:-1])


def scope_problem(scope: str, role: str) -> str:
    """Why a scope cannot be given to somebody of this role; empty if it can."""
    if scope in GIVEN_SCOPES:
        return "" if Scope(scope) in ALLOWED[role] else f"{scope} is more than the role {role} allows"
    if len(scope) > _SCOPE_CHARACTERS_MAX or not _PERMISSION.fullmatch(scope):
        return (
            "a scope is one of "
            + ", ".join(GIVEN_SCOPES)
            + ", or a command's permission (kick.players, kick.*)"
        )
    if "." not in scope:
        return f"{scope} is neither a scope nor a permission with a dot in it"
    return ""


def widens(giver: Identity, role: str, scopes: Sequence[str]) -> str:
    """What somebody would give that they do not have themselves; empty if nothing."""
    wanted = [Scope(each) for each in scopes if each in GIVEN_SCOPES] if scopes else sorted(ALLOWED[role])
    for scope in wanted:
        if not may(giver, scope):
            return scope.value
    if giver.scopes:
        if not scopes:
            return "every permission of commands"
        for each in scopes:
            if each not in GIVEN_SCOPES and not any(covers(own, each) for own in giver.scopes):
                return each
    return ""


@dataclass(frozen=True, slots=True)
class Openings:
    """What somebody without credentials may do, by configuration."""

    reads: bool = False  # what the table marks as open for reading, from loopback (observability.open_reads)
    everybody: bool = False  # development only: no key is required (not reliability.ops_require_operator_key)
    writes: bool = False  # with it, whether they may do more than look (reliability.ops_allow_demo_write)
    nothing: bool = False  # wins over all of these (reliability.ops_require_non_public_auth)

    def anonymous(self, *, open_read: bool, peer_host: str, public: bool) -> Identity:
        """Who somebody without credentials is. `public`: on the clients' port."""
        if self.nothing:
            return NOBODY
        if self.everybody:
            return _opened("operator" if self.writes else "viewer")
        if self.reads and open_read and not public and is_loopback(peer_host):
            return _opened("viewer")
        return NOBODY


def _opened(role: str) -> Identity:
    return Identity(ANONYMOUS, ANONYMOUS, (role,), auth="open", reads="any")


def is_loopback(host: str) -> bool:
    """Whether a peer is on this machine."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
