"""Pure. Whose runs a caller may look at, and for which tenant they may act.

After `access` (what a caller may do at all), before anything is looked up. A caller that is bound to a tenant acts on
it alone and never sees another's, whatever its read scope says; `any` is for callers that are bound to none. `self` are
the runs that the caller submitted. What concerns the whole fleet (nodes, the registry, everybody's pause, /status) is
for callers that are bound to none.

Naming another tenant is refused as such, and so is naming a record that is another's: ids of runs and of dead letters
are random, so whoever has one was given it, and an operator who was given the wrong one is better told so than told
that there is no such run. Lists leave out what is not the caller's.

Invariants: a caller who may read the runs of its tenant and has none may read nothing; being refused is a reason of its
own for reads, because a rise of those is an alert (runbook 002).
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Reach:
    """What lists are narrowed to. None: not narrowed."""

    tenant: str | None = None
    principal: str | None = None

    @property
    def is_everything(self) -> bool:
        return self.tenant is None and self.principal is None


EVERYTHING = Reach()


def reach(caller: Identity, tenant: str | None = None) -> Reach:
    """What a caller may read, where it asks for one tenant's or (None) for all that it may. Raises Refused."""
    if caller.tenant:
        if tenant is not None and tenant != caller.tenant:
            raise Refused(
                Reason.SECURITY_READ_TENANT_MISMATCH,
                f"{caller.principal} is bound to {caller.tenant}, not to {tenant}",
            )
        tenant = caller.tenant
    elif caller.reads == "tenant":
        raise Refused(
            Reason.SECURITY_READ_TENANT_MISMATCH,
            f"{caller.principal} may read its tenant's, and is bound to none",
        )
    return Reach(tenant, caller.principal if caller.reads == "self" else None)


def check_read(caller: Identity, tenant: str, principal: str) -> None:
    """Raises Refused where a caller may not read what a principal of a tenant submitted."""
    allowed = reach(caller)
    check_tenant(caller, tenant)
    if allowed.principal is not None and principal != allowed.principal:
        raise Refused(Reason.RUN_NOT_OWNED, f"{caller.principal} may read only what it submitted itself")


def check_tenant(caller: Identity, tenant: str) -> None:
    """Raises Refused where a caller may not read a tenant's."""
    if caller.tenant and tenant != caller.tenant:
        raise Refused(
            Reason.SECURITY_READ_TENANT_MISMATCH,
            f"{caller.principal} is bound to {caller.tenant}, it is {tenant}'s",
        )


def check_act(caller: Identity, tenant: str) -> None:
    """Raises Refused where a caller may not act for a tenant, or on what is a tenant's."""
    if caller.tenant and tenant != caller.tenant:
        raise Refused(
            Reason.SECURITY_TENANT_MISMATCH,
            f"{caller.principal} is bound to {caller.tenant}, not to {tenant}",
        )


def readable_tenant(caller: Identity) -> str | None:
    """Whose settings and trail a caller may read: its tenant's, or (None) everybody's. Raises Refused."""
    if not caller.tenant:
        check_fleet(caller, reading=True)
    return caller.tenant or None


def check_fleet(caller: Identity, *, reading: bool) -> None:
    """Raises Refused where a caller may not act on what all tenants share, or read about it."""
    if not caller.tenant and (not reading or caller.reads == "any"):
        return
    reason = Reason.SECURITY_READ_TENANT_MISMATCH if reading else Reason.SECURITY_TENANT_MISMATCH
    bound = f"is bound to {caller.tenant}" if caller.tenant else f"may read {caller.reads}"
    raise Refused(reason, f"{caller.principal} {bound}; this concerns all tenants")
